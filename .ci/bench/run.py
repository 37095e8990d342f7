#!/usr/bin/env python3
"""Measure the server beside a bare C epoll loop, in one run on one machine.

    python3 .ci/bench/run.py              all scenarios, a few minutes
    python3 .ci/bench/run.py --quick      the same with less of all, in a minute or two
    python3 .ci/bench/run.py --peers      nchan, Node, ... installed and added

The server runs on one core, the clients on another. The figures are medians over the
rounds, the factors medians of the ratios within each round.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import svg
from common import raise_descriptor_limit, version_of
from contestants import FLOOR, Clients, compile_c, contestants_of, output_of
from scenarios import METRICS, SCENARIOS, Run, ratio, verdicts

HERE = Path(__file__).resolve().parent
DESCRIPTORS = 20_000  # for 15,000 connections in one process, with room


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, clients and events")
    add("--peers", action="store_true", help="install and measure other servers too")
    add("--rounds", type=int, help="rounds of each scenario (7; with --quick 2)")
    add("--only", action="append", choices=SCENARIOS, help="this scenario (repeatable)")
    add("--python", action="append", help="run the server on this Python (repeatable)")
    add("--json", metavar="FILE", help="write every figure of every round")
    add("--svg", metavar="FILE", help="draw (comparison.svg after all of --peers)")
    add("--check", action="store_true", help="exit status 1 if a target is missed")
    arguments = parser.parse_args()
    if arguments.peers and not (arguments.only or arguments.quick):
        arguments.svg = arguments.svg or HERE / "comparison.svg"
    return arguments


def describe(pythons, peers):
    """The machine and the versions, as they stand below the table and the drawing."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [
        line.partition(":")[2].strip() for line in cpuinfo if "model name" in line
    ]
    machine = models[0] if models else platform.machine()
    setting = {
        "machine": f"{machine}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": ", ".join(map(version_of, pythons)),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": f"{os.getloadavg()[0]:.2f}",
    }
    if peers:
        asked = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "nginx-light"]
        found = output_of([*asked, "libnginx-mod-nchan"]).splitlines()
        found.append(f"node {output_of(['node', '-v']).strip()}")
        pinned = (HERE / "drivers" / "requirements.txt").read_text()
        found += pinned.replace("==", " ").splitlines()
        setting["peers"] = ", ".join(found)
    return setting


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


def main():
    arguments = parse_arguments()
    if raise_descriptor_limit() < DESCRIPTORS:
        print(f"note: {DESCRIPTORS} descriptors are needed for all")
    pythons = arguments.python or [sys.executable]
    chosen = arguments.only or list(SCENARIOS)
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    peers = output_of([HERE / "install.sh", *["--peers"] * arguments.peers]).strip()
    with tempfile.TemporaryDirectory(prefix="sse-bench-") as folder:
        Clients.program = compile_c("client", folder)
        contestants = contestants_of(folder, pythons, peers)
        run = Run(contestants, rounds, arguments.quick)
        setting = describe(pythons, peers)
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
    print("\n" + "\n".join(f"{key}: {value}" for key, value in setting.items()))
    if arguments.json:
        found = {"setting": setting, "rounds": run.figures, "failures": run.failures}
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
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
