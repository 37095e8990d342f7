"""What the checks at scale share: the recipes as files, and programs that run them."""

import os
import pathlib
import re
import shutil
import tempfile
import time

import common
from common import PATIENCE, Failure, Program, expect

ROOT = common.MODULE.parent
RECIPES = ROOT / ".recipes"
RECIPE = re.compile(
    r"^<!-- (?:recipe|example): (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


class Workshop:
    """A temporary folder with the module and the recipes, of .recipes and README.md, as
    files."""

    def __init__(self):
        files = [path for path in RECIPES.iterdir() if path.is_file()]
        self.recipes = {path.name: path.read_text("utf-8") for path in files}
        self.recipes.update(RECIPE.findall((ROOT / "README.md").read_text("utf-8")))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sse-scale-"))
        # PostgreSQL and nginx's workers are other users.
        self.folder.chmod(0o755)
        shutil.copy(common.MODULE, self.folder)
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

    def __init__(self, port, last_event_id="", query="", path="/sse"):
        resume = {"last_id": last_event_id, "target": path + query}
        super().__init__(("127.0.0.1", port), PATIENCE, version="1.0", **resume)
        while self.stream.decoder.retry is None:
            self._events += self.receive()

    def next(self):
        """The next event: a dict of its fields."""
        late = time.monotonic() + PATIENCE
        try:
            while not self._events:
                expect(time.monotonic() < late, "no event, and heartbeats at the most")
                self._events += self.receive()
        except (TimeoutError, EOFError) as error:
            raise Failure(f"no event: {error!r}") from None
        id, name, data = self._events.pop(0)
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
