"""Serve one log from any number of processes."""

import asyncio
import logging

from sse_server import SSEServer

HISTORY = 5000  # events held for clients that resume; the log must keep more


def publish(server, entries, lost):
    if lost:
        logging.warning("events are missing; all clients are told of a gap")
        server.publish_gap("trimmed")
    for entry in entries:
        try:
            server.publish(**entry)
        except (TypeError, ValueError) as error:
            logging.error("skipped %s: %s", entry["id"], error)


async def serve(batches, port, id_order):
    server = SSEServer(port=port, history=HISTORY, reuse_port=True, id_order=id_order)
    publish(server, *await anext(batches))  # before clients may connect
    async with server:
        logging.warning("serving %s from %s on", server.url, server.last_event_id)
        loop = asyncio.get_running_loop()
        following = loop.create_task(follow(server, batches))
        serving = loop.create_task(server.serve_forever())
        await asyncio.wait([following, serving], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()  # raises what ended it


async def follow(server, batches):
    async for batch in batches:
        publish(server, *batch)
