"""python postgres_feed.py PORT: serves the table `events`."""

import asyncio
import logging
import sys

import psycopg

from feed import HISTORY, serve

NEWEST = """SELECT id, event, channel, data FROM events
            WHERE id > %s ORDER BY id DESC LIMIT %s"""


async def batches():
    last = None  # the newest event's id
    while True:
        try:
            # PGHOST, PGUSER and so on say where the database is.
            connection = await psycopg.AsyncConnection.connect(
                autocommit=True, tcp_user_timeout=15_000
            )
            async with connection:
                await connection.execute("LISTEN events")
                while True:
                    found = await connection.execute(NEWEST, (last or 0, HISTORY + 1))
                    rows = (await found.fetchall())[::-1]
                    names = ("id", "event", "channel", "data")
                    entries = [
                        dict(zip(names, (str(row[0]), *row[1:]))) for row in rows
                    ]
                    yield entries, last is not None and rows and rows[0][0] != last + 1
                    last = rows[-1][0] if rows else last
                    async for _ in connection.notifies(timeout=10, stop_after=1):
                        pass
        except psycopg.OperationalError as error:
            logging.warning("PostgreSQL: %s; trying again", error)
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(serve(batches(), int(sys.argv[1]), id_order=int))
