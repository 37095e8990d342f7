/* Watch a stream with a client for Node, as client.py does with Python's.
 *
 * usage: client.cjs LIBRARY URL [NAME...]     prints a JSON line
 * [type, data, last event id] for each event of the type "message" or one of the NAMEs,
 * until the end of its input.
 */
"use strict";

const [library, url, ...names] = process.argv.slice(2);
const client = require(library);

const show = (type, data, id) => console.log(JSON.stringify([type, data, id]));

async function watchInChromium(puppeteer) {
  const browser = await puppeteer.launch({
    executablePath: "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  const page = await browser.newPage();
  await page.exposeFunction("show", show);
  // An empty page of the same origin, whatever the server has there.
  page.once("request", (request) => request.respond({ contentType: "text/html" }));
  await page.setRequestInterception(true);
  await page.goto(new URL("/", url).href);
  await page.setRequestInterception(false);
  await page.evaluate((address) => {
    new EventSource(address).onmessage = ({ type, data, lastEventId }) =>
      show(type, data, lastEventId);
  }, url);
}

if (client.launch) {
  watchInChromium(client);
} else if (client.EventSource) {
  const source = new client.EventSource(url);
  for (const name of ["message", ...names]) {
    source.addEventListener(name, ({ type, data, lastEventId }) => {
      // launchdarkly's has an event "end" of its own, without data.
      if (data !== undefined) show(type, data, lastEventId);
    });
  }
  source.onerror = () => {}; // or launchdarkly's ends the process
} else {
  // @microsoft/fetch-event-source, which is made for a page.
  const nothing = () => {};
  globalThis.window = globalThis;
  globalThis.document = {
    hidden: false,
    addEventListener: nothing,
    removeEventListener: nothing,
  };
  client.fetchEventSource(url, {
    openWhenHidden: true,
    onmessage: ({ event, data, id }) => show(event || "message", data, id),
  });
}

// undici's timer for a reconnect does not keep the process alive; its input does.
process.stdin.on("end", () => process.exit()).resume();
