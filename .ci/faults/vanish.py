#!/usr/bin/env python3
"""Vanished peers: the link goes down without a FIN, and comes back.

Without data under way the keep-alive probes find out, with data the TCP user timeout;
the limit is what the README says, a minute.  When the link is up again the client resumes
with its Last-Event-ID and misses nothing.  Each case has a server and an address for its
client, in a network of their own (Linux and root, or user namespaces), where a rule of
routing drops what goes between the two: nobody is told but by silence.

usage: vanish.py [--python PYTHON]
"""

import concurrent.futures
import subprocess
import sys
import time

from common import Client, Report, Server, arguments, enter_private_network, expect

LIMIT = 60.0  # seconds
SHORT = {"write_timeout": 10.0}
CASES = [  # name, whether events are published meanwhile, the server's options
    ("idle", False, {**SHORT, "heartbeat": 3600.0}),
    ("with events", True, SHORT),
    ("with heartbeats", False, {**SHORT, "heartbeat": 5.0}),
]


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def cut(verb, peer):
    """Add or delete the rules that drop what goes between a peer and the server."""
    for one, other in ((peer, "127.0.0.1"), ("127.0.0.1", peer)):
        ip("rule", verb, "pref", "10", "from", one, "to", other, "blackhole")


def vanish(report, options, case, peer):
    name, flowing, parameters = case
    published = []

    def publish(count):
        data = [f"event {len(published) + n}" for n in range(count)]
        server.publish(*data)
        published.extend(data)

    with Server(options.python, **parameters) as server:
        client = Client(server.address, source=peer).open()
        publish(3)
        seen = [client.next() for _ in range(3)]
        cut("add", peer)
        start = time.monotonic()
        while server.streams() and time.monotonic() < start + LIMIT + 5:
            publish(flowing)
            time.sleep(0.2)
        seconds = time.monotonic() - start
        gone = f"{name}: gone from stats"
        text = f"after {seconds:.1f} s, limit {LIMIT:g} s"
        report.check(gone, not server.streams() and seconds <= LIMIT, text)
        publish(3)
        cut("del", peer)
        client.close()
        with report.case(f"{name}: resumed, nothing lost"):
            last_id = seen[-1][0]
            with Client(server.address, source=peer, last_id=last_id) as client:
                seen += [client.next() for _ in published[3:]]
            got = [data.decode() for _, _, data in seen]
            expect(got == published, f"{len(got)} of {len(published)} in order")


def main():
    options = arguments(__doc__)
    try:
        enter_private_network()
        # The rules of the cases must come before that of local addresses.
        ip("rule", "add", "pref", "100", "lookup", "local")
        ip("rule", "del", "pref", "0")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"FAIL vanish: no network of its own: {error}")
    report = Report("vanish")
    with concurrent.futures.ThreadPoolExecutor(len(CASES)) as pool:
        running = [
            pool.submit(vanish, report, options, case, f"127.0.0.{number}")
            for number, case in enumerate(CASES, 2)
        ]
    for case in running:
        case.result()
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
