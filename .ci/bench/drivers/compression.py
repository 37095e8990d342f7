"""What compression saves and costs: ``compression.py CASE WINDOWS``.

sensor, log, table   1,000 plain and 1,000 compressed clients of two servers in turn: the
                     ratio of their bytes, and of the CPU per delivery
joins                1,000 compressed clients, 10 events a second, and 10 more who join
                     each second: the ratio of all bytes

Prints one line of JSON.  The clients are another process, which throws away what comes.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import selectors
import socket
import statistics
import sys
import time

from sse_server import SSEServer

GET = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
GZIP = b"Accept-Encoding: gzip\r\n"
CLIENTS = 1000
EVENTS = 40  # in a window


def sensor(chance, number):
    """JSON of some 140 bytes."""
    clock = f"{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
    return {
        "sensor": f"greenhouse-{number % 5}",
        "timestamp": f"2026-01-01T{clock}.{chance.randrange(1000):03}Z",
        "temperature": round(chance.gauss(21, 0.5), 2),
        "humidity": round(chance.gauss(60, 5), 1),
        "battery": chance.randrange(60, 100),
    }


def log(chance, number):
    """A line of a web server, some 190 bytes."""
    path = chance.choice(("orders", "users", "items", "reports"))
    browser = chance.choice(("rv:140.0) Gecko/20100101 Firefox/140.0", "rv:128.0)"))
    host = f"10.0.{chance.randrange(4)}.{chance.randrange(250)}"
    time = f"01/Jan/2026:12:{number // 60 % 60:02}:{number % 60:02} +0000"
    asked = f"GET /api/{path}/{chance.randrange(10_000)} HTTP/1.1"
    answer = f"{chance.choice((200, 200, 200, 304, 404))} {chance.randrange(5000)}"
    agent = f"Mozilla/5.0 (X11; Linux x86_64; {browser}"
    return (
        f'{host} - - [{time}] "{asked}" {answer} "https://www.example.com/{path}" '
        f'"{agent}"'
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


def events_of(kind):
    chance = random.Random(1)
    return (kind(chance, number) for number in itertools.count())


async def window(server, data):
    """CPU seconds and bytes for each delivery of some events."""
    before, started = server.stats, time.process_time()
    for _ in range(EVENTS):
        server.publish(next(data))
        await server.drain()
    cpu = time.process_time() - started
    deliveries = server.stats.events_written - before.events_written
    size = server.stats.bytes_written - before.bytes_written
    return cpu / deliveries, size / deliveries


@contextlib.asynccontextmanager
async def clients(server, number, field):
    """So many streams, open; another process, on another core, reads them."""
    expected = server.stats.live + number
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # for the child
    asked = "clients", str(server.port), str(number), field.decode()
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *asked)
    os.sched_setaffinity(0, cores)
    try:
        while server.stats.live < expected:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # until the last of them is done with opening
        yield
    finally:
        process.kill()
        await process.wait()


def read_all(port, number, field):
    """Open the streams and throw away what comes, until this process is killed."""
    selector = selectors.DefaultSelector()
    for _ in range(int(number)):
        sock = socket.create_connection(("127.0.0.1", int(port)))
        sock.sendall(GET % field.encode())
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if not key.fileobj.recv(1 << 20):
                selector.unregister(key.fileobj)


async def beside_plain(kind, windows):
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for field, compress in ((b"", False), (GZIP, True)):
            server = SSEServer("127.0.0.1", 0, compress=compress, heartbeat=None)
            await stack.enter_async_context(server)
            await stack.enter_async_context(clients(server, CLIENTS, field))
            servers.append((server, events_of(kind)))
            await window(*servers[-1])
        rows = [[await window(*server) for server in servers] for _ in range(windows)]
    plain, coded = zip(*rows)
    sizes = [statistics.mean(size for _, size in column) for column in (plain, coded)]
    cpu = statistics.median(two / one for (one, _), (two, _) in rows)
    ratio = sizes[0] / sizes[1]
    return {"plain": sizes[0], "compressed": sizes[1], "ratio": ratio, "cpu": cpu}


async def joins():
    """The joining stay for some fifty of the sensor's events."""
    async with (
        SSEServer("127.0.0.1", 0, compress=True, heartbeat=None) as server,
        clients(server, CLIENTS, GZIP),
    ):
        data, joined, plain, before = events_of(sensor), [], 0, server.stats
        for count in range(1, 301):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(GET % GZIP)
            await reader.readuntil(b"\r\n\r\n")
            joined.append(writer)
            if len(joined) > 50:
                joined.pop(0).close()
            event = next(data)
            server.publish(event)
            await server.drain()
            text = json.dumps(event, separators=(",", ":"))
            plain += len(f"id: 12345678-{count}\ndata: {text}\n\n") + 6
        size = server.stats.bytes_written - before.bytes_written
        deliveries = server.stats.events_written - before.events_written
        for writer in joined:
            writer.close()
        return {"ratio": plain / 300 / (size / deliveries)}


if __name__ == "__main__":
    if sys.argv[1] == "clients":
        read_all(*sys.argv[2:])
    else:
        cases = {case.__name__: case for case in (sensor, log, table, joins)}
        case, windows = cases[sys.argv[1]], int(sys.argv[2])
        measured = joins() if case is joins else beside_plain(case, windows)
        print(json.dumps(asyncio.run(measured)))
