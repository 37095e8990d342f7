"""Many clients in one process: each follows the stream, comes back when it is cut, and
checks that the events are the numbers from 1 on, in order, none twice, no gap.

usage: watchers.py '[[PORT, ...], CLIENTS, TOTAL]'

Prints its state as a line of JSON about twice a second, and ends with its input.
The clients speak HTTP/1.0, to which the stream is sent without chunks around it, so that
an event is whole when its empty line is there.
"""

import contextlib
import heapq
import json
import random
import re
import resource
import select
import socket
import sys
import time

# What counts in a stream: an event's number, or a gap.
WHAT_COUNTS = re.compile(rb"^data: (\d+)$|^event: gap$", re.MULTILINE)
REPORT_SECONDS = 0.5
CONNECTING = 200  # connections begun and not yet answered
RECONNECT_SECONDS = (0.2, 0.6)  # sooner than a browser: what is cut comes back at once


class Client:
    """One stream, over as many connections as it takes."""

    __slots__ = ("expected", "gap", "last_id", "open", "ports", "received", "socket")

    def __init__(self, ports):
        self.ports = ports  # it comes back at any of them
        self.socket = None
        self.open = False  # the head of the stream has come
        self.received = b""
        self.last_id = None
        self.gap = False  # since the last event
        self.expected = 1

    def connect(self):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", random.choice(self.ports)))

    def request(self):
        resume = b"Last-Event-ID: %b\r\n" % self.last_id if self.last_id else b""
        accept = b"Accept: text/event-stream\r\n"
        host = b"Host: localhost\r\n"
        self.socket.send(b"GET /sse HTTP/1.0\r\n%b%b%b\r\n" % (host, accept, resume))


class Watchers:
    """All the clients of this process, and what they saw."""

    def __init__(self, ports, clients, total):
        self._total = total
        self._epoll = select.epoll()
        self._clients = {}  # by descriptor
        self._due = [(0.0, number, Client(ports)) for number in range(clients)]
        self._order = clients  # breaks ties in the heap
        self._connecting = 0
        self.state = dict.fromkeys(
            ("open", "complete", "repeated", "missing", "gaps", "cut", "silent"), 0
        )  # "silent": holes that no gap had announced

    def run(self):
        report, due = 0.0, self._due
        while not select.select([sys.stdin], [], [], 0)[0]:
            now = time.monotonic()
            while due and due[0][0] <= now and self._connecting < CONNECTING:
                self._connect(heapq.heappop(due)[2])
            for descriptor, events in self._epoll.poll(0.02):
                self._handle(self._clients[descriptor], events)
            if now >= report:
                report = now + REPORT_SECONDS
                print(json.dumps(self.state), flush=True)

    def _connect(self, client):
        client.connect()
        self._connecting += 1
        self._clients[client.socket.fileno()] = client
        self._epoll.register(client.socket, select.EPOLLOUT)

    def _handle(self, client, events):
        try:
            if events & select.EPOLLOUT:
                client.request()
                self._epoll.modify(client.socket, select.EPOLLIN)
                return
            data = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(client)
            return
        client.received += data
        if not client.open and not self._head(client):
            return
        self._events(client)

    def _head(self, client):
        """Whether the head has come; then only the stream is left of what was received."""
        head, end, rest = client.received.partition(b"\r\n\r\n")
        if not end:
            return False
        # nginx, while no server is there, answers with an empty stream: it ends at once.
        if b" 200 " not in head.split(b"\r\n")[0]:
            self._lost(client)
            return False
        client.open = True
        client.received = rest
        self._connecting -= 1
        self.state["open"] += 1
        return True

    def _events(self, client):
        end = client.received.rfind(b"\n\n") + 2
        if end < 2:
            return
        whole, client.received = client.received[:end], client.received[end:]
        start = whole.rfind(b"id: ") + 4
        if start >= 4:
            client.last_id = whole[start : whole.index(b"\n", start)]
        for found in WHAT_COUNTS.finditer(whole):
            if not found[1]:
                self.state["gaps"] += 1
                client.gap = True
                continue
            number = int(found[1])
            if number > client.expected and not client.gap:
                self.state["silent"] += 1
            client.gap = False
            if number < client.expected:
                self.state["repeated"] += 1
                continue
            self.state["missing"] += number - client.expected
            client.expected = number + 1
            if number == self._total:
                self.state["complete"] += 1

    def _lost(self, client):
        """Cut, refused, or the answer of a proxy whose servers are away."""
        self._epoll.unregister(client.socket)
        del self._clients[client.socket.fileno()]
        client.socket.close()
        if client.open:
            self.state["open"] -= 1
            self.state["cut"] += 1
        else:
            self._connecting -= 1
        client.open = False
        client.received = b""
        self._order += 1
        due = time.monotonic() + random.uniform(*RECONNECT_SECONDS)
        heapq.heappush(self._due, (due, self._order, client))


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(BrokenPipeError):
        Watchers(*json.loads(sys.argv[1])).run()
