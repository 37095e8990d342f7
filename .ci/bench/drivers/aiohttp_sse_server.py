"""aiohttp-sse in its usual manner: a queue for each client."""

import asyncio

from aiohttp import web
from aiohttp_sse import sse_response
from pace import obey

queues = []


async def stream(request):
    queue = asyncio.Queue()
    queues.append(queue)
    try:
        async with sse_response(request) as response:
            while response.is_connected():
                await response.send(await queue.get())
                queue.task_done()
    finally:
        queues.remove(queue)
    return response


def publish(datas, channel):
    for queue in queues:
        for data in datas:
            queue.put_nowait(data)


async def written():
    await queues[-1].join()


async def main():
    app = web.Application()
    app.router.add_get("/sse", stream)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await obey(runner.addresses[0][1], publish, written)
    await runner.cleanup()


asyncio.run(main())
