"""python redis_feed.py PORT: serves the Redis stream `events`."""

import asyncio
import logging
import os
import sys

import redis.asyncio as redis

from feed import HISTORY, serve

URL = os.environ.get("REDIS_URL", "redis://localhost")


async def batches():
    client = redis.from_url(
        URL, decode_responses=True, encoding_errors="replace", socket_timeout=15
    )
    last, seen = "0-0", None  # the newest entry's id; how many were added until it
    while True:
        try:
            async with client.pipeline(transaction=True) as moment:
                moment.xrevrange("events", "+", f"({last}", HISTORY + 1)
                moment.xinfo_stream("events")
                found, info = await moment.execute(raise_on_error=False)
            # Without a stream there is no information: nothing was ever added.
            added = info["entries-added"] if isinstance(info, dict) else 0
            entries = [entry(id, fields) for id, fields in reversed(found)]
            yield entries, seen is not None and seen + len(entries) != added
            last, seen = found[0][0] if found else last, added
            await client.xread({"events": last}, count=1, block=10_000)
        except redis.RedisError as error:
            logging.warning("Redis: %s; trying again", error)
            await asyncio.sleep(0.5)


def entry(id, fields):
    """Return the arguments of publish(); fields of other programs are ignored."""
    found = {k: fields[k] for k in ("data", "event", "channel") if k in fields}
    return {**found, "id": id, "retain": fields.get("retain") == "1"}


def id_order(id):  # 1732276800000-0
    return tuple(map(int, id.split("-")))


if __name__ == "__main__":
    asyncio.run(serve(batches(), int(sys.argv[1]), id_order))
