/* Watch a stream with an EventSource for Node, as client.py does with Python's.
 *
 * usage: client.cjs eventsource|undici URL [NAME...]     prints a JSON line
 * [type, data, last event id] for each event of the type "message" or one of the NAMEs,
 * until the end of its input.
 */
"use strict";

const [library, url, ...names] = process.argv.slice(2);
const { EventSource } = require(library);

const source = new EventSource(url);
for (const name of ["message", ...names]) {
  source.addEventListener(name, (event) => {
    console.log(JSON.stringify([event.type, event.data, event.lastEventId]));
  });
}

// undici's timer for a reconnect does not keep the process alive; its input does.
process.stdin.on("end", () => process.exit()).resume();
