"""Many clients, in a few processes, and publishers of what they check.

Each client follows the stream, comes back when it is cut, and checks that the events are
the numbers from 1 on, in order, none twice, no gap.  It speaks HTTP/1.0, to which the
stream is sent without chunks around it, so that an event is whole when its empty line is
there.
"""

import asyncio
import contextlib
import ctypes
import multiprocessing.sharedctypes
import random
import re
import threading
import time
import urllib.request

import common
import redis
from common import PATIENCE, expect, until

# What counts in a stream: an event's number, or a gap.
WHAT_COUNTS = re.compile(rb"^data: (\d+)$|^event: gap$", re.MULTILINE)
CONNECTING = 200  # connections begun and not yet answered
RECONNECT_SECONDS = (0.2, 0.6)  # sooner than a browser: what is cut comes back at once
CATCH_UP_SECONDS = 120.0  # for the last client to have the last event


class State(ctypes.Structure):
    """The counts of a process of clients, which another one reads.

    "silent": holes that no gap had announced.
    """

    NAMES = ("open", "complete", "repeated", "missing", "gaps", "cut", "silent")
    _fields_ = [(name, ctypes.c_long) for name in NAMES]


class Client(asyncio.Protocol):
    """One stream, over as many connections as it takes."""

    def __init__(self, ports, target, total, state, room):
        self._ports, self._total = ports, total  # it comes back at any of the ports
        self._target = target
        self._state, self._room = state, room  # shared with the others
        self._last_id = ""
        self._gap = False  # since the last event
        self._expected = 1

    async def follow(self):
        while True:
            async with self._room:
                self._received, self._open = b"", False
                self._answered, self._lost = asyncio.Event(), asyncio.Event()
                try:
                    await asyncio.get_running_loop().create_connection(
                        lambda: self, "127.0.0.1", random.choice(self._ports)
                    )
                    await self._answered.wait()
                except OSError:
                    self._lost.set()
            await self._lost.wait()
            await asyncio.sleep(random.uniform(*RECONNECT_SECONDS))

    def connection_made(self, transport):
        self._transport = transport
        asked = {"last_id": self._last_id, "target": self._target}
        transport.write(common.request("1.0", **asked))

    def connection_lost(self, error):
        """Cut, refused, or the answer of a proxy whose servers are away."""
        self._state.open -= self._open
        self._state.cut += self._open
        self._answered.set()
        self._lost.set()

    def data_received(self, data):
        self._received += data
        if not self._open:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            # nginx, while no server is there, answers with an empty stream.
            if b" 200 " not in head.split(b"\r\n")[0]:
                self._transport.abort()
                return
            self._open, self._received = True, rest
            self._state.open += 1
            self._answered.set()
        whole, end, rest = self._received.rpartition(b"\n\n")
        if end:
            self._received = rest
            self._take(whole)

    def _take(self, events):
        ids = re.findall(rb"^id: (.*)$", events, re.MULTILINE)
        self._last_id = ids[-1].decode() if ids else self._last_id
        state = self._state
        for found in WHAT_COUNTS.finditer(events):
            if not found[1]:
                state.gaps += 1
                self._gap = True
                continue
            number = int(found[1])
            missing = number - self._expected
            state.silent += missing > 0 and not self._gap
            self._gap = False
            if missing < 0:
                state.repeated += 1
                continue
            state.missing += missing
            self._expected = number + 1
            state.complete += number == self._total


async def follow(clients, *what):
    room = asyncio.Semaphore(CONNECTING)
    await asyncio.gather(*(Client(*what, room).follow() for _ in range(clients)))


class Fleet:
    """The clients of several processes; their states are added up."""

    def __init__(self, processes, clients, total, ports, target="/sse"):
        common.raise_descriptor_limit()
        self.clients = processes * clients
        new_state = multiprocessing.sharedctypes.RawValue
        self._states = [new_state(State) for _ in range(processes)]
        what = ports, target, total
        run = lambda state: asyncio.run(follow(clients, *what, state))
        self._children = [common.Child(run, state) for state in self._states]

    def count(self, name):
        alive = all(child.process.is_alive() for child in self._children)
        expect(alive, "a process of clients ended")
        return sum(getattr(state, name) for state in self._states)

    def lives_through(self, publisher, incidents):
        """Until each client has all that is published meanwhile; the counts."""
        self.all("open")
        with publisher:
            incidents()
            publisher.reached(1)
        self.all("complete", CATCH_UP_SECONDS)
        return {name: self.count(name) for name in State.NAMES[2:]}

    def all(self, name, within=PATIENCE):
        until(
            lambda: self.count(name) == self.clients,
            lambda: f"{name} {self.count(name)} of {self.clients}",
            within,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self._children:
            child.process.kill()
            child.process.join()


class Publisher(threading.Thread):
    """Publishes the numbers to `total`, at a rate, through outages.

    After an error `newest` says which is the last that need not be published again.
    """

    failures = ()  # the errors that outages make

    def __init__(self, total, rate):
        super().__init__()
        self.total, self._rate = total, rate
        self._stopped = threading.Event()
        self.number = self.errors = 0

    def run(self):
        start = time.monotonic()
        while self.number < self.total and not self._stopped.is_set():
            due = start + self.number / self._rate
            self._stopped.wait(max(0, due - time.monotonic()))
            try:
                self.publish(self.number + 1)
                self.number += 1
            except self.failures:
                self.errors += 1
                self._stopped.wait(0.1)
                self.number = self.newest()

    def reached(self, share):
        """Wait until this share of the events is published."""
        number = share * self.total
        within = self.total / self._rate + PATIENCE
        until(lambda: self.number >= number, f"event {number:g}", within)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self.join()


def post(url, data):
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    request = urllib.request.Request(url, str(data).encode(), headers)
    urllib.request.urlopen(request, timeout=PATIENCE).close()


class Posting(Publisher):
    """One whose answer is lost may or may not have come: it is not repeated, and the
    origin's next start is announced by a gap."""

    failures = OSError

    def __init__(self, total, rate, url):
        super().__init__(total, rate)
        self._url = url

    def publish(self, number):
        post(self._url, number)

    def newest(self):
        last = self.number + 1 == self.total
        return self.number + (not last)  # that one is waited for


class Adding(Publisher):
    """Adds them to a stream of Redis.  An XADD whose answer was lost may or may not have
    happened, so after an error it looks at the end of the stream."""

    failures = redis.RedisError

    def __init__(self, total, rate):
        super().__init__(total, rate)
        how = {"decode_responses": True, "retry": None, "socket_timeout": PATIENCE}
        self._client = redis.Redis(**how)

    def publish(self, number):
        self._client.xadd("events", {"data": number})

    def newest(self):
        with contextlib.suppress(redis.RedisError):
            newest = self._client.xrevrange("events", count=1)
            return int(newest[0][1]["data"])
        return self.number
