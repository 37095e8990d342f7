"""The server of this repository, publishing from a coroutine: ``ours.py [HISTORY]``."""

import asyncio
import sys

from pace import obey

from sse_server import SSEServer


async def main(history=1000):
    async with SSEServer("127.0.0.1", 0, history=history) as server:

        def publish(datas, channel):
            for data in datas:
                last_id = server.publish(data, channel=channel)
            return last_id

        await obey(server.port, publish, lambda: server.drain(behind=True))


asyncio.run(main(*map(int, sys.argv[1:])))
