#!/usr/bin/env python3
"""One slow client harms nobody: 100 clients, of which 20 never read, and 64 MB of events.

The other 80 receive all of it in order; the server's memory grows by no more than the
log's bound and 256 KiB for each stalled client; those are dropped after write_timeout,
and when they come back they are given their events, or a gap and then the events held.

usage: slow_clients.py [--seed N] [--total BYTES] [--python PYTHON]
"""

import contextlib
import multiprocessing
import random
import sys
import threading
import time

import harness

READERS, STALLED = 80, 20
READER_PROCESSES = 2
EVENT_BYTES = 16 * harness.KIB
SLICE = 32  # events between two looks at the readers and the memory
WRITE_TIMEOUT = 5.0
KERNEL_BUFFERS = 12 * harness.MIB  # of both ends; by then nobody takes more unread
HISTORY_BYTES = 16 * harness.MIB


def read_all(address, count, events, results, progress):
    """Read in this process with a thread each; report what was wrong."""
    wrong = []
    opened = threading.Barrier(count + 1)

    def read(number):
        client = harness.Client(address, timeout=60).open()
        opened.wait()
        for expected in range(events):
            _, name, data = client.next()
            if name != "message" or data.split(b" ")[0] != b"%d" % expected:
                wrong.append(f"reader {number}: {name} {data[:40]!r} for {expected}")
                progress[number] = events  # it is not waited for
                break
            progress[number] = expected
        client.close()

    def guarded(number):
        try:
            read(number)
        except (OSError, EOFError, ValueError) as error:
            wrong.append(f"reader {number}: {error!r}")
            progress[number] = events

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    opened.wait()
    results.put("opened")
    for thread in threads:
        thread.join()
    results.put(wrong)


def come_back(address, stalled, events):
    """Read what the kernel still holds, then resume; what was wrong, gaps, events."""
    last = -1
    client = stalled
    for _, _, data in client.rest():
        number = int(data.split(b" ")[0])
        if number != last + 1:
            return f"{number} after {last} before it stalled", 0, 0
        last = number
    held = last
    client = harness.Client(address, last_id=client.stream.decoder.last_id)
    gaps = 0
    while last < events - 1:
        _, name, data = client.next()
        if name == "gap":
            gaps += 1
            continue
        number = int(data.split(b" ")[0])
        good = number > last if gaps and last == held else number == last + 1
        if not good:
            return f"{number} after {last}, {gaps} gaps", gaps, 0
        last = number
    client.close()
    return None if gaps <= 1 else f"{gaps} gaps", gaps, last - held


def main():
    options = harness.arguments(
        __doc__,
        total=64 * harness.MIB,
        python=sys.executable,
    )
    chance = random.Random(options.seed)
    report = harness.Report("slow_clients")
    with harness.Server(
        options.python,
        write_timeout=WRITE_TIMEOUT,
        history_bytes=HISTORY_BYTES,
        history=10**6,  # the log's bound in bytes is the one that counts
    ) as server:
        run(report, server, options, chance)
        report.check("exit status", server.stop() == 0, "after SIGTERM")
    return report.close()


class Publishing:
    """Publishes all, never more than half a log ahead of the slowest reader.

    The stalled ones are not waited for.  The readers are because 80 of them take what
    this machine can give.
    """

    def __init__(self, server, progress, events):
        self.peak = 0  # bytes resident
        self.filled_at = self.dropped_at = None
        self._server = server
        self._progress = progress
        for first in range(0, events, SLICE):
            if not harness.wait_until(lambda f=first: self._near(f), 60, 0.002):
                break  # the readers will say what was wrong
            usage = server.ask("pace", size=EVENT_BYTES, first=first, count=SLICE)
            self.peak = max(self.peak, usage["rss"])
            self._look(first * EVENT_BYTES)
        harness.wait_until(
            lambda: self._look(events * EVENT_BYTES), 2 * WRITE_TIMEOUT, 0.1
        )

    def _near(self, first):
        slowest = min(min(seen) for seen in self._progress)
        return slowest >= first - HISTORY_BYTES // 2 // EVENT_BYTES

    def _look(self, published):
        """Note when the stalled can have taken nothing more, and when they were dropped.

        Returns whether they were.
        """
        now = time.monotonic()
        if self.filled_at is None and published > KERNEL_BUFFERS:
            self.filled_at = now
        dropped = self._server.ask("stats")["dropped"]
        if self.dropped_at is None and dropped >= STALLED:
            self.dropped_at = now
        return self.dropped_at is not None

    @property
    def delay(self):
        """Seconds that the last of the stalled was kept; None where it was for good."""
        if self.dropped_at is None:
            return None
        return self.dropped_at - (self.filled_at or self.dropped_at)


def run(report, server, options, chance):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    events = options.total // EVENT_BYTES // SLICE * SLICE
    share = READERS // READER_PROCESSES
    progress = [context.Array("l", share) for _ in range(READER_PROCESSES)]
    readers = [
        context.Process(
            target=read_all, args=(server.address, share, events, results, seen)
        )
        for seen in progress
    ]
    for process in readers:
        process.start()
    for _ in readers:
        results.get(timeout=30)
    stalled = [
        harness.Client(
            server.address, small=chance.random() < 0.5, version=version
        ).open()
        for version in ["1.1", "1.0"] * (STALLED // 2)
    ]
    before = server.ask("usage")
    start = time.monotonic()
    publishing = Publishing(server, progress, events)
    grown = publishing.peak - before["rss"]
    wrong = [fault for _ in readers for fault in results.get(timeout=120)]
    seconds = time.monotonic() - start
    for process in readers:
        process.join()
    for fault in wrong[:5]:
        report.note(fault)
    report.check(
        f"{READERS} readers got all of {events} events in order",
        not wrong,
        f"{len(wrong)} did not; {options.total >> 20} MiB each in {seconds:.1f} s",
    )
    bound = HISTORY_BYTES + STALLED * 256 * harness.KIB
    report.check(
        "memory grew by no more than the log and 256 KiB for each stalled client",
        grown <= bound,
        f"{grown >> 10} KiB, bound {bound >> 10} KiB",
    )
    delay = publishing.delay
    report.check(
        f"the {STALLED} stalled were dropped after write_timeout, {WRITE_TIMEOUT:g} s",
        delay is not None and delay <= WRITE_TIMEOUT + 1.5,
        f"{delay} s after the kernel's buffers were full at the latest",
    )
    report.note(f"stats {server.ask('stats')}")
    check_return(report, server.address, stalled, events)


def check_return(report, address, stalled, events):
    faults, gaps, resumed = [], 0, 0
    for client in stalled:
        with contextlib.closing(client):
            fault, announced, seen = come_back(address, client, events)
        faults += [fault] if fault else []
        gaps += announced
        resumed += seen
    for fault in faults[:5]:
        report.note(fault)
    report.check(
        "who comes back finds a gap or its events, and then all",
        not faults,
        f"{len(faults)} did not; {gaps} gaps, {resumed} events",
    )


if __name__ == "__main__":
    sys.exit(main())
