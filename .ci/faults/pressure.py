#!/usr/bin/env python3
"""Pressure: eight threads publish as fast as they can, no history, events of the limit,
the clock set back, twenty servers in one process.

usage: pressure.py [--seed N] [--python PYTHON]
"""

import json
import multiprocessing
import selectors
import sys
import threading
import time

import harness

sys.path.insert(0, str(harness.MODULE.parent))
import sse_server

THREADS = 8
LOG_BYTES = harness.MIB
RACES = [(0, 20_000, 100), (1, 20_000, 100), (1000, 150, 1500)]  # clients, events, size
CONNECTION_BYTES = 140 * harness.KIB  # 64 KiB unsent, a batch of 64 KiB, the objects


class Reader:
    """Knows from the ids what it must be given next, and from the data each thread."""

    def __init__(self, address):
        self.client = harness.Client(address).open()
        self.number = 0  # of the last event
        self.events = self.gaps = 0
        self._threads = [-1] * THREADS
        self._lost = False  # a gap was announced right before

    def receive(self):
        """What was wrong with what came now, or None."""
        received = self.client.socket.recv(256 * harness.KIB)
        if not received:
            return "the stream ended"
        for event_id, name, data in self.client.stream.feed(received):
            number = int(event_id.rpartition("-")[2])
            fault = self._gap(number) if name == "gap" else self._event(number, data)
            if fault:
                return fault
        return None

    def _gap(self, number):
        good = number > self.number and not self._lost
        self.gaps += 1
        fault = None if good else f"gap at {number} after {self.number}"
        self.number, self._lost = number, True
        return fault

    def _event(self, number, data):
        if number != self.number + 1:
            return f"{number} after {self.number}"
        thread, count, _ = data.split(b" ", 2)
        last = self._threads[int(thread)]
        good = int(count) > last if self.gaps else int(count) == last + 1
        if not good:
            return f"{count} after {last} of thread {thread}"
        self._threads[int(thread)] = int(count)
        self.number, self._lost = number, False
        self.events += 1
        return None


def read_until(address, count, last, results):
    """Readers in this process, until each has the last event or a fault."""
    readers = [Reader(address) for _ in range(count)]
    selector = selectors.DefaultSelector()
    for reader in readers:
        selector.register(reader.client.socket, selectors.EVENT_READ, reader)
    results.put("open")
    faults = []
    deadline = time.monotonic() + 60
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            fault = key.data.receive()
            if fault or key.data.number >= last:
                selector.unregister(key.fileobj)
                faults += [fault] if fault else []
    faults += ["did not get the last event"] * len(selector.get_map())
    events = sum(reader.events for reader in readers)
    results.put((faults, events, sum(reader.gaps for reader in readers)))


def check_race(report, python, clients, events, size):
    name = f"{THREADS} threads x {events} events, {clients} clients"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with harness.Server(python, history_bytes=LOG_BYTES) as server:
        last = THREADS * events
        reading = None
        if clients:
            reading = context.Process(
                target=read_until, args=(server.address, clients, last, results)
            )
            reading.start()
            results.get(timeout=60)
        before = server.ask("usage")
        race = server.ask("race", threads=THREADS, events=events, size=size)
        report.note(f"{last / race['seconds']:.0f} events/s published")
        if reading:
            faults, seen, gaps = results.get(timeout=90)
            reading.join()
            for fault in faults[:5]:
                report.note(fault)
            report.check(
                f"{name}: each thread's order, nothing lost unannounced",
                not faults,
                f"{len(faults)} wrong; {seen} deliveries, {gaps} gaps",
            )
        grown = race["peak"] - before["rss"]
        bound = LOG_BYTES + clients * CONNECTION_BYTES + 8 * harness.MIB
        report.check(
            f"{name}: memory is bounded",
            grown <= bound,
            f"grew by {grown >> 10} KiB, bound {bound >> 10} KiB",
        )
        published = server.ask("stats")["published"]
        report.check(f"{name}: all published", published == last, f"{published}")


def here(server):
    return ("127.0.0.1", server.port)


def local(**options):
    return sse_server.SSEServer("127.0.0.1", 0, **options)


def check_no_history(report):
    with local(history=0) as server:
        client = harness.Client(here(server)).open()
        ids = [server.publish(str(number)) for number in range(100)]
        got = [client.next()[2] for _ in range(100)]
        live = got == [b"%d" % number for number in range(100)]
        upto = harness.Client(here(server), last_id=ids[-1]).open()
        missed = harness.Client(here(server), last_id=ids[-2]).open()
        gap = missed.next()
        server.publish("new")
        report.check(
            "no history: live, resumed without a gap, resumed with one",
            live
            and gap[1] == "gap"
            and json.loads(gap[2]) == {"reason": "history"}
            and [c.next()[2] for c in (client, upto, missed)] == [b"new"] * 3,
            f"{len(got)} live, gap {gap[2].decode()}",
        )
        for each in (client, upto, missed):
            each.close()


def check_limit(report):
    """Exactly the limit goes, one above does not; bytes count, not characters."""
    limit = harness.MIB
    with local() as server:
        client = harness.Client(here(server)).open()
        fitting = ["x" * limit, "\u00e9" * (limit // 2), "\n" * (limit - 1) + "x"]
        for text in fitting:
            server.publish(text)
        got = [client.next()[2] for _ in fitting]
        refused = 0
        larger = ["x" * (limit + 1), "\u00e9" * (limit // 2) + "x", "\n" * limit + "x"]
        for text in larger:
            try:
                server.publish(text)
            except ValueError:
                refused += 1
        report.check(
            "events of exactly the limit, and of one byte more",
            got == [text.encode() for text in fitting] and refused == 3,
            f"{[len(data) for data in got]} bytes received, {refused} refused",
        )
        client.close()


def check_clock(report):
    """What matters is the monotonic clock."""
    real = time.time
    with local(heartbeat=0.2, write_timeout=1.0, header_timeout=1.0) as server:
        client = harness.Client(here(server), timeout=5).open()
        try:
            for shift in (-86_400, 31_536_000, -(2**31)):
                time.time = lambda shift=shift: real() + shift
                server.publish(f"{shift}")
                good = client.next()[2] == b"%d" % shift
                start = time.monotonic()
                for _ in range(3):
                    client.socket.recv(1000)  # nothing but heartbeats is sent
                seconds = time.monotonic() - start
                late = harness.Client(here(server)).open()
                late.close()
                report.check(
                    f"the clock set by {shift} s",
                    good and 0.3 < seconds < 2,
                    f"event received, 3 heartbeats of 0.2 s in {seconds:.2f} s",
                )
        finally:
            time.time = real
            client.close()


def check_twenty_servers(report):
    threads = threading.active_count()
    servers = [local() for _ in range(20)]
    for server in servers:
        server.__enter__()
    clients = [harness.Client(here(server)).open() for server in servers]
    for number, server in enumerate(servers):
        server.publish(f"of server {number}")
    got = [client.next() for client in clients]
    own = [f"of server {number}".encode() for number in range(20)]
    epochs = {event[0].partition("-")[0] for event in got}
    for server in servers:
        server.__exit__(None, None, None)
    ended = [client.rest() == [] and client.stream.ended for client in clients]
    for client in clients:
        client.close()
    left = threading.active_count() - threads
    report.check(
        "20 servers in one process",
        [event[2] for event in got] == own and len(epochs) == 20 and all(ended),
        f"each its own event, {len(epochs)} epochs, {sum(ended)} streams ended",
    )
    report.check("20 servers: no thread is left", left == 0, f"{left}")


def main():
    options = harness.arguments(__doc__, python=sys.executable)
    report = harness.Report("pressure")
    for clients, events, size in RACES:
        check_race(report, options.python, clients, events, size)
    check_no_history(report)
    check_limit(report)
    check_clock(report)
    check_twenty_servers(report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
