"""What is measured within the server's process: ``inside.py CASE``.

routing   1,000 streams of 100 channels each out of 1,000, and one event to each of the
          channels at once: CPU per delivery, and the longest turn of the event loop
ahead     1,000 live streams: CPU per event while 500 more wait for an event to come, to
          that without them
retained  1,000 live streams, and 1,000 retained events of 1 KiB: CPU per delivery, to
          that with none retained; the time in which 99 of 100 events are written to all
          live streams while 500 more arrive (ARRIVALS times), to the usual one
snapshot  the KiB for each of 100 streams that read nothing of 16 MB that are retained

Prints one line of JSON.  The clients are another process, which throws away what comes.
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import selectors
import socket
import sys
import time

from sse_server import SSEServer

CHANNELS = 1000
EVENTS = 60
# The server and its clients each keep to one, so that it never waits for theirs.
CORES = sorted(os.sched_getaffinity(0))
ARRIVALS = 5  # during one of them, only some 27 events are published


async def routing(server):
    async with clients(server, 1000, "routing"):
        gc.collect()  # what a thousand new streams leave to it is not the events' cost
        before = time.process_time()
        for number in range(CHANNELS):
            server.publish("x" * 100, channel=f"c{number}")
        turns = Turns()
        await server.drain(behind=True)
        deliveries = server.stats.events_written
        cpu = time.process_time() - before
        return {"cpu": cpu / deliveries * 1e6, "turn": turns.end() * 1e3}


async def ahead(server):
    async with clients(server, 1000, "live"):
        alone = await cost_of_events(server)
        async with clients(server, 500, "ahead"):
            return {"ratio": await cost_of_events(server) / alone}


async def cost_of_events(server):
    """CPU seconds for EVENTS events, one after the other."""
    before = time.process_time()
    for _ in range(EVENTS):
        server.publish("x" * 100, id=str(server.stats.published + 1))
        await server.drain()
    return time.process_time() - before


def retain(server, events, size):
    for number in range(events):
        server.publish("x" * size, event=f"name {number}", retain=True)


async def retained(server):
    async with clients(server, 1000, "live"):
        await cost_of_events(server)  # to warm up
        ratios = []
        for _ in range(5):
            retain(server, 1000, 1024)
            await server.drain(behind=True)
            await asyncio.sleep(1)  # until the clients have read it
            await cost_of_events(server)  # the first events after that cost more
            with_retained = await cost_of_events(server)
            for number in range(1000):
                server.forget(f"name {number}")
            ratios.append(with_retained / await cost_of_events(server))
        retain(server, 1000, 1024)
        await server.drain(behind=True)
        usual = await times_of_events(server, asyncio.sleep(3))
        meanwhile = []
        for _ in range(ARRIVALS):
            async with crowd(server, 500, "live") as arrive:
                meanwhile += await times_of_events(server, arrive())
        p99 = slowest(meanwhile) / slowest(usual)
    return {"cost": sorted(ratios)[2], "p99": p99}


async def times_of_events(server, during):
    """The seconds until each event is written, one each 20 ms, in the meantime."""
    waiting = asyncio.ensure_future(during)
    seconds = []
    while not waiting.done():
        before = time.monotonic()
        server.publish("x" * 100)
        await server.drain()
        seconds.append(time.monotonic() - before)
        await asyncio.sleep(0.02)
    return seconds


def slowest(seconds):
    """The seconds in which 99 of 100 events are written."""
    return sorted(seconds)[int(0.99 * len(seconds))]


async def snapshot(server):
    retain(server, 1000, 16_000)
    before = resident_kib()
    async with clients(server, 100, "asleep"):
        return {"kib": (resident_kib() - before) / 100}


def resident_kib():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4


class Turns:
    """Notes the most CPU time that the event loop's thread took for one turn."""

    def __init__(self):
        self._longest = 0.0
        self._loop = asyncio.get_running_loop()
        self._last = time.thread_time()
        self._handle = self._loop.call_soon(self._look)

    def _look(self):
        now = time.thread_time()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._handle = self._loop.call_soon(self._look)

    def end(self):
        self._handle.cancel()
        return self._longest


@contextlib.asynccontextmanager
async def clients(server, number, kind):
    """So many streams, open; another process reads them."""
    async with crowd(server, number, kind) as arrive:
        await arrive()
        yield


@contextlib.asynccontextmanager
async def crowd(server, number, kind):
    """A process of clients, and the coroutine function that lets them arrive."""
    os.sched_setaffinity(0, CORES[:1])  # for the child
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "clients", str(server.port), str(number), kind),
        stdin=asyncio.subprocess.PIPE,
    )
    os.sched_setaffinity(0, CORES[-1:])

    async def arrive():
        expected = server.stats.live + server.stats.behind + number
        process.stdin.write(b"arrive\n")
        while server.stats.live + server.stats.behind < expected:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # until the last of them is done with opening

    try:
        yield arrive
    finally:
        process.kill()
        await process.wait()


def read_all(port, number, kind):
    """Open the streams and throw away what comes, until this process is killed."""
    sys.stdin.readline()
    chance = random.Random(1)
    selector = selectors.DefaultSelector()
    for index in range(number):
        target, field = "/sse", ""
        if kind.startswith("channels"):
            target += f"?channel=c{index}"
        if kind.endswith("gzip"):
            field = "Accept-Encoding: gzip\r\n"
        if kind == "routing":
            chosen = chance.sample(range(CHANNELS), 100)
            target += "?" + "&".join(f"channel=c{channel}" for channel in chosen)
        if kind == "ahead":
            field = "Last-Event-ID: 1000000\r\n"
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n".encode()
        )
        selector.register(sock, selectors.EVENT_READ)
    while True:
        if kind == "asleep":
            time.sleep(60)
            continue
        for key, _ in selector.select():
            if not key.fileobj.recv(1 << 20):
                selector.unregister(key.fileobj)


async def main(measure):
    order = {"id_order": int} if measure is ahead else {}
    async with SSEServer("127.0.0.1", 0, history_bytes=1 << 26, **order) as server:
        print(json.dumps(await measure(server)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "clients":
        read_all(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        cases = (routing, ahead, retained, snapshot)
        os.sched_setaffinity(0, CORES[-1:])
        asyncio.run(main({case.__name__: case for case in cases}[sys.argv[1]]))
