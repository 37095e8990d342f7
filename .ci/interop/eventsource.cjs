/* EventSource and fetch in a page, against a server on localhost: what clients.py, for
 * which both browsers are clients among others, does not prove.  Every check runs in
 * both browsers, in a page and against servers of its own. */
"use strict";

const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { expect, same, sleep, until } = require("./harness.cjs");

/** In the page: an EventSource that keeps a record of all that happens to it. */
const connect = (page, url) =>
  page.evaluate((address) => {
    const source = new EventSource(address);
    const record = [];
    source.onopen = () => record.push(["open"]);
    source.onerror = () => record.push(["error", source.readyState]);
    const keep = (event) => record.push([event.type, event.data, event.lastEventId]);
    for (const type of ["message", "news", "gap"]) source.addEventListener(type, keep);
    Object.assign(window, { source, record });
  }, url);

/** The same, once it is open: what is published from then on must be seen. */
async function watch(page, url) {
  await connect(page, url);
  await opened(page, 1);
}

const recordOf = (page) => page.evaluate(() => window.record);

/** What was recorded, but for "open" and "error". */
async function eventsOf(page) {
  return (await recordOf(page)).filter(([type]) => !["open", "error"].includes(type));
}

/** Wait until the record has so many entries of a kind: "event", "open" or "error". */
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

async function opensBeforeTheFirstEvent({ page, startServer }) {
  const server = await startServer({ heartbeat: 60 });
  await page.goto(server.origin);
  await watch(page, server.url);
  // Nothing is published and no heartbeat due: the stream that opened is idle.
  const [id] = await server.publish("first");
  await seen(page, 1);
  same(await recordOf(page), [["open"], ["message", "first", id]], "record");
}

const RESTARTS = Number(process.env.RESTARTS ?? 20);

/** With a history file nobody notices a restart, be it in order or by SIGKILL. */
async function noticesNoRestart({ page, startServer, startRelay }) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sse-history-"));
  const settings = { retry: 0.05, restart_retry: 0.05 };
  settings.history_file = path.join(folder, "events.db");
  let server = await startServer(settings);
  const relay = await startRelay(server);
  await page.goto(relay.origin);
  await watch(page, relay.url);
  const wanted = [];
  const publish = async (type, data) => {
    const [id] = await server.publish({ data, event: type, retain: type === "news" });
    wanted.push([type, data, id]);
  };
  for (let restart = 1; restart <= RESTARTS; restart++) {
    await publish("news", `${restart}`);
    await publish("message", `before restart ${restart}`);
    const release = relay.hold(); // who comes back waits until it is there
    await server.stop(restart % 2 ? "SIGTERM" : "SIGKILL");
    server = await startServer({ ...settings, port: server.port });
    await publish("message", `before anybody is back from restart ${restart}`);
    release();
    await opened(page, restart + 1);
  }
  await seen(page, wanted.length);
  same(await eventsOf(page), wanted, "events");
  await page.evaluate(() => window.source.close());
  await watch(page, relay.url);
  await seen(page, 1);
  const [[type, data]] = await eventsOf(page);
  same([type, data], ["news", `${RESTARTS}`], "what a new client gets first");
  await server.stop();
  fs.rmSync(folder, { recursive: true });
  return `${RESTARTS} restarts, ${wanted.length} events`;
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
  await watch(page, server.url);
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

module.exports = {
  checks: [
    waitsForRoom, // first: it takes the longest, and mostly waits
    opensBeforeTheFirstEvent,
    noticesNoRestart,
    stopsForGoodWhenTurnedAway,
    publishesFromAnAllowedOrigin,
    isRefusedFromAnotherOrigin,
  ],
};
