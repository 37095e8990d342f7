#!/usr/bin/env python3
"""Who reads slowly but without pause stays, and so does who is there after a stop.

Everything is as users have it: the server's defaults and the system's own buffers.

- A client that reads 30 KB/s while 100 KB/s are published, and one that reads 20 KB/s
  of events of 1 MB: neither is dropped in 45 s, which is longer than write_timeout, and
  each is given its events in order, or a gap.
- The server's process is stopped (SIGSTOP) for longer than the head's time and goes on
  (SIGCONT): a request that was completed meanwhile is answered with 200, and a client
  that was behind, and has read meanwhile, stays.

usage: trickle.py [--seed N] [--seconds SECONDS] [--python PYTHON]
"""

import signal
import socket
import sys
import threading
import time

import harness

SMALL, LARGE = 1000, 1_000_000  # bytes of an event
SLICE = 0.1  # seconds between two reads


class Reader(threading.Thread):
    """Reads `rate` bytes a second for some seconds; says what was wrong."""

    def __init__(self, address, rate, seconds):
        super().__init__()
        self.client = harness.Client(address).open()
        self.events = self.gaps = self.received = 0
        self.fault = None
        self._rate = rate
        self._ends = time.monotonic() + seconds
        self.start()

    def run(self):
        number, due = None, time.monotonic()
        while time.monotonic() < self._ends and not self.fault:
            due += SLICE
            try:
                data = self.client.socket.recv(int(self._rate * SLICE))
            except OSError as error:
                self.fault = repr(error)
                break
            if not data:
                self.fault = "the stream ended"
            self.received += len(data)
            for _, name, text in self.client.stream.feed(data):
                if name == "gap":
                    self.gaps += 1
                    number = None
                    continue
                here = int(text.split(b" ")[0])
                if number not in (None, here - 1):
                    self.fault = f"{here} after {number}"
                number = here
                self.events += 1
            time.sleep(max(0, due - time.monotonic()))
        self.client.close()


def check_trickle(report, options):
    """Both at once: each with a server of its own."""
    with (
        harness.Server(options.python) as first,
        harness.Server(options.python) as second,
    ):
        small = Reader(first.address, 30_000, options.seconds)
        large = Reader(second.address, 20_000, options.seconds)
        for server, size, period in ((first, SMALL, 0.01), (second, LARGE, 0.5)):
            count = int(options.seconds / period)
            server.send("pace", size=size, first=0, count=count, period=period)
        for name, reader, server in (
            ("30 KB/s of small events", small, first),
            ("20 KB/s of events of 1 MB", large, second),
        ):
            reader.join()
            server.answer()
            stats = server.ask("stats")
            report.check(
                f"a client that reads {name} for {options.seconds:g} s",
                not reader.fault and stats["dropped"] == 0 and reader.received > 0,
                f"{reader.fault or 'stays'}; {reader.events} events, {reader.gaps} gaps, "
                f"{reader.received >> 10} KiB read; {stats['dropped']} dropped",
            )


def check_stopped(report, options):
    with harness.Server(
        options.python, header_timeout=2.0, write_timeout=2.0, heartbeat=0.5
    ) as server:
        behind = harness.Client(server.address, timeout=10).open()
        # More than the kernel takes, so that it is behind when the server is stopped.
        count = 16
        server.ask("publish", events=[{"data": "x" * LARGE}] * count)
        harness.wait_until(lambda: server.ask("stats")["behind"] == 1, 5)
        with socket.create_connection(server.address, timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n")
            harness.wait_until(lambda: server.ask("usage")["transports"] == 2, 5)
            server.process.send_signal(signal.SIGSTOP)
            sock.sendall(b"Host: localhost\r\n\r\n")
            room = behind.socket.recv(harness.MIB)
            time.sleep(5)
            server.process.send_signal(signal.SIGCONT)
            answer = sock.recv(1000)
        report.check(
            "stopped for 5 s: a request that was completed meanwhile",
            answer.startswith(b"HTTP/1.1 200 "),
            answer.partition(b"\r\n")[0].decode(),
        )
        behind._events += behind.stream.feed(room)
        events = [behind.next() for _ in range(count)]
        report.check(
            "stopped for 5 s: a client that was behind, and reads",
            all(len(data) == LARGE for _, _, data in events)
            and server.ask("stats")["dropped"] == 0,
            f"{len(events)} events of {LARGE} bytes, {server.ask('stats')}",
        )
        behind.close()


def main():
    options = harness.arguments(__doc__, seconds=45.0, python=sys.executable)
    report = harness.Report("trickle")
    check_stopped(report, options)
    check_trickle(report, options)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
