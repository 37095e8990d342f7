#!/usr/bin/env python3
"""Soak with chaos: 300 clients read, dawdle, stall, reset, half-close and come back.

Three threads publish at random speed into a log that is small enough to overflow.
Each client checks what it was given against what was published: in order, nothing
twice, each hole announced by exactly one gap, no gap without a hole; and what it has
gathered of the retained events, by name, is what the publisher has.  Half of them ask
for compression.  Afterwards the
server's memory, tasks and descriptors are what they were.  Then the same while the
server is stopped and started again, with its own ids and with the caller's.

usage: soak.py [--seed N] [--seconds S] [--deliveries N] [--clients N]
               [--restart-seconds S] [--python PYTHON]
"""

import collections
import json
import multiprocessing
import os
import sys
import tempfile
import time

import harness
import swarm

SWARMS = 2  # processes that the clients are in
WRITE_TIMEOUT = 3.0
SMALL_LOG = {"history": 300, "history_bytes": 512 * harness.KIB}
LARGE_LOG = {"history": 10**6, "history_bytes": 1024 * harness.MIB}
LEAK_ALLOWED = 32 * harness.MIB  # what a heap that was used by 300 may keep


class Swarms:
    """The clients, in processes of their own; they verify what they have seen."""

    def __init__(self, address, clients, seed):
        context = multiprocessing.get_context("fork")
        self._calm = context.Event()
        self._seen = [context.Value("q") for _ in range(SWARMS)]
        self._results = context.Queue()
        self._records = context.Queue()
        self._processes = [
            context.Process(
                target=self._run, args=(address, clients // SWARMS, f"{seed}-{n}", seen)
            )
            for n, seen in enumerate(self._seen)
        ]
        for process in self._processes:
            process.start()

    @property
    def deliveries(self):
        """Events that the clients have decoded so far."""
        return sum(seen.value for seen in self._seen)

    def _run(self, address, count, seed, seen):
        flock = swarm.Swarm(address, count, seed, seen)
        flock.run(self._calm.is_set)
        record = swarm.Record(self._records.get())
        counts = collections.Counter()
        wrong = []
        for client in flock.clients:
            counts.update(client.counts)
            counts.update(item[0] for item in client.transcript)
            faults = swarm.verify(client.transcript, client.channels, record)
            wrong += [f"{client.channels} {fault}" for fault in faults]
        self._results.put((counts, wrong, len(record)))

    def finish(self, records):
        """The storm is over: all counts, all that is wrong, events published."""
        self._calm.set()
        for _ in self._processes:
            self._records.put(records)
        results = [self._results.get(timeout=300) for _ in self._processes]
        for process in self._processes:
            process.join()
        counts = sum((result[0] for result in results), collections.Counter())
        wrong = [fault for result in results for fault in result[1]]
        return counts, wrong, results[0][2]


def check_transcripts(report, name, counts, wrong, published):
    report.note(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    for fault in wrong[:10]:
        report.note(fault)
    report.check(
        f"{name}: order, holes, gaps, state",
        not wrong,
        f"{len(wrong)} wrong of {counts['event']} deliveries of {published} events, "
        f"{counts['gap']} gaps",
    )


def soak(report, options, folder):
    """The long part: one server, a small log."""
    record = os.path.join(folder, "record")
    with harness.Server(
        options.python,
        write_timeout=WRITE_TIMEOUT,
        heartbeat=1.0,
        compress=True,
        send_buffer=16 * harness.KIB,
        **SMALL_LOG,
    ) as server:
        before = server.ask("usage")
        swarms = Swarms(server.address, options.clients, options.seed)
        server.ask("storm", record=record, seed=options.seed)
        usages = watch(server, swarms, options)
        server.ask("end_storm")
        counts, wrong, published = swarms.finish([record])
        check_transcripts(report, "soak", counts, wrong, published)
        report.check(
            "soak: deliveries",
            counts["event"] >= options.deliveries,
            f"{counts['event']} events decoded, {options.deliveries} wanted",
        )
        check_half_closed(report, counts)
        check_variety(report, counts, server.ask("stats"))
        check_usage(report, server, before, usages)
        report.check("soak: exit status", server.stop() == 0, "after SIGTERM")


def watch(server, swarms, options):
    """Wait for the time and the deliveries; what was in use each second."""
    start = time.monotonic()
    usages = []
    while True:
        time.sleep(1)  # the soak's length, not a synchronisation
        usages.append(server.ask("usage"))
        seconds = time.monotonic() - start
        enough = swarms.deliveries >= options.deliveries
        if (seconds > options.seconds and enough) or seconds > 4 * options.seconds:
            return usages


def check_half_closed(report, counts):
    """A client that closes its half is told the end, in the framing that it speaks."""
    cut = counts["half-closed, cut"]
    ended = counts["half-closed, ended"]
    report.check(
        "soak: half-closed streams are ended as their framing demands",
        ended > 10 * cut,  # one that could not be told within write_timeout is cut
        f"{ended} ended, {cut} cut",
    )


def check_variety(report, counts, stats):
    """The chaos was one: everything that can happen has happened."""
    report.note(f"stats {stats}")
    happened = {
        "gaps": counts["gap"],
        "resets": counts["reset"],
        "stalls": counts["stall"],
        "compressed streams": counts["compressed"],
        "dropped by write_timeout": stats["dropped"],
    }
    report.check("soak: chaos", all(happened.values()), str(happened))


def check_usage(report, server, before, usages):
    names = ("descriptors", "tasks", "transports")

    def back():
        now = server.ask("usage")
        return all(now[name] == before[name] for name in names)

    report.check(
        "soak: descriptors, tasks and transports are back at the start",
        harness.wait_until(back, 20, 0.2),
        f"{before} before, {server.ask('usage')} after",
    )
    third = len(usages) // 3
    first = max(usage["rss"] for usage in usages[third : 2 * third])
    last = max(usage["rss"] for usage in usages[2 * third :])
    report.check(
        "soak: memory does not go on growing",
        last - first <= LEAK_ALLOWED / 4,
        f"peak in the second third {first >> 10} KiB, in the last {last >> 10} KiB",
    )
    # Each connection may hold 64 KiB and a batch of 64 KiB, and costs some 10 KiB.
    bound = SMALL_LOG["history_bytes"] + 300 * 140 * harness.KIB
    grown = max(usage["rss"] for usage in usages) - before["rss"]
    report.check(
        "soak: memory is bounded by the log and the connections",
        grown <= bound,
        f"grew by {grown >> 10} KiB, bound {bound >> 10} KiB",
    )
    kept = server.ask("usage")["rss"] - before["rss"]
    report.check(
        "soak: memory comes back", kept <= LEAK_ALLOWED, f"keeps {kept >> 10} KiB"
    )


def soak_restarted(report, options, folder, ids, log):
    """The server is stopped and started again while the clients go on."""
    name = "restart, ids of the caller's" if ids else "restart, ids of the server's"
    records = [os.path.join(folder, f"record-{ids}-{n}") for n in (1, 2)]
    parameters = dict(
        python=options.python,
        port=harness.free_port(),
        write_timeout=WRITE_TIMEOUT,
        send_buffer=16 * harness.KIB,
        compress=True,
        shutdown_timeout=1.0,
        **log,
    )
    half = options.restart_seconds / 2
    with harness.Server(**parameters) as server:
        swarms = Swarms(server.address, options.clients, f"{options.seed}-{ids}")
        server.ask("storm", record=records[0], seed=f"{options.seed}-1", ids=ids)
        time.sleep(half)
        report.check(f"{name}: first exit", server.stop() == 0, "after SIGTERM")
    events = refill(records[0], folder) if ids else []
    if ids:
        parameters["before_file"] = os.path.join(folder, "refill")
    with harness.Server(**parameters) as server:
        server.ask(
            "storm",
            record=records[1],
            seed=f"{options.seed}-2",
            ids=ids,
            first=len(events),
        )
        time.sleep(half)
        server.ask("end_storm")
        counts, wrong, published = swarms.finish(records)
        check_transcripts(report, name, counts, wrong, published)
        if ids:
            report.check(f"{name}: no gap", not counts["gap"], f"{counts['gap']} gaps")
        else:
            report.check(
                f"{name}: gaps", counts["gap"] > 0, f"{counts['gap']} gaps, verified"
            )
        report.check(f"{name}: second exit", server.stop() == 0, "after SIGTERM")


def refill(record, folder):
    """Write the record as events for the next server to begin with."""
    with open(record, encoding="utf-8") as lines:
        events = [json.loads(line) for line in lines]
    events.sort(key=lambda event: swarm.parse_id(event[0]))
    with open(os.path.join(folder, "refill"), "w", encoding="utf-8") as file:
        for id, channel, name, _, data in events:
            event = {"data": data, "channel": channel, "id": id, "event": name}
            event["retain"] = name is not None
            file.write(json.dumps(event) + "\n")
    return events


def main():
    options = harness.arguments(
        __doc__,
        seconds=60.0,
        deliveries=1_000_000,
        clients=300,
        restart_seconds=16.0,
        python=sys.executable,
    )
    report = harness.Report("soak")
    with tempfile.TemporaryDirectory() as folder:
        soak(report, options, folder)
        soak_restarted(report, options, folder, "", SMALL_LOG)
        soak_restarted(report, options, folder, "job", LARGE_LOG)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
