"""flask --app flask_app run: a view publishes, and the stream has a port of its own.

The page opens http://localhost:8080/sse.  Under gunicorn with several workers, add
history_file="events.db" and reuse_port=True; `requests()` knows the streams of its own
process alone.
"""

import atexit
import signal
import sys

from flask import Flask, request
from werkzeug.serving import is_running_from_reloader

from sse_server import SSEServer

app = Flask(__name__)
server = SSEServer(cors_origins=["http://localhost:5000", "http://127.0.0.1:5000"])
# With `flask run --debug` the program runs twice, and one of the two processes only
# watches the files.
if is_running_from_reloader() or not app.debug:
    server.start()
    atexit.register(server.stop)
    # Without this, SIGTERM would end `flask run` without a word to the clients.
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())


@app.post("/orders")
def order():
    server.publish(request.get_json(), event="order")
    return "", 204
