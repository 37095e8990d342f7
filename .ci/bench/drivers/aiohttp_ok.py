"""aiohttp answering ``ok`` on asyncio's own loop: the measure of plain requests."""

import asyncio

from aiohttp import web
from pace import obey


async def answer(request):
    return web.Response(text="ok")


async def main():
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await obey(runner.addresses[0][1], None, None)
    await runner.cleanup()


asyncio.run(main())
