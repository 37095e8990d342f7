"""Tests of sse_server, section by section in the order of the module.

    python -m unittest                        all of them
    SSE_TEST_SEED=7 python -m unittest        the random ones, repeated with this seed

The event stream and the chunked body are read by two decoders of their own, written
from the HTML standard and RFC 9112 and never as the inverse of what the module writes.
A random test draws a new seed at each run and shows it when it fails.
"""

from __future__ import annotations

import codecs
import datetime
import enum
import http
import json
import os
import random
import re
import unittest
from typing import NamedTuple
from unittest import mock

import sse_server
from sse_server import EventLog, HTTPError, Request, format_event

SEED = int(os.environ.get("SSE_TEST_SEED") or random.randrange(1_000_000))


def slicings(data, step=1):
    """The ways data may arrive: whole, byte by byte, split in two at each place."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(step, len(data), step):
        yield [data[:i], data[i:]]


# ------------------------------------------------------------------------------------
# 0. The decoders that the tests read with.  (1, the limits, has no tests of its own:
#    each limit is tried at n - 1, n and n + 1 where it says no.)
# ------------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a client's listener is given (HTML standard, 9.2.6)."""

    type: str
    data: str
    last_event_id: str


class Decoder:
    """Interprets an event stream as a browser does (HTML standard, 9.2.5, 9.2.6).

    `feed` it the body's bytes in pieces of any size; it returns the events that they
    complete.  `last_event_id` is what a reconnect would send, `retry` the reconnection
    time in milliseconds or None, `comments` the comments' texts.  A block that its
    blank line has not ended is no event: at the end of the stream it is discarded.
    """

    def __init__(self):
        self.last_event_id = ""
        self.retry = None
        self.comments = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True  # where one byte order mark is dropped
        self._after_cr = False  # a LF that follows belongs to the same line's end
        self._line = ""
        self._id = ""
        self._type = ""
        self._data = []

    def feed(self, piece):
        text = self._utf8.decode(piece)
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        self._after_cr = self._after_cr or text.endswith("\r")
        *lines, self._line = re.split("\r\n|\r|\n", self._line + text)
        events = [self._process(line) for line in lines]
        return [event for event in events if event]

    def _process(self, line):
        if not line:
            return self._dispatch()
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if colon and not field:
            self.comments.append(value)
        elif field == "event":
            self._type = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.retry = int(value)
        return None

    def _dispatch(self):
        self.last_event_id = self._id
        data, self._data = self._data, []
        type, self._type = self._type, ""
        if not data:
            return None
        return Event(type or "message", "\n".join(data), self.last_event_id)


def decode(stream):
    """The events of a whole event stream."""
    return Decoder().feed(stream)


class ChunkDecoder:
    """Takes the framing of a chunked body off (RFC 9112, 7.1), without any lenience.

    `feed` it what came after the head, in pieces of any size; it returns the content
    that they complete.  `chunks` are the chunks so far, `ended` tells that the last
    chunk was seen, `rest` is what came after it.  AssertionError for bad framing.
    """

    def __init__(self):
        self.chunks = []
        self.ended = False
        self.rest = b""

    def feed(self, piece):
        self.rest += piece
        before = len(self.chunks)
        while not self.ended and self._take_chunk():
            pass
        return b"".join(self.chunks[before:])

    def _take_chunk(self):
        line, found, after = self.rest.partition(b"\r\n")
        if not found:
            assert re.fullmatch(rb"[0-9a-fA-F]*\r?", line), f"chunk size {line!r}"
            return False
        assert re.fullmatch(rb"[0-9a-fA-F]+", line), f"chunk size {line!r}"
        size = int(line, 16)
        if len(after) < size + 2:
            return False
        assert after[size : size + 2] == b"\r\n", f"after the chunk: {after[size:]!r}"
        self.rest = after[size + 2 :]
        self.ended = size == 0
        if size:
            self.chunks.append(after[:size])
        return True


def unchunk(body):
    """The chunks of a whole chunked body, which must end with it."""
    decoder = ChunkDecoder()
    decoder.feed(body)
    assert decoder.ended and not decoder.rest, f"no end in {body[-80:]!r}"
    return decoder.chunks


# name: (stream, events as (type, data, last event id), reconnection time)
STREAMS = {
    "byte order mark": (
        b"\xef\xbb\xbfdata:a\n\n\xef\xbb\xbfdata:b\n\ndata:c\n\n",
        [("message", "a", ""), ("message", "c", "")],
        None,
    ),
    "two byte order marks": (
        b"\xef\xbb\xbf\xef\xbb\xbfdata:a\n\ndata:b\n\n",
        [("message", "b", "")],
        None,
    ),
    "byte order mark within": (
        "data:\ufeffa\n\n".encode(),
        [("message", "\ufeffa", "")],
        None,
    ),
    "comments": (
        b"data:a\r:\0\n:\r\ndata:b\n:%b\rdata:c\n:data:d\r\n:%b\ndata:e\n\n"
        % (b"x" * 2000, b"x" * 2000),
        [("message", "a\nb\nc\ne", "")],
        None,
    ),
    "comment between events": (
        b":\n\n: a\n\ndata: b\n\n",
        [("message", "b", "")],
        None,
    ),
    "incomplete at the end": (
        b"retry:1000\ndata:a\n\nid:b\ndata:c\n",
        [("message", "a", "")],
        1000,
    ),
    "incomplete line at the end": (b"data:a\n\ndata:b", [("message", "a", "")], None),
    "data without value": (
        b"data:\n\ndata\ndata\n\ndata:a\n\n",
        [("message", "", ""), ("message", "\n", ""), ("message", "a", "")],
        None,
    ),
    "event": (
        b"event:add\ndata:a\n\ndata:b\n\n",
        [("add", "a", ""), ("message", "b", "")],
        None,
    ),
    "event twice": (b"event:a\nevent:b\ndata\n\n", [("b", "", "")], None),
    "event without value": (b"event: \ndata:a\n\n", [("message", "a", "")], None),
    "event without data": (
        b"event:add\n\ndata:a\n\n",
        [("message", "a", "")],
        None,
    ),
    "names that are nearly data": (
        (
            b"data:\0\ndata:  a\rdata\0:b\ndata:c\r\0data:d\nda-ta:e\rdata_5\n"
            b"Data:f\n data:g\n\xef\xbb\xbfdata:h\ndata:\rdata:i\n\n"
        ),
        [("message", "\0\n a\nc\n\ni", "")],
        None,
    ),
    "retry": (b"retry:3000\ndata:a\n\n", [("message", "a", "")], 3000),
    "retry without blank line": (b": hello\nretry: 1500\n", [], 1500),
    "retry with more than digits": (
        (
            b"retry:3000\nretry:1000x\nretry:-1\nretry:1.5\nretry: \n"
            b"retry:\xd9\xa1\nretry:1_0\nretry:  7\ndata:a\n\n"
        ),
        [("message", "a", "")],
        3000,
    ),
    "retry without value": (b"retry\ndata:a\n\n", [("message", "a", "")], None),
    "unknown fields": (
        b"data:a\n data\ndata\nfoobar:b\njusttext\n:comment\ndata:c\n\n",
        [("message", "a\n\nc", "")],
        None,
    ),
    "leading space": (
        b"data:\ta\rdata: \ndata:  b\ndata: c\n\n",
        [("message", "\ta\n\n b\nc", "")],
        None,
    ),
    "colon in the value": (
        b"data:a:b\ndata: : c\n\n",
        [("message", "a:b\n: c", "")],
        None,
    ),
    "CR, LF and CRLF": (
        b"data:a\r\ndata\ndata:b\rdata:c\r\n\r\ndata:d\r\rdata:e\n\r\n",
        [("message", "a\n\nb\nc", ""), ("message", "d", ""), ("message", "e", "")],
        None,
    ),
    "other line separators": (
        "data:a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
        [("message", "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei", "")],
        None,
    ),
    "NUL": (b"data:\0\n\n\n\n", [("message", "\0", "")], None),
    "UTF-8": (
        "data:é… 漢 \U0001f600\n\n".encode(),
        [("message", "é… 漢 \U0001f600", "")],
        None,
    ),
    "not UTF-8": (
        b"data:a\xffb\xe2\x82c\xed\xa0\x80\n\n",
        [("message", "a\ufffdb\ufffdc\ufffd\ufffd\ufffd", "")],
        None,
    ),
    "id of only NUL": (b"id: \0\ndata:a\n\n", [("message", "a", "")], None),
    "id ending with NUL": (b"id: x\0\ndata:a\n\n", [("message", "a", "")], None),
    "id starting with NUL": (b"id: \0x\ndata:a\n\n", [("message", "a", "")], None),
    "id around NUL": (b"id: x\0y\ndata:a\n\n", [("message", "a", "")], None),
    "id of space and NUL": (b"id:  \0\ndata:a\n\n", [("message", "a", "")], None),
    "id with NUL keeps the last": (
        b"id:1\ndata:a\n\nid:2\0\ndata:b\n\n",
        [("message", "a", "1"), ("message", "b", "1")],
        None,
    ),
    "id in UTF-8": ("id: …\ndata:a\n\n".encode(), [("message", "a", "…")], None),
    "id persists": (
        b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata:c\n\ndata:d\n\n",
        [
            ("message", "a", "1"),
            ("message", "b", "1"),
            ("message", "c", "2"),
            ("message", "d", "2"),
        ],
        None,
    ),
    "id reset by an empty one": (
        b"id: 1\ndata: a\n\nid:\ndata:b\n\ndata:c\n\n",
        [("message", "a", "1"), ("message", "b", ""), ("message", "c", "")],
        None,
    ),
    "id reset by its bare name": (
        b"id: 1\ndata: a\n\nid\ndata:b\n\n",
        [("message", "a", "1"), ("message", "b", "")],
        None,
    ),
    "id without data": (b"id: 1\n\ndata: a\n\n", [("message", "a", "1")], None),
    "blocks without data": (
        b"data:a\ndata: b\n\n:\nother:c\n\nother:d\nData:e\n\ndata\n\ndata:f\n\n",
        [("message", "a\nb", ""), ("message", "", ""), ("message", "f", "")],
        None,
    ),
}


class DecoderTest(unittest.TestCase):
    def test_streams_in_whatever_pieces_they_arrive(self):
        for name, (stream, expected, retry) in STREAMS.items():
            step = 1 if len(stream) < 1000 else 97
            for pieces in slicings(stream, step):
                decoder = Decoder()
                events = [e for piece in pieces for e in decoder.feed(piece)]
                with self.subTest(name):
                    self.assertEqual((events, decoder.retry), (expected, retry), pieces)

    def test_the_last_event_id_is_set_by_the_blank_line(self):
        decoder = Decoder()
        decoder.feed(b"id: 1\n")
        self.assertEqual(decoder.last_event_id, "")
        decoder.feed(b"\n")
        self.assertEqual(decoder.last_event_id, "1")

    def test_comments_are_kept_for_the_tests(self):
        decoder = Decoder()
        decoder.feed(b":\n: hello\ndata: a\n:data: b\n\n")
        self.assertEqual(decoder.comments, ["", "hello", "data: b"])


class ChunkDecoderTest(unittest.TestCase):
    def test_chunks_in_whatever_pieces_they_arrive(self):
        body = b"3\r\nabc\r\n1A\r\n%b\r\n02\r\n\r\n\r\n0\r\n\r\nHTTP/1.1" % (b"x" * 26)
        for pieces in slicings(body):
            decoder = ChunkDecoder()
            content = b"".join(decoder.feed(piece) for piece in pieces)
            self.assertEqual(content, b"abc" + b"x" * 26 + b"\r\n")
            self.assertEqual(decoder.chunks, [b"abc", b"x" * 26, b"\r\n"])
            self.assertTrue(decoder.ended)
            self.assertEqual(decoder.rest, b"HTTP/1.1")

    def test_bad_framing_is_an_assertion_error(self):
        for body in (
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\nabc\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"\r\n0\r\n\r\n",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n0\r\n\r\n",
            b"0\r\nTrailer: 1\r\n\r\n",
        ):
            with self.subTest(body), self.assertRaises(AssertionError):
                unchunk(body)


# ------------------------------------------------------------------------------------
# 2. Errors
# ------------------------------------------------------------------------------------


class HTTPErrorTest(unittest.TestCase):
    def test_statuses_from_200_to_599(self):
        for status in (200, 204, 599):
            self.assertEqual(HTTPError(status).status, status)
        for status in (0, 101, 199, 600):
            with self.assertRaisesRegex(
                ValueError, f"^status is {status}; allowed are 200 to 599$"
            ):
                HTTPError(status)

    def test_the_message_is_the_reason_phrase_unless_given(self):
        for status, message, expected in (
            (404, "", "Not Found"),
            (404, "nothing here", "nothing here"),
            (418, "", ""),
        ):
            error = HTTPError(status, message)
            self.assertEqual(error.message, expected)
            self.assertEqual(str(error), f"{status} {expected}")

    def test_reason_phrases_are_the_standard_ones(self):
        for status in (200, 204, 400, 401, 403, 404, 405, 408, 417, 429, 431):
            self.assertEqual(HTTPError(status).message, http.HTTPStatus(status).phrase)
        for status in (500, 501, 503, 505):
            self.assertEqual(HTTPError(status).message, http.HTTPStatus(status).phrase)
        # RFC 9110 named it anew; Python follows from 3.13 on.
        self.assertEqual(HTTPError(413).message, "Content Too Large")

    def test_every_status_that_the_parser_raises_has_a_reason_phrase(self):
        statuses = {status for _, status, _ in REFUSED_HEADS + REFUSED_BODIES}
        self.assertLessEqual(statuses, set(sse_server.REASONS))

    def test_headers_are_kept_as_pairs(self):
        self.assertEqual(HTTPError(401).headers, ())
        pairs = [("WWW-Authenticate", "Basic"), ("X-Why", "déjà vu")]
        self.assertEqual(HTTPError(401, headers=iter(pairs)).headers, tuple(pairs))

    def test_headers_cannot_end_their_line(self):
        for name, value, character in (
            ("X-A", "b\r\nSet-Cookie: c", "CR"),
            ("X-A", "b\nSet-Cookie: c", "LF"),
            ("X-A\r\nSet-Cookie", "b", "CR"),
            ("X-A", "b\0", "NUL"),
        ):
            with (
                self.subTest(value),
                self.assertRaisesRegex(
                    ValueError, f"^header .* has a {character} at index [0-9]+$"
                ),
            ):
                HTTPError(400, "no", [("X-Fine", "1"), (name, value)])


# ------------------------------------------------------------------------------------
# 3. The event on the wire
# ------------------------------------------------------------------------------------

UTC = datetime.timezone.utc
MOMENT = datetime.datetime(2024, 2, 29, 12, 30, 15, 250, UTC)


class Kind(str, enum.Enum):
    ADDED = "added"


FORMATTED = [
    # Text, in lines
    ({"data": "a"}, b"data: a\n\n"),
    ({"data": ""}, b"data: \n\n"),
    ({"data": " a"}, b"data:  a\n\n"),
    ({"data": "a "}, b"data: a \n\n"),
    ({"data": ":a"}, b"data: :a\n\n"),
    ({"data": "a\nb"}, b"data: a\ndata: b\n\n"),
    ({"data": "a\rb"}, b"data: a\ndata: b\n\n"),
    ({"data": "a\r\nb"}, b"data: a\ndata: b\n\n"),
    ({"data": "a\n\rb"}, b"data: a\ndata: \ndata: b\n\n"),
    ({"data": "a\r\r\nb"}, b"data: a\ndata: \ndata: b\n\n"),
    ({"data": "a\n"}, b"data: a\ndata: \n\n"),
    ({"data": "a\r\n"}, b"data: a\ndata: \n\n"),
    ({"data": "\n"}, b"data: \ndata: \n\n"),
    ({"data": "a\n\nid: b"}, b"data: a\ndata: \ndata: id: b\n\n"),
    # Text that splitlines() would split, and text outside of ASCII
    ({"data": "a\u2028b"}, b"data: a\xe2\x80\xa8b\n\n"),
    ({"data": "a\u2029b"}, b"data: a\xe2\x80\xa9b\n\n"),
    ({"data": "a\x85b"}, b"data: a\xc2\x85b\n\n"),
    ({"data": "a\x0bb\x0cc\x1cd\x1de\x1ef"}, b"data: a\x0bb\x0cc\x1cd\x1de\x1ef\n\n"),
    ({"data": "a\0b"}, b"data: a\0b\n\n"),
    ({"data": "\ufeffa\ufeff"}, b"data: \xef\xbb\xbfa\xef\xbb\xbf\n\n"),
    ({"data": "é漢\U0001f600"}, b"data: \xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80\n\n"),
    # JSON
    (
        {"data": {"a": 1, "b": [1.5, True, None]}},
        b'data: {"a":1,"b":[1.5,true,null]}\n\n',
    ),
    ({"data": {"a": "é\n"}}, b'data: {"a":"\xc3\xa9\\n"}\n\n'),
    ({"data": []}, b"data: []\n\n"),
    ({"data": 0}, b"data: 0\n\n"),
    ({"data": False}, b"data: false\n\n"),
    ({"data": ("a", 1)}, b'data: ["a",1]\n\n'),
    ({"data": {1: 2}}, b'data: {"1":2}\n\n'),
    ({"data": MOMENT}, b'data: "2024-02-29T12:30:15.000250+00:00"\n\n'),
    ({"data": [MOMENT.date()]}, b'data: ["2024-02-29"]\n\n'),
    (
        {"data": {"a": {"b": MOMENT.time()}}},
        b'data: {"a":{"b":"12:30:15.000250"}}\n\n',
    ),
    # The other fields, and their order
    ({"event": "add"}, b"event: add\n\n"),
    ({"event": " a: b "}, b"event:  a: b \n\n"),
    ({"event": "é"}, b"event: \xc3\xa9\n\n"),
    ({"event": ""}, b"event: \n\n"),
    ({"id": "7"}, b"id: 7\n\n"),
    ({"id": ""}, b"id: \n\n"),
    ({"id": " 7\t"}, b"id:  7\t\n\n"),
    ({"event": "a\u2028", "id": "b\x85"}, b"id: b\xc2\x85\nevent: a\xe2\x80\xa8\n\n"),
    ({"data": Kind.ADDED}, b"data: added\n\n"),
    ({"event": Kind.ADDED, "id": Kind.ADDED}, b"id: added\nevent: added\n\n"),
    (
        {"data": "d", "event": "e", "id": "i", "retry": 5, "comment": "c"},
        b": c\nretry: 5\nid: i\nevent: e\ndata: d\n\n",
    ),
    # What counts at once has no blank line after it
    ({"retry": 1}, b"retry: 1\n"),
    ({"retry": 86_400_000}, b"retry: 86400000\n"),
    ({"comment": ""}, b": \n"),
    ({"comment": "a"}, b": a\n"),
    ({"comment": "a\nb\rc\r\nd"}, b": a\n: b\n: c\n: d\n"),
    ({"comment": "a\n\ndata: b"}, b": a\n: \n: data: b\n"),
    ({"comment": "a", "retry": 2}, b": a\nretry: 2\n"),
    ({"comment": "a", "retry": 2, "id": "b"}, b": a\nretry: 2\nid: b\n\n"),
]

REFUSED_EVENTS = [
    ({}, ValueError, "an event needs at least one of its fields or a comment"),
    (
        {"data": None},
        ValueError,
        "an event needs at least one of its fields or a comment",
    ),
    ({"event": "a\n"}, ValueError, "event 'a\\n' has a LF at index 1"),
    ({"event": "\rb"}, ValueError, "event '\\rb' has a CR at index 0"),
    ({"event": "ab\0"}, ValueError, "event 'ab\\x00' has a NUL at index 2"),
    ({"id": "a\r\nb"}, ValueError, "id 'a\\r\\nb' has a CR at index 1"),
    ({"id": "\n"}, ValueError, "id '\\n' has a LF at index 0"),
    ({"id": "\0"}, ValueError, "id '\\x00' has a NUL at index 0"),
    ({"retry": 0}, ValueError, "retry is 0; allowed are integers from 1 (ms)"),
    ({"retry": -1}, ValueError, "retry is -1; allowed are integers from 1 (ms)"),
    ({"retry": 1.5}, ValueError, "retry is 1.5; allowed are integers from 1 (ms)"),
    ({"retry": True}, ValueError, "retry is True; allowed are integers from 1 (ms)"),
    ({"retry": "5"}, ValueError, "retry is '5'; allowed are integers from 1 (ms)"),
    ({"data": b"a"}, TypeError, "bytes cannot be sent as JSON; decode it first"),
    (
        {"data": [bytearray()]},
        TypeError,
        "bytearray cannot be sent as JSON; decode it first",
    ),
    ({"data": {"a": {1}}}, TypeError, "set cannot be sent as JSON"),
    ({"data": object()}, TypeError, "object cannot be sent as JSON"),
    ({"data": 1j}, TypeError, "complex cannot be sent as JSON"),
]


class FormatEventTest(unittest.TestCase):
    def test_the_bytes_of_each_field(self):
        for arguments, expected in FORMATTED:
            with self.subTest(**arguments):
                self.assertEqual(format_event(**arguments), expected)

    def test_what_is_refused_and_why(self):
        for arguments, kind, message in REFUSED_EVENTS:
            with self.subTest(**arguments):
                with self.assertRaises(kind) as caught:
                    format_event(**arguments)
                self.assertEqual(str(caught.exception), message)

    def test_numbers_that_no_browser_parses_are_refused(self):
        for number in (float("nan"), float("inf"), float("-inf")):
            with self.subTest(number), self.assertRaises(ValueError):
                format_event({"a": [number]})

    def test_lone_surrogates_are_refused_with_their_surroundings(self):
        for arguments, message in (
            (
                {"data": "\ud800"},
                r"lone surrogate '\ud800' at index 6 of 'data: \ud800\n\n'",
            ),
            (
                {"data": {"a": "b\udfff"}},
                r"""lone surrogate '\udfff' at index 13 of 'data: {"a":"b\udfff"}\n\n'""",
            ),
            (
                {"event": "\udc80", "data": "a"},
                r"lone surrogate '\udc80' at index 7 of 'event: \udc80\ndata: a\n\n'",
            ),
            (
                {"comment": "x" * 30 + "\ud83d" + "y" * 30},
                rf"lone surrogate '\ud83d' at index 32 of '{'x' * 20}\ud83d{'y' * 19}'",
            ),
        ):
            with self.subTest(message), self.assertRaises(ValueError) as caught:
                format_event(**arguments)
            self.assertEqual(str(caught.exception), message + ": not valid Unicode")
            self.assertIsNone(caught.exception.__cause__)
            self.assertTrue(caught.exception.__suppress_context__)

    def test_only_data_makes_an_event_for_the_client(self):
        self.assertEqual(
            decode(format_event("a", event="b", id="c")), [("b", "a", "c")]
        )
        self.assertEqual(decode(format_event(event="b", id="c", retry=1)), [])
        decoder = Decoder()
        decoder.feed(format_event(id="7") + format_event(retry=9, comment="a"))
        self.assertEqual(
            (decoder.last_event_id, decoder.retry, decoder.comments), ("7", 9, ["a"])
        )

    def test_what_has_no_blank_line_does_not_end_or_change_an_event(self):
        stream = (
            format_event(retry=1) + sse_server.HEARTBEAT + format_event("a", id="1")
        )
        self.assertEqual(decode(stream), [("message", "a", "1")])
        self.assertEqual(
            decode(format_event("a") + sse_server.HEARTBEAT), decode(b"data:a\n\n")
        )

    def test_random_events_come_out_as_they_went_in(self):
        with self.subTest(seed=SEED):
            random_ = random.Random(SEED)
            stream, expected = b"", []
            for _ in range(1500):
                data = random_text(random_, "\r\n\0")
                event = random_text(random_)
                id = random_text(random_)
                comment = random_text(random_, "\r\n\0")
                stream += format_event(data, event=event, id=id, comment=comment)
                normal = re.sub("\r\n?", "\n", data)
                expected.append((event or "message", normal, id))
            self.assertSameEvents(decode(stream), expected)
            decoder = Decoder()
            pieces = random_pieces(random_, stream)
            events = [event for piece in pieces for event in decoder.feed(piece)]
            self.assertSameEvents(events, expected)

    def assertSameEvents(self, events, expected):
        """Like assertEqual, which compares long lists for minutes when they differ."""
        for event, wanted in zip(events, expected):
            self.assertEqual(event, wanted)
        self.assertEqual(len(events), len(expected))

    def test_random_data_comes_out_of_its_json(self):
        with self.subTest(seed=SEED):
            random_ = random.Random(SEED)
            for _ in range(300):
                data = {
                    random_text(random_, "\r\n\0"): [random_text(random_, "\r\n\0"), i]
                    for i in range(random_.randrange(4))
                }
                [event] = decode(format_event(data))
                self.assertEqual(json.loads(event.data), data)
                self.assertNotRegex(event.data, "\n")


def random_text(random_, more=""):
    alphabet = "aab: \t\ufeff\u2028\u2029\x85\x0b\x0cé漢\U0001f600\U0010ffff" + more * 2
    return "".join(random_.choices(alphabet, k=random_.choice((0, 1, 2, 5, 20))))


def random_pieces(random_, data):
    pieces = []
    while data:
        size = random_.choice((1, 2, 3, 10, 1000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


class NamesTest(unittest.TestCase):
    def test_from_1_to_256_bytes_of_utf_8(self):
        for name in ("a", "a" * 255, "a" * 256, "é" * 128, "\U0001f600" * 64, "a b"):
            self.assertEqual(sse_server._check_name("channel", name), name)
        for name, size in (
            ("", 0),
            ("a" * 257, 257),
            ("é" * 128 + "a", 257),
            ("\U0001f600" * 65, 260),
        ):
            with self.assertRaises(ValueError) as caught:
                sse_server._check_name("channel", name)
            self.assertEqual(
                str(caught.exception),
                f"channel has {size} bytes; allowed are 1 to 256 (UTF-8)",
            )

    def test_characters_that_no_name_may_have(self):
        for name, message in (
            ("a\n", "id 'a\\n' has a LF at index 1"),
            ("\r", "id '\\r' has a CR at index 0"),
            ("a\0", "id 'a\\x00' has a NUL at index 1"),
            (
                "\udc80",
                "lone surrogate '\\udc80' at index 0 of '\\udc80': not valid Unicode",
            ),
            *(
                (name, f"id {name!r} has a control character or a space at an end")
                for name in (" ", " a", "a ", "\ta", "a\tb", "a\x01b", "a\x1f", "\x7f")
            ),
        ):
            with self.subTest(name), self.assertRaises(ValueError) as caught:
                sse_server._check_name("id", name)
            self.assertEqual(str(caught.exception), message)


class FramingTest(unittest.TestCase):
    def test_a_chunk_of_each_size_is_read_back(self):
        payloads = [b"x" * size for size in (1, 9, 10, 15, 16, 255, 256, 65536)]
        body = b"".join(map(sse_server._chunk, payloads)) + sse_server.LAST_CHUNK
        self.assertEqual(unchunk(body), payloads)

    def test_a_heartbeat_is_a_comment_without_a_blank_line(self):
        decoder = Decoder()
        self.assertEqual(decoder.feed(b"data: a\n" + sse_server.HEARTBEAT), [])
        self.assertEqual(decoder.feed(b"\n"), [("message", "a", "")])
        self.assertEqual(decoder.comments, [""])


# ------------------------------------------------------------------------------------
# 4. The log
# ------------------------------------------------------------------------------------

EVERYBODY = frozenset([None])


def append_many(log, count, channel=None, body=b"data: a\n\n"):
    return [log.append(body, channel, None) for _ in range(count)]


class EventLogTest(unittest.TestCase):
    def assertHolds(self, log, first, last):
        """The log holds the events of these numbers and no others."""
        count = last + 1 - first
        self.assertEqual((log.base, log.head, len(log)), (first - 1, last, count))
        position, held = log.base, 0
        while position < last:
            batch, end = log.read(position, last)
            self.assertGreater(end, position)
            position = end
            held += len(batch)
        self.assertEqual(held, count)

    def test_a_new_log_is_empty_and_has_an_id_before_the_first_event(self):
        log = EventLog()
        self.assertEqual((len(log), log.base, log.head, log.sent), (0, 0, 0, 0))
        self.assertRegex(log.last_id, r"\A[0-9a-f]{8}-0\Z")
        self.assertEqual(log.find(log.last_id), 0)
        self.assertFalse(log.missed(0, EVERYBODY))
        self.assertEqual(log.read(0, 0), ([], 0))

    def test_each_log_draws_its_own_epoch(self):
        one, other = EventLog(), EventLog()
        append_many(one, 3)
        append_many(other, 3)
        self.assertNotEqual(one.last_id, other.last_id)
        self.assertIsNone(one.find(other.last_id))

    def test_events_are_numbered_from_1_and_named_by_the_epoch(self):
        log = EventLog()
        epoch = log.last_id[:8]
        self.assertEqual(append_many(log, 3), [f"{epoch}-{n}" for n in (1, 2, 3)])
        self.assertEqual(log.last_id, f"{epoch}-3")
        self.assertEqual(log.id_at(2), f"{epoch}-2")
        self.assertEqual([log.find(log.id_at(n)) for n in range(5)], [0, 1, 2, 3, None])

    def test_the_frame_starts_with_the_id_and_decodes_to_the_event(self):
        log = EventLog()
        name = log.append(format_event("a", event="b"), "c", None)
        log.append(format_event("d"), None, "é 7")
        batch, _ = log.read(0, 2)
        self.assertEqual(
            batch[0].frame, b"id: %b\nevent: b\ndata: a\n\n" % name.encode()
        )
        self.assertEqual(batch[1].frame, "id: é 7\ndata: d\n\n".encode())
        self.assertEqual([entry.channel for entry in batch], ["c", None])

    def test_the_publishers_ids_are_found_and_so_are_the_logs_own(self):
        log = EventLog()
        self.assertEqual(log.append(b"data: a\n\n", None, "mine"), "mine")
        self.assertEqual(log.last_id, "mine")
        append_many(log, 1)
        self.assertEqual(log.find("mine"), 1)
        self.assertEqual(log.find(log.id_at(1)), 1)
        self.assertEqual(log.last_id, log.id_at(2))

    def test_an_id_that_looks_like_the_logs_own_is_the_publishers(self):
        log = EventLog()
        log.append(b"data: a\n\n", None, log.id_at(2))
        append_many(log, 1)
        self.assertEqual(log.find(log.id_at(2)), 1)

    def test_ids_that_nothing_is_known_of(self):
        log = EventLog()
        append_many(log, 12)
        epoch = log.last_id[:8]
        other = "0" * 8 if epoch != "0" * 8 else "1" * 8
        for id in (
            "",
            "mine",
            epoch,
            f"{epoch}-",
            f"{epoch}-13",
            f"{epoch}-01",
            f"{epoch}-00",
            f"{epoch}-+1",
            f"{epoch}--1",
            f"{epoch}-1_1",
            f"{epoch}-\u0661",
            f"{epoch}- 1",
            f"{epoch}-1\n",
            f"{epoch}-1x",
            f"{epoch}-" + "9" * 19,
            f"{epoch}-" + "9" * 5000,
            f"x{epoch}-1",
            f"{other}-1",
            f"{epoch[:7]}-1",
            "\udcff",
        ):
            with self.subTest(id):
                self.assertIsNone(log.find(id))

    def test_numbers_of_many_digits_are_still_numbers(self):
        log = EventLog()
        log.head = 10**18
        self.assertEqual(log.find(log.id_at(10**18)), 10**18)
        self.assertIsNone(log.find(log.id_at(10**18 + 1)))

    def test_an_id_that_is_accepted_can_come_back_in_a_header(self):
        characters = [*map(chr, range(0x100)), "\u2028", "\ufeff", "\U0001f600"]
        ids = [id for c in characters for id in (c, f"{c}a", f"a{c}b", f"a{c}")]
        accepted = [id for id in ids if self.is_accepted(id)]
        sendable = [id for id in ids if not re.search("[\0-\x1f\x7f]|^ | $", id)]
        self.assertEqual(accepted, sendable)
        self.assertEqual([id for id in accepted if not self.comes_back(id)], [])

    def is_accepted(self, id):
        try:
            return bool(sse_server._check_name("id", id))
        except ValueError:
            return False

    def comes_back(self, id):
        log = EventLog()
        log.append(b"data: a\n\n", None, id)
        try:
            back = get("Last-Event-ID: " + id).last_event_id
        except HTTPError:
            return False
        return back and log.find(back) == 1

    def test_of_two_events_with_one_id_the_first_is_found(self):
        """So that what lies between them is not skipped."""
        log = EventLog(max_events=1)
        log.append(b"data: a\n\n", None, "twin")
        log.append(b"data: b\n\n", None, "twin")
        self.assertEqual(log.find("twin"), 1)
        log.advance(1)
        self.assertEqual((log.base, log.find("twin")), (1, 1))
        log.append(b"data: c\n\n", None, None)
        log.advance(2)
        self.assertEqual((log.base, log.find("twin")), (2, 2))

    def test_an_id_that_is_not_held_has_its_place_in_the_order(self):
        log = EventLog(max_events=4, id_order=int)
        for id in ("10", "20", None, "30", "40", "50"):
            log.append(b"data: a\n\n", None, id)
        log.advance(6)
        self.assertEqual(log.base, 2)  # 10 and 20 are forgotten
        for id, position, ahead in (
            ("5", None, False),
            ("19", None, False),
            ("20", 2, False),
            ("21", None, False),
            ("30", 4, False),
            ("31", 4, False),
            ("49", 5, False),
            ("50", 6, False),
            ("51", 6, True),
            (log.last_id, 6, False),
            (log.id_at(3), 3, False),
            ("no number", None, False),
            ("", None, False),
        ):
            with self.subTest(id=id):
                self.assertEqual((log.find(id), log.is_ahead(id)), (position, ahead))

    def test_without_an_order_or_an_event_no_id_is_ahead(self):
        for log in (EventLog(), EventLog(id_order=int)):
            self.assertEqual((log.find("1"), log.is_ahead("1")), (None, False))
        log = EventLog()
        log.append(b"data: a\n\n", None, "1")
        self.assertEqual((log.find("2"), log.is_ahead("2")), (None, False))

    def test_the_id_of_the_base_is_the_publishers_or_the_logs_own(self):
        log = EventLog(max_events=0)
        self.assertEqual(log.base_id, log.id_at(0))
        log.append(b"data: a\n\n", None, "mine")
        log.advance(1)
        self.assertEqual((log.base_id, log.find(log.base_id)), ("mine", 1))
        log.append(b"data: a\n\n", None, None)
        log.advance(2)
        self.assertEqual((log.base_id, log.find(log.base_id)), (log.id_at(2), 2))

    def test_a_forgotten_id_is_found_while_nothing_after_it_is_forgotten(self):
        log = EventLog(max_events=1)
        for id in ("a", "b", "c"):
            log.append(b"data: a\n\n", None, id)
        log.advance(3)
        self.assertIsNone(log.find("a"))
        self.assertEqual(log.find("b"), 2)
        self.assertFalse(log.missed(2, EVERYBODY))
        append_many(log, 2)
        log.advance(5)
        self.assertIsNone(log.find("b"))
        self.assertEqual(log.base, 4)

    def test_a_failed_append_changes_nothing(self):
        log = EventLog()
        append_many(log, 1)
        with self.assertRaises(ValueError):
            log.append(b"data: a\n\n", None, "\ud800")
        self.assertHolds(log, 1, 1)
        self.assertEqual(log.last_id, log.id_at(1))

    def test_max_events_are_kept_of_what_was_sent(self):
        for count, first in ((2, 1), (3, 1), (4, 2), (10, 8)):
            with self.subTest(count):
                log = EventLog(max_events=3)
                append_many(log, count)
                log.advance(count)
                self.assertEqual(log.sent, count)
                self.assertHolds(log, first, count)

    def test_the_default_is_1000_events(self):
        log = EventLog()
        append_many(log, 1001)
        self.assertHolds(log, 1, 1001)
        log.advance(1000)
        self.assertHolds(log, 2, 1001)
        log.advance(1001)
        self.assertHolds(log, 2, 1001)

    def test_what_nobody_was_given_is_not_forgotten_for_its_number(self):
        log = EventLog(max_events=3)
        append_many(log, 10)
        self.assertHolds(log, 1, 10)
        log.advance(4)
        self.assertHolds(log, 5, 10)
        log.advance(9)
        self.assertHolds(log, 8, 10)

    def test_a_log_of_no_events_holds_what_is_not_sent_yet(self):
        log = EventLog(max_events=0)
        append_many(log, 2)
        self.assertHolds(log, 1, 2)
        log.advance(1)
        self.assertHolds(log, 2, 2)
        log.advance(2)
        self.assertHolds(log, 3, 2)
        self.assertEqual(log.last_id, log.id_at(2))
        self.assertFalse(log.missed(2, EVERYBODY))
        self.assertTrue(log.missed(1, EVERYBODY))
        append_many(log, 1)
        self.assertHolds(log, 3, 3)

    def test_the_newest_id_is_the_publishers_even_where_no_event_is_held(self):
        log = EventLog(max_events=0)
        log.append(b"data: a\n\n", None, "mine")
        log.advance(1)
        self.assertEqual(log.last_id, "mine")
        self.assertEqual(log.find("mine"), 1)

    def test_max_bytes_counts_the_frames_and_300_for_each(self):
        body = b"data: %b\n\n" % (b"a" * 100)
        cost = len(b"id: 1\n" + body) + 300
        for limit, first in ((3 * cost + 1, 1), (3 * cost, 1), (3 * cost - 1, 2)):
            with self.subTest(limit):
                log = EventLog(max_bytes=limit)
                for id in ("1", "2", "3"):
                    log.append(body, None, id)
                self.assertHolds(log, first, 3)
                # What was forgotten no longer counts.
                log.append(body, None, "4")
                self.assertHolds(log, first + 1, 4)

    def test_the_default_is_16_mib(self):
        log = EventLog()
        body = b"data: %b\n\n" % (b"a" * (2**20 - 300 - len(b"id: 01\ndata: \n\n")))
        for number in range(16):
            log.append(body, None, f"{number:02}")
        self.assertHolds(log, 1, 16)
        log.append(b"data: a\n\n", None, None)
        self.assertHolds(log, 2, 17)

    def test_the_newest_event_is_held_whatever_its_size(self):
        log = EventLog(max_bytes=1)
        for number in (1, 2, 3):
            append_many(log, 1)
            self.assertHolds(log, number, number)

    def test_events_that_nobody_was_given_go_when_bytes_run_out(self):
        log = EventLog(max_bytes=1)
        append_many(log, 5)
        self.assertEqual((log.sent, log.base), (0, 4))
        self.assertTrue(log.missed(log.sent, EVERYBODY))
        batch, last = log.read(log.sent, log.head)
        self.assertEqual(
            ([e.frame[:12] for e in batch], last),
            ([b"id: " + log.last_id[:8].encode()], 5),
        )

    def test_missed_asks_only_for_the_channels_of_the_subscriber(self):
        log = EventLog(max_events=1)
        for channel in ("a", "b", None, "a", "c"):
            append_many(log, 1, channel)
        log.advance(5)
        # Forgotten: 1 and 4 on "a", 2 on "b", 3 on none; held: 5 on "c".
        for channels, position, expected in (
            ({"a"}, 0, True),
            ({"a"}, 3, True),
            ({"a"}, 4, False),
            ({"b"}, 1, True),
            ({"b"}, 2, False),
            ({None}, 2, True),
            ({None}, 3, False),
            ({"c"}, 0, False),
            ({"never"}, 0, False),
            ({"b", "c"}, 1, True),
            ({"b", "c"}, 2, False),
            ({"c"}, 5, False),
            ({"a"}, 9, False),
        ):
            with self.subTest(channels=channels, position=position):
                self.assertIs(log.missed(position, frozenset(channels)), expected)

    def test_of_10000_channels_the_last_loss_is_known(self):
        for count, expected in ((9_999, False), (10_000, False), (10_001, True)):
            log = EventLog(max_events=0)
            for number in range(count):
                log.append(b"", f"channel {number}", None)
            log.advance(count)
            # Beyond, a channel that lost nothing is told that it may have.
            self.assertIs(log.missed(0, frozenset(["never"])), expected)
            self.assertFalse(log.missed(1, frozenset(["never"])))
            self.assertTrue(log.missed(0, frozenset(["channel 0"])))
            self.assertFalse(log.missed(2, frozenset(["channel 1"])))

    def test_a_channel_that_lost_again_is_not_the_first_to_be_mixed_up(self):
        with mock.patch.object(sse_server, "MAX_TRACKED_CHANNELS", 2):
            log = EventLog(max_events=0)
            for channel in ("a", "b", "a", "c"):
                append_many(log, 1, channel)
            log.advance(4)
            self.assertFalse(log.missed(3, frozenset(["a"])))
            self.assertTrue(log.missed(1, frozenset(["b"])))
            self.assertFalse(log.missed(2, frozenset(["b", "never"])))

    def test_read_takes_up_to_1000_events(self):
        for count, expected in ((999, 999), (1000, 1000), (1001, 1000)):
            log = EventLog(max_events=5000)
            append_many(log, count + 7)
            batch, last = log.read(7, log.head)
            self.assertEqual((len(batch), last), (expected, 7 + expected))

    def test_read_takes_up_to_64_kib(self):
        for extra, expected in ((-1, 4), (0, 4), (1, 3)):
            with self.subTest(extra):
                log = EventLog()
                for id in "1234":
                    size = 16 * 1024 + (extra if id == "4" else 0)
                    log.append(b"a" * (size - len("id: 1\n")), None, id)
                batch, last = log.read(0, log.head)
                self.assertEqual((len(batch), last), (expected, expected))

    def test_read_takes_one_event_whatever_its_size(self):
        log = EventLog()
        append_many(log, 2, body=b"a" * 100_000)
        batch, last = log.read(0, 2)
        self.assertEqual((len(batch), last), (1, 1))

    def test_read_goes_from_a_position_to_an_end(self):
        log = EventLog(max_events=8)
        for number in range(1, 11):
            log.append(b"", None, str(number))
        log.advance(10)
        for position, end, expected, last in (
            (5, 8, "678", 8),
            (5, 6, "6", 6),
            (9, 10, ["10"], 10),
            (5, 5, "", 5),
            (10, 10, "", 10),
            (2, 4, "34", 4),
            (0, 4, "34", 4),
            (0, 2, "", 2),
        ):
            with self.subTest(position=position, end=end):
                batch, reached = log.read(position, end)
                self.assertEqual([entry.id for entry in batch], list(expected))
                self.assertEqual(reached, last)


class ModelLog:
    """What EventLog promises, on a plain list of all events that there ever were."""

    def __init__(self, epoch, max_events, max_bytes, tracked):
        self.epoch = epoch
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.tracked = tracked
        self.events = []  # (id, whether it is the publisher's, channel, frame)
        self.numbers = {}  # of the publisher's ids: the first event, while it is held
        self.base = 0
        self.sent = 0

    def append(self, body, channel, id):
        name = f"{self.epoch}-{len(self.events) + 1}" if id is None else id
        frame = f"id: {name}\n".encode() + body
        self.events.append((name, id is not None, channel, frame))
        if id is not None and id not in self.numbers:
            self.numbers[id] = len(self.events)
        while len(self.held) > 1 and self.held_bytes > self.max_bytes:
            self.forget()
        return name

    def advance(self, position):
        self.sent = position
        while len(self.held) > self.max_events and self.base < self.sent:
            self.forget()

    def forget(self):
        self.base += 1
        self.numbers = {i: n for i, n in self.numbers.items() if n > self.base}

    @property
    def held(self):
        return self.events[self.base :]

    @property
    def held_bytes(self):
        return sum(len(frame) + 300 for *_, frame in self.held)

    def find(self, id):
        if id in self.numbers:
            return self.numbers[id]
        if self.base and self.events[self.base - 1][:2] == (id, True):
            return self.base
        for number in range(len(self.events) + 1):
            if id == f"{self.epoch}-{number}":
                return number
        return None

    def missed(self, position, channels):
        lost = {}
        for number, (_, _, channel, _) in enumerate(self.events[: self.base], 1):
            lost[channel] = number
        # The channels beyond the tracked ones are taken for the newest among them.
        untracked = sorted(lost.values(), reverse=True)[self.tracked :]
        floor = untracked[0] if untracked else 0
        return any(max(lost.get(c, 0), floor) > position for c in channels)

    def read(self, position, end, max_bytes, max_events):
        position = max(position, self.base)
        frames = [frame for *_, frame in self.events[position:end]][:max_events]
        while len(frames) > 1 and sum(map(len, frames)) > max_bytes:
            frames.pop()
        return frames, position + len(frames)


class EventLogModelTest(unittest.TestCase):
    BATCH_BYTES = 200
    BATCH_EVENTS = 4
    IDS = ("", "a", "b", "c", "é")
    CHANNELS = (None, "x", "y", "z", "w")

    def test_random_histories_agree_with_a_plain_list(self):
        for seed in range(SEED, SEED + 300):
            with self.subTest(seed=seed):
                self.run_history(random.Random(seed))

    def run_history(self, random_):
        self.random = random_
        tracked = random_.choice((1, 2, 3, 100))
        bounds = random_.choice((0, 1, 2, 5, 20)), random_.choice((1, 700, 2000, 9999))
        limits = {
            "MAX_TRACKED_CHANNELS": tracked,
            "BATCH_BYTES": self.BATCH_BYTES,
            "BATCH_EVENTS": self.BATCH_EVENTS,
        }
        with mock.patch.multiple(sse_server, **limits):
            self.log = EventLog(*bounds)
            self.model = ModelLog(self.log.last_id[:8], *bounds, tracked)
            for _ in range(40):
                random_.choice((self.append, self.append, self.advance))()
                self.compare()

    def append(self):
        id = self.random.choice((None, None, *self.IDS[1:]))
        channel = self.random.choice(self.CHANNELS)
        body = b"data: %b\n\n" % (b"a" * self.random.choice((0, 1, 50, 150, 300)))
        self.assertEqual(
            self.log.append(body, channel, id), self.model.append(body, channel, id)
        )

    def advance(self):
        position = self.random.randint(self.log.sent, self.log.head)
        self.log.advance(position)
        self.model.advance(position)

    def compare(self):
        log, model = self.log, self.model
        self.assertEqual((log.base, log.sent), (model.base, model.sent))
        self.assertEqual((log.head, len(log)), (len(model.events), len(model.held)))
        newest = model.events[-1][0] if model.events else f"{model.epoch}-0"
        self.assertEqual(log.last_id, newest)
        for id in (*self.IDS, f"{model.epoch}-{self.random.randint(0, log.head + 1)}"):
            self.assertEqual(log.find(id), model.find(id), id)
        position = self.random.randint(0, log.head)
        channels = frozenset(self.random.choices(self.CHANNELS, k=2))
        self.assertEqual(
            log.missed(position, channels), model.missed(position, channels)
        )
        self.compare_read(position, self.random.randint(position, log.head))

    def compare_read(self, position, end):
        batch, last = self.log.read(position, end)
        self.assertEqual(
            ([entry.frame for entry in batch], last),
            self.model.read(position, end, self.BATCH_BYTES, self.BATCH_EVENTS),
        )


# ------------------------------------------------------------------------------------
# 5. The request on the wire
# ------------------------------------------------------------------------------------

LIMIT = 24  # of the bodies here, in bytes
NEXT = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"  # pipelined after each request


def receive(pieces, limit=LIMIT):
    """Read one request as a server does: (Request, body, what follows) or None."""
    received = bytearray()
    searched = 0
    reader = None
    complete = False
    for piece in pieces:
        if reader:
            complete = reader.feed(piece)
            continue
        received += piece
        end = sse_server.find_head_end(received, searched)
        searched = len(received)
        if end:
            request = sse_server.parse_request(bytes(received[:end]), "peer")
            reader = sse_server.BodyReader(request, limit)
            complete = reader.feed(received[end:])
    return (request, bytes(reader.body), bytes(reader.rest)) if complete else None


def lines(*texts):
    """A request's head, or a body's trailer section, from its lines."""
    return b"".join(as_bytes(text) + b"\r\n" for text in (*texts, ""))


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def get(*fields, target="/sse", method="GET", version="1.1"):
    """The parsed Request of these header fields (and a Host)."""
    return sse_server.parse_request(
        lines(f"{method} {target} HTTP/{version}", "Host: a", *fields)
    )


HOST = "Host: a"
GET = "GET / HTTP/1.1"
POST = "POST / HTTP/1.1"
LENGTH = "Content-Length: "
CODING = "Transfer-Encoding: "


def shown(text):
    """How an error's text shows what was seen."""
    return ascii(as_bytes(text).decode("latin-1"))


# (bytes of one whole request, attributes of its Request, its body)
ACCEPTED = [
    (
        lines(GET, HOST),
        {
            "method": "GET",
            "target": "/",
            "path": "/",
            "query": "",
            "version": (1, 1),
            "fields": ((b"host", b"a"),),
            "peer": "peer",
            "keep_alive": True,
            "chunked": False,
            "content_length": 0,
            "channels": frozenset([None]),
            "last_event_id": None,
            "parameters": {},
        },
        b"",
    ),
    # Methods and versions
    (lines("get / HTTP/1.1", HOST), {"method": "get"}, b""),
    (
        lines("!#$%&'*+-.^_`|~09AZaz / HTTP/1.1", HOST),
        {"method": "!#$%&'*+-.^_`|~09AZaz"},
        b"",
    ),
    (
        lines("GET / HTTP/1.0"),
        {"version": (1, 0), "keep_alive": False, "fields": ()},
        b"",
    ),
    (lines("GET / HTTP/1.0", HOST), {"version": (1, 0)}, b""),
    (lines("GET / HTTP/1.0", "Connection: keep-alive"), {"keep_alive": False}, b""),
    (lines("GET / HTTP/1.9", HOST), {"version": (1, 9), "keep_alive": True}, b""),
    # Targets
    (
        lines("GET /sse?a=b?c&d=%20 HTTP/1.1", HOST),
        {"path": "/sse", "query": "a=b?c&d=%20", "target": "/sse?a=b?c&d=%20"},
        b"",
    ),
    (lines("GET /sse? HTTP/1.1", HOST), {"path": "/sse", "query": ""}, b""),
    (
        lines("GET /%73%73%65 HTTP/1.1", HOST),
        {"path": "/sse", "target": "/%73%73%65"},
        b"",
    ),
    (
        lines("GET /%41%5A%61%7a%30%39%2D%2e%5F%7e HTTP/1.1", HOST),
        {"path": "/AZaz09-._~"},
        b"",
    ),
    (
        lines("GET /%2F%3f%25%20%00%c3%A9%zz%7%% HTTP/1.1", HOST),
        {"path": "/%2F%3f%25%20%00%c3%A9%zz%7%%"},
        b"",
    ),
    (
        lines("GET /%2573se?%73 HTTP/1.1", HOST),
        {"path": "/%2573se", "query": "%73"},
        b"",
    ),
    (lines("GET //~a/../b HTTP/1.1", HOST), {"path": "//~a/../b"}, b""),
    (lines('GET /"<>[]{}|\\^` HTTP/1.1', HOST), {"path": '/"<>[]{}|\\^`'}, b""),
    (lines("GET http://a/sse?b HTTP/1.1", HOST), {"path": "/sse", "query": "b"}, b""),
    (lines("GET HTTPS://a:443/%73se HTTP/1.1", HOST), {"path": "/sse"}, b""),
    (lines("GET http://a HTTP/1.1", HOST), {"path": "/", "query": ""}, b""),
    (lines("GET http://a?b/c HTTP/1.1", HOST), {"path": "/", "query": "b/c"}, b""),
    (lines("GET http://u:p@[::1]:80/b@c HTTP/1.1", HOST), {"path": "/b@c"}, b""),
    (lines("GET /http://a/b HTTP/1.1", HOST), {"path": "/http://a/b"}, b""),
    (lines("OPTIONS * HTTP/1.1", HOST), {"path": "*", "query": ""}, b""),
    # Fields
    (
        lines(GET, "HOST:\t a \t", "X:", "x-Y: b\tc : d", b"Z: \x80\xff"),
        {
            "fields": (
                (b"host", b"a"),
                (b"x", b""),
                (b"x-y", b"b\tc : d"),
                (b"z", b"\x80\xff"),
            )
        },
        b"",
    ),
    # Hosts
    (lines(GET, "Host:"), {"fields": ((b"host", b""),)}, b""),
    (lines(GET, "Host: [::FfF:1.2.3.4]:80"), {"path": "/"}, b""),
    (lines(GET, "Host: a-B.c_~!$&'()*+,;=%20:"), {"path": "/"}, b""),
    (lines(GET, "Host: a:0080"), {"path": "/"}, b""),
    # Bodies
    (
        lines(POST, HOST, LENGTH + "3") + b"abc",
        {"method": "POST", "content_length": 3, "chunked": False},
        b"abc",
    ),
    (
        lines("POST / HTTP/1.0", LENGTH + "3") + b"\r\na",
        {"content_length": 3},
        b"\r\na",
    ),
    (lines(POST, HOST, LENGTH + "0"), {"content_length": 0}, b""),
    (lines(GET, HOST, LENGTH + "002") + b"ab", {"content_length": 2}, b"ab"),
    (
        lines(GET, HOST, LENGTH + "2 ,\t2", LENGTH + "2") + b"ab",
        {"content_length": 2},
        b"ab",
    ),
    (lines(GET, HOST, LENGTH + "0" * 5000 + "2") + b"ab", {"content_length": 2}, b"ab"),
    (
        lines(GET, HOST, LENGTH + "1", "Expect: 100-Continue") + b"a",
        {"content_length": 1, "expects_continue": True},
        b"a",
    ),
    (lines(GET, HOST, "Expect: ,"), {"expects_continue": False}, b""),
    (lines("GET / HTTP/1.0", "Expect: 100-continue"), {"expects_continue": False}, b""),
    (
        lines(GET, HOST, CODING + "Chunked")
        + b"3\r\nabc\r\n0A\r\n0123456789\r\n00b\r\n"
        + b"x" * 11
        + b"\r\n0\r\n\r\n",
        {"chunked": True, "content_length": 0},
        b"abc0123456789" + b"x" * 11,
    ),
    (
        lines(GET, HOST, "Transfer-Encoding:\tchunked ")
        + b'1;a\r\n\r\r\n2 \t; a="\t;~b" ;\xff\r\n\r\n\r\n000;\r\n\r\n',
        {"chunked": True},
        b"\r\r\n",
    ),
    (
        lines(GET, HOST, CODING + "chunked")
        + b"0000000000000001\r\na\r\n0\r\nContent-Length: 9\r\nX:\r\n\r\n",
        {"chunked": True},
        b"a",
    ),
]

# (bytes of a head, status, message)
REFUSED_HEADS = [
    *(
        (lines(line, HOST), 400, f"malformed request line {shown(line)}")
        for line in (
            "",
            "GET /",
            "GET HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET\t/ HTTP/1.1",
            " GET / HTTP/1.1",
            "GET / a HTTP/1.1",
            "G(T / HTTP/1.1",
            "G,T / HTTP/1.1",
            b"G\xc9T / HTTP/1.1",
            b"GET /\xe9 HTTP/1.1",
            "GET /\x7f HTTP/1.1",
            "GET /\0 HTTP/1.1",
            "GET / HTTP/1",
            "GET / HTTP/1.10",
            "GET / HTTP/11.1",
            "GET / HTTP/1,1",
            "GET / HTTP/1.:",
            "GET / HTTP/:.1",
            "GET / http/1.1",
            "GET / HTTP/1.1\r",
            "GET / HTTP/1.1\nX: a",
            b"\x16\x03\x01\x02",
            "a" * 80,
        )
    ),
    (lines("a" * 81), 400, f"malformed request line '{'a' * 80}'..."),
    (lines("GET / HTTP/0.9", HOST), 505, "HTTP version 0.9; served is 1.x"),
    (lines("GET / HTTP/2.0", HOST), 505, "HTTP version 2.0; served is 1.x"),
    (lines("PRI * HTTP/2.0"), 505, "HTTP version 2.0; served is 1.x"),
    *(
        (
            lines(f"GET {target} HTTP/1.1", HOST),
            400,
            f"malformed request target {shown(target)}",
        )
        for target in (
            "sse",
            "?a",
            "*",
            "a:80",
            "ftp://a/",
            "http:/a",
            "xhttp://a/",
            "http:///a",
            "http://:80/",
            "http://u@/",
            "http://a:b/",
            "http://[a/",
            'http://"@a"/',
            "http://a/#b",
            "http://a#b",
            "http://a#@b/",
            "/#a",
            "/?a#b",
            "a" * 80,
            "http://[/" + "a" * 71,
        )
    ),
    (lines("OPTIONS *a HTTP/1.1", HOST), 400, "malformed request target '*a'"),
    (
        lines(f"GET {'a' * 81} HTTP/1.1", HOST),
        400,
        f"malformed request target '{'a' * 80}'",
    ),
    (
        lines(f"GET http://[/{'a' * 72} HTTP/1.1", HOST),
        400,
        f"malformed request target 'http://[/{'a' * 71}'",
    ),
    (lines("CONNECT a HTTP/1.1"), 501, "CONNECT is for proxies, and this is none"),
    (lines("CONNECT / HTTP/1.1"), 501, "CONNECT is for proxies, and this is none"),
    *(
        (lines(GET, line, HOST), 400, f"malformed header field {shown(line)}")
        for line in (
            "a",
            ": a",
            "Host : a",
            "X\t: a",
            " X: a",
            "\tX: a",
            "X(: a",
            "X\0: a",
            b"\xc9: a",
            "X\r: a",
            "X\n: a",
        )
    ),
    *(
        (
            lines(GET, HOST, line),
            400,
            f"control character in header field {shown(line)}",
        )
        for line in (
            *(f"X: a{chr(code)}b" for code in (*range(9), *range(10, 32), 127)),
            "Host: a\r",
            "X: a\n b",
        )
    ),
    *(
        (head, 400, "a line of the request ends with a bare LF")
        for head in (
            b"\n\n",
            b"\n\r\n",
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        )
    ),
    (lines(GET), 400, "0 Host fields; there must be one"),
    (lines("GET http://a/ HTTP/1.1"), 400, "0 Host fields; there must be one"),
    (lines("GET / HTTP/1.2"), 400, "0 Host fields; there must be one"),
    (lines(GET, HOST, HOST), 400, "2 Host fields; there must be one"),
    (lines("GET / HTTP/1.0", HOST, HOST), 400, "2 Host fields; there must be one"),
    *(
        (lines(line, b"Host: " + host), 400, f"malformed Host {shown(host)}")
        for line in (GET, "GET / HTTP/1.0")
        for host in (
            b"a b",
            b"a/b",
            b"a@b",
            b"a:b",
            b"a:1:2",
            b'a"',
            b"[::1",
            b"[g]",
            b"[]",
            b"[::1]a",
            b"\xe9",
        )
    ),
    # What two recipients could read in two ways
    *(
        (
            lines(POST, HOST, *fields),
            400,
            "Content-Length together with Transfer-Encoding",
        )
        for fields in (
            (LENGTH + "3", CODING + "chunked"),
            (CODING + "identity", LENGTH + "0"),
        )
    ),
    (
        lines("POST / HTTP/1.0", CODING + "chunked"),
        400,
        "Transfer-Encoding on HTTP/1.0",
    ),
    *(
        (lines(POST, HOST, CODING + coding), 501, f"Transfer-Encoding {shown(coding)}")
        for coding in (
            "",
            "gzip",
            "identity",
            "xchunked",
            "chunked;a",
            "gzip, Chunked",
            "chunked, chunked",
        )
    ),
    (
        lines(POST, HOST, CODING + "chunked", CODING + "identity"),
        501,
        "Transfer-Encoding 'chunked, identity'",
    ),
    *(
        (lines(POST, HOST, *fields), 400, "two differing values of Content-Length")
        for fields in (
            (LENGTH + "1", LENGTH + "2"),
            (LENGTH + "1, 2",),
            (LENGTH + "1, 01",),
            (LENGTH + "1,",),
        )
    ),
    *(
        (
            lines(POST, HOST, LENGTH + value),
            400,
            f"malformed Content-Length {shown(value)}",
        )
        for value in ("", "-1", "+1", "1.0", "0x1", "1_0", "1 1", "a", "X1", "\u0661")
    ),
    (lines(POST, HOST, "Expect: a"), 417, "Expect 'a'"),
    (lines("POST / HTTP/1.0", "Expect: a"), 417, "Expect 'a'"),
    (
        lines(POST, HOST, "Expect: B, 100-continue", "Expect: a,"),
        417,
        "Expect '100-continue, a, b'",
    ),
    # Bodies that are known to be too large
    (lines(POST, HOST, LENGTH + "25"), 413, "body of 25 bytes or more; allowed are 24"),
    (
        lines(POST, HOST, LENGTH + "1" * 5000),
        413,
        f"body of {'1' * 19} bytes or more; allowed are 24",
    ),
]

CHUNKED = lines(POST, HOST, CODING + "chunked")

# (bytes of a chunked body, status, message)
REFUSED_BODIES = [
    *(
        (line + b"\r\n", 400, f"malformed chunk size {shown(line)}")
        for line in (
            b"",
            b"-1",
            b"+1",
            b"0x1",
            b"1_0",
            b"g",
            b" 1",
            b"1 ",
            b"1\t",
            b"1 a",
            b"1a;\x00",
            b"1;\x7f",
            b"1\nab",
            b"1\r",
            b"1;\n",
            b"\xd9\xa1",
            b"00000000000000001",
        )
    ),
    (b"2\r\nabc\r\n", 400, "chunk is longer than its size"),
    (b"2\r\nabcd", 400, "chunk is longer than its size"),
    (b"2\r\nab\n0\r\n\r\n", 400, "chunk is longer than its size"),
    (b"2\r\nab0\r\n\r\n", 400, "chunk is longer than its size"),
    (b"2\r\nab\r0\r\n\r\n", 400, "chunk is longer than its size"),
    (b"2\r\na\r\n0\r\n\r\n", 400, "chunk is longer than its size"),
    (b"19\r\n", 413, "body of 25 bytes or more; allowed are 24"),
    (b"1\r\na\r\n18\r\n", 413, "body of 25 bytes or more; allowed are 24"),
    (b"F" * 16 + b"\r\n", 413, f"body of {2**64 - 1} bytes or more; allowed are 24"),
    (b"0\r\na\r\n\r\n", 400, "malformed header field 'a'"),
    (b"0\r\n a: b\r\n\r\n", 400, "malformed header field ' a: b'"),
    (b"0\r\na: b\rc\r\n\r\n", 400, r"control character in header field 'a: b\rc'"),
    (b"0\r\na: b\r\n\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\na: b\n\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\na: b\n\r\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\n\n", 400, "a trailer line ends with a bare LF"),
]


class RequestTest(unittest.TestCase):
    def assertRefused(self, pieces, status, message):
        with self.assertRaises(HTTPError) as caught:
            receive(pieces)
        error = caught.exception
        self.assertEqual((error.status, error.message), (status, message), pieces)

    def test_what_is_accepted_however_it_arrives(self):
        for data, attributes, body in ACCEPTED:
            with self.subTest(data):
                self.assertIsNone(receive([data[:-1]]))
                for pieces in slicings(data + NEXT, 1 if len(data) < 1000 else 97):
                    request, content, rest = receive(pieces)
                    found = {name: getattr(request, name) for name in attributes}
                    self.assertEqual(found, attributes, pieces)
                    self.assertEqual((content, rest), (body, NEXT), pieces)

    def test_what_is_refused_however_it_arrives(self):
        for data, status, message in REFUSED_HEADS:
            with self.subTest(data):
                for pieces in slicings(data + NEXT, 1 if len(data) < 1000 else 97):
                    self.assertRefused(pieces, status, message)

    def test_bodies_that_are_refused_however_they_arrive(self):
        for body, status, message in REFUSED_BODIES:
            with self.subTest(body):
                for pieces in slicings(CHUNKED + body + NEXT):
                    self.assertRefused(pieces, status, message)

    def test_it_is_refused_as_soon_as_it_is_known(self):
        for data, status, message in REFUSED_HEADS:
            with self.subTest(data):
                self.assertRefused([data], status, message)
        for body, status, message in REFUSED_BODIES:
            with self.subTest(body):
                self.assertRefused([CHUNKED, body], status, message)

    def test_pipelined_requests_are_told_apart(self):
        follow = b"".join(data for data, _, _ in ACCEPTED)
        for data, _, body in ACCEPTED:
            request, content, follow = receive([follow])
            self.assertEqual((request, content), receive([data])[:2])
            self.assertEqual(content, body)
        self.assertEqual(follow, b"")

    def test_a_head_of_up_to_16_kib(self):
        for size in (16 * 1024 - 1, 16 * 1024):
            data = lines("GET / HTTP/1.1", HOST, "X: ")
            data = data[:-4] + b"a" * (size - len(data)) + data[-4:]
            for pieces in (
                [data + NEXT],
                [data[i : i + 1] for i in range(size)] + [NEXT],
            ):
                request, _, rest = receive(pieces)
                self.assertEqual((request.path, rest), ("/", NEXT))

    def test_a_head_of_more_than_16_kib_is_refused(self):
        message = "request head is larger than 16384 bytes"
        start = lines("GET / HTTP/1.1", HOST)[:-2] + b"X: "
        ended = start + b"a" * (16 * 1024 - 3 - len(start)) + b"\r\n\r\n"
        endless = start + b"a" * (16 * 1024 + 1 - len(start))
        for data in (ended, endless, b"\n" * 1 + b"a" * 16 * 1024, b"\r" * 16385):
            with self.subTest(data[:50]):
                self.assertEqual(len(data), 16 * 1024 + 1)
                self.assertRefused([data], 431, message)
                self.assertRefused([data[:-1], data[-1:]], 431, message)
                self.assertIsNone(receive([data[:-1]]))

    def test_trailers_of_up_to_16_kib(self):
        for extra in (-1, 0):
            trailers = b"X: " + b"a" * (16 * 1024 - 7 + extra) + b"\r\n\r\n"
            for pieces in ([trailers + NEXT], [trailers[:100], trailers[100:] + NEXT]):
                self.assertEqual(receive([CHUNKED + b"0\r\n", *pieces])[2], NEXT)
        endless = b"X: " + b"a" * (16 * 1024 - 2)
        for pieces in ([endless], [endless[:-1], b"a"]):
            self.assertRefused(
                [CHUNKED + b"0\r\n", *pieces],
                431,
                "request head is larger than 16384 bytes",
            )

    def test_a_chunk_size_line_of_up_to_256_bytes(self):
        for size in (255, 256):
            line = b"1;" + b"a" * (size - 2)
            data = CHUNKED + line + b"\r\nb\r\n0\r\n\r\n"
            for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
                self.assertEqual(receive(pieces)[1], b"b")
        message = "chunk size line is longer than 256 bytes"
        for line in (b"1;" + b"a" * 255 + b"\r\n", b"1;" + b"a" * 256, b"\n" * 258):
            self.assertRefused([CHUNKED + line], 400, message)
            self.assertRefused([CHUNKED + line[:-1], line[-1:]], 400, message)
        self.assertIsNone(receive([CHUNKED + b"1;" + b"a" * 255]))

    def test_bodies_of_up_to_the_limit(self):
        for size in (LIMIT - 1, LIMIT):
            content = b"a" * size
            plain = lines("POST / HTTP/1.1", HOST, f"{LENGTH}{size}") + content
            self.assertEqual(receive([plain])[1], content)
            one = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (size, content)
            self.assertEqual(receive([one])[1], content)
            many = CHUNKED + b"1\r\na\r\n" * size + b"0\r\n\r\n"
            self.assertEqual(receive([many])[1], content)
        many = CHUNKED + b"1\r\na\r\n" * LIMIT
        self.assertIsNone(receive([many]))
        self.assertRefused(
            [many, b"1\r\n"], 413, "body of 25 bytes or more; allowed are 24"
        )

    def test_a_limit_of_0_allows_the_empty_body(self):
        for data in (lines("GET / HTTP/1.1", HOST), CHUNKED + b"0\r\n\r\n"):
            self.assertEqual(receive([data], limit=0)[1], b"")
        with self.assertRaises(HTTPError):
            receive([CHUNKED + b"1\r\n"], limit=0)

    def test_a_length_of_any_number_of_digits(self):
        for digits, expected in (
            ("9" * 19, int("9" * 19)),
            ("1" + "0" * 19, 10**18),
            ("0" * 30 + "7", 7),
            ("0" * 30, 0),
        ):
            request = get(LENGTH + digits, method="POST")
            self.assertEqual(request.content_length, expected)

    def test_a_body_is_not_kept_twice(self):
        request = get(f"{LENGTH}1000", method="POST")
        reader = sse_server.BodyReader(request, 1000)
        for _ in range(999):
            self.assertFalse(reader.feed(b"a"))
            self.assertEqual(reader.rest, b"")
        self.assertTrue(reader.feed(b"ab"))
        self.assertEqual((len(reader.body), reader.rest), (1000, b"b"))

    def test_what_is_fed_after_the_end_is_kept_for_the_next_request(self):
        for data in (lines("GET / HTTP/1.1", HOST), CHUNKED + b"0\r\n\r\n"):
            self.assertEqual(receive([data, b"a", b"b"])[2], b"ab")

    def test_the_peer_is_unknown_unless_given(self):
        self.assertEqual(get().peer, "")
        head = lines("GET / HTTP/1.0")
        self.assertEqual(sse_server.parse_request(head, "[::1]:80").peer, "[::1]:80")

    def test_requests_cannot_be_changed(self):
        request = get()
        for name in ("path", "fields", "peer"):
            with self.assertRaises(AttributeError):
                setattr(request, name, "a")
        with self.assertRaises((AttributeError, TypeError)):
            request.other = "a"
        self.assertEqual({get(), get()}, {request})

    def test_a_header_is_found_by_any_case_and_joined(self):
        request = get("X-A: 1", "x-b: 2", "X-a:", "X-A: 3")
        self.assertEqual(request.header("x-A"), "1, , 3")
        self.assertEqual(request.header("X-B"), "2")
        self.assertIsNone(request.header("X"))
        self.assertIsNone(request.header("X-B:"))

    def test_a_header_is_utf_8_and_what_is_not_is_kept(self):
        request = get("A: é漢\U0001f600", b"B: \xff\xe9")
        self.assertEqual(request.header("a"), "é漢\U0001f600")
        self.assertEqual(request.header("b"), "\udcff\udce9")
        self.assertEqual(
            request.header("b").encode("utf-8", "surrogateescape"), b"\xff\xe9"
        )

    def test_parameters_are_decoded_leniently(self):
        for query, expected in (
            ("", {}),
            ("a=1&b=2&a=3", {"a": ["1", "3"], "b": ["2"]}),
            ("a=&b&=c&&", {"a": [""], "b": [""], "": ["c"]}),
            ("a=b=c&a;b=d", {"a": ["b=c"], "a;b": ["d"]}),
            ("%61=%C3%A9+%2B%26", {"a": ["é +&"]}),
            ("a=%FF%zz%", {"a": ["\ufffd%zz%"]}),
        ):
            with self.subTest(query):
                self.assertEqual(get(target=f"/sse?{query}").parameters, expected)

    def test_the_connection_is_kept_from_http_1_1_on_unless_closed(self):
        for version, fields, expected in (
            ("1.1", [], True),
            ("1.2", [], True),
            ("1.0", [], False),
            ("1.0", ["Connection: keep-alive"], False),
            ("1.1", ["Connection: keep-alive"], True),
            ("1.1", ["Connection: close"], False),
            ("1.1", ["Connection: Keep-Alive,\tCLOSE"], False),
            ("1.1", ["Connection: a", "Connection: close ,b"], False),
            ("1.1", ["Connection: closed"], True),
            ("1.1", ["Connection: close b"], True),
            ("1.1", ["Proxy-Connection: close"], True),
        ):
            with self.subTest(version=version, fields=fields):
                request = get(*fields, version=version)
                self.assertIs(request.keep_alive, expected)

    def test_channels_are_those_of_the_query(self):
        for query, expected in (
            ("", {None}),
            ("?other=a", {None}),
            ("?channel=a", {"a"}),
            ("?channel=a&channel=b&channel=a", {"a", "b"}),
            ("?channel=a,b&x=1", {"a,b"}),
            ("?channel=%C3%A9+b", {"é b"}),
            ("?channel=%FF", {"\ufffd"}),
            ("?channel=" + "a" * 256, {"a" * 256}),
            ("?" + "channel=a&" * 100, {"a"}),
            (
                "?" + "&".join(f"channel={n}" for n in range(100)),
                set(map(str, range(100))),
            ),
        ):
            with self.subTest(query[:60]):
                self.assertEqual(get(target="/sse" + query).channels, expected)

    def test_channels_that_are_refused(self):
        for query, message in (
            ("channel=", "channel has 0 bytes; allowed are 1 to 256 (UTF-8)"),
            ("channel=a&channel", "channel has 0 bytes; allowed are 1 to 256 (UTF-8)"),
            (
                "channel=" + "a" * 257,
                "channel has 257 bytes; allowed are 1 to 256 (UTF-8)",
            ),
            ("channel=a%0Ab", "channel 'a\\nb' has a LF at index 1"),
            ("channel=%00", "channel '\\x00' has a NUL at index 0"),
            ("channel=a&" * 101, "101 channels asked for; allowed are 100"),
        ):
            with self.subTest(query[:60]), self.assertRaises(HTTPError) as caught:
                self.assertFalse(get(target="/sse?" + query).channels)
            self.assertEqual(
                (caught.exception.status, caught.exception.message), (400, message)
            )

    def test_the_last_event_id_is_the_headers_else_the_querys(self):
        header = "Last-Event-ID: a"
        for fields, query, expected in (
            ([], "", None),
            ([], "?other=b", None),
            ([header], "", "a"),
            ([header], "?lastEventId=b&last_event_id=c", "a"),
            (["Last-Event-ID:"], "?lastEventId=b", ""),
            (["Last-Event-ID: é 漢"], "", "é 漢"),
            ([b"Last-Event-ID: \xff"], "", "\udcff"),
            ([], "?lastEventId=b", "b"),
            ([], "?last_event_id=c", "c"),
            ([], "?last_event_id=c&lastEventId=b", "b"),
            ([], "?last_event_id=c&last_event_id=d", "c"),
            ([], "?lastEventId=", ""),
            ([], "?last_event_id=%C3%A9-1", "é-1"),
            ([], "?lasteventid=a&Last-Event-ID=b", None),
        ):
            with self.subTest(fields=fields, query=query):
                request = get(*fields, target="/sse" + query)
                self.assertEqual(request.last_event_id, expected)

    def test_a_media_type_is_accepted_when_it_is_named(self):
        for fields, expected in (
            ([], False),
            (["Accept: */*"], False),
            (["Accept: text/*"], False),
            (["Accept: text/html"], True),
            (["Accept: TEXT/HTML"], True),
            (["Accept: text/html;q=0.9"], True),
            (["Accept: text/html ; q=0.9"], True),
            (["Accept: a/b,text/html,c/d"], True),
            (["Accept: a/b", "Accept: \ttext/html"], True),
            (["Accept: a/b;c=text/html"], False),
            (["Accept: text/html+xml"], False),
            (["X-Accept: text/html"], False),
        ):
            with self.subTest(fields):
                self.assertIs(get(*fields).accepts("text/html"), expected)


class CountingPattern:
    """A regular expression that counts the bytes it is asked to search."""

    def __init__(self, pattern):
        self._pattern = pattern
        self.searched = 0

    def search(self, text, start):
        self.searched += len(text) - start
        return self._pattern.search(text, start)


class ParsingWorkTest(unittest.TestCase):
    """What is fed byte by byte is searched once, and not again for each byte."""

    SIZE = 16 * 1024

    def count(self, data, before=b""):
        pattern = CountingPattern(sse_server._HEAD_END)
        with mock.patch.object(sse_server, "_HEAD_END", pattern):
            try:
                receive([before] + [data[i : i + 1] for i in range(len(data))])
            except HTTPError:
                pass
        return pattern.searched

    def test_heads_of_the_worst_shapes(self):
        for unit in (
            b"a",
            b"\r",
            b"\n\ra",
            b"\r\na",
            b"a:b\r\n",
            b" ",
            b":",
            b"\0",
            b"%",
        ):
            for start in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /"):
                data = start + unit * (self.SIZE // len(unit))
                data = data[: self.SIZE - 4] + b"\r\n\r\n"
                with self.subTest(unit, start=start):
                    # Each new byte, with the two before it that may begin the end.
                    self.assertLessEqual(self.count(data), 3 * len(data))

    def test_trailers_of_the_worst_shapes(self):
        for unit in (b"a", b"\r", b"\n\ra", b"a:b\r\n"):
            data = unit * (self.SIZE // len(unit))
            data = data[: self.SIZE - 4] + b"\r\n\r\n"
            with self.subTest(unit):
                before = CHUNKED + b"0\r\n"
                searched = self.count(data, before) - len(before)
                self.assertLessEqual(searched, 3 * len(data))


class FuzzTest(unittest.TestCase):
    """Whatever arrives is a request, or not one yet, or an HTTPError."""

    FRAGMENTS = (
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"%",
        b"#",
        b"[",
        b"\xff",
        b"\xc3\xa9",
        b"-1",
        b"\r\n\r\n",
        b"0\r\n",
        b"5\r\nabcde\r\n",
        b"FFFFFFFFFFFFFFFF",
        b"http://",
        b"?channel=%FF&channel=",
        b"HTTP/1.1",
        b"Host: a\r\n",
        b"Expect: a\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
    )
    STATUSES = (400, 413, 417, 431, 501, 505)

    def test_mutated_requests(self):
        corpus = [data for data, _, _ in ACCEPTED if len(data) < 1000]
        corpus += [data for data, _, _ in REFUSED_HEADS if len(data) < 1000]
        corpus += [CHUNKED + body for body, _, _ in REFUSED_BODIES]
        for seed in range(SEED, SEED + 4000):
            random_ = random.Random(seed)
            data = bytearray(random_.choice(corpus))
            for _ in range(random_.choice((1, 1, 2, 3, 8))):
                self.mutate(random_, data)
            with self.subTest(seed=seed, data=bytes(data)):
                self.check(random_, bytes(data))

    def test_random_bytes(self):
        for seed in range(SEED, SEED + 1000):
            random_ = random.Random(seed)
            pieces = random_.choices(self.FRAGMENTS, k=random_.randrange(30))
            with self.subTest(seed=seed, pieces=pieces):
                self.check(random_, b"GET / HTTP/1.1\r\n" + b"".join(pieces))
                self.check(random_, b"".join(pieces))

    def mutate(self, random_, data):
        start = random_.randrange(len(data) + 1)
        end = min(len(data), start + random_.choice((0, 0, 1, 1, 2, 10)))
        new = random_.choice((b"", random_.choice(self.FRAGMENTS), data[end:][:20]))
        data[start:end] = new

    def check(self, random_, data):
        whole = self.outcome([data])
        self.assertEqual(self.outcome(random_pieces(random_, data)), whole)

    def outcome(self, pieces):
        try:
            result = receive(pieces)
            if result:
                self.check_request(*result)
            return result
        except HTTPError as error:
            self.assertIn(error.status, self.STATUSES)
            self.assertTrue(error.message.isprintable(), error.message)
            return error.status, error.message

    def check_request(self, request, body, rest):
        self.assertIsInstance(request, Request)
        self.assertTrue(request.path.startswith("/") or request.path == "*")
        self.assertEqual(request.version[0], 1)
        self.assertLessEqual(len(body), LIMIT)
        self.assertEqual(
            len(body) if not request.chunked else 0, request.content_length
        )
        for name, _ in request.fields:
            self.assertIsInstance(request.header(name.decode()), str)
        self.assertIsInstance(request.last_event_id, (str, type(None)))
        self.assertIsInstance(request.keep_alive, bool)
        self.assertIsInstance(request.accepts("text/html"), bool)
        self.assertTrue(request.channels)


if __name__ == "__main__":
    unittest.main()
