"""Watch a stream with one of the Python client libraries, each used as its manual says.

usage: client.py LIBRARY URL     prints a JSON line [type, data, last event id] for each
event that the library hands out, until an event named "end".
"""

import asyncio
import json
import sys

LONGEST_LINE = 2 * 1024 * 1024  # bytes; aiohttp's default refuses a line of 1 MB


def httpx_sse(url):
    import httpx
    import httpx_sse

    client = httpx.Client(timeout=None)
    with client, httpx_sse.connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            yield event.event, event.data, event.id


def sseclient_py(url):
    import sseclient
    import urllib3

    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    pool = urllib3.PoolManager()
    response = pool.request("GET", url, preload_content=False, headers=headers)
    for event in sseclient.SSEClient(response).events():
        yield event.event, event.data, event.id


def requests_sse(url):
    import requests_sse

    with requests_sse.EventSource(url) as source:
        for event in source:
            yield event.type, event.data, event.last_event_id


async def aiohttp_sse_client(url):
    import aiohttp
    from aiohttp_sse_client import client

    session = aiohttp.ClientSession(
        read_bufsize=LONGEST_LINE, timeout=aiohttp.ClientTimeout(total=None)
    )
    async with session, client.EventSource(url, session=session) as source:
        async for event in source:
            yield event.type, event.data, event.last_event_id


def show(event):
    """Print an event; true if it was the last."""
    print(json.dumps(event), flush=True)
    return event[0] == "end"


async def show_all(events):
    async for event in events:
        if show(event):
            break


def main(library, url):
    events = LIBRARIES[library](url)
    if hasattr(events, "__aiter__"):
        asyncio.run(show_all(events))
    else:
        any(show(event) for event in events)


LIBRARIES = {
    "httpx-sse": httpx_sse,
    "sseclient-py": sseclient_py,
    "requests-sse": requests_sse,
    "aiohttp-sse-client": aiohttp_sse_client,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
