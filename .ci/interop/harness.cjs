/* What the browser checks share: a server to command, a relay that can be cut, the two
 * browsers, and a report. */
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const readline = require("node:readline");
const puppeteer = require("puppeteer-core");

const PYTHON = process.env.INTEROP_PYTHON ?? "python3";
const PATIENCE = 20_000; // ms that anything awaited may take on a busy machine
const CASE = 300_000; // ms for a case: a page that hangs must not hang the checks

function expect(condition, problem) {
  if (!condition) throw new Error(problem);
}

function same(seen, wanted, what) {
  const [left, right] = [seen, wanted].map(
    (value) => JSON.stringify(value) ?? "nothing",
  );
  expect(
    left === right,
    `${what}: seen ${shortened(left)}, wanted ${shortened(right)}`,
  );
}

function shortened(text) {
  return text.length > 1500 ? `${text.slice(0, 1500)}…` : text;
}

/** Wait until condition(), which may be async, holds. */
async function until(condition, what, limit = PATIENCE) {
  const deadline = Date.now() + limit;
  while (!(await condition())) {
    expect(Date.now() < deadline, `not within ${limit} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What a promise resolves to, if it does so in time. */
function within(limit, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${limit} ms`)), limit);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** server.py in a process of its own. */
class Server {
  static async start(options = {}) {
    const server = new Server();
    const script = path.join(__dirname, "..", "server.py");
    server.process = spawn(PYTHON, [script, JSON.stringify(options)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    server.exited = new Promise((resolve) => server.process.on("exit", resolve));
    server.lines = readline.createInterface({ input: server.process.stdout });
    server.answers = server.lines[Symbol.asyncIterator]();
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
  async publish(...events) {
    events = events.map((event) =>
      event.data === undefined ? { data: event } : event,
    );
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
    return this.exited;
  }
}

/** `python sse_server.py`, the clock, on a free port. */
async function startDemo() {
  const script = path.join(__dirname, "..", "..", "sse_server.py");
  const demo = spawn(PYTHON, [script, "--port", "0"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const exited = new Promise((resolve) => demo.on("exit", resolve));
  let output = "";
  for (const stream of [demo.stdout, demo.stderr]) {
    stream.on("data", (data) => {
      output += data;
    });
  }
  const url = () => /http:\/\/localhost:[0-9]+\/sse/.exec(output)?.[0];
  await until(url, "the demo says where it listens");
  return {
    url: url(),
    origin: new URL(url()).origin,
    stop: () => (demo.kill("SIGTERM"), exited),
  };
}

/** A TCP relay in front of a server, whose connections can be cut by a reset. */
class Relay {
  static async start(port) {
    const relay = new Relay();
    relay.sockets = new Set();
    relay.accepted = 0;
    relay.gate = Promise.resolve(); // what new connections wait for
    relay.listener = net.createServer((client) => {
      relay.accepted++;
      client.on("error", () => client.destroy());
      relay.gate.then(() => relay.connect(client, port));
    });
    await new Promise((resolve) => relay.listener.listen(0, "localhost", resolve));
    relay.origin = `http://localhost:${relay.listener.address().port}`;
    relay.url = `${relay.origin}/sse`;
    return relay;
  }

  connect(client, port) {
    const server = net.connect(port, "localhost");
    for (const [one, other] of [
      [client, server],
      [server, client],
    ]) {
      this.sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        this.sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
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
  await new Promise((resolve) => home.listen(0, "localhost", resolve));
  return {
    origin: `http://localhost:${home.address().port}`,
    stop: () => home.close(),
  };
}

const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // Nothing but this machine is looked up or reached.
  "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
];
const FIREFOX_PREFERENCES = {
  // Everything but this machine goes to a proxy that is not there.
  "network.proxy.type": 1,
  "network.proxy.http": "127.0.0.1",
  "network.proxy.http_port": 9,
  "network.proxy.ssl": "127.0.0.1",
  "network.proxy.ssl_port": 9,
  "network.proxy.allow_hijacking_localhost": false,
};

/** Start both; resolves to [{name, browser, close}]. */
async function startBrowsers() {
  return Promise.all([
    startBrowser("Chromium", "chrome", "chromium", { args: CHROMIUM_FLAGS }),
    startBrowser("Firefox", "firefox", "firefox-esr", {
      extraPrefsFirefox: FIREFOX_PREFERENCES,
    }),
  ]);
}

async function startBrowser(name, kind, program, options) {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), `sse-${kind}-`));
  const browser = await puppeteer.launch({
    browser: kind,
    executablePath: programPath(program),
    headless: true,
    userDataDir: profile,
    protocolTimeout: 60_000,
    env: { ...process.env, TZ: "Asia/Kolkata" }, // far from UTC, and no summer time
    ...options,
  });
  console.log(`${name}: ${await browser.version()}`);
  const close = async () => {
    const closed = within(PATIENCE, browser.close());
    await closed.catch(() => browser.process().kill("SIGKILL"));
    fs.rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return { name, browser, close };
}

function programPath(program) {
  const folders = process.env.PATH.split(path.delimiter);
  const found = folders.map((folder) => path.join(folder, program)).find(fs.existsSync);
  expect(found, `${program} is not installed`);
  return found;
}

/** Prints PASS or FAIL for each case, and the closing line. */
class Report {
  constructor(part) {
    this.part = part;
    this.passed = 0;
    this.failed = 0;
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
  const tools = {
    page: await browser.newPage(),
    startServer: async (options) => keep(await Server.start(options)),
    startRelay: async (server) => keep(await Relay.start(server.port)),
    startHome: async () => keep(await startHome()),
  };
  const keep = (thing) => (started.push(thing), thing);
  try {
    return await check(tools);
  } finally {
    await tools.page.close();
    await Promise.all(started.map((thing) => thing.stop()));
  }
}

module.exports = { expect, same, until, inPage, startBrowsers, startDemo, Report };
