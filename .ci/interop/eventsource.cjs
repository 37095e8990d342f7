/* EventSource and fetch in a page, against a server on localhost.  Every check runs in
 * both browsers, in a page and against servers of its own. */
"use strict";

const { expect, same, sleep, startDemo, until } = require("./harness.cjs");

/** In the page: an EventSource that keeps a record of all that happens to it. */
function connect(page, url, ...names) {
  const begin = (address, types) => {
    const source = new EventSource(address);
    const record = [];
    source.onopen = () => record.push(["open"]);
    source.onerror = () => record.push(["error", source.readyState]);
    for (const type of ["message", "gap", ...types]) {
      source.addEventListener(type, (event) => {
        record.push([event.type, event.data, event.lastEventId]);
      });
    }
    Object.assign(window, { source, record });
  };
  return page.evaluate(begin, url, names);
}

/** The same, once it is open: what is published from then on must be seen. */
async function watch(page, url, ...names) {
  await connect(page, url, ...names);
  await opened(page, 1);
}

/** A server that a page of its origin watches. */
async function watching({ page, startServer }, options, ...names) {
  const server = await startServer(options);
  await page.goto(server.origin);
  await watch(page, server.url, ...names);
  return server;
}

const recordOf = (page) => page.evaluate(() => window.record);

/** What was recorded, but for "open" and "error". */
async function eventsOf(page) {
  return (await recordOf(page)).filter(([type]) => !["open", "error"].includes(type));
}

/** Wait until the record has so many entries of the type: "event", "open" or "error". */
async function entries(page, count, kind) {
  const counted = (kind) =>
    window.record.filter(([type]) =>
      kind === "event" ? !["open", "error"].includes(type) : type === kind,
    ).length;
  const came = async () => (await page.evaluate(counted, kind)) >= count;
  await until(came, `${count} x ${kind}`).catch(async (problem) => {
    const record = JSON.stringify(await recordOf(page));
    throw new Error(`${problem.message}; recorded: ${record.slice(0, 1000)}`);
  });
}

const seen = (page, count) => entries(page, count, "event");
const opened = (page, count) => entries(page, count, "open");
const failed = (page) => entries(page, 1, "error");

async function opensBeforeTheFirstEvent(tools) {
  const { page } = tools;
  const server = await watching(tools, { heartbeat: 60 });
  // Nothing is published and no heartbeat due: the stream that opened is idle.
  const [id] = await server.publish("first");
  await seen(page, 1);
  same(await recordOf(page), [["open"], ["message", "first", id]], "record");
}

async function showsDefaultAndNamedEvents(tools) {
  const { page } = tools;
  const server = await watching(tools, {}, "news", "prix €");
  const text = " space\nLF\rCR\r\nCRLF 🦊 \u2028 \ufeff\n";
  const ids = await server.publish(
    "plain",
    { data: text, event: "news" },
    { data: "", event: "prix €" },
    { data: { object: [1, null] }, id: "row 7/é" },
    { data: "unheard", event: "other" },
    "x".repeat(1_000_000),
  );
  await seen(page, 5);
  const wanted = [
    ["message", "plain", ids[0]],
    ["news", " space\nLF\nCR\nCRLF 🦊 \u2028 \ufeff\n", ids[1]],
    ["prix €", "", ids[2]],
    ["message", '{"object":[1,null]}', "row 7/é"],
    ["message", "x".repeat(1_000_000), ids[5]],
  ];
  same(await eventsOf(page), wanted, "events");
}

async function resumesOverARestart(tools) {
  const { page, startServer } = tools;
  const server = await watching(tools);
  const rows = Array.from({ length: 50 }, (_, n) => ({ data: `row ${n}`, id: `${n}` }));
  await server.publish(...rows.slice(0, 20));
  await seen(page, 20);
  same(await server.stop(), 0, "exit status");
  const again = await startServer({ port: server.port });
  await again.publish(...rows); // its log filled again, from a database say
  await seen(page, rows.length);
  await again.publish({ data: "live", id: "live" });
  await seen(page, rows.length + 1);
  const wanted = rows.map(({ data, id }) => ["message", data, id]);
  same(await eventsOf(page), [...wanted, ["message", "live", "live"]], "events");
}

async function isToldOfAGapAfterARestart(tools) {
  const { page, startServer } = tools;
  const server = await watching(tools);
  await server.publish("before");
  await seen(page, 1);
  await server.stop();
  const again = await startServer({ port: server.port });
  await again.publish("held 1", "held 2");
  await again.watchedBy(1);
  await again.publish("live");
  await seen(page, 5);
  const [, gap, ...rest] = await eventsOf(page);
  same(gap[0], "gap", "the first event after the restart");
  JSON.parse(gap[1]);
  const wanted = ["message,held 1", "message,held 2", "message,live"];
  same(rest.map((event) => event.slice(0, 2).join()), wanted, "the rest");
  return gap[1];
}

async function resumesOverACrash(tools) {
  const server = await watching(tools, { retry: 4 });
  const [one, two] = ["1", "2"].map((id) => ({ data: `number ${id}`, id }));
  await server.publish(one);
  await seen(tools.page, 1);
  await server.stop("SIGKILL");
  await (await tools.startServer({ port: server.port })).publish(one, two);
  await seen(tools.page, 2);
  const wanted = [one, two].map(({ data, id }) => ["message", data, id]);
  same(await eventsOf(tools.page), wanted, "events");
}

/** The connection is reset at arbitrary bytes while events are being published. */
async function losesNothingOverDroppedConnections({ page, startServer, startRelay }) {
  const total = 3000;
  const drops = 4;
  const server = await startServer({ retry: 0.2, history: total });
  const relay = await startRelay(server);
  await page.goto(relay.origin);
  await watch(page, relay.url);
  await server.ask("pump", { rate: 500, seconds: total / 500 });
  for (let drop = 1; drop <= drops; drop++) {
    await opened(page, drop);
    await seen(page, drop * 300);
    relay.cut();
  }
  await opened(page, drops + 1);
  await seen(page, total);
  const numbers = (await eventsOf(page)).map(([, data]) => JSON.parse(data).number);
  same(numbers, Array.from(Array(total).keys()), "numbers");
  return `${total} events, ${drops} resets`;
}

/** A full server tells an EventSource to come again; it does, and gets in. */
async function waitsForRoom({ page, startServer, startRelay }) {
  const limits = { _FULL_RETRY_SECONDS: 4 }; // for the usual half a minute
  // What a browser keeps open for its next request takes a place, too, for so long.
  const places = { max_connections: 2, keepalive_timeout: 1 };
  const server = await startServer({ ...places, heartbeat: 60, limits });
  const relay = await startRelay(server);
  await page.goto(relay.origin);
  relay.cut(); // the page's own connection counts, too, until the server notices
  const others = [new AbortController(), new AbortController()];
  const kept = []; // Node ends the stream of an answer that nothing refers to
  const enter = async ({ signal }) => {
    kept.push(await fetch(server.url, { signal }));
    return kept.at(-1).ok;
  };
  await Promise.all(others.map((other) => until(() => enter(other), "a place")));
  await server.watchedBy(2);
  await connect(page, relay.url);
  await failed(page);
  const [, state] = (await recordOf(page)).find(([type]) => type === "error");
  expect(state === 0, "the EventSource gave up instead of coming again");
  others[0].abort();
  const start = Date.now();
  await until(async () => (await recordOf(page)).at(-1)[0] === "open", "room", 60_000);
  const waited = Date.now() - start;
  await server.watchedBy(2);
  await server.publish("there is room");
  await seen(page, 1);
  others[1].abort();
  same(kept.filter(({ ok }) => ok).length, 2, "places taken");
  return `let in ${(waited / 1000).toFixed(1)} s after there was room`;
}

async function stopsForGoodWhenTurnedAway({ page, startServer, startRelay }) {
  const server = await startServer({ door: true, retry: 0.1 });
  const relay = await startRelay(server);
  await page.goto(relay.origin);
  await watch(page, relay.url);
  await server.ask("turn_away", { status: 204 });
  relay.cut();
  const closed = () => page.evaluate(() => window.source.readyState === 2);
  await until(closed, "the EventSource is closed");
  const { accepted } = relay;
  await sleep(1000); // ten times the reconnection time, in which nothing may happen
  same(relay.accepted, accepted, "connections afterwards");
}

/** In the page: publish by fetch; resolves to status and text, or the error's name. */
const post = (page, url) =>
  page.evaluate(async (address) => {
    const headers = { Authorization: "Bearer secret" };
    const how = { method: "POST", headers, body: "from a page" };
    try {
      const response = await fetch(`${address}?event=news`, how);
      return [response.status, (await response.text()).trim()];
    } catch (error) {
      return [error.name];
    }
  }, url);

/** A server that a page of another origin may use. */
async function startPublic({ startServer, startHome }) {
  const home = await startHome();
  const options = { publish_token: "secret", cors_origins: [home.origin] };
  return { home, server: await startServer(options) };
}

async function publishesFromAnAllowedOrigin({ page, ...tools }) {
  const { home, server } = await startPublic(tools);
  await page.goto(home.origin);
  await watch(page, server.url, "news");
  const [status, id] = await post(page, server.url);
  same(status, 200, "status");
  await seen(page, 1);
  same(await eventsOf(page), [["news", "from a page", id]], "events");
}

async function isRefusedFromAnotherOrigin({ page, ...tools }) {
  const { home, server } = await startPublic(tools);
  const before = await server.ask("last_event_id");
  await page.goto(home.origin.replace("localhost", "127.0.0.1"));
  same(await post(page, server.url), ["TypeError"], "fetch");
  same(await server.ask("last_event_id"), before, "the server's last event id");
  await connect(page, server.url);
  await failed(page);
  same(await recordOf(page), [["error", 2]], "record");
}

/** Not a check of one browser: all of them watch the same demo. */
async function allSeeTheSameDemo(browsers) {
  const demo = await startDemo();
  const pages = await Promise.all(browsers.map(({ browser }) => browser.newPage()));
  try {
    const visit = async (page) => {
      await page.goto(demo.origin);
      await watch(page, demo.url);
    };
    await Promise.all(pages.map(visit));
    await Promise.all(pages.map((page) => seen(page, 4)));
    const lists = await Promise.all(pages.map(eventsOf));
    // Each opened in its own time: they are compared from the later one's first event.
    const starts = lists.map((list) => list[0][1]).sort();
    const since = ([, data]) => data >= starts.at(-1);
    const shared = lists.map((list) => list.filter(since));
    const length = Math.min(...shared.map((list) => list.length));
    expect(length >= 2, `only ${length} events were seen by all`);
    const [one, ...others] = shared.map((list) => list.slice(0, length));
    for (const other of others) same(other, one, "another browser's events");
    for (const [type, data] of one) {
      same(type, "message", "type");
      const clock = /^{"timestamp":"[-0-9]+T[:.0-9]+Z","clients":[0-9]+}$/;
      expect(clock.test(data), `the event's data is ${data}`);
    }
    return `${length} events`;
  } finally {
    await Promise.all(pages.map((page) => page.close()));
    same(await demo.stop(), 0, "the demo's exit status");
  }
}

/** The median of the milliseconds from publish to onmessage, of events one by one. */
async function delayOf(page, server, count) {
  for (let number = 0; number < count; number += 1) {
    await server.publish({ data: { number, sent: Date.now(), text: "x".repeat(99) } });
    await seen(page, number + 1);
  }
  const times = await page.evaluate(() => window.times);
  const delays = (await eventsOf(page)).map(([, data], number) => {
    same(JSON.parse(data).number, number, "the number of an event");
    return times[number] - JSON.parse(data).sent;
  });
  return delays.sort((a, b) => a - b)[count >> 1];
}

async function readsWhatIsCompressed({ page, startServer }) {
  const medians = [];
  for (const compress of [false, true]) {
    const server = await startServer({ compress });
    await page.goto(server.origin);
    await watch(page, server.url);
    await page.evaluate(() => {
      window.times = [];
      window.source.addEventListener("message", () => window.times.push(Date.now()));
    });
    const { streams } = await server.ask("compressed");
    same(streams, Number(compress), "compressed streams");
    medians.push(await delayOf(page, server, 40));
    if (compress) await joinsLate(page, server);
    await page.evaluate(() => window.source.close());
  }
  expect(medians[1] <= medians[0] + 20, `compressed events take ${medians} ms`);
  return `half within ${medians[0]} ms plain, ${medians[1]} ms compressed`;
}

/** A `fetch` that begins when others have read much already. */
async function joinsLate(page, server) {
  await page.evaluate(async (address) => {
    const { body } = await fetch(address);
    window.fetched = "";
    const write = (text) => void (window.fetched += text);
    body.pipeThrough(new TextDecoderStream()).pipeTo(new WritableStream({ write }));
  }, server.url);
  await until(async () => (await server.ask("compressed")).streams === 2, "a fetch");
  for (const word of ["one", "two", "three"]) {
    await server.publish(`the word ${word}`);
    const came = () => page.evaluate((text) => window.fetched.includes(text), word);
    await until(came, `${word} in what was fetched`);
  }
}

module.exports = {
  allSeeTheSameDemo,
  checks: [
    waitsForRoom, // first: it takes the longest, and mostly waits
    opensBeforeTheFirstEvent,
    showsDefaultAndNamedEvents,
    readsWhatIsCompressed,
    resumesOverARestart,
    isToldOfAGapAfterARestart,
    resumesOverACrash,
    losesNothingOverDroppedConnections,
    stopsForGoodWhenTurnedAway,
    publishesFromAnAllowedOrigin,
    isRefusedFromAnotherOrigin,
  ],
};
