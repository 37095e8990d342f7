#!/usr/bin/env python3
"""Standard input: a million lines with --lossless, and a sleeping client without.

With --lossless every line reaches three clients, one of them slow, complete and in
order, and the memory is flat.  Without it a client that is asleep (SIGSTOP) holds up
neither the pipe nor the client that reads.

usage: stdin.py [--seed N] [--lines N] [--python PYTHON]
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import harness

FLAT = 8 * harness.MIB  # what the memory may grow by
SLOW_RATE = 4 * harness.MIB  # bytes a second
LONG_LINES, LONG_BYTES, LONG_RATE = 8000, 2500, 2000  # lines, bytes each, lines/s


@contextlib.contextmanager
def command_line(python, *words):
    """The server as a user starts it, its input a pipe; its process and address."""
    where = ["--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [python, str(harness.MODULE), "-", *where, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Emptied all the time, so that a message never waits for us; and looked at.
    process.messages = []
    emptier = threading.Thread(target=lambda: process.messages.extend(process.stderr))
    emptier.start()
    try:
        port = re.search(rb":([0-9]+)/", process.stdout.readline())[1]
        yield process, ("127.0.0.1", int(port))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        emptier.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def follow(address, lines, rate, results):
    """Count up with the lines, at most `rate` bytes a second; report what was wrong."""
    client = harness.Client(address, timeout=60).open()
    results.put("open")
    start, received, expected, fault = time.monotonic(), 0, 1, None
    while expected <= lines and not fault:
        data = client.socket.recv(64 * harness.KIB)
        if not data:
            fault = f"the stream ended after line {expected - 1}"
        received += len(data)
        for _, name, text in client.stream.feed(data):
            if name != "message" or int(text) != expected:
                fault = fault or f"{name} {text[-40:]!r} for line {expected}"
            expected += 1
        if rate:
            time.sleep(max(0, start + received / rate - time.monotonic()))
    results.put((fault, time.monotonic() - start))


def sleep_on(address, results):
    """Open a stream and never read; who started this stops the process."""
    harness.Client(address).open()
    results.put("open")
    signal.pause()


def start_clients(targets):
    """Each in a process of its own, open when this returns."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    clients = [
        context.Process(target=target, args=(*parameters, results))
        for target, *parameters in targets
    ]
    for client in clients:
        client.start()
    for _ in clients:
        results.get(timeout=30)
    return clients, results


def check_lossless(report, options):
    with command_line(options.python, "--lossless") as (server, address):
        lines = options.lines
        clients, results = start_clients(
            [(follow, address, lines, rate) for rate in (0, 0, SLOW_RATE)]
        )
        before = harness.process_rss(server.pid)
        feed = subprocess.Popen(["seq", str(lines)], stdout=server.stdin)
        peak = 0
        while any(client.is_alive() for client in clients):
            peak = max(peak, harness.process_rss(server.pid))
            time.sleep(0.05)
        ended = [results.get(timeout=10) for _ in clients]
        faults = [fault for fault, _ in ended if fault]
        for fault in faults:
            report.note(fault)
        report.check(
            f"--lossless: {lines} lines to 3 clients, one of them slow, in order",
            not faults and feed.wait(10) == 0,
            f"{len(faults)} wrong, in {max(seconds for _, seconds in ended):.1f} s",
        )
        report.check(
            "--lossless: memory is flat",
            peak - before <= FLAT,
            f"grew by {(peak - before) >> 10} KiB, allowed {FLAT >> 10} KiB",
        )
        check_end(report, "--lossless", server)


def check_end(report, name, server):
    server.send_signal(signal.SIGTERM)
    status = server.wait(20)
    traces = sum(b"Traceback" in line for line in server.messages)
    report.check(
        f"{name}: exit status 0, no traceback",
        status == 0 and not traces,
        f"{status}, {traces} tracebacks",
    )


def feed_slowly(pipe):
    """Numbered lines, LONG_RATE a second; the seconds that it took."""
    start = time.monotonic()
    for number in range(1, LONG_LINES + 1):
        pipe.write(b"%0*d\n" % (LONG_BYTES, number))
        if number % 20 == 0:
            pipe.flush()
            due = start + number / LONG_RATE
            time.sleep(max(0, due - time.monotonic()))
    pipe.flush()
    return time.monotonic() - start


def check_sleeper(report, options):
    with command_line(options.python) as (server, address):
        # Two queues: who is stopped may hold the lock of its own.
        (reader,), results = start_clients([(follow, address, LONG_LINES, 0)])
        (sleeper,), _ = start_clients([(sleep_on, address)])
        os.kill(sleeper.pid, signal.SIGSTOP)
        before = harness.process_rss(server.pid)
        seconds = feed_slowly(server.stdin)
        grown = harness.process_rss(server.pid) - before
        fault, _ = results.get(timeout=30)
        reader.join()
        report.check(
            "a sleeping client holds up neither the pipe nor the one that reads",
            not fault and seconds < 2 * LONG_LINES / LONG_RATE,
            f"{LONG_LINES * LONG_BYTES >> 20} MiB in {seconds:.1f} s, planned "
            f"{LONG_LINES / LONG_RATE:.1f} s; {fault or 'all lines read'}",
        )
        report.check(
            "a sleeping client: memory is flat",
            grown <= FLAT,
            f"grew by {grown >> 10} KiB, allowed {FLAT >> 10} KiB",
        )
        sleeper.kill()
        sleeper.join()
        check_end(report, "a sleeping client", server)


def main():
    options = harness.arguments(__doc__, lines=1_000_000, python=sys.executable)
    report = harness.Report("stdin")
    check_lossless(report, options)
    check_sleeper(report, options)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
