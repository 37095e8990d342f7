/* The page that the server shows to a browser that navigates to the stream. */
"use strict";

const path = require("node:path");
const { expect, same, until } = require("./harness.cjs");

const MEGABYTE = 1_000_000;
const PUMP = { rate: 1000, seconds: 10 };
const SMOOTH = 100; // ms: the usual time between two frames, and of an answer
const FROZEN = 2500; // ms that no frame and no answer may take, on a busy machine

/** Navigate to the stream, and note what the page does that it should not. */
async function visit(page, server) {
  const faults = [];
  page.on("request", (request) => {
    const { protocol, origin, pathname } = new URL(request.url());
    const own = origin === server.origin && ["/sse", "/favicon.ico"].includes(pathname);
    if (!own && protocol !== "data:") faults.push(`a request for ${request.url()}`);
  });
  page.on("pageerror", (error) => faults.push(`an uncaught error: ${error.message}`));
  page.on("dialog", (dialog) => {
    faults.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.evaluateOnNewDocument(() => {
    window.violations = [];
    addEventListener("securitypolicyviolation", (violation) => {
      window.violations.push(`${violation.violatedDirective}: ${violation.blockedURI}`);
    });
  });
  const response = await page.goto(server.url);
  expect(response.headers()["content-type"].startsWith("text/html"), "it is not HTML");
  await inState(page, "live");
  return faults;
}

const textOf = (page, selector) =>
  page.evaluate((chosen) => document.querySelector(chosen).textContent, selector);

async function inState(page, state) {
  await until(async () => (await textOf(page, "#state")) === state, `state "${state}"`);
}

/** The list, oldest first: [kind, name, id, text] of each row. */
async function rowsOf(page) {
  return page.evaluate(() =>
    Array.from(document.querySelectorAll("#list li"), (row) => {
      const [, name, id, text] = Array.from(row.children, (part) => part.textContent);
      const kinds = ["plain", "gap", "note"];
      const kind = kinds.find((one) => row.classList.contains(one)) ?? "";
      return [kind, name, id, text];
    }),
  );
}

async function rowWith(page, text) {
  const found = async () => (await rowsOf(page)).some((row) => row[3] === text);
  await until(found, `a row "${text}"`);
}

/** The charts of the data: [label, value, drawn] of each. */
const chartsOf = (page) =>
  page.evaluate(() =>
    Array.from(document.querySelectorAll("#charts figure + figure"), (chart) => {
      const box = chart.querySelector("svg path")?.getBoundingClientRect();
      const drawn = box?.width > 0 && chart.querySelector("svg").clientHeight > 20;
      const [label, value] = chart.querySelector("figcaption").children;
      return [label.textContent, value.textContent, drawn];
    }),
  );

async function picture({ page, name, options }, title) {
  if (!options.screenshots) return;
  const file = `${name.toLowerCase()}-${title}.png`;
  await page.screenshot({ path: path.join(options.screenshots, file) });
}

async function pageShowsEvents({ page, startServer }) {
  const server = await startServer();
  const faults = await visit(page, server);
  const ids = await server.publish(
    "plain",
    { data: "two\nlines", event: "news" },
    { data: { a: "b" }, id: "row 7" },
  );
  await rowWith(page, '{"a":"b"}');
  same(
    await rowsOf(page),
    [
      ["plain", "message", ids[0], "plain"],
      ["", "news", ids[1], "two\nlines"],
      ["plain", "message", "row 7", '{"a":"b"}'],
    ],
    "rows",
  );
  same(faults, [], "faults");
}

async function pageDrawsNumbers({ page, startServer }) {
  const server = await startServer();
  const faults = await visit(page, server);
  for (const n of [20, 22, 21]) {
    await server.publish(
      { data: { temperature: n + 0.5, inner: { humidity: 2 * n }, text: "no number" } },
      { data: `${n / 100}`, event: "cpu" },
    );
  }
  await until(async () => (await chartsOf(page))[2]?.[1] === "0.21", "the last value");
  same(
    await chartsOf(page),
    [
      ["temperature", "21.5", true],
      ["inner.humidity", "42", true],
      ["cpu", "0.21", true],
    ],
    "charts",
  );
  same(faults, [], "faults");
}

async function pageSurvivesARestart({ page, startServer, name, options }) {
  const server = await startServer();
  const faults = await visit(page, server);
  await publishMeasurements(server, 60);
  await until(async () => (await textOf(page, "#total")) === "60", "60 events");
  await server.stop();
  await inState(page, "reconnecting");
  await picture({ page, name, options }, "away");
  const again = await startServer({ port: server.port });
  await publishMeasurements(again, 20);
  await again.watchedBy(1);
  await again.publish("live again");
  await rowWith(page, "live again");
  await inState(page, "live");
  const kinds = (await rowsOf(page)).map(([kind]) => kind);
  same(kinds.filter((kind) => kind === "gap").length, 1, "gaps shown");
  expect(kinds.indexOf("gap") > 59, "the gap is not shown behind what came before it");
  same(kinds.length - 1 - kinds.lastIndexOf("gap"), 21, "rows behind the gap");
  same(faults, [], "faults");
  await picture({ page, name, options }, "after-outage");
}

async function publishMeasurements(server, count) {
  const measurement = (n) => ({
    timestamp: new Date(Date.UTC(2026, 0, 1, 0, 0, n)).toISOString(),
    temperature: 21 + Math.round(30 * Math.sin(n / 9)) / 10,
    humidity: 40 + (n % 17),
    load: { one: Math.round(100 * Math.abs(Math.cos(n / 5))) / 100 },
  });
  const events = Array.from({ length: count }, (_, n) => ({
    data: measurement(n),
    ...(n % 7 === 3 ? { event: "measurement" } : {}),
  }));
  await server.publish(...events);
}

/** Everything that an event could try, as its data, as its name, as its id. */
function hostileEvents() {
  const run = "window.ran=1";
  const markup = [
    `<img src=x onerror=${run}>`,
    `<script>${run}</script>`,
    `<svg onload=${run}>`,
    `"><img src=x onerror=${run}>`,
    `</pre></li><iframe srcdoc="<script>${run}</script>">`,
    `<a href="javascript:${run}">x</a>`,
    `<style>@import "//127.0.0.2/"</style>`,
    `<link rel=stylesheet href="//127.0.0.2/">`,
    `<meta http-equiv=refresh content=0>`,
    `<base href="//127.0.0.2/">`,
    `&lt;b&gt;`,
    `\${${run}}`,
    `javascript:${run}`,
  ];
  const json = [
    '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":2}}}',
    '{"toString":1,"valueOf":2,"hasOwnProperty":3,"length":4,"":5}',
    '{"huge":1e308}',
    '{"huge":-1e308}',
    '{"beyond":1e999}',
    '{"tiny":5e-324}',
    "-0",
    "123456789012345678901234567890",
    "[1,[2,[3,[4]]]]",
    "null",
    "true",
    '"text"',
    "{}",
    '{"a":1',
    "NaN",
    "[".repeat(50_000),
    `${'{"a":'.repeat(5_000)}1${"}".repeat(5_000)}`,
    JSON.stringify(
      Object.fromEntries(Array.from({ length: 5_000 }, (_, n) => [`k${n}`, n])),
    ),
    ...markup.map((text) => JSON.stringify({ [text]: 1, text })),
  ];
  const odd = [
    "\u202eright to left",
    "\u0007\u001b[31mred",
    "\ufeff",
    "\0",
    "",
    "\n".repeat(10_000),
    "x".repeat(MEGABYTE),
    "<b>".repeat(MEGABYTE / 3),
    "🦊".repeat(MEGABYTE / 4),
    `{"long":"${"x".repeat(MEGABYTE - 20)}"}`,
    "e\u0301".repeat(1000) + "\u0489".repeat(1000),
  ];
  const names = [
    ...markup,
    "__proto__",
    "constructor",
    "error",
    "open",
    "x".repeat(250),
  ];
  return [
    ...[...markup, ...json, ...odd].map((data) => ({ data })),
    ...names.map((event) => ({ data: '{"number":1}', event })),
    ...names.map((id) => ({ data: "its id", id })),
  ];
}

async function pageIsHarmedByNoEvent({ page, startServer }) {
  const server = await startServer({ history_bytes: 32 * MEGABYTE });
  const faults = await visit(page, server);
  const events = hostileEvents();
  const elements = await activeElements(page);
  await server.publish(...events, "the end");
  await rowWith(page, "the end");
  same(await page.evaluate(() => window.violations), [], "violations of the policy");
  same(faults, [], "faults");
  same(await activeElements(page), elements, "elements that could do something");
  const { ran, polluted, longest } = await page.evaluate(() => {
    const rows = Array.from(document.querySelectorAll("#list li"));
    const longest = Math.max(...rows.map((row) => row.textContent.length));
    return { ran: window.ran, polluted: {}.polluted, longest };
  });
  same([ran, polluted], [undefined, undefined], "what an event ran or changed");
  expect(longest < 10_000, `the longest row has ${longest} characters`);
  const charts = (await chartsOf(page)).length;
  expect(charts < 50, `${charts} charts`);
  same(await textOf(page, "#total"), `${events.length + 1}`, "events counted");
  await pageHasAPolicy(page);
  return `${events.length} hostile events`;
}

const activeElements = (page) =>
  page.evaluate(() => {
    const kinds = "img, iframe, a, link, style, script, base, meta, svg svg, [onload]";
    return document.querySelectorAll(kinds).length;
  });

/** The control: had an event run something, it would have been seen above. */
async function pageHasAPolicy(page) {
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = 1";
    document.body.append(script);
    new Image().src = "/image";
  });
  const violated = () => page.evaluate(() => window.violations.length >= 2);
  await until(violated, "the policy to forbid an inline script and an image");
  same(await page.evaluate(() => window.ran), undefined, "what the script set");
}

async function pageFitsAPhone({ page, startServer, name, options }) {
  const server = await startServer();
  await page.setViewport({ width: 360, height: 740 });
  await visit(page, server);
  await publishMeasurements(server, 60);
  await server.publish({
    data: "x".repeat(500),
    event: "y".repeat(200),
    id: "z".repeat(200),
  });
  await rowWith(page, "x".repeat(500));
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  await picture({ page, name, options }, "phone");
  expect(width <= 360, `it is ${width} px wide on a screen of 360`);
}

/** The contrast between text and background (WCAG 2); the background's luminance. */
const colours = (page) =>
  page.evaluate(() => {
    const luminance = (colour) => {
      const parts = colour
        .match(/[0-9.]+/g)
        .slice(0, 3)
        .map((part) => part / 255);
      const [red, green, blue] = parts.map((part) =>
        part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4,
      );
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const { color, backgroundColor } = getComputedStyle(document.body);
    const [text, back] = [luminance(color), luminance(backgroundColor)];
    const [dark, light] = [text, back].sort((one, other) => one - other);
    return { contrast: (light + 0.05) / (dark + 0.05), back };
  });

async function pageIsLightOrDark({ page, startServer, name, options }) {
  const server = await startServer();
  await page.setViewport({ width: 1200, height: 800 });
  await visit(page, server);
  await publishMeasurements(server, 200);
  await until(async () => (await textOf(page, "#total")) === "200", "200 events");
  const notes = [];
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    const { contrast, back } = await colours(page);
    expect(
      scheme === "light" ? back > 0.8 : back < 0.05,
      `${scheme}: luminance ${back}`,
    );
    expect(contrast >= 7, `${scheme}: the contrast is ${contrast.toFixed(1)}, not 7`);
    notes.push(`${scheme}: contrast ${contrast.toFixed(1)}`);
    await picture({ page, name, options }, scheme);
  }
  return notes.join(", ");
}

/** The time between frames, and until the page answers, while events rain on it. */
async function pageKeepsUpWithAThousandEventsASecond({ page, startServer }) {
  const server = await startServer();
  const faults = await visit(page, server);
  await page.evaluate(() => {
    window.frames = [];
    let before = performance.now();
    const frame = (now) => {
      window.frames.push(now - before);
      before = now;
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
  const wanted = PUMP.rate * PUMP.seconds;
  const answers = [];
  await server.ask("pump", PUMP);
  await until(
    async () => {
      const start = performance.now();
      const total = Number((await textOf(page, "#total")).replaceAll(",", ""));
      answers.push(performance.now() - start);
      return total === wanted;
    },
    `${wanted} events counted`,
    3000 * PUMP.seconds,
  );
  const frames = await page.evaluate(() => window.frames);
  const rows = (await rowsOf(page)).length;
  expect(rows <= 1000, `${rows} rows in the list`);
  same(faults, [], "faults");
  return [smooth("frames", frames), smooth("answers", answers)].join(", ");
}

function smooth(what, times) {
  times.sort((one, other) => one - other);
  const [half, worst] = [times[times.length >> 1], times.at(-1)].map(Math.round);
  const note = `${times.length} ${what}, half in ${half} ms, all in ${worst} ms`;
  expect(half <= SMOOTH && worst <= FROZEN, note);
  return note;
}

/** As long as the newest is in view it stays so; else what is read stands still. */
async function pageReadsLikeALog({ page, startServer }) {
  const server = await startServer();
  await visit(page, server);
  await publishMeasurements(server, 100);
  const view = () =>
    page.evaluate(() => {
      const log = document.querySelector("main");
      const first = log.querySelector("li").getBoundingClientRect().top;
      const left = log.scrollHeight - log.clientHeight - log.scrollTop;
      return { left: Math.round(left), top: log.scrollTop, first };
    });
  await until(async () => (await rowsOf(page)).length === 100, "100 rows");
  await until(async () => (await view()).left < 2, "the newest in view");
  await page.evaluate(() => document.querySelector("main").scrollTo(0, 300));
  await server.publish("while it is scrolled up");
  await rowWith(page, "while it is scrolled up");
  const { left, top } = await view();
  expect(left > 100 && Math.abs(top - 300) < 60, `it moved to ${top}, ${left} left`);
  await page.click("#order");
  same((await rowsOf(page))[0][3], "while it is scrolled up", "the newest first");
  await server.publish("newer");
  await until(async () => (await rowsOf(page))[0][3] === "newer", "the newest first");
  same((await view()).top, 0, "the scrolling");
}

async function pageDrawsALineForEachSensor({ page, startServer }) {
  const server = await startServer();
  await visit(page, server);
  const unit = { unit: "C", timestamp: "2026-01-01T00:00:00Z" };
  for (const n of [1, 2, 3]) {
    await server.publish(
      { data: { ...unit, sensor: "cellar", celsius: 9_000 + n } },
      { data: { ...unit, sensor: "attic", celsius: 20_000 + n } },
    );
  }
  const shown = async () => (await chartsOf(page))[0]?.[1];
  await until(async () => (await shown()) === "attic 20K cellar 9,003", "two lines");
  const lines = "#charts figure + figure path.line";
  same(await page.evaluate((q) => document.querySelectorAll(q).length, lines), 2, "lines");
  const first = await textOf(page, "#charts figure figcaption");
  expect(first.startsWith("events/s"), `the first chart is ${first}`);
}

async function pageShowsWhatIsHeld({ page, startServer }) {
  const server = await startServer();
  await server.publish("before it came");
  await visit(page, server);
  same(await rowsOf(page), [], "rows");
  await page.click("#held");
  await rowWith(page, "before it came");
  same(await page.evaluate(() => document.querySelector("#held").offsetParent), null, "");
}

async function pageHasWhatIsCopied({ page, startServer }) {
  const server = await startServer();
  await visit(page, server);
  await page.evaluate(() => {
    window.copied = [];
    document.execCommand = () => {
      window.copied.push(document.activeElement.value);
      return true;
    };
    HTMLAnchorElement.prototype.click = function () {
      fetch(this.href).catch(() => {}); // the policy forbids it; the name is enough
      window.copied.push(this.download);
    };
  });
  const json = '{"a":[1,2],"text":"red"}';
  const coloured = json.replace("red", "\u001b[31mred\u001b[0m");
  await server.publish("\u001b[1;31mred\u001b[0m", coloured);
  await rowWith(page, "red");
  await rowWith(page, json);
  await page.click("#list li:nth-child(2) pre");
  const indented = JSON.stringify(JSON.parse(json), null, 2);
  same((await rowsOf(page))[1][3], indented, "indented");
  await page.click("#list li:nth-child(2) pre");
  same((await rowsOf(page))[1][3], json, "as it came");
  await page.hover("#list li");
  await page.click("#list li button");
  await page.click("#curl");
  await page.click("#save");
  const copied = await page.evaluate(() => window.copied);
  same(copied, ["red", `curl -N '${server.url}'`, "events.ndjson"], "copied");
  await page.click("#pause");
  await inState(page, "paused");
  await page.click("#pause");
  await page.click("#zone");
  same(await textOf(page, "#zone"), "UTC", "the zone");
  const time = await textOf(page, "#list time");
  const hour = new Date().toISOString().slice(11, 13);
  expect(Math.abs(time.slice(0, 2) - hour) % 23 <= 1, `${time} in UTC`);
}

async function pageSaysWhyItIsRefused({ page, startServer }) {
  for (const status of [204, 401, 403]) {
    const server = await startServer({ door: true, retry: 0.3 });
    await visit(page, server);
    await server.ask("turn_away", { status });
    await server.ask("disconnect");
    await inState(page, "stopped");
    const why = await textOf(page, "#detail");
    expect(why.length > 30 && why.includes(`(${status})`), `it says: ${why}`);
  }
}

module.exports = {
  checks: [
    pageShowsEvents,
    pageReadsLikeALog,
    pageDrawsALineForEachSensor,
    pageShowsWhatIsHeld,
    pageHasWhatIsCopied,
    pageSaysWhyItIsRefused,
    pageDrawsNumbers,
    pageSurvivesARestart,
    pageIsHarmedByNoEvent,
    pageFitsAPhone,
  ],
  checksOfChromium: [pageIsLightOrDark], // Firefox lets nobody choose it from outside
  checksOfSpeed: [pageKeepsUpWithAThousandEventsASecond],
};
