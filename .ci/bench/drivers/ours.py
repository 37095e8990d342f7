"""The server of this repository, publishing from a coroutine: ``ours.py [HISTORY [FILE]]``."""

import asyncio
import sys

from pace import obey

from sse_server import SSEServer


async def main(history=1000, file=None):
    how = {"history": int(history), **({"history_file": file} if file else {})}
    async with SSEServer("127.0.0.1", 0, **how) as server:

        def publish(datas, channel):
            for data in datas:
                last_id = server.publish(data, channel=channel)
            return last_id

        await obey(server.port, publish, lambda: server.drain(behind=True))


asyncio.run(main(*sys.argv[1:]))
