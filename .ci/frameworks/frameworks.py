#!/usr/bin/env python3
"""The server in frameworks and under their servers, each with the signals that end it.

Each pair of an application and a server is run twice, once for Ctrl-C (SIGINT for the
whole group) and once for SIGTERM, and beside it the same without streams: with a
hundred of them it must end as soon, with the same status, and say the same.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import common
import requests
from common import Client, Failure, expect, until

HERE = pathlib.Path(__file__).resolve().parent
STREAMS = 100
END_SECONDS = 1.0  # for all streams, from the signal on
PATIENCE = 20.0
UVICORN = "uvicorn {app}:app --port {port}"
# How each server is told the application and the port.
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn, asyncio and h11": UVICORN + " --loop asyncio --http h11",
    # With workers of their own, hypercorn 0.18 does not end while any response goes on.
    "hypercorn": "hypercorn --workers 0 --bind 127.0.0.1:{port} {app}:app",
    "granian": "granian --interface asgi --port {port} {app}:app",
    "daphne": "daphne --port {port} {app}:app",
    "gunicorn": "gunicorn -k asgi -b 127.0.0.1:{port} {app}:app",
    "gunicorn, uvicorn's": "gunicorn -k uvicorn.workers.UvicornWorker"
    " -b 127.0.0.1:{port} {app}:app",
}
PAIRS = [
    *(("with_fastapi", server) for server in SERVERS),
    ("with_starlette", "uvicorn"),
    ("with_litestar", "uvicorn"),
    ("with_quart", "hypercorn"),
    ("with_django", "daphne"),
    ("with_django", "uvicorn"),
    ("with_starlette", "granian"),
    ("alone", "uvicorn"),
]
FOUR_WORKERS = {
    "uvicorn": UVICORN + " --workers 4",
    "granian": SERVERS["granian"] + " --workers 4",
    "gunicorn": SERVERS["gunicorn"] + " --workers 4",
}
# Lines that are not compared: streams that come and go, requests, and two faults that a
# server has with other responses, too, and not each time.
UNCOMPARED = re.compile(
    'joined;|left, |ending the streams|"(GET|POST|HEAD) /'
    "|Error while closing socket"  # gunicorn with uvicorn's worker
    "|^$|tokio-rt-worker|without the thread being attached|backtrace"  # granian
)
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}


class Web(common.Program):
    """A framework's server that serves one of the applications."""

    def __init__(self, command, app, folder=HERE / "apps", **environment):
        port = common.free_port()
        self.path = "/events/" if app == "with_starlette" else "/events"
        command = f"{pathlib.Path(sys.executable).parent}/{command}"
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{common.MODULE.parent}"
        how = {"env": environment, "start_new_session": True}
        super().__init__(command.format(app=app, port=port), folder, **how)
        self.port = port
        try:
            until(self.answers, lambda: f"it listens: {self.output()}", PATIENCE)
        except Failure:
            self.kill()
            raise

    def answers(self):
        expect(self.process.poll() is None, f"it has ended: {self.output()}")
        with contextlib.suppress(OSError):
            return self.ask("/nothing")
        return False

    def ask(self, path=None, data=None, **fields):
        """The status and the body of an answer; data: of a POST with the token."""
        url = f"http://127.0.0.1:{self.port}{path or self.path}"
        method, headers = "GET", {"Accept": "*/*"}
        if data is not None:
            method, headers["Authorization"] = "POST", "Bearer secret"
        headers.update({name.title(): value for name, value in fields.items()})
        how = {"data": data, "headers": headers, "timeout": PATIENCE}
        answer = requests.request(method, url, **how)
        return answer.status_code, answer.content

    def publish(self, text, query=""):
        status, body = self.ask(self.path + query, text.encode())
        expect(status == 200, f"POST: {status} {body}")
        return body.decode()

    def streams(self):
        """How many are open, as a monitor sees it."""
        _, body = self.ask(accept="application/json", authorization="Bearer secret")
        stats = json.loads(body)
        return stats["live"] + stats["behind"]

    def stream(self, query="", **parameters):
        parameters["target"] = self.path + query
        return Client(("127.0.0.1", self.port), PATIENCE, **parameters).open()

    def signal(self, number):
        to_whom = (
            os.killpg if number == signal.SIGINT else os.kill
        )  # as a terminal does
        to_whom(self.pid, number)

    def said_since(self, before):
        """What its log tells of its end, without what differs each time: the numbers,
        and the order in which several processes write."""
        lines = self.output()[len(before) :].splitlines()
        lines = [line for line in lines if not UNCOMPARED.search(line)]
        return sorted(re.sub("[0-9]+", "#", line) for line in lines)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_):
        self.kill()


def check_behaviour(web):
    """What its own port does, it does here."""
    client, other = web.stream(), web.stream("?channel=a")
    first = web.publish("one")
    web.publish("for a", "?channel=a")
    expect(client.next()[2] == b"one", "another event")
    expect(other.next()[2] == b"for a", "another event of a channel")
    client.close()
    web.publish("two")
    with web.stream(last_id=first) as resumed:
        expect(resumed.next()[2] == b"two", "it does not resume")
    with web.stream(last_id="unknown") as resumed:
        _, name, _ = resumed.next()
        expect(name == "gap", f"an unknown id is no gap: {name}")
    until(lambda: web.streams() == 1, "the departures are noticed", END_SECONDS)
    other.close()
    until(lambda: web.streams() == 0, "the departure is noticed", END_SECONDS)
    status, page = web.ask(accept="text/html")
    expect((status, b"<script>" in page) == (200, True), f"no page: {status} {page}")
    status, _ = web.ask(data=b"x", authorization="Bearer wrong")
    expect(status == 401, f"a wrong token: {status}")
    status, _ = web.ask(data=b"x" * (2**20 + 1))
    expect(status == 413, f"a large body: {status}")


def end(web, number, clients):
    """Signal it; its exit status, and what it said of its end."""
    before = web.output()
    began = time.monotonic()
    web.signal(number)
    for client in clients:
        client.rest()
        expect(client.stream.ended, "a stream was cut")
        retry = client.stream.decoder.retry  # of an open stream: 250 to 750
        expect(retry >= 2500, f"a client was told to come back in {retry} ms")
    taken = time.monotonic() - began
    expect(taken < END_SECONDS, f"the streams took {taken:.2f} s to end")
    until(lambda: web.process.poll() is not None, web.output, PATIENCE)
    ended = time.monotonic() - began
    return web.process.returncode, web.said_since(before), taken, ended


def check_pair(report, app, server, name, pool):
    number = SIGNALS[name]

    def without_streams():
        with Web(SERVERS[server], app) as web:
            if app == "with_django":
                web.publish("so that it is started")
            return end(web, number, [])

    with report.case(f"{app} under {server}, {name}") as notes:
        beside = pool.submit(without_streams)
        with Web(SERVERS[server], app) as web:
            if number == signal.SIGINT:
                check_behaviour(web)
            clients = [web.stream() for _ in range(STREAMS)]
            status, said, taken, ended = end(web, number, clients)
        for client in clients:
            client.close()
        expected, normal, _, usual = beside.result()
        for _ in range(4):  # granian's own end is not always the same
            if (status, said) != (expected, normal):
                expected, normal, _, usual = without_streams()
        expect(status in (0, expected), f"status {status}; without streams {expected}")
        expect(said == normal, f"said {said}; without streams {normal}")
        notes.append(f"streams {taken:.2f} s, all {ended:.2f} s, usually {usual:.2f} s")


def check_four_workers(report, server):
    """Processes with one history file are one server."""
    case = report.case(f"with_fastapi under {server}, four workers with a history file")
    with case as notes, tempfile.TemporaryDirectory() as folder:
        file = {"SSE_HISTORY_FILE": f"{folder}/events.db"}
        with Web(FOUR_WORKERS[server], "with_fastapi", **file) as web:
            # gunicorn 27 loses a signal that comes while a worker starts.
            serves = re.compile("startup complete|Started worker|server listening on")
            until(lambda: len(serves.findall(web.output())) == 4, "all serve", PATIENCE)
            clients = [web.stream() for _ in range(24)]
            ids = [web.publish(str(number)) for number in range(20)]
            for client in clients:
                found = [client.next() for _ in ids]
                expect([event[0] for event in found] == ids, f"events {found}")
            for _ in range(8):
                with web.stream(last_id=ids[9]) as resumed:
                    expect(resumed.next()[0] == ids[10], "it does not resume")
            _, _, taken, ended = end(web, signal.SIGTERM, clients)
        notes.append(f"streams {taken:.2f} s, all {ended:.2f} s")


def check_reload(report):
    """An edit ends the streams, and the new process serves."""
    case = report.case("with_fastapi under uvicorn --reload, an edit")
    with case as notes, tempfile.TemporaryDirectory() as folder:
        apps = pathlib.Path(folder, "apps")
        shutil.copytree(HERE / "apps", apps)
        with Web(UVICORN + " --reload", "with_fastapi", apps) as web:
            client = web.stream()
            time.sleep(0.5)  # the watcher may begin after the server
            began = time.monotonic()
            file = apps / "with_fastapi.py"
            file.write_text(file.read_text() + "\n# edited\n")
            client.rest()
            expect(client.stream.ended, "the stream was cut")
            until(web.answers, "it serves again", PATIENCE)
            web.stream().close()
            notes.append(f"serves again after {time.monotonic() - began:.2f} s")
            status, *_ = end(web, signal.SIGTERM, [])
            expect(status in (0, -signal.SIGTERM), f"status {status}")


def main():
    options = common.arguments(__doc__.partition("\n")[0], only="")
    report = common.Report("frameworks")
    # A script's `&` has it ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [pair for pair in PAIRS if options.only in " under ".join(pair)]
    with ThreadPoolExecutor(1) as pool:
        for (app, server), name in itertools.product(chosen, SIGNALS):
            check_pair(report, app, server, name, pool)
    for server in FOUR_WORKERS:
        if options.only in f"four workers {server}":
            check_four_workers(report, server)
    if options.only in "reload":
        check_reload(report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
