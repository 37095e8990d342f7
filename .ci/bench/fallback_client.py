"""client.c's work with the standard library alone, where there is no C compiler.

The same arguments, commands and answers; several times slower, so that with many
clients it is the client that is measured. Good enough to see that nothing is lost.
"""

import asyncio
import json
import re
import sys
import time

EVENT = re.compile(rb'(?:^|\n)data: ?"?(\d+) (\d+)')
GAP = re.compile(rb"(?:^|\n)event: gap\n")


class Load:
    """All connections, what they have seen, and the report that is waited for."""

    def __init__(self, port, connections, inflight, channels, path, header=None):
        self.port, self.wanted = int(port), int(connections)
        self.places = asyncio.Semaphore(int(inflight))
        self.channels, self.path, self.header = int(channels), path, header
        self.connections = []
        self.heads = 0
        self.closed = 0
        self.started = time.monotonic()
        self.changed = asyncio.Event()
        self.reset()

    def reset(self):
        self.latencies = []
        self.counts = dict.fromkeys(("events", "lost", "disordered", "gaps"), 0)
        self.firsts = []
        self.first_published = self.last_received = None

    async def connect_all(self):
        loop = asyncio.get_running_loop()
        for index in range(self.wanted):
            await self.places.acquire()
            _, connection = await loop.create_connection(
                lambda index=index: Connection(self, self.request(index)),
                *("127.0.0.1", self.port),
            )
            self.connections.append(connection)

    def request(self, index):
        channel = f"?channel=c{min(index, self.channels - 1)}" if self.channels else ""
        extra = self.header + "\r\n" if self.header else ""
        return (
            f"GET {self.path}{channel} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Accept: text/event-stream\r\n{extra}\r\n"
        ).encode()

    def got_head(self):
        self.heads += 1
        self.places.release()
        if self.heads == self.wanted:
            seconds = time.monotonic() - self.started
            say({"connected": self.heads, "seconds": seconds})

    def took(self, number, published, last):
        received = time.monotonic_ns()
        self.latencies.append(max(0, received - published))
        self.counts["events"] += 1
        self.first_published = min(self.first_published or published, published)
        self.last_received = received
        if not last:
            self.firsts.append(number)
        elif number > last + 1:
            self.counts["lost"] += number - last - 1
        elif number <= last:
            self.counts["disordered"] += 1

    async def report(self, number, wanted, timeout_ms):
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            reached = sum(c.last >= number for c in self.connections)
            left = deadline - time.monotonic()
            if reached >= wanted or left <= 0:
                break
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except asyncio.TimeoutError:
                continue
            await asyncio.sleep(0.005)  # counting each time would cost more
        say(self.summary(reached))

    def summary(self, reached):
        ordered = sorted(self.latencies)

        def percentile(part):
            return ordered[int(part * (len(ordered) - 1))] / 1000 if ordered else 0

        return {
            **self.counts,
            "closed": self.closed,
            "reached": reached,
            "first_low": min(self.firsts, default=0),
            "first_high": max(self.firsts, default=0),
            "span_s": (self.last_received - self.first_published) / 1e9
            if ordered
            else 0,
            "p50_us": percentile(0.50),
            "p99_us": percentile(0.99),
            "max_us": percentile(1),
        }


class Connection(asyncio.Protocol):
    """One stream: the head, then text with or without chunked framing."""

    def __init__(self, load, request):
        self.load, self.request = load, request
        self.raw = b""
        self.text = b""
        self.in_head, self.chunked = True, False
        self.last = 0

    def connection_made(self, transport):
        transport.write(self.request)

    def connection_lost(self, error):
        self.load.closed += 1
        if self.in_head:
            sys.exit(f"a connection ended before its head: {error}")

    def data_received(self, data):
        self.raw += data
        if self.in_head and not self.take_head():
            return
        more = self.dechunk() if self.chunked else self.take_raw()
        text = (self.text + more).replace(b"\r\n", b"\n")
        complete, separator, self.text = text.rpartition(b"\n\n")
        if separator:
            self.take_events(complete)

    def take_events(self, text):
        self.load.counts["gaps"] += len(GAP.findall(text))
        for number, published in EVENT.findall(text):
            self.load.took(int(number), int(published), self.last)
            self.last = int(number)
        self.load.changed.set()

    def take_head(self):
        head, separator, rest = self.raw.partition(b"\r\n\r\n")
        if not separator:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"not the head of a stream: {head[:200]!r}")
        self.chunked = b"transfer-encoding: chunked" in head.lower()
        self.in_head, self.raw = False, rest
        self.load.got_head()
        return True

    def take_raw(self):
        raw, self.raw = self.raw, b""
        return raw

    def dechunk(self):
        """The complete chunks received so far, without their framing."""
        parts, at = [], 0
        while True:
            line_end = self.raw.find(b"\r\n", at)
            if line_end < 0:
                break
            size = int(self.raw[at:line_end], 16)
            end = line_end + 2 + size
            if size == 0 or len(self.raw) < end + 2:
                break
            parts.append(self.raw[line_end + 2 : end])
            at = end + 2
        self.raw = self.raw[at:]
        return b"".join(parts)


def say(answer):
    print(json.dumps(answer), flush=True)


async def main(*arguments):
    load = Load(*arguments)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    await load.connect_all()
    while words := (await commands.readline()).decode().split():
        if words[0] == "reset":
            load.reset()
            say({})
        else:
            await load.report(*map(int, words[1:]))


asyncio.run(main(*sys.argv[1:]))
