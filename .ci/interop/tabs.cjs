/* The recipe tabs.html, as it stands: several tabs, one stream. */
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { same, until } = require("./harness.cjs");

const PAGE = path.join(__dirname, "..", "..", ".recipes", "tabs.html");

/** A tab with the page, which has the server's origin. */
async function openTab(browser, server) {
  const tab = await browser.newPage();
  const body = fs.readFileSync(PAGE, "utf8");
  tab.on("request", (request) =>
    request.isNavigationRequest()
      ? request.respond({ contentType: "text/html", body })
      : request.continue(),
  );
  await tab.setRequestInterception(true);
  await tab.goto(`${server.origin}/tabs.html`);
  return tab;
}

function shown(tab) {
  return tab.evaluate(() =>
    [...document.querySelectorAll("li")].map((item) => item.textContent),
  );
}

async function shows(tab, ...wanted) {
  await until(async () => (await shown(tab)).length >= wanted.length, wanted.at(-1));
  same(await shown(tab), wanted, "the tab");
}

/** The next tab opens the stream when the first is closed, and nothing is missed. */
async function tabsShareOneStream({ page, startServer }) {
  const server = await startServer();
  const holder = await openTab(page.browser(), server);
  await server.watchedBy(1);
  const other = await openTab(page.browser(), server);
  await server.publish("one", "two");
  await Promise.all([holder, other].map((tab) => shows(tab, "one", "two")));
  await server.watchedBy(1);
  await holder.close();
  await server.publish("three");
  await shows(other, "one", "two", "three");
  await server.watchedBy(1);
  await server.publish("four");
  await shows(other, "one", "two", "three", "four");
  await other.close();
}

module.exports = { checks: [tabsShareOneStream] };
