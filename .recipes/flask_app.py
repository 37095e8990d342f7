"""flask --app flask_app run: a view publishes, and the stream has a port of its own.

The page opens http://localhost:8080/sse.
"""

import atexit

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


@app.post("/orders")
def order():
    server.publish(request.get_json(), event="order")
    return "", 204
