"""Many processes that are one server: four on one port and two that only publish share
a history file, while clients that come and go check each event.

Calm; then one is killed (-9) and started anew each second; then one is stopped for
longer than the history holds; at last, a server that is alone is restarted again and
again.  The clients resume at whatever process they get.  Nothing is lost without a gap,
nothing comes twice, and every client ends with the last event.

usage: processes.py [--size full]      in six minutes what CI does in half a one
"""

import contextlib
import multiprocessing
import random
import signal
import sys
import time

import common
import swarm
from common import Report, expect
from harness import Workshop

# Clients, events a second, seconds of each part, restarts.
SIZES = {"small": (40, 200, 6, 10), "full": (400, 500, 60, 100)}
HOLDS_ALL, HOLDS_LITTLE = 200_000, 300  # events
SERVER = """
import asyncio, sys, sse_server
server = sse_server.SSEServer(
    "127.0.0.1", int(sys.argv[1]), history_file="history.db", reuse_port=True,
    history=int(sys.argv[2]), history_bytes=2**28, retry=0.05, restart_retry=0.05,
    heartbeat=1,
)
asyncio.run(server.serve_forever())
"""
# Until it is told to end; notes what it published as storm.py does.
PUBLISHER = """
import json, signal, sys, time, zlib, sse_server
who, period = sys.argv[1], float(sys.argv[2])
ended = []  # an Event's lock may be held when the signal comes
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
server = sse_server.SSEServer(port=None, history_file="history.db")
record = open(f"record-{who}", "w")
def publish(data, name=None):
    id = server.publish(data, event=name, retain=name is not None)
    print(json.dumps([id, None, name, zlib.crc32(data.encode())]), file=record)
begun, number = time.monotonic(), 0
while not ended:
    time.sleep(max(0, begun + number * period - time.monotonic()))
    publish(f"{who} {number}", f"kept{who}" if number % 50 == 0 else None)
    number += 1
if who == "last":
    publish("end")
"""


def restart(server):
    """Killed, or now and then told to end."""
    random.choice((server.kill, server.kill, server.stop))()
    server.start()


def pause(server):
    server.signal(signal.SIGSTOP)
    time.sleep(random.choice((0.3, 3)))
    server.signal(signal.SIGCONT)


def watch(port, clients, is_over, records):
    """Until all is published: what the clients did and saw, and what is wrong in it."""
    seen = multiprocessing.Value("q")
    flock = swarm.Swarm(("127.0.0.1", port), clients, random.random(), seen, [()])
    flock.run(is_over, patience=120)
    return swarm.verified(flock, records)


def part(report, name, sizes, incident, count, history=HOLDS_ALL):
    """One part; `count` incidents, each to one of the servers, or as many seconds.

    sizes: clients, events a second, servers."""
    clients, rate, servers = sizes
    with (
        report.case(name) as notes,
        Workshop() as workshop,
        contextlib.ExitStack() as running,
    ):
        port = common.free_port()
        workshop.write("server.py", SERVER)
        workshop.write("publisher.py", PUBLISHER)

        def start(*words, port=None):
            program = workshop.start(["python", *words], port=port)
            return running.enter_context(program)

        group = [start("server.py", port, history, port=port) for _ in range(servers)]
        over, who = multiprocessing.Event(), ("first", "last")
        records = [workshop.folder / f"record-{one}" for one in who]
        watching = common.Child(watch, port, clients, over.is_set, records)
        publishers = [start("publisher.py", one, 2 / rate) for one in who]
        for _ in range(count):
            time.sleep(1 if servers > 1 else 0.2)
            incident(random.choice(group))
        for publisher in publishers:
            expect(publisher.stop() == 0, f"a publisher failed: {publisher.output()}")
        over.set()
        counts, faults = watching.result(300)
        lines = [line for path in records for line in swarm.lines_of(path)]
        numbers = {swarm.parse_id(id)[1] for id, *_ in lines}
        connections = counts["HTTP/1.0"] + counts["HTTP/1.1"]
        notes.append(f"{len(lines)} events, {counts['event']} deliveries")
        notes.append(f"{connections} connections, {counts['gap']} gaps")
        expect(not faults, f"{len(faults)} wrong: {faults[:3]}")
        expect(len(lines) == len(numbers) == max(numbers), "numbers are left out")
        all_is_held = history == HOLDS_ALL
        expect(not (all_is_held and counts["gap"]), "a gap, and nothing is lost")


def main():
    options = common.arguments(__doc__, size="small")
    clients, rate, seconds, restarts = SIZES[options.size]
    report, sizes = Report("processes"), (clients, rate, 4)
    part(report, "calm", sizes, lambda server: None, seconds)
    part(report, "killed each second", sizes, restart, seconds)
    name, times = "stopped for longer than the history", max(3, seconds // 3)
    part(report, name, sizes, pause, times, HOLDS_LITTLE)
    part(report, f"{restarts} restarts", (5, 50, 1), restart, restarts)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
