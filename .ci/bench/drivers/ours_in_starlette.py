"""The server of this repository as a body for Starlette's response: stream()."""

import asyncio
import socket

import uvicorn
from pace import obey
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sse_server import SSEServer

server = SSEServer(port=None)


async def stream(request):
    last = request.headers.get("last-event-id")
    return StreamingResponse(server.stream(last), headers=server.stream_headers())


def publish(datas, channel):
    for data in datas:
        last_id = server.publish(data, channel=channel)
    return last_id


async def main():
    app = Starlette(routes=[Route("/sse", stream)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    async with server:
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        await obey(listener.getsockname()[1], publish, server.drain)
    web.should_exit = True
    await serving


asyncio.run(main())
