"""The server that each application of this folder serves on its path /events."""

import os

from sse_server import SSEServer

server = SSEServer(
    port=None,
    retry=0.5,
    publish_token="secret",
    history_file=os.environ.get("SSE_HISTORY_FILE"),
)
