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

    @contextlib.contextmanager
    def case(self, name):
        """Passes when its block ends, fails with what the block raised.

        What the block appends to the list that it gets is printed behind the name.
        """
        notes = []
        try:
            yield notes
        except Exception as problem:
            self.failed += 1
            self._line("FAIL", name, [f"{type(problem).__name__}: {problem}"])
            if not isinstance(problem, Failure):
                traceback.print_exc()
        else:
            self.passed += 1
            self._line("PASS", name, notes)

    def _line(self, verdict, name, notes):
        suffix = f" ({'; '.join(notes)})" if notes else ""
        print(f"{verdict} {self.part}: {name}{suffix}", flush=True)

    def close(self):
        """The closing line, and the exit status."""
        print(f"{self.part}: {self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.passed and not self.failed else 1


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
