"""What compression saves and costs: ``compression.py CASE``.

sensor, log, table   1,000 plain and 1,000 compressed clients of two servers in turn: the
                     ratio of their bytes, and of the CPU per delivery
joins                1,000 compressed clients, 10 events a second, and 10 more who join
                     each second: the ratio of all bytes
nginx                1,000 clients of a plain server behind an nginx with `gzip on`: bytes
                     of a sensor's event for each client; CPU per delivery and KiB for
                     each client, of the server and of nginx together

Prints one line of JSON.  The clients are another process, which throws away what comes.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import selectors
import socket
import statistics
import sys
import tempfile
import time

from sse_server import SSEServer

GET = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
GZIP = b"Accept-Encoding: gzip\r\n"
CLIENTS = 1000
EVENTS = 40  # in a window
WINDOWS = 9


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


def events_of(kind):
    chance, number = random.Random(1), 0
    while True:
        yield kind(chance, number)
        number += 1


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
async def clients(server, number, field, port=None):
    """So many streams, open; another process, on another core, reads them."""
    expected = server.stats.live + number
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # for the child
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "clients", str(port or server.port), str(number)),
        field.decode(),
    )
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


async def beside_plain(kind):
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for field, compress in ((b"", False), (GZIP, True)):
            server = SSEServer("127.0.0.1", 0, compress=compress, heartbeat=None)
            await stack.enter_async_context(server)
            before = resident_bytes()
            await stack.enter_async_context(clients(server, CLIENTS, field))
            servers.append((server, events_of(kind)))
            await window(*servers[-1])
            kib = (resident_bytes() - before) / CLIENTS / 1024
        rows = [[await window(*server) for server in servers] for _ in range(WINDOWS)]
    plain, coded = zip(*rows)
    sizes = [statistics.mean(size for _, size in column) for column in (plain, coded)]
    cpu = [statistics.median(cpu for cpu, _ in column) for column in (plain, coded)]
    return {
        "kib": kib,
        "plain": sizes[0],
        "compressed": sizes[1],
        "cpu_plain": cpu[0] * 1e6,
        "cpu_compressed": cpu[1] * 1e6,
        "cpu": statistics.median(two / one for (one, _), (two, _) in rows),
        "ratio": sizes[0] / sizes[1],
    }


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


def resident_bytes(process="self"):
    with open(f"/proc/{process}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def cpu_seconds(process="self"):
    with open(f"/proc/{process}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


NGINX = """
daemon off;
worker_processes 1;
error_log error.log;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    gzip on;
    gzip_types text/event-stream;
    gzip_min_length 0;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host localhost;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def nginx_before(server):
    """Its port and its worker's process."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        configuration = pathlib.Path(folder, "nginx.conf")
        configuration.write_text(NGINX.format(port=port, upstream=server.port))
        process = await asyncio.create_subprocess_exec(
            *("nginx", "-p", folder, "-e", "error.log", "-c", str(configuration)),
            env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"},
        )
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        try:
            await asyncio.sleep(1)  # until its worker is there
            yield port, pathlib.Path(children).read_text("ascii").split()[0]
        finally:
            process.terminate()
            await process.wait()


async def nginx():
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(SSEServer("127.0.0.1", 0, heartbeat=None))
        port, worker = await enter(nginx_before(server))
        received = [0]
        counting = asyncio.create_task(count_bytes(port, received))
        stack.callback(counting.cancel)
        await enter(clients(server, 10, GZIP, port))
        used = lambda measure: measure(worker) + measure()
        before = used(resident_bytes)
        await enter(clients(server, CLIENTS, GZIP, port))
        data = events_of(sensor)
        await window(server, data)
        await asyncio.sleep(1)  # nginx has passed all on
        size, written, cpu = received[0], server.stats.events_written, used(cpu_seconds)
        for _ in range(WINDOWS):
            await window(server, data)
        await asyncio.sleep(2)  # nginx has passed all on
        deliveries = server.stats.events_written - written
        return {
            "cpu": (used(cpu_seconds) - cpu) / deliveries * 1e6,
            "kib": (used(resident_bytes) - before) / CLIENTS / 1024,
            "compressed": (received[0] - size) / (WINDOWS * EVENTS),
        }


async def count_bytes(port, received):
    """Be a client that counts the bytes that it receives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % GZIP)
    while data := await reader.read(1 << 16):
        received[0] += len(data)


if __name__ == "__main__":
    if sys.argv[1] == "clients":
        read_all(*sys.argv[2:])
    else:
        kinds = {kind.__name__: kind for kind in (sensor, log, table)}
        measures = {"joins": joins, "nginx": nginx}
        case = sys.argv[1]
        measured = measures[case]() if case in measures else beside_plain(kinds[case])
        print(json.dumps(asyncio.run(measured)))
