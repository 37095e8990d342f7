"use strict";
/* Koa in its usual manner: an EventEmitter, and a Transform stream for each client. */

const EventEmitter = require("node:events");
const { Transform } = require("node:stream");
const Koa = require("koa");
const { obey } = require("./pace.js");

const events = new EventEmitter();
events.setMaxListeners(0);

class EventStream extends Transform {
  constructor() {
    super({ writableObjectMode: true });
  }

  _transform(data, encoding, callback) {
    this.push(`data: ${data}\n\n`);
    callback();
  }
}

const app = new Koa();
app.use((context) => {
  context.req.socket.setNoDelay(true);
  context.set({ "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  context.status = 200;
  const stream = new EventStream();
  const listener = (data) => stream.write(data);
  events.on("data", listener);
  stream.on("close", () => events.off("data", listener));
  context.body = stream;
  context.flushHeaders();
});

function publish(datas) {
  for (const data of datas) events.emit("data", data);
}

const server = app.listen(0, "127.0.0.1", () => obey(server, publish));
