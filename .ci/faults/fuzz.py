"""What the fuzzers feed and demand: a Request or an HTTPError, a body or an HTTPError.

usage: fuzz.py FOLDER [SECONDS]     coverage-guided; needs the package atheris
"""

import pathlib
import random
import sys

import harness

sys.path.insert(0, str(harness.MODULE.parent))
import sse_server

LIMIT = 10_000  # bytes of a body
HEADS = [
    (
        b"GET /sse?channel=a&channel=b HTTP/1.1\r\nHost: localhost:80\r\n"
        b"Accept: text/event-stream\r\nLast-Event-ID: 0123abcd-17\r\n\r\n"
    ),
    (
        b"POST http://u@[::1]:8080/%73se?id=%C3%A9&lastEventId=3 HTTP/1.1\r\nHost: [::1]\r\n"
        b"Content-Length: 5, 5\r\nExpect: 100-continue\r\nConnection: close, x\r\n\r\n"
    ),
    b"PUT / HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\nOrigin: \xc3\xa9\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nX: \xff\xfe\r\nAuthorization: Bearer a\r\n\r\n",
]
BODIES = [
    b"5\r\nhello\r\n0\r\n\r\n",
    b"A;name=value\r\n0123456789\r\n00\r\nTrailer: x\r\n\r\nGET",
    b"hello",
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b"%", b"?", b"#", b"[", b"@",
    b"chunked", b"Content-Length: 18446744073709551616\r\n", b"Host: a\r\n", b",",
    b"HTTP/1.1", b"HTTP/2.0", b"\xd9\xa1", b"ffffffffffffffff\r\n", b"-1", b"0x1", b";",
]  # fmt: skip


def examine(data):
    """Feed a head and what follows; anything but an HTTPError leaves this."""
    try:
        end = sse_server._find_head_end(bytearray(data), 0)
        if not end:
            return
        request = sse_server._parse_request(data[:end], "127.0.0.1:1")
    except sse_server.HTTPError as error:
        assert 400 <= error.status <= 599 and "\n" not in error.message
        return
    assert request.method and request.version[0] == 1
    for use in (
        lambda: (request.channels, request.last_event_id, request.keep_alive),
        lambda: (request.header("origin"), request.accepts("text/html")),
        lambda: (request.expects_continue, request.parameters),
        lambda: read_body(request, data[end:]),
    ):
        try:
            use()
        except sse_server.HTTPError as error:
            assert 400 <= error.status <= 599 and "\n" not in error.message


def read_body(request, received):
    """The body whole and byte by byte: the same outcome, within the limit."""
    outcomes = []
    for size in (max(1, len(received)), 1):
        try:
            outcomes.append(decode(request, received, size))
        except sse_server.HTTPError as error:
            outcomes.append(error.status)
    assert outcomes[0] == outcomes[1], outcomes


def decode(request, received, size):
    reader, pending = sse_server._BodyReader(request, LIMIT), bytearray()
    for start in range(0, max(1, len(received)), size):
        pending += received[start : start + size]
        while reader.read(pending):
            pass
        assert len(reader.content) <= LIMIT
        if reader.complete:
            return bytes(reader.content), bytes(pending) + received[start + size :]
    return False


def mutate(chance):
    """A request that is nearly right."""
    data = bytearray(chance.choice(HEADS) + chance.choice([b"", *BODIES]))
    for _ in range(chance.randrange(8)):
        start = chance.randrange(len(data) + 1)
        stop = start + chance.randrange(6)
        kind = chance.randrange(4)
        if kind == 0:
            data[start:stop] = b""
        elif kind == 1:
            data[start:start] = chance.choice(PIECES)
        elif kind == 2:
            data[start:stop] = bytes(chance.randrange(256) for _ in range(3))
        else:
            data[start:start] = data[start:stop] * chance.randrange(1, 50)
    return bytes(data)


def main(folder, seconds="30"):
    import atheris

    for name in ("_find_head_end", "_find_fields_end", "_parse_request", "_parse_fields", "_parse_target",
                 "_check_fields"):  # fmt: skip
        setattr(sse_server, name, atheris.instrument_func(getattr(sse_server, name)))
    for name in ("read", "_read_part", "_read_size_line", "_read_content",
                 "_read_chunk_end", "_read_trailers"):  # fmt: skip
        method = atheris.instrument_func(getattr(sse_server._BodyReader, name))
        setattr(sse_server._BodyReader, name, method)
    corpus = pathlib.Path(folder)
    chance = random.Random(1)
    for number in range(50):
        (corpus / f"seed-{number}").write_bytes(mutate(chance))
    words = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=20000", "-timeout=5"]
    atheris.Setup([*words, f"-artifact_prefix={folder}/", folder], examine)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
