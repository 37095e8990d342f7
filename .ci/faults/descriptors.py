#!/usr/bin/env python3
"""Descriptors: used up, and given back.

With the process's descriptors used up and max_connections set above them the server
neither spins nor dies and goes on serving those it has; it accepts again when there is
room.  After 1,000 connects and disconnects no task, transport or descriptor is left.

usage: descriptors.py [--seed N] [--python PYTHON ...]
"""

import random
import socket
import sys
import tempfile
import time

import harness

LIMIT = 100  # descriptors of the server's process
KNOCKING = 400  # connections to it
SECONDS = 3.0
CYCLES = 1000


def knock(address, count):
    """Connect and ask for a stream, without waiting to be served."""
    knocking = []
    for _ in range(count):
        sock = socket.create_connection(address, timeout=10)
        sock.sendall(harness.request("1.0"))
        knocking.append(sock)
    return knocking


def served(server):
    stats = server.ask("stats")
    return stats["live"] + stats["behind"]


def check_exhaustion(report, python, log):
    name = harness.python_name(python)
    with harness.Server(
        python, stderr=log, descriptors=LIMIT, max_connections=10_000
    ) as server:
        first = harness.Client(server.address).open()
        before = measure_delay(server, first)
        knocking = knock(server.address, KNOCKING)
        harness.wait_until(lambda: served(server) > LIMIT // 2, 10)
        check_calm(report, name, server, first, log, before)
        for sock in knocking:
            sock.close()
        check_recovery(report, name, server, first)


def check_calm(report, name, server, first, log, before):
    """Nothing is accepted any more; what does it cost, and does the first notice?"""
    cpu, written = harness.process_cpu(server.pid), log.seek(0, 2)
    start = time.monotonic()
    delay = measure_delay(server, first)
    seconds = time.monotonic() - start
    share = (harness.process_cpu(server.pid) - cpu) / seconds
    noise = (log.seek(0, 2) - written) / seconds / harness.KIB
    open_now = served(server)
    report.check(
        f"{name}: used up, it does not spin",
        share < 0.25 and open_now < LIMIT,
        f"{share:.0%} of a core with {open_now} streams at 100 events/s, "
        f"{KNOCKING - open_now + 1} waiting",
    )
    report.check(
        f"{name}: used up, it is not noisy",
        noise < 100,
        f"{noise:.0f} KiB of messages a second",
    )
    report.check(
        f"{name}: used up, it serves those it has",
        delay < max(0.1, 5 * before),
        f"{delay * 1000:.1f} ms of delay (p95), {before * 1000:.1f} ms before",
    )


def measure_delay(server, client):
    """The delay of 100 events a second that 95 of 100 stay below, in seconds."""
    count = int(SECONDS / 0.01)
    server.send("tick", period=0.01, count=count)
    delays = []
    for _ in range(count):
        _, _, data = client.next()
        delays.append(time.monotonic() - int(data) / 1e9)
    server.answer()
    return sorted(delays)[count * 95 // 100]


def check_recovery(report, name, server, first):
    recovered = harness.wait_until(lambda: served(server) == 1, 15, 0.1)
    client = harness.Client(server.address, timeout=10).open()
    server.ask("publish", events=[{"data": "after"}])
    got = [c.next()[2] for c in (first, client)]
    report.check(
        f"{name}: it recovers when there is room",
        recovered and got == [b"after", b"after"],
        f"{served(server)} streams, both get {got}",
    )
    first.close()
    client.close()
    report.check(f"{name}: exit status", server.stop() == 0, "after SIGTERM")


def check_departures(report, python, chance):
    name = harness.python_name(python)
    with harness.Server(python) as server:
        before = server.ask("usage")
        for _ in range(CYCLES):
            visit(server.address, chance)
        start = time.monotonic()
        gone = harness.wait_until(lambda: served(server) == 0, 2, 0.005)
        seconds = time.monotonic() - start
        stats = server.ask("stats")
        report.check(
            f"{name}: idle clients that leave are gone at once",
            gone and seconds < 1,
            f"after {seconds * 1000:.0f} ms; {stats}",
        )
        names = ("descriptors", "tasks", "transports")
        after = {}

        def back():
            after.update(server.ask("usage"))
            return all(after[n] == before[n] for n in names)

        report.check(
            f"{name}: nothing is left of {CYCLES} connects and disconnects",
            harness.wait_until(back, 5),
            f"{[before[n] for n in names]} {names} before, "
            f"{[after[n] for n in names]} after",
        )


def visit(address, chance):
    """Connect in some way and leave in another."""
    how = chance.randrange(5)
    if how == 0:  # not even a request
        sock = socket.create_connection(address)
        sock.sendall(b"GET /sse HT" if chance.random() < 0.5 else b"")
    elif how == 1:  # another path, and kept alive
        sock = socket.create_connection(address, timeout=10)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        sock.recv(1000)
    else:
        version = chance.choice(["1.0", "1.1"])
        sock = harness.Client(address, version=version).open().socket
    if chance.random() < 0.5:
        harness.reset(sock)
    else:
        sock.close()


def main():
    options = harness.arguments(__doc__, python=[sys.executable])
    chance = random.Random(options.seed)
    report = harness.Report("descriptors")
    for python in options.python:
        with tempfile.TemporaryFile() as log:
            check_exhaustion(report, python, log)
        check_departures(report, python, chance)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
