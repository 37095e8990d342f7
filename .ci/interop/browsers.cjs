/* Chromium and Firefox against the server: EventSource, fetch, and the server's page.
 *
 * usage: browsers.cjs [--only TEXT] [--restarts NUMBER] [--screenshots FOLDER]
 *        (with the environment that install.sh prints)
 */
"use strict";

const fs = require("node:fs");
const { parseArgs } = require("node:util");
const { inPage, startBrowsers, Report } = require("./harness.cjs");
const eventsource = require("./eventsource.cjs");
const page = require("./page.cjs");
const tabs = require("./tabs.cjs");

function titleOf(check) {
  return check.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}

/** Every check in turn, in all browsers at the same time. */
async function together(report, browsers, checks, options) {
  for (const check of checks) {
    await Promise.all(browsers.map((one) => alone(report, one, check, options)));
  }
}

function alone(report, { name, browser }, check, options) {
  const run = (tools) => check({ ...tools, name, options });
  return report.case(`${name} ${titleOf(check)}`, () => inPage(browser, run));
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      restarts: { type: "string", default: "20" },
      screenshots: { type: "string" },
    },
  });
  if (options.screenshots) fs.mkdirSync(options.screenshots, { recursive: true });
  const chosen = (checks) =>
    checks.filter((check) => titleOf(check).includes(options.only));
  const report = new Report("browsers");
  const browsers = await startBrowsers();
  try {
    await together(report, browsers, chosen(eventsource.checks), options);
    await together(report, browsers, chosen(tabs.checks), options);
    await together(report, browsers, chosen(page.checks), options);
    const [chromium] = browsers;
    await together(report, [chromium], chosen(page.checksOfChromium), options);
    for (const browser of browsers) {
      await together(report, [browser], chosen(page.checksOfSpeed), options);
    }
  } finally {
    await Promise.all(browsers.map((browser) => browser.close()));
  }
  return report.close();
}

main().then(
  (status) => process.exit(status),
  (problem) => {
    console.error(problem);
    process.exit(1);
  },
);
