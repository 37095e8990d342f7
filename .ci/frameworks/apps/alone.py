"""Without a framework: the server is the whole application."""

from sse_server import SSEServer

app = SSEServer(port=None, path="/events", publish_token="secret", retry=0.5)
