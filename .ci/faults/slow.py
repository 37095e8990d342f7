#!/usr/bin/env python3
"""Who reads slowly harms nobody, and stays as long as it reads.

stalled   100 clients, of which 20 never read, and 64 MB of events: the other 80 receive
          all of it in order; the memory grows by no more than the log's bound and 256
          KiB for each stalled client; those are dropped after write_timeout, and when
          they come back they are given their events, or a gap and then the events held.
stopped   A server that is stopped (SIGSTOP) for longer than its deadlines: a request that
          was completed meanwhile is answered, and a client that has read is not dropped.
trickle   With the server's defaults and the system's own buffers: a client that reads
          30 KB/s while 100 KB/s are published, and one that reads 20 KB/s of events of
          1 MB, are not dropped in longer than write_timeout, and are given their events
          in order, or a gap.
stdin     A million lines with --lossless reach three clients, one of them slow, complete
          and in order, and the memory is flat.  (That without it a client that does not
          read holds up nobody is among the unit tests, of the real command.)

usage: slow.py [--only NAME ...] [--seed N] [--python PYTHON]
"""

import contextlib
import multiprocessing
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import common
from common import KIB, MIB, Client, Server, until, wait_until

READERS, STALLED = 80, 20
READER_PROCESSES = 2
EVENT_BYTES = 16 * KIB
EVENTS = 64 * MIB // EVENT_BYTES
SLICE = 32  # events between two looks at the readers and the memory
WRITE_TIMEOUT = 5.0
KERNEL_BUFFERS = 12 * MIB  # of both ends; by then nobody takes more unread
HISTORY_BYTES = 16 * MIB
LARGE = 1_000_000  # bytes of an event
FLAT = 8 * MIB  # what the memory may grow by
LINES = 1_000_000
SLOW_RATE = 4 * MIB  # bytes a second


def read_all(address, count, progress):
    """Read in this process; `progress` is the number that all of them have."""
    clients = [Client(address, timeout=60).open() for _ in range(count)]
    orders = []

    def taker(client):
        order = common.Order(last=EVENTS - 1)
        orders.append(order)

        def take(event):
            outcome = order(event)
            if order.number % SLICE == 0 or outcome is not None:
                progress.value = min(order.number or 0 for order in orders)
            return outcome if not order.gaps else f"a gap after {order.number}"

        return take

    faults = common.Crowd(clients, taker).run(120)
    progress.value = EVENTS
    return faults


def stalled(report, options):
    """Publishes all, never more than half a log ahead of the slowest reader: 80 of them
    take what the machine can give.  The stalled ones are not waited for."""
    chance = random.Random(options.seed)
    limits = {"write_timeout": WRITE_TIMEOUT, "history_bytes": HISTORY_BYTES}
    # The log's bound in bytes is the one that counts.
    with Server(options.python, **limits, history=10**6) as server:
        progress = [multiprocessing.Value("l") for _ in range(READER_PROCESSES)]
        share = READERS // READER_PROCESSES
        reading = read_all, server.address, share
        readers = [common.Child(*reading, seen) for seen in progress]
        asleep = [
            Client(server.address, small=chance.random() < 0.5, version=version).open()
            for version in ["1.1", "1.0"] * (STALLED // 2)
        ]
        until(lambda: server.streams() == READERS + STALLED, "all the streams")
        start, before = time.monotonic(), server.rss()
        filled = dropped = None  # when
        gone = lambda: server.ask("stats")["dropped"] >= STALLED
        peak, ahead = 0, HISTORY_BYTES // 2 // EVENT_BYTES
        for first in range(0, EVENTS, SLICE):
            near = lambda n=first: min(p.value for p in progress) >= n - ahead
            if not wait_until(near, 60, 0.002):
                break  # the readers will say what was wrong
            server.ask("pace", size=EVENT_BYTES, first=first, count=SLICE)
            peak = max(peak, server.rss())
            if filled is None and first * EVENT_BYTES > KERNEL_BUFFERS:
                filled = time.monotonic()
            if dropped is None and gone():
                dropped = time.monotonic()
        all_gone = wait_until(gone, 2 * WRITE_TIMEOUT, 0.1)
        delay = (dropped or time.monotonic()) - (filled or start)
        faults = [fault for reader in readers for fault in reader.result()]
        name = f"{READERS} readers got all of {EVENTS} events in order"
        report.faultless(name, faults, f"{time.monotonic() - start:.1f} s")
        grown, bound = peak - before, HISTORY_BYTES + STALLED * 256 * KIB
        report.check(
            "memory grew by no more than the log and 256 KiB for each stalled client",
            grown <= bound,
            f"{grown >> 10} KiB, bound {bound >> 10} KiB",
        )
        report.check(
            f"the {STALLED} stalled were dropped after {WRITE_TIMEOUT:g} s",
            all_gone and delay <= WRITE_TIMEOUT + 1.5,
            f"{delay:.1f} s after the kernel's buffers were full at the latest",
        )
        outcomes = [come_back(server.address, client) for client in asleep]
        report.faultless(
            "who comes back finds a gap or its events, and then all",
            [outcome for outcome in outcomes if isinstance(outcome, str)],
            f"{sum(outcome == 1 for outcome in outcomes)} gaps",
        )
        report.check("exit status", server.stop() == 0, "after SIGTERM")


def come_back(address, client):
    """Read what the kernel still holds, then resume: the gaps, or what was wrong."""
    order = common.Order(last=EVENTS - 1)
    with contextlib.closing(client):
        events = client.rest()
    with Client(address, last_id=client.stream.decoder.last_id) as again:
        while True:
            event = events.pop(0) if events else again.next()
            outcome = order(event)
            if outcome is not None:
                return outcome or (order.gaps if order.gaps < 2 else "several gaps")


def stopped(report, options):
    limits = {"header_timeout": 2.0, "write_timeout": 2.0, "heartbeat": 0.5}
    with Server(options.python, **limits) as server:
        behind = Client(server.address, timeout=10).open()
        # More than the kernel takes, so that it is behind when the server is stopped.
        server.publish(*["x" * LARGE] * 16)
        until(lambda: server.ask("stats")["behind"] == 1, "a client that is behind")
        descriptors = pathlib.Path(f"/proc/{server.pid}/fd")
        before = len([*descriptors.iterdir()])
        with common.connect(server.address, timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n")
            until(lambda: len([*descriptors.iterdir()]) > before, "the connection")
            server.signal(signal.SIGSTOP)
            sock.sendall(b"Host: localhost\r\n\r\n")
            behind.socket.recv(MIB, 0)
            time.sleep(5)
            server.signal(signal.SIGCONT)
            answer = sock.recv(1000)
        report.check(
            "stopped for 5 s: a request that was completed meanwhile",
            answer.startswith(b"HTTP/1.1 200 "),
            answer.partition(b"\r\n")[0].decode(),
        )
        with contextlib.closing(behind), report.case("... a client that has read"):
            received = MIB
            while received < 16 * LARGE:
                received += len(behind.socket.recv(MIB))
            common.expect(server.ask("stats")["dropped"] == 0, "it was dropped")


def trickle(report, options, seconds=45):
    with Server(options.python) as first, Server(options.python) as second:
        clients = [Client(server.address).open() for server in (first, second)]
        orders = {client: common.Order() for client in clients}
        for server, size, period in ((first, 1000, 0.01), (second, LARGE, 0.5)):
            count = int(seconds / period)
            server.send("pace", size=size, first=0, count=count, period=period)
        crowd = common.Crowd(clients, orders.get, rates=[30_000, 20_000])
        faults = crowd.run(seconds, all_must_end=False)
        for server, client in zip((first, second), clients):
            server.answer()
            order, dropped = orders[client], server.ask("stats")["dropped"]
            report.check(
                f"{client.rate // 1000} KB/s for {seconds} s: stays",
                not faults and not dropped and client.received,
                f"{faults}; {order.events} events, {order.gaps} gaps, "
                f"{client.received >> 10} KiB read; {dropped} dropped",
            )
            client.close()


def follow(clients, rates):
    """Read the numbered lines to the last, of which none may be missing."""
    orders = {client: common.Order(LINES) for client in clients}
    faults = common.Crowd(clients, orders.get, rates).run(80)
    return faults + [f"{one.gaps} gaps" for one in orders.values() if one.gaps]


def stdin(report, options):
    name = "--lossless"
    command = [options.python, common.MODULE, "-", "--host", "127.0.0.1", "--port", "0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with common.Program([*command, name], **pipes) as server:
        process = server.process
        port = re.search(rb":([0-9]+)/", process.stdout.readline())[1]
        before = server.rss()
        address = ("127.0.0.1", int(port))
        clients = [Client(address, timeout=60).open() for _ in range(3)]
        following = common.Child(follow, clients, [None, None, SLOW_RATE])
        feed = subprocess.Popen(["seq", str(LINES)], stdout=process.stdin)
        faults = following.result()
        feed.wait(10)
        lines = f"{LINES} lines to 3 clients, one of them slow, in order"
        report.faultless(f"{name}: {lines}", faults)
        grown = server.rss() - before
        text = f"grew by {grown >> 10} KiB, {FLAT >> 10} allowed"
        report.check(f"{name}: memory is flat", grown <= FLAT, text)
        status, traces = server.stop(), server.output().count("Traceback")
        text = f"{status}, {traces} tracebacks"
        report.check(f"{name}: exit status 0", status == 0 and not traces, text)


if __name__ == "__main__":
    sys.exit(common.run_checks("slow", __doc__, stalled, stopped, trickle, stdin))
