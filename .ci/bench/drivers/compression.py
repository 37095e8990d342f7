"""What compression saves and costs: ``compression.py CASE``.

sensor, log, table   1,000 plain and 1,000 compressed clients of two servers in turn: the
                     ratio of their bytes, and of the CPU per delivery
joins                1,000 compressed clients, 10 events a second, and 1, 10 and 100 more
                     who join each second, in as many events as that would take: the
                     ratio of all bytes
channels             10,000 channels with one compressed client each: KiB for each
turn                 a mebibyte that cannot be compressed: the longest turn in ms

Prints one line of JSON.  The clients are another process, which throws away what comes.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import time

from inside import Turns, clients

from sse_server import EVERYBODY, SSEServer

CLIENTS = 1000
EVENTS = 40  # in a window


def sensor(chance, number):
    """JSON of some 140 bytes."""
    return {
        "sensor": f"greenhouse-{number % 5}",
        "timestamp": f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:"
        f"{number % 60:02}.{chance.randrange(1000):03}Z",
        "temperature": round(chance.gauss(21, 0.5), 2),
        "humidity": round(chance.gauss(60, 5), 1),
        "battery": chance.randrange(60, 100),
    }


def log(chance, number):
    """A line of a web server, some 190 bytes."""
    path = chance.choice(("orders", "users", "items", "reports"))
    browser = chance.choice(("rv:140.0) Gecko/20100101 Firefox/140.0", "rv:128.0)"))
    return (
        f"10.0.{chance.randrange(4)}.{chance.randrange(250)} - - "
        f"[01/Jan/2026:12:{number // 60 % 60:02}:{number % 60:02} +0000] "
        f'"GET /api/{path}/{chance.randrange(10_000)} HTTP/1.1" '
        f"{chance.choice((200, 200, 200, 304, 404))} {chance.randrange(5000)} "
        f'"https://www.example.com/{path}" "Mozilla/5.0 (X11; Linux x86_64; {browser}"'
    )


ROWS = [
    {"id": n, "name": f"worker-{n}", "state": "running", "cpu": 0.0, "memory": 0}
    for n in range(54)
]


def table(chance, number):
    """A table of some 3.7 KB, of which a fifth changes each time."""
    for row in chance.sample(ROWS, 11):
        row["cpu"] = round(100 * chance.random(), 1)
        row["memory"] = chance.randrange(4096)
    return ROWS


async def windows(server, data, count):
    """CPU seconds and bytes for each delivery of so many windows of events."""
    found = []
    for _ in range(count):
        before = server.stats
        started = time.process_time()
        for _ in range(EVENTS):
            server.publish(next(data))
            await server.drain()
        cpu = time.process_time() - started
        deliveries = server.stats.events_written - before.events_written
        size = server.stats.bytes_written - before.bytes_written
        found.append((cpu / deliveries, size / deliveries))
    return found


def events_of(kind):
    chance = random.Random(1)
    number = 0
    while True:
        yield kind(chance, number)
        number += 1


async def beside_plain(kind, rounds=9):
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for asked, compress in (("live", False), ("gzip", True)):
            server = SSEServer("127.0.0.1", 0, compress=compress, heartbeat=None)
            await stack.enter_async_context(server)
            await stack.enter_async_context(clients(server, CLIENTS, asked))
            servers.append((server, events_of(kind)))
        for server, data in servers:
            await windows(server, data, 1)  # to warm up
        rows = []
        for _ in range(rounds):
            row = [(await windows(server, data, 1))[0] for server, data in servers]
            rows.append(row)
    plain, compressed = zip(*rows)
    return {
        "plain": mean(size for _, size in plain),
        "compressed": mean(size for _, size in compressed),
        "cpu_plain": median(cpu for cpu, _ in plain) * 1e6,
        "cpu_compressed": median(cpu for cpu, _ in compressed) * 1e6,
        "cpu": median(two / one for (one, _), (two, _) in zip(plain, compressed)),
        "ratio": mean(s for _, s in plain) / mean(s for _, s in compressed),
    }


async def joins():
    """Sensors' events; the joining stay for some fifty of them."""
    found = {}
    for a_second in (1, 10, 100):
        async with (
            SSEServer("127.0.0.1", 0, compress=True, heartbeat=None) as server,
            clients(server, CLIENTS, "gzip"),
        ):
            data, joined = events_of(sensor), []
            plain = count = owed = 0
            before = server.stats
            for _ in range(300):
                owed += a_second / 10
                while owed >= 1:
                    owed -= 1
                    joined.append(await join(server))
                    if len(joined) > 5 * a_second:
                        await leave(joined.pop(0))
                event = next(data)
                server.publish(event)
                await server.drain()
                count += 1
                text = json.dumps(event, separators=(",", ":"))
                plain += len(text) + len(f"id: 12345678-{count}\ndata: \n\n") + 6
            after = server.stats
            for writer in joined:
                await leave(writer)
        size = after.bytes_written - before.bytes_written
        deliveries = after.events_written - before.events_written
        found[str(a_second)] = plain / count / (size / deliveries)
    return found


async def join(server):
    """A client that has its stream, and lets what comes pile up in the kernel."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /sse HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    return writer


async def leave(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def channels():
    async with (
        SSEServer("127.0.0.1", 0, compress=True, heartbeat=None) as server,
        clients(server, 100, "gzip"),
    ):
        server.publish("x" * 1000, channel=EVERYBODY)
        await server.drain()
        before = resident_bytes()
        async with clients(server, 10_000, "channels"):
            for number in range(3):
                server.publish({"number": number}, channel=EVERYBODY)
                await server.drain()
            return {"kib": (resident_bytes() - before) / 10_000 / 1024}


async def turn():
    async with (
        SSEServer(
            "127.0.0.1", 0, compress=True, heartbeat=None, max_event_bytes=1 << 20
        ) as server,
        clients(server, 100, "gzip"),
    ):
        longest = []
        for _ in range(5):
            data = os.urandom(1 << 19).hex()
            server.publish("warm")
            await server.drain(behind=True)
            turns = Turns()
            server.publish(data)
            await server.drain(behind=True)
            longest.append(turns.end())
        return {"turn": median(longest) * 1e3}


def median(values):
    values = sorted(values)
    return values[len(values) // 2]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


MEASURES = {
    "sensor": lambda: beside_plain(sensor),
    "log": lambda: beside_plain(log),
    "table": lambda: beside_plain(table),
    "joins": joins,
    "channels": channels,
    "turn": turn,
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(MEASURES[sys.argv[1]]())))
