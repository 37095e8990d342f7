#!/usr/bin/env python3
"""Measure the server beside a bare C epoll loop, in one run on one machine.

    python3 .ci/bench/run.py              all scenarios, a few minutes
    python3 .ci/bench/run.py --quick      the main ones, in less than a minute
    python3 .ci/bench/run.py --peers      nchan, Node, Koa, ... installed and added

The server runs on one core, the clients on another. The figures are medians over the
rounds, the factors medians of the ratios within each round.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import peers
import svg
from contestants import (
    FLOOR,
    Clients,
    compile_c,
    copy_drivers,
    own_contestants,
    python_version,
)
from scenarios import METRICS, SCENARIOS, Run, ratio, verdicts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import raise_descriptor_limit

QUICK = ("single", "latency", "bursts", "memory", "arrivals", "channels")
HERE = Path(__file__).resolve().parent
DESCRIPTORS = 20_000  # for 15,000 connections in one process, with room


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer scenarios, rounds and events")
    add("--peers", action="store_true", help="install and measure other servers too")
    add("--rounds", type=int, help="rounds of each scenario (7; with --quick 2)")
    add("--only", action="append", choices=SCENARIOS, help="this scenario (repeatable)")
    add("--python", action="append", help="run the server on this Python (repeatable)")
    add("--json", metavar="FILE", help="write every figure of every round")
    add(
        "--svg",
        metavar="FILE",
        help="draw the comparison (comparison.svg after all of --peers)",
    )
    add("--check", action="store_true", help="exit status 1 if a target is missed")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    if arguments.peers and not (arguments.only or arguments.quick):
        arguments.svg = arguments.svg or HERE / "comparison.svg"
    return arguments


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe(pythons, versions):
    """The machine and the versions, as they stand below the table and the drawing."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": ", ".join(map(python_version, pythons)),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": f"{os.getloadavg()[0]:.2f}",
        **versions,
    }


def print_metric(run, name):
    metric = METRICS[name]
    better = "more" if metric.more_is_better else "less"
    print(f"\n{metric.title} ({metric.unit}; {better} is better)")
    for contestant, values in run.figures[name].items():
        to_floor = ratio(run, name, contestant, FLOOR)
        beside = to_floor and metric.beside_floor
        factor = f"{to_floor:6.2f} × floor" if beside else ""
        print(
            f"  {contestant:<18}{statistics.median(values):>10.{metric.digits}f}"
            f"   ({min(values):.{metric.digits}f} to {max(values):.{metric.digits}f})"
            f"  {factor}"
        )
    for contestant, asked, found, met in verdicts(run, name):
        print(f"  {contestant}: {asked}: {found:.2f}  {'met' if met else 'MISSED'}")


def print_growth(run):
    if not run.growth:
        return
    names = [key for key in run.growth[0] if key not in ("subject", "value")]
    print("\nHow cost grows (server CPU per delivery in µs, delivery p99 in ms)")
    print(" " * 24 + "".join(f"{name:>22}" for name in names) + "   to the first")
    for row in run.growth:
        line = f"  {row['subject']:<12}{row['value']:>10}"
        for name in names:
            cpu, p99 = row.get(name, (float("nan"),) * 2)
            line += f"{cpu:>13.2f}{p99:>9.1f}"
        if len(names) == 2 and all(name in row for name in names):
            line += f"{row[names[1]][0] / row[names[0]][0]:>12.2f} ×"
        print(line)


def main():
    arguments = parse_arguments()
    limit = raise_descriptor_limit()
    if limit != resource.RLIM_INFINITY and limit < DESCRIPTORS:
        print(f"note: RLIMIT_NOFILE is {limit}, {DESCRIPTORS} are needed for all")
    pythons = arguments.python or [sys.executable]
    chosen = arguments.only or (QUICK if arguments.quick else list(SCENARIOS))
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    with tempfile.TemporaryDirectory(prefix="sse-bench-") as folder:
        Clients.program = compile_c("client", folder)
        drivers = copy_drivers(folder, pythons)
        contestants = own_contestants(compile_c("floor", folder), drivers, pythons)
        if not Clients.program:
            print("note: no C compiler: no floor, and slow clients, in Python; what")
            print("      depends on their speed is measured, but not judged")
        found = peers.install(drivers) if arguments.peers else peers.Peers()
        run = Run(contestants + found.contestants, rounds, arguments.quick, found.ok)
        setting = describe(pythons, found.versions)
        for name in chosen:
            started = time.monotonic()
            SCENARIOS[name](run)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return conclude(run, arguments, setting)


def conclude(run, arguments, setting):
    """Print, write and draw what was found; the exit status."""
    for name in METRICS:
        if name in run.figures:
            print_metric(run, name)
    print_growth(run)
    print("\n" + "\n".join(f"{key}: {value}" for key, value in setting.items()))
    if arguments.json:
        result = {
            "setting": setting,
            "rounds": run.figures,
            "growth": run.growth,
            "failures": run.failures,
        }
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    if arguments.svg:
        Path(arguments.svg).write_text(svg.draw(run, setting))
    missed = [v for name in run.figures for v in verdicts(run, name) if not v[3]]
    for failure in run.failures:
        print(f"FAILED {failure}")
    if arguments.check and missed:
        print(f"FAILED {len(missed)} targets missed")
    return 1 if run.failures or arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
