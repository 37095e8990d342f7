"""python http_server.py: a handler of the standard library's http.server publishes.

The page opens http://localhost:8080/sse.
"""

import http.server
import json

from sse_server import SSEServer


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        id = server.publish(json.loads(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(id)))
        self.end_headers()
        self.wfile.write(id)


with SSEServer() as server:
    try:
        http.server.ThreadingHTTPServer(("localhost", 8000), Handler).serve_forever()
    except KeyboardInterrupt:
        pass
