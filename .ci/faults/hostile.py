#!/usr/bin/env python3
"""Hostile input: fuzzers, heads of the worst shape, and header injection.

The inputs and what is demanded of them are the unit tests' own (FuzzTest), which try some
thousands themselves.

usage: hostile.py [--only NAME ...] [--seed N] [--seconds S] [--python PYTHON]
       $FUZZ_PYTHON is one that has atheris.  Without it no fuzzer is guided by coverage,
       and that is said.
"""

import collections
import contextlib
import functools
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import timeit

from common import MODULE, Client, Server, connect, run, run_checks

sys.path.insert(0, str(MODULE.parent))

TOKEN = "secret"
ORIGIN = "https://good.example"
CONNECTIONS = 1500


def corpus(tests):
    """The requests that the unit tests try."""
    data = [head for head, _, _ in tests.ACCEPTED + tests.REFUSED_HEADS]
    data += [tests.CHUNKED + body for body, _, _ in tests.REFUSED_BODIES]
    return [one for one in data if len(one) < 1000]


def guided(report, options):
    """Guided by the coverage of the module."""
    python = os.environ.get("FUZZ_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import atheris"], check=False).returncode:
        report.note("atheris is not installed: FuzzTest must do")
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = int(options.seconds)
        command = [python, __file__, "--fuzz", folder, seconds]
        done = run(command, timeout=seconds + 60)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        for line in done.stderr.splitlines()[-12:] * bool(done.returncode):
            report.note(line)
        report.check(
            "coverage-guided fuzz of the parser",
            done.returncode == 0 and runs,
            f"{runs and runs[1]} inputs, {len(os.listdir(folder))} in the corpus",
        )


def fuzz(folder, seconds):
    """In the Python that has atheris, until the time is over or something is found."""
    import atheris

    with atheris.instrument_imports(include=["sse_server"]):
        import test_sse_server as tests

    for number, data in enumerate(corpus(tests)):
        pathlib.Path(folder, f"seed-{number}").write_bytes(data)
    case = tests.FuzzTest()

    def examine(data):
        whole = case.outcome([data])
        bytewise = case.outcome([data[n : n + 1] for n in range(len(data))])
        case.assertEqual(bytewise, whole)

    words = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=20000", "-timeout=5"]
    atheris.Setup([*words, f"-artifact_prefix={folder}/", folder], examine)
    atheris.Fuzz()


# Heads of the worst shape for some step of the parser: name, start, what is repeated, end.
GET = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n"
QUERY = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHAPES = [
    ("many fields", GET, b"a:\r\n", b"\r\n"),
    ("commas", GET + b"Connection: ", b",", b"\r\n\r\n"),
    ("spaces", GET + b"X:", b" ", b"x\r\n\r\n"),
    ("parameters", b"GET /sse?", b"a&", QUERY),
    ("escapes", b"GET /sse?a=", b"%41", QUERY),
    ("a path of escapes", b"GET /", b"%41", b" HTTP/1.0\r\n\r\n"),
    ("no colon", GET, b"a", b"\r\n\r\n"),
    ("a host", b"GET / HTTP/1.1\r\nHost: ", b"a", b":\r\n\r\n"),
    ("a length", GET + b"Content-Length: ", b"9", b"\r\n\r\n"),
    ("lengths", GET + b"Content-Length: 1", b",1", b"\r\n\r\n"),
]


def shapes(report, options):
    """Nothing is quadratic."""
    from test_sse_server import FuzzTest

    def microseconds(start, unit, end, size, repeat):
        heads = [start + unit * ((size - 100) // len(unit)) + end]
        parse = functools.partial(FuzzTest().outcome, heads)
        timer = timeit.Timer(parse, timer=time.process_time)
        return min(timer.repeat(repeat, 1)) * 1e6

    for name, *shape in SHAPES:
        short, long = microseconds(*shape, 1024, 30), microseconds(*shape, 16_384, 10)
        report.check(
            f"16 KiB of {name}",
            long < 20_000 and long / short < 40,
            f"{long:.0f} us; 1 KiB {short:.0f} us, ratio {long / short:.1f}",
        )


# Header injection: whatever is echoed.


def injections():
    """Requests that try to bring a line of their own into the answer."""
    evil = [f"a{sign}Evil:%20x" for sign in ("%0d%0a", "%0a", "%0d", "%00")]
    host, allowed = "Host: localhost\r\n", f"Authorization: Bearer {TOKEN}\r\n"
    fields = f"{host}Content-Length: 1\r\n{allowed}Origin: {ORIGIN}\r\n"
    for value in [*evil, "%E2%80%A8Evil"]:
        for name in ("channel", "last_event_id", "lastEventId"):
            yield f"GET /sse?{name}={value} HTTP/1.1\r\n{host}\r\n"
        for name in ("channel", "id", "event"):
            yield f"POST /sse?{name}={value} HTTP/1.1\r\n{fields}\r\nx"
    for sign in ("\r", "\n", "\0", "\r\n", "\x85", "\u2028"):
        value = f"{ORIGIN}{sign}Evil: x"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost{value}\r\n\r\n"
        for line in (f"GET /sse{value}", f"GET{value} /sse", f"DELETE{sign}Evil: /sse"):
            yield f"{line} HTTP/1.1\r\n{host}\r\n"
        for name in ("Origin", "Transfer-Encoding", "Expect", "Content-Length"):
            yield f"GET /sse HTTP/1.1\r\n{host}{name}: {value}\r\n\r\n"


def raw(address, data, cut=0):
    """All that comes back, in full or at most 100 KB; it is sent in two pieces."""
    received = b""
    with connect(address, timeout=5) as sock, contextlib.suppress(OSError):
        sock.sendall(data[:cut])
        sock.sendall(data[cut:])
        sock.shutdown(socket.SHUT_WR)
        while len(received) < 100_000 and (part := sock.recv(65536)):
            received += part
    return received


def injection(report, server):
    """Whatever is echoed stays within its line."""
    with Client(server.address) as witness:
        witness.open()
        injected, requests = [], list(injections())
        for text in requests:
            answer = raw(server.address, text.encode())
            if re.search(rb"(?i)(^|[\r\n])evil|\0", answer):
                injected.append((text, answer[:300]))
        server.publish("last")
        data = b""
        while data != b"last":  # ids and names of events that POST may have published
            event_id, name, data = witness.next()
            if name not in ("message", "\u2028Evil") or "\n" in event_id:
                injected.append((event_id, name, data))
    report.faultless(f"header injection, {len(requests)} tried", injected)


def served(report, options):
    """A server that is sent all of it, in pieces, while its messages are watched."""
    import test_sse_server as tests

    chance = random.Random(options.seed)
    limits = {"publish_token": TOKEN, "cors_origins": [ORIGIN], "header_timeout": 0.5}
    with Server(options.python, **limits) as server:
        injection(report, server)
        answers = collections.Counter()
        heads = corpus(tests)
        for _ in range(CONNECTIONS):
            data = bytearray(chance.choice(heads))
            for _ in range(chance.choice((1, 1, 2, 3, 8))):
                tests.FuzzTest().mutate(chance, data)
            cut = chance.choice([0, chance.randrange(len(data) + 1)])
            answers[raw(server.address, bytes(data), cut)[:12]] += 1
        allowed = rb"|HTTP/1\.1 [1-5]\d\d"
        odd = [status for status in answers if not re.fullmatch(allowed, status)]
        statuses = {status.decode()[9:] or "none": n for status, n in answers.items()}
        name = f"seeded fuzz of the server, {CONNECTIONS} connections"
        report.check(name, not odd and b"HTTP/1.1 200" in answers, str(statuses))
        # What a client is refused may be told, in a line.
        said, told = server.output().split("\n"), r"|127\.0\.0\.1:[0-9]+: .*"
        lines = [line for line in said if not re.fullmatch(told, line)]
        report.faultless("nothing is logged as an error", lines)
        report.check("exit status", server.stop() == 0, "after SIGTERM")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(*sys.argv[2:])
    else:
        sys.exit(run_checks("hostile", __doc__, shapes, guided, served, seconds=15.0))
