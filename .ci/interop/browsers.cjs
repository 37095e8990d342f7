/* Chromium and Firefox against the server: EventSource, fetch, and the server's page.
 *
 * usage: browsers.cjs [TEXT]     only the checks whose title has this text
 *        (with the environment that `prepare` of common.sh makes)
 */
"use strict";

const { inPage, startBrowsers, Report } = require("./harness.cjs");
const eventsource = require("./eventsource.cjs");
const page = require("./page.cjs");
const tabs = require("./tabs.cjs");

function titleOf(check) {
  return check.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}

async function main(only = "") {
  const report = new Report("browsers");
  const browsers = await startBrowsers();
  /** Every check in turn, in these browsers at the same time. */
  const together = async (checks, chosen = browsers) => {
    for (const check of checks.filter((one) => titleOf(one).includes(only))) {
      const run = ({ name, browser }) =>
        report.case(`${name} ${titleOf(check)}`, () => inPage(browser, check));
      await Promise.all(chosen.map(run));
    }
  };
  try {
    await together([...eventsource.checks, ...tabs.checks, ...page.checks]);
    await together(page.checksOfChromium, browsers.slice(0, 1));
    for (const browser of browsers) await together(page.checksOfSpeed, [browser]);
  } finally {
    await Promise.all(browsers.map((browser) => browser.close()));
  }
  return report.close();
}

main(...process.argv.slice(2)).then(
  (status) => process.exit(status),
  (problem) => {
    console.error(problem);
    process.exit(1);
  },
);
