"""Client libraries: each must hand out exactly the events that were published.

usage: clients.py     (with the environment that install.sh prints)
"""

import asyncio
import contextlib
import json
import sys
from dataclasses import replace

from harness import ANSWER_LIMIT, HERE, Curl, Event, Report, Server, expect, until_async

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


DEVIATIONS = {
    "requests-sse": [strips_data],
    "aiohttp-sse-client": [strips_data, leaves_type_unset],
}
PYTHON_CLIENTS = ["httpx-sse", "sseclient-py", "requests-sse", "aiohttp-sse-client"]
NODE_CLIENTS = ["eventsource", "undici"]
RECONNECTING = ["eventsource", "undici", "requests-sse", "aiohttp-sse-client"]


class Client:
    """One of the libraries, in a process of its own."""

    def __init__(self, process):
        self._process = process
        self.events = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def watching(cls, library, url):
        if library in NODE_CLIENTS:
            command = ["node", HERE / "client.cjs", library, url, *NAMES]
        else:
            command = [sys.executable, HERE / "client.py", library, url]
        client = cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=ANSWER_LIMIT,
            )
        )
        try:
            yield client
        finally:
            await client.leave()

    async def _read(self):
        async for line in self._process.stdout:
            self.events.append(Event(*json.loads(line)))

    async def received(self, count):
        await until_async(
            lambda: len(self.events) >= count or self._reading.done(),
            lambda: f"{count} events; {len(self.events)} came",
        )

    async def complaint(self):
        """The last line that the client wrote to stderr, if it ended by itself."""
        if self._process.returncode is None:
            return ""
        lines = (await self._process.stderr.read()).decode().splitlines()
        return f"; the client ended: {lines[-1]}" if lines else ""

    async def leave(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading


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
        ids += await server.publish(*part)
    return [as_seen(event, id_) for event, id_ in zip([*EVENTS, END], ids)]


async def same_events(report, compress):
    """Every client watches the same server at once.

    Where it compresses, it does so for each that asks for it, which all of them do.
    """
    what = "compressed" if compress else "published"
    async with contextlib.AsyncExitStack() as stack:
        running = Server.running(heartbeat=HEARTBEAT, compress=compress)
        server = await stack.enter_async_context(running)
        watching = Curl.watching(server.url, compressed=compress)
        curl = await stack.enter_async_context(watching)
        clients = {
            library: await stack.enter_async_context(
                Client.watching(library, server.url)
            )
            for library in PYTHON_CLIENTS + NODE_CLIENTS
        }

        await server.watched_by(1 + len(clients))
        with report.case(f"{what}: so is the stream of each client"):
            number = await server.compressed()
            expected = 1 + len(clients) if compress else 0
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


async def resume_over_restart(report):
    """The clients that reconnect by themselves lose nothing over a server's restart,
    when the new one's log is filled again with events that have the caller's ids."""
    events = [{"data": f"number {n}", "id": f"row-{n}"} for n in range(100)]
    wanted = [as_seen(event, event["id"]) for event in events]
    async with contextlib.AsyncExitStack() as stack:
        quickly = {"_RESTART_RETRY_SECONDS": 1.0}
        server = await Server.start(limits=quickly)
        clients = {
            library: await stack.enter_async_context(
                Client.watching(library, server.url)
            )
            for library in RECONNECTING
        }

        await server.watched_by(len(clients))
        await server.publish(*events[:60])
        for client in clients.values():
            await client.received(60)
        await server.stop()
        again = Server.running(port=server.port)
        server = await stack.enter_async_context(again)
        await server.publish(*events)
        for library, client in clients.items():
            with report.case(f"{library} resumes over a restart, each event once"):
                await client.received(len(wanted))
                seen = [replace(event, type="message") for event in client.events]
                expect(seen == wanted, first_difference(seen, wanted))


async def main():
    report = Report("clients")
    with report.case("all clients watch one server to its last event"):
        await same_events(report, compress=False)
    with report.case("all clients watch one that compresses"):
        await same_events(report, compress=True)
    with report.case("all that reconnect by themselves find the server that is back"):
        await resume_over_restart(report)
    return report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
