"""The server under fire, in a process of its own: JSON lines in, JSON lines out.

usage: server.py '{"option": value, ...}'
       The options are the keyword arguments of SSEServer, and
       "before_file": "FILE"            published before it starts: in each line the
                                        arguments of publish as JSON
       "send_buffer": bytes             of each connection in the kernel, so that a
                                        client that does not read is soon felt
       "descriptors": number            RLIMIT_NOFILE, after the modules are loaded
       "id_order": "int"                the function, by its name
       "authorize": "nobody"            a function that lets nobody in

Prints {"port": ...} once it listens, then answers each command {"do": NAME, ...} with
one line.  SIGTERM and SIGINT close it in an orderly way; so does the end of its input.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import resource
import signal
import socket
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import storm
from common import command_lines, obey

import sse_server


class Commands:
    """What the check at the other end of the pipe can ask for; one method each."""

    def __init__(self, server):
        self.server = server
        self._storm = None

    def publish(self, events):
        return {"ids": [self.server.publish(**event) for event in events]}

    def stats(self):
        return dataclasses.asdict(self.server.stats)

    def usage(self):
        """What the process has in use; collected first, so that it is in use."""
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "rss": pages * resource.getpagesize(),
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "tasks": len(asyncio.all_tasks()),
            "transports": count_transports(),
            "cpu": used.ru_utime + used.ru_stime,
        }

    def storm(self, **options):
        self._storm = storm.Storm(self.server, **options)
        self._storm.start()
        return {}

    async def end_storm(self):
        await asyncio.to_thread(self._storm.stop)
        self._storm = None
        return {}

    async def end(self):
        """The server has ended: so do those who publish."""
        if self._storm:
            await asyncio.to_thread(self._storm.abandon)

    async def pace(self, size, first, count, period=0):
        """Publish numbered events of `size` bytes, at the broadcaster's pace, or one
        each `period` seconds."""
        for number in range(first, first + count):
            text = f"{number} "
            self.server.publish(text + "x" * (size - len(text)))
            await self.server.drain()
            if period:
                await asyncio.sleep(period)
        return self.usage()

    async def close(self):
        """Twice at once and again: how long it took, what is left."""
        start = time.monotonic()
        await asyncio.gather(self.server.close(), self.server.close())
        await self.server.close()
        seconds = time.monotonic() - start
        return {"seconds": seconds, "tasks": len(asyncio.all_tasks())}

    async def tick(self, period, count, numbered=False, disconnect=False):
        """Publish `count` events, one each `period` seconds.

        They carry the moment at which they were due, so that a loop that stands still
        shows in the time that they take.
        With ids of their own if they are `numbered`; with `disconnect`, all streams are
        looked at each second, and none is ended.
        """
        begun = time.monotonic()
        for number in range(count):
            due = begun + number * period
            await asyncio.sleep(max(0, due - time.monotonic()))
            id = str(self.server.stats.published + 1) if numbered else None
            self.server.publish(str(int(due * 1e9)), id=id)
            if disconnect and number % round(1 / period) == 0:
                self.server.disconnect(lambda request: False)
        return {}

    async def race(self, threads, events, size):
        """Publish from many threads as fast as they can, each its own events."""
        started = time.monotonic()
        filler = "x" * size
        crew = [
            threading.Thread(target=self._publish_all, args=(t, events, filler))
            for t in range(threads)
        ]
        for thread in crew:
            thread.start()
        peak = 0
        while any(thread.is_alive() for thread in crew):
            await asyncio.sleep(0.05)
            peak = max(peak, self.usage()["rss"])
        seconds = time.monotonic() - started
        await self.server.drain()
        return {"seconds": seconds, "peak": max(peak, self.usage()["rss"])}

    def _publish_all(self, thread, events, filler):
        for number in range(events):
            self.server.publish(f"{thread} {number} {filler}")


def count_transports():
    transport = asyncio.selector_events._SelectorTransport
    return sum(isinstance(thing, transport) for thing in gc.get_objects())


def shrink_send_buffers(server, size):
    """Accepted connections inherit what their listening socket has."""
    for listener in server._listeners:
        for listening in listener.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def publish_file(server, path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            server.publish(**json.loads(line))


async def let_nobody_in(request):
    return False


async def main(options):
    before_file = options.pop("before_file", None)
    send_buffer = options.pop("send_buffer", None)
    descriptors = options.pop("descriptors", None)
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if "id_order" in options:
        options["id_order"] = {"int": int}[options["id_order"]]
    if "authorize" in options:
        options["authorize"] = {"nobody": let_nobody_in}[options["authorize"]]
    server = sse_server.SSEServer(**options)
    if before_file:
        publish_file(server, before_file)
    commands = Commands(server)
    async with server:
        if send_buffer:
            shrink_send_buffers(server, send_buffer)
        obeying = asyncio.create_task(obey(commands, await command_lines()))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, obeying.cancel)
        print(json.dumps({"port": server.port}), flush=True)
        with contextlib.suppress(asyncio.CancelledError):
            await obeying
    await commands.end()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
