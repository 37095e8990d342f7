"""How many deliveries a second 1, 2 and 4 relays make, beside their origin alone: 1,000
clients (C) on one port, events of 100 bytes ten at a time as fast as the origin writes
them.  All share the cores that there are.  Prints figures, proves nothing.

usage: relays_speed.py [--rounds N] [--events N] [--readme FILE] [--module FILE]
"""

import argparse
import contextlib
import statistics
import sys
import types

from harness import HERE, Workshop, arguments, enter_private_network

sys.path.append(str(HERE.parent / "bench"))

from contestants import Clients, Contestant, Server, compile_c

CLIENTS = 1000
RELAYS = 8081  # their port


def deliveries_a_second(workshop, relays, events):
    driver = HERE.parent / "bench" / "drivers" / "ours.py"
    path = f"PYTHONPATH={HERE.parents[1]}"
    contestant = Contestant("origin", ["env", path, sys.executable, driver])
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Server(contestant))
        port = origin.port
        if relays:
            url = f"http://127.0.0.1:{origin.port}/sse"
            port = RELAYS
        for _ in range(relays):
            relay = workshop.python("relay_feed.py", port, url, port=port)
            stack.enter_context(relay)
        clients = Clients(types.SimpleNamespace(port=port), CLIENTS)
        stack.enter_context(clients)
        clients.connected()
        clients.report(origin.begin(100, batch=10, interval_us=20_000))
        clients.reset()
        report = clients.report(origin.begin(events, batch=10, interval_us=0))
        origin.finish()
        return report["events"] / report["span_s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=2000)
    options = arguments(parser)
    enter_private_network()
    with Workshop(options.readme, options.module) as workshop:
        Clients.program = compile_c("client", workshop.folder)
        found = {}
        for _ in range(options.rounds):
            for relays in (0, 1, 2, 4):
                rate = deliveries_a_second(workshop, relays, options.events)
                found.setdefault(relays, []).append(rate / 1e6)
    for relays, rates in found.items():
        print(
            f"{relays} relays: {statistics.median(rates):.2f} million deliveries a "
            f"second ({min(rates):.2f} to {max(rates):.2f})"
        )


if __name__ == "__main__":
    main()
