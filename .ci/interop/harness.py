"""What the checks in Python share: a server to command, curl as a watcher, a report."""

import asyncio
import contextlib
import json
import pathlib
import signal
import sys
import time
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import Failure, Report, expect  # noqa: F401

ANSWER_LIMIT = 16 * 1024 * 1024  # bytes in one line of any program read from here
PATIENCE = 15.0  # seconds that anything awaited may take on a busy machine


async def until(condition, what, within=PATIENCE):
    """Wait until condition(), which may be a coroutine function, holds.

    what: the words, or a function that finds them, for the failure.
    """
    deadline = time.monotonic() + within
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return holds
        if time.monotonic() > deadline:
            what = what() if callable(what) else what
            raise Failure(f"not within {within:g} s: {what}")
        await asyncio.sleep(0.01)


class Server:
    """server.py in a process of its own, on 127.0.0.1 unless told otherwise."""

    def __init__(self, process, port):
        self._process = process
        self.port = port

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, **options):
        server = await cls.start(**options)
        try:
            yield server
        finally:
            await server.stop()

    @classmethod
    async def start(cls, **options):
        options.setdefault("host", "127.0.0.1")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            HERE / "server.py",
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=ANSWER_LIMIT,
        )
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        expect(line, "the server did not start")
        return cls(process, json.loads(line)["port"])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/sse"

    async def ask(self, command, **arguments):
        line = json.dumps({"do": command, **arguments}) + "\n"
        self._process.stdin.write(line.encode())
        await self._process.stdin.drain()
        answer = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        expect(answer, f"the server ended at the command {command}")
        return json.loads(answer)

    async def publish(self, *events):
        """Publish events (each a dict, or just the data); returns their ids."""
        events = [e if isinstance(e, dict) else {"data": e} for e in events]
        return (await self.ask("publish", events=events))["ids"]

    async def stats(self):
        return await self.ask("stats")

    async def compressed(self):
        """How many open streams are compressed."""
        return (await self.ask("compressed"))["streams"]

    async def watched_by(self, count, within=PATIENCE):
        """Wait until this many clients have a stream open."""

        async def so_many():
            stats = await self.stats()
            return stats["live"] + stats["behind"] == count

        await until(so_many, f"{count} open streams", within)

    async def stop(self):
        """SIGTERM, as a service manager would; returns the exit status."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), PATIENCE)


@dataclass(frozen=True)
class Event:
    """An event as a client sees it."""

    type: str
    data: str
    id: str  # the last event id at the time of dispatch


class EventStreamDecoder:
    """Bytes in, events out, as the HTML standard interprets an event stream."""

    def __init__(self):
        self.events = []
        self.comments = 0
        self.retry = None  # milliseconds
        self._pending = b""
        self._at_start = True
        self._type, self._data, self._last_id = "", [], ""

    def feed(self, chunk):
        self._pending += chunk
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        usable = self._pending[:-1] if self._pending[-1:] == b"\r" else self._pending
        lines = usable.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pending = lines.pop() + self._pending[len(usable) :]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def _line(self, line):
        if self._at_start:
            self._at_start = False
            line = line.removeprefix("\ufeff")
        if not line:
            self._dispatch()
        elif line.startswith(":"):
            self.comments += 1
        else:
            field, _, value = line.partition(":")
            self._field(field, value.removeprefix(" "))

    def _field(self, field, value):
        if field == "event":
            self._type = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._last_id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)

    def _dispatch(self):
        if self._data:
            type_ = self._type or "message"
            self.events.append(Event(type_, "\n".join(self._data), self._last_id))
        self._type, self._data = "", []


class Curl:
    """`curl -N`, watching a stream; `decoder` has what it has seen so far."""

    def __init__(self, process):
        self._process = process
        self.decoder = EventStreamDecoder()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def watching(cls, url, *, last_event_id=None, compressed=False):
        resume = ["-H", f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        resume += ["--compressed"] * compressed
        curl = cls(
            await asyncio.create_subprocess_exec(
                *("curl", "--no-buffer", "--silent", "--fail", *resume, url),
                stdout=asyncio.subprocess.PIPE,
            )
        )
        try:
            yield curl
        finally:
            await curl.leave()

    async def _read(self):
        while chunk := await self._process.stdout.read(65536):
            self.decoder.feed(chunk)

    @property
    def events(self):
        return self.decoder.events

    @property
    def data(self):
        return [event.data for event in self.events]

    @property
    def ended(self):
        return self._reading.done()

    async def connected(self, within=PATIENCE):
        """Wait for the stream's first bytes."""
        await until(lambda: self.decoder.retry is not None, "the first bytes", within)

    async def received(self, count, within=PATIENCE):
        await until(
            lambda: len(self.events) >= count,
            lambda: f"{count} events; {len(self.events)} came",
            within,
        )

    async def leave(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading
