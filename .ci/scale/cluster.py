"""The Redis recipe as a cluster that is mistreated: every client ends with every
event, in order, none twice; counted.

Two processes on one port, and four behind nginx.  One process is killed and started
again, Redis ends for 5 s and sleeps for 5 s, another process is killed.

usage: cluster.py [--full] [--readme FILE] [--module FILE]
"""

import argparse
import contextlib
import signal
import sys
import time

from fleet import Fleet, Publisher
from harness import (
    Report,
    Workshop,
    arguments,
    enter_private_network,
    expect,
    nginx,
    raise_descriptor_limit,
    redis_server,
)

CI_SIZE = {"clients": 400, "rate": 100, "seconds": 18}
FULL_SIZE = {"clients": 2000, "rate": 200, "seconds": 40}
PORT = 8080  # where the clients connect
FLEETS = 2  # processes of clients
DOWN_SECONDS = 2.0  # that a killed process is away
OUTAGE_SECONDS = 5.0
CATCH_UP_SECONDS = 120.0  # for the last client to have the last event


def incidents(fleet, publisher, feeds, broker):
    """What goes wrong, while events are published."""
    publisher.reached(0.1)
    killed(feeds[0])
    cut = fleet.count("cut")
    expect(0 < cut < fleet.clients, f"the first process had {cut} of the clients")
    publisher.reached(0.3)
    broker.stop()
    time.sleep(OUTAGE_SECONDS)
    broker.start()
    publisher.reached(0.6)
    broker.signal(signal.SIGSTOP)
    time.sleep(OUTAGE_SECONDS)
    broker.signal(signal.SIGCONT)
    publisher.reached(0.8)
    killed(feeds[1])


def killed(feed):
    feed.kill()
    time.sleep(DOWN_SECONDS)
    feed.start()


def run(report, name, feeds, broker, size):
    total = size["rate"] * size["seconds"]
    with report.case(name) as notes:
        started = time.monotonic()
        with Fleet(
            FLEETS, size["clients"] // FLEETS, total, [[PORT]] * FLEETS
        ) as fleet:
            fleet.all("open")
            publisher = Publisher(total, size["rate"])
            with publisher:
                incidents(fleet, publisher, feeds, broker)
                publisher.reached(1)
            fleet.all("complete", CATCH_UP_SECONDS)
            counts = {n: fleet.count(n) for n in ("repeated", "missing", "gaps", "cut")}
        notes.append(f"{fleet.clients} clients x {total} events at {size['rate']}/s")
        notes.append(", ".join(f"{name} {count}" for name, count in counts.items()))
        notes.append(f"{publisher.errors} failed XADD")
        notes.append(f"{time.monotonic() - started:.0f} s")
        faults = counts["repeated"] + counts["missing"] + counts["gaps"]
        expect(faults == 0, "; ".join(notes))
        expect(counts["cut"] > 0 and publisher.errors > 0, "nothing went wrong")


def one_port(report, workshop, size):
    with redis_server(workshop.folder) as broker:
        one = workshop.python("redis_feed.py", PORT, port=PORT)
        two = workshop.python("redis_feed.py", PORT, port=PORT)
        with one, two:
            name = "two processes on one port"
            run(report, name, [one, two], broker, size)


def behind_nginx(report, workshop, size):
    ports = [8081, 8082, 8083, 8084]
    servers = "".join(f"server 127.0.0.1:{port};\n" for port in ports)
    locations = workshop.recipe("nginx.conf")
    here = "proxy_pass http://127.0.0.1:8080;"
    expect(here in locations, f"{here} is not in nginx.conf")
    locations = locations.replace(here, "proxy_pass http://sse;")
    block = (
        f"upstream sse {{ {servers} }}\n"
        f"server {{ listen {PORT} backlog=4096; {locations} }}\n"
    )
    with redis_server(workshop.folder) as broker:
        feeds = []
        with contextlib.ExitStack() as running:
            for port in ports:
                feed = workshop.python("redis_feed.py", port, port=port)
                feeds.append(running.enter_context(feed))
            running.enter_context(nginx(workshop, block, PORT))
            run(report, "four processes behind nginx", feeds, broker, size)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--full", action="store_true", help="2,000 clients, 200 events/s"
    )
    options = arguments(parser)
    enter_private_network()
    raise_descriptor_limit()
    size = FULL_SIZE if options.full else CI_SIZE
    report = Report("cluster")
    for scenario in (one_port, behind_nginx):
        with Workshop(options.readme, options.module) as workshop:
            scenario(report, workshop, size)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
