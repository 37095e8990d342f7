"use strict";
/* Node's own http with nothing on top: one string, one write for each response. */

const http = require("node:http");
const { obey } = require("./pace.js");

const HEAD = { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" };
const clients = new Set();

const server = http.createServer((request, response) => {
  response.writeHead(200, HEAD);
  response.flushHeaders();
  clients.add(response);
  response.on("close", () => clients.delete(response));
});

function publish(datas) {
  const payload = Buffer.from(datas.map((data) => `data: ${data}\n\n`).join(""));
  for (const response of clients) response.write(payload);
}

server.listen(0, "127.0.0.1", () => obey(server, publish));
