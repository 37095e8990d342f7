/* Watch streams with EventSources in Chromium, a tab for each: a URL in each line of the
 * input opens one.  Prints a JSON line [URL, data] for each event without a name, until
 * the end of its input.
 */
"use strict";

const readline = require("node:readline");
const puppeteer = require("puppeteer-core");

async function watch(browser, url) {
  const page = await browser.newPage();
  await page.exposeFunction("show", (data) => console.log(JSON.stringify([url, data])));
  // An empty page of the same origin, whatever the server has there.
  page.once("request", (request) => request.respond({ contentType: "text/html" }));
  await page.setRequestInterception(true);
  await page.goto(new URL("/", url).href);
  await page.setRequestInterception(false);
  await page.evaluate((address) => {
    new EventSource(address).onmessage = (event) => show(event.data);
  }, url);
}

async function main() {
  const browser = await puppeteer.launch({
    executablePath: "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  for await (const url of readline.createInterface({ input: process.stdin })) {
    await watch(browser, url);
  }
  await browser.close();
}

main();
