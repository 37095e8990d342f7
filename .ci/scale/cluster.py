"""The Redis recipe as a cluster that is mistreated: every client ends with every
event, in order, none twice; counted.

Two processes on one port, and four behind nginx.  One process is killed and started
again, Redis ends for 5 s and sleeps for 5 s, another process is killed.

usage: cluster.py
"""

import contextlib
import signal
import sys
import time

import common
from common import Report, expect
from fleet import Adding, Fleet
from harness import Workshop, nginx, redis_server

CLIENTS, RATE, SECONDS = 400, 100, 18  # RATE: events a second
PORT = 8080  # where the clients connect
FLEETS = 2  # processes of clients
DOWN_SECONDS = 2.0  # that a killed process is away
OUTAGE_SECONDS = 5.0


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


def run(report, name, workshop, ports, block=None):
    total, started = RATE * SECONDS, time.monotonic()
    with report.case(name) as notes, contextlib.ExitStack() as running:
        enter = running.enter_context
        broker = enter(redis_server(workshop.folder))
        feeds = [enter(workshop.python("redis_feed.py", p, port=p)) for p in ports]
        if block:
            enter(nginx(workshop, block, PORT))
        fleet = enter(Fleet(FLEETS, CLIENTS // FLEETS, total, [PORT]))
        publisher = Adding(total, RATE)
        wrong = lambda: incidents(fleet, publisher, feeds, broker)
        counts = fleet.lives_through(publisher, wrong)
        seconds = time.monotonic() - started
        notes.append(f"{CLIENTS} clients x {total} events at {RATE}/s; {counts}")
        notes.append(f"{publisher.errors} failed XADD, {seconds:.0f} s")
        faults = counts["repeated"] + counts["missing"] + counts["gaps"]
        expect(faults == 0, f"{faults} wrong")
        expect(counts["cut"] > 0 and publisher.errors > 0, "nothing went wrong")


def behind_nginx(workshop, ports):
    servers = "".join(f"server 127.0.0.1:{port};\n" for port in ports)
    locations = workshop.recipe("nginx.conf")
    here = "proxy_pass http://127.0.0.1:8080;"
    expect(here in locations, f"{here} is not in nginx.conf")
    locations = locations.replace(here, "proxy_pass http://sse;")
    listening = f"server {{ listen {PORT} backlog=4096; {locations} }}\n"
    return f"upstream sse {{ {servers} }}\n{listening}"


def main():
    common.enter_private_network()
    common.raise_descriptor_limit()
    report = Report("cluster")
    with Workshop() as workshop:
        run(report, "two processes on one port", workshop, [PORT] * 2)
    with Workshop() as workshop:
        ports = range(8081, 8085)
        block = behind_nginx(workshop, ports)
        run(report, "four processes behind nginx", workshop, ports, block)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
