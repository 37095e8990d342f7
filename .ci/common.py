"""What the checks, in folders of their own, share."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import resource
import socket
import sys
import time
import traceback

MODULE = pathlib.Path(__file__).resolve().parents[1] / "sse_server.py"
LINE_LIMIT = 32 * 1024 * 1024  # bytes of a command: it may carry many events


class Failure(Exception):
    """A check's finding, in words."""


def expect(condition, problem):
    if not condition:
        raise Failure(problem)


class Report:
    """Prints PASS or FAIL for each case, and the closing line."""

    def __init__(self, part):
        self.part = part
        self.passed = self.failed = 0
        self._start = time.monotonic()

    def check(self, name, good, *notes):
        """One case, whose outcome is known; returns it."""
        self.passed += bool(good)
        self.failed += not good
        suffix = f" ({'; '.join(notes)})" if any(notes) else ""
        verdict = "PASS" if good else "FAIL"
        print(f"{verdict} {self.part}: {name}{suffix}", flush=True)
        return good

    @contextlib.contextmanager
    def case(self, name):
        """Passes when its block ends, fails with what the block raised.

        What the block appends to the list that it gets is printed behind the name.
        """
        notes = []
        try:
            yield notes
        except Exception as problem:
            self.check(name, False, f"{type(problem).__name__}: {problem}")
            if not isinstance(problem, Failure):
                traceback.print_exc()
        else:
            self.check(name, True, *notes)

    def note(self, text):
        print(f"     {text}", flush=True)

    def close(self):
        """The closing line, and the exit status."""
        seconds = time.monotonic() - self._start
        counts = f"{self.passed} passed, {self.failed} failed"
        print(f"{self.part}: {counts} in {seconds:.0f} s", flush=True)
        return 0 if self.passed and not self.failed else 1


# Waiting for what can be observed.


def wait_until(condition, seconds, period=0.02):
    """Whether the condition came true in time; if so, what it returned."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()):
        if time.monotonic() > deadline:
            return False
        time.sleep(period)
    return holds


def until(condition, what, within=30.0):
    """Wait until the condition holds, and return what it returned; else fail.

    what: the words, or a function that finds them, for the failure.
    """
    holds = wait_until(condition, within)
    if not holds:
        _fail(what, within)
    return holds


async def until_async(condition, what, within=15.0):
    """As until(), in an event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + within
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return holds
        if time.monotonic() > deadline:
            _fail(what, within)
        await asyncio.sleep(0.01)


def _fail(what, within):
    raise Failure(f"not within {within:g} s: {what() if callable(what) else what}")


class Decoder:
    """Decodes an event stream: `feed` gives (last id, event's name, data) each.

    Written from the HTML standard (9.2.5, 9.2.6).  It refuses what the standard allows
    and this server does not send: lines that end with CR, and unknown fields.
    """

    def __init__(self, last_id=""):
        self.last_id = last_id  # of the last event that was dispatched
        self.retry = None  # milliseconds
        self.comments = 0
        self._rest = b""
        self._begin()
        self._id = last_id

    def _begin(self):
        self._name = ""
        self._data = []

    def feed(self, received):
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            if line.endswith(b"\r"):
                raise ValueError(f"a line with a CR: {line[:80]!r}")
            if line:
                self._field(line)
            elif self._data:
                self.last_id = self._id
                name = self._name or "message"
                events.append((self._id, name, b"\n".join(self._data)))
                self._begin()
            else:
                self.last_id = self._id
                self._begin()
        return events

    def _field(self, line):
        name, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            self._data.append(value)
        elif name == b"id":
            self._id = value.decode()
        elif name == b"event":
            self._name = value.decode()
        elif name == b"retry":
            self.retry = int(value)
        elif not name:
            self.comments += 1
        else:
            raise ValueError(f"an unknown field: {line[:80]!r}")


def free_port():
    """A port below the range that outgoing connections take theirs from: a server that
    is stopped finds it free when it starts again."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def process_cpu(pid):
    """The seconds that a process has computed."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_rss(pid):
    """The bytes of memory that a process has resident."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def raise_descriptor_limit():
    """As LimitNOFILE= does for a service; programs started from here inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# A server in a process of its own: JSON lines in, JSON lines out.


async def command_lines():
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def obey(commands, lines):
    async for line in lines:
        command = json.loads(line)
        answer = getattr(commands, command.pop("do"))(**command)
        if asyncio.iscoroutine(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)
