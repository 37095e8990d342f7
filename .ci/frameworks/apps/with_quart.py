from quart import Quart
from shared import server

app = Quart(__name__)
pages = app.asgi_app


@app.while_serving
async def serve():
    async with server.lifespan():
        yield


async def route(scope, receive, send):
    is_stream = scope["type"] == "http" and scope["path"] == "/events"
    await (server if is_stream else pages)(scope, receive, send)


app.asgi_app = route
