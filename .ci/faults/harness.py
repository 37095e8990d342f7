"""What the checks share: the server's process, and a client that decodes its stream.

The chunks are decoded as RFC 9112 (7.1) says; nothing here uses the module that is
checked.
"""

import argparse
import contextlib
import json
import pathlib
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import (  # noqa: F401
    MODULE,
    Decoder,
    Report,
    free_port,
    process_cpu,
    process_rss,
    wait_until,
)

KIB, MIB = 1024, 1024 * 1024


def arguments(text, **defaults):
    """The command line of a check: --seed, and --NAME for each default."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name, value in defaults.items():
        several = isinstance(value, list)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=type(value[0] if several else value),
            nargs="+" if several else None,
            default=value,
        )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return options


def python_name(python):
    """The version of a Python, for the report."""
    command = [python, "-c", "import sys; print(sys.version.split()[0])"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Server:
    """The server under fire: starts it, asks it, ends it."""

    def __init__(self, python=sys.executable, prefix=(), stderr=None, **options):
        options.setdefault("host", "127.0.0.1")
        options.setdefault("port", 0)
        command = [*prefix, python, str(HERE / "server.py"), json.dumps(options)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.address = (options["host"], self._answer(30)["port"])

    @property
    def pid(self):
        return self.process.pid

    def send(self, do, **parameters):
        """Give a command without waiting for what it answers."""
        print(json.dumps({"do": do, **parameters}), file=self.process.stdin, flush=True)

    def ask(self, do, timeout=60, **parameters):
        self.send(do, **parameters)
        return self._answer(timeout)

    def answer(self, timeout=60):
        """The answer to what was sent."""
        return self._answer(timeout)

    def _answer(self, timeout):
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError("the server's process does not answer")
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the server's process ended: {self.process.wait()}")
        return json.loads(line)

    def stop(self, number=signal.SIGTERM, timeout=30):
        """Signal it; return its exit status."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=30):
        status = self.process.wait(timeout)
        self.process.stdin.close()
        self.process.stdout.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.wait()


class Dechunker:
    """Takes the chunks off; each must hold whole lines, or end as its coding does."""

    def __init__(self):
        self.end = b"\n"  # of each
        self.ended = False  # the last chunk has come
        self._rest = bytearray()

    def feed(self, received):
        self._rest += received
        contents = []
        while not self.ended:
            end = self._rest.find(b"\r\n")
            if end < 0:
                break
            size = int(self._rest[:end], 16)
            whole = end + 2 + size + 2
            if len(self._rest) < whole:
                break
            contents.append(bytes(self._rest[end + 2 : whole - 2]))
            if self._rest[whole - 2 : whole] != b"\r\n":
                raise ValueError("a chunk is longer than its size")
            if size and not contents[-1].endswith(self.end):
                raise ValueError("a chunk ends within a line, or cannot be decoded yet")
            del self._rest[:whole]
            self.ended = not size
        return b"".join(contents)


class Stream:
    """What a client has received on one connection: head, chunks, events."""

    def __init__(self, version="1.1", last_id=""):
        self.decoder = Decoder(last_id)
        self.opened = False  # the head has come
        self._version = version
        self._dechunker = Dechunker() if version == "1.1" else None
        self._inflater = None
        self._head = b""

    @property
    def chunked(self):
        return self._dechunker is not None

    @property
    def compressed(self):
        return self._inflater is not None

    @property
    def ended(self):
        """Whether the body was ended as its framing demands (HTTP/1.1)."""
        return bool(self._dechunker and self._dechunker.ended)

    def feed(self, received):
        if not self.opened:
            head, end, received = (self._head + received).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return []
            self._check(head)
            self.opened = True
        if self._dechunker:
            received = self._dechunker.feed(received)
        if self._inflater:
            received = self._inflater.decompress(received)
        return self.decoder.feed(received)

    def _check(self, head):
        status, *fields = head.split(b"\r\n")
        if not status.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"not a stream: {status!r}")
        if any(field.startswith(b"Content-Length:") for field in fields):
            self._dechunker = (
                None  # it is told to come back: the server ends, or is full
            )
            return
        chunked = b"Transfer-Encoding: chunked" in fields
        if chunked != (self._version == "1.1"):
            raise ValueError(f"wrong framing for HTTP/{self._version}: {head!r}")
        if b"Content-Encoding: gzip" in fields:
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
            self._dechunker.end = b"\x00\x00\xff\xff"  # of a sync flush (RFC 1951)


def request(
    version="1.1", channels=(), last_id="", by_query=False, path="/sse", gzip=False
):
    """The bytes of a request for a stream."""
    query = [f"channel={channel}" for channel in channels]
    fields = ["Host: localhost", "Accept: text/event-stream"]
    fields += ["Accept-Encoding: gzip"] * gzip
    if last_id and by_query:
        query.append(f"last_event_id={last_id}")
    elif last_id:
        fields.append(f"Last-Event-ID: {last_id}")
    target = path + ("?" + "&".join(query) if query else "")
    lines = [f"GET {target} HTTP/{version}", *fields, "", ""]
    return "\r\n".join(lines).encode()


class Client:
    """One blocking connection with a stream on it, for checks that have few."""

    def __init__(self, address, timeout=30, small=False, **parameters):
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if small:
            shrink_receive_buffer(self.socket)
        self.socket.connect(address)
        self.socket.sendall(request(**parameters))
        version = parameters.get("version", "1.1")
        self.stream = Stream(version, parameters.get("last_id", ""))
        self._events = []

    def open(self):
        """Wait until the stream is open; return the client itself."""
        while not self.stream.opened:
            self._receive()
        return self

    def next(self):
        """The next event; EOFError at the end of the stream."""
        while not self._events:
            self._receive()
        return self._events.pop(0)

    def rest(self):
        """All events until the connection ends."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self._receive()
        events, self._events = self._events, []
        return events

    def _receive(self):
        received = self.socket.recv(256 * KIB)
        if not received:
            raise EOFError("the stream ended")
        self._events += self.stream.feed(received)

    def reset(self):
        """Close with a RST instead of a FIN."""
        reset(self.socket)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def shrink_receive_buffer(sock):
    """Before it connects: a stall is soon felt at the other end.

    The loopback's segments of 64 KiB would never fit, and the peer's kernel would send
    by its timer alone; with Ethernet's they do.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)


def reset(sock):
    """Close with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
