"use strict";
/* Node's own http with nothing on top: one string, one write for each response.  It obeys
 * the commands of pace.py. */

const http = require("node:http");
const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");
const { promisify } = require("node:util");

const HEAD = { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" };
const clients = new Set();
const turn = promisify(setImmediate);
const now = () => process.hrtime.bigint(); // CLOCK_MONOTONIC

const server = http.createServer((request, response) => {
  response.writeHead(200, HEAD);
  response.flushHeaders();
  clients.add(response);
  response.on("close", () => clients.delete(response));
});

function eventText(number, size) {
  const head = `${String(number).padStart(10, "0")} ${String(now()).padStart(19, "0")} `;
  return `data: ${head.padEnd(size, "x")}\n\n`;
}

async function runJob(words) {
  const [first, count, batch, intervalUs, size] = words.slice(1, 6).map(Number);
  let due = Number(now()) / 1e6;
  for (let start = first; start < first + count; start += batch) {
    const numbers = Array.from({ length: batch }, (_, n) => start + n);
    const wanted = numbers.filter((number) => number < first + count);
    const payload = Buffer.from(wanted.map((n) => eventText(n, size)).join(""));
    for (const response of clients) response.write(payload);
    if (intervalUs) {
      due += intervalUs / 1e3;
      await sleep(Math.max(0, due - Number(now()) / 1e6));
    } else {
      await turn();
    }
  }
}

server.listen(0, "127.0.0.1", async () => {
  console.log(`ready ${server.address().port}`);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await runJob(line.split(" "));
    console.log("done -");
  }
  process.exit(0);
});
