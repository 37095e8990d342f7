"""Servers to be measured beside, each in its usual manner: peers.py NAME

bare       asyncio with nothing on top: one bytes object, one write for each open writer
starlette  sse-starlette on uvicorn: a generator over a queue for each client
body       the server of this repository as a body for Starlette's response: stream()
mounted    the server of this repository as an application that Starlette routes to
"""

import asyncio
import socket
import sys

from pace import obey

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
)


async def bare():
    writers = set()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        writers.add(writer)
        try:
            await reader.read()
        finally:
            writers.discard(writer)
            writer.close()

    def publish(datas, channel):
        payload = b"".join(b"data: %s\n\n" % data.encode() for data in datas)
        for writer in writers:
            writer.write(payload)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    await obey(port, publish, lambda: asyncio.sleep(0))


async def in_starlette(endpoint, publish, written):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Route

    app = Starlette(routes=[Route("/sse", endpoint)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await obey(listener.getsockname()[1], publish, written)
    server.should_exit = True
    await serving


async def starlette():
    from sse_starlette import EventSourceResponse

    queues = []

    async def events(queue):
        try:
            while True:
                yield {"data": await queue.get()}
                queue.task_done()
        finally:
            queues.remove(queue)

    async def endpoint(request):
        queues.append(asyncio.Queue())
        return EventSourceResponse(events(queues[-1]))

    def publish(datas, channel):
        for queue in queues:
            for data in datas:
                queue.put_nowait(data)

    await in_starlette(endpoint, publish, lambda: queues[-1].join())


async def ours(endpoint_of):
    from sse_server import SSEServer

    def publish(datas, channel):
        return [server.publish(data, channel=channel) for data in datas][-1]

    async with SSEServer(port=None) as server:
        await in_starlette(endpoint_of(server), publish, server.drain)


def body_of(server):
    from starlette.responses import StreamingResponse

    async def endpoint(request):
        last = request.headers.get("last-event-id")
        headers = server.stream_headers()
        return StreamingResponse(server.stream(last), headers=headers)

    return endpoint


asyncio.run(
    {
        "bare": bare,
        "starlette": starlette,
        "body": lambda: ours(body_of),
        "mounted": lambda: ours(lambda server: server),
    }[sys.argv[1]]()
)
