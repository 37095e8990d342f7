/* Watch a stream with a browser, or a client for Node, as client.py does with Python's.
 *
 * usage: client.cjs LIBRARY URL [NAME...]     prints a JSON line
 * [type, data, last event id] for each event of the type "message" or one of the NAMEs,
 * until the end of its input.
 */
"use strict";

const { BROWSERS, openEmpty, sleep, startBrowser } = require("./harness.cjs");

const [library, url, ...names] = process.argv.slice(2);
const types = ["message", ...names];
const show = (type, data, id) => console.log(JSON.stringify([type, data, id]));

async function watchInBrowser() {
  const page = await (await startBrowser(library)).newPage();
  await openEmpty(page, new URL(url).origin);
  const watch = (address, types) => {
    const source = new EventSource(address);
    window.events = [];
    const keep = ({ type, data, lastEventId }) =>
      window.events.push([type, data, lastEventId]);
    for (const type of types) source.addEventListener(type, keep);
  };
  await page.evaluate(watch, url, types);
  for (;;) {
    const events = await page.evaluate(() => window.events.splice(0));
    for (const event of events) show(...event);
    await sleep(50);
  }
}

function watchInNode(client) {
  if (client.EventSource) {
    const source = new client.EventSource(url);
    for (const name of types) {
      source.addEventListener(name, ({ type, data, lastEventId }) => {
        // launchdarkly's has an event "end" of its own, without data.
        if (data !== undefined) show(type, data, lastEventId);
      });
    }
    source.onerror = () => {}; // or launchdarkly's ends the process
    return;
  }
  // @microsoft/fetch-event-source, which is made for a page.
  const nothing = () => {};
  const listening = { addEventListener: nothing, removeEventListener: nothing };
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, ...listening };
  const onmessage = ({ event, data, id }) => show(event || "message", data, id);
  client.fetchEventSource(url, { openWhenHidden: true, onmessage });
}

if (library in BROWSERS) watchInBrowser();
else watchInNode(require(library));

// undici's timer for a reconnect does not keep the process alive; its input does.
process.stdin.on("end", () => process.exit()).resume();
