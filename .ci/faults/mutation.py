#!/usr/bin/env python3
"""Breaks single places of sse_server.py and demands that a unit test notices each.

A mutant is a copy in which one statement is deleted, one condition negated, one number
changed by one, or one comparison swapped between `<` and `<=`.  The unit tests must pass
on the unchanged copy first.  What is above the module's marked line is tried with the
tests that need no socket, and what survives them with those that do; what is below it
the other way round.  The twins of tests over TLS are for the class _TLS.

usage: mutation.py [--seed N] [--mutants N] [--allowed N]
       The places are chosen by the seed.  A run by hand with --mutants 1000 takes an
       hour or two.  The exit status is 1 if more mutants than --allowed survive.
"""

import argparse
import ast
import collections
import concurrent.futures
import faulthandler
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ("sse_server.py", "test_sse_server.py", "README.md")
LINE = "#    Above this line: bytes and values."
SWAPPED = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="),
           ast.GtE: (">=", ">")}  # fmt: skip
DELETED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Raise, ast.Delete,
           ast.Continue, ast.Break)  # fmt: skip
PARTS = ("values", "sockets", "TLS")  # of the tests: which of these they need
TIMED_OUT = "timed out"
MEMORY = 4 << 30  # bytes of address space that a mutant may use
WORKERS = 4  # the tests mostly wait: there may be more of them at a time than cores


class Mutant(typing.NamedTuple):
    """One place, by byte offsets, and what stands there instead."""

    name: str  # the same as long as its function is, so that the choice by a seed is
    kind: str
    line: int
    start: int
    end: int
    new: str

    def rank(self, seed):
        return hashlib.sha256(f"{seed} {self.name}".encode()).digest()

    def applied(self, source):
        return source[: self.start] + self.new.encode() + source[self.end :]


class Places(ast.NodeVisitor):
    """All mutants of a module's functions; not of asserts, annotations and messages."""

    def __init__(self, source):
        self._source = source
        self._starts = [0]  # byte offsets of the lines
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self.found = []
        self._within = []  # names of classes and functions
        self._functions = 0
        self._counts = collections.Counter()  # of each text that a function changes
        self.visit(ast.parse(source))

    def _add(self, kind, node, new):
        if self._functions:
            start = self._starts[node.lineno - 1] + node.col_offset
            end = self._starts[node.end_lineno - 1] + node.end_col_offset
            old = self._source[start:end].decode()
            new = new(old) if callable(new) else new
            name = ".".join([*self._within, kind, old])
            self._counts[name] += 1
            name += f" {self._counts[name]}"
            self.found.append(Mutant(name, kind, node.lineno, start, end, new))

    def visit_ClassDef(self, node):
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()

    def visit_FunctionDef(self, node):
        self._functions += 1
        self._within.append(node.name)
        for child in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(child)
        for child in node.body:
            self.visit(child)
        self._within.pop()
        self._functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit(self, node):
        if isinstance(node, DELETED) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            self._add("deleted", node, "pass")
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            self._add("negated", node.test, lambda text: f"(not ({text}))")
        super().visit(node)

    def visit_Assert(self, node):
        pass

    visit_JoinedStr = visit_Assert

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    def visit_Constant(self, node):
        if type(node.value) is int:
            self._add("number", node, lambda text: f"({text} + 1)")

    def visit_Compare(self, node):
        for left, sign, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators
        ):
            if type(sign) in SWAPPED:
                old, new = SWAPPED[type(sign)]
                part = lambda text, o=old, n=new: text.replace(o, n, 1)
                self._add("compared", between(left, right), part)
        self.generic_visit(node)


def between(left, right):
    """What stands there, as a node."""
    node = ast.Constant(0, lineno=left.end_lineno, col_offset=left.end_col_offset)
    node.end_lineno, node.end_col_offset = right.lineno, right.col_offset
    return node


def attempt(source, part, classes=()):
    """Run the tests of a part in a copy: the test that failed, or how long each class
    took.  `classes`: NAME:SECONDS that it may take."""
    with tempfile.TemporaryDirectory(prefix="sse-mutation-") as folder:
        for name in FILES:
            shutil.copy(ROOT / name, folder)
        pathlib.Path(folder, "sse_server.py").write_bytes(source)
        env = {**os.environ, "SSE_TEST_SEED": "1", "SSE_TEST_FACTOR": "2"}
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        how = {"cwd": folder, "env": env, "start_new_session": True, **quiet}
        command = [sys.executable, "-W", "ignore", __file__, "--run", part, *classes]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, **how)
        try:
            lines = process.communicate(timeout=600)[0].splitlines()
        except subprocess.TimeoutExpired:
            return {"failed": TIMED_OUT}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        outcomes = [line for line in lines if line.startswith(b'{"failed":')]
        return json.loads(outcomes[-1]) if outcomes else {"failed": TIMED_OUT}


def run_tests(part, *order):
    """In a copy: run its tests, stop at the first failure, say what it was."""
    import unittest

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.path.insert(0, os.getcwd())
    try:
        import test_sse_server as tests
    except Exception as error:
        print(json.dumps({"failed": f"import: {error!r}"}))
        return
    loader, seconds = unittest.defaultTestLoader, {}
    cases = vars(tests).items()
    cases = {name: case for name, case in cases if part == needs(name, case, tests)}
    for entry in order or cases:
        name, _, limit = entry.partition(":")
        if limit:
            faulthandler.dump_traceback_later(float(limit), exit=True)
        started = time.monotonic()
        result = unittest.TestResult()
        result.failfast = True
        loader.loadTestsFromTestCase(cases[name]).run(result)
        seconds[name] = time.monotonic() - started
        problems = result.failures + result.errors
        if problems or result.unexpectedSuccesses:
            print(json.dumps({"failed": str(problems[:1] and problems[0][0])}))
            return
    print(json.dumps({"failed": "", "seconds": seconds}), flush=True)


def needs(name, case, tests):
    is_tests = isinstance(case, type) and issubclass(case, tests.unittest.TestCase)
    if not is_tests or name == "ReadmeTest":
        return None
    if issubclass(case, tests.OverTLS):
        return "TLS"
    return "sockets" if issubclass(case, tests.ServerTestCase) else "values"


def parts_for(mutant, marked):
    """The parts of the tests that it is tried with, one after the other."""
    if mutant.name.startswith("_TLS."):
        return "TLS", "sockets"
    return PARTS[:2] if mutant.line < marked else PARTS[1::-1]


def baseline(source, pool):
    """The classes of each part of the tests, the quick ones first, and their limits."""
    found = {}
    for part, outcome in zip(PARTS, pool.map(lambda p: attempt(source, p), PARTS)):
        if outcome["failed"]:  # a busy machine, perhaps
            outcome = attempt(source, part)
        if outcome["failed"]:
            sys.exit(f"FAIL mutation: the tests fail unchanged: {outcome['failed']}")
        seconds = outcome["seconds"]
        order = sorted(seconds, key=seconds.get)
        found[part] = [f"{name}:{3 * seconds[name] + 15:.0f}" for name in order]
    return found


def chosen(source, options):
    """The mutants to try, by the seed."""
    mutants = sorted(Places(source).found, key=lambda one: one.rank(options.seed))
    print(f"{len(mutants)} places, of which {options.mutants} are tried", flush=True)
    return mutants[: options.mutants]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutants", type=int, default=30)
    parser.add_argument("--allowed", type=int, default=3, help="survivors")
    options = parser.parse_args()
    source = (ROOT / "sse_server.py").read_bytes()
    lines = source.decode().splitlines()
    (marked,) = (n for n, line in enumerate(lines) if line.startswith(LINE))
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        usual = baseline(source, pool)

        def outcome(mutant):
            failed, mutated = "", mutant.applied(source)
            for part in parts_for(mutant, marked):
                failed = failed or attempt(mutated, part, usual[part])["failed"]
            return mutant, failed

        for mutant, failed in pool.map(outcome, chosen(source, options)):
            kind = failed if failed == TIMED_OUT else "killed"
            counts[kind if failed else "survived"] += 1
            old, new = lines[mutant.line - 1].strip(), " ".join(mutant.new.split())
            place = f"line {mutant.line}, {mutant.kind}  {old}   -> {new}"
            print(failed or "SURVIVED", place, sep="  ", flush=True)
    found = ", ".join(f"{counts[it]} {it}" for it in ("killed", TIMED_OUT, "survived"))
    print("mutation:", found)
    bad = counts["survived"] > options.allowed or not counts["killed"]
    print(f"{'FAIL' if bad else 'PASS'} mutation: {options.allowed} may survive")
    return bad


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_tests(*sys.argv[2:])
    else:
        sys.exit(main())
