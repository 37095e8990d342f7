#!/usr/bin/env python3
"""What one attacker costs an innocent subscriber: the time until an event reaches it.

Twenty events a second go to 200 streams while one program does its worst.  99 of 100
deliveries must take less than 100 ms; they take 1 to 20 ms when all is quiet.  On a
machine so busy that they take more, five times as much is allowed.  Then
the memory that connections hold which send and never read.

usage: attacks.py [--seed N] [--seconds SECONDS] [--only NAME ...] [--python PYTHON]
"""

import contextlib
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time

import harness

STREAMS = 200
LIMIT = 0.1  # seconds; 99 of 100 deliveries must be faster
PERIOD = 0.05  # seconds between two events
READ_NOTHING = 100  # connections that send and never read
READ_NOTHING_BYTES = 100 * harness.KIB  # of the server's memory for each of them
FLOOD_BYTES = 4 * harness.MIB  # that a flood of refused requests may add
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"


# The innocent: they note how long each event took.


class Streams:
    """STREAMS clients in a thread."""

    def __init__(self, address, events):
        self.delays = []
        self.missing = 0
        self._events = events
        self._selector = selectors.DefaultSelector()
        for _ in range(STREAMS):
            client = harness.Client(address).open()
            client.left = events
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        deadline = time.monotonic() + 3 * self._events * PERIOD + 5
        while self._selector.get_map() and time.monotonic() < deadline:
            for key, _ in self._selector.select(1):
                self._receive(key.data)
        for key in list(self._selector.get_map().values()):  # too late is missing
            self._done(key.data)

    def _receive(self, client):
        received = client.socket.recv(64 * harness.KIB)
        now = time.monotonic()
        for _, name, data in client.stream.feed(received):
            client.left -= name == "message"
            self.delays.append(now - int(data) / 1e9)
        if not received or not client.left:
            self._done(client)

    def _done(self, client):
        self._selector.unregister(client.socket)
        self.missing += client.left
        client.close()

    def join(self):
        """Missing events, and the delay in seconds that 99 of 100 stay below."""
        self._thread.join()
        return self.missing, sorted(self.delays)[len(self.delays) * 99 // 100]


def measure(server, seconds, *commands, **ticking):
    """The streams with 20 events a second while these programs run."""
    events = int(seconds / PERIOD)
    streams = Streams(server.address, events)
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(running(command))
        server.send("tick", period=PERIOD, count=events, **ticking)
        outcome = streams.join()
    server.answer(120)
    return outcome


@contextlib.contextmanager
def running(command):
    """A program that has begun its attack; one of ours says so."""
    ours = command[0] == sys.executable
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if ours else subprocess.DEVNULL,
        stderr=None if ours else subprocess.DEVNULL,
    )
    try:
        if ours:
            process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait()
        if ours:
            process.stdout.close()


# The attackers, each a program of its own.


def connect(address):
    sock = socket.socket()
    sock.settimeout(30)
    sock.connect(address)
    return sock


def open_streams(address, number, target="/sse", fields=b"", turns=1):
    """Open streams and keep them, again in each turn; where names differ by `{}`."""
    for _ in range(turns):
        kept = []
        for n in range(number):
            sock = connect(address)
            line = f"GET {target.replace('{}', str(n))} HTTP/1.1\r\nHost: localhost\r\n"
            sock.sendall(line.encode() + fields + b"\r\n")
            kept.append(sock)
        answer = kept[0].recv(12)
        assert answer == b"HTTP/1.1 200", answer  # else nothing is attacked
        begun()
        if turns == 1:
            throw_away(kept)
        for sock in kept:
            sock.close()


def throw_away(socks):
    """Read what comes, for ever."""
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if not key.fileobj.recv(harness.MIB):
                    selector.unregister(key.fileobj)


def send_again(address, number, data):
    """Send the same on so many connections; where one ends, open another."""
    selector = selectors.DefaultSelector()

    def open_one():
        sock = connect(address)
        sock.setblocking(False)
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        selector.register(sock, both, memoryview(data))

    for _ in range(number):
        open_one()
    begun()
    while True:
        for key, events in selector.select():
            ended = False
            try:
                if events & selectors.EVENT_READ:
                    ended = not key.fileobj.recv(harness.MIB)
                elif key.data:
                    rest = key.data[key.fileobj.send(key.data[: 64 * harness.KIB]) :]
                    mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if rest else 0)
                    selector.modify(key.fileobj, mask, rest)
            except OSError:
                ended = True
            if ended:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                open_one()


def begun():
    print("begun", flush=True)


def big_heads(address):
    """1,000 streams whose heads cost as much as they may, asked about each second."""
    names = "&".join(f"channel=%41{n}" for n in range(100))
    open_streams(address, 1000, f"/sse?{names}", b"a: b\r\n" * 198)


def small_chunks(address):
    """200 bodies in chunks of one byte each."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    send_again(address, 200, head + b"1\r\na\r\n" * 200_000)


def at_once(address, number, data):
    """So many connections that all send the last byte in one moment, again and again."""
    begun()
    while True:
        socks = [connect(address) for _ in range(number)]
        for sock in socks:
            sock.sendall(data[:-1])
        time.sleep(0.1)
        for sock in socks:
            sock.sendall(data[-1:])
        for sock in socks:
            with contextlib.suppress(OSError):
                while sock.recv(harness.MIB):
                    pass
            sock.close()


def many_fields(address):
    """Heads of 4,080 fields, complete on 200 connections in one moment."""
    at_once(address, 200, b"GET / HTTP/1.0\r\n" + b"a:\r\n" * 4080 + b"\r\n")


def allowed_fields(address):
    """Heads of 199 fields, all that is allowed, on 200 connections without pause."""
    send_again(address, 200, (GET[:-2] + b"a: b\r\n" * 198 + b"\r\n") * 1000)


def many_channels(address):
    """9,000 streams of 100 channels each, no two alike."""
    names = "&".join(f"channel={n}-{{}}" for n in range(99))
    open_streams(address, 9000, f"/sse?channel=x&{names}")


def shared_channels(address):
    """9,000 streams of 100 channels each, all of them alike but for one."""
    names = "&".join(f"channel={n}" for n in range(99))
    open_streams(address, 9000, f"/sse?channel={{}}&{names}")


def long_ids(address):
    """500 streams that resume by ids of 4,000 digits, again and again."""
    field = b"Last-Event-ID: %b\r\n" % (b"9" * 4000)
    open_streams(address, 500, fields=field, turns=1000)


def to_come(address):
    """5,000 streams that wait for an event to come."""
    open_streams(address, 5000, fields=b"Last-Event-ID: %b\r\n" % (b"9" * 250))


def pour(address, requests, read):
    """One connection, as many requests as the server takes."""
    with connect(address) as sock:
        threading.Thread(target=read, args=([sock],), daemon=True).start()
        begun()
        while True:
            sock.sendall(requests)


def pipelined(address):
    """One connection, as many requests as the server takes."""
    pour(address, GET * 4000, throw_away)


def refused(address):
    """The same, each of them has to be asked for, and the answers are read slowly."""
    pour(address, REFUSED * 4000, read_slowly)


def read_slowly(socks):
    """Read 100 KiB a second, so that the server has to wait again and again."""
    while socks[0].recv(10 * harness.KIB):
        time.sleep(0.1)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        big_heads,
        small_chunks,
        many_fields,
        allowed_fields,
        many_channels,
        shared_channels,
        long_ids,
        to_come,
        pipelined,
        refused,
    )
}


def slow_commands(address, seconds):
    """200 clients with slow heads, and 200 with slow bodies."""
    url = "http://{}:{}/sse".format(*address)
    common = f"-c 200 -r 100 -i 1 -l {int(seconds)} -u {url}".split()
    tool = shutil.which("slowhttptest", path=os.environ["PATH"] + ":/usr/bin")
    return [tool, "-H", *common], [tool, "-B", "-s", "8192", *common]


def check_attacks(report, options):
    for name, attack in ATTACKS.items():
        if options.only != [""] and name not in options.only:
            continue
        with harness.Server(options.python, id_order="int") as server:
            _, quiet = measure(server, 2, numbered=True)
            where = map(str, server.address)
            command = [sys.executable, __file__, "--attack", name, *where]
            missing, delay = measure(
                server,
                options.seconds,
                command,
                numbered=True,
                disconnect=name == "big_heads",
            )
            mib = harness.process_rss(server.pid) >> 20
            judge(report, attack.__doc__, missing, delay, quiet, mib)
    if options.only == [""]:
        with harness.Server(options.python) as server:
            _, quiet = measure(server, 2)
            commands = slow_commands(server.address, options.seconds)
            missing, delay = measure(server, options.seconds, *commands)
            mib = harness.process_rss(server.pid) >> 20
            judge(report, slow_commands.__doc__, missing, delay, quiet, mib)


def judge(report, text, missing, delay, quiet, mib):
    report.check(
        " ".join(text.split()).rstrip("."),
        not missing and delay < max(LIMIT, 5 * quiet),
        f"p99 {delay * 1000:.1f} ms, {quiet * 1000:.1f} ms before; {missing} events missing; "
        f"the server has {mib} MiB",
    )


# Memory.


def kernel_bytes():
    """What all TCP sockets of the machine hold in the kernel."""
    for line in pathlib.Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * os.sysconf("SC_PAGESIZE")
    raise ValueError("/proc/net/sockstat says nothing of TCP")


def fill(sock, data):
    """Send until nothing more is taken."""
    sock.setblocking(False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.3:
        try:
            sock.send(data)
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)


def check_reads_nothing(report, options):
    with harness.Server(options.python, write_timeout=60.0) as server:
        first = [connect(server.address) for _ in range(5)]
        for sock in first:  # what is needed once
            fill(sock, GET * 4000)
        before = server.ask("usage")["rss"]
        in_kernel = kernel_bytes()
        socks = [connect(server.address) for _ in range(READ_NOTHING)]
        crew = [threading.Thread(target=fill, args=(s, GET * 4000)) for s in socks]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        each = (server.ask("usage")["rss"] - before) / READ_NOTHING
        in_kernel = (kernel_bytes() - in_kernel) / READ_NOTHING
        report.check(
            f"{READ_NOTHING} connections that send requests and read no answer",
            each < READ_NOTHING_BYTES,
            f"{each / 1024:.0f} KiB of memory each, {READ_NOTHING_BYTES >> 10} allowed; "
            f"{in_kernel / 1024:.0f} KiB in the kernel, at both ends",
        )
        for sock in first + socks:
            sock.close()


def check_refused_flood(report, options):
    """One connection whose requests, without pause, are all refused by `authorize`."""
    with harness.Server(options.python, authorize="nobody") as server:
        with harness.Client(server.address) as first, contextlib.suppress(ValueError):
            first.open()
        before = server.ask("usage")["rss"]
        with running(
            [sys.executable, __file__, "--attack", "refused", *map(str, server.address)]
        ):
            # The kernel's buffers have to be full first.
            peak, deadline = 0, time.monotonic() + options.seconds + 6
            while time.monotonic() < deadline:
                peak = max(peak, harness.process_rss(server.pid))
                time.sleep(0.01)
        report.check(
            " ".join(check_refused_flood.__doc__.split()).rstrip("."),
            peak - before < FLOOD_BYTES,
            f"grew by {(peak - before) >> 10} KiB, {FLOOD_BYTES >> 10} allowed",
        )


def main():
    options = harness.arguments(__doc__, seconds=6.0, only=[""], python=sys.executable)
    report = harness.Report("attacks")
    check_attacks(report, options)
    if options.only == [""]:
        check_reads_nothing(report, options)
        check_refused_flood(report, options)
    return report.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        ATTACKS[sys.argv[2]]((sys.argv[3], int(sys.argv[4])))
    else:
        sys.exit(main())
