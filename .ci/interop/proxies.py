"""Proxies in front, configured by the recipes as they stand: nginx, HAProxy, Caddy and
Vite's development server pass the stream on at once, keep an idle one, tell of a client
that left, and bring all clients back after the server was killed and away for a while.
nginx and HAProxy cannot be talked into smuggling a request.

usage: proxies.py     (with the environment that `prepare` of common.sh makes)
"""

import asyncio
import contextlib
import functools
import getpass
import os
import pathlib
import re
import signal
import statistics
import sys
import tempfile
import time

import common
import smuggling
from clients import Client
from common import Failure, Server, expect, free_port, until_async
from harness import Curl, Event, watched_by

RECIPES = common.MODULE.parent / ".recipes"
EVENTS = 20  # of which each must be seen before the next is published
PROXY_TIMEOUT = 3  # seconds that a proxy lets a silent upstream live, for the usual 60
HEARTBEAT = 1.0  # seconds, for the usual 15
AT_ONCE = 1.0  # seconds: an event that takes longer was held back
USUALLY = 0.1  # seconds that half of the events may take at most
QUICKLY = HEARTBEAT / 2  # seconds: a departure is noticed without a write to the client
AWAY = 6.0  # seconds that the server is away: longer than HAProxy goes on trying

LOG = "output.log"
USUAL_ADDRESS = "127.0.0.1:8080"  # the server's in the recipes

NGINX = """
daemon off; user {user}; worker_processes 1; worker_shutdown_timeout 1s;
pid nginx.pid; error_log error.log;
events {{ worker_connections 512; }}
http {{
    log_format upstream 'upstream: $upstream_addr';
    access_log output.log upstream;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    upstream kept {{ server 127.0.0.1:{upstream}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_read_timeout {timeout}s;
        {protocol}
        {locations}
    }}
}}
"""
HTTP_1_1 = 'proxy_http_version 1.1; proxy_set_header Connection "";'
HAPROXY = """
global
    hard-stop-after 1s
    log stdout format raw local0
defaults
    log global
    log-format "upstream: %s"
{listen}
    {rules}
"""
CADDY = """{
    admin off
    auto_https off
}
"""


# How both log a request that they passed on; one that they answered has "-" or "<".
PASSED_ON = re.compile(r"^upstream: \w", re.MULTILINE)


class Proxy(common.Program):
    """A proxy in the foreground, with its configuration in a folder of its own."""

    def __init__(self, command, folder, port, reload_signal):
        self._folder, self._reload_signal = folder, reload_signal
        self.url = f"http://127.0.0.1:{port}/sse"
        super().__init__(command, folder, port=port)

    def listens(self):
        return common.listening(self.port)  # a worker of it, perhaps

    def reload(self):
        self.signal(self._reload_signal)

    def passed_on(self):
        """How many requests it passed on to the server, by its own log."""
        log = self._folder / LOG  # nginx's
        said = log.read_text("utf-8") if log.exists() else self.output()
        return len(PASSED_ON.findall(said))


@contextlib.asynccontextmanager
async def running(command, file, configuration, port, reload_signal=None):
    with tempfile.TemporaryDirectory(prefix="sse-proxy-") as name:
        folder = pathlib.Path(name)
        # nginx gives its temporary folders to its user, who must be able to reach them.
        folder.chmod(0o755)
        (folder / file).write_text(configuration)
        start = (Proxy, command, folder, port, reload_signal)
        proxy = await asyncio.to_thread(*start)
        try:
            yield proxy
        finally:
            await asyncio.to_thread(proxy.stop)


def nginx(upstream, locations, protocol=""):
    port = free_port()
    values = {"user": getpass.getuser(), "port": port, "timeout": PROXY_TIMEOUT}
    values.update(upstream=upstream, protocol=protocol, locations=locations)
    configuration = NGINX.format(**values)
    command = "nginx -p ./ -e error.log -c nginx.conf"
    return running(command, "nginx.conf", configuration, port, signal.SIGHUP)


def haproxy(upstream, block, rules=""):
    """The block with the times shortened, on a port of its own."""
    port = free_port()
    listen, limit = aimed(block, f"127.0.0.1:{upstream}"), f"{PROXY_TIMEOUT}s"
    values = {"bind": f"127.0.0.1:{port}", "timeout client": limit}
    for setting, value in {**values, "timeout server": limit}.items():
        expect(setting in listen, f"no {setting} in haproxy.cfg")
        listen = re.sub(rf"{setting} \S+", f"{setting} {value}", listen)
    command = "haproxy -W -db -f haproxy.cfg"
    configuration = HAPROXY.format(listen=listen, rules=rules)
    return running(command, "haproxy.cfg", configuration, port, signal.SIGUSR2)


def caddy(upstream, block):
    """The site on a port of its own, without a certificate."""
    port = free_port()
    expect("example.com" in block, "example.com is not in the Caddyfile")
    site = block.replace("example.com", f"http://127.0.0.1:{port}")
    command = "caddy run --adapter caddyfile --config Caddyfile"
    configuration = CADDY + aimed(site, f"127.0.0.1:{upstream}")
    return running(command, "Caddyfile", configuration, port)


def vite(upstream, block):
    port = free_port()
    program = pathlib.Path(os.environ["NODE_PATH"], "vite", "bin", "vite.js")
    command = f"node {program} --host 127.0.0.1 --port {port}"
    configuration = aimed(block, f"127.0.0.1:{upstream}")
    return running(command, "vite.config.js", configuration, port)


def recipe(name):
    return (RECIPES / name).read_text("utf-8")


def aimed(block, upstream):
    """The recipe with the server's usual address replaced."""
    expect(USUAL_ADDRESS in block, f"{USUAL_ADDRESS} is not in the recipe")
    return block.replace(USUAL_ADDRESS, upstream)


def nginx_1_0(upstream, block):
    """nginx's default protocol towards the server."""
    block = re.sub(r"proxy_(http_version|set_header Connection) [^;]+;", "", block)
    return nginx(upstream, aimed(block, f"127.0.0.1:{upstream}"))


def nginx_1_1(upstream, block):
    """HTTP/1.1 and kept connections towards the server."""
    return nginx(upstream, aimed(block, "kept"), HTTP_1_1)


async def passes_on_at_once(proxy, server, notes, compressed=False):
    times = []
    async with Curl.watching(proxy.url, compressed=compressed) as curl:
        await curl.connected(within=5 * AT_ONCE)  # curl has to start, too
        expect(server.compressed() == compressed, "not compressed by the server")
        for number in range(EVENTS):
            start = time.monotonic()
            server.publish(f"number {number}")
            await curl.received(number + 1, within=AT_ONCE)
            times.append(time.monotonic() - start)
    half, slowest = 1000 * statistics.median(times), 1000 * max(times)
    notes.append(f"half within {half:.0f} ms, all within {slowest:.0f} ms")
    expect(half < 1000 * USUALLY, notes[-1])


async def keeps_an_idle_stream(proxy, server, notes):
    start = time.monotonic()
    async with Curl.watching(proxy.url) as curl:
        await curl.connected()
        count = curl.decoder.comments + 2 * PROXY_TIMEOUT / HEARTBEAT
        enough = lambda: curl.ended or curl.decoder.comments >= count
        await until_async(enough, f"{count} heartbeats")
        idle = time.monotonic() - start
        expect(not curl.ended, f"the proxy cut the stream after {idle:.1f} s")
        server.publish("after the silence")
        await until_async(lambda: curl.data == ["after the silence"], "the event")
    notes.append(f"idle for {idle:.1f} s with a proxy timeout of {PROXY_TIMEOUT} s")


async def tells_of_a_departure(proxy, server, notes):
    async with Curl.watching(proxy.url) as curl:
        await watched_by(server, 1)
        await curl.leave()
        start = time.monotonic()
        await watched_by(server, 0, within=QUICKLY)
    notes.append(f"after {1000 * (time.monotonic() - start):.0f} ms")


async def passes_on_a_publication(proxy, server, notes):
    """curl posts with a length, and chunked."""
    async with Curl.watching(proxy.url) as curl:
        await curl.connected()
        uploads = (["--data-binary", "@-"], ["-X", "POST", "-T", "-"])
        for count, upload in enumerate(uploads, 1):
            allowed = f"Authorization: Bearer {smuggling.TOKEN}"
            words = "curl", "--silent", "--fail", *upload, proxy.url, "-H", allowed
            post = functools.partial(common.run, words, input="zwölf\nlines")
            done = await asyncio.to_thread(post)
            expect(done.returncode == 0, f"curl {upload} failed")
            await curl.received(count)
            wanted = Event("message", "zwölf\nlines", done.stdout.strip())
            expect(curl.events[-1] == wanted, f"{curl.events[-1]}, not {wanted}")


async def is_resumed_after_a_reload_and_a_stop(proxy, server, notes):
    """With npm's eventsource, which reconnects by itself."""
    wanted = []

    def publish(count):
        wanted.extend(f"number {len(wanted) + n}" for n in range(count))
        server.publish(*wanted[-count:])

    async with Client.watching("eventsource", proxy.url) as client:
        await watched_by(server, 1)
        publish(10)
        await client.received(10)
        proxy.reload()
        await watched_by(server, 0)  # the old worker ended the stream
        publish(10)
        await client.received(20)
        await asyncio.to_thread(proxy.stop)
        await watched_by(server, 0)
        publish(10)
        await asyncio.to_thread(proxy.start)
        await client.received(30)
        seen = [event.data for event in client.events]
        expect(seen == wanted, f"seen {seen}, published {wanted}")


async def asks_to_come_again(proxy):
    """While the server is away: an EventSource would take an error for the end."""
    async with Curl.watching(proxy.url) as curl:
        await until_async(lambda: curl.ended, "an answer")
        expect(curl.decoder.retry, "no `retry` while the server was away")
        return f"asked to come again after {curl.decoder.retry} ms"


async def refuses_a_publication(proxy):
    """While the server is away: whoever publishes has to be told."""
    curl = (
        "curl --silent --output /dev/null --write-out %{http_code} --data-binary lost"
    )
    status = (await asyncio.to_thread(common.run, curl, proxy.url)).stdout
    expect(int(status) >= 500, f"status {status} for a lost publication")


async def waits_for_the_server(proxy, server, notes):
    """HAProxy tries to connect several times: a short restart goes unnoticed."""
    await asyncio.to_thread(server.stop)
    async with Curl.watching(proxy.url) as curl:
        await asyncio.sleep(QUICKLY)  # let it be refused, or there is no proof
        expect(not curl.ended, "HAProxy answered while the server was away")
        with Server(port=server.port):
            await curl.connected()


CHECKS = [
    passes_on_at_once,
    keeps_an_idle_stream,
    tells_of_a_departure,
    passes_on_a_publication,
]


@contextlib.asynccontextmanager
async def fronted(start, *block, **options):
    """A server with these options, and a proxy in front of it."""
    with Server(**options) as server:
        async with start(server.port, *block) as proxy:
            yield proxy, server


async def all_checks(report, name, checks, start, block):
    options = {"heartbeat": HEARTBEAT, "retry": 0.3, "publish_token": smuggling.TOKEN}
    options["hosts"] = ["*"]  # the attacks name others
    async with fronted(start, block, **options) as (proxy, server):
        for check in checks:
            with report.case(f"{name} {check.__name__.replace('_', ' ')}") as notes:
                await watched_by(server, 0)
                await check(proxy, server, notes)


async def passes_on_what_is_compressed(report, proxies):
    """Unchanged, whether it would compress by itself or not."""
    for name, start, *block in proxies:
        with report.case(f"{name} passes on what is compressed, at once") as notes:
            options = {"heartbeat": HEARTBEAT, "hosts": ["*"], "compress": True}
            async with fronted(start, *block, **options) as (proxy, server):
                await passes_on_at_once(proxy, server, notes, compressed=True)


# The server is killed, and away for a while.


async def all_come_back(start, block, notes, guarded=True):
    events = [{"data": f"number {n}", "id": f"row-{n}"} for n in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        # With replay, for a client whose first connection was cut before an event came.
        running = fronted(start, block, retry=0.3, hosts=["*"], replay=10)
        proxy, server = await stack.enter_async_context(running)
        clients = []
        for library in ("eventsource", "undici", "Chromium"):
            client = Client.watching(library, proxy.url)
            clients.append(await stack.enter_async_context(client))
        await watched_by(server, len(clients))
        server.publish(*events[:2])
        for client in clients:
            await client.received(2)
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        away = [asyncio.sleep(AWAY)]
        if guarded:
            away += [refuses_a_publication(proxy), asks_to_come_again(proxy)]
        notes += (await asyncio.gather(*away))[2:]
        server = stack.enter_context(Server(port=server.port, hosts=["*"]))
        server.publish(*events)
        for client in clients:
            await client.received(4)
        seen = [client.data for client in clients]
        wanted = [event["data"] for event in events]
        expect(seen == [wanted] * 3, f"seen {seen}, published {wanted}")


async def come_back(report, name, start, block):
    what = f"the server is killed, and away for {AWAY:g} s: all clients come back"
    with report.case(f"{name}: {what}") as notes:
        await all_come_back(start, block, notes)


# The two checks that could pass for no reason are shown to fail where they must.


def buffering_nginx(upstream):
    location = "location / {{ proxy_pass http://{}; proxy_ignore_headers {}; }}"
    address = f"127.0.0.1:{upstream}"
    return nginx(upstream, location.format(address, "X-Accel-Buffering"))


async def fails(report, name, checking):
    """The control that a check fails where it must."""
    with report.case(f"control: {name}") as notes:
        try:
            await checking
        except Failure as caught:
            notes.append(str(caught))
            return
        raise Failure("it did not fail")


async def with_buffering():
    async with fronted(buffering_nginx, heartbeat=HEARTBEAT) as (proxy, server):
        await passes_on_at_once(proxy, server, [])


async def without_heartbeats():
    block = recipe("haproxy.cfg")
    async with fronted(haproxy, block, heartbeat=60) as (proxy, server):
        await keeps_an_idle_stream(proxy, server, [])


PLAIN_CADDY = "example.com {\n reverse_proxy /sse 127.0.0.1:8080\n}\n"


FORBIDDING = """
        location = /sse {{ return 403; }}
        location / {{ proxy_pass http://{}; }}
"""


def forbidding_nginx_1_0(upstream):
    return nginx(upstream, FORBIDDING.format(f"127.0.0.1:{upstream}"))


def forbidding_nginx_1_1(upstream):
    return nginx(upstream, FORBIDDING.format("kept"), HTTP_1_1)


def forbidding_haproxy(upstream):
    rules = "http-request deny if { path /sse }"
    return haproxy(upstream, recipe("haproxy.cfg"), rules)


GZIP_OF_NGINX = "gzip on; gzip_proxied any; gzip_types text/event-stream;\n"
GZIP_OF_HAPROXY = "compression algo gzip\n    compression type text/event-stream"


async def main():
    report = common.Report("proxies")
    for_nginx, for_haproxy = recipe("nginx.conf"), recipe("haproxy.cfg")
    proxies = [
        ("nginx (HTTP/1.0)", nginx_1_0, for_nginx),
        ("nginx (HTTP/1.1)", nginx_1_1, for_nginx),
        ("HAProxy", haproxy, for_haproxy),
        ("Caddy", caddy, recipe("Caddyfile")),
        ("Vite", vite, recipe("vite.config.js")),
    ]
    compressing = [
        ("nginx with gzip on", nginx_1_1, GZIP_OF_NGINX + for_nginx),
        ("HAProxy with compression", haproxy, for_haproxy, GZIP_OF_HAPROXY),
    ]
    more = {name: [is_resumed_after_a_reload_and_a_stop] for name, *_ in proxies[:3]}
    more["HAProxy"].append(waits_for_the_server)
    await asyncio.gather(
        *(
            all_checks(report, name, [*CHECKS, *more.get(name, [])], start, block)
            for name, start, block in proxies
        ),
        passes_on_what_is_compressed(report, proxies[1:] + compressing),
        fails(report, "an nginx that buffers is caught", with_buffering()),
        fails(report, "a stream without heartbeats is cut", without_heartbeats()),
    )
    plainly = all_come_back(caddy, PLAIN_CADDY, [], guarded=False)
    await asyncio.gather(
        *(come_back(report, *proxy) for proxy in proxies),
        fails(report, "behind a plain Caddy they do not come back", plainly),
    )
    await smuggling.hidden_request_publishes(report)
    await asyncio.gather(
        smuggling.withstands(report, "nginx (HTTP/1.0)", forbidding_nginx_1_0),
        smuggling.withstands(report, "nginx (HTTP/1.1)", forbidding_nginx_1_1),
        smuggling.withstands(report, "HAProxy", forbidding_haproxy),
    )
    return report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
