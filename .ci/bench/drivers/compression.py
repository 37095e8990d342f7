"""What compression saves and costs: ``compression.py CASE``.

sensor, log, table   1,000 plain and 1,000 compressed clients of two servers in turn: the
                     ratio of their bytes, and of the CPU per delivery
joins                1,000 compressed clients, 10 events a second, and 1, 10 and 100 more
                     who join each second, in as many events as that would take: the
                     ratio of all bytes
channels             10,000 channels with one client each: KiB for each
channels, gzip       the same, compressed
nginx                1,000 clients of a plain server behind an nginx with `gzip on`: bytes
                     of a sensor's event for each client; CPU per delivery and KiB for
                     each client, of the server and of nginx
turn                 a mebibyte that cannot be compressed: the longest turn in ms

Prints one line of JSON.  The clients are another process, which throws away what comes.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import socket
import sys
import tempfile
import time

from inside import Turns, clients

from sse_server import EVERYBODY, SSEServer

GET_GZIP = b"GET /sse HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"
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
            before = resident_bytes()
            await stack.enter_async_context(clients(server, CLIENTS, asked))
            servers.append((server, events_of(kind)))
            await windows(*servers[-1], 1)
            kib = (resident_bytes() - before) / CLIENTS / 1024
        rows = []
        for _ in range(rounds):
            row = [(await windows(server, data, 1))[0] for server, data in servers]
            rows.append(row)
    plain, compressed = zip(*rows)
    return {
        "kib": kib,
        "plain": mean(size for _, size in plain),
        "compressed": mean(size for _, size in compressed),
        "cpu_plain": median(cpu for cpu, _ in plain) * 1e6,
        "cpu_compressed": median(cpu for cpu, _ in compressed) * 1e6,
        "cpu": median(two / one for (one, _), (two, _) in zip(plain, compressed)),
        "ratio": mean(s for _, s in plain) / mean(s for _, s in compressed),
    }


def median(values):
    values = sorted(values)
    return values[len(values) // 2]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


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
    writer.write(GET_GZIP)
    await reader.readuntil(b"\r\n\r\n")
    return writer


async def leave(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


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
    with socket.socket() as sock, tempfile.TemporaryDirectory() as folder:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
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


class Behind:
    """A server as its clients see it, who come by way of another port."""

    def __init__(self, server, port):
        self._server = server
        self.port = port

    @property
    def stats(self):
        return self._server.stats


async def nginx():
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(SSEServer("127.0.0.1", 0, heartbeat=None))
        port, worker = await enter(nginx_before(server))
        behind = Behind(server, port)
        received = [0]
        counting = asyncio.create_task(count_bytes(port, received))
        stack.callback(counting.cancel)
        await enter(clients(behind, 10, "gzip"))
        memory = resident_bytes(worker), resident_bytes()
        await enter(clients(behind, CLIENTS, "gzip"))
        data = events_of(sensor)
        await windows(server, data, 1)
        await asyncio.sleep(1)  # nginx has passed all on
        cpu = cpu_seconds(worker), cpu_seconds()
        size, before = received[0], server.stats.events_written
        await windows(server, data, 9)
        await asyncio.sleep(2)  # nginx has passed all on
        deliveries = server.stats.events_written - before
        return {
            "cpu_nginx": (cpu_seconds(worker) - cpu[0]) / deliveries * 1e6,
            "cpu_server": (cpu_seconds() - cpu[1]) / deliveries * 1e6,
            "kib_nginx": (resident_bytes(worker) - memory[0]) / CLIENTS / 1024,
            "kib_server": (resident_bytes() - memory[1]) / CLIENTS / 1024,
            "compressed": (received[0] - size) / (9 * EVENTS),
        }


async def count_bytes(port, received):
    """Be a client that counts the bytes that it receives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET_GZIP)
    while data := await reader.read(1 << 16):
        received[0] += len(data)


async def channels(kind):
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = SSEServer("127.0.0.1", 0, compress=True, heartbeat=None)
        await enter(server)
        await enter(clients(server, 100, kind.replace("channels", "live")))
        server.publish("x" * 1000, channel=EVERYBODY)
        await server.drain()
        before = resident_bytes()
        await enter(clients(server, 10_000, kind))
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


MEASURES = {
    "sensor": lambda: beside_plain(sensor),
    "log": lambda: beside_plain(log),
    "table": lambda: beside_plain(table),
    "joins": joins,
    "channels": lambda: channels("channels"),
    "channels, gzip": lambda: channels("channels, gzip"),
    "nginx": nginx,
    "turn": turn,
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(MEASURES[sys.argv[1]]())))
