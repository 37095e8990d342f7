#!/usr/bin/env python3
"""Hostile input: fuzzers, heads of the worst shape, and header injection.

usage: hostile.py [--seed N] [--fuzz-seconds S] [--python PYTHON]
       Installs, into a cache folder, atheris where it has a wheel for this Python;
       without that the seeded fuzzer alone runs, and says so.
"""

import collections
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time

import fuzz
import harness

TOKEN = "secret"
ORIGIN = "https://good.example"


# The fuzzers.


def check_seeded(report, chance, seconds):
    """Nearly right requests, straight into the parser."""
    count, deadline = 0, time.monotonic() + seconds
    fault = None
    while time.monotonic() < deadline and not fault:
        data = fuzz.mutate(chance)
        count += 1
        try:
            fuzz.examine(data)
        except Exception as error:
            fault = f"{error!r} from {data!r}"
    report.check("seeded fuzz of the parser", not fault, fault or f"{count} inputs")


def check_coverage_guided(report, seconds):
    python = install_atheris()
    if not python:
        report.note("atheris has no wheel for this Python: the seeded fuzzer must do")
        return
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, str(harness.HERE / "fuzz.py"), folder, str(int(seconds))],
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        runs = re.search(r"Done (\d+) runs", done.stderr)
        for line in [] if done.returncode == 0 else done.stderr.splitlines()[-12:]:
            report.note(line)
        report.check(
            "coverage-guided fuzz of the parser",
            done.returncode == 0 and runs,
            f"{runs and runs[1]} inputs, {len(os.listdir(folder))} in the corpus",
        )


def install_atheris():
    """The Python of a venv that has it, or None."""
    default = pathlib.Path.home() / ".cache"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", default)) / "sse_server-ci"
    venv = pathlib.Path(os.environ.get("SSE_CI_CACHE", cache)) / "faults"
    python = venv / "bin" / "python"
    if python.exists() and succeeds(python, "-c", "import atheris"):
        return str(python)
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    install = ["-m", "pip", "install", "-qq", "--only-binary", ":all:", "atheris"]
    return str(python) if succeeds(python, *install) else None


def succeeds(*command):
    return subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0


def check_sockets(report, server, log, chance, count):
    """The same over connections, in pieces, while the server's messages are watched."""
    answers = collections.Counter()
    for _ in range(count):
        answers[exchange(server.address, fuzz.mutate(chance), chance)] += 1
    allowed = re.compile(rb"|HTTP/1\.1 [1-5]\d\d")
    odd = [status for status in answers if not allowed.fullmatch(status)]
    log.seek(0)
    traces = log.read().count(b"Traceback")
    alive = b"HTTP/1.1 200" == exchange(server.address, fuzz.HEADS[0], chance)
    statuses = {key.decode()[9:] or "none": n for key, n in answers.items() if not odd}
    report.check(
        "seeded fuzz of the server",
        not odd and not traces and alive,
        f"{count} connections, {traces} tracebacks; {odd or statuses}",
    )


def exchange(address, data, chance):
    """Send, in two pieces at times; the first words of the answer."""
    with socket.create_connection(address, timeout=5) as sock:
        cut = chance.randrange(len(data)) if chance.random() < 0.5 else 0
        try:
            sock.sendall(data[:cut])
            sock.sendall(data[cut:])
            if not data.startswith(b"GET /sse"):
                sock.shutdown(socket.SHUT_WR)
            return sock.recv(1000)[:12]
        except OSError:
            return b""


# Time: nothing that is quadratic.


def worst_heads(size):
    """Heads of about `size` bytes, each the worst for some step of the parser."""
    start = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n"
    room = size - len(start) - 40
    query = b"GET /sse?%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return {
        "many fields": start + b"a:\r\n" * (room // 4) + b"\r\n",
        "commas": start + b"Connection: " + b"," * room + b"\r\n\r\n",
        "spaces": start + b"X:" + b" " * room + b"x" + b"\r\n\r\n",
        "parameters": query % (b"a&" * (room // 2)),
        "escapes": query % (b"a=" + b"%41" * (room // 3)),
        "path of escapes": b"GET /%b HTTP/1.0\r\n\r\n" % (b"%41" * (room // 3)),
        "no colon": start + b"a" * room + b"\r\n\r\n",
        "host": b"GET / HTTP/1.1\r\nHost: " + b"a" * room + b":\r\n\r\n",
        "length": start + b"Content-Length: " + b"9" * room + b"\r\n\r\n",
        "lengths": start + b"Content-Length: 1" + b",1" * (room // 2) + b"\r\n\r\n",
    }


def microseconds(head, repeat):
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        fuzz.examine(head)
        best = min(best, time.process_time() - start)
    return best * 1e6


def check_shapes(report):
    small, large = worst_heads(1024), worst_heads(16 * 1024)
    for shape, head in large.items():
        short = microseconds(small[shape], 30)
        long = microseconds(head, 10)
        report.check(
            f"16 KiB of {shape}",
            long < 20_000 and long / short < 40,
            f"{long:.0f} us; 1 KiB {short:.0f} us, ratio {long / short:.1f}",
        )


# Header injection: whatever is echoed.


def raw(address, data):
    with socket.create_connection(address, timeout=5) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while len(received) < 100_000:
                part = sock.recv(65536)
                if not part:
                    break
                received += part
        except OSError:
            pass
        return received


def injections():
    """Requests that try to bring a line of their own into the answer."""
    evil = [f"a{sign}Evil:%20x" for sign in ("%0d%0a", "%0a", "%0d", "%00")]
    evil.append("%E2%80%A8Evil")
    get = "GET /sse?{}={} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    post = (
        "POST /sse?{}={} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        f"Authorization: Bearer {TOKEN}\r\nOrigin: {ORIGIN}\r\n\r\nx"
    )
    for value in evil:
        for name in ("channel", "last_event_id", "lastEventId"):
            yield get.format(name, value)
        for name in ("channel", "id", "event"):
            yield post.format(name, value)
    for sign in ("\r", "\n", "\0", "\r\n", "\x85", "\u2028"):
        value = f"{ORIGIN}{sign}Evil: x"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost\r\nOrigin: {value}\r\n\r\n"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost{value}\r\n\r\n"
        yield f"GET /sse{value} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        yield f"GET{value} /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {value}\r\n\r\n"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost\r\nExpect: {value}\r\n\r\n"
        yield f"GET /sse HTTP/1.1\r\nHost: localhost\r\nContent-Length: {value}\r\n\r\n"
        yield f"DELETE{sign}Evil: /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"


def check_injection(report, server):
    with harness.Client(server.address) as witness:
        witness.open()
        injected, count = [], 0
        for text in injections():
            count += 1
            answer = raw(server.address, text.encode())
            lines = re.split(rb"\r\n|\r|\n", answer)
            own = [line for line in lines if line.lower().startswith(b"evil")]
            if own or b"\0" in answer:
                injected.append((text, answer[:300]))
        server.ask("publish", events=[{"data": "last"}])
        while True:  # ids and names of events that POST may have published
            event_id, name, data = witness.next()
            if name not in ("message", "\u2028Evil") or "\n" in event_id:
                injected.append((event_id, name, data))
            if data == b"last":
                break
    for each in injected[:5]:
        report.note(str(each))
    report.check("header injection", not injected, f"{len(injected)} of {count} got in")


def main():
    options = harness.arguments(__doc__, fuzz_seconds=30.0, python=sys.executable)
    chance = random.Random(options.seed)
    report = harness.Report("hostile")
    check_shapes(report)
    check_seeded(report, chance, options.fuzz_seconds / 5)
    check_coverage_guided(report, options.fuzz_seconds)
    with (
        tempfile.TemporaryFile() as log,
        harness.Server(
            options.python,
            stderr=log,
            publish_token=TOKEN,
            cors_origins=[ORIGIN],
            header_timeout=5.0,
        ) as server,
    ):
        check_injection(report, server)
        check_sockets(report, server, log, chance, 1500)
        log.seek(0)
        errors = log.read().decode("utf-8", "replace").splitlines()
        report.check("nothing was logged as an error", not errors, str(errors[:3]))
        report.check("exit status", server.stop() == 0, "after SIGTERM")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
