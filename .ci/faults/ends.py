#!/usr/bin/env python3
"""What has an end: the server itself, its descriptors, a lock, the history of a log.

ending       SIGTERM, SIGINT and close() with 500 open streams, 20 of them stalled: exit
             status 0 within shutdown_timeout and a second; every client that reads is
             told `retry` and its stream is ended as its framing demands, with all that
             was published.
exhaustion   With the process's descriptors used up and max_connections set above them the
             server neither spins nor dies and goes on serving those it has; it accepts
             again when there is room.
departures   After 1,000 connects and disconnects no task, transport or descriptor is left.
race         Eight threads publish as fast as they can, to no client, one, and 1,000.
clock        The clock is set back and forth: what matters is the monotonic one.

usage: ends.py [--only NAME ...] [--seed N] [--python PYTHON]
"""

import contextlib
import random
import signal
import sys
import tempfile
import time

from common import (
    KIB,
    MIB,
    MODULE,
    Child,
    Client,
    Crowd,
    Order,
    Server,
    connect,
    process_cpu,
    request,
    reset,
    run_checks,
    until,
    wait_until,
)

sys.path.insert(0, str(MODULE.parent))
import sse_server

STREAMS, STALLED = 500, 20
SHUTDOWN_TIMEOUT = 2.0
DESCRIPTORS = 100  # of the server's process
KNOCKING = 400  # connections to it
CYCLES = 1000
THREADS = 8
LOG_BYTES = MIB
RACES = [(0, 20_000, 100), (1, 20_000, 100), (1000, 150, 1500)]  # clients, events, size
CONNECTION_BYTES = 140 * KIB  # 64 KiB unsent, a batch of 64 KiB, the objects


def ending(report, options):
    chance = random.Random(options.seed)
    limits = {"shutdown_timeout": SHUTDOWN_TIMEOUT, "send_buffer": 16 * KIB}
    for how in (signal.SIGTERM, signal.SIGINT, "close()"):
        name = getattr(how, "name", how)
        with (
            Server(options.python, **limits) as server,
            contextlib.ExitStack() as stack,
        ):
            clients = []
            for number in range(STREAMS):
                version = chance.choice(["1.1", "1.1", "1.0"])
                stalled = number < STALLED
                channels = ["filling"] * stalled
                client = Client(
                    server.address, small=stalled, version=version, channels=channels
                )
                clients.append(stack.enter_context(client).open())
            server.publish(*[{"data": "x" * 64 * KIB, "channel": "filling"}] * 20)
            behind = lambda s=server: s.ask("stats")["behind"] >= STALLED
            until(behind, f"{STALLED} stalled")
            server.publish(*[f"{number} event" for number in range(50)])
            start = time.monotonic()
            if how == "close()":
                server.send("close")
            else:
                server.process.send_signal(how)
            faults = Crowd(clients[STALLED:], until_told).run(SHUTDOWN_TIMEOUT + 1)
            if how == "close()":
                closed = server.answer()
                tasks = closed["tasks"]
                report.check(
                    f"{name}: no task is left", tasks == 2, f"{tasks}: our own"
                )
                server.process.terminate()
            status = server.process.wait(30)
            seconds = time.monotonic() - start
            report.check(
                f"{name}: exit status 0 within {SHUTDOWN_TIMEOUT + 1:g} s",
                status == 0 and seconds <= SHUTDOWN_TIMEOUT + 1,
                f"{status} after {seconds:.2f} s, {STREAMS} streams, {STALLED} stalled",
            )
            name += ": each that reads got all events, retry and the end"
            report.faultless(name, faults)


def until_told(client):
    order = Order()

    def take(event):
        if event:
            return order(event) or None
        retry = client.stream.decoder.retry or 0
        if order.number != 49 or order.gaps:
            return f"ended after {order.number}, {order.gaps} gaps"
        if not client.stream.ended or not 2500 <= retry <= 7500:
            return f"told retry {retry}; ended as it should: {client.stream.ended}"
        return ""

    return take


def measure_delay(server, client, seconds=3.0):
    """The delay of 100 events a second that 95 of 100 stay below, in seconds."""
    count = int(seconds * 100)
    server.send("tick", period=0.01, count=count)
    delays = []
    for _ in range(count):
        delays.append(-int(client.next()[2]) / 1e9 + time.monotonic())
    server.answer()
    return sorted(delays)[count * 95 // 100]


def exhaustion(report, options):
    limits = {"descriptors": DESCRIPTORS, "max_connections": 10_000}
    with (
        tempfile.TemporaryFile() as log,
        Server(options.python, stderr=log, **limits) as server,
        Client(server.address) as first,
    ):
        usual = measure_delay(server, first.open())
        knocking = []
        for _ in range(KNOCKING):
            knocking.append(connect(server.address, timeout=10))
            knocking[-1].sendall(request("1.0"))
        until(lambda: server.streams() > DESCRIPTORS // 2, "streams")
        cpu, written, start = process_cpu(server.pid), log.seek(0, 2), time.monotonic()
        delay = measure_delay(server, first)
        seconds = time.monotonic() - start
        share = (process_cpu(server.pid) - cpu) / seconds
        noise = (log.seek(0, 2) - written) / seconds / KIB
        count = server.streams()
        report.check(
            "descriptors used up: it does not spin, and is not noisy",
            share < 0.25 and count < DESCRIPTORS and noise < 100,
            f"{share:.0%} of a core with {count} streams at 100 events/s, "
            f"{noise:.0f} KiB of messages a second",
        )
        report.check(
            "descriptors used up: it serves those it has",
            delay < max(0.1, 5 * usual),
            f"{delay * 1000:.1f} ms of delay (p95), {usual * 1000:.1f} ms before",
        )
        for sock in knocking:
            sock.close()
        with report.case("descriptors used up: it recovers when there is room"):
            until(lambda: server.streams() == 1, "one stream")
            with Client(server.address, timeout=10) as client:
                client.open()
                server.publish("after")
                for each in (first, client):
                    while each.next()[2] != b"after":
                        pass
        report.check("exit status", server.stop() == 0, "after SIGTERM")


def departures(report, options):
    chance = random.Random(options.seed)
    with Server(options.python) as server:
        before = server.ask("usage")
        for _ in range(CYCLES):
            visit(server.address, chance)
        start = time.monotonic()
        gone = wait_until(lambda: server.streams() == 0, 2, 0.005)
        seconds = time.monotonic() - start
        name = "idle clients that leave are gone at once"
        report.check(name, gone and seconds < 1, f"after {seconds * 1000:.0f} ms")
        names = ("descriptors", "tasks", "transports")
        after = {}

        def back():
            after.update(server.ask("usage"))
            return all(after[n] == before[n] for n in names)

        name = f"nothing is left of {CYCLES} connects and disconnects"
        report.check(name, wait_until(back, 5), f"{before} before, {after} after")


def visit(address, chance):
    """Connect in some way and leave in another."""
    how = chance.randrange(5)
    if how < 2:
        sock = connect(address, timeout=10)
        if how == 0:  # not even a request
            sock.sendall(b"GET /sse HT" if chance.random() < 0.5 else b"")
        else:  # another path, and kept alive
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            sock.recv(1000)
    else:
        sock = Client(address, version=chance.choice(["1.0", "1.1"])).open().socket
    if chance.random() < 0.5:
        reset(sock)
    else:
        sock.close()


def read_race(address, clients, last):
    """What was wrong, by the numbers in the ids and those of each thread; the gaps."""
    orders = []

    def taker(client):
        order = Order(lambda event: int(event[0].rpartition("-")[2]), last)
        orders.append(order)
        threads = [-1] * THREADS

        def take(event):
            if event and event[1] != "gap":
                thread, count, _ = event[2].split(b" ", 2)
                before, threads[int(thread)] = threads[int(thread)], int(count)
                if not (
                    int(count) > before if order.gaps else int(count) == before + 1
                ):
                    return f"{count} after {before} of thread {thread}"
            return order(event)

        return take

    crowd = [Client(address).open() for _ in range(clients)]
    return Crowd(crowd, taker).run(60), sum(order.gaps for order in orders)


def race(report, options):
    for clients, events, size in RACES:
        name = f"{THREADS} threads x {events} events, {clients} clients"
        last = THREADS * events
        with Server(options.python, history_bytes=LOG_BYTES) as server:
            reading = Child(read_race, server.address, clients, last)
            until(lambda s=server, n=clients: s.streams() == n, f"{clients} streams")
            before = server.ask("usage")["rss"]
            raced = server.ask("race", threads=THREADS, events=events, size=size)
            faults, gaps = reading.result()
            speed = f"{last / raced['seconds']:.0f} events/s published"
            name += ": the order of each thread, nothing lost unannounced"
            report.faultless(name, faults, f"{gaps} gaps; {speed}")
            grown = raced["peak"] - before
            bound = LOG_BYTES + clients * CONNECTION_BYTES + 8 * MIB
            text = f"grew by {grown >> 10} KiB, bound {bound >> 10} KiB"
            report.check("... memory is bounded", grown <= bound, text)
            published = server.ask("stats")["published"]
            report.check("... all published", published == last, f"{published}")


def local(**options):
    return sse_server.SSEServer("127.0.0.1", 0, **options)


def clock(report, options):
    real = time.time
    with local(heartbeat=0.2, write_timeout=1.0, header_timeout=1.0) as server:
        address = ("127.0.0.1", server.port)
        client = Client(address, timeout=5).open()
        try:
            for shift in (-86_400, 31_536_000, -(2**31)):
                time.time = lambda shift=shift: real() + shift
                server.publish(f"{shift}")
                good = client.next()[2] == b"%d" % shift
                start = time.monotonic()
                for _ in range(3):
                    client.socket.recv(1000)  # nothing but heartbeats is sent
                seconds = time.monotonic() - start
                Client(address).open().close()
                report.check(
                    f"the clock set by {shift} s",
                    good and 0.3 < seconds < 2,
                    f"event received, 3 heartbeats of 0.2 s in {seconds:.2f} s",
                )
        finally:
            time.time = real
            client.close()


if __name__ == "__main__":
    sys.exit(run_checks("ends", __doc__, ending, exhaustion, departures, race, clock))
