"""Browsers and client libraries: each must hand out exactly the events that were
published, over restarts, crashes and connections that are cut within an event; also
through a development proxy that compresses what it passes on.

usage: clients.py     (with the environment that `prepare` of common.sh makes)
"""

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import replace

from common import Cutting, Report, Server, expect, free_port, until_async
from harness import HERE, Curl, Event, Watcher, watched_by

HEARTBEAT = 0.05  # seconds: many of them between the events
QUIET_HEARTBEATS = 10  # that pass before, between and after the events
MEGABYTE = 1_000_000

TEXTS = [
    "plain",
    "LF\nCR\rCRLF\r\nall end a line",
    "\n\r\n\r",
    "ends with a newline\n",
    "ends with two\n\n",
    "",
    " one leading space",
    "   three\n  and two\n\tand a tab",
    ": not a comment",
    "data: not a field\nid: nor this\n\nretry: 1\n",
    "🦊 👩‍👩‍👧‍👦 e\u0301 ünïcödé 漢字",
    "LS\u2028PS\u2029NEL\u0085VT\x0bFF\x0cFS\x1cGS\x1dRS\x1e end no line",
    "\ufeffa BOM at the start and \ufeff inside",
    "NUL \0 is text too",
    "x" * MEGABYTE,
    # Not a megabyte: for some libraries the time grows with the square of the lines.
    "a 🦊 in many lines\n" * 5000,
]
EVENTS = [
    *({"data": text} for text in TEXTS),
    {"data": {"t": "2026-01-01T00:00:00Z", "n": [1.5, None, True], "s": "é\n"}},
    {"data": "named", "event": "news"},
    {"data": "named, not ASCII", "event": "prix €"},
    {"data": "the caller's id", "id": "order 17/é"},
    {"data": "both", "event": "news", "id": "order 18"},
]
END = {"data": "over", "event": "end"}
NAMES = ["gap", "news", "prix €", "end"]

# Where a library departs from the HTML standard (section 9.2.6) by its own decision. It
# is held to exactly this departure: an update that mends it, or does worse, fails here.


def strips_data(event):
    """The standard removes ONE space behind the colon and ONE newline at the end of the
    data; these libraries remove all of them (lstrip and rstrip)."""
    lines = [line.lstrip(" ") for line in event.data.split("\n")]
    return replace(event, data="\n".join(lines).rstrip("\n"))


def leaves_type_unset(event):
    """The standard's default type is "message"; this library says None."""
    return replace(event, type=None) if event.type == "message" else event


def drops_empty_lines(event):
    """The standard keeps the empty lines that the data begins with."""
    return replace(event, data=event.data.lstrip("\n"))


def drops_nul(event):
    """NUL is text; this browser leaves it out."""
    return replace(event, data=event.data.replace("\0", ""))


def drops_marks(event):
    """A BOM at the start of a line is text; this library decodes each line anew."""
    return replace(event, data=event.data.replace("\n\ufeff", "\n").lstrip("\ufeff"))


DEVIATIONS = {
    "Firefox": [drops_nul],
    "requests-sse": [strips_data],
    "aiohttp-sse-client": [strips_data, leaves_type_unset],
    "@microsoft/fetch-event-source": [drops_empty_lines, drops_marks],
}
PYTHON_CLIENTS = ["httpx-sse", "sseclient-py", "requests-sse", "aiohttp-sse-client"]
ASK_FOR_NO_GZIP = ["launchdarkly-eventsource"]
NODE_CLIENTS = ["Chromium", "Firefox", "eventsource", "undici", *ASK_FOR_NO_GZIP]
NODE_CLIENTS.append("@microsoft/fetch-event-source")
# Microsoft's takes the end of a stream, as a restart makes it, for the last.
RECONNECTING = [*NODE_CLIENTS[:-1], "requests-sse", "aiohttp-sse-client"]
# aiohttp's raises the error of a connection that was cut.
RECONNECTING_AFTER_CUTS = [*NODE_CLIENTS, "requests-sse"]
CUTS, EVENTS_PER_CUT = 8, 60
AT_ONCE = 1.0  # seconds: an event that takes longer was held back


class Client(Watcher):
    """One of the libraries, in a process of its own."""

    @classmethod
    def watching(cls, library, url):
        if library in NODE_CLIENTS:
            return cls.running("node", HERE / "client.cjs", library, url, *NAMES)
        return cls.running(sys.executable, HERE / "client.py", library, url)


def as_seen(event, id_):
    """What a client must make of a published event, by the standard."""
    data = event["data"]
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    data = data.replace("\r\n", "\n").replace("\r", "\n")
    return Event(event.get("event", "message"), data, id_)


def by(library, events):
    """The events as the library is known to show them."""
    for deviation in DEVIATIONS.get(library, ()):
        deviating = [deviation(event) for event in events]
        expect(deviating != events, f"no event shows that it {deviation.__name__}")
        events = deviating
    return events


def first_difference(seen, wanted):
    for number, (one, other) in enumerate(zip(seen, wanted)):
        if one != other:
            return f"event {number} is {one!s:.200}, should be {other!s:.200}"
    return f"{len(seen)} events, should be {len(wanted)}"


def compare(library, seen, wanted, complaint=""):
    wanted = by(library, wanted)
    expect(seen == wanted, first_difference(seen, wanted) + complaint)


async def heartbeats(curl, more):
    enough = curl.decoder.comments + more
    await until_async(lambda: curl.decoder.comments >= enough, f"{more} heartbeats")


async def publish_all(server, curl):
    """Publish the events with silence around them; returns what clients should see."""
    half = len(EVENTS) // 2
    ids = []
    for part in (EVENTS[:half], EVENTS[half:], [END]):
        await heartbeats(curl, QUIET_HEARTBEATS)
        ids += server.publish(*part)
    return [as_seen(event, id_) for event, id_ in zip([*EVENTS, END], ids)]


async def same_events(report, compress):
    """Every client watches the same server at once.

    Where it compresses, it does so for each that asks for it, which all of them do.
    """
    what = "compressed" if compress else "published"
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = stack.enter_context(Server(heartbeat=HEARTBEAT, compress=compress))
        clients = await enter(watched(server, PYTHON_CLIENTS + NODE_CLIENTS))
        curl = await enter(Curl.watching(server.url, compressed=compress))
        await watched_by(server, 1 + len(clients))
        with report.case(f"{what}: so is the stream of each client"):
            number = server.compressed()
            asking = 1 + len(clients) - len(ASK_FOR_NO_GZIP)
            expected = asking if compress else 0
            expect(number == expected, f"{number} compressed streams, not {expected}")
        wanted = await publish_all(server, curl)
        with report.case(f"curl sees what was {what}, nothing else") as notes:
            await curl.received(len(wanted))
            compare("curl", curl.events, wanted)
            notes.append(f"{len(wanted)} events, {curl.decoder.comments} heartbeats")
        for library, client in clients.items():
            known = [d.__name__ for d in DEVIATIONS.get(library, ())]
            name = f"{library} sees what was {what}, nothing else"
            with report.case(name) as notes:
                await client.received(len(wanted))
                compare(library, client.events, wanted, await client.complaint())
                notes += [f"known deviation: {deviation}" for deviation in known]


@contextlib.asynccontextmanager
async def watched(server, libraries):
    """Each library's client, when all of them have their streams."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for library in libraries:
            watching = Client.watching(library, server.url)
            clients[library] = await stack.enter_async_context(watching)
        await watched_by(server, len(clients), within=60)  # browsers have to start
        yield clients


async def resume(report, what, libraries, number, held=True):
    """The server ends in this way and starts anew.  Where the new one's log was filled
    again with all that had been published, nothing is lost; else a gap is told of."""
    events = [{"data": f"number {n}", "id": f"row-{n}"} for n in range(101)]
    server = Server(retry=4.0, restart_retry=1.0, compress=True)
    async with watched(server, libraries) as clients:
        for start, end in ((0, 1), (1, 2), (2, 3), (3, 60)):
            server.publish(*events[start:end])
            for client in clients.values():  # it waits for no more, heartbeats included
                await client.received(end, within=5 * AT_ONCE)
        await asyncio.to_thread(server.stop, number)
        with Server(port=server.port, compress=True) as again:
            again.publish(*events[0 if held else 60 : 100])
            await watched_by(again, len(clients))
            again.publish(events[100])
            for library, client in clients.items():
                with report.case(f"{library} {what}"):
                    await client.received(101 + (not held))
                    seen = [e.data for e in client.events if e.type != "gap"]
                    wanted = [event["data"] for event in events]
                    expect(seen == wanted, first_difference(seen, wanted))
                    gaps = [n for n, e in enumerate(client.events) if e.type == "gap"]
                    expect(gaps == ([] if held else [60]), f"gaps at {gaps}")


async def resume_over_cuts(report, library):
    """In the middle of an event: it is not complete, and must come again."""
    total = CUTS * 2 * EVENTS_PER_CUT
    what = f"{library} resumes over cut connections, each event once"
    with report.case(what) as notes:
        async with contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            server = stack.enter_context(Server(retry=0.1, history=total))
            due = lambda _, events: events > EVENTS_PER_CUT and relay.cuts < CUTS
            relay = Cutting(server.port, due)
            listener = await enter(await asyncio.start_server(relay, "127.0.0.1", 0))
            port = listener.sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}/sse"
            client = await enter(Client.watching(library, url))
            await watched_by(server, 1)
            server.ask("pump", rate=200, seconds=total / 200)
            await client.received(1)
            number = lambda data: json.loads(data).get("number", "gap")
            complete = lambda: client.ended or number(client.data[-1]) == total - 1
            came = lambda: f"the last event; {len(client.events)} came"
            await until_async(complete, came, within=40)
            numbers = [number(data) for data in client.data]
            lost = sorted({*range(total)} - {*numbers})
            notes.append(f"{total} events, {relay.cuts} cuts")
            expect(relay.cuts == CUTS, f"{relay.cuts} cuts")
            expect(not lost, f"lost in silence: {lost[:20]}")
            expect(numbers == [*range(total)], "twice, or not in order")


async def development_proxy(report):
    """express, compression and http-proxy-middleware, as many a project has them."""
    for compress in (False, True):
        name = f"a compressing development proxy, compress={compress}: at once"
        async with contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            server = stack.enter_context(Server(compress=compress))
            port = free_port()
            command = ["node", HERE / "devproxy.cjs", str(port), str(server.port)]
            proxy = await enter(Watcher.running(*command))
            await until_async(lambda p=proxy: p.events, "the proxy listens")
            url = f"http://127.0.0.1:{port}/sse"
            curl = await enter(Curl.watching(url, compressed=True))
            with report.case(name):
                await watched_by(server, 1)
                for number in range(10):
                    server.publish(f"number {number}")
                    await curl.received(number + 1, within=AT_ONCE)


async def main():
    report = Report("clients")
    with report.case("all clients watch one server to its last event"):
        await same_events(report, compress=False)
    with report.case("all clients watch one that compresses"):
        await same_events(report, compress=True)
    for what, *how in (
        ("resumes over a restart, each event once", RECONNECTING, signal.SIGTERM),
        ("is told of a gap after a restart", RECONNECTING, signal.SIGTERM, False),
        ("resumes over a crash", RECONNECTING_AFTER_CUTS, signal.SIGKILL),
    ):
        with report.case(f"each that reconnects by itself {what}"):
            await resume(report, what, *how)
    cut = (resume_over_cuts(report, library) for library in RECONNECTING_AFTER_CUTS)
    await asyncio.gather(*cut)
    with report.case("a development proxy"):
        await development_proxy(report)
    return report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
