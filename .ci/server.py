"""The server under test, in a process of its own: JSON lines in, JSON lines out.

usage: server.py '{"option": value, ...}'
       The options are the keyword arguments of SSEServer, and
       "send_buffer": bytes    of each connection in the kernel, so that a client that
                               does not read is soon felt
       "descriptors": number   RLIMIT_NOFILE, after the modules are loaded
       "limits": {"NAME": n}   the module's own limits, to shorten a wait
       "id_order": "int"       the function, by its name
       "tls": true             with a certificate for localhost
       "door": true            the command turn_away is heeded

Prints {"port": ...} once it listens, then answers each command {"do": NAME, ...} with
one line.  SIGTERM and SIGINT close it in an orderly way; so does the end of its input.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import pathlib
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

CI = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(CI), str(CI.parent)]

from common import free_port
from storm import Storm

import sse_server

LINE_LIMIT = 32 * 1024 * 1024  # bytes of a command: it may carry many events
PUMP_SECONDS = 0.01  # between the bursts of a pump


class Commands:
    """What the check at the other end of the pipe can ask for; one method each."""

    def __init__(self):
        self.server = None
        self.storming = None
        self._turned_away = None  # the status that subscribers get, once told so
        self._tasks = []

    async def authorize(self, request):
        if self._turned_away is not None and request.method == "GET":
            raise sse_server.HTTPError(self._turned_away, "turned away")
        return True

    def turn_away(self, status):
        """From now on nobody may subscribe."""
        self._turned_away = status

    def publish(self, events):
        return {"ids": [self.server.publish(**event) for event in events]}

    def stats(self):
        return dataclasses.asdict(self.server.stats)

    def last_event_id(self):
        return {"id": self.server.last_event_id}

    def compressed(self):
        """How many streams are."""
        audiences = self.server._broadcaster._audiences.all()
        return {"streams": sum(a.members for a in audiences if a.wish.gzip)}

    def usage(self):
        """What the process has in use; collected first, so that it is in use."""
        gc.collect()
        transport = asyncio.selector_events._SelectorTransport
        return {
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "tasks": len(asyncio.all_tasks()),
            "transports": sum(isinstance(o, transport) for o in gc.get_objects()),
        }

    def trim(self):
        """What is free goes back to the system, where its allocator would keep it."""
        with contextlib.suppress(AttributeError):  # not glibc's
            ctypes.CDLL(None).malloc_trim(0)

    def longest_turn(self):
        """The CPU seconds of the longest turn of the event loop since this was asked."""
        loop = asyncio.get_running_loop()
        longest, loop.longest = loop.longest, 0.0
        return {"seconds": longest}

    def storm(self, **options):
        self.storming = Storm(self.server, **options)
        self.storming.start()

    async def end_storm(self):
        storm, self.storming = self.storming, None
        await asyncio.to_thread(storm.stop)

    async def close(self):
        """Twice at once and again: how long it took, what is left."""
        start = time.monotonic()
        await asyncio.gather(self.server.close(), self.server.close())
        await self.server.close()
        seconds = time.monotonic() - start
        return {"seconds": seconds, "tasks": len(asyncio.all_tasks())}

    async def pace(self, size, first, count, period=0):
        """Publish numbered events of `size` bytes, at the broadcaster's pace, or one
        each `period` seconds."""
        for number in range(first, first + count):
            self.server.publish(f"{number} ".ljust(size, "x"))
            await self.server.drain()
            if period:
                await asyncio.sleep(period)

    async def tick(self, period, count, numbered=False, disconnect=False, beside=()):
        """Publish `count` events, one each `period` seconds.

        They carry the moment at which they were due, so that a loop that stands still
        shows in the time that they take.  With ids of their own if they are `numbered`.
        Each second all streams are looked at with `disconnect`, none of them ended, and
        the events `beside` are published.
        """
        begun = time.monotonic()
        for number in range(count):
            due = begun + number * period
            await asyncio.sleep(max(0, due - time.monotonic()))
            id = str(self.server.stats.published + 1) if numbered else None
            self.server.publish(str(int(due * 1e9)), id=id)
            if number % round(1 / period) == 0:
                if disconnect:
                    self.server.disconnect(lambda request: False)
                self.publish(beside)

    def pump(self, rate, seconds):
        """Numbered events, in the background."""
        self._tasks.append(asyncio.create_task(self._pump(rate, seconds)))

    async def _pump(self, rate, seconds):
        start = time.monotonic()
        for number in range(round(rate * seconds)):
            while (time.monotonic() - start) * rate < number:
                await asyncio.sleep(PUMP_SECONDS)
            self.server.publish({"number": number, "wave": math.sin(number / rate)})


class TimedLoop(asyncio.SelectorEventLoop):
    """Notes the most CPU time that one turn took."""

    longest = 0.0

    def _run_once(self):
        before = time.thread_time()
        super()._run_once()
        self.longest = max(self.longest, time.thread_time() - before)


def server_tls():
    """A context with a certificate that is made for it."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("certificate", "key")]
        command = "openssl req -x509 -nodes -days 1 -newkey ec -subj /CN=localhost"
        command += " -pkeyopt ec_paramgen_curve:prime256v1 -out {} -keyout {}"
        subprocess.run(command.format(*files).split(), check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        return context


def prepared(commands, options):
    """The server with these options, of which some are not its own."""
    take = options.pop
    for name, value in take("limits", {}).items():
        getattr(sse_server, name)  # or the limit is not there to be set
        setattr(sse_server, name, value)
    if descriptors := take("descriptors", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if take("id_order", None):
        options["id_order"] = int
    if take("tls", False):
        options["ssl"] = server_tls()
    if take("door", False):
        options["authorize"] = commands.authorize
    options["port"] = options.get("port") or free_port()
    return sse_server.SSEServer(**options)


async def obey(commands):
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        command = json.loads(line)
        answer = getattr(commands, command.pop("do"))(**command)
        if asyncio.iscoroutine(answer):
            answer = await answer
        print(json.dumps(answer or {}), flush=True)


async def main(options):
    commands = Commands()
    send_buffer = options.pop("send_buffer", None)
    commands.server = prepared(commands, options)
    async with commands.server as server:
        if send_buffer:  # accepted connections inherit what their listening socket has
            for listener in server._service.listeners:
                for one in listener.sockets:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        obeying = asyncio.create_task(obey(commands))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, obeying.cancel)
        print(json.dumps({"port": server.port}), flush=True)
        with contextlib.suppress(asyncio.CancelledError):
            await obeying
    if commands.storming:  # those who publish end with the server
        await asyncio.to_thread(commands.storming.abandon)


if __name__ == "__main__":
    asyncio.set_event_loop(loop := TimedLoop())
    with contextlib.closing(loop):
        loop.run_until_complete(main(json.loads(sys.argv[1])))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
