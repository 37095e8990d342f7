/* The page that the server shows to a browser that navigates to the stream. */
"use strict";

const { expect, same, sleep, until } = require("./harness.cjs");

const MEGABYTE = 1_000_000;
const PUMP = { rate: 1000, seconds: 10 };
const SMOOTH = 100; // ms: the usual time between two frames, and of an answer
const FROZEN = 2500; // ms that no frame and no answer may take, on a busy machine

const faultsOf = new WeakMap(); // what a page did that it should not

/** Navigate to the stream. */
async function visit(page, server) {
  const faults = faultsOf.get(page) ?? [];
  faultsOf.set(page, faults);
  page.on("request", (request) => {
    const { protocol, origin, pathname } = new URL(request.url());
    const own = origin === server.origin && /^\/(sse|favicon[.]ico)$/.test(pathname);
    const inner = protocol === "data:" || protocol === "blob:";
    if (!own && !inner) faults.push(`a request for ${request.url()}`);
  });
  page.on("pageerror", (error) => faults.push(`an uncaught error: ${error.message}`));
  page.on("dialog", (dialog) => {
    faults.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.evaluateOnNewDocument(() => {
    window.violations = [];
    addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
      window.violations.push(`${violatedDirective}: ${blockedURI}`),
    );
  });
  const response = await page.goto(server.url);
  expect(response.headers()["content-type"].startsWith("text/html"), "it is not HTML");
  await inState(page, "live");
}

/** A check whose page does no more than it should. */
const watched = (check, prepare = () => null) => {
  const run = async (tools) => {
    const server = await prepare(tools);
    const note = await check({ ...tools, server });
    same(faultsOf.get(tools.page), [], "faults");
    return note;
  };
  return Object.defineProperty(run, "name", { value: check.name });
};

/** One whose page shows the stream of a server already. */
const visiting = (check) =>
  watched(check, async ({ page, startServer }) => {
    const server = await startServer();
    await visit(page, server);
    return server;
  });

const textOf = (page, selector) => page.$eval(selector, (one) => one.textContent);

/** Wait until an element has this text. */
const reads = (page, selector, text) =>
  until(async () => (await textOf(page, selector)) === text, `${selector} "${text}"`);
const inState = (page, state) => reads(page, "#state", state);
const inTotal = (page, count) => reads(page, "#total", count.toLocaleString("en"));

const TIME = /^[0-9]{2}(:[0-9]{2}){2}[.][0-9]{3}$/;

/** The list, oldest first: [when, name, id, text] of each row; a note has no name. */
async function rowsOf(page) {
  const rows = await page.$$eval("#list li", (rows) =>
    rows.map((row) => Array.from(row.children, (part) => part.textContent).slice(0, 4)),
  );
  return rows.map(([time, ...rest]) => [TIME.test(time) ? "a time" : time, ...rest]);
}
const timesOf = async (page) => (await rowsOf(page)).map((row) => row[0]);
const textsOf = async (page) => (await rowsOf(page)).map((row) => row[3]);

const rowWith = (page, text) =>
  until(async () => (await textsOf(page)).includes(text), `a row "${text}"`);

/** The charts: [label, value, drawn, range, time] of each; first the rate of events. */
const chartsOf = (page) =>
  page.$$eval("#charts details", (charts) =>
    charts.map((chart) => {
      const box = chart.querySelector("svg path")?.getBoundingClientRect();
      const drawn = box?.width > 0 && chart.querySelector("svg").checkVisibility();
      const [head, tail, value] = chart.querySelector("summary").children;
      const label = head.textContent + tail.textContent;
      const below = Array.from(chart.querySelectorAll("svg + p span"));
      const texts = below.map((one) => one.textContent);
      return [label, value.textContent, drawn, ...texts];
    }),
  );

const labelsOf = async (page) => (await chartsOf(page)).map((chart) => chart[0]);

const chartWith = (page, label, value) =>
  until(
    async () => (await chartsOf(page)).some(([a, b]) => a === label && b === value),
    `a chart of ${label} with ${value}`,
  );

async function pageShowsEvents({ page, server }) {
  const ids = await server.publish(
    "plain",
    { data: "two\nlines", event: "news" },
    { data: { a: "b" }, id: "row 7" },
  );
  await rowWith(page, '{"a":"b"}');
  const wanted = [
    ["a time", "message", ids[0], "plain"],
    ["a time", "news", ids[1], "two\nlines"],
    ["a time", "message", "row 7", '{"a":"b"}'],
  ];
  same(await rowsOf(page), wanted, "rows");
}

async function pageDrawsNumbers({ page, server }) {
  for (const n of [20, 22, 21]) {
    await server.publish(
      { data: { temperature: n + 0.5, inner: { humidity: 2 * n }, list: [n, { n }] } },
      { data: [n] },
      { data: `${n / 100}`, event: "cpu" },
    );
  }
  await chartWith(page, "cpu", "0.21");
  const wanted = [["temperature", "21.5"], ["inner.humidity", "42"], ["cpu", "0.21"]];
  const charts = async () => (await chartsOf(page)).map((chart) => chart.slice(0, 3));
  const seen = (await charts()).slice(1);
  same(seen, wanted.map((chart) => [...chart, true]), "charts");
  await page.click("#charts details:nth-child(2) summary");
  await server.publish({ data: { temperature: 30 } });
  await chartWith(page, "temperature", "30");
  const drawn = (await charts()).slice(1).map((chart) => chart[2]);
  same(drawn, [false, true, true], "which are drawn when one is folded away");
}

async function pageShowsTheDemo({ page, startDemo }) {
  await visit(page, await startDemo());
  await chartWith(page, "clients", "1");
}

async function pageSurvivesARestart({ page, server, startServer }) {
  await publishMeasurements(server, 60);
  await inTotal(page, 60);
  await server.stop();
  await inState(page, "reconnecting");
  const again = await startServer({ port: server.port });
  await publishMeasurements(again, 20);
  await again.watchedBy(1);
  await again.publish("live again");
  await rowWith(page, "live again");
  await inState(page, "live");
  const rows = await rowsOf(page);
  const gaps = [...rows.keys()].filter((n) => rows[n][1] === "gap");
  same(gaps.length, 1, "gaps shown");
  same(rows[gaps[0]][0], "a time", "when the gap was told");
  expect(gaps[0] > 59, "the gap is not shown behind what came before it");
  same(rows.length - 1 - gaps[0], 21, "rows behind the gap");
}

/** Publish what make(0), make(1), ... return. */
const publishMany = (server, count, make) =>
  server.publish(...Array.from({ length: count }, (_, n) => make(n)));

const publishMeasurements = (server, count) =>
  publishMany(server, count, (n) => ({
    data: {
      timestamp: new Date(Date.UTC(2026, 0, 1, 0, 0, n)).toISOString(),
      temperature: 21 + Math.round(30 * Math.sin(n / 9)) / 10,
      humidity: 40 + (n % 17),
      load: { one: Math.round(100 * Math.abs(Math.cos(n / 5))) / 100 },
    },
    event: n % 7 === 3 ? "measurement" : undefined,
  }));

/** Everything that an event could try, as its data, as its name, as its id. */
function hostileEvents() {
  const run = "window.ran=1";
  const markup = [
    ...[`<img src=x onerror=${run}>`, `<script>${run}</script>`, `<svg onload=${run}>`],
    ...[`"><img src=x onerror=${run}>`, `<a href="javascript:${run}">x</a>`],
    `</pre></li><iframe srcdoc="<script>${run}</script>">`,
    ...[`<style>@import "//127.0.0.2/"</style>`, `<base href="//127.0.0.2/">`],
    ...[`<link rel=stylesheet href="//127.0.0.2/">`, `&lt;b&gt;`, `\${${run}}`],
    ...[`<meta http-equiv=refresh content=0>`, `javascript:${run}`],
  ];
  const numbers = Array.from({ length: 5_000 }, (_, n) => [`k${n}`, n]);
  const json = [
    '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":2}}}',
    '{"toString":1,"valueOf":2,"hasOwnProperty":3,"length":4,"":5}',
    ...['{"huge":1e308}', '{"huge":-1e308}', '{"beyond":1e999}', '{"tiny":5e-324}'],
    ...["-0", "123456789012345678901234567890", "[1,[2,[3,[4]]]]", "null", "true"],
    ...['"text"', "{}", '{"a":1', "NaN", "[".repeat(50_000)],
    `${'{"a":'.repeat(5_000)}1${"}".repeat(5_000)}`,
    JSON.stringify(Object.fromEntries(numbers)),
    ...markup.map((text) => JSON.stringify({ [text]: 1, text })),
  ];
  const odd = [
    ...["\u202eright to left", "\u0007\u001b[31mred", "\ufeff", "\0", ""],
    ...["\n".repeat(10_000), "x".repeat(MEGABYTE), "<b>".repeat(MEGABYTE / 3)],
    ...["🦊".repeat(MEGABYTE / 4), `{"long":"${"x".repeat(MEGABYTE - 20)}"}`],
    "e\u0301".repeat(1000) + "\u0489".repeat(1000),
  ];
  const own = ["__proto__", "constructor", "error", "open"];
  const names = [...markup, ...own, "x".repeat(250)];
  return [
    ...[...markup, ...json, ...odd].map((data) => ({ data })),
    ...names.map((event) => ({ data: '{"number":1}', event })),
    ...names.map((id) => ({ data: "its id", id })),
  ];
}

async function pageIsHarmedByNoEvent({ page, startServer }) {
  const server = await startServer({ history_bytes: 32 * MEGABYTE });
  await visit(page, server);
  const events = hostileEvents();
  const elements = await activeElements(page);
  await server.publish(...events, "the end");
  await rowWith(page, "the end");
  same(await activeElements(page), elements, "elements that could do something");
  const [changed, longest] = await page.evaluate(() => {
    const rows = Array.from(document.querySelectorAll("#list li"));
    const longest = Math.max(...rows.map((row) => row.textContent.length));
    return [[...window.violations, window.ran ?? 0, {}.polluted ?? 0], longest];
  });
  same(changed, [0, 0], "violations of the policy, what an event ran or changed");
  expect(longest < 10_000, `the longest row has ${longest} characters`);
  const charts = (await chartsOf(page)).length;
  expect(charts < 50, `${charts} charts`);
  same(await textOf(page, "#total"), `${events.length + 1}`, "events counted");
  same(faultsOf.get(page), [], "faults");
  await pageHasAPolicy(page);
  faultsOf.get(page).length = 0;
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

async function pageFitsAPhone({ page, server }) {
  await page.setViewport({ width: 360, height: 740 });
  await publishMeasurements(server, 60);
  const [data, event, id] = ["x".repeat(500), "y".repeat(200), "z".repeat(200)];
  await server.publish({ data, event, id });
  await rowWith(page, "x".repeat(500));
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  expect(width <= 360, `it is ${width} px wide on a screen of 360`);
}

/** The contrast between text and background (WCAG 2); the background's luminance. */
const colours = (page) =>
  page.evaluate(() => {
    const luminance = (colour) => {
      const parts = colour.match(/[0-9.]+/g).map((part) => part / 255);
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

async function pageIsLightOrDark({ page, server }) {
  await page.setViewport({ width: 1200, height: 800 });
  await publishMeasurements(server, 200);
  await inTotal(page, 200);
  const notes = [];
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    const { contrast, back } = await colours(page);
    const fits = scheme === "light" ? back > 0.8 : back < 0.05;
    expect(fits, `${scheme}: luminance ${back}`);
    expect(contrast >= 7, `${scheme}: the contrast is ${contrast.toFixed(1)}, not 7`);
    notes.push(`${scheme}: contrast ${contrast.toFixed(1)}`);
  }
  return notes.join(", ");
}

/** The list's view: how far from its newest end, and where its first row is seen. */
const viewOf = (page) =>
  page.evaluate(() => {
    const list = document.querySelector("#list");
    const [newest, oldest] = [list.lastElementChild, list.firstElementChild];
    const box = list.getBoundingClientRect();
    const seen = newest.getBoundingClientRect();
    const overlap = Math.min(seen.bottom, box.bottom) - Math.max(seen.top, box.top);
    return {
      atNewest: overlap > 5,
      newestBelow: seen.top > oldest.getBoundingClientRect().top,
      place: Math.round(document.querySelector(".mark").getBoundingClientRect().top),
    };
  });

const lines = (server, from, count) =>
  publishMany(server, count, (n) => `line ${from + n}`);

/** Wait until the page has counted so many events and had the time to paint them. */
async function counted(page, count) {
  await inTotal(page, count);
  await settled();
}

const settled = () => sleep(300);

const hidden = (page, selector) => page.$eval(selector, (one) => one.hidden);

/** Whether the other begins below the one. */
const below = (page, ...selectors) =>
  page.evaluate((chosen) => {
    const [one, other] = chosen.map((selector) =>
      document.querySelector(selector).getBoundingClientRect(),
    );
    return one.height > 0 && one.bottom <= other.top;
  }, selectors);

async function pageFollowsLikeALog({ page, server }) {
  await page.setViewport({ width: 1280, height: 800 });
  const mark = () =>
    page.$$eval("#list li", (rows) => {
      for (const row of rows) row.classList.remove("mark");
      rows[rows.length >> 1].classList.add("mark");
    });
  let total = 0;
  const more = async (count) => {
    await lines(server, total, count);
    await counted(page, (total += count));
  };
  await more(100);
  for (const newestFirst of [false, true]) {
    if (newestFirst) await page.click("#first");
    await settled();
    await mark();
    const order = newestFirst ? "newest first" : "newest last";
    const atNewest = async (what) =>
      expect((await viewOf(page)).atNewest, `${order}: it ${what}`);
    const { newestBelow } = await viewOf(page);
    same(newestBelow, !newestFirst, `${order}: the newest is below`);
    await atNewest("is not at the newest");
    await more(50);
    await atNewest("does not follow");
    expect(await hidden(page, "#newest"), `${order}: there is a way to where it is`);
    const by = newestFirst ? 600 : -600;
    await page.$eval("#list", (list, pixels) => list.scrollBy(0, pixels), by);
    await settled();
    await mark();
    const { place } = await viewOf(page);
    expect(!(await hidden(page, "#newest")), `${order}: no way back to the newest`);
    expect(await below(page, "#newest", "#list"), `${order}: a button covers a row`);
    for (const count of [450, 450, 450]) await more(count);
    same((await viewOf(page)).place, place, `${order}: where the row is that was read`);
    await page.click("#newest");
    await settled();
    expect((await rowsOf(page)).length <= 500, `${order}: rows are left`);
    await mark();
    await atNewest("does not come back");
    same((await textsOf(page)).at(-1), `line ${total - 1}`, `${order}: the newest`);
    await more(50);
    await atNewest("does not follow again");
  }
}

/** The lines of the charts: for each label, the legends, and how many colours. */
const linesOf = (page) =>
  page.$$eval("#charts details", (charts) =>
    Object.fromEntries(
      charts.map((chart) => {
        const paths = Array.from(chart.querySelectorAll("path"));
        const colours = new Set(paths.map((path) => getComputedStyle(path).stroke));
        const legends = Array.from(chart.querySelectorAll(".legend span"));
        const [head, tail] = chart.querySelectorAll("bdi");
        const label = head.textContent + tail.textContent;
        return [label, [colours.size, ...legends.map((legend) => legend.textContent)]];
      }),
    ),
  );

async function pageDrawsALineForEachSensor({ page, server }) {
  await chartWith(page, "events/s", "0");
  same(await linesOf(page), { "events/s": [1] }, "the charts before any event");
  const events = Array.from({ length: 60 }, (_, n) => [
    { event: "one", data: { sensor: n % 2 ? "attic" : "cellar", t: (n % 2) * 9 + n } },
    { event: "two", data: { when: `${n} h`, room: `r${n % 3}`, inner: { t: n } } },
    { event: "three", data: { when: `${n} h`, text: `${n % 5 > 1}`, t: n } },
    { event: "four", data: { when: `${n} h`, device: `${n}`, t: n } },
    { event: "five", data: { device: "alone", state: `${n % 2}`, t: n } },
  ]);
  await server.publish(...events.flat());
  await counted(page, 300);
  const wanted = {
    "events/s": [1],
    "one.t": [2, "attic 68", "cellar 58"],
    "two.inner.t": [3, "r0 57", "r1 58", "r2 59"],
    "three.t": [2, "false 56", "true 59"],
    "four.t": [1],
    "five.t": [1],
  };
  same(await linesOf(page), wanted, "the lines");
}

async function pageLabelsItsCharts({ page, server }) {
  const long = "a_long_name_of_what_is_measured_in_the_cellar_of_the_house_at_its_end";
  await server.publish(
    ...[1012, 1014].map((n) => ({
      event: "meter",
      data: { hpa: n, bytes: 3_000_000 + 1_000_000 * (n - 1012.94), [long]: n },
    })),
  );
  await chartWith(page, "bytes", "4.06 M");
  const short = ["events/s", "hpa", "bytes", long];
  same(await labelsOf(page), short, "labels where all events have the same name");
  const [, [, , , small, time], [, , , large]] = await chartsOf(page);
  const ranges = ["1,012 to 1,014", "2.06 M to 4.06 M"];
  same([small, large], ranges, "the ranges of small and large numbers");
  expect(/^in [0-9]+ s$/.test(time), `the time that it spans is ${time}`);
  const seen = await page.evaluate(() => {
    const [head, tail] = document.querySelectorAll("#charts details:last-child bdi");
    const whole = [head, tail].map((one) => one.scrollWidth <= one.clientWidth);
    return [...whole, head.clientWidth > 20, tail.textContent];
  });
  same(seen, [false, true, true, "t_its_end"], "a long label lost its middle");
  await server.publish({ event: "other", data: { hpa: 1 } }, { data: "2" });
  await chartWith(page, "data", "2");
  const full = ["meter.hpa", "meter.bytes", `meter.${long}`, "other.hpa", "data"];
  same(await labelsOf(page), ["events/s", ...full], "labels where the names differ");
}

async function pageNamesTheTimeZone({ page, server }) {
  await server.publish("now");
  await rowWith(page, "now");
  const minutes = (time) => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5));
  const local = await textOf(page, "#list time");
  expect(TIME.test(local), `a time is ${local}`);
  same(await textOf(page, "#zone"), "GMT+5:30", "the zone"); // see harness.cjs
  await page.click("#utc");
  await settled();
  const utc = await textOf(page, "#list time");
  same((minutes(local) - minutes(utc) + 1440) % 1440, 330, "minutes between them");
  const clock = new Date().toISOString();
  const behind = (minutes(clock.slice(11)) - minutes(utc) + 1440) % 1440;
  expect(behind <= 1, `UTC is ${utc} at ${clock}`);
}

async function pageInUtcHasNoSwitch({ page, startServer }) {
  const server = await startServer();
  const shown = () => page.$eval("#utc", (one) => one.getClientRects().length > 0);
  await visit(page, server);
  expect(await shown(), "there is no switch to UTC");
  await page.emulateTimezone("UTC");
  await visit(page, server);
  expect(!(await shown()), "there is a switch from UTC to UTC");
}

async function replay(page) {
  await Promise.all([page.waitForNavigation(), page.click("#replay")]);
  await inState(page, "live");
}

/** The time of each event is known, or the row says that it is not. */
async function pageTellsWhatIsEarlier({ page, startServer, startRelay }) {
  const server = await startServer({ retry: 1 });
  const relay = await startRelay(server);
  await server.publish(
    { data: { kept: 1 }, event: "state", retain: true },
    ...Array.from({ length: 50 }, (_, n) => ({ data: { n } })),
  );
  await visit(page, relay);
  await rowWith(page, '{"kept":1}');
  await server.publish({ data: { n: 50 } });
  await chartWith(page, "n", "50");
  same(await timesOf(page), ["earlier", "a time"], "a retained event, and a new one");
  same(await textsOf(page), ['{"kept":1}', '{"n":50}'], "these two");
  const span = async (chart, part) => (await chartsOf(page))[chart][3 + part];
  same(await span(1, 1), "earlier", "the time of the chart of the former");
  const release = relay.hold();
  relay.cut();
  await rowWith(page, "the connection broke");
  await server.publish({ data: { n: 51 } });
  release();
  await rowWith(page, '{"n":51}');
  await server.publish({ data: { n: 52 } });
  await rowWith(page, '{"n":52}');
  const resumed = (await rowsOf(page)).filter(([, , , text]) => /{"n":5/.test(text));
  const when = resumed.map(([time]) => time).join();
  same(when, "a time,earlier,a time", "an event that was missed, between two others");
  await replay(page);
  await chartWith(page, "n", "52");
  await settled();
  same(await timesOf(page), Array(54).fill("earlier"), "what is replayed");
  same(await span(2, 1), "earlier", "the time of a chart of it");
  await page.waitForFunction(() => charts.get("null.events/s").points.length > 2);
  await settled();
  same(await span(0, 0), "0 to 0", "the rate of new events");
}

/** The ids of a publisher tell no order. */
async function pageTellsWhatIsEarlierByItsArrival({ page, startServer }) {
  const server = await startServer();
  await server.publish({ data: "one", id: "b" }, { data: "two", id: "a" });
  const { origin, url } = server;
  await visit(page, server);
  await page.waitForFunction(() => Date.now() - opened > MOMENT);
  await server.publish({ data: "three", id: "c" });
  await rowWith(page, "three");
  same(await timesOf(page), ["a time"], "what comes after the first moment");
  await visit(page, { origin, url: `${url}?replay=2` });
  await rowWith(page, "three");
  await server.publish({ data: "four", id: "0" });
  await rowWith(page, "four");
  const wanted = ["earlier", "earlier", "a time"];
  same(await timesOf(page), wanted, "what comes after the newest");
  // Retained events have no ids, and may come late.
  await giveFirst(page, ": open\n", "data: retained\n\n", "data: new\nid: n\n\n");
  await visit(page, server);
  await rowWith(page, "new");
  const times = (await timesOf(page)).slice(0, 2);
  same(times, ["earlier", "a time"], "a retained event that comes late, and a new one");
}

/** Give the page these pieces, one a second, in place of its first stream; cut it. */
const giveFirst = (page, ...pieces) =>
  page.evaluateOnNewDocument((texts) => {
    const { fetch } = window;
    window.fetch = async (...request) => {
      window.fetch = fetch;
      const { headers } = await fetch(...request);
      const pull = async (body) => {
        if (texts.length === 0) return body.error();
        body.enqueue(new TextEncoder().encode(texts.shift()));
        if (texts.length > 0) await new Promise((resolve) => setTimeout(resolve, 1000));
      };
      return new Response(new ReadableStream({ pull }), { headers });
    };
  }, pieces);

async function pageGoesOnFromItsOpening({ page, startServer, startRelay }) {
  const server = await startServer({ retry: 0.5 });
  const relay = await startRelay(server);
  await server.publish("before");
  await visit(page, relay);
  await page.waitForFunction(() => Date.now() - opened > MOMENT);
  relay.cut();
  await rowWith(page, "the connection broke");
  await server.publish("meanwhile");
  await rowWith(page, "meanwhile");
  const wanted = ["the connection broke", "connected", "meanwhile"];
  same(await textsOf(page), wanted, "rows of a client cut before its first event");
  // Cut so early that it may have been owed a retained event, it begins anew.
  await server.publish({ data: "retained", retain: true });
  await giveFirst(page, ": open\n");
  await page.goto(relay.url);
  await rowWith(page, "retained");
  same(await textsOf(page), ["the connection broke", "connected", "retained"], "rows");
}

async function pageCountsWhatItShows({ page, server }) {
  const named = (_, n) => ({ data: `line ${n}`, event: n % 2 ? "odd" : "even" });
  await server.publish(...Array.from({ length: 7 }, named));
  await counted(page, 7);
  await page.type("#filter", "odd");
  await reads(page, "#total", "3 of 7");
  await server.publish({ data: "line 7", event: "odd" });
  await reads(page, "#total", "4 of 8");
  await page.type("#filter", "x");
  await reads(page, "#total", "0 of 8");
  same(await textOf(page, "#empty"), "No event matches the filter.", "what it says");
}

async function pageSaysThatItIsPaused({ page, server }) {
  await server.publish("before");
  await rowWith(page, "before");
  await page.click("#pause");
  await inState(page, "paused");
  await server.publish("while paused");
  await counted(page, 2);
  same((await rowsOf(page)).length, 1, "rows while it is paused");
  await page.click("#pause");
  await inState(page, "live");
  await rowWith(page, "while paused");
  await page.click("#pause");
  await inState(page, "paused");
  await lines(server, 0, 1200);
  await counted(page, 1202);
  await page.click("#pause");
  await rowWith(page, "line 1199");
  const [first, ...others] = (await textsOf(page)).slice(2);
  const lost = /^\[([0-9]+) events before this are not shown\]\n/.exec(first)?.[1];
  const accounted = Number(lost) + 1 + others.length;
  same(accounted, 1200, "events that are shown, or said not to be");
}

async function pageSetsJsonForReading({ page, server }) {
  await page.setViewport({ width: 390, height: 844 });
  const value = {
    ...{ serial: "#", place: "the left-hand side, below", empty: {} },
    ...{ values: [1.5, 2, 3], note: 'say "no", twice', inner: { temperature: 21.25 } },
  };
  const json = (indent) => // with more digits than a number of JavaScript has
    JSON.stringify(value, null, indent).replace('"#"', "12345678901234567890");
  const text = json(0);
  const coloured = "\u001b[1;31mred\u001b[0m and \u001b[Kplain";
  await server.publish(text, coloured, "[not, json");
  await rowWith(page, "[not, json");
  same(await textsOf(page), [text, "red and plain", "[not, json"], "rows");
  const broken = await page.evaluate(() => {
    const width = document.querySelector("#list pre").clientWidth;
    const fields = Array.from(document.querySelectorAll("#list pre span"));
    const lines = (one) => one.getBoundingClientRect().height / 18;
    const narrow = fields.filter((one) => one.offsetWidth < width - 1);
    const inside = narrow.filter((one) => lines(one) > 1.5);
    const tops = new Set(fields.map((one) => one.offsetTop));
    return [fields.length > 6, tops.size > 2, inside.map((one) => one.textContent)];
  });
  same(broken, [true, true, []], "fields, lines, and fields that are broken");
  await page.click("#list li pre");
  same((await textsOf(page))[0], json(2), "a row that was clicked");
  await page.focus("#list time button");
  await page.keyboard.press("Enter");
  same((await textsOf(page))[0], text, "a row that was closed");
}

async function pageOffersWhatTheServerHolds({ page, startServer }) {
  const server = await startServer();
  await server.publish("one", "two", "three");
  await visit(page, server);
  const empty = "No events yet.";
  const hint = "Those of a channel need ?channel=NAME in the address.";
  await reads(page, "#empty", `${empty} ${hint}`);
  await server.publish("four");
  await rowWith(page, "four");
  same((await rowsOf(page)).length, 1, "rows of a quiet stream");
  expect(await hidden(page, "#empty"), "a page with an event says that it has none");
  await visit(page, { ...server, url: `${server.url}?channel=news` });
  await reads(page, "#empty", empty);
  for (const query of ["", "?last_event_id=1"]) {
    await visit(page, { ...server, url: server.url + query });
    await replay(page);
    await rowWith(page, "four");
    same(await textsOf(page), ["one", "two", "three", "four"], "rows");
    expect(await hidden(page, "#replay"), "it offers again what it shows");
  }
}

async function pageGivesCopies({ page, startServer }) {
  const server = await startServer();
  const { origin } = server;
  await visit(page, { origin, url: `${server.url}?channel=it's` });
  const data = '{"n":1,"text":"<b> & \\u001b[31m"}';
  const [id] = await server.publish(
    { data, channel: "it's", event: "news" },
    { data: "two\nlines", channel: "it's" },
  );
  await rowWith(page, "two\nlines");
  const pasted = async (selector) => {
    await page.hover("#list li");
    await page.click(selector);
    same((await textOf(page, selector)).slice(0, 6), "Copied", "what the button says");
    await page.evaluate(() => {
      document.body.append(document.createElement("textarea"));
      document.querySelector("textarea").focus();
    });
    await page.keyboard.down("Control");
    await page.keyboard.press("v");
    await page.keyboard.up("Control");
    return page.$eval("textarea", (area) => (area.remove(), area.value));
  };
  same(await pasted("#list .copy"), data, "an event's data");
  same(await pasted("#curl"), `curl -N '${server.url}?channel=it%27s'`, "curl's line");
  await page.type("#filter", "news");
  await settled();
  const saved = await page.evaluate(async () => {
    const create = URL.createObjectURL;
    let blob;
    URL.createObjectURL = (given) => create.call(URL, (blob = given));
    document.querySelector("#save").click();
    return blob.text();
  });
  const [event, ...others] = saved.trimEnd().split("\n").map(JSON.parse);
  same(others, [], "events that the filter hides");
  expect(Math.abs(Date.parse(event.time) - Date.now()) < 60_000, `time: ${event.time}`);
  same({ ...event, time: 0 }, { time: 0, event: "news", id, data }, "what is saved");
}

async function pageExplainsARefusal({ page, startServer, startRelay }) {
  const server = await startServer({ door: true });
  const relay = await startRelay(server);
  await visit(page, relay);
  const sentences = {
    401: /log in/i,
    403: /does not let you/,
    421: /name localhost/,
    204: /nothing more to send/,
  };
  for (const [status, sentence] of Object.entries(sentences)) {
    await server.ask("turn_away", { status: Number(status) });
    relay.cut();
    await inState(page, status === "204" ? "finished" : "stopped");
    const detail = await textOf(page, "#detail");
    const said = detail.startsWith(status) && sentence.test(detail);
    expect(said, `${status}: "${detail}"`);
    await settled();
    const told = (await textsOf(page)).at(-1) === detail;
    same(told, status === "204", `${status} is told in the list`);
    await server.ask("turn_away", { status: null });
    await page.click("#again");
    await inState(page, "live");
  }
}

/** What the page holds after some events, it holds after many times as many. */
async function pageKeepsItsMemory({ page, server }) {
  const session = await page.createCDPSession();
  let total = 0;
  const after = async (rate, seconds) => {
    await server.ask("pump", { rate, seconds });
    total += rate * seconds;
    const wanted = total.toLocaleString("en");
    const arrived = async () => (await textOf(page, "#total")) === wanted;
    await until(arrived, `${wanted} events`, 60_000);
    await session.send("HeapProfiler.collectGarbage");
    const { usedSize } = await session.send("Runtime.getHeapUsage");
    const nodes = await page.evaluate(() => document.querySelectorAll("*").length);
    return [usedSize / MEGABYTE, nodes];
  };
  const [small, few] = await after(1000, 4);
  const [large, many] = await after(3000, 12);
  const megabytes = `${small.toFixed(1)} MB, then ${large.toFixed(1)} MB`;
  const note = `${megabytes} after ${total} events`;
  expect(large < small + 3 && many < few + 200, `${note}; ${few}, ${many} elements`);
  return note;
}

/** The time between frames, and until the page answers, while events rain on it. */
async function pageKeepsUpWithAThousandEventsASecond({ page, server }) {
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
  const complete = async () => {
    const start = performance.now();
    const total = Number((await textOf(page, "#total")).replaceAll(",", ""));
    answers.push(performance.now() - start);
    return total === wanted;
  };
  await until(complete, `${wanted} events counted`, 3000 * PUMP.seconds);
  const frames = await page.evaluate(() => window.frames);
  const rows = (await rowsOf(page)).length;
  expect(rows <= 1000, `${rows} rows in the list`);
  return [smooth("frames", frames), smooth("answers", answers)].join(", ");
}

function smooth(what, times) {
  times.sort((one, other) => one - other);
  const [half, worst] = [times[times.length >> 1], times.at(-1)].map(Math.round);
  const note = `${times.length} ${what}, half in ${half} ms, all in ${worst} ms`;
  expect(half <= SMOOTH && worst <= FROZEN, note);
  return note;
}

const onItsPage = [
  ...[pageShowsEvents, pageDrawsNumbers, pageSurvivesARestart, pageFitsAPhone],
  ...[pageFollowsLikeALog, pageDrawsALineForEachSensor, pageLabelsItsCharts],
  ...[pageNamesTheTimeZone, pageCountsWhatItShows, pageSaysThatItIsPaused],
  pageSetsJsonForReading,
];
const onPagesOfItsOwn = [
  ...[pageShowsTheDemo, pageIsHarmedByNoEvent, pageTellsWhatIsEarlier],
  ...[pageTellsWhatIsEarlierByItsArrival, pageGoesOnFromItsOpening],
  ...[pageOffersWhatTheServerHolds, pageGivesCopies, pageExplainsARefusal],
];
// Firefox lets nobody choose its colours or its zone, or ask for its memory, from
// outside.
const onItsPageInChromium = [pageIsLightOrDark, pageKeepsItsMemory];

const notVisiting = (check) => watched(check);
module.exports = {
  checks: [...onItsPage.map(visiting), ...onPagesOfItsOwn.map(notVisiting)],
  checksOfChromium: [
    ...onItsPageInChromium.map(visiting),
    notVisiting(pageInUtcHasNoSwitch),
  ],
  checksOfSpeed: [visiting(pageKeepsUpWithAThousandEventsASecond)],
};
