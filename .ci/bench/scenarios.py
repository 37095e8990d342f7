"""What is measured, and what the server of this repository has to reach.

A scenario runs every contestant in each round, one after the other, and records one
figure per metric, contestant and round. Figures are compared within their round, so
that whatever else the machine is doing weighs on both sides of a ratio.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
from dataclasses import dataclass, field

from contestants import (
    FLOOR,
    LOOP,
    OURS,
    Clients,
    Failure,
    Server,
    cores,
    output_of,
    pinned_to,
)

NCHAN, AIOHTTP_OK = "nginx + nchan", "aiohttp"
MILLION = 1_000_000


@dataclass(frozen=True)
class Target:
    """A bound on our figure, or on its ratio to that of `against` (median of rounds).

    For a metric of which more is better it is a lower bound.
    """

    bound: float
    against: str = ""


@dataclass(frozen=True)
class Metric:
    title: str
    unit: str
    targets: tuple = ()
    more_is_better: bool = False
    digits: int = 2
    beside_floor: bool = True  # a factor to the floor's figure means something
    client_bound: bool = False  # not judged where the clients run in Python


METRICS = {
    "single": Metric(
        "Server CPU per delivery, one event at a time, 1,000 clients",
        "µs",
        (Target(1.15, FLOOR), Target(1.0, LOOP), Target(1.0, NCHAN)),
    ),
    "p50": Metric(
        "Delivery time p50, 9,000 clients, one event a second",
        "ms",
        (Target(1.4, FLOOR), Target(1.0, NCHAN)),
        digits=1,
    ),
    "p99": Metric(
        "Delivery time p99, 9,000 clients, one event a second",
        "ms",
        (Target(1.4, FLOOR), Target(1.0, NCHAN)),
        digits=1,
    ),
    "burst10": Metric(
        "Deliveries a second, 100-byte events ten at a time, 1,000 clients",
        "million/s",
        (Target(1.0),),
        more_is_better=True,
        client_bound=True,
    ),
    "burst100": Metric(
        "Deliveries a second, 100-byte events a hundred at a time, 1,000 clients",
        "million/s",
        (Target(3.0),),
        more_is_better=True,
        client_bound=True,
    ),
    "burst10_cpu": Metric("Server CPU per delivery in bursts of ten", "ns", digits=0),
    "burst100_cpu": Metric(
        "Server CPU per delivery in bursts of a hundred", "ns", digits=0
    ),
    "memory1000": Metric(
        "Resident memory per idle subscriber, 1,000 of them",
        "KiB",
        (Target(2.5),),
        beside_floor=False,
    ),
    "memory15000": Metric(
        "Resident memory per idle subscriber, 15,000 of them",
        "KiB",
        (Target(2.5),),
        beside_floor=False,
    ),
    "arrivals": Metric(
        "9,000 connections made and streaming, 500 of them under way at a time",
        "s",
        (Target(1.0, NCHAN),),
    ),
    "storm": Metric(
        "9,000 connections made and streaming, all of them at once",
        "s",
        (Target(1.5, LOOP), Target(1.0, NCHAN)),
    ),
    "arrivals_cpu": Metric(
        "Server CPU per arrival", "µs", (Target(1.1, LOOP),), digits=1
    ),
    "resuming": Metric(
        "CPU per arrival of clients that resume, to that of new ones",
        "×",
        (Target(1.5),),
    ),
    "routing": Metric(
        "CPU per delivery, an event to each of 1,000 channels, 1,000 streams of 100",
        "µs",
    ),
    "turn": Metric("Longest turn of the event loop meanwhile", "ms", (Target(5.0),)),
    "ahead": Metric(
        "CPU per event while 500 clients wait for an event to come, to that without",
        "×",
        (Target(1.2),),
    ),
    **{
        f"{metric}_{kind}": Metric(f"{title}, {what}", unit, (Target(bound),), more)
        for kind, what, smaller, cost in (
            ("sensor", "JSON of 140 bytes", 3.5, 1.02),
            ("log", "log lines of 190 bytes", 4.0, 1.02),
            ("table", "a table of 3.7 KB", 6.0, 1.0),
        )
        for metric, title, unit, bound, more in (
            ("smaller", "Bytes of an event, plain to compressed", "×", smaller, True),
            ("gzip_cpu", "CPU per delivery, compressed to plain", "×", cost, False),
        )
    },
    **{
        f"bytes_{kind}": Metric(f"Bytes of an event, {what}", "bytes", digits=0)
        for kind, what in (
            ("sensor", "JSON of a sensor"),
            ("log", "a line of a log"),
            ("table", "a table of which a fifth changes"),
        )
    },
    "coded_cpu": Metric("CPU per delivery of the sensor's events", "µs"),
    "coded_memory": Metric("Memory per client, server and proxy", "KiB", digits=1),
    "joins": Metric(
        "Bytes plain to compressed, while at each event one client joins 1,000",
        "×",
        (Target(3.0),),
        more_is_better=True,
    ),
    "gzip_memory": Metric(
        "What compression adds to 10,000 subscribers, each on a channel of its own",
        "KiB each",
        (Target(1.7),),  # 64 compressors of 256 KiB
    ),
    "gzip_turn": Metric(
        "Longest turn with a mebibyte that cannot be compressed", "ms", (Target(30.0),)
    ),
    "retained": Metric(
        "CPU per delivery with 1,000 retained events, to that with none",
        "×",
        (Target(1.02),),
    ),
    "retained_p99": Metric(
        "p99 of 1,000 live clients while 500 arrive to 1,000 retained, to the usual",
        "×",
        (Target(1.5),),
    ),
    "snapshot": Metric(
        "Memory for each of 100 clients that read nothing of 16 MB of retained events",
        "KiB",
        (Target(140),),
        digits=0,
    ),
    "resume": Metric(
        "p99 of 1,000 live clients while 1,000 resume by 500 events, to the usual p99",
        "×",
        (Target(3.0),),
        client_bound=True,
    ),
    "channels": Metric(
        "CPU per publish to one of 10,000 channels, to that with 10 channels",
        "×",
        (Target(1.15),),
    ),
    "ok": Metric(
        "ok answers a second, 64 connections kept alive (wrk)",
        "thousand/s",
        (Target(0.8, AIOHTTP_OK),),
        more_is_better=True,
        digits=1,
    ),
}


@dataclass
class Run:
    """What was asked for and what was found."""

    contestants: list
    rounds: int
    quick: bool
    ok_peer: object = None
    figures: dict = field(default_factory=dict)  # metric -> contestant -> per round
    growth: list = field(default_factory=list)  # rows of the growth table
    failures: list = field(default_factory=list)

    def record(self, metric, name, value):
        self.figures.setdefault(metric, {}).setdefault(name, []).append(value)

    @contextlib.contextmanager
    def guard(self, scenario, name):
        """A contestant that fails is reported, and the others go on."""
        try:
            yield
        except Failure as failure:
            self.failures.append(f"{scenario}, {name}: {failure}")

    def own(self):
        return [c for c in self.contestants if c.name.startswith(OURS)]


@dataclass
class Stand:
    """A server with its clients, ready to publish."""

    name: str
    server: Server
    clients: Clients

    def window(self, count, **publishing):
        """Publish and wait for every delivery: (the clients' report, server CPU s)."""
        self.clients.reset()
        before = self.server.cpu_seconds()
        last = self.server.begin(count, **publishing)
        self.server.finish()
        report = self.clients.report(last)
        cpu = self.server.cpu_seconds() - before
        expected = count * self.clients.connections
        if report["events"] != expected:
            raise Failure(f"{report['events']} deliveries instead of {expected}")
        return report, cpu


@contextlib.contextmanager
def standing(contestant, clients, **asking):
    with Server(contestant) as server, Clients(server, clients, **asking) as crowd:
        yield Stand(contestant.name, server, crowd.connected())


def in_rounds(run, scenario, clients, measure, rounds=None):
    """Start all contestants; then `measure(stand)` for each of them, every round."""
    with contextlib.ExitStack() as stack:
        stands = []
        for contestant in run.contestants:
            with run.guard(scenario, contestant.name):
                stands.append(stack.enter_context(standing(contestant, clients)))
        for _ in range(rounds or run.rounds):
            for stand in list(stands):
                failed = len(run.failures)
                with run.guard(scenario, stand.name):
                    measure(stand)
                if len(run.failures) > failed:
                    stands.remove(stand)


def single(run):
    interval_us = 40_000 if run.quick else 60_000  # longer than any sweep
    warm = set()

    def measure(stand):
        if stand.name not in warm:
            stand.window(20, interval_us=interval_us)
            warm.add(stand.name)
        report, cpu = stand.window(10, interval_us=interval_us)
        run.record("single", stand.name, cpu / report["events"] * MILLION)

    in_rounds(run, "single", 1000, measure, rounds=3 * run.rounds)


def latency(run):
    def measure(stand):
        report, _ = stand.window(2 if run.quick else 3, interval_us=MILLION)
        run.record("p50", stand.name, report["p50_us"] / 1000)
        run.record("p99", stand.name, report["p99_us"] / 1000)

    in_rounds(run, "latency", 9000, measure)


def bursts(run):
    """Batches one after the other, each as soon as the one before is written.

    How many is taken from a trial, so that slow and fast contestants need about the
    same time.
    """
    clients, seconds = 1000, 0.5 if run.quick else 1.5
    for batch in (10, 100):
        batches = {}

        def measure(stand, batch=batch, batches=batches):
            if stand.name not in batches:
                stand.window(batch, batch=batch)
                trial, _ = stand.window(2 * batch, batch=batch)
                batches[stand.name] = max(2, round(2 * seconds / trial["span_s"]))
            report, cpu = stand.window(batches[stand.name] * batch, batch=batch)
            deliveries = report["events"]
            rate = deliveries / report["span_s"] / MILLION
            run.record(f"burst{batch}", stand.name, rate)
            run.record(f"burst{batch}_cpu", stand.name, cpu / deliveries * 1e9)

        in_rounds(run, f"burst{batch}", clients, measure)


def memory(run):
    """What a subscriber adds, the server's own size and its first-use costs aside."""
    for clients in (1000,) if run.quick else (1000, 15_000):
        for _ in range(1 if run.quick else min(run.rounds, 3)):
            for contestant in run.contestants:
                with run.guard("memory", contestant.name):
                    value = memory_per_subscriber(contestant, clients) / 1024
                    run.record(f"memory{clients}", contestant.name, value)


def memory_per_subscriber(contestant, clients):
    with standing(contestant, 1) as first:
        first.window(1)
        before = first.server.resident_bytes()
        with Clients(first.server, clients) as crowd:
            stand = Stand(contestant.name, first.server, crowd.connected())
            stand.window(1)
            return (first.server.resident_bytes() - before) / clients


def arrivals(run):
    """First within nginx's backlog of 511, then as after a restart: all at once."""
    cases = (("arrivals", 500),) if run.quick else (("arrivals", 500), ("storm", 9000))
    for _ in range(run.rounds):
        for metric, inflight in cases:
            for contestant in run.contestants:
                with run.guard(metric, contestant.name), Server(contestant) as server:
                    before = server.cpu_seconds()
                    with Clients(server, 9000, inflight=inflight) as clients:
                        seconds = clients.connected().seconds
                        cpu = server.cpu_seconds() - before
                    run.record(metric, contestant.name, seconds)
                    if metric == "arrivals":
                        run.record(
                            "arrivals_cpu", contestant.name, cpu / 9000 * MILLION
                        )


def resuming(run):
    """Three thousand who know the newest event, and as many who know none."""
    for _ in range(run.rounds):
        for contestant in run.own():
            name = contestant.name
            with run.guard("resuming", name), standing(contestant, 1) as stand:
                stand.server.begin(10)
                mark = stand.server.finish()
                costs = []
                for header in (None, f"Last-Event-ID: {mark}"):
                    before = stand.server.cpu_seconds()
                    with Clients(stand.server, 3000, header=header) as arriving:
                        arriving.connected()
                        costs.append(stand.server.cpu_seconds() - before)
                run.record("resuming", name, costs[1] / costs[0])


def inside(run):
    """What can be seen only from within the server's process."""
    for _ in range(run.rounds):
        for contestant in run.own():
            python, driver = contestant.command[:2]
            program = [python, driver.with_name("inside.py")]
            with run.guard("inside", contestant.name):
                routed = json.loads(output_of([*program, "routing"]))
                run.record("routing", contestant.name, routed["cpu"])
                run.record("turn", contestant.name, routed["turn"])
                waited = json.loads(output_of([*program, "ahead"]))
                run.record("ahead", contestant.name, waited["ratio"])
                found = json.loads(output_of([*program, "retained"]))
                run.record("retained", contestant.name, found["cost"])
                run.record("retained_p99", contestant.name, found["p99"])
                found = json.loads(output_of([*program, "snapshot"]))
                run.record("snapshot", contestant.name, found["kib"])


def compression(run):
    """Plain and compressed clients of the same events, in one process."""
    for _ in range(1 if run.quick else run.rounds):
        for contestant in run.own():
            name = contestant.name
            python, driver = contestant.command[:2]
            program = [python, driver.with_name("compression.py")]
            with run.guard("compression", name):
                for kind in ("table", "log", "sensor"):
                    found = json.loads(output_of([*program, kind]))
                    run.record(f"bytes_{kind}", "plain", found["plain"])
                    run.record(f"bytes_{kind}", name, found["compressed"])
                    run.record(f"smaller_{kind}", name, found["ratio"])
                    run.record(f"gzip_cpu_{kind}", name, found["cpu"])
                run.record("coded_cpu", "plain", found["cpu_plain"])
                run.record("coded_cpu", name, found["cpu_compressed"])
                run.record("coded_memory", name, found["kib"])
                if shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
                    found = json.loads(output_of([*program, "nginx"]))
                    cpu = found["cpu_server"] + found["cpu_nginx"]
                    kib = found["kib_server"] + found["kib_nginx"]
                    run.record("bytes_sensor", "nginx gzip", found["compressed"])
                    run.record("coded_cpu", "nginx gzip", cpu)
                    run.record("coded_memory", "nginx gzip", kib)
                for metric, case, key in (
                    ("joins", "joins", "10"),
                    ("gzip_turn", "turn", "turn"),
                ):
                    found = json.loads(output_of([*program, case]))
                    run.record(metric, name, found[key])
                kib = [
                    json.loads(output_of([*program, case]))["kib"]
                    for case in ("channels", "channels, gzip")
                ]
                run.record("gzip_memory", name, kib[1] - kib[0])


def resume(run):
    for _ in range(run.rounds):
        for contestant in run.own():
            name = contestant.name
            with run.guard("resume", name), standing(contestant, 1000) as stand:
                usual, meanwhile = p99_usual_and_while_resuming(stand)
                run.record("resume", name, meanwhile / usual)


def p99_usual_and_while_resuming(stand, behind=500, resuming=1000):
    """The live clients' p99, in ms, in a quiet stretch and in one with the resume.

    One event is published every 30 ms throughout. The second stretch lasts as long as
    the resume, and 20 events at least.
    """
    server, live = stand.server, stand.clients
    server.begin(1)
    mark = server.finish()
    first_resumed = server.next_number
    server.begin(behind, batch=10, interval_us=20_000)
    server.finish()
    last_quiet, last_busy = server.next_number + 39, server.next_number + 60
    last = server.begin(120, interval_us=30_000)
    live.report(last - 119)
    live.reset()
    usual = live.report(last_quiet)["p99_us"]
    live.reset()
    header = f"Last-Event-ID: {mark}"
    with Clients(server, resuming, header=header, aside=True) as late:
        caught_up = late.connected().report(last_quiet)
        meanwhile = live.report(last_busy)["p99_us"]
        server.finish()
        report = late.report(last)
        live.report(last)
    if caught_up["first_low"] != first_resumed or report["first_high"] != first_resumed:
        raise Failure(f"resumed after {mark}, expected {first_resumed}: {report}")
    if report["events"] != resuming * (last - first_resumed + 1):
        raise Failure(f"{report['events']} deliveries to those that resumed")
    return usual / 1000, meanwhile / 1000


def channels(run):
    for _ in range(1 if run.quick else run.rounds):
        for contestant in run.own():
            with run.guard("channels", contestant.name):
                few = cpu_per_publish(contestant, 10)
                many = cpu_per_publish(contestant, 10_000)
                run.record("channels", contestant.name, many / few)


def cpu_per_publish(contestant, number_of_channels, publishes=1500):
    """Publish, one at a time, to a channel with one subscriber out of 10,000.

    The last channel takes the subscribers that are left, so that the connections and
    the deliveries are the same for any number of channels.
    """
    with standing(contestant, 10_000, channels=number_of_channels) as stand:
        one_subscriber_cpu(stand.server, stand.clients, publishes)  # to warm up
        return one_subscriber_cpu(stand.server, stand.clients, publishes) / publishes


def one_subscriber_cpu(server, clients, publishes):
    clients.reset()
    before = server.cpu_seconds()
    last = server.begin(publishes, interval_us=500, channel="c0")
    server.finish()
    report = clients.report(last, wanted=1)
    if report["events"] != publishes:
        raise Failure(f"{report['events']} deliveries instead of {publishes}")
    return server.cpu_seconds() - before


def ok(run):
    if not run.ok_peer:
        return
    for _ in range(run.rounds):
        for contestant in [run.ok_peer, *run.own()]:
            with run.guard("ok", contestant.name), Server(contestant) as server:
                run.record("ok", contestant.name, wrk(server) / 1000)


def wrk(server, seconds=3):
    url = f"http://127.0.0.1:{server.port}/"
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", url]
    with pinned_to(cores()[1]):
        text = output_of(command)
    if "Non-2xx" in text or "Socket errors" in text:
        raise Failure(f"wrk: {text}")
    return float(re.search(r"Requests/sec:\s*([\d.]+)", text)[1])


def growth(run):
    """How the cost grows, one thing at a time from 1,000 clients and 100 bytes."""
    cases = [("clients", n, n, 100, 1000) for n in (10, 100, 1000, 5000, 15_000)]
    cases += [("event bytes", n, 1000, n, 1000) for n in (64, 1024, 8192, 65_536)]
    cases += [("history", n, 1000, 100, n) for n in (0, 1000, 10_000, 100_000)]
    floor = [c for c in run.contestants if c.name == FLOOR]
    for subject, value, clients, size, history in cases:
        row = {"subject": subject, "value": value}
        for contestant in floor + run.own()[:1]:
            with run.guard(f"growth, {subject} {value}", contestant.name):
                row[contestant.name] = cost(contestant, clients, size, history)
        run.growth.append(row)


def cost(contestant, clients, size, history):
    """Median CPU µs per delivery and p99 in ms, the history filled beforehand."""
    arguments = [history] if contestant.name == OURS else []
    interval_us = max(5_000, 40 * clients, size * clients // 500)
    count = max(6, min(200, 20_000 // clients))
    found = []
    with Server(contestant, *arguments) as server:
        if history and arguments:
            server.begin(history, batch=100)
            server.finish()
        with Clients(server, clients) as crowd:
            stand = Stand(contestant.name, server, crowd.connected())
            stand.window(10, interval_us=interval_us, size=size)
            for _ in range(3):
                report, cpu = stand.window(count, interval_us=interval_us, size=size)
                per_delivery = cpu / report["events"] * MILLION
                found.append((per_delivery, report["p99_us"] / 1000))
    return [statistics.median(column) for column in zip(*found)]


SCENARIOS = {
    function.__name__: function
    for function in (
        single,
        latency,
        bursts,
        memory,
        arrivals,
        resuming,
        inside,
        compression,
        resume,
        channels,
        ok,
        growth,
    )
}


def ratio(run, metric, name, against):
    """The median over the rounds of one contestant's figure to another's, or None."""
    figures = run.figures.get(metric, {})
    pairs = list(zip(figures.get(name, []), figures.get(against, [])))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def verdicts(run, metric):
    """(contestant, what is asked, what was found, met?) for each judged target."""
    more = METRICS[metric].more_is_better
    if METRICS[metric].client_bound and not Clients.program:
        return
    for contestant in run.own():
        for target in METRICS[metric].targets:
            if target.against:
                found = ratio(run, metric, contestant.name, target.against)
                unit = f"× {target.against}"
            else:
                values = run.figures[metric].get(contestant.name)
                found = statistics.median(values) if values else None
                unit = METRICS[metric].unit
            if found is None:
                continue
            asked = f"{'≥' if more else '≤'} {target.bound:.2f} {unit}"
            met = found >= target.bound if more else found <= target.bound
            yield contestant.name, asked, found, met
