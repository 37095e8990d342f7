"""Many clients, in a few processes, and publishers of what they check.

Each client follows the stream, comes back when it is cut, and checks that the events are
the numbers from 1 on, in order, none twice, no gap.  (They speak HTTP/1.0: a proxy may
cut chunks anew.)
"""

import contextlib
import ctypes
import multiprocessing.sharedctypes
import random
import selectors
import threading
import time
import urllib.request

import common
import redis
from common import PATIENCE, expect, until

RECONNECT_SECONDS = (0.2, 0.6)  # sooner than a browser: what is cut comes back at once
CATCH_UP_SECONDS = 120.0  # for the last client to have the last event


class State(ctypes.Structure):
    """The counts of a process of clients, which another one reads.

    "silent": holes that no gap had announced.
    """

    NAMES = ("open", "complete", "repeated", "missing", "gaps", "cut", "silent")
    _fields_ = [(name, ctypes.c_long) for name in NAMES]


class Client:
    """One stream, over as many connections as it takes."""

    def __init__(self, ports, target, total, state):
        self._ports, self._total = ports, total  # it comes back at any of the ports
        self._target, self._state = target, state  # the latter shared with the others
        self._last_id, self._open = "", False
        self._gap = False  # since the last event
        self._expected = 1
        self.due = 0.0  # when it connects again

    def connect(self):
        address, asked = ("127.0.0.1", random.choice(self._ports)), {"version": "1.0"}
        asked.update(last_id=self._last_id, target=self._target)
        self.connection = common.Client(address, PATIENCE, **asked)
        self.connection.socket.setblocking(False)
        return self.connection.socket

    def read(self):
        """Take what has come; false at the end of the connection."""
        stream = self.connection.stream
        try:
            for event in self.connection.receive():
                self._take(*event)
            self._last_id = stream.decoder.last_id
            self._state.open += stream.opened - self._open
            self._open = stream.opened
        except BlockingIOError:
            pass
        except (EOFError, OSError, ValueError) as error:
            if stream.opened and isinstance(error, ValueError):
                raise  # what has come is no stream of ours
            # Cut, refused, or the answer of a proxy whose servers are away.
            self._state.open -= self._open
            self._state.cut += self._open
            self._open = False
            self.due = time.monotonic() + random.uniform(*RECONNECT_SECONDS)
            return False
        return True

    def _take(self, id, name, data):
        state = self._state
        if name == "gap":
            state.gaps += 1
            self._gap = True
            return
        missing = int(data) - self._expected
        if missing < 0:
            state.repeated += 1
            return
        state.silent += missing > 0 and not self._gap
        state.missing += missing
        state.complete += int(data) == self._total
        self._expected, self._gap = int(data) + 1, False


def follow(clients, *what):
    selector = selectors.DefaultSelector()
    away = [Client(*what) for _ in range(clients)]
    while True:
        now = time.monotonic()
        for client in [one for one in away if one.due <= now]:
            client.due = now + random.uniform(*RECONNECT_SECONDS)
            with contextlib.suppress(OSError):
                selector.register(client.connect(), selectors.EVENT_READ, client)
                away.remove(client)
        for key, _ in selector.select(0.05):
            if not key.data.read():
                selector.unregister(key.fileobj)
                key.fileobj.close()
                away.append(key.data)


class Fleet:
    """The clients of several processes; their states are added up."""

    def __init__(self, processes, clients, total, ports, target="/sse"):
        common.raise_descriptor_limit()
        self.clients = processes * clients
        new_state = multiprocessing.sharedctypes.RawValue
        self._states = [new_state(State) for _ in range(processes)]
        what = follow, clients, ports, target, total
        self._children = [common.Child(*what, state) for state in self._states]

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
