"""An SSE server that a check starts, commands and stops: JSON lines in, JSON lines out.

usage: server.py '{"option": value, ...}'
       The options are the keyword arguments of SSEServer, and
       "limits": {"NAME": value}   the module's own limits, to shorten a wait
       "door": true                the command turn_away is heeded

Prints {"port": ...} once it listens, then answers each command with one line:
  {"do": "publish", "events": [{"data": ...}]}  and publish's other arguments
  {"do": "pump", "rate": 1000, "seconds": 10}   numbered events, in the background
  {"do": "stats"}
  {"do": "last_event_id"}
  {"do": "turn_away", "status": 204}            from now on nobody may subscribe
SIGTERM closes it in an orderly way, SIGKILL does not; so does the end of its input.
"""

import asyncio
import dataclasses
import json
import math
import pathlib
import random
import signal
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import sse_server

LINE_LIMIT = 32 * 1024 * 1024  # bytes: a command may carry several 1 MB events
TICK = 0.01  # seconds between the bursts of a pump


def free_port():
    """A port below the range that outgoing connections take theirs from: a server that
    is stopped finds it free when it starts again."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Commands:
    """What the check at the other end of the pipe can ask for; one method each."""

    def __init__(self):
        self.server = None
        self._turned_away = None  # the status that subscribers get, once told so
        self._pumps = set()

    def authorize(self, request):
        if self._turned_away is not None and request.method == "GET":
            raise sse_server.HTTPError(self._turned_away, "turned away")
        return True

    def publish(self, events):
        return {"ids": [self.server.publish(**event) for event in events]}

    def pump(self, rate, seconds):
        pump = asyncio.create_task(self._pump(rate, seconds))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        return {}

    async def _pump(self, rate, seconds):
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while number < rate * seconds:
            due = min(rate * seconds, (loop.time() - start) * rate)
            while number < due:
                wave = math.sin(number / rate)
                self.server.publish({"number": number, "wave": wave})
                number += 1
            await asyncio.sleep(TICK)

    def stats(self):
        return dataclasses.asdict(self.server.stats)

    def last_event_id(self):
        return {"id": self.server.last_event_id}

    def turn_away(self, status):
        self._turned_away = status
        return {}


async def command_lines():
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def obey(commands, lines):
    async for line in lines:
        command = json.loads(line)
        answer = getattr(commands, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


async def main(options):
    commands = Commands()
    for name, value in options.pop("limits", {}).items():
        getattr(sse_server, name)  # or the limit is not there to be set
        setattr(sse_server, name, value)
    options["port"] = options.get("port") or free_port()
    if options.pop("door", False):
        options["authorize"] = commands.authorize
    async with sse_server.SSEServer(**options) as commands.server:
        print(json.dumps({"port": commands.server.port}), flush=True)
        obeying = asyncio.create_task(obey(commands, await command_lines()))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, obeying.cancel)
        await asyncio.wait([obeying])
    if not obeying.cancelled():
        obeying.result()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
