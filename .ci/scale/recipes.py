"""The recipes as they stand: Redis, PostgreSQL, Flask, http.server, FastAPI, aiohttp, the
systemd unit, the image of a container, and HTTP/2 towards the browser.

usage: recipes.py
"""

import contextlib
import json
import os
import pathlib
import pwd
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import common
import psycopg
import redis
from common import PATIENCE, Failure, Program, expect, listening, run, until
from fleet import Fleet, Posting
from harness import Stream, Workshop, nginx, redis_server

# What the recipes for Redis and for PostgreSQL have in common.


@dataclass
class Database:
    """One whose events two processes serve, each at a port."""

    name: str
    ports: tuple
    add: object  # an event with this data; its id
    forget: object  # the events before that with this id, or all
    restart: object


def expect_events(events, *wanted):
    """wanted: the data of each, or None for a gap."""
    seen = [None if e.get("event") == "gap" else e["data"] for e in events]
    expect(seen == list(wanted), f"seen {seen}, wanted {list(wanted)}")


def resumes_anywhere(report, database, ids):
    """ids: of the events a to e, that were there before the processes."""
    case = f"{database.name}: a client resumes before the start, and anywhere"
    one, two = database.ports
    with report.case(case):
        for port in database.ports:
            with Stream(port, ids[1]) as stream:
                expect(stream.data(3) == ["c", "d", "e"], f"not the rest at {port}")
        with Stream(one, ids[-1]) as stream, Stream(two, ids[-1]) as other:
            database.add("f")
            seen = stream.next()
            expect(seen == other.next(), "the two processes differ")
        with Stream(two, seen["id"]) as stream:
            database.add("g")
            expect(stream.data(1) == ["g"], "not right after the other process")


def misses_nothing_over_a_restart(report, database):
    with (
        report.case(f"{database.name}: ends and comes back: clients miss nothing"),
        Stream(database.ports[0]) as stream,
        Stream(database.ports[1]) as other,
    ):
        database.restart()
        database.add("back")
        expect(stream.data(1) == other.data(1) == ["back"], "not what came after")


def tells_of_what_was_forgotten(report, database, process):
    """`process`, at the first port, sleeps as on a machine that was suspended; returns
    the id of an event that is gone."""
    one, two = database.ports
    case = f"{database.name}: forgotten while away: a gap for those who missed it"
    with report.case(case):
        before = database.add("before")
        with Stream(two, before) as lucky, Stream(one, before) as stream:
            process.signal(signal.SIGSTOP)
            ids = [database.add(text) for text in "123456"]
            expect(lucky.data(6) == list("123456"), "not all at the one awake")
            database.forget(ids[-2])
            process.signal(signal.SIGCONT)
            expect_events(stream.take(3), None, "5", "6")
        with Stream(one, before) as late:
            expect_events(late.take(3), None, "5", "6")
        with Stream(one, ids[-2]) as late:
            expect_events(late.take(1), "6")
    with (
        report.case(
            f"{database.name}: what was seen before it was forgotten is no gap"
        ),
        Stream(one, ids[-1]) as stream,
        Stream(two, ids[-1]) as other,
    ):
        database.forget(None)
        database.add("after")
        expect(stream.data(1) == other.data(1) == ["after"], "not only the entry")
    return ids[0]


# Redis Streams.


def redis_checks(report, workshop):
    def feed(port):
        return workshop.python("redis_feed.py", port, port=port)

    def add(data, **options):
        return client.xadd("events", {"data": data}, **options)

    def forget(id):
        bound = {"minid": id} if id else {"maxlen": 0}
        client.xtrim("events", **bound, approximate=False)

    def restart():
        broker.stop()
        broker.start()

    with redis_server(workshop.folder) as broker:
        client = redis.Redis(decode_responses=True)
        database = Database("redis", (8081, 8082), add, forget, restart)
        with (
            report.case("redis: starts without a stream, and follows it"),
            feed(8081) as one,
            Stream(8081) as stream,
        ):
            fields = {"data": "first", "event": "reading", "channel": "a"}
            with Stream(8081, query="?channel=a") as channel:
                id = client.xadd("events", fields)
                event = {"id": id, "event": "reading", "data": "first"}
                expect(channel.next() == event, "not the first entry")
            add("second")
            expect(stream.data(1) == ["second"], "not the second entry")
            expect(one.stop() == 0, "not 0 at SIGTERM")
        client.delete("events")
        ids = [add(text) for text in "abcde"]
        with feed(8081) as one, feed(8082):
            resumes_anywhere(report, database, ids)
            redis_oddities(report, client, one, add)
            misses_nothing_over_a_restart(report, database)
            gone = tells_of_what_was_forgotten(report, database, one)
            case = "redis: a restart after the trimming tells who missed something"
            with report.case(case):
                one.kill()
                one.start()
                with Stream(8081, gone) as stream:
                    expect_events(stream.take(2), None, "after")


def redis_oddities(report, client, one, add):
    with report.case("redis: a client that is ahead of the process waits for it"):
        newest = int(client.xinfo_stream("events")["last-generated-id"].split("-")[0])
        with Stream(8081, f"{newest + 1000}-5") as stream:
            add("seen elsewhere", id=f"{newest + 1000}-5")
            add("new", id=f"{newest + 1000}-6")
            expect(stream.data(1) == ["new"], "not what follows its id")
    with (
        report.case("redis: an entry that cannot be served is skipped"),
        Stream(8081) as stream,
        Stream(8082) as other,
    ):
        client.xadd("events", {"other": "x"})
        client.xadd("events", {"data": "known", "producer": "x", "id": "y"})
        client.xadd("events", {"data": b"\xff", "event": "two\nlines"})
        client.xadd("events", {"data": b"\xff"})
        for each in (stream, other):
            expect(each.data(2) == ["known", "\ufffd"], "not the readable ones")
        skipped = one.output().count("skipped")
        expect(skipped == 2, f"{skipped} lines about it, not 2")


# PostgreSQL.


@contextlib.contextmanager
def postgres_server(workshop):
    """A cluster of its own on the usual port; PostgreSQL refuses to run as root."""
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user = []
    if os.geteuid() == 0:
        group = str(pwd.getpwnam(user).pw_gid)
        as_user = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups"]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="postgres-", dir=workshop.folder))
    if as_user:
        shutil.chown(folder, user)
    programs = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    begin = f"{programs}/initdb -D {folder}/data -U postgres -A trust --no-sync"
    said = run([*as_user, *begin.split()], cwd=folder)
    expect(said.returncode == 0, said.stderr)
    serve = f"{programs}/postgres -D {folder}/data -c listen_addresses=127.0.0.1"
    command = [*as_user, *serve.split(), "-k", str(folder)]
    os.environ.update(PGHOST="127.0.0.1", PGUSER="postgres", PGDATABASE="postgres")
    with Program(command, workshop.folder, port=5432) as server:
        until(can_ask, "PostgreSQL answers")
        yield server


def can_ask():
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect().close()
        return True
    return False


def publish_row(connection, data, event=None, channel=None):
    query = "SELECT publish(%s, %s, %s)"
    return connection.execute(query, (data, event, channel)).fetchone()[0]


def postgres_checks(report, workshop):
    def feed(port):
        return workshop.python("postgres_feed.py", port, port=port)

    def add(data):
        with psycopg.connect(autocommit=True) as sql:
            return str(publish_row(sql, data))

    def forget(id):
        with psycopg.connect(autocommit=True) as sql:
            sql.execute("DELETE FROM events WHERE id < %s", [id or 2**62])

    def restart():
        server.stop(signal.SIGINT)  # the fast shutdown: it cuts connections
        server.start()
        until(can_ask, "PostgreSQL answers again")

    with postgres_server(workshop) as server, psycopg.connect(autocommit=True) as sql:
        sql.execute(workshop.recipe("postgres.sql"))
        sequence_loses(report, sql)
        ids = [add(text) for text in "abcde"]
        database = Database("postgres", (8083, 8084), add, forget, restart)
        with feed(8083) as one, feed(8084):
            resumes_anywhere(report, database, ids)
            postgres_follows(report, sql)
            postgres_order(report, sql)
            tells_of_what_was_forgotten(report, database, one)
            misses_nothing_over_a_restart(report, database)


def postgres_follows(report, sql):
    with (
        report.case("postgres: follows the table, at once"),
        Stream(8083) as stream,
        Stream(8083, query="?channel=a") as channel,
    ):
        for number in range(1, 6):
            start = time.monotonic()
            id = publish_row(sql, f"row {number}", "reading")
            event = {"id": str(id), "event": "reading", "data": f"row {number}"}
            expect(stream.next() == event, f"not row {number}")
            expect(time.monotonic() - start < 5, "only after the poll of 10 s")
        publish_row(sql, "sixth", None, "a")
        expect(channel.data(1) == ["sixth"], "not the channel's")


def postgres_order(report, sql):
    with (
        report.case("postgres: the second publisher waits for the first's commit"),
        psycopg.connect() as first,
        psycopg.connect() as second,
    ):
        publish_row(first, "uncommitted")
        second.execute("SET lock_timeout = 300")
        try:
            publish_row(second, "too early")
        except psycopg.errors.LockNotAvailable:
            first.rollback()
            second.rollback()
        else:
            raise Failure("it did not wait")
    with report.case("postgres: eight publishers at once, some roll back") as notes:
        last = sql.execute("SELECT id FROM last_event").fetchone()[0]
        with Stream(8083, str(last)) as stream:
            committed = publish_from_threads()
            events = stream.take(len(committed))
        ids = [int(event["id"]) for event in events]
        wanted = list(range(last + 1, last + 1 + len(committed)))
        expect(ids == wanted, f"ids {ids}, wanted {wanted}")
        expect(sorted(e["data"] for e in events) == sorted(committed), "other events")
        notes.append(f"{len(committed)} events, no hole, in order")


def publish_from_threads(threads=8, transactions=20):
    """What each committed; they commit out of the order in which they began."""
    committed = []

    def work(worker):
        rng = random.Random(worker)
        with psycopg.connect() as connection:
            for number in range(transactions):
                publish_row(connection, f"{worker}.{number}")
                time.sleep(rng.uniform(0, 0.005))
                if number % 5 == 4:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.append(f"{worker}.{number}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return committed


def sequence_loses(report, sql):
    """That the checks of the order prove something: with a sequence it goes wrong."""
    with report.case("postgres: control: by a sequence's ids an event is lost"):
        sql.execute("CREATE TABLE by_sequence (id bigserial, data text)")
        insert = "INSERT INTO by_sequence (data) VALUES (%s)"
        query = "SELECT id FROM by_sequence WHERE id > %s ORDER BY id"
        with psycopg.connect() as first, psycopg.connect() as second:
            first.execute(insert, ["first"])
            second.execute(insert, ["second"])
            second.commit()
            seen = [row[0] for row in sql.execute(query, [0])]
            first.commit()
            seen += [row[0] for row in sql.execute(query, [seen[-1]])]
        expect(seen == [2], f"seen {seen}; it should have missed 1")


JSON = ["-H", "Content-Type: application/json", "--data-binary", '{"n": 1}']


def curl(*options):
    done = run("curl --silent --show-error --fail", *options)
    expect(done.returncode == 0, f"curl {options}: {done.stderr}")
    return done.stdout


# Threads.

WORKER = """
import events

def app(environ, start_response):
    id = events.publish("é", event="order", retain=1)
    start_response("200 OK", [])
    return [id.encode()]
"""


def thread_checks(report, workshop):
    flask = "python -m flask --app flask_app run"
    with (
        report.case("flask: a view publishes"),
        workshop.start(flask, port=5000) as app,
        Stream(8080) as stream,
    ):
        curl("http://localhost:5000/orders", *JSON)
        event = stream.next()
        expect(event["event"] == "order", f"not an order: {event}")
        expect(event["data"] == '{"n":1}', f"not what was posted: {event}")
        ended_by_ctrl_c(app)
    with (
        report.case("flask: the reloader starts the program, and the server, again"),
        workshop.start(f"{flask} --debug") as app,
    ):
        for _ in range(2):
            until(lambda: listening(5000) and listening(8080), "both ports")
            with Stream(8080) as stream:
                curl("http://localhost:5000/orders", *JSON)
                expect(stream.next()["event"] == "order", "not an order")
                file = workshop.folder / "flask_app.py"
                file.write_text(file.read_text() + "\n")
                until(stream.ended, "the end of the stream")
        ended_by_ctrl_c(app)
    token = {"SSE_PUBLISH_TOKEN": "secret"}
    gunicorn = "python -m gunicorn -w 3 -b :8000 worker:app"
    workshop.write("worker.py", WORKER)
    with (
        report.case("gunicorn: three workers publish by POST"),
        workshop.start("python sse_server.py", port=8080, env=token),
        workshop.start(gunicorn, port=8000, env=token),
        Stream(8080) as stream,
    ):
        ids = [curl("http://localhost:8000/") for _ in range(9)]
        events = stream.take(9)
        expect([event["id"] for event in events] == ids, f"{events}, not {ids}")
        expect(events[0]["data"] == "é" and events[0]["event"] == "order", f"{events}")
    with (
        report.case("http.server: a handler publishes"),
        workshop.python("http_server.py", port=8000) as app,
        Stream(8080) as stream,
    ):
        id = curl("http://localhost:8000/", *JSON)
        expect(stream.next() == {"id": id, "data": '{"n":1}'}, "not what was posted")
        ended_by_ctrl_c(app)


# Frameworks with an event loop.

UVICORN = "python -m uvicorn --port 8000"
# With the recipe's server as the body of a view's response, too.
SETTINGS = """
import json
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

def order(request):
    from django_asgi import server
    server.publish(json.loads(request.body), event="order")
    return HttpResponse(status=204)

async def body(request):
    from django_asgi import server
    last = request.headers.get("last-event-id")
    return StreamingHttpResponse(server.stream(last), headers=server.stream_headers())

urlpatterns = [path("orders", order), path("body", body)]
ROOT_URLCONF, ALLOWED_HOSTS, SECRET_KEY = __name__, ["*"], "x"
"""


def framework_checks(report, workshop):
    workshop.write("settings.py", SETTINGS)
    settings = {"DJANGO_SETTINGS_MODULE": "settings"}
    for name, path, command in (
        ("fastapi", "/events", f"{UVICORN} fastapi_app:app"),
        ("django", "/sse", f"{UVICORN} django_asgi:application"),
        ("django, stream()", "/body", f"{UVICORN} django_asgi:application"),
        ("aiohttp", "/events", "python aiohttp_app.py"),
    ):
        with workshop.start(command, port=8000, env=settings) as app:
            in_a_framework(report, name, app, path)
    workshop.write("model.py", MODEL)
    with workshop.start(f"{UVICORN} tokens:app", port=8000) as app:
        one_request(report, app)


def in_a_framework(report, name, app, path):
    with report.case(f"{name}: the stream is its own response, and resumes"):
        with Stream(8000, path=path) as stream:
            curl("http://localhost:8000/orders", *JSON)
            first = stream.next()
            expect(first["event"] == "order", f"not an order: {first}")
            curl("http://localhost:8000/orders", *JSON)
            second = stream.next()
        with Stream(8000, first["id"], path=path) as late:
            expect(late.next() == second, "not what it missed")
    with (
        report.case(f"{name}: to 500, a slow one, Ctrl-C") as notes,
        Stream(8000, path=path),  # which does not read
        Fleet(1, 500, 300, [8000], path) as fleet,
    ):
        publisher = Posting(300, 100, "http://localhost:8000/orders")
        counts = fleet.lives_through(publisher, lambda: None)
        faults = counts["repeated"] + counts["missing"] + counts["gaps"]
        expect(not faults, f"{faults} events repeated, missing, or gaps")
        started = time.monotonic()
        ended_by_ctrl_c(app)
        seconds = time.monotonic() - started
        expect(seconds < 10, f"it ended {seconds:.1f} s after Ctrl-C")
        notes.append(f"ended in {seconds:.1f} s")


MODEL = """
import asyncio

async def tokens(prompt):
    try:
        for word in prompt.split():
            yield word
            await asyncio.sleep(0.01)
    finally:
        print("no more tokens", flush=True)
"""


def one_request(report, app):
    with report.case("tokens: an answer of its own for each request, and its end"):
        answer = curl("http://localhost:8000/answer?prompt=why+not")
        wanted = "data: why\n\ndata: not\n\nevent: done\ndata: \n\n"
        expect(answer == wanted, f"the answer is {answer!r}")
    with report.case("tokens: a client that leaves ends the generator"):
        count = app.output().count("no more tokens")
        url = "http://localhost:8000/answer?prompt=" + "a+" * 1000
        got = run("curl -sN -m 1", url).stdout.count("data: a")
        expect(0 < got < 900, f"it got {got} tokens")
        until(lambda: app.output().count("no more tokens") > count, "the end", 2)


def ended_by_ctrl_c(app):
    """While a stream is open."""
    app.signal(signal.SIGINT)
    status = app.process.wait(PATIENCE)
    expect(status == 0, f"status {status} after Ctrl-C: {app.output()[-1500:]}")


# Running it for good.


def unit_checks(report, workshop):
    with report.case("systemd: the unit is valid") as notes:
        unit = workshop.write("sse.service", workshop.recipe("sse.service"))
        verify = run("systemd-analyze verify --man=no", unit)
        good = verify.returncode == 0 and "sse.service" not in verify.stderr
        expect(good, verify.stderr)
        security = run("systemd-analyze security --offline=true --no-pager", unit)
        notes.append(security.stdout.strip().splitlines()[-1].lstrip("→ "))
    with report.case("systemd: what the unit starts serves, and takes publications"):
        unit = workshop.recipe("sse.service")
        words = re.search(r"^ExecStart=\S+ \S+\.py( .*)$", unit, re.MULTILINE)[1]
        program, token = f"python sse_server.py{words}", {"SSE_PUBLISH_TOKEN": "secret"}
        with workshop.start(program, port=8080, env=token) as server:
            expect(curl("http://127.0.0.1:8080/healthz") == "ok", "not healthy")
            with Stream(8080) as stream:
                bearer = "Authorization: Bearer secret"
                curl("-H", bearer, "--data-binary", "x", "http://127.0.0.1:8080/sse")
                expect(stream.data(1) == ["x"], "not what was published")
            expect(server.stop() == 0, "not 0 at SIGTERM")


def image_checks(report, workshop):
    lines = workshop.recipe("Dockerfile").splitlines()
    with report.case("Dockerfile: as process 1 it serves, and ends well at SIGTERM"):
        short = len(lines) == 5 and lines[-1].startswith("CMD ")
        expect(short, f"the image is {lines}")
        program, script, *options = json.loads(lines[-1].removeprefix("CMD "))
        expect((program, script) == ("python", "/sse_server.py"), f"not {program}")
        enter = "unshare --fork --kill-child --pid --mount-proc"
        command = [*enter.split(), *common.words_of("python sse_server.py"), *options]
        with workshop.start(command) as container:
            until(lambda: listening(8080), "it listens")
            children = f"/proc/{container.pid}/task/{container.pid}/children"
            (one,) = pathlib.Path(children).read_text().split()
            with workshop.start("curl -sN http://localhost:8080/sse") as client:
                until(lambda: client.output().endswith("\n\n"), "an event of the clock")
                os.kill(int(one), signal.SIGTERM)
                ends = [each.process.wait(PATIENCE) for each in (client, container)]
                last = client.output().splitlines()[-1]
        expect(last.startswith("retry: "), f"no `retry` at the end, but {last}")
        expect(ends == [0, 0], f"{ends}")


def http2_checks(report, workshop):
    folder = workshop.folder
    openssl = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    run(f"{openssl} -keyout key -out cert", cwd=folder)
    block = "server {{ listen 8443 ssl http2; {} server_name localhost; {} }}\n"
    tls = f"ssl_certificate {folder}/cert; ssl_certificate_key {folder}/key;"
    block = block.format(tls, workshop.recipe("nginx.conf"))
    with workshop.start("python sse_server.py --host 127.0.0.1", port=8080):
        with (
            report.case("nginx: HTTP/2 towards the browser") as notes,
            nginx(workshop, block, 8443),
        ):
            notes.append(many_on_one_connection())
        with report.case("Caddy: HTTP/2 towards the browser") as notes:
            site = workshop.recipe("Caddyfile").replace("example.com", "localhost:8443")
            expect("localhost:8443" in site, "example.com is not in the Caddyfile")
            options = "admin off\n skip_install_trust\n auto_https disable_redirects"
            workshop.write("Caddyfile", f"{{\n {options}\n}}\n{site}")
            command = "caddy run --adapter caddyfile --config Caddyfile"
            home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder)}
            with workshop.start(command, port=8443, env=home):
                until(handshake, "Caddy has made its certificate")
                notes.append(many_on_one_connection())


def handshake():
    return run("curl -ks --head https://localhost:8443/sse").returncode == 0


def many_on_one_connection(count=20):
    """More streams than six, each with an event of the clock, on one connection.

    curl tells of each stream's end which version it spoke and how many connections it
    had to open; --max-time ends them.
    """
    urls = [f"https://localhost:8443/sse?last_event_id=&n={n}" for n in range(count)]
    outputs = [word for url in urls for word in ("-o", "-", url)]
    ask = f"curl -ksN --http2 --parallel --parallel-max {count} --max-time 5 -w"
    end = "\nversion %{http_version} %{num_connects}\n"
    done = run(ask, end, *outputs)
    lines = done.stdout.splitlines()
    ends = [line.split()[1:] for line in lines if line.startswith("version ")]
    expect([e[0] for e in ends] == ["2"] * count, f"not HTTP/2: {ends}, {done.stderr}")
    connections = sum(int(end[1]) for end in ends)
    events = done.stdout.count("data: {")
    expect(events >= 2 * count, f"{events} events on {count} streams in 5 s")
    expect(connections == 1, f"{connections} connections")
    return f"{count} streams and {events} events on one connection"


CHECKS = [redis_checks, postgres_checks, thread_checks, framework_checks]
CHECKS += [unit_checks, image_checks, http2_checks]


def main():
    common.enter_private_network()
    report = common.Report("recipes")
    with Workshop() as workshop:
        for check in CHECKS:
            check(report, workshop)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
