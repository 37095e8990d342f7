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
CODINGS = [
    *(CHUNKED, CHUNKED + b"\r\n" + CHUNKED, CHUNKED.upper(), b" " + CHUNKED),
    *(b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked"),
    *(b"Transfer_Encoding: chunked", b"Transfer-Encoding:\r\n chunked"),
    *(b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding:\xa0chunked"),
    *(CHUNKED + b"\x0c", CHUNKED + b"\0", CHUNKED + b";q=1", CHUNKED + b", identity"),
    *(b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: xchunked"),
    *(b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding:\r\n" + CHUNKED),
    CHUNKED + b"\r\nTransfer-Encoding: identity",
    *(b"X: y\n" + CHUNKED, b"X: y\r" + CHUNKED, b"X\r\n" + CHUNKED),
    b"Connection: Transfer-Encoding\r\n" + CHUNKED,
]
LENGTH = b"Content-Length: %d"  # of the hidden request
LENGTHS = [
    *(LENGTH, LENGTH + b"\r\nContent-Length: 0", b"Content-Length: 0\r\n" + LENGTH),
    *(LENGTH + b", 0", b"Content-Length: 0, %d", b"Content-Length: 0 %d"),
    *(b"Content-Length: +%d", b"Content-Length: -0\r\nX-Length: %d"),
    *(b"Content-Length: 0x%x", b"Content_Length: %d", b"Content-Length : %d"),
    *(b"Content-Length:\r\n %d", LENGTH + b"\x0b", b"X: y\n" + LENGTH),
    *(b"X: y\r" + LENGTH, b"Connection: Content-Length\r\n" + LENGTH),
    b"Expect: 100-continue\r\n" + LENGTH,
    b"Expect: 100-continue, x\r\n" + LENGTH,
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH,
]
# A size, and the end of a line and of the trailers; bare line ends; trailers; data.
LAST_CHUNKS = [
    *(size + b"\r\n\r\n" for size in (b"0", b"0x0", b"+0", b"-0", b" 0", b"0 ", b"")),
    *(b"10000000000000000\r\n\r\n", b"0\n\n", b"0\r\r", b"0;a\n\r\n", b"0;a\r\r\n\r\n"),
    *(b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nContent-Length: 200\r\n\r\n"),
    *(b"1\r\naXX0\r\n\r\n", b"1\r\na0\r\n\r\n"),
]
REQUEST_LINES = [
    *(b"POST / HTTP/1.0", b"POST / HTTP/1.10", b"POST / HTTP/2.0", b"POST /"),
    *(b"POST  /  HTTP/1.1", b"POST\t/\tHTTP/1.1", b"POST / HTTP/1.1 HTTP/1.1"),
    *(b"POST http://elsewhere/ HTTP/1.1", b"POST / HTTP/1.1\nX: y"),
    *(b"\r\n\r\nPOST / HTTP/1.1", b"GET / HTTP/1.1", b"HEAD / HTTP/1.1"),
    *(b"OPTIONS / HTTP/1.1", b"DELETE / HTTP/1.1"),
]


def attacks():
    """The bytes of every attack."""

    def post(fields, body, line=b"POST / HTTP/1.1"):
        return b"%b\r\nHost: front\r\n%b\r\n\r\n%b" % (line, fields, body)

    early_end = b"0\r\n\r\n" + HIDDEN
    one_chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    for coding in CODINGS:
        yield post(b"%b\r\n%b" % (LENGTH % len(early_end), coding), early_end)
        short = LENGTH % (one_chunk.index(b"\n") + 1)
        yield post(b"%b\r\n%b" % (short, coding), one_chunk)
    for length in LENGTHS:
        yield post(length % len(HIDDEN), HIDDEN)
    for chunk in LAST_CHUNKS:
        yield post(CHUNKED, chunk + HIDDEN)
    for line in REQUEST_LINES:
        yield post(LENGTH % len(HIDDEN), HIDDEN, line)
        yield post(CHUNKED, early_end, line)


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
                before, tried = published(server), list(attacks())
                for attack in tried:
                    await answers(front.port, attack)
                    expect(published(server) == before, f"smuggled: {attack}")
                    victim = await answers(front.port, VICTIM, silent=PATIENCE)
                    innocent = STATUS_LINE.findall(victim) == [b"200"]
                    problem = f"after {attack} the next got {victim}"
                    expect(innocent and b"ok" in victim, problem)
                await until_async(
                    lambda: tap.answered <= front.passed_on(),
                    f"{front.passed_on()} requests passed on, {tap.answered} answered",
                )
                notes.append(
                    f"{len(tried)} attacks, {front.passed_on()} requests passed on,"
                    f" {tap.answered} answered on {tap.connections} connections"
                )
