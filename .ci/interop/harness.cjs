/* What the browser checks share: a server to command, a relay that can be cut, the two
 * browsers, and a report. */
"use strict";

const { execFileSync, spawn } = require("node:child_process");
const { once } = require("node:events");
const http = require("node:http");
const net = require("node:net");
const path = require("node:path");
const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");
const puppeteer = require("puppeteer-core");

const PYTHON = process.env.INTEROP_PYTHON ?? "python3";
const PATIENCE = 20_000; // ms that anything awaited may take on a busy machine
const CASE = 300_000; // ms for a case: a page that hangs must not hang the checks

function expect(condition, problem) {
  if (!condition) throw new Error(problem);
}

function same(seen, wanted, what) {
  const [left, right] = [seen, wanted].map((one) => JSON.stringify(one) ?? "nothing");
  const short = (text) => (text.length > 1500 ? `${text.slice(0, 1500)}…` : text);
  expect(left === right, `${what}: seen ${short(left)}, wanted ${short(right)}`);
}

/** Wait until condition(), which may be async, holds; returns what it returned. */
async function until(condition, what, limit = PATIENCE) {
  const deadline = Date.now() + limit;
  for (;;) {
    const holds = await condition();
    if (holds) return holds;
    expect(Date.now() < deadline, `not within ${limit} ms: ${what}`);
    await sleep(20);
  }
}

/** What a promise resolves to, if it does so in time. */
async function within(limit, promise) {
  const late = async () => {
    await sleep(limit, null, { ref: false });
    throw new Error(`not done after ${limit} ms`);
  };
  return Promise.race([promise, late()]);
}

/** server.py in a process of its own. */
class Server {
  static async start(options = {}) {
    const server = new Server();
    const script = path.join(__dirname, "..", "server.py");
    const stdio = ["pipe", "pipe", "inherit"];
    server.process = spawn(PYTHON, [script, JSON.stringify(options)], { stdio });
    server.exited = once(server.process, "exit");
    const lines = readline.createInterface({ input: server.process.stdout });
    server.answers = lines[Symbol.asyncIterator]();
    server.port = (await server.answer("its start")).port;
    server.origin = `http://localhost:${server.port}`;
    server.url = `${server.origin}/sse`;
    return server;
  }

  async answer(to) {
    const { done, value } = await this.answers.next();
    expect(!done, `the server ended at ${to}`);
    return JSON.parse(value);
  }

  async ask(command, values = {}) {
    this.process.stdin.write(JSON.stringify({ do: command, ...values }) + "\n");
    return this.answer(command);
  }

  /** Publish events, each an object or just the data; returns their ids. */
  async publish(...given) {
    const events = given.map((one) => (one.data === undefined ? { data: one } : one));
    return (await this.ask("publish", { events })).ids;
  }

  async watchedBy(count) {
    const counted = async () => {
      const { live, behind } = await this.ask("stats");
      return live + behind === count;
    };
    await until(counted, `${count} open streams`);
  }

  /** End it in an orderly way, or with "SIGKILL" at once; returns its exit status. */
  async stop(signal = "SIGTERM") {
    this.process.kill(signal);
    return (await this.exited)[0];
  }
}

/** `python sse_server.py`, the clock, on a free port. */
async function startDemo() {
  const script = path.join(__dirname, "..", "..", "sse_server.py");
  const demo = spawn(PYTHON, [script, "--port", "0"]);
  const exited = once(demo, "exit");
  let output = "";
  for (const stream of [demo.stdout, demo.stderr]) {
    stream.on("data", (data) => (output += data));
  }
  const found = () => /http:\/\/localhost:[0-9]+\/sse/.exec(output)?.[0];
  const url = await until(found, "the demo says where it listens");
  const stop = async () => (demo.kill("SIGTERM"), (await exited)[0]);
  return { url, origin: new URL(url).origin, stop };
}

/** A TCP relay in front of a server, whose connections can be cut by a reset. */
class Relay {
  accepted = 0;
  sockets = new Set();
  gate = Promise.resolve(); // what new connections wait for

  static async start({ port }) {
    const relay = new Relay();
    relay.listener = net.createServer((client) => {
      relay.accepted++;
      client.on("error", () => client.destroy());
      relay.gate.then(() => relay.connect(client, port));
    });
    await once(relay.listener.listen(0, "localhost"), "listening");
    relay.origin = `http://localhost:${relay.listener.address().port}`;
    relay.url = `${relay.origin}/sse`;
    return relay;
  }

  connect(client, port) {
    const server = net.connect(port, "localhost");
    const pass = (one, other) => {
      this.sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => (this.sockets.delete(one), other.destroy()));
      one.pipe(other);
    };
    pass(client, server);
    pass(server, client);
  }

  cut() {
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** New connections wait, until what this returns is called. */
  hold() {
    let release;
    this.gate = new Promise((resolve) => (release = resolve));
    return release;
  }

  stop() {
    this.cut();
    this.listener.close();
  }
}

/** A page on an origin of its own, which no policy limits. */
async function startHome() {
  const home = http.createServer((request, response) => response.end("home"));
  await once(home.listen(0, "localhost"), "listening");
  const origin = `http://localhost:${home.address().port}`;
  return { origin, stop: () => home.close() };
}

// Nothing but this machine is looked up or reached.
const ONLY_HERE = "MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1";
const NOWHERE = "127.0.0.1"; // everything else goes to a proxy that is not there
const BROWSERS = {
  Chromium: {
    browser: "chrome",
    args: [
      ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
      ...["--disable-background-networking", "--disable-component-update"],
      ...["--disable-sync", `--host-resolver-rules=${ONLY_HERE}`],
    ],
  },
  Firefox: {
    browser: "firefox",
    extraPrefsFirefox: {
      ...{ "network.proxy.type": 1, "network.proxy.allow_hijacking_localhost": false },
      ...{ "network.proxy.http": NOWHERE, "network.proxy.http_port": 9 },
      ...{ "network.proxy.ssl": NOWHERE, "network.proxy.ssl_port": 9 },
    },
  },
};
const PROGRAMS = { chrome: "chromium", firefox: "firefox-esr" };

async function startBrowser(name) {
  const program = PROGRAMS[BROWSERS[name].browser];
  return puppeteer.launch({
    ...BROWSERS[name],
    executablePath: execFileSync("which", [program], { encoding: "utf8" }).trim(),
    headless: true,
    protocolTimeout: 60_000,
    env: { ...process.env, TZ: "Asia/Kolkata" }, // far from UTC, and no summer time
  });
}

/** Start both; resolves to [{name, browser, close}]. */
const startBrowsers = () =>
  Promise.all(
    Object.keys(BROWSERS).map(async (name) => {
      const browser = await startBrowser(name);
      console.log(`${name}: ${await browser.version()}`);
      const kill = () => browser.process().kill("SIGKILL");
      const close = () => within(PATIENCE, browser.close()).catch(kill);
      return { name, browser, close };
    }),
  );

/** An empty page of this origin, whatever the server has there. */
async function openEmpty(page, origin) {
  const body = '<link rel="icon" href="data:,">'; // or a browser would ask for one
  const answer = { contentType: "text/html", body };
  page.once("request", (request) => request.respond(answer));
  await page.setRequestInterception(true);
  await page.goto(`${origin}/`);
  await page.setRequestInterception(false);
}

/** Prints PASS or FAIL for each case, and the closing line. */
class Report {
  passed = 0;
  failed = 0;

  constructor(part) {
    this.part = part;
  }

  /** A case passes when run() resolves; what it resolves to is printed with it. */
  async case(name, run) {
    try {
      const note = await within(CASE, run());
      this.passed++;
      console.log(`PASS ${this.part}: ${name}${note ? ` (${note})` : ""}`);
    } catch (problem) {
      this.failed++;
      console.log(`FAIL ${this.part}: ${name} (${problem.message})`);
    }
  }

  /** The closing line, and the exit status. */
  close() {
    console.log(`${this.part}: ${this.passed} passed, ${this.failed} failed`);
    return this.passed && !this.failed ? 0 : 1;
  }
}

/** Run a check in a page of its own with servers and relays that end with it. */
async function inPage(browser, check) {
  const started = [];
  const kept = (start) => async (how) => {
    const thing = await start(how);
    started.push(thing);
    return thing;
  };
  const page = await browser.newPage();
  try {
    return await check({
      page,
      startServer: kept(Server.start),
      startRelay: kept(Relay.start),
      startHome: kept(startHome),
      startDemo: kept(startDemo),
    });
  } finally {
    await page.close();
    await Promise.all(started.map((thing) => thing.stop()));
  }
}

module.exports = {
  ...{ expect, same, sleep, until, inPage, Report },
  ...{ BROWSERS, openEmpty, startBrowser, startBrowsers },
};
