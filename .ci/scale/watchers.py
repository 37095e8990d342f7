"""Many clients in one process: each follows the stream, comes back when it is cut, and
checks that the events are the numbers from 1 on, in order, none twice, no gap.

usage: watchers.py '[[PORT, ...], CLIENTS, TOTAL]'

Prints its state as a line of JSON about twice a second, and ends with its input.
The clients speak HTTP/1.0, to which the stream is sent without chunks around it, so that
an event is whole when its empty line is there.
"""

import asyncio
import json
import random
import re
import sys

from harness import common

# What counts in a stream: an event's number, or a gap.
WHAT_COUNTS = re.compile(rb"^data: (\d+)$|^event: gap$", re.MULTILINE)
REPORT_SECONDS = 0.5
CONNECTING = 200  # connections begun and not yet answered
RECONNECT_SECONDS = (0.2, 0.6)  # sooner than a browser: what is cut comes back at once


class Client(asyncio.Protocol):
    """One stream, over as many connections as it takes."""

    def __init__(self, ports, total, state, room):
        self._ports, self._total = ports, total  # it comes back at any of the ports
        self._state, self._room = state, room  # shared with the others
        self._last_id = ""
        self._gap = False  # since the last event
        self._expected = 1

    async def follow(self):
        while True:
            async with self._room:
                self._received, self._open = b"", False
                self._answered, self._lost = asyncio.Event(), asyncio.Event()
                try:
                    await asyncio.get_running_loop().create_connection(
                        lambda: self, "127.0.0.1", random.choice(self._ports)
                    )
                    await self._answered.wait()
                except OSError:
                    self._lost.set()
            await self._lost.wait()
            await asyncio.sleep(random.uniform(*RECONNECT_SECONDS))

    def connection_made(self, transport):
        self._transport = transport
        transport.write(common.request("1.0", last_id=self._last_id))

    def connection_lost(self, error):
        """Cut, refused, or the answer of a proxy whose servers are away."""
        self._state["open"] -= self._open
        self._state["cut"] += self._open
        self._answered.set()
        self._lost.set()

    def data_received(self, data):
        self._received += data
        if not self._open:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            # nginx, while no server is there, answers with an empty stream.
            if b" 200 " not in head.split(b"\r\n")[0]:
                self._transport.abort()
                return
            self._open, self._received = True, rest
            self._state["open"] += 1
            self._answered.set()
        self._take_events()

    def _take_events(self):
        end = self._received.rfind(b"\n\n") + 2
        if end < 2:
            return
        whole, self._received = self._received[:end], self._received[end:]
        start = whole.rfind(b"id: ") + 4
        if start >= 4:
            self._last_id = whole[start : whole.index(b"\n", start)].decode()
        state = self._state
        for found in WHAT_COUNTS.finditer(whole):
            if not found[1]:
                state["gaps"] += 1
                self._gap = True
                continue
            number = int(found[1])
            missing = number - self._expected
            state["silent"] += missing > 0 and not self._gap
            self._gap = False
            if missing < 0:
                state["repeated"] += 1
                continue
            state["missing"] += missing
            self._expected = number + 1
            state["complete"] += number == self._total


async def main(ports, clients, total):
    names = ("open", "complete", "repeated", "missing", "gaps", "cut", "silent")
    state = dict.fromkeys(names, 0)  # "silent": holes that no gap had announced
    room = asyncio.Semaphore(CONNECTING)
    crowd = [Client(ports, total, state, room) for _ in range(clients)]
    following = [asyncio.create_task(client.follow()) for client in crowd]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        print(json.dumps(state), flush=True)
        await asyncio.wait([ended], timeout=REPORT_SECONDS)
    for task in following:
        task.cancel()


if __name__ == "__main__":
    common.raise_descriptor_limit()
    asyncio.run(main(*json.loads(sys.argv[1])))
