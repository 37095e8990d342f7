"""The relay recipe, mistreated: an origin and four relays that share a port, with
clients that come back at any of them; nothing lost without a gap, nothing twice.

Relays are killed, and stopped for longer than a heartbeat; so is the origin; and the
connections between them are cut in the middle of an event.  Then a relay follows a
stream of another library, and one ends when its origin answers 204.

usage: relay.py
"""

import asyncio
import contextlib
import signal
import sys
import threading
import time

import common
from common import PATIENCE, Report, expect, until
from fleet import Fleet, Posting, post
from harness import Stream, Workshop

CLIENTS, RATE, SECONDS = 1000, 100, 24  # RATE: events a second
ORIGIN, RELAYS, BETWEEN = 8080, 8081, 8090  # ports
STREAM = f"http://localhost:{ORIGIN}/sse"
FLEETS = 2  # processes of clients
HEARTBEAT, SILENCE, STOPPED = 0.5, 1.5, 2.5  # seconds


class Between(threading.Thread):
    """Passes on between the relays and the origin, until it is told to cut."""

    def __init__(self):
        super().__init__(daemon=True)
        self._cut_to = 0  # the connections with these numbers
        self._relay = common.Cutting(ORIGIN, lambda number, _: number <= self._cut_to)

    @property
    def cuts(self):
        return self._relay.cuts

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        async with await asyncio.start_server(self._relay, "127.0.0.1", BETWEEN) as one:
            await one.serve_forever()

    def cut(self):
        """In the middle of the next event of each connection."""
        self._cut_to = self._relay.connections


def origin_of(workshop):
    program = f"python sse_server.py --port {ORIGIN} --heartbeat {HEARTBEAT}"
    token = {"SSE_PUBLISH_TOKEN": "secret"}
    return workshop.start(f"{program} --history 5000 --quiet", port=ORIGIN, env=token)


def relay_of(workshop, port=RELAYS, url=f"http://localhost:{BETWEEN}/sse", **env):
    env = {"SILENCE": str(SILENCE), **env}
    return workshop.python("relay_feed.py", port, url, port=port, env=env)


@contextlib.contextmanager
def stopped(program):
    program.signal(signal.SIGSTOP)
    time.sleep(STOPPED)
    yield
    program.signal(signal.SIGCONT)


def killed(program):
    program.kill()
    time.sleep(1)
    program.start()


def incidents(publisher, origin, relays, between):
    publisher.reached(0.1)
    killed(relays[0])
    publisher.reached(0.3)
    between.cut()
    until(lambda: between.cuts >= 3, "the cuts")
    publisher.reached(0.4)
    with stopped(relays[1]):
        killed(relays[2])
    publisher.reached(0.55)
    with stopped(origin):
        pass
    publisher.reached(0.7)
    killed(origin)
    publisher.reached(0.85)
    between.cut()
    killed(relays[3])


def mistreated(report, workshop):
    total = RATE * SECONDS
    name = "four relays of one origin: nothing lost in silence, nothing twice"
    with report.case(name) as notes, contextlib.ExitStack() as stack:
        origin = stack.enter_context(origin_of(workshop))
        between = Between()
        between.start()
        post(STREAM, 0)
        relays = [stack.enter_context(relay_of(workshop)) for _ in range(4)]
        ports = [RELAYS] * 4 + [ORIGIN]
        fleet = stack.enter_context(Fleet(FLEETS, CLIENTS // FLEETS, total, ports))
        publisher = Posting(total, RATE, STREAM)
        wrong = lambda: incidents(publisher, origin, relays, between)
        counts = fleet.lives_through(publisher, wrong)
        notes.append(f"{fleet.clients} clients x {total} events at {RATE}/s")
        notes.append(", ".join(f"{name} {count}" for name, count in counts.items()))
        notes.append(f"{publisher.errors} failed posts, {between.cuts} events cut")
        expect(not counts["repeated"] and not counts["silent"], "; ".join(notes))
        expect(counts["cut"] > fleet.clients / 2, "the clients were not cut")


OTHER = """
import asyncio, fastapi, uvicorn
from sse_starlette.sse import EventSourceResponse

app = fastapi.FastAPI()

@app.get("/events")
async def events(request: fastapi.Request):
    async def numbers(last):
        for number in range(last + 1, last + 4):
            yield {"id": str(number), "event": "tick", "data": f"number {number}\\ntwo"}
    return EventSourceResponse(numbers(int(request.headers.get("last-event-id", 0))))

@app.get("/over")
async def over():
    return fastapi.Response(status_code=204)

uvicorn.run(app, port=8000, log_level="error")
"""


def another_library(report, workshop):
    """It ends its stream after three events, and goes on with the next three."""
    workshop.write("other.py", OTHER)
    other = workshop.start("python other.py", port=8000)
    with other, report.case("a relay of a stream of sse-starlette, resumed each time"):
        url = "http://localhost:8000/events"
        with relay_of(workshop, url=url) as relay, Stream(RELAYS, "1") as stream:
            events = stream.take(6)
            ids = [event["id"] for event in events]
            expect(ids == list("234567"), f"not one after the other: {events}")
            expect(events[0]["data"] == "number 2\ntwo", f"not its data: {events[0]}")
            expect(events[0]["event"] == "tick", f"not its name: {events[0]}")
            status = relay.stop()
            expect(status == 0, f"status {status} at SIGTERM: {relay.output()}")
    with other, report.case("a relay whose origin answers 204 ends"):
        other.start()
        relay = workshop.python("relay_feed.py", RELAYS, "http://localhost:8000/over")
        status = relay.process.wait(PATIENCE)
        expect(status == 0, f"status {status}: {relay.output()[-1000:]}")


def keeps_state(report, workshop):
    with (
        report.case("a relay retains what it is told, and is told of gaps"),
        origin_of(workshop) as origin,
    ):
        state = lambda text: post(f"{STREAM}?event=state&retain=1", text)
        state("one")
        with relay_of(workshop, url=STREAM, RETAIN="state"):
            with Stream(RELAYS) as stream:
                expect(stream.next()["data"] == "one", "not what was retained")
                killed(origin)
                state("two")
                event = stream.next()
                expect(event.get("event") == "gap", f"no gap: {event}")
                until(lambda: stream.next()["data"] == "two", "the new state")
            with Stream(RELAYS) as late:
                expect(late.next()["data"] == "two", "not the newest state")


def main():
    common.enter_private_network()
    common.raise_descriptor_limit()
    report = Report("relay")
    with Workshop() as workshop:
        keeps_state(report, workshop)
        another_library(report, workshop)
        mistreated(report, workshop)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
