"""python relay_feed.py PORT URL: serves the stream at URL (the origin's /sse)."""

import asyncio
import logging
import os
import random
import sys

import httpx
from httpx_sse import SSEError, aconnect_sse

from feed import serve

RETAIN = os.environ.get("RETAIN", "").split(",")  # names of events to retain
SILENCE = float(os.environ.get("SILENCE", "45"))  # seconds, three of its heartbeats
EPOCHS = []  # of the origin; it has a new one after each start


async def batches():
    came, bell = [], asyncio.Event()
    following = asyncio.create_task(follow(came, bell))
    following.add_done_callback(lambda _: bell.set())
    await bell.wait()  # until it is connected
    await asyncio.sleep(1)  # until what the origin holds has come
    taken, came[:] = came[:], []
    yield [event for event in taken if event], False
    while not following.done():
        bell.clear()
        await bell.wait()
        taken, came[:] = came[:], []
        for event in taken:
            yield ([event], False) if event else ([], True)
    following.result()


async def follow(came, bell):
    """Append each event, or None for a gap.  Returns when the origin answers 204."""
    last, retry = "", 2.0
    limits = httpx.Timeout(10, read=SILENCE)
    async with httpx.AsyncClient(timeout=limits) as client:
        while True:
            how = {"headers": {"Last-Event-ID": last}} if last else {}
            how = how or {"params": {"replay": "all"}}
            try:
                async with aconnect_sse(client, "GET", sys.argv[2], **how) as stream:
                    if stream.response.status_code == 204:
                        return
                    stream.response.raise_for_status()
                    bell.set()
                    async for event in stream.aiter_sse():
                        retry = event.retry / 1000 if event.retry else retry
                        came.extend(relayed(event, last))
                        last = event.id or last
                        bell.set()
            except (httpx.HTTPError, SSEError) as error:
                logging.warning("the origin: %r; trying again", error)
            await asyncio.sleep(retry * random.uniform(0.5, 1.5))


def relayed(event, last):
    name = None if event.event == "message" else event.event
    if name == "gap":
        return [None]
    found = {"data": event.data, "event": name, "retain": name in RETAIN}
    if event.id in ("", last):  # retained by the origin, or without an id
        return [found] if name in RETAIN else []
    epoch = event.id.rpartition("-")[0]
    if epoch not in EPOCHS:
        EPOCHS.append(epoch)
    return [{**found, "id": event.id}]


def id_order(id):  # 3f9a1c02-17; an unknown epoch is later than all known ones
    epoch, _, number = id.rpartition("-")
    return EPOCHS.index(epoch) if epoch in EPOCHS else len(EPOCHS), int(number)


if __name__ == "__main__":
    asyncio.run(serve(batches(), int(sys.argv[1]), id_order))
