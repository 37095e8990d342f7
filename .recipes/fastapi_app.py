import contextlib

from fastapi import FastAPI, Header, Request
from fastapi.responses import StreamingResponse

from sse_server import SSEServer

server = SSEServer(port=None)


@contextlib.asynccontextmanager
async def lifespan(app):
    async with server:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/events")
async def events(last_event_id: str | None = Header(None)):
    return StreamingResponse(
        server.stream(last_event_id), headers=server.stream_headers()
    )


@app.post("/orders")
async def order(request: Request):
    server.publish(await request.json(), event="order")
