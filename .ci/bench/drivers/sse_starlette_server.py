"""sse-starlette on uvicorn in its usual manner: a generator over a queue."""

import asyncio
import socket

import uvicorn
from pace import obey
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

queues = []


async def events(queue):
    try:
        while True:
            yield {"data": await queue.get()}
            queue.task_done()
    finally:
        queues.remove(queue)


async def stream(request):
    queue = asyncio.Queue()
    queues.append(queue)
    return EventSourceResponse(events(queue))


def publish(datas, channel):
    for queue in queues:
        for data in datas:
            queue.put_nowait(data)


async def written():
    await queues[-1].join()


async def main():
    app = Starlette(routes=[Route("/sse", stream)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await obey(listener.getsockname()[1], publish, written)
    server.should_exit = True
    await serving


asyncio.run(main())
