"""The processes of a measurement: servers, their clients, and how they are watched."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import MODULE, Failure, Program, process_cpu, version_of

FLOOR, LOOP, OURS, NCHAN = "C floor", "bare loop", "sse_server", "nginx + nchan"
NCHAN_MODULE = "/usr/lib/nginx/modules/ngx_nchan_module.so"
START_SECONDS = 20  # for a server to listen
CONNECT_SECONDS = 60  # for all clients of one process to get their heads


def cores():
    """The core for the servers, and that for the clients."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[-1], mine[0]


@contextlib.contextmanager
def pinned_to(core):
    """Children that are started within it run on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def output_of(command, cwd=None):
    """What a command prints; what it says is only of interest when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        said = (done.stdout + done.stderr)[-1000:]
        raise Failure(f"{' '.join(words)}: exit status {done.returncode}\n{said}")
    return done.stdout


def compile_c(name, folder):
    """The program made from NAME.c."""
    program = Path(folder, name)
    output_of(["cc", "-O2", "-o", program, HERE / f"{name}.c"])
    return program


def copy_drivers(folder, pythons):
    """The drivers and the module in a folder of their own, compiled beforehand.

    What the compiler leaves behind in a process's memory would be taken for room that
    subscribers do not need; and an edit in the middle of a run is not measured.
    """
    drivers = Path(folder, "drivers")
    shutil.copytree(HERE / "drivers", drivers)
    shutil.copy(MODULE, drivers)
    for python in pythons:
        output_of([python, "-m", "compileall", "-q", drivers])
    return drivers


class Process(Program):
    """A child, pinned to a core, that answers lines with lines."""

    def __init__(self, command, core):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with pinned_to(core):
            super().__init__(command, **pipes)

    def tell(self, line):
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failure(f"ended before {line}: {self.output()[-1000:]}") from None

    def __exit__(self, *exc_info):
        """End it: by the end of its input, by force if that does not help."""
        with self.process, contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            self.process.kill()


class Server(Process):
    """A contestant's server, under the control of its driver."""

    def __init__(self, contestant, *arguments):
        server_core, client_core = cores()
        core = client_core if contestant.driver_is_publisher else server_core
        super().__init__([*contestant.command, *arguments], core)
        self.next_number = 1
        try:
            _, port, *pid = self.hear(START_SECONDS).split()
        except BaseException:
            self.kill()
            raise
        self.port = int(port)
        self.measured = int(pid[0]) if pid else self.pid

    def begin(self, count, *, batch=1, interval_us=0, size=100, channel="-"):
        """Start publishing; `finish` waits for the end. Returns the last number."""
        first = self.next_number
        self.next_number += count
        self.tell(f"publish {first} {count} {batch} {interval_us} {size} {channel}")
        return self.next_number - 1

    def finish(self, seconds=120):
        """Wait until all is published; the last event's id."""
        return self.hear(seconds).split()[1]

    def cpu_seconds(self):
        return process_cpu(self.measured)

    def resident_bytes(self):
        lines = Path(f"/proc/{self.measured}/smaps_rollup").read_text().splitlines()
        rss = next(line for line in lines if line.startswith("Rss:"))
        return int(rss.split()[1]) * 1024


class Clients(Process):
    """A process of clients, all connected to one server."""

    program = None  # the compiled client

    def __init__(self, server, connections, *, inflight=64, channels=0, header=None):
        command = [self.program, server.port, connections, inflight, channels, "/sse"]
        super().__init__(command + [header] * bool(header), cores()[1])
        self.connections = connections
        self.seconds = None  # from the first connect to the last head

    def connected(self):
        """Wait until all of them stream."""
        self.seconds = json.loads(self.hear(CONNECT_SECONDS))["seconds"]
        return self

    def reset(self):
        self.tell("reset")
        self.hear(10)

    def report(self, number=0, wanted=None, seconds=60):
        """What they saw, as soon as `wanted` of them (default: all) saw this event."""
        wanted = self.connections if wanted is None else wanted
        self.tell(f"report {number} {wanted} {int(seconds * 1000)}")
        report = json.loads(self.hear(seconds + 10))
        faults = sum(report[key] for key in ("lost", "disordered", "gaps", "closed"))
        if faults or report["reached"] < wanted:
            raise Failure(f"events did not arrive; {wanted} clients wait: {report}")
        return report


@dataclass(frozen=True)
class Contestant:
    """How a server is started.

    With driver_is_publisher the driver only publishes, beside the clients, to a server
    that it has started on the servers' core.
    """

    name: str
    command: list
    driver_is_publisher: bool = False


def contestants_of(folder, pythons, python_of_peers):
    """The floor, the bare loop and the server of this repository, on each Python; and
    the peers, if there is a Python that has them."""
    drivers = copy_drivers(folder, pythons)
    found = [Contestant(FLOOR, [compile_c("floor", folder)])]
    for python in pythons:
        suffix = "" if python == pythons[0] else " " + version_of(python)
        found.append(Contestant(LOOP + suffix, [python, drivers / "peers.py", "bare"]))
        found.append(Contestant(OURS + suffix, [python, drivers / "ours.py"]))
    if python_of_peers:
        output_of([python_of_peers, "-m", "compileall", "-q", drivers])
        peers = [python_of_peers, drivers / "peers.py"]
        nchan = [sys.executable, drivers / "nchan.py", cores()[0], NCHAN_MODULE]
        found += [
            Contestant(NCHAN, nchan, driver_is_publisher=True),
            Contestant("Node http", ["node", drivers / "node_http.js"]),
            Contestant("sse-starlette", [*peers, "starlette"]),
            Contestant("our stream()", [*peers, "body"]),
            Contestant("mounted", [*peers, "mounted"]),
        ]
    return found
