#!/usr/bin/env python3
"""Soak with chaos: 300 clients read, dawdle, stall, reset, half-close and come back.

Three threads publish at random speed into a log that is small enough to overflow.
Each client checks what it was given against what was published: in order, nothing
twice, each hole announced by exactly one gap, no gap without a hole; and what it has
gathered of the retained events, by name, is what the publisher has.  Half of them ask
for compression.  Afterwards the server's memory, tasks and descriptors are what they
were.  Then the same while the server is stopped and started again.  (With the caller's
ids, it does so in ../interop/clients.py.)

usage: soak.py [--seed N] [--seconds S] [--deliveries N] [--clients N]
               [--restart-seconds S] [--python PYTHON]
"""

import collections
import multiprocessing
import os
import sys
import tempfile
import time

import swarm
from common import KIB, MIB, Child, Report, Server, arguments, free_port, wait_until

SWARMS = 2  # processes that the clients are in
LOG_BYTES = 512 * KIB
USUAL = {"write_timeout": 3.0, "heartbeat": 1.0, "shutdown_timeout": 1.0}
USUAL.update(compress=True, send_buffer=16 * KIB, history=300, history_bytes=LOG_BYTES)
LEAK_ALLOWED = 32 * MIB  # what a heap that was used by 300 may keep


class Swarms:
    """The clients, in processes of their own; they verify what they have seen."""

    def __init__(self, address, options, records):
        self._calm = multiprocessing.Event()
        self._seen = [multiprocessing.Value("q") for _ in range(SWARMS)]

        def run(number, seen):
            count = options.clients // SWARMS
            flock = swarm.Swarm(address, count, f"{options.seed}-{number}", seen)
            flock.run(self._calm.is_set)
            return swarm.verified(flock, records)

        self._children = [Child(run, n, seen) for n, seen in enumerate(self._seen)]

    @property
    def deliveries(self):
        """Events that the clients have decoded so far."""
        return sum(seen.value for seen in self._seen)

    def finish(self, report, name):
        """The storm is over: report what was wrong; all counts."""
        self._calm.set()
        counts, faults = collections.Counter(), []
        for child in self._children:
            more, wrong = child.result(300)
            counts.update(more)
            faults += wrong
        counts["published"] //= SWARMS
        report.note(", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
        text = f"{counts['event']} deliveries, {counts['gap']} gaps"
        report.faultless(f"{name}: order, holes, gaps, state", faults, text)
        return counts


def soak(report, options, folder):
    """The long part: one server, a small log."""
    record = os.path.join(folder, "record")
    with Server(options.python, **USUAL) as server:
        before, rss = server.ask("usage"), server.rss()
        swarms = Swarms(server.address, options, [record])
        server.ask("storm", record=record, seed=options.seed)
        usages = watch(server, swarms, options)
        server.ask("end_storm")
        counts = swarms.finish(report, "soak")
        count, wanted = counts["event"], options.deliveries
        text = f"{count} events decoded, {wanted} wanted"
        report.check("soak: deliveries", count >= wanted, text)
        cut, ended = counts["half-closed, cut"], counts["half-closed, ended"]
        name = "soak: half-closed streams are ended as their framing demands"
        # One that could not be told within write_timeout is cut.
        report.check(name, ended > 2 * cut, f"{ended} ended, {cut} cut")
        check_usage(report, server, before, rss, usages)
        happened = {n: counts[n] for n in ("gap", "reset", "stall", "compressed")}
        happened["dropped"] = server.ask("stats")["dropped"]
        report.check("soak: chaos", all(happened.values()), str(happened))
        report.check("soak: exit status", server.stop() == 0, "after SIGTERM")


def watch(server, swarms, options):
    """Wait for the time and the deliveries; what was in use each second."""
    start = time.monotonic()
    usages = []
    while True:
        time.sleep(1)  # the soak's length, not a synchronisation
        server.ask("usage")  # which collects what is not in use
        usages.append(server.rss())
        wanted = options.seconds * (1 if swarms.deliveries >= options.deliveries else 4)
        if time.monotonic() - start > wanted:
            return usages


def check_usage(report, server, before, rss, usages):
    report.check(
        "soak: descriptors, tasks and transports are back at the start",
        wait_until(lambda: server.ask("usage") == before, 20, 0.2),
        f"{before} before, {server.ask('usage')} after",
    )
    peak, third = max(usages) - rss, len(usages) // 3
    growth = max(usages[2 * third :]) - max(usages[third : 2 * third])
    # Each connection may hold 64 KiB and a batch of 64 KiB, and costs some 10 KiB.
    bound = LOG_BYTES + 300 * 140 * KIB
    for name, grown, allowed in (
        ("is bounded by the log and the connections", peak, bound),
        ("does not go on growing", growth, LEAK_ALLOWED // 4),
        ("comes back", server.rss() - rss, LEAK_ALLOWED),
    ):
        text = f"grew by {grown >> 10} KiB, {allowed >> 10} allowed"
        report.check(f"soak: memory {name}", grown <= allowed, text)


def soak_restarted(report, options, folder):
    """The server is stopped and started again while the clients go on."""
    records = [os.path.join(folder, f"record-{number}") for number in (1, 2)]
    parameters = {**USUAL, "port": free_port()}
    for number, record in enumerate(records, 1):
        with Server(options.python, **parameters) as server:
            if number == 1:
                swarms = Swarms(server.address, options, records)
            server.ask("storm", record=record, seed=f"{options.seed}-{number}")
            time.sleep(options.restart_seconds / 2)
            if number == 2:
                server.ask("end_storm")
                gaps = swarms.finish(report, "restart")["gap"]
                report.check("restart: gaps", gaps, f"{gaps}")
            status = server.stop()
            report.check(f"restart: exit {number}", status == 0, "after SIGTERM")


def main():
    options = arguments(
        __doc__, seconds=60.0, deliveries=1_000_000, clients=300, restart_seconds=16.0
    )
    report = Report("soak")
    with tempfile.TemporaryDirectory() as folder:
        soak(report, options, folder)
        soak_restarted(report, options, folder)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
