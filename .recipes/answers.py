"""python answers.py: the tokens of an answer, for the page alone that has asked.

Each question has a channel with a name that its page invents and nobody guesses:

    const query = new URLSearchParams({ channel: crypto.randomUUID(), prompt });
    const source = new EventSource("/sse?" + query);
    source.addEventListener("begin", () => { answer.textContent = ""; });
    source.onmessage = (event) => { answer.textContent += event.data; };
    source.addEventListener("failed", () => { answer.textContent += " (failed)"; });

A connection that breaks is resumed.  A page that has left for 10 seconds stops its
answer.  If it comes back after that, or after a restart, the answer begins anew.  The
head of a request, in which the prompt is, has at most 16 KiB.

The page may be `page="index.html"` of this server.  In FastAPI, make the server with
`port=None` and mount it as README.md shows.  It is for one process: at another one, a
page that comes back would begin its answer anew.
"""

import asyncio
import collections
import contextlib
import logging

from model import tokens  # yours: an asynchronous generator

from sse_server import SSEServer

PATIENCE = 10  # seconds
answering = {}  # the task of each channel
streams = collections.Counter()  # a page that changes its network has two for a while
leaving = {}  # for a channel without a stream: the timer that stops its task


def authorize(request):
    """Allow streams of one channel with a prompt."""
    one = len(request.channels) == 1 and None not in request.channels
    return one and "prompt" in request.parameters


def opened(request):
    (channel,) = request.channels
    streams[channel] += 1
    if channel in leaving:
        leaving.pop(channel).cancel()
    if channel not in answering:
        work = answer(channel, request.parameters["prompt"][0])
        answering[channel] = asyncio.create_task(work)


def closed(request):
    (channel,) = request.channels
    streams[channel] -= 1
    if not streams[channel]:
        loop = asyncio.get_running_loop()
        leaving[channel] = loop.call_later(PATIENCE, stop, channel)


def stop(channel):
    del leaving[channel], streams[channel]
    answering.pop(channel).cancel()


async def answer(channel, prompt):
    try:
        server.publish("", event="begin", channel=channel)
        async for token in tokens(prompt):
            server.publish(token, channel=channel)
        server.finish(channel)
    except Exception as error:
        logging.warning("no more of the answer to %r: %s", prompt, error)
        with contextlib.suppress(RuntimeError):  # the server ends
            server.publish("", event="failed", channel=channel)
            server.finish(channel)


server = SSEServer(authorize=authorize, on_open=opened, on_close=closed)

if __name__ == "__main__":
    asyncio.run(server.serve_forever())
