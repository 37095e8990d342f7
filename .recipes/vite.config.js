// Vite's development server passes the stream on, so that the page and the stream have
// one origin.

/** What Vite's proxy needs for a stream. */
function forStreams(proxy) {
  // When the server dies, Vite leaves the stream open in the browser: end it.
  proxy.on("proxyRes", (answer, request, response) => {
    answer.on("close", () => answer.complete || response.destroy());
  });
  // While the server is away, Vite answers with an error, after which a browser would
  // not reconnect.
  proxy.on("error", (error, request, response) => {
    if (request.method !== "GET" || response.headersSent) return;
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.end("retry: 3000\n");
  });
}

export default {
  server: {
    proxy: { "/sse": { target: "http://127.0.0.1:8080", configure: forStreams } },
  },
};
