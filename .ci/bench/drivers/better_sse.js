"use strict";
/* better-sse on Express, broadcasting through its Channel. */

const express = require("express");
const { createChannel, createSession } = require("better-sse");
const { obey } = require("./pace.js");

const channel = createChannel();
const app = express();
app.get("/sse", async (request, response) => {
  channel.register(await createSession(request, response));
});

function publish(datas) {
  for (const data of datas) channel.broadcast(data);
}

const server = app.listen(0, "127.0.0.1", () => obey(server, publish));
