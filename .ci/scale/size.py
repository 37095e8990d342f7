"""The size of it: five processes of the Redis recipe with 15,000 subscribers each, one
event a second to all of them for a minute.  Prints figures, proves nothing.

Memory: PSS of the five servers from /proc, per subscriber beyond what they took before;
the kernel's objects (of both ends, for the clients are here too) from Slab in
/proc/meminfo, which the rest of the machine shares.
Latency: from before XADD until the last client has read the event.  Processor time of
the servers, per event and subscriber.

usage: size.py [--servers N] [--subscribers N] [--seconds N] [--readme FILE]
               [--module FILE]
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import sys
import time

import redis
from fleet import Fleet
from harness import (
    KIB,
    Workshop,
    arguments,
    enter_private_network,
    expect,
    process_cpu,
    raise_descriptor_limit,
    redis_server,
    until,
)

say = functools.partial(print, flush=True)
FIRST_PORT = 8081
OPEN_SECONDS = 300.0  # for all the streams to open
LAST_SECONDS = 60.0  # for the last event to reach everybody


def kib_in(path, name):
    return KIB * int(pathlib.Path(path).read_text().split(f"\n{name}:")[1].split()[0])


def publish(seconds):
    """One event a second; when each was about to be added, by its number."""
    client = redis.Redis()
    times = {}
    for number in range(1, seconds + 1):
        times[number] = time.monotonic()
        client.xadd("events", {"data": number})
        time.sleep(max(0, times[1] + number - time.monotonic()))
    return times


def measure(servers, options):
    subscribers = options.servers * options.subscribers
    ports = [[FIRST_PORT + number] for number in range(options.servers)]
    sources = [f"127.0.1.{number + 1}" for number in range(options.servers)]

    def memory():
        pss = sum(kib_in(f"/proc/{s.pid}/smaps_rollup", "Pss") for s in servers)
        return pss, kib_in("/proc/meminfo", "Slab")

    def computed():
        return sum(process_cpu(server.pid) for server in servers)

    (before, slab), started = memory(), time.monotonic()
    asked = (options.servers, options.subscribers, options.seconds, ports)
    with Fleet(*asked, times=True, sources=sources) as fleet:
        fleet.all("open", OPEN_SECONDS)
        say(f"{subscribers} streams open after {time.monotonic() - started:.1f} s")
        opened, objects = memory()
        say(
            f"memory per subscriber: {(opened - before) / subscribers:.0f} bytes "
            f"(PSS of the servers, which began with {before / len(servers) / 2**20:.1f} "
            "MiB each)"
        )
        say(
            f"kernel objects, both ends: {(objects - slab) / subscribers:.0f} bytes each"
        )
        used = computed()
        added = publish(options.seconds)
        fleet.all("complete", LAST_SECONDS)
        used = computed() - used
        until(lambda: all(len(t) == options.seconds for t in fleet.times), "the times")
        faults = sum(map(fleet.count, ("repeated", "missing", "gaps", "cut")))
        expect(faults == 0, f"{faults} events repeated, missing, or streams cut")
        deliveries = subscribers * options.seconds
        say(f"{deliveries} deliveries, each exactly once")
        last = {n: max(times[str(n)] for times in fleet.times) for n in added}
        found = sorted(last[n] - added[n] for n in added)
        say(
            f"until the last had it: median {statistics.median(found):.3f} s, "
            f"90 % {found[int(0.9 * len(found))]:.3f} s, worst {found[-1]:.3f} s"
        )
        say(
            f"processor time of the servers: {1e6 * used / deliveries:.1f} us a delivery"
        )
        say(f"memory after it: {(memory()[0] - before) / subscribers:.0f} bytes each")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, default=5)
    parser.add_argument("--subscribers", type=int, default=15_000, help="of each")
    parser.add_argument("--seconds", type=int, default=60)
    options = arguments(parser)
    enter_private_network()
    raise_descriptor_limit()
    with (
        Workshop(options.readme, options.module) as workshop,
        redis_server(workshop.folder, fsync="everysec"),
        contextlib.ExitStack() as running,
    ):
        ports = range(FIRST_PORT, FIRST_PORT + options.servers)
        feeds = [workshop.python("redis_feed.py", p, port=p) for p in ports]
        measure([running.enter_context(feed) for feed in feeds], options)


if __name__ == "__main__":
    sys.exit(main())
