#!/usr/bin/env python3
"""Vanished peers: the link goes down without a FIN, and comes back.

Two network namespaces and a veth pair; each client in one, the server in the other.
Without data under way the keep-alive probes find out, with data the TCP user timeout;
the limit is what the README says, a minute.  When the link is up again the client resumes with its
Last-Event-ID and misses nothing.  Needs Linux, root and iproute2.

usage: vanish.py [--seed N] [--default] [--python PYTHON]
       --default   also with write_timeout and heartbeat as they are by default
"""

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import time

import harness

HOST, PEER = "10.213.77.1", "10.213.77.2"
LIMIT = 60.0  # seconds


class Link:
    """Two namespaces with a cable between them."""

    def __init__(self, name):
        self.server, self.client = f"{name}-server", f"{name}-client"
        self._ends = [f"{name}s", f"{name}c"]  # at most 15 characters

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            for space in (self.server, self.client):
                ip("netns", "add", space)
                undo.callback(ip, "netns", "del", space)
            near, far = self._ends
            ip("link", "add", near, "type", "veth", "peer", "name", far)
            for space, end, address in (
                (self.server, near, HOST),
                (self.client, far, PEER),
            ):
                ip("link", "set", end, "netns", space)
                ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", end, "up")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def set(self, state):
        """The far end goes "down" or "up": nobody is told but by silence.

        Packets are dropped by a rule of routing rather than by the device, whose loss of
        carrier the server's kernel would see; a cable somewhere else shows nothing.
        """
        verb = "add" if state == "down" else "del"
        for space, address in ((self.server, PEER), (self.client, HOST)):
            ip("-n", space, "route", verb, "blackhole", address)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Case:
    """One server and its client in the two namespaces."""

    def __init__(self, name, flowing, options):
        self.name, self.flowing = name, flowing
        self.options = options
        self.published = []

    def run(self, report, python, number):
        with (
            Link(f"sse{os.getpid()}-{number}") as link,
            self._server(link, python) as server,
        ):
            client = Remote(link.client, server.address)
            self._publish(server, 3)
            seen = client.read(3)
            link.set("down")
            start = time.monotonic()
            gone = self._wait_until_gone(server, start)
            seconds = time.monotonic() - start
            report.check(
                f"{self.name}: gone from stats",
                gone and seconds <= LIMIT,
                f"after {seconds:.1f} s, limit {LIMIT:g} s",
            )
            client.kill()
            self._publish(server, 3)
            link.set("up")
            client = Remote(link.client, server.address, seen[-1][0])
            seen += client.read(len(self.published) - 3)
            client.kill()
            got = [data for _, _, data in seen]
            report.check(
                f"{self.name}: resumed, nothing lost",
                got == self.published,
                f"{len(got)} of {len(self.published)} events in order",
            )

    def _server(self, link, python):
        prefix = ["ip", "netns", "exec", link.server]
        return harness.Server(python, prefix=prefix, host=HOST, **self.options)

    def _publish(self, server, count):
        data = [f"event {len(self.published) + n}" for n in range(count)]
        server.ask("publish", events=[{"data": text} for text in data])
        self.published += data

    def _wait_until_gone(self, server, start):
        """Publish meanwhile, if data is to flow; the stats are the server's own."""
        while time.monotonic() < start + LIMIT + 5:
            stats = server.ask("stats")
            if stats["live"] + stats["behind"] == 0:
                return True
            if self.flowing:
                self._publish(server, 1)
            time.sleep(0.2)
        return False


class Remote:
    """A client in a process of its own, because it is in another namespace."""

    def __init__(self, space, address, last_id=""):
        command = ["ip", "netns", "exec", space, sys.executable, __file__, "--client"]
        self._process = subprocess.Popen(
            [*command, *map(str, address), last_id],
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout.readline() != "open\n":
            raise EOFError("the client cannot connect")

    def read(self, count):
        lines = [self._process.stdout.readline() for _ in range(count)]
        return [line.rstrip("\n").split("\t") for line in lines]

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def be_client(host, port, last_id):
    """Print each event as id, name and data between tabs."""
    client = harness.Client((host, int(port)), timeout=None, last_id=last_id).open()
    print("open", flush=True)
    while True:
        name_id, name, data = client.next()
        print(name_id, name, data.decode(), sep="\t", flush=True)


def main():
    default = "--default" in sys.argv
    if default:
        sys.argv.remove("--default")
    options = harness.arguments(__doc__, python=sys.executable)
    report = harness.Report("vanish")
    if os.geteuid() != 0:
        report.check("root, to make network namespaces", False, "this is not")
        return report.close()
    short = {"write_timeout": 10.0}
    cases = [
        Case("idle", False, {**short, "heartbeat": 3600.0}),
        Case("with events", True, short),
        Case("with heartbeats", False, {**short, "heartbeat": 5.0}),
    ]
    if default:
        cases += [
            Case("by default", False, {}),
            Case("by default with events", True, {}),
            Case("by default without heartbeats", False, {"heartbeat": None}),
        ]
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        running = [
            pool.submit(case.run, report, options.python, number)
            for number, case in enumerate(cases)
        ]
        for case in running:
            case.result()
    return report.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        be_client(*sys.argv[2:])
    else:
        sys.exit(main())
