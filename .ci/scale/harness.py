"""What the checks at scale share: a network of their own, programs that run in it, the
recipes, and a report."""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import (  # noqa: F401
    Failure,
    Report,
    expect,
    raise_descriptor_limit,
    until,
)

ROOT = HERE.parents[1]
PATIENCE = 30.0  # seconds that anything awaited may take on a busy machine
README = ROOT / "README.md"
RECIPES = ROOT / ".recipes"
RECIPE = re.compile(
    r"^<!-- (?:recipe|example): (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
IN_PRIVATE_NETWORK = "SSE_SCALE_IN_PRIVATE_NETWORK"


# The surroundings.


def enter_private_network():
    """Start again in an empty network, where the usual ports are free for us.

    The recipes then run as they stand, with the ports that they name.
    """
    if IN_PRIVATE_NETWORK in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    enter = ["unshare", "--net"]
    if os.geteuid() != 0:
        enter += ["--user", "--map-current-user", "--keep-caps"]
    if subprocess.run([*enter, "true"], check=False).returncode:
        sys.exit("FAIL: no network of its own here; needs root or user namespaces")
    os.environ[IN_PRIVATE_NETWORK] = "1"
    os.execvp(enter[0], [*enter, sys.executable, *sys.argv])


def arguments(parser=None):
    """The options that all checks have, and a parser's own."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument(
        "--readme", type=pathlib.Path, default=README, help="a draft with more recipes"
    )
    parser.add_argument("--module", type=pathlib.Path, default=ROOT / "sse_server.py")
    options = parser.parse_args()
    options.readme, options.module = options.readme.resolve(), options.module.resolve()
    return options


def recipes(readme):
    """The files in .recipes, and the recipes that a README shows, by their names."""
    files = [path for path in RECIPES.iterdir() if path.is_file()]
    found = {path.name: path.read_text("utf-8") for path in files}
    return {**found, **dict(RECIPE.findall(readme.read_text("utf-8")))}


class Workshop:
    """A temporary folder with the module and the recipes as files.

    The recipes are those of .recipes and README.md, and before them those of the draft,
    if there is one.
    """

    def __init__(self, draft, module):
        self.recipes = {**recipes(README), **recipes(draft)}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sse-scale-"))
        # PostgreSQL and nginx's workers are other users.
        self.folder.chmod(0o755)
        shutil.copy(module, self.folder / "sse_server.py")
        for name, block in self.recipes.items():
            (self.folder / name).write_text(block, "utf-8")

    def recipe(self, name):
        expect(name in self.recipes, f"there is no recipe {name}")
        return self.recipes[name]

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text, "utf-8")
        return path

    def python(self, name, *parameters, **options):
        """Run a recipe."""
        self.recipe(name)
        return Program(
            [sys.executable, "-u", name, *map(str, parameters)], self.folder, **options
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)


def listening(port):
    """The sockets that listen on a port, as descriptors are linked to them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":
                found.add(f"socket:[{fields[9]}]")
    return found


class Program:
    """A process of ours whose output goes to a file, and into a failure's text."""

    def __init__(self, command, folder, *, port=None, env=None):
        self.name = pathlib.Path(command[0]).name
        if self.name.startswith("python"):
            self.name = command[2]
        self._command, self._folder, self._env = command, folder, env
        self.port = port
        with tempfile.NamedTemporaryFile(
            dir=folder, suffix=".log", delete=False
        ) as log:
            self._log = pathlib.Path(log.name)
        self.start()

    def start(self):
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(self._env or {})},
            )
        if self.port:
            until(self._listens, f"{self.name} listens on {self.port}")

    def _listens(self):
        """Whether this very process listens: another one may on the same port."""
        if self.process.poll() is not None:
            raise Failure(f"{self.name} ended: {self.output()[-1500:]}")
        descriptors = pathlib.Path(f"/proc/{self.pid}/fd").iterdir()
        with contextlib.suppress(FileNotFoundError):  # one that was closed meanwhile
            return bool({os.readlink(d) for d in descriptors} & listening(self.port))
        return False

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return self._log.read_text("utf-8", "replace")

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As the kernel does when memory is short: no farewell."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """As a service manager does; the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} did not end at SIGTERM")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
        self.stop()


def redis_server(folder, fsync="always"):
    """Redis on its usual port, with a file that a restart loses nothing of."""
    data = pathlib.Path(tempfile.mkdtemp(prefix="redis-", dir=folder))
    return Program(
        [
            "redis-server",
            "--port",
            "6379",
            "--bind",
            "127.0.0.1",
            "--dir",
            str(data),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            fsync,
        ],
        folder,
        port=6379,
    )


def nginx(workshop, server_block, port):
    """nginx with this server block; many connections."""
    folder = workshop.folder
    configuration = workshop.write(
        "nginx.conf",
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + "worker_processes 1; worker_shutdown_timeout 1s;\n"
        "events { worker_connections 9000; }\n"
        "http { access_log off;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + server_block
        + "}\n",
    )
    return Program(
        ["nginx", "-e", "stderr", "-c", str(configuration)], folder, port=port
    )


class Stream:
    """A client of one stream, which reads when asked to.

    It speaks HTTP/1.0, to which the stream is sent without chunks around it.
    """

    def __init__(
        self, port, last_event_id=None, query="", host="127.0.0.1", path="/sse"
    ):
        self._socket = socket.create_connection((host, port), timeout=PATIENCE)
        resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        self._socket.sendall(f"GET {path}{query} HTTP/1.0\r\n{resume}\r\n".encode())
        self._received = b""
        head, _, self._received = self._until(b"\r\n\r\n")
        expect(b" 200 " in head.split(b"\r\n")[0], f"the stream's head is {head!r}")
        self._until(b"retry: ")

    def _until(self, mark):
        while mark not in self._received:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise Failure(f"nothing came; before: {self._received!r}") from None
            expect(data, f"the stream ended after {self._received!r}")
            self._received += data
        return self._received.partition(mark)

    def next(self):
        """The next event: a dict of its fields."""
        block, _, self._received = self._until(b"\n\n")
        fields = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        return fields

    def take(self, count):
        return [self.next() for _ in range(count)]

    def ended(self):
        """Wait for the end of the stream."""
        with contextlib.suppress(ConnectionResetError):
            while self._socket.recv(65536):
                pass
        return True

    def data(self, count):
        """The data of the next events, of which none may be a gap."""
        events = self.take(count)
        expect(all(e.get("event") != "gap" for e in events), f"a gap in {events}")
        return [event["data"] for event in events]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
