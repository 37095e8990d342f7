"""What every driver in Python shares: the commands, the rhythm and the events.

A driver prints ``ready PORT`` (and the process to measure, where that is not its own),
then obeys lines of ``publish FIRST COUNT BATCH INTERVAL_US SIZE CHANNEL``: COUNT events
from number FIRST on, BATCH at a time, one batch each INTERVAL_US microseconds (0: the
next as soon as the last is written), SIZE bytes of data each, to CHANNEL ("-": none).
It answers ``done ID`` with the id of the last event ("-": it has none) and ends with
its standard input.
"""

import asyncio
import sys
import time


def event_data(number, size):
    """An event's data: its number and its time of publication, padded to size."""
    return f"{number:010d} {time.monotonic_ns():019d} ".ljust(size, "x")


async def standard_input():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def run_job(arguments, publish, written):
    first, count, batch, interval_us, size = map(int, arguments[:5])
    channel = None if arguments[5] == "-" else arguments[5]
    end, last_id, due = first + count, None, time.monotonic()
    for start in range(first, end, batch):
        numbers = range(start, min(start + batch, end))
        last_id = publish([event_data(number, size) for number in numbers], channel)
        if interval_us:
            due += interval_us / 1e6
            await asyncio.sleep(max(0, due - time.monotonic()))
        else:
            await written()
    return last_id


async def obey(port, publish, written, pid=""):
    """Obey commands until standard input ends.

    ``publish(datas, channel)`` publishes one batch, and returns an id or None;
    ``await written()`` returns when what was published is written to the clients.
    """
    commands = await standard_input()
    print("ready", port, pid, flush=True)
    while True:
        words = (await commands.readline()).decode().split()
        if not words:
            return
        if words[0] != "publish" or len(words) != 7:
            raise SystemExit(f"unknown command: {words}")
        last_id = await run_job(words[1:], publish, written)
        print("done", last_id or "-", flush=True)
