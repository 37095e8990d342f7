"""Many processes that are one server: four on one port and two that only publish share
a history file, while clients check each event.

Calm; then one is killed (-9) and started anew each second; then one is stopped for
longer than the history holds; at last, a server that is alone is restarted again and
again.  The clients resume at whatever process they get.  Nothing is lost without a gap,
nothing comes twice, and every client ends with the last event.

usage: processes.py [--size full]
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import time

from harness import Report, Workshop, arguments, common, expect

# Clients, events a second, seconds of each part, restarts.
SIZES = {"small": (40, 200, 6, 10), "full": (400, 500, 60, 100)}
SILENCE = 5.0  # seconds without a heartbeat: a client takes the process for stopped
CATCH_UP_SECONDS = 120.0  # for the last client to have the last event
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
# Until it is told to end.
PUBLISHER = """
import signal, sys, time, sse_server
who, period = int(sys.argv[1]), float(sys.argv[2])
ended = []  # an Event's lock may be held when the signal comes
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
server = sse_server.SSEServer(port=None, history_file="history.db")
begun, number = time.monotonic(), 0
while not ended:
    time.sleep(max(0, begun + number * period - time.monotonic()))
    kept = {"retain": True, "event": f"kept{who}"} if number % 50 == 0 else {}
    id = server.publish([who, number], **kept)
    print(id.rpartition("-")[2], number, flush=True)
    number += 1
"""


class Found:
    """What all clients of a part have seen together."""

    def __init__(self):
        self.events = self.gaps = self.connections = 0
        self.faults = []
        self.by_number = {}  # in the log: (publisher, its number)
        self.last = None  # number in the log, once nobody publishes


class Client:
    """Resumes again and again, and checks that each event follows the one before."""

    def __init__(self, port, found, stays):
        self._port, self._found, self._stays = port, found, stays
        self._id, self._newest = "", 0  # of its last event
        self._anew = True  # it is new, or was told of a gap

    async def run(self):
        while self._newest != self._found.last:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await self._connect()
            await asyncio.sleep(random.random() * 0.1)

    async def _connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._found.connections += 1
        stream = common.Stream(last_id=self._id)
        leaves = time.monotonic() + (3600 if self._stays else random.uniform(1, 8))
        try:
            writer.write(common.request(last_id=self._id))
            while time.monotonic() < leaves and self._newest != self._found.last:
                received = await asyncio.wait_for(reader.read(65536), SILENCE)
                if not received:
                    return
                for event in stream.feed(received):
                    self._take(*event)
        finally:
            writer.close()

    def _take(self, id, name, data):
        found, before = self._found, self._id
        found.events += 1
        self._id = id
        if name == "gap":
            found.gaps += 1
            self._anew = True
            return
        if id == before:  # retained: it does not say how far the client is
            found.faults += [] if self._anew else [f"after {before}: retained again"]
            return
        number, event = int(id.rpartition("-")[2]), tuple(json.loads(data))
        if self._anew and name != "message":  # the last retained one says it
            self._newest, self._anew = number, False
            return
        missing = number - self._newest - 1
        if missing < 0 or (missing and not self._anew):
            found.faults.append(f"{number} after {self._newest}")
        if found.by_number.setdefault(number, event) != event:
            found.faults.append(f"{number} is {event} and {found.by_number[number]}")
        self._newest, self._anew = number, False


def restart(server):
    """Killed, or now and then told to end."""
    random.choice((server.kill, server.kill, server.stop))()
    server.start()


def pause(server):
    server.signal(signal.SIGSTOP)
    time.sleep(random.choice((0.3, 3)))
    server.signal(signal.SIGCONT)


def end(publishers):
    """What was published, by its number in the log."""
    published = {}
    for who, publisher in enumerate(publishers):
        expect(publisher.stop() == 0, f"a publisher failed: {publisher.output()}")
        lines = [[*map(int, line.split())] for line in publisher.output().splitlines()]
        expect(lines == sorted(lines), "a publisher's order is not kept")
        published.update((number, (who, own)) for number, own in lines)
    return published


async def watched(port, clients, publishers, incidents, stays):
    """The clients from before the first incident until each has the last event."""
    found = Found()
    crowd = [Client(port, found, stays).run() for _ in range(clients)]
    watching = asyncio.gather(*crowd)
    await asyncio.to_thread(incidents)
    published = await asyncio.to_thread(end, publishers)
    found.last = len(published)
    await asyncio.wait_for(watching, CATCH_UP_SECONDS)
    return found, published


def part(report, name, sizes, incident, count, history=HOLDS_ALL):
    """One part; `count` incidents, each to one of the servers, or as many seconds."""
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

        def incidents():
            for _ in range(count):
                time.sleep(1 if servers > 1 else 0.2)
                incident(random.choice(group))

        publishers = [start("publisher.py", who, 2 / rate) for who in range(2)]
        watching = watched(port, clients, publishers, incidents, servers == 1)
        found, published = asyncio.run(watching)
        notes.append(f"{len(published)} events, {found.events} deliveries")
        notes.append(f"{found.connections} connections, {found.gaps} gaps")
        expect(not found.faults, f"{len(found.faults)} wrong: {found.faults[:3]}")
        expect(max(published) == len(published), "numbers are left out")
        strange = dict(found.by_number.items() - published.items())
        expect(found.by_number and not strange, f"never published: {strange}")
        expect(not found.gaps or history == HOLDS_LITTLE, "a gap, and nothing is lost")


def main():
    clients, rate, seconds, restarts = SIZES[arguments(__doc__).size]
    report, sizes = Report("processes"), (clients, rate, 4)
    part(report, "calm", sizes, lambda server: None, seconds)
    part(report, "killed each second", sizes, restart, seconds)
    name, times = "stopped for longer than the history", max(3, seconds // 3)
    part(report, name, sizes, pause, times, HOLDS_LITTLE)
    part(report, f"{restarts} restarts", (5, 50, 1), restart, restarts)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
