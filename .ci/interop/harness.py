"""What the checks in Python share: a server to command, curl as a watcher, a report."""

import asyncio
import contextlib
import json
import pathlib
import signal
import sys
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import Decoder, Failure, Report, expect, until_async  # noqa: F401

ANSWER_LIMIT = 16 * 1024 * 1024  # bytes in one line of any program read from here
PATIENCE = 15.0  # seconds that anything awaited may take on a busy machine


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

        await until_async(so_many, f"{count} open streams", within)

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


class Curl:
    """`curl -N`, watching a stream; `decoder` has what it has seen so far."""

    def __init__(self, process):
        self._process = process
        self.decoder = Decoder()
        self.events = []
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
            for id, name, data in self.decoder.feed(chunk):
                self.events.append(Event(name, data.decode(), id))

    @property
    def data(self):
        return [event.data for event in self.events]

    @property
    def ended(self):
        return self._reading.done()

    async def connected(self, within=PATIENCE):
        """Wait for the stream's first bytes."""
        await until_async(
            lambda: self.decoder.retry is not None, "the first bytes", within
        )

    async def received(self, count, within=PATIENCE):
        await until_async(
            lambda: len(self.events) >= count,
            lambda: f"{count} events; {len(self.events)} came",
            within,
        )

    async def leave(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading
