#!/usr/bin/env python3
"""Ending: SIGTERM, SIGINT and close() with 500 open streams, 20 of them stalled.

The exit status is 0 within shutdown_timeout and a second; every client that reads is
told `retry` and its stream is ended as its framing demands, with all that was published.

usage: ending.py [--seed N] [--python PYTHON ...]
"""

import random
import selectors
import signal
import sys
import time

import harness

STREAMS, STALLED = 500, 20
SHUTDOWN_TIMEOUT = 2.0
FILLING = [{"data": "x" * 64 * harness.KIB, "channel": "filling"}] * 20
EVENTS = [{"data": f"event {number}"} for number in range(50)]
LAST_WORD = "the last event"


def connect(address, chance):
    """The streams: those that read, those that will not."""
    clients = []
    for number in range(STREAMS):
        stalled = number < STALLED
        client = harness.Client(
            address,
            small=stalled,
            version=chance.choice(["1.1", "1.1", "1.0"]),
            channels=["filling"] if stalled else [],
        )
        clients.append(client.open())
    return clients[STALLED:], clients[:STALLED]


def read_to_end(clients, timeout):
    """Read all of them until they end; what was wrong with each, in words."""
    selector = selectors.DefaultSelector()
    for client in clients:
        client.socket.setblocking(False)
        client.seen = []
        selector.register(client.socket, selectors.EVENT_READ, client)
    deadline = time.monotonic() + timeout
    faults = []
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(0.2):
            fault = read_once(key.data)
            if fault is not None:
                selector.unregister(key.fileobj)
                faults.append(fault)
    faults += ["did not end"] * len(selector.get_map())
    return [fault for fault in faults if fault]


def read_once(client):
    """None while it goes on; then "" or what was wrong."""
    try:
        received = client.socket.recv(256 * harness.KIB)
    except OSError as error:
        return f"{error!r}"
    if received:
        client.seen += [data for _, _, data in client.stream.feed(received)]
        return None
    stream = client.stream
    published = [event["data"] for event in EVENTS] + [LAST_WORD]
    if client.seen != [data.encode() for data in published]:
        return f"got {len(client.seen)} events, the last {client.seen[-1:]}"
    if not 2500 <= (stream.decoder.retry or 0) <= 7500:
        return f"told retry {stream.decoder.retry}"
    if stream.chunked and not stream.ended:
        return "the chunked body was not ended"
    return ""


def check_signal(report, python, number, chance):
    """The process is told to end."""
    name = f"{harness.python_name(python)} {number.name}"
    with started(python) as server:
        clients, start = fill(report, name, server, chance)
        server.process.send_signal(number)
        faults = read_to_end(clients[STALLED:], SHUTDOWN_TIMEOUT + 1)
        status = server.wait()
        check_end(report, name, status, time.monotonic() - start, faults)
        close_all(clients)


def check_close(report, python, chance):
    """The program closes the server: twice at once and again afterwards."""
    name = f"{harness.python_name(python)} close()"
    with started(python) as server:
        clients, _ = fill(report, name, server, chance)
        server.send("close")
        faults = read_to_end(clients[STALLED:], SHUTDOWN_TIMEOUT + 1)
        closed = server.answer()
        status = server.stop()
        check_end(report, name, status, closed["seconds"], faults)
        left = closed["tasks"]
        report.check(
            f"{name}: no task is left", left == 2, f"{left}, the program's own"
        )
        close_all(clients)


def started(python):
    return harness.Server(
        python, shutdown_timeout=SHUTDOWN_TIMEOUT, send_buffer=16 * harness.KIB
    )


def fill(report, name, server, chance):
    """Open the streams and publish; the clients, the stalled first, and the moment."""
    readers, stalled = connect(server.address, chance)
    server.ask("publish", events=FILLING)
    wait_for_stalled(report, name, server)
    server.ask("publish", events=[*EVENTS, {"data": LAST_WORD}])
    return stalled + readers, time.monotonic()


def wait_for_stalled(report, name, server):
    """They are behind, so that their buffers are what the end has to cope with."""
    stats = {}

    def behind():
        stats.update(server.ask("stats"))
        return stats["behind"] >= STALLED

    if not harness.wait_until(behind, 10):
        report.check(f"{name}: {STALLED} stalled", False, str(stats))


def check_end(report, name, status, seconds, faults):
    for fault in faults[:5]:
        report.note(fault)
    limit = SHUTDOWN_TIMEOUT + 1
    report.check(
        f"{name}: exit status 0 within {limit:g} s",
        status == 0 and seconds <= limit,
        f"{status} after {seconds:.2f} s, {STREAMS} streams, {STALLED} stalled",
    )
    report.check(
        f"{name}: each that reads got {len(EVENTS) + 1} events, retry and the end",
        not faults,
        f"{len(faults)} of {STREAMS - STALLED} did not",
    )


def close_all(clients):
    for client in clients:
        client.close()


def main():
    options = harness.arguments(__doc__, python=[sys.executable])
    chance = random.Random(options.seed)
    report = harness.Report("ending")
    for python in options.python:
        check_signal(report, python, signal.SIGTERM, chance)
        check_signal(report, python, signal.SIGINT, chance)
        check_close(report, python, chance)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
