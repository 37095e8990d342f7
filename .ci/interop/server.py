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
  {"do": "compressed"}                          how many streams are
  {"do": "disconnect"}                          everybody
  {"do": "turn_away", "status": 204}            from now on nobody may subscribe
SIGTERM closes it in an orderly way, SIGKILL does not; so does the end of its input.
"""

import asyncio
import dataclasses
import json
import math
import pathlib
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from common import command_lines, free_port, obey

import sse_server

TICK = 0.01  # seconds between the bursts of a pump


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

    def compressed(self):
        audiences = self.server._broadcaster._audiences.values()
        return {"streams": sum(a.members for a in audiences if a.wish.gzip)}

    def disconnect(self):
        self.server.disconnect(lambda request: True)
        return {}

    def turn_away(self, status):
        self._turned_away = status
        return {}


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
