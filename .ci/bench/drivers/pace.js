"use strict";
/* The commands, the rhythm and the events for the drivers in Node; see pace.py. */

const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");
const { promisify } = require("node:util");

const turn = promisify(setImmediate);
const now = () => process.hrtime.bigint(); // CLOCK_MONOTONIC

function eventData(number, size) {
  const head = `${String(number).padStart(10, "0")} ${String(now()).padStart(19, "0")} `;
  return head.padEnd(size, "x");
}

async function runJob(words, publish) {
  const [first, count, batch, intervalUs, size] = words.slice(1, 6).map(Number);
  const end = first + count;
  let due = Number(now()) / 1e6;
  for (let start = first; start < end; start += batch) {
    const datas = [];
    for (let n = start; n < Math.min(start + batch, end); n++) {
      datas.push(eventData(n, size));
    }
    publish(datas);
    if (intervalUs) {
      due += intervalUs / 1e3;
      await sleep(Math.max(0, due - Number(now()) / 1e6));
    } else {
      await turn();
    }
  }
}

/** Obey commands until standard input ends; publish(datas) publishes one batch. */
exports.obey = async function obey(server, publish) {
  console.log(`ready ${server.address().port}`);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await runJob(line.split(" "), publish);
    console.log("done -");
  }
  process.exit(0);
};
