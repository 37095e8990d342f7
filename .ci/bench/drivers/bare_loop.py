"""asyncio with nothing on top: one bytes object, one write for each open writer."""

import asyncio

from pace import obey

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
)

writers = set()


async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD)
    writers.add(writer)
    try:
        await reader.read()
    finally:
        writers.discard(writer)
        writer.close()


def publish(datas, channel):
    payload = b"".join(b"data: %s\n\n" % data.encode() for data in datas)
    for writer in writers:
        writer.write(payload)


async def written():
    await asyncio.sleep(0)


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    await obey(server.sockets[0].getsockname()[1], publish, written)


asyncio.run(main())
