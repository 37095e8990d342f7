"""Request smuggling: requests that two HTTP parsers may cut at different places.

Each attack hides a second request, which would publish an event, where a careless
parser would see it.  The front lets nobody reach /sse, so an event in the log of the
server behind it has been smuggled; so has any answer beyond one for each request that
the front passed on.
"""

import asyncio
import contextlib
import re

from common import Server, expect, until_async
from harness import PATIENCE

TOKEN = "publish-token"
HIDDEN = (
    b"POST /sse?event=smuggled HTTP/1.1\r\nHost: hidden\r\n"
    b"Authorization: Bearer %b\r\nContent-Length: 8\r\n\r\nsmuggled"
) % TOKEN.encode()
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d) ")
ANSWERED = 0.15  # seconds of silence behind an answer that end the wait for another
VICTIM = b"GET /victim HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n"
SILENT = 0.6  # seconds without any answer: the request is taken to be incomplete

# Ways to write a field that one parser heeds and another one overlooks.
CHUNKED = b"Transfer-Encoding: chunked"
CODINGS = {
    "plain": CHUNKED,
    "twice": CHUNKED + b"\r\n" + CHUNKED,
    "in capitals": b"TRANSFER-ENCODING: CHUNKED",
    "space before the colon": b"Transfer-Encoding : chunked",
    "tab before the colon": b"Transfer-Encoding\t: chunked",
    "space before the name": b" Transfer-Encoding: chunked",
    "underscore": b"Transfer_Encoding: chunked",
    "folded": b"Transfer-Encoding:\r\n chunked",
    "vertical tab": b"Transfer-Encoding:\x0bchunked",
    "form feed behind": b"Transfer-Encoding: chunked\x0c",
    "no-break space": b"Transfer-Encoding:\xa0chunked",
    "NUL": b"Transfer-Encoding: chunked\0",
    "quoted": b'Transfer-Encoding: "chunked"',
    "with a parameter": b"Transfer-Encoding: chunked;q=1",
    "unknown": b"Transfer-Encoding: xchunked",
    "identity last": b"Transfer-Encoding: chunked, identity",
    "identity first": b"Transfer-Encoding: identity, chunked",
    "identity in a second field": CHUNKED + b"\r\nTransfer-Encoding: identity",
    "empty first": b"Transfer-Encoding:\r\n" + CHUNKED,
    "behind a bare LF": b"X: y\n" + CHUNKED,
    "behind a bare CR": b"X: y\r" + CHUNKED,
    "behind a field without a colon": b"X\r\n" + CHUNKED,
    "named by Connection": b"Connection: Transfer-Encoding\r\n" + CHUNKED,
}
LENGTHS = {  # %d is the length of the hidden request
    "then 0": b"Content-Length: %d\r\nContent-Length: 0",
    "after 0": b"Content-Length: 0\r\nContent-Length: %d",
    "list": b"Content-Length: %d, 0",
    "list after 0": b"Content-Length: 0, %d",
    "plus sign": b"Content-Length: +%d",
    "minus 0": b"Content-Length: -0\r\nX-Length: %d",
    "hexadecimal": b"Content-Length: 0x%x",
    "two numbers": b"Content-Length: 0 %d",
    "underscore": b"Content_Length: %d",
    "space before the colon": b"Content-Length : %d",
    "folded": b"Content-Length:\r\n %d",
    "vertical tab": b"Content-Length: %d\x0b",
    "behind a bare LF": b"X: y\nContent-Length: %d",
    "behind a bare CR": b"X: y\rContent-Length: %d",
    "named by Connection": b"Connection: Content-Length\r\nContent-Length: %d",
    "with Expect": b"Expect: 100-continue\r\nContent-Length: %d",
    "with an odd Expect": b"Expect: 100-continue, x\r\nContent-Length: %d",
    "with an upgrade": b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d",
    "plain": b"Content-Length: %d",
}
LAST_CHUNKS = {
    "plain": b"0\r\n\r\n",
    "0x": b"0x0\r\n\r\n",
    "plus sign": b"+0\r\n\r\n",
    "minus sign": b"-0\r\n\r\n",
    "leading space": b" 0\r\n\r\n",
    "trailing space": b"0 \r\n\r\n",
    "empty size": b"\r\n\r\n",
    "17 digits": b"10000000000000000\r\n\r\n",
    "bare LF": b"0\n\n",
    "bare CR": b"0\r\r",
    "bare LF in an extension": b"0;a\n\r\n",
    "bare CR in an extension": b"0;a\r\r\n\r\n",
    "folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "length in the trailer": b"0\r\nContent-Length: 200\r\n\r\n",
    "wrong end of the data": b"1\r\naXX0\r\n\r\n",
    "no end of the data": b"1\r\na0\r\n\r\n",
}
REQUEST_LINES = {
    "HTTP/1.0": b"POST / HTTP/1.0",
    "HTTP/1.10": b"POST / HTTP/1.10",
    "HTTP/2.0": b"POST / HTTP/2.0",
    "no version": b"POST /",
    "two spaces": b"POST  /  HTTP/1.1",
    "tab": b"POST\t/\tHTTP/1.1",
    "space in the target": b"POST / HTTP/1.1 HTTP/1.1",
    "absolute form": b"POST http://elsewhere/ HTTP/1.1",
    "bare LF": b"POST / HTTP/1.1\nX: y",
    "empty lines first": b"\r\n\r\nPOST / HTTP/1.1",
    "GET with a body": b"GET / HTTP/1.1",
    "HEAD with a body": b"HEAD / HTTP/1.1",
    "OPTIONS with a body": b"OPTIONS / HTTP/1.1",
    "DELETE with a body": b"DELETE / HTTP/1.1",
}


def attacks():
    """Name and bytes of every attack."""

    def post(fields, body, line=b"POST / HTTP/1.1"):
        return b"%b\r\nHost: front\r\n%b\r\n\r\n%b" % (line, fields, body)

    early_end = b"0\r\n\r\n" + HIDDEN
    one_chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    for name, coding in CODINGS.items():
        long = b"Content-Length: %d\r\n%b" % (len(early_end), coding)
        yield f"length, then coding {name}", post(long, early_end)
        short = b"Content-Length: %d\r\n%b" % (one_chunk.index(b"\n") + 1, coding)
        yield f"coding {name}, then length", post(short, one_chunk)
    for name, length in LENGTHS.items():
        yield f"length {name}", post(length % len(HIDDEN), HIDDEN)
    for name, chunk in LAST_CHUNKS.items():
        yield f"last chunk {name}", post(CHUNKED, chunk + HIDDEN)
    for name, line in REQUEST_LINES.items():
        length = b"Content-Length: %d" % len(HIDDEN)
        yield f"request line {name}", post(length, HIDDEN, line)
        yield f"request line {name}, chunked", post(CHUNKED, early_end, line)


async def answers(port, request, silent=SILENT):
    """Everything that comes back for these bytes on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        writer.write(request)
        while True:
            patience = ANSWERED if STATUS_LINE.search(received) else silent
            data = await asyncio.wait_for(reader.read(65536), patience)
            if not data:
                break
            received += data
    writer.transport.abort()
    return received


class Tap:
    """Passes bytes between a front and the server, and keeps the server's answers."""

    def __init__(self, port):
        self._port = port
        self._answers = []  # one bytearray for each connection that the front opened

    @contextlib.asynccontextmanager
    async def listening(self):
        """Its own port, while it listens."""
        listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        async with listener:
            yield listener.sockets[0].getsockname()[1]

    async def _connect(self, front_reader, front_writer):
        answer = bytearray()
        self._answers.append(answer)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._pass(front_reader, writer, bytearray()),
            self._pass(reader, front_writer, answer),
        )

    async def _pass(self, reader, writer, kept):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                kept += data
                writer.write(data)
                await writer.drain()
        writer.close()

    @property
    def connections(self):
        return len(self._answers)

    @property
    def answered(self):
        """How many requests the server answered, interim answers aside."""
        return sum(len(STATUS_LINE.findall(answer)) for answer in self._answers)


def published(server):
    return server.ask("last_event_id")["id"]


async def hidden_request_publishes(report):
    """What the attacks hide does its harm where it is not hidden."""
    case = report.case("control: the hidden request publishes when sent openly")
    with case, Server(publish_token=TOKEN, hosts=["*"]) as server:
        before = published(server)
        await answers(server.port, HIDDEN, silent=PATIENCE)
        expect(published(server) != before, "nothing was published")


async def withstands(report, name, fronted):
    """All attacks on one front, each followed by another client's innocent request."""
    with Server(publish_token=TOKEN, hosts=["*"]) as server:
        tap = Tap(server.port)
        async with tap.listening() as port, fronted(port) as front:
            with report.case(f"{name} smuggles nothing") as notes:
                before = published(server)
                count = 0
                for attack, request in attacks():
                    await answers(front.port, request)
                    expect(published(server) == before, f"smuggled: {attack}")
                    victim = await answers(front.port, VICTIM, silent=PATIENCE)
                    statuses = STATUS_LINE.findall(victim)
                    expect(statuses == [b"200"], f"{attack}: the next got {victim}")
                    expect(b"ok" in victim, f"{attack}: the next got {victim}")
                    count += 1
                await until_async(
                    lambda: tap.answered <= front.passed_on(),
                    f"{front.passed_on()} requests passed on, {tap.answered} answered",
                )
                notes.append(
                    f"{count} attacks, {front.passed_on()} requests passed on,"
                    f" {tap.answered} answered on {tap.connections} connections"
                )
