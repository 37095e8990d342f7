"""What the checks at scale share: a network of their own, programs that run in it, the
recipes, and a report."""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import common
from common import (  # noqa: F401
    KIB,
    Failure,
    Report,
    enter_private_network,
    expect,
    process_cpu,
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
        return self.start(["python", name, *parameters], **options)

    def start(self, command, **options):
        return Program(command, self.folder, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)


def words_of(command):
    """A command, as words or as text; `python` is this one, without a buffer."""
    words = command.split() if isinstance(command, str) else [*map(str, command)]
    return [sys.executable, "-u", *words[1:]] if words[0] == "python" else words


def run(command, *more, **options):
    """A program that ends by itself, and what it said."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, **options}
    return subprocess.run([*words_of(command), *more], check=False, **options)


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
        command = words_of(command)
        self.name = pathlib.Path(command[0]).name
        if self.name.startswith("python"):
            self.name = command[2]
        self._command, self._folder, self._env = command, folder, env
        self.port = port
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".log")
        os.close(descriptor)
        self._log = pathlib.Path(name)
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
        return common.stop(self.process, timeout=PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
        self.stop()


def redis_server(folder, fsync="always"):
    """Redis on its usual port, with a file that a restart loses nothing of."""
    data = pathlib.Path(tempfile.mkdtemp(prefix="redis-", dir=folder))
    command = f"redis-server --port 6379 --bind 127.0.0.1 --dir {data} --appendonly yes"
    more = ["--appendfsync", fsync, "--save", ""]
    return Program([*command.split(), *more], folder, port=6379)


NGINX = """
daemon off; pid nginx.pid; {user}
worker_processes 1; worker_shutdown_timeout 1s;
events {{ worker_connections 9000; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {server}
}}
"""


def nginx(workshop, server_block, port):
    """nginx with this server block; many connections."""
    user = "user root;" if os.geteuid() == 0 else ""
    workshop.write("nginx.conf", NGINX.format(user=user, server=server_block))
    return workshop.start("nginx -p ./ -e stderr -c nginx.conf", port=port)


class Stream(common.Client):
    """A client of one stream, over HTTP/1.0, which reads when asked to."""

    def __init__(
        self, port, last_event_id=None, query="", host="127.0.0.1", path="/sse"
    ):
        resume = {"last_id": last_event_id or "", "target": path + query}
        super().__init__((host, port), PATIENCE, version="1.0", **resume)
        while self.stream.decoder.retry is None:
            self._events += self.receive()

    def next(self):
        """The next event: a dict of its fields."""
        try:
            id, name, data = super().next()
        except (TimeoutError, EOFError) as error:
            raise Failure(f"no event: {error!r}") from None
        fields = {"id": id, "event": name.replace("message", ""), "data": data.decode()}
        return {name: value for name, value in fields.items() if value}

    def take(self, count):
        return [self.next() for _ in range(count)]

    def ended(self):
        """Wait for the end of the stream."""
        self.rest()
        return True

    def data(self, count):
        """The data of the next events, of which none may be a gap."""
        events = self.take(count)
        expect(all(e.get("event") != "gap" for e in events), f"a gap in {events}")
        return [event["data"] for event in events]
