/* A development proxy that compresses what it passes on: devproxy.cjs PORT UPSTREAM */
"use strict";

const compression = require("compression");
const express = require("express");
const { createProxyMiddleware } = require("http-proxy-middleware");

const [port, upstream] = process.argv.slice(2);
const app = express();
app.use(compression());
app.use(createProxyMiddleware({ target: `http://127.0.0.1:${upstream}` }));
app.listen(Number(port), "127.0.0.1", () => console.log('["listening", "", ""]'));
