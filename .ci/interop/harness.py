"""What the checks in Python share: programs that watch a stream, such as curl."""

import asyncio
import contextlib
import json
import pathlib
from dataclasses import dataclass

from common import Decoder, expect, until_async

HERE = pathlib.Path(__file__).resolve().parent

ANSWER_LIMIT = 16 * 1024 * 1024  # bytes in one line of any program read from here
PATIENCE = 15.0  # seconds that anything awaited may take on a busy machine


async def watched_by(server, count, within=PATIENCE):
    """Wait until this many clients have a stream open."""
    what = f"{count} open streams"
    await until_async(lambda: server.streams() == count, what, within)


class Watcher:
    """A program that watches a stream; `events` are what it has seen so far."""

    def __init__(self, process):
        self._process = process
        self.events = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *command):
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=ANSWER_LIMIT
        )
        watcher = cls(process)
        try:
            yield watcher
        finally:
            await watcher.leave()

    async def _read(self):
        """Its output is a line for each event: [type, data, id]."""
        async for line in self._process.stdout:
            self.events.append(Event(*json.loads(line)))

    @property
    def data(self):
        return [event.data for event in self.events]

    @property
    def ended(self):
        return self._reading.done()

    async def received(self, count, within=PATIENCE):
        await until_async(
            lambda: len(self.events) >= count or self.ended,
            lambda: f"{count} events; {len(self.events)} came",
            within,
        )
        expect(len(self.events) >= count, f"{len(self.events)} of {count} events came")

    async def complaint(self):
        """The last line that the program wrote to stderr, if it ended by itself."""
        if self._process.returncode is None:
            return ""
        lines = (await self._process.stderr.read()).decode().splitlines()
        return f"; the client ended: {lines[-1]}" if lines else ""

    async def leave(self):
        if self._process.returncode is None:
            self._process.stdin.close()  # by which a browser is ended, too
            self._process.terminate()
        await self._process.wait()
        await self._reading


@dataclass(frozen=True)
class Event:
    """An event as a client sees it."""

    type: str
    data: str
    id: str  # the last event id at the time of dispatch


class Curl(Watcher):
    """`curl -N`, watching a stream."""

    def __init__(self, process):
        self.decoder = Decoder()
        super().__init__(process)

    @classmethod
    def watching(cls, url, *, compressed=False):
        asking = ["--compressed"] * compressed
        return cls.running("curl", "-N", "--silent", "--fail", *asking, url)

    async def _read(self):
        while chunk := await self._process.stdout.read(65536):
            for id, name, data in self.decoder.feed(chunk):
                self.events.append(Event(name, data.decode(), id))

    async def connected(self, within=PATIENCE):
        """Wait for the stream's first bytes."""
        first = "the first bytes"
        await until_async(lambda: self.decoder.retry is not None, first, within)
