#!/usr/bin/env python3
"""What has an end: the server itself, and its descriptors.

ending       SIGTERM, SIGINT and close() with 500 open streams, 20 of them stalled: exit
             status 0 within shutdown_timeout and a second; every client that reads is
             told `retry` and its stream is ended as its framing demands, with all that
             was published.
exhaustion   With the process's descriptors used up and max_connections set above them the
             server neither spins nor dies and goes on serving those it has; it accepts
             again when there is room.

usage: ends.py [--only NAME ...] [--seed N] [--python PYTHON]
"""

import random
import signal
import sys
import time

import common
from common import KIB, Client, Server, until

STREAMS, STALLED = 500, 20
SHUTDOWN_TIMEOUT = 2.0
DESCRIPTORS = 100  # of the server's process
KNOCKING = 400  # connections to it


def ending(report, options):
    for how in (signal.SIGTERM, signal.SIGINT, "close()"):
        limits = {"shutdown_timeout": SHUTDOWN_TIMEOUT, "send_buffer": 16 * KIB}
        with Server(options.python, **limits) as server:
            end(report, getattr(how, "name", how), server, how, options.seed)


def end(report, name, server, how, seed):
    chance = random.Random(seed)
    clients = []
    for number in range(STREAMS):
        asked = {"version": chance.choice(["1.1", "1.1", "1.0"])}
        if number < STALLED:
            asked.update(small=True, channels=["filling"])
        clients.append(Client(server.address, **asked).open())
    server.publish(*[{"data": "x" * 64 * KIB, "channel": "filling"}] * 20)
    until(lambda: server.ask("stats")["behind"] >= STALLED, f"{STALLED} stalled")
    server.publish(*[f"{number} event" for number in range(50)])
    start = time.monotonic()
    if how == "close()":
        server.send("close")
    else:
        server.signal(how)
    faults = common.Crowd(clients[STALLED:], until_told).run(SHUTDOWN_TIMEOUT + 1)
    if how == "close()":
        tasks = server.answer()["tasks"]
        report.check(f"{name}: no task is left", tasks == 2, f"{tasks}: our own")
        server.signal(signal.SIGTERM)
    status, seconds = server.process.wait(30), time.monotonic() - start
    report.check(
        f"{name}: exit status 0 within {SHUTDOWN_TIMEOUT + 1:g} s",
        status == 0 and seconds <= SHUTDOWN_TIMEOUT + 1,
        f"{status} after {seconds:.2f} s, {STREAMS} streams, {STALLED} stalled",
    )
    name += ": each that reads got all events, retry and the end"
    report.faultless(name, faults)
    for client in clients:
        client.close()


def until_told(client):
    order = common.Order()

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
    what = "descriptors used up"
    with Server(options.python, **limits) as server, Client(server.address) as first:
        usual = measure_delay(server, first.open())
        knocking = []
        for _ in range(KNOCKING):
            knocking.append(common.connect(server.address, timeout=10))
            knocking[-1].sendall(common.request("1.0"))
        until(lambda: server.streams() > DESCRIPTORS // 2, "streams")
        used = lambda: (common.process_cpu(server.pid), len(server.output()))
        start, before = time.monotonic(), used()
        delay = measure_delay(server, first)
        seconds = time.monotonic() - start
        share, noise = ((now - then) / seconds for now, then in zip(used(), before))
        count = server.streams()
        report.check(
            f"{what}: it does not spin, and is not noisy",
            share < 0.25 and count < DESCRIPTORS and noise < 100 * KIB,
            f"{share:.0%} of a core with {count} streams at 100 events/s, "
            f"{noise / KIB:.0f} KiB of messages a second",
        )
        report.check(
            f"{what}: it serves those it has",
            delay < max(0.1, 5 * usual),
            f"{delay * 1000:.1f} ms of delay (p95), {usual * 1000:.1f} ms before",
        )
        for sock in knocking:
            sock.close()
        with report.case(f"{what}: it recovers when there is room"):
            until(lambda: server.streams() == 1, "one stream")
            with Client(server.address, timeout=10) as client:
                client.open()
                server.publish("after")
                for each in (first, client):
                    while each.next()[2] != b"after":
                        pass
        report.check("exit status", server.stop() == 0, "after SIGTERM")


if __name__ == "__main__":
    sys.exit(common.run_checks("ends", __doc__, ending, exhaustion))
