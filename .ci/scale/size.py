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
import os
import pathlib
import statistics
import sys
import time

import redis
from fleet import Fleet
from harness import (
    Workshop,
    arguments,
    enter_private_network,
    expect,
    raise_descriptor_limit,
    redis_server,
    until,
)

say = functools.partial(print, flush=True)
FIRST_PORT = 8081
OPEN_SECONDS = 300.0  # for all the streams to open
LAST_SECONDS = 60.0  # for the last event to reach everybody
RESERVED = 200  # descriptors that a process needs for other things
KIB = 1024


def pss(process):
    """Bytes of memory, shared pages counted by their share."""
    text = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return KIB * int(text.split("\nPss:")[1].split()[0])


def processor_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
    user, system = map(int, fields.split()[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def slab():
    text = pathlib.Path("/proc/meminfo").read_text()
    return KIB * int(text.split("\nSlab:")[1].split()[0])


def memory(processes):
    return sum(map(pss, processes))


def publish(seconds):
    """One event a second; when each was about to be added, by its number."""
    client = redis.Redis()
    times = {}
    for number in range(1, seconds + 1):
        times[number] = time.monotonic()
        client.xadd("events", {"data": number})
        time.sleep(max(0, times[1] + number - time.monotonic()))
    return times


def latencies(added, fleet):
    """Seconds until the last client of all had each event."""
    last = {n: max(times[str(n)] for times in fleet.times) for n in added}
    return sorted(last[n] - added[n] for n in added)


def measure(servers, options):
    subscribers = options.servers * options.subscribers
    ports = [[FIRST_PORT + number] for number in range(options.servers)]
    sources = [f"127.0.1.{number + 1}" for number in range(options.servers)]
    before, slab_before = memory(servers), slab()
    started = time.monotonic()
    fleet = Fleet(
        options.servers,
        options.subscribers,
        options.seconds,
        ports,
        times=True,
        sources=sources,
    )
    with fleet:
        fleet.all("open", OPEN_SECONDS)
        say(f"{subscribers} streams open after {time.monotonic() - started:.1f} s")
        opened, objects = memory(servers), slab() - slab_before
        say(
            f"memory per subscriber: {(opened - before) / subscribers:.0f} bytes "
            f"(PSS of the servers, which began with {before / len(servers) / 2**20:.1f} "
            "MiB each)"
        )
        say(f"kernel objects, both ends: {objects / subscribers:.0f} bytes a stream")
        used = sum(map(processor_seconds, servers))
        added = publish(options.seconds)
        fleet.all("complete", LAST_SECONDS)
        used = sum(map(processor_seconds, servers)) - used
        until(lambda: all(len(t) == options.seconds for t in fleet.times), "the times")
        faults = sum(map(fleet.count, ("repeated", "missing", "gaps", "cut")))
        expect(faults == 0, f"{faults} events repeated, missing, or streams cut")
        deliveries = subscribers * options.seconds
        say(f"{deliveries} deliveries, each exactly once")
        found = latencies(added, fleet)
        say(
            f"until the last had it: median {statistics.median(found):.3f} s, "
            f"90 % {found[int(0.9 * len(found))]:.3f} s, worst {found[-1]:.3f} s"
        )
        say(
            f"processor time of the servers: {1e6 * used / deliveries:.1f} us per "
            f"delivery, {used / options.seconds:.2f} s each second"
        )
        say(
            f"memory after it: {(memory(servers) - before) / subscribers:.0f} bytes "
            "per subscriber"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, default=5)
    parser.add_argument(
        "--subscribers", type=int, default=15_000, help="of each server"
    )
    parser.add_argument("--seconds", type=int, default=60)
    options = arguments(parser)
    enter_private_network()
    limit = raise_descriptor_limit()
    expect(options.subscribers + RESERVED <= limit, f"the limit is {limit} descriptors")
    with (
        Workshop(options.readme, options.module) as workshop,
        redis_server(workshop.folder, fsync="everysec"),
    ):
        ports = range(FIRST_PORT, FIRST_PORT + options.servers)
        servers = []
        with contextlib.ExitStack() as running:
            for port in ports:
                server = workshop.python("redis_feed.py", port, port=port)
                servers.append(running.enter_context(server))
            measure(servers, options)


if __name__ == "__main__":
    sys.exit(main())
