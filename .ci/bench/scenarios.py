"""What is measured, and what the server of this repository has to reach.

A scenario runs every contestant in each round, one after the other, and records one
figure per metric, contestant and round. Figures are compared within their round, so
that whatever else the machine is doing weighs on both sides of a ratio.
"""

import contextlib
import json
import statistics
import tempfile
from dataclasses import dataclass, field

from contestants import FLOOR, LOOP, NCHAN, OURS, Clients, Failure, Server, output_of

MILLION = 1_000_000


@dataclass(frozen=True)
class Metric:
    """A figure, and bounds on ours, or on its ratio to another's (median of rounds)."""

    title: str
    unit: str
    digits: int = 2
    bound: float = 0.0  # of ours alone; a lower bound where more is better
    ratios: dict = field(default_factory=dict)  # to whose figure: the bound
    more_is_better: bool = False
    beside_floor: bool = True  # a factor to the floor's figure means something


METRICS = {
    "single": Metric("Server CPU per delivery, one event at a time, 1,000 clients", "µs",
                     ratios={FLOOR: 1.15, LOOP: 1.0, NCHAN: 1.0}),
    "p50": Metric("Delivery time p50, 9,000 clients, one event a second", "ms", 1,
                  ratios={FLOOR: 1.4, NCHAN: 1.0}),
    "p99": Metric("Delivery time p99, 9,000 clients, one event a second", "ms", 1,
                  ratios={FLOOR: 1.4, NCHAN: 1.0}),
    "burst10": Metric("Deliveries a second, 100-byte events ten at a time, 1,000 clients",
                      "million/s", bound=1.0, more_is_better=True),
    "burst100": Metric("Deliveries a second, a hundred at a time, 1,000 clients",
                       "million/s", bound=3.0, more_is_better=True),
    "burst10_cpu": Metric("Server CPU per delivery in bursts of ten", "ns", 0),
    "burst100_cpu": Metric("Server CPU per delivery in bursts of a hundred", "ns", 0),
    "memory1000": Metric("Resident memory per idle subscriber, 1,000 of them", "KiB",
                         bound=2.5, beside_floor=False),
    "memory15000": Metric("Resident memory per idle subscriber, 15,000 of them", "KiB",
                          bound=2.5, beside_floor=False),
    "arrivals": Metric("9,000 connections made and streaming, 500 under way at a time",
                       "s", ratios={NCHAN: 1.0}),
    "storm": Metric("9,000 connections made and streaming, all of them at once", "s",
                    ratios={LOOP: 1.5, NCHAN: 1.0}),
    "arrivals_cpu": Metric("Server CPU per arrival", "µs", 1, ratios={LOOP: 1.1}),
    "resuming": Metric("CPU per arrival of clients that resume, to that of new ones", "×",
                       bound=1.5),
    "channels": Metric("CPU per publish to one of 10,000 channels, to that with 10", "×",
                       bound=1.15),
    "bytes_sensor": Metric("Bytes of an event, JSON of a sensor", "bytes", 0),
    "bytes_log": Metric("Bytes of an event, a line of a log", "bytes", 0),
    "bytes_table": Metric("Bytes of an event, a table, a fifth changes", "bytes", 0),
    "smaller_sensor": Metric("Bytes, plain to compressed, JSON of 140 bytes", "×",
                             bound=3.5, more_is_better=True),
    "smaller_log": Metric("Bytes, plain to compressed, log lines of 190 bytes", "×",
                          bound=4.0, more_is_better=True),
    "smaller_table": Metric("Bytes, plain to compressed, a table of 3.7 KB", "×",
                            bound=6.0, more_is_better=True),
    "gzip_cpu_sensor": Metric("CPU per delivery, compressed to plain, the sensor", "×",
                              bound=1.02),
    "gzip_cpu_log": Metric("CPU per delivery, compressed to plain, the log", "×",
                           bound=1.02),
    "gzip_cpu_table": Metric("CPU per delivery, compressed to plain, the table", "×",
                             bound=1.0),
    "joins": Metric("Bytes, plain to compressed, while ten of 1,000 join each second",
                    "×", bound=3.0, more_is_better=True),
    "file_publish": Metric("publish() into a history file, median", "µs", 1, bound=80.0),
    "file_times": Metric("publish() into a history file, to that into memory", "×",
                         bound=3.0),
    "file_event_p99": Metric("From publish() to a client of another process, p99", "ms",
                             1, bound=30.0),
    "file_idle": Metric("Core used by a process with a history file, idle", "%", 2,
                        bound=0.5),
    "file_single": Metric("CPU per delivery, with a history file to without", "×",
                          bound=1.05),
}  # fmt: skip


@dataclass
class Run:
    """What was asked for and what was found."""

    contestants: list
    rounds: int
    quick: bool
    figures: dict = field(default_factory=dict)  # metric -> contestant -> per round
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
def standing(contestant, clients, driving=(), **asking):
    with (
        Server(contestant, *driving) as server,
        Clients(server, clients, **asking) as crowd,
    ):
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
    seconds = 0.5 if run.quick else 1.5
    for batch in (10, 100):
        batches = {}

        def measure(stand, batch=batch, batches=batches):
            if stand.name not in batches:
                stand.window(batch, batch=batch)
                trial, _ = stand.window(2 * batch, batch=batch)
                batches[stand.name] = max(2, round(2 * seconds / trial["span_s"]))
            report, cpu = stand.window(batches[stand.name] * batch, batch=batch)
            rate = report["events"] / report["span_s"] / MILLION
            run.record(f"burst{batch}", stand.name, rate)
            run.record(f"burst{batch}_cpu", stand.name, cpu / report["events"] * 1e9)

        in_rounds(run, f"burst{batch}", 1000, measure)


def memory(run):
    """What a subscriber adds, the server's own size and its first-use costs aside."""
    for clients in (1000,) if run.quick else (1000, 15_000):
        for _ in range(1 if run.quick else min(run.rounds, 3)):
            for contestant in run.contestants:
                name = contestant.name
                with run.guard("memory", name), standing(contestant, 1) as first:
                    first.window(1)
                    before = first.server.resident_bytes()
                    with Clients(first.server, clients) as crowd:
                        Stand("", first.server, crowd.connected()).window(1)
                        added = first.server.resident_bytes() - before
                    run.record(f"memory{clients}", name, added / clients / 1024)


def arrivals(run):
    """First within nginx's backlog of 511, then as after a restart: all at once."""
    cases = (("arrivals", 500),) if run.quick else (("arrivals", 500), ("storm", 9000))
    for _ in range(run.rounds):
        for metric, inflight in cases:
            for contestant in run.contestants:
                name = contestant.name
                with run.guard(metric, name), Server(contestant) as server:
                    before = server.cpu_seconds()
                    with Clients(server, 9000, inflight=inflight) as clients:
                        run.record(metric, name, clients.connected().seconds)
                        cpu = server.cpu_seconds() - before
                    if metric == "arrivals":
                        run.record("arrivals_cpu", name, cpu / 9000 * MILLION)


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


def channels(run, publishes=1500):
    """Publish, one at a time, to a channel with one subscriber out of 10,000.

    The last channel takes the subscribers that are left, so that the connections and
    the deliveries are the same for any number of channels.
    """

    def cost(contestant, number):
        with standing(contestant, 10_000, channels=number) as stand:
            for _ in range(2):  # once to warm up
                stand.clients.reset()
                before = stand.server.cpu_seconds()
                last = stand.server.begin(publishes, interval_us=500, channel="c0")
                stand.server.finish()
                report = stand.clients.report(last, wanted=1)
                if report["events"] != publishes:
                    raise Failure(f"{report['events']} deliveries, not {publishes}")
                cpu = stand.server.cpu_seconds() - before
            return cpu

    for _ in range(1 if run.quick else run.rounds):
        for contestant in run.own():
            with run.guard("channels", contestant.name):
                ratio = cost(contestant, 10_000) / cost(contestant, 10)
                run.record("channels", contestant.name, ratio)


def compression(run):
    """Plain and compressed clients of the same events, in one process."""
    for _ in range(1 if run.quick else run.rounds):
        for contestant in run.own():
            with run.guard("compression", contestant.name):
                compressed(run, contestant)


def compressed(run, contestant):
    name, (python, driver) = contestant.name, contestant.command[:2]

    def measured(case):
        program = [python, driver.with_name("compression.py"), case]
        program.append(3 if run.quick else 9)
        return json.loads(output_of(program))

    for kind in ("table", "log", "sensor"):
        found = measured(kind)
        run.record(f"bytes_{kind}", "plain", found["plain"])
        run.record(f"bytes_{kind}", name, found["compressed"])
        run.record(f"smaller_{kind}", name, found["ratio"])
        run.record(f"gzip_cpu_{kind}", name, found["cpu"])
    run.record("joins", name, measured("joins")["ratio"])


def history_file(run):
    """What a history file costs; the driver makes one for itself."""
    interval_us = 40_000 if run.quick else 60_000
    for contestant in run.own():
        name, (python, driver) = contestant.name, contestant.command[:2]
        with run.guard("history_file", name), tempfile.TemporaryDirectory() as folder:
            in_file = [1000, f"{folder}/single.db"]
            with (
                standing(contestant, 1000) as plain,
                standing(contestant, 1000, driving=in_file) as filed,
            ):
                cost = lambda stand: stand.window(10, interval_us=interval_us)[1]
                for number in range(1 + 3 * run.rounds):  # the first one warms up
                    before, after = cost(plain), cost(filed)
                    if number:
                        run.record("file_single", name, after / before)
            for number in range(1 if run.quick else run.rounds):
                program = [python, driver.with_name("history_file.py")]
                found = output_of([*program, f"{folder}/{number}.db"])
                for metric, value in json.loads(found).items():
                    run.record(metric, name, value)


IN_ORDER = single, latency, bursts, memory, arrivals, resuming, channels, compression
SCENARIOS = {one.__name__: one for one in (*IN_ORDER, history_file)}


def ratio(run, metric, name, against):
    """The median over the rounds of one contestant's figure to another's, or None."""
    figures = run.figures.get(metric, {})
    pairs = list(zip(figures.get(name, []), figures.get(against, [])))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def verdicts(run, name):
    """(contestant, what is asked, what was found, met?) for each judged target."""
    metric = METRICS[name]
    more = metric.more_is_better
    for contestant in run.own():
        asked = [
            (bound, f"× {against}", ratio(run, name, contestant.name, against))
            for against, bound in metric.ratios.items()
        ]
        values = run.figures[name].get(contestant.name)
        if metric.bound and values:
            asked.append((metric.bound, metric.unit, statistics.median(values)))
        for bound, unit, found in asked:
            if found is not None:
                met = found >= bound if more else found <= bound
                text = f"{'≥' if more else '≤'} {bound:.2f} {unit}"
                yield contestant.name, text, found, met
