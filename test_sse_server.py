"""Tests of sse_server, section by section in the order of the module.

    python -m unittest                        all of them
    SSE_TEST_SEED=7 python -m unittest        the random ones, repeated with this seed
    SSE_TEST_FACTOR=10 python -m unittest     ten times as much of what is random

The event stream and the chunked body are read by two decoders of their own, written
from the HTML standard and RFC 9112 and never as the inverse of what the module writes.
A random test draws a new seed at each run and shows it when it fails.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import codecs
import collections
import contextlib
import copy
import dataclasses
import datetime
import email.utils
import enum
import errno
import functools
import gc
import hashlib
import http
import inspect
import io
import itertools
import json
import logging
import math
import os
import pathlib
import py_compile
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tracemalloc
import types
import unittest
import urllib.parse
import urllib.request
import warnings
import zlib
from typing import NamedTuple
from unittest import mock

import sse_server
from sse_server import EVERYBODY, HTTPError, Request, SSEServer, format_event

try:
    import sqlite3
except ImportError:
    sqlite3 = None

GZIP = zlib.MAX_WBITS | 16  # how zlib's functions are told that it is gzip
SEED = int(os.environ.get("SSE_TEST_SEED") or random.randrange(1_000_000))
_FACTOR = int(os.environ.get("SSE_TEST_FACTOR", "1"))


def setUpModule():
    """Let no collection of garbage look at the modules and tables again."""
    gc.collect()
    gc.freeze()
    unittest.addModuleCleanup(gc.unfreeze)


def folder_of_the_module():
    """A folder that is deleted after the tests."""
    folder = tempfile.mkdtemp()
    unittest.addModuleCleanup(shutil.rmtree, folder)
    return folder


@functools.cache
def compiled():
    """Where programs find the module compiled, which takes longer than all else there.

    It is the working directory of these programs.
    """
    folder = folder_of_the_module()
    unittest.addModuleCleanup(compiled.cache_clear)
    file = os.path.join(folder, "sse_server.pyc")
    py_compile.compile(sse_server.__file__, file, doraise=True)
    return folder


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
    def test_an_answer_without_content_has_no_length_or_that_of_nothing(self):
        """RFC 9110, 8.6 and 15.3.6."""
        for status, length in ((204, None), (205, b"0"), (304, None)):
            response = sse_server._error_response(HTTPError(status, "text"))
            head, _, body = response.render(0, None, "").partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self.assertEqual((fields.get(b"Content-Length"), body), (length, b""))

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
            (599, "", ""),
        ):
            error = HTTPError(status, message)
            self.assertEqual(error.message, expected)
            self.assertEqual(str(error), f"{status} {expected}")

    def test_reason_phrases_are_the_standard_ones(self):
        for status in (200, 204, 400, 401, 403, 404, 405, 408, 417, 421, 429, 431,
                       500, 501, 503, 505):  # fmt: skip
            self.assertEqual(HTTPError(status).message, http.HTTPStatus(status).phrase)
        # RFC 9110 named them anew; Python follows from 3.13 on.
        self.assertEqual(HTTPError(413).message, "Content Too Large")
        self.assertEqual(HTTPError(414).message, "URI Too Long")

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

    def test_headers_that_only_the_server_sets(self):
        for name in ("connection", "Content-Length", "TRANSFER-ENCODING"):
            with self.assertRaisesRegex(
                ValueError, f"^header '{name}' is set by the server alone$"
            ):
                HTTPError(403, "no", [("X-Fine", "1"), (name, "1")])

    def test_what_it_is_made_of(self):
        for status in (403.0, "403"):
            with self.assertRaises(ValueError):
                HTTPError(status)
        with self.assertRaisesRegex(TypeError, "^message is {}; allowed is a str$"):
            HTTPError(403, {})
        error = HTTPError(http.HTTPStatus.FORBIDDEN, "no", [["X-A", "b"]])
        copied = copy.copy(error)  # as for another process
        for found in (error, copied):
            self.assertEqual((found.status, found.message), (403, "no"))
            self.assertEqual(found.headers, (("X-A", "b"),))
            self.assertEqual(str(found), "403 no")


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
    ({"event": "a\u2028", "id": "b\x85"}, b"event: a\xe2\x80\xa8\nid: b\xc2\x85\n\n"),
    ({"data": Kind.ADDED}, b"data: added\n\n"),
    ({"event": Kind.ADDED, "id": Kind.ADDED}, b"event: added\nid: added\n\n"),
    (
        {"data": "d", "event": "e", "id": "i", "retry": 5, "comment": "c"},
        b": c\nretry: 5\nevent: e\ndata: d\nid: i\n\n",
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

NO_JSON = "{} cannot be sent as JSON; convert it first, or see dumps"
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
    ({"data": {"a": {1}}}, TypeError, NO_JSON.format("set")),
    ({"data": object()}, TypeError, NO_JSON.format("object")),
    ({"data": 1j}, TypeError, NO_JSON.format("complex")),
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
                {"data": "y" * 14 + "\ud800" + "z" * 30},
                (
                    "lone surrogate '\\ud800' at index 20 of "
                    rf"'data: {'y' * 14}\ud800{'z' * 19}'"
                ),
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
            format_event(retry=1) + sse_server._HEARTBEAT + format_event("a", id="1")
        )
        self.assertEqual(decode(stream), [("message", "a", "1")])
        self.assertEqual(
            decode(format_event("a") + sse_server._HEARTBEAT), decode(b"data:a\n\n")
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


# (what is no name of an event, an id or a channel; why, with what it was to name)
REFUSED_NAMES = [
    *(
        (name, f"{{}} has {size} bytes; allowed are 1 to 256 (UTF-8)")
        for name, size in (
            ("", 0),
            ("a" * 257, 257),
            ("é" * 128 + "a", 257),
            ("\U0001f600" * 65, 260),
        )
    ),
    ("a\n", "{} 'a\\n' has a LF at index 1"),
    ("\r", "{} '\\r' has a CR at index 0"),
    ("a\0", "{} 'a\\x00' has a NUL at index 1"),
    *(
        (name, f"lone surrogate {name!r} at index 0 of {name!r}: not valid Unicode")
        for name in ("\udc80", "\udcff", "\udcc3")
    ),
    *(
        (name, f"{{}} {name!r} has a control character or a space at an end")
        for name in (" ", " a", "a ", "\ta", "a\tb", "a\x01b", "a\x1f", "\x7f")
    ),
]


def queries_of_refused_names(parameter):
    """(a query whose parameter is no name, why)"""
    for name, message in REFUSED_NAMES:
        value = urllib.parse.quote(name, errors="surrogateescape")
        yield f"{parameter}={value}", message.format(parameter)


class NamesTest(unittest.TestCase):
    def test_from_1_to_256_bytes_of_utf_8(self):
        for name in ("a", "a" * 255, "a" * 256, "é" * 128, "\U0001f600" * 64, "a b"):
            self.assertEqual(sse_server._check_name("channel", name), name)

    def test_what_is_no_name(self):
        for name, message in REFUSED_NAMES:
            with self.subTest(name), self.assertRaises(ValueError) as caught:
                sse_server._check_name("id", name)
            self.assertEqual(str(caught.exception), message.format("id"))


class FramingTest(unittest.TestCase):
    def test_a_chunk_of_each_size_is_read_back(self):
        payloads = [b"x" * size for size in (1, 9, 10, 15, 16, 255, 256, 65536)]
        body = b"".join(map(sse_server._chunk, payloads)) + sse_server._LAST_CHUNK
        self.assertEqual(unchunk(body), payloads)

    def test_a_heartbeat_is_a_comment_without_a_blank_line(self):
        decoder = Decoder()
        self.assertEqual(decoder.feed(b"data: a\n" + sse_server._HEARTBEAT), [])
        self.assertEqual(decoder.feed(b"\n"), [("message", "a", "")])
        self.assertEqual(decoder.comments, [""])


# ------------------------------------------------------------------------------------
# 4. The log
# ------------------------------------------------------------------------------------

NO_CHANNEL = frozenset([None])
EACH_CHANNEL = NO_CHANNEL | {EVERYBODY}  # of a subscriber that asked for none


def new_log(
    max_events=1000, max_bytes=2**24, max_retained=0, max_seconds=None, **options
):
    bounds = sse_server._Bounds(max_events, max_bytes, max_retained, max_seconds)
    return sse_server._EventLog(bounds, **options)


def size_of(log):
    return log.newest - log.base


def id_at(log, number):
    """What the log itself names an event of this number."""
    return f"{log.epoch}-{number}"


def cost_of(frame, *names):
    """What an event is charged: 400 bytes, and its id, channel and name in memory."""
    return len(frame) + 400 + sum(sys.getsizeof(name) for name in names if name)


def append_many(log, count, channel=None, body=b"data: a\n\n"):
    return [log.append(body, channel, None) for _ in range(count)]


class EventLogTest(unittest.TestCase):
    def assertHolds(self, log, first, last):
        """The log holds the events of these numbers and no others."""
        count = last + 1 - first
        self.assertEqual((log.base, log.newest, size_of(log)), (first - 1, last, count))
        position, held = log.base, 0
        while position < last:
            batch, end = log.read(position, last)
            self.assertGreater(end, position)
            position = end
            held += len(batch)
        self.assertEqual(held, count)

    def test_a_new_log_is_empty_and_has_an_id_before_the_first_event(self):
        log = new_log()
        self.assertEqual((size_of(log), log.base, log.newest, log.sent), (0, 0, 0, 0))
        self.assertRegex(log.newest_id, r"\A[0-9a-f]{8}-0\Z")
        self.assertEqual(log.find(log.newest_id), 0)
        self.assertFalse(log.missed(0, NO_CHANNEL))
        self.assertEqual(log.read(0, 0), ([], 0))

    def test_each_log_draws_its_own_epoch(self):
        one, other = new_log(), new_log()
        append_many(one, 3)
        append_many(other, 3)
        self.assertNotEqual(one.newest_id, other.newest_id)
        self.assertIsNone(one.find(other.newest_id))

    def test_events_are_numbered_from_1_and_named_by_the_epoch(self):
        log = new_log()
        epoch = log.newest_id[:8]
        self.assertEqual(append_many(log, 3), [f"{epoch}-{n}" for n in (1, 2, 3)])
        self.assertEqual(log.newest_id, f"{epoch}-3")
        self.assertEqual(id_at(log, 2), f"{epoch}-2")
        self.assertEqual(
            [log.find(id_at(log, n)) for n in range(5)], [0, 1, 2, 3, None]
        )

    def test_the_frame_is_the_event_with_the_id_as_its_last_field(self):
        log = new_log()
        name = log.append(format_event("a", event="b"), "c", None)
        log.append(format_event("d"), None, "é 7")
        batch, _ = log.read(0, 2)
        self.assertEqual(
            batch[0].frame, b"event: b\ndata: a\nid: %b\n\n" % name.encode()
        )
        self.assertEqual(batch[1].frame, "data: d\nid: é 7\n\n".encode())
        self.assertEqual([entry.channel for entry in batch], ["c", None])

    def test_the_publishers_ids_are_found_and_so_are_the_logs_own(self):
        log = new_log()
        self.assertEqual(log.append(b"data: a\n\n", None, "mine"), "mine")
        self.assertEqual(log.newest_id, "mine")
        append_many(log, 1)
        self.assertEqual(log.find("mine"), 1)
        self.assertEqual(log.find(id_at(log, 1)), 1)
        self.assertEqual(log.newest_id, id_at(log, 2))

    def test_an_id_like_the_logs_own_is_refused(self):
        """It would be taken for that of another event, held or to come."""
        log, other = new_log(), new_log()
        append_many(log, 1)
        for number in (0, 1, 2, 10**18):
            id = id_at(log, number)
            with self.subTest(id), self.assertRaises(ValueError) as caught:
                log.append(b"data: a\n\n", None, id)
            text = f"id {id!r} has the form of this server's own ids"
            self.assertEqual(str(caught.exception), text)
        self.assertHolds(log, 1, 1)
        for id in (id_at(log, 2) + "x", id_at(log, "02"), id_at(other, 2)):
            log.append(b"data: a\n\n", None, id)
            self.assertEqual(log.find(id), log.newest)

    def test_ids_that_nothing_is_known_of(self):
        log = new_log()
        append_many(log, 12)
        epoch = log.newest_id[:8]
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
        log = new_log()
        log._newest = log._newest._replace(number=10**18)
        self.assertEqual(log.find(id_at(log, 10**18)), 10**18)
        self.assertIsNone(log.find(id_at(log, 10**18 + 1)))

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
        log = new_log()
        log.append(b"data: a\n\n", None, id)
        try:
            back = get("Last-Event-ID: " + id).last_event_id
        except HTTPError:
            return False
        return back and log.find(back) == 1

    def test_an_id_is_used_once_while_its_event_is_held(self):
        log = new_log(max_events=1)
        log.append(b"data: a\n\n", None, "twin")
        with self.assertRaises(ValueError) as caught:
            log.append(b"data: b\n\n", None, "twin")
        self.assertEqual(
            str(caught.exception), "id 'twin' is that of an event that is held"
        )
        self.assertHolds(log, 1, 1)
        append_many(log, 1)
        log.advance(2)
        self.assertEqual((log.base, log.find("twin")), (1, 1))
        self.assertEqual(log.append(b"data: b\n\n", None, "twin"), "twin")
        self.assertEqual(log.find("twin"), 3)

    def test_ids_that_have_an_order_ascend(self):
        log = new_log()
        log.append(b"data: a\n\n", None, "9", 9)
        for id in ("8", "09"):
            with (
                self.subTest(id),
                self.assertRaisesRegex(ValueError, "does not follow"),
            ):
                log.append(b"data: a\n\n", None, id, int(id))
        self.assertHolds(log, 1, 1)
        log.append(b"data: a\n\n", None, "10", 10)

    def test_an_id_that_is_not_held_has_its_place_in_the_order(self):
        log = new_log(max_events=4)
        for id in ("10", "20", None, "30", "40", "50"):
            log.append(b"data: a\n\n", None, id, id and int(id))
        log.advance(6)
        self.assertEqual(log.base, 2)  # 10 and 20 are forgotten
        for id, position, ahead in (
            ("5", None, False),
            ("19", None, False),
            ("20", 2, False),
            ("21", 2, False),  # nothing after it is forgotten
            ("29", 2, False),
            ("30", 4, False),
            ("030", 4, False),
            ("31", 4, False),
            ("49", 5, False),
            ("50", 6, False),
            ("51", 6, True),
            (log.newest_id, 6, False),
            (id_at(log, 3), 3, False),
        ):
            with self.subTest(id=id):
                key = int(id) if id.isdigit() else None
                found = log.find(id, key), log.is_ahead(key)
                self.assertEqual(found, (position, ahead))
        self.assertEqual((log.find("x", "x"), log.is_ahead("x")), (None, False))

    def test_an_order_is_known_where_nothing_is_held(self):
        log = new_log(max_events=0)
        self.assertTrue(log.is_ahead(1))
        log.append(b"data: a\n\n", None, "7", 7)
        log.advance(1)
        self.assertEqual(
            (size_of(log), log.is_ahead(8), log.is_ahead(7)), (0, True, False)
        )

    def test_a_gap_of_the_publisher_has_an_id_that_other_processes_know(self):
        log = new_log(max_events=2)
        self.assertEqual(
            log.append(b"data: a\n\n", EVERYBODY, kind=sse_server._GAP), id_at(log, 1)
        )
        log.append(b"data: a\n\n", None, "7", 7)
        self.assertEqual(
            log.append(b"data: a\n\n", EVERYBODY, kind=sse_server._GAP), "7"
        )
        self.assertEqual(log.find("7", 7), 2)  # and not 3: it may not have seen the gap
        self.assertEqual(log.find("8", 8), 2)
        log.append(b"data: a\n\n", None, "9", 9)
        append_many(log, 1)
        log.advance(5)
        # The gap is forgotten, and who has seen 7 may have missed it.
        self.assertEqual((log.base, log.find("7"), log.find("7", 7)), (3, None, 2))
        self.assertTrue(log.missed(2, EACH_CHANNEL))
        self.assertEqual(log.find(log.id_at(3)), 3)

    def test_a_forgotten_gap_is_not_the_event_that_has_its_id(self):
        for key in (None, 7):
            log = new_log(max_events=1)
            log.append(b"data: a\n\n", None, "7", key)
            log.append(b"data: a\n\n", EVERYBODY, kind=sse_server._GAP)
            log.append(b"data: a\n\n", None, "8", key and 8)
            log.advance(3)
            position = log.find("7", key)
            missed = position is None or log.missed(position, EACH_CHANNEL)
            self.assertTrue(missed, position)

    def test_a_position_is_not_above_what_was_forgotten(self):
        """An id that is not held, in an order, with events that have none after it."""
        log = new_log(max_events=2)
        log.append(b"data: a\n\n", None, "5", 5)
        append_many(log, 6)
        log.advance(7)
        for id in ("5", "6"):
            self.assertEqual(log.find(id, int(id)), 1)
        self.assertTrue(log.missed(1, NO_CHANNEL))

    def test_without_an_order_no_id_is_ahead(self):
        log = new_log()
        self.assertEqual((log.find("1"), log.is_ahead(None)), (None, False))
        log.append(b"data: a\n\n", None, "1")
        self.assertEqual((log.find("2"), log.is_ahead(None)), (None, False))

    def test_the_id_of_the_base_is_the_publishers_or_the_logs_own(self):
        log = new_log(max_events=0)
        self.assertEqual(log.id_at(log.base), id_at(log, 0))
        log.append(b"data: a\n\n", None, "mine")
        log.advance(1)
        self.assertEqual(
            (log.id_at(log.base), log.find(log.id_at(log.base))), ("mine", 1)
        )
        log.append(b"data: a\n\n", None, None)
        log.advance(2)
        self.assertEqual(
            (log.id_at(log.base), log.find(log.id_at(log.base))), (id_at(log, 2), 2)
        )

    def test_the_id_of_the_base_is_not_one_that_was_given_again(self):
        """A client that is told of a gap resumes there, and not behind the twin."""
        log = new_log(max_events=0)
        log.append(b"data: a\n\n", None, "twin")
        log.advance(1)
        self.assertEqual((log.base, log.id_at(1)), (1, "twin"))
        append_many(log, 1)
        log.append(b"data: a\n\n", None, "twin")
        self.assertEqual((log.base, log.find("twin")), (1, 3))
        self.assertEqual(log.find(log.id_at(1)), 1)

    def test_a_forgotten_id_is_found_while_nothing_after_it_is_forgotten(self):
        log = new_log(max_events=1)
        for id in ("a", "b", "c"):
            log.append(b"data: a\n\n", None, id)
        log.advance(3)
        self.assertIsNone(log.find("a"))
        self.assertEqual(log.find("b"), 2)
        self.assertFalse(log.missed(2, NO_CHANNEL))
        append_many(log, 2)
        log.advance(5)
        self.assertIsNone(log.find("b"))
        self.assertEqual(log.base, 4)

    def test_a_failed_append_changes_nothing(self):
        log = new_log()
        append_many(log, 1)
        with self.assertRaises(ValueError):
            log.append(b"data: a\n\n", None, "\ud800")
        self.assertHolds(log, 1, 1)
        self.assertEqual(log.newest_id, id_at(log, 1))

    def test_max_events_are_kept_of_what_was_sent(self):
        for count, first in ((2, 1), (3, 1), (4, 2), (10, 8)):
            with self.subTest(count):
                log = new_log(max_events=3)
                append_many(log, count)
                log.advance(count)
                self.assertEqual(log.sent, count)
                self.assertHolds(log, first, count)

    def test_the_default_is_1000_events(self):
        log = new_log()
        append_many(log, 1001)
        self.assertHolds(log, 1, 1001)
        log.advance(1000)
        self.assertHolds(log, 2, 1001)
        log.advance(1001)
        self.assertHolds(log, 2, 1001)

    def test_what_nobody_was_given_is_not_forgotten_for_its_number(self):
        log = new_log(max_events=3)
        append_many(log, 10)
        self.assertHolds(log, 1, 10)
        log.advance(4)
        self.assertHolds(log, 5, 10)
        log.advance(9)
        self.assertHolds(log, 8, 10)

    def test_a_log_of_no_events_holds_what_is_not_sent_yet(self):
        log = new_log(max_events=0)
        append_many(log, 2)
        self.assertHolds(log, 1, 2)
        log.advance(1)
        self.assertHolds(log, 2, 2)
        log.advance(2)
        self.assertHolds(log, 3, 2)
        self.assertEqual(log.newest_id, id_at(log, 2))
        self.assertFalse(log.missed(2, NO_CHANNEL))
        self.assertTrue(log.missed(1, NO_CHANNEL))
        append_many(log, 1)
        self.assertHolds(log, 3, 3)

    def test_the_newest_id_is_the_publishers_even_where_no_event_is_held(self):
        log = new_log(max_events=0)
        log.append(b"data: a\n\n", None, "mine")
        log.advance(1)
        self.assertEqual(log.newest_id, "mine")
        self.assertEqual(log.find("mine"), 1)

    def test_max_bytes_counts_the_frames_the_names_and_400_for_each(self):
        body = b"data: %b\n\n" % (b"a" * 100)
        cost = cost_of(b"id: 1\n" + body, "1")
        for limit, first in ((3 * cost + 1, 1), (3 * cost, 1), (3 * cost - 1, 2)):
            with self.subTest(limit):
                log = new_log(max_bytes=limit)
                for id in ("1", "2", "3"):
                    log.append(body, None, id)
                self.assertHolds(log, first, 3)
                # What was forgotten no longer counts.
                log.append(body, None, "4")
                self.assertHolds(log, first + 1, 4)

    def test_max_bytes_is_what_they_take_whatever_their_names(self):
        name = "x" * 251 + "\U0001f600"  # 255 bytes of UTF-8, and 1,084 as a str
        for channel, key, retain in (
            ("", False, ""),
            (name, False, ""),
            ("", True, ""),
            (name, True, ""),
            (name, True, name),
        ):
            with self.subTest(channel=channel[-1:], key=key, retain=retain[-1:]):
                limit = 2**19
                log = new_log(max_events=10_000, max_bytes=limit, max_retained=10_000)
                tracemalloc.start()
                for number in range(1000):
                    id = f"{number:03}{name[3:]}"
                    log.append(
                        b"data: a\n\n",
                        channel and f"{number % 9}{channel[1:]}",
                        id,
                        (id[:3], id + "") if key else None,
                        retain and f"{number:03}{retain[3:]}",
                    )
                if retain:  # so that no retained event is in the history any more
                    for number in range(2000, 3000):
                        log.append(b"data: a\n\n", None, f"~{number}", (f"~{number}",))
                gc.collect()  # Python keeps some tuples that are in use no longer
                used = tracemalloc.get_traced_memory()[0]
                tracemalloc.stop()
                self.assertLess(size_of(log), 1000)
                self.assertLess(used, 1.1 * limit * (2 if retain else 1))

    def test_the_default_is_16_mib(self):
        log = new_log()
        cost = cost_of(b"id: 01\ndata: \n\n", "01")
        body = b"data: %b\n\n" % (b"a" * (2**20 - cost))
        for number in range(16):
            log.append(body, None, f"{number:02}")
        self.assertHolds(log, 1, 16)
        log.append(b"data: a\n\n", None, None)
        self.assertHolds(log, 2, 17)

    def test_the_newest_event_is_held_whatever_its_size(self):
        log = new_log(max_bytes=1)
        for number in (1, 2, 3):
            append_many(log, 1)
            self.assertHolds(log, number, number)

    def test_events_that_nobody_was_given_go_when_bytes_run_out(self):
        log = new_log(max_bytes=1)
        append_many(log, 5)
        self.assertEqual((log.sent, log.base), (0, 4))
        self.assertTrue(log.missed(log.sent, NO_CHANNEL))
        batch, last = log.read(log.sent, log.newest)
        self.assertEqual(
            ([entry.frame for entry in batch], last),
            ([b"data: a\nid: %b\n\n" % log.newest_id.encode()], 5),
        )

    def test_events_that_are_too_old_are_forgotten(self):
        """By whatever asks for them: nothing has to be published."""
        for age, first in ((59, 1), (60, 1), (61, 2)):
            for ask in (
                lambda log: log.advance(2),
                lambda log: log.append(b"data: a\n\n", None),
                lambda log: log.find("1"),
                lambda log: log.before_newest(9, NO_CHANNEL),
            ):
                with self.subTest(age=age):
                    clock = mock.Mock(return_value=1e9)
                    log = new_log(max_seconds=60, clock=clock)
                    log.append(b"data: a\n\n", None, "1")
                    clock.return_value += 1
                    log.append(b"data: a\n\n", None, "2")
                    log.advance(2)
                    clock.return_value += age - 1
                    ask(log)
                    self.assertHolds(log, first, log.newest)
                    self.assertEqual(log.missed(0, NO_CHANNEL), first == 2)
                    self.assertFalse(log.missed(1, NO_CHANNEL))

    def test_all_of_them_may_become_too_old(self):
        clock = mock.Mock(return_value=1e9)
        log = new_log(max_retained=1, max_seconds=60, clock=clock)
        log.append(b"data: a\n\n", None, "1", None, "name")
        log.append(b"data: a\n\n", None, "2")
        log.advance(2)
        clock.return_value += 3600
        self.assertEqual(log.before_newest(9, NO_CHANNEL), 2)
        self.assertHolds(log, 3, 2)
        self.assertEqual((log.find("1"), log.find("2")), (None, 2))
        self.assertEqual(log.newest_id, "2")
        retained = log.snapshot(0, 2, NO_CHANNEL)
        self.assertEqual(retained, ([b"data: a\n\n"], 2))
        log.append(b"data: a\n\n", None, "1")
        self.assertHolds(log, 3, 3)

    def test_what_nobody_was_given_is_not_too_old(self):
        clock = mock.Mock(return_value=1e9)
        log = new_log(max_seconds=60, clock=clock)
        append_many(log, 2)
        clock.return_value += 3600
        log.find("x")
        self.assertHolds(log, 1, 2)
        log.advance(1)
        self.assertHolds(log, 2, 2)

    def test_within_one_step_nothing_becomes_too_old(self):
        """Who has missed nothing is given all that follows."""
        clock = mock.Mock(return_value=1e9)
        log = new_log(max_retained=1, max_seconds=60, clock=clock)
        log.append(b"data: a\n\n", None, None, None, "name")
        append_many(log, 2)
        log.advance(3)
        self.assertFalse(log.missed(0, NO_CHANNEL))
        clock.return_value += 3600
        self.assertTrue(log.retains(NO_CHANNEL))
        self.assertEqual(len(log.snapshot(0, 3, NO_CHANNEL)[0]), 1)
        log.unretain(None, "name")
        self.assertEqual(len(log.read(0, 3)[0]), 3)

    def test_retained_events_have_bytes_of_their_own(self):
        body = b"data: %b\n\n" % (b"a" * 20_000)
        cost = cost_of(b"id: 01234567-1\n" + body, "n1")
        log = new_log(max_events=100, max_bytes=4 * cost + 4, max_retained=100)
        for number in range(8):
            log.append(body, None, None, None, f"n{number}")
        self.assertHolds(log, 5, 8)
        self.assertEqual(set(log._retained), {(None, f"n{n}") for n in (4, 5, 6, 7)})
        append_many(log, 60)  # some 30 kB
        self.assertHolds(log, 7, 68)
        self.assertEqual(len(log._retained), 4)
        self.assertTrue(log.unretain(None, "n7"))
        log.append(body, None, None, None, "n0")
        self.assertEqual(len(log._retained), 4)

    def test_missed_asks_only_for_the_channels_of_the_subscriber(self):
        log = new_log(max_events=1)
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
            log = new_log(max_events=0)
            for number in range(count):
                log.append(b"", f"channel {number}", None)
            log.advance(count)
            # Beyond, a channel that lost nothing is told that it may have.
            self.assertIs(log.missed(0, frozenset(["never"])), expected)
            self.assertFalse(log.missed(1, frozenset(["never"])))
            self.assertTrue(log.missed(0, frozenset(["channel 0"])))
            self.assertFalse(log.missed(2, frozenset(["channel 1"])))

    def test_a_channel_that_lost_again_is_not_the_first_to_be_mixed_up(self):
        with mock.patch.object(sse_server, "_MAX_TRACKED_CHANNELS", 2):
            log = new_log(max_events=0)
            for channel in ("a", "b", "a", "c"):
                append_many(log, 1, channel)
            log.advance(4)
            self.assertFalse(log.missed(3, frozenset(["a"])))
            self.assertTrue(log.missed(1, frozenset(["b"])))
            self.assertFalse(log.missed(2, frozenset(["b", "never"])))

    def test_read_takes_up_to_1000_events(self):
        for count, expected in ((999, 999), (1000, 1000), (1001, 1000)):
            log = new_log(max_events=5000)
            append_many(log, count + 7)
            batch, last = log.read(7, log.newest)
            self.assertEqual((len(batch), last), (expected, 7 + expected))

    def test_read_takes_up_to_64_kib(self):
        for extra, expected in ((-1, 4), (0, 4), (1, 3)):
            with self.subTest(extra):
                log = new_log()
                for id in "1234":
                    size = 16 * 1024 + (extra if id == "4" else 0)
                    log.append(b"a" * (size - len("id: 1\n\n")) + b"\n", None, id)
                batch, last = log.read(0, log.newest)
                self.assertEqual((len(batch), last), (expected, expected))

    def test_read_takes_one_event_whatever_its_size(self):
        log = new_log()
        append_many(log, 2, body=b"a" * 100_000)
        batch, last = log.read(0, 2)
        self.assertEqual((len(batch), last), (1, 1))

    def test_read_goes_from_a_position_to_an_end(self):
        log = new_log(max_events=8)
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

    def test_what_needs_no_lock_may_be_read_while_another_thread_publishes(self):
        log = new_log(max_events=3, max_retained=40)
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)

        def publish():
            for number in range(3_000):
                log.append(b"data: a\n\n", "a", None, None, str(number % 50))
                log.advance(log.newest)

        thread = threading.Thread(target=publish)
        thread.start()
        last = 0
        while thread.is_alive():
            newest = log.newest
            self.assertLessEqual(last, newest)
            self.assertLessEqual(log.base, log.sent)
            self.assertLessEqual(newest, numbers([log.newest_id])[0])
            self.assertTrue(log.retains(frozenset("a")) or not newest)
            log.retains(NO_CHANNEL)  # looks at all of them, and may say so or so
            last = newest
        thread.join()
        self.assertEqual((log.newest, log.retains(NO_CHANNEL)), (3_000, False))


class ModelEvent(NamedTuple):
    number: int
    name: str  # the id that clients see
    id: str | None  # the publisher's; what is no event has that of the one before it
    kind: str
    key: int | None
    channel: str | None
    retain: str | None
    frame: bytes
    time: float

    def is_named(self, id):
        """Whether the publisher gave it this id."""
        return self.id == id and self.kind == "event"

    @property
    def cost(self):
        place = [(self.key, self.number), self.key, self.number]
        names = [self.id, self.channel, self.retain]
        return cost_of(self.frame, *names, *(place if self.key else ()))


class ModelLog:
    """What the log promises, on a plain list of all events that there ever were."""

    def __init__(self, epoch, clock, tracked, **limits):
        self.epoch, self.clock, self.tracked = epoch, clock, tracked
        self.limits = limits
        self.events = []
        self.retained = []  # events, the one that changed last at the end
        self.base = 0
        self.sent = 0

    def refuses(self, id, key):
        self.forget_old()
        own = f"{self.epoch}-"
        return id is not None and (
            (id.startswith(own) and str(self.number_of(id)) == id[len(own) :])
            or any(event.is_named(id) for event in self.held)
            or (key is not None and key <= max(self.keys(), default=0))
        )

    def append(self, body, channel, id=None, key=None, retain=None, kind="event"):
        number = len(self.events) + 1
        if kind != "event" and self.events:
            id = self.events[-1].id
        name = id or f"{self.epoch}-{number}"
        frame = body.removesuffix(b"\n") + f"id: {name}\n\n".encode()
        frame = b"" if kind == "end" else frame
        event = ModelEvent(
            *(number, name, id, kind, key, channel, retain, frame, self.clock())
        )
        self.events.append(event)
        if retain:
            self.unretain(channel, retain)
            self.retained.append(event)
        self.forget_old()
        return name

    def advance(self, position):
        self.sent = position
        self.forget_old()

    def unretain(self, channel, name):
        before = len(self.retained)
        self.retained = [
            event
            for event in self.retained
            if (event.channel, event.retain) != (channel, name)
        ]
        return len(self.retained) < before

    def forget_old(self):
        limits = self.limits
        while len(self.held) > 1 and sum(self.costs(self.held)) > limits["max_bytes"]:
            self.base += 1
        while self.base < self.sent and (
            len(self.held) > limits["max_events"]
            or self.clock() - self.held[0].time > limits["max_seconds"]
        ):
            self.base += 1
        while (
            len(self.retained) > limits["max_retained"]
            or sum(self.costs(e._replace(id=None, key=None) for e in self.retained))
            > limits["max_bytes"]
        ):
            del self.retained[0]

    @property
    def held(self):
        return self.events[self.base :]

    def costs(self, events):
        return [event.cost for event in events]

    def keys(self, upto=None):
        return [e.key for e in self.events[:upto] if e.key is not None]

    def number_of(self, id):
        """The number in an id of the log's own, whether it was given or not."""
        found = re.fullmatch(f"{self.epoch}-([0-9]+)", id)
        return int(found[1]) if found else None

    def find(self, id, key):
        self.forget_old()
        for event in reversed(self.events[max(0, self.base - 1) :]):
            if event.is_named(id):
                return event.number
        number = self.number_of(id)
        if number is not None and number <= len(self.events):
            return number
        # It is known between which two ids it belongs, if the first is known.
        at_base = max(self.keys(self.base), default=math.inf)
        before = [e for e in self.events if e.key and key and e.key <= key]
        if before and (at_base <= key or before[-1].number > self.base):
            return before[-1].number
        return None

    def is_ahead(self, key):
        return key is not None and key > max(self.keys(), default=-1)

    def missed(self, position, channels):
        lost = {}
        for event in self.events[: self.base]:
            lost[event.channel] = event.number
        # The channels beyond the tracked ones are taken for the newest among them.
        untracked = sorted(lost.values(), reverse=True)[self.tracked :]
        floor = untracked[0] if untracked else 0
        return any(max(lost.get(c, 0), floor) > position for c in channels)

    def read(self, position, end):
        position = max(position, self.base)
        frames = self.batch(self.events[position:end])
        return frames, position + len(frames)

    def batch(self, events):
        frames = [event.frame for event in events][: EventLogModelTest.BATCH_EVENTS]
        while len(frames) > 1 and sum(map(len, frames)) > EventLogModelTest.BATCH_BYTES:
            frames.pop()
        return frames

    def before_newest(self, count, channels):
        self.forget_old()
        looked_at = self.held[-EventLogModelTest.REPLAY_SCAN :]
        found = [e.number for e in looked_at if e.frame and e.channel in channels]
        found = found[-count:]
        return min(found, default=len(self.events) + 1) - 1

    def retains(self, channels):
        return any(event.channel in channels for event in self.retained)

    def is_finished(self, channels, position):
        last = {event.channel: event for event in self.events}
        ends = {
            channel: event.number
            for channel, event in last.items()
            if event.kind == "end" and event.number > self.base
        }
        return all(ends.get(channel, math.inf) <= position for channel in channels)

    def follows(self, position, channels):
        held = self.events[max(position, self.base) :]
        return any(event.frame and event.channel in channels for event in held)

    def snapshot(self, after, upto, channels):
        found = [e for e in self.retained if e.channel in channels]
        found = [e for e in found if after < e.number <= upto]
        frames = self.batch(found)
        reached = upto if len(frames) == len(found) else found[len(frames) - 1].number
        return [re.sub(rb"id: .*\n\n\Z", b"\n", frame) for frame in frames], reached


class EventLogModelTest(unittest.TestCase):
    BATCH_BYTES = 200
    BATCH_EVENTS = 4
    REPLAY_SCAN = 6
    CHANNELS = (None, "x", "y", "z", EVERYBODY)
    NAMES = (None, None, "one", "two")  # under which an event is retained

    def test_random_histories_agree_with_a_plain_list(self):
        for seed in range(SEED, SEED + 50 * _FACTOR):
            with self.subTest(seed=seed):
                self.run_history(random.Random(seed))

    def run_history(self, random_):
        self.random = random_
        self.now = 1e9
        self.ordered = random_.random() < 0.5
        tracked = random_.choice((1, 2, 3, 100))
        limits = {
            "max_events": random_.choice((0, 1, 2, 5, 20)),
            "max_bytes": random_.choice((1, 700, 2000, 9999)),
            "max_retained": random_.choice((0, 1, 2, 10)),
            "max_seconds": random_.choice((2, 5, 20)),
            "clock": lambda: self.now,
        }
        patches = {
            "_MAX_TRACKED_CHANNELS": tracked,
            "_BATCH_BYTES": self.BATCH_BYTES,
            "_BATCH_EVENTS": self.BATCH_EVENTS,
            "_MAX_REPLAY_SCAN": self.REPLAY_SCAN,
        }
        acts = [self.append] * 4 + [self.advance] * 2
        acts += [self.say_gap, self.finish, self.unretain, self.let_pass]
        with mock.patch.multiple(sse_server, **patches):
            self.log = new_log(**limits)
            self.model = ModelLog(self.log.newest_id[:8], tracked=tracked, **limits)
            for _ in range(60):
                random_.choice(acts)()
                if random_.random() < 0.6:  # else several things happen in between
                    self.compare()

    def both(self, method, *arguments):
        """Call this of the log and of the model: they agree."""
        found, expected = (
            getattr(of, method)(*arguments) for of in (self.log, self.model)
        )
        self.assertEqual(found, expected, (method, *arguments))
        return found

    def an_id(self):
        """An id that a client or a publisher may know, and its key."""
        newest = len(self.model.events)
        own = f"{self.model.epoch}-{self.random.randint(0, newest + 1)}"
        if self.random.random() < 0.2:
            return own, None
        if not self.ordered:
            return self.random.choice(("a", "b", "c", "é")), None
        key = max(self.model.keys(), default=0) + self.random.randint(-5, 4)
        return str(max(1, key)), max(1, key)

    def append(self):
        id, key = self.an_id() if self.random.random() < 0.5 else (None, None)
        fields = self.random.choice(self.CHANNELS), id, key
        body = b"data: %b\n\n" % (b"a" * self.random.choice((0, 1, 50, 150, 300)))
        if self.model.refuses(id, key):
            with self.assertRaises(ValueError):
                self.log.append(body, *fields)
        else:
            self.both("append", body, *fields, self.random.choice(self.NAMES))

    def say_gap(self):
        self.both("append", b"data: g\n\n", EVERYBODY, None, None, None, "gap")

    def finish(self):
        channel = self.random.choice(self.CHANNELS)
        self.both("append", b"", channel, None, None, None, "end")

    def advance(self):
        self.both("advance", self.random.randint(self.log.sent, self.log.newest))

    def unretain(self):
        self.both("unretain", self.random.choice(self.CHANNELS), "one")

    def let_pass(self):
        self.now += self.random.randint(1, 4)

    def compare(self):
        log, model = self.log, self.model
        self.assertEqual((log.base, log.sent), (model.base, model.sent))
        self.assertEqual(log.newest, len(model.events))
        newest = model.events[-1].name if model.events else f"{model.epoch}-0"
        self.assertEqual(log.newest_id, newest)
        position = self.random.randint(0, log.newest)
        channels = frozenset(self.random.choices(self.CHANNELS, k=2)) | {EVERYBODY}
        end = self.random.randint(position, log.newest)
        self.both("missed", position, channels)
        batch, reached = log.read(position, end)
        frames = [entry.frame for entry in batch]
        self.assertEqual((frames, reached), model.read(position, end))
        self.both("snapshot", position, end, channels)
        self.both("retains", channels)
        self.both("is_finished", self.random.choice((channels, NO_CHANNEL)), position)
        self.both("follows", position, channels)
        id, key = self.an_id()
        self.both("is_ahead", key)
        # Either of these forgets what has become too old.
        asks = ("find", id, key), ("before_newest", self.random.randint(1, 9), channels)
        for ask in self.random.sample(asks, 2):
            self.both(*ask)
        number = self.random.randint(log.base, log.newest)
        self.assertEqual(log.find(log.id_at(number)), number)
        self.compare_who_resumes(channels)

    def compare_who_resumes(self, channels):
        """Who saw an event gets all that follow, or is told: whatever the log is."""
        events = self.model.events
        if not events:
            return
        seen = self.random.choice(events)
        id, key = seen.name, int(seen.name) if self.ordered and seen.id else None
        last = seen.number
        if self.ordered and self.random.random() < 0.5:  # it saw it elsewhere
            key = self.random.randint(1, max(self.model.keys(), default=1))
            id = str(key)
            last = max((e.number for e in events if e.key and e.key <= key), default=0)
        if any(event.is_named(id) for event in events[last:]):
            return  # the publisher gave the id to another event since
        position = self.log.find(id, key)
        if position is None or self.log.missed(position, channels):
            return  # it is told of a gap
        start = max(position, self.log.base)
        owed = [e.number for e in events[last:] if e.frame and e.channel in channels]
        lost = [number for number in owed if number <= start]
        self.assertEqual(lost, [], f"after {id} no gap")


@contextlib.contextmanager
def interrupting(owners, at, interrupt):
    """Within it, call `interrupt` at the instruction of this number of the owners.

    They are functions, and classes with all their methods.  The list that it gives is
    empty when the instruction was reached.
    """
    functions = [
        getattr(function, "fget", function)  # properties, too
        for owner in owners
        for function in (vars(owner).values() if inspect.isclass(owner) else [owner])
    ]
    code = {f.__code__ for f in functions if hasattr(f, "__code__")}
    left = [None] * at

    def trace(frame, event, argument):
        if frame.f_code not in code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left.pop()
            if not left:
                sys.settrace(None)
                interrupt()
        return trace

    # Python 3.12 asks for this before settrace().
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(None)


A = frozenset(["a"])


class InterruptedLogTest(unittest.TestCase):
    """Ctrl-C between any two instructions of the log's methods."""

    BODY = b"data: a\n\n"
    NEW = (BODY, "a", "new", None, "name")  # retained

    def assertWhole(self, log, count=2):
        """What is held can be read to its end, found by its ids, and is bounded."""
        log.advance(log.newest)
        position, ids = log.base, []
        while position < log.newest:
            batch, end = log.read(position, log.newest)
            for number, entry in enumerate(batch, position + 1):
                id = entry.id or id_at(log, number)
                self.assertTrue(entry.frame.endswith(f"\nid: {id}\n\n".encode()))
                self.assertEqual(log.find(id), number)
                ids.append(id)
            position = end
        self.assertLessEqual(size_of(log), count)
        self.assertEqual(len(set(ids)), len(ids))
        # Two may be left, which the next events remove.
        entries = set(log._entries) - {log.base - 1, log.newest + 1}
        self.assertEqual(entries, {log.base, *range(position, log.base, -1)})
        retained, _ = log.snapshot(0, log.newest, A)
        self.assertLessEqual(len(retained), 2)
        return ids

    def log(self, max_events=2):
        log = new_log(max_events, max_bytes=5 * 600, max_retained=2)
        for number in range(4):
            log.append(self.BODY, "a", f"old {number}")
        log.sent = log.newest
        return log

    def each_instruction(self, call, step=5, max_events=2):
        """Logs whose `call` was interrupted, at one instruction each.

        It is one in `step` of them, the first at random, unless _FACTOR asks for more.
        """
        step = max(1, step // _FACTOR)

        def ctrl_c():
            raise KeyboardInterrupt

        for at in range(1 + SEED % step, 10_000, step):
            log = self.log(max_events)
            with (
                contextlib.suppress(KeyboardInterrupt),
                interrupting([sse_server._EventLog], at, ctrl_c) as left,
            ):
                call(log)
            if left:
                break
            with self.subTest(at):
                yield log
        self.assertGreater(at, 100)

    def append_new(self, log):
        log.append(*self.NEW)

    def append_and_advance(self, log):
        """As it is done before the server is started."""
        log.append(*self.NEW)
        log.advance(log.newest)

    def test_at_any_instruction(self):
        for log in self.each_instruction(self.append_new):
            lost = [log.missed(position, A) for position in range(5)]
            self.assertEqual(lost[: log.base], [True] * log.base)
            ids = self.assertWhole(log)
            before = log.newest
            log.append(self.BODY, "a", "next")
            self.assertEqual(self.assertWhole(log), [ids[-1], "next"])
            self.assertEqual(log.newest, before + 1)
            self.assertTrue(log.missed(log.base - 1, A))

    def test_it_is_all_there_or_nothing_is(self):
        for then in (
            lambda log: self.assertTrue(log.retains(A) or log.newest == 4),
            lambda log: log.append(self.BODY, "a"),
            lambda log: log.unretain("a", "other"),
            lambda log: log.unretain("a", "name"),
        ):
            outcomes = set()
            for log in self.each_instruction(self.append_and_advance, step=10):
                exists = log.newest == 5
                forgotten = then(log) is True
                retained = log.snapshot(0, log.newest, A)[0]
                expected = exists and not forgotten
                self.assertEqual(retained, [self.BODY] if expected else [])
                self.assertEqual(log.find("new"), 5 if exists else None)
                outcomes.add(exists)
            self.assertEqual(outcomes, {True, False})

    def test_it_can_be_done_again(self):
        for log in self.each_instruction(self.append_and_advance):
            with contextlib.suppress(ValueError):
                log.append(*self.NEW)
            self.assertEqual(self.assertWhole(log), ["old 3", "new"])
            self.assertEqual(log.find("new"), 5)
            retained = log.snapshot(0, log.newest, A)
            self.assertEqual(retained, ([self.BODY], 5))

    def test_a_gap_is_not_taken_for_the_event_that_was_interrupted(self):
        """The gap has the number that the event would have had, and its id."""

        def publish_again(log):
            log.append(self.BODY, "a", "old 3")

        for log in self.each_instruction(publish_again, max_events=0):
            log.append(self.BODY, EVERYBODY, kind="gap")
            log.advance(log.newest)
            self.assertNotEqual(log.find("old 3"), log.newest)

    def test_what_is_retained_is_counted(self):
        def call(log):
            log.append(self.BODY, "a", None, None, "first")
            log.append(self.BODY, "a", None, None, "name")
            log.unretain("a", "first")

        for log in self.each_instruction(call):
            for name in ("name", "other"):
                log.append(self.BODY, "a", None, None, name)
            self.assertEqual(set(log._retained), {("a", "name"), ("a", "other")})
            costs = [cost for _, cost in log._retained.values()]
            self.assertEqual(log._retained_bytes, sum(costs))

    def test_what_each_channel_has_lost_is_known(self):
        """Also where more channels have lost events than are tracked."""
        channels = ["a", "a", "a", "a", *"cabdcabdca"]

        def publish(log, upto):
            while log.newest < upto:
                log.append(self.BODY, channels[log.newest])
                log.advance(log.newest)

        with mock.patch.object(sse_server, "_MAX_TRACKED_CHANNELS", 2):
            for log in self.each_instruction(lambda log: publish(log, 10), step=10):
                for upto in range(log.newest, len(channels)):
                    publish(log, upto)
                    for number, channel in enumerate(channels[: log.base], 1):
                        self.assertTrue(log.missed(number - 1, frozenset([channel])))


class CallFromWithinTest(unittest.TestCase):
    """A signal's handler or a `__del__` publishes while the log is used."""

    def test_at_any_instruction_of_publish_it_is_refused_or_done(self):
        published = 0
        for at in range(1, 10_000):
            server, done = SSEServer(), []

            def within(server=server, done=done):
                try:
                    done.append(server.publish("within"))
                except RuntimeError as error:
                    self.assertRegex(str(error), r"loop\.add_signal_handler\(\)")

            classes = [sse_server._EventLog, sse_server._Intake]
            with interrupting(classes, at, within) as left:
                server.publish("a")
            if left:
                break
            with self.subTest(at):
                log = inside(server).log
                frames = [entry.frame for entry in log.read(0, log.newest)[0]]
                self.assertEqual(len(frames), 1 + len(done))
                thread = threading.Thread(target=server.publish, args=["free"])
                thread.start()
                thread.join(DEADLINE)
                self.assertEqual(log.newest, len(frames) + 1)
                published += len(done)
        self.assertTrue(0 < published < at - 100, (published, at))

    def test_while_the_log_is_only_read_it_is_refused(self):
        server = SSEServer()
        server.publish("a", event="a", retain=True)
        for call in (server.publish, server.publish_gap, server.forget):
            with (
                self.subTest(call),
                self.assertRaises(RuntimeError) as caught,
                inside(server).intake.lock,
            ):
                call("a")
            self.assertEqual(
                str(caught.exception),
                "a signal's handler or a __del__ has interrupted the event log; publish "
                "from loop.add_signal_handler() or from another thread",
            )
        self.assertTrue(server.forget("a"))
        self.assertEqual(server.stats.published, 1)


@unittest.skipIf(sqlite3 is None, "this Python has no sqlite3")
class LogFileTestCase(unittest.TestCase):
    """Files in a folder of their own; in memory where it can be: no disk to wait for."""

    def setUp(self):
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = tempfile.TemporaryDirectory(dir=memory)
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "events.db")

    def file(self, *bounds, path=None):
        defaults = 1000, 2**24, 1000, None
        bounds += defaults[len(bounds) :]
        file = sse_server._LogFile(path or self.path, sse_server._Bounds(*bounds))
        self.addCleanup(file.close)
        return file

    def rows(self, file, after=0):
        found, has_more = [], True
        while has_more:
            rows, has_more = file.read(after)
            found += rows
            after = found[-1].number if found else after
        return found

    def bodies(self, file, after=0):
        return [row.body.decode() for row in self.rows(file, after)]

    def retained(self, file):
        with contextlib.closing(sqlite3.connect(file.path)) as db:
            columns = "channel, name, body"
            return [*db.execute(f"SELECT {columns} FROM retained ORDER BY number")]

    def other(self):
        """Another program's access to the file."""
        db = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(db.close)
        return db

    def python(self, program, count=1, prefix=()):
        """Run the program in processes of their own, all at once; their output."""
        processes = [
            subprocess.Popen(
                [*prefix, sys.executable, "-c", program, self.path],
                cwd=compiled(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        results = [process.communicate(timeout=DEADLINE) for process in processes]
        self.assertEqual([error for _, error in results], [""] * count)
        return [out for out, _ in results]


class LogFileTest(LogFileTestCase):
    ROWS = (
        ("event", b"data: \xff\0\n\n", None, None, None),
        ("event", b"", "news", "a\u00e9", None),
        ("event", b"data: 1\n\n", EVERYBODY, "\u0661", "message"),
        ("gap", b"event: gap\n\n", EVERYBODY, None, None),
        ("event", b"data: 2\n\n", "news", None, "message"),
        ("event", b"data: 3\n\n", None, None, "message"),
        ("end", b"", "news", None, None),
        ("forget", b"", None, None, "message"),
    )
    RETAINED = (
        (EVERYBODY, "message", b"data: 1\n\n"),
        ("news", "message", b"data: 2\n\n"),
    )

    def test_all_that_is_added_is_read_in_order_by_everybody(self):
        files = [self.file() for _ in range(3)]
        for number, row in enumerate(self.ROWS, 1):
            before = time.time()
            self.assertEqual(files[number % 3].add(*row), number)
            for file in files:
                (read,) = self.rows(file, number - 1)
                self.assertEqual(tuple(read[:-1]), (number, *row))
                self.assertLessEqual(before, read.time)
                self.assertLessEqual(read.time, time.time())
        for file in files:
            self.assertEqual(self.rows(file), self.rows(files[0]))
            self.assertEqual(self.retained(file), [*self.RETAINED])

    def test_after_a_restart_it_goes_on(self):
        file = self.file()
        numbers = [file.add(*row) for row in self.ROWS]
        rows, epoch = self.rows(file), file.epoch
        file.close()
        file = self.file()
        self.assertEqual(self.rows(file), rows)
        self.assertEqual(self.retained(file), [*self.RETAINED])
        self.assertEqual(file.add("event"), numbers[-1] + 1)
        self.assertEqual(file.epoch, epoch)

    def test_an_id_that_is_held_is_refused_and_nothing_is_added(self):
        file, other = self.file(1), self.file(1)
        file.add("event", b"1", None, "a", "name")
        for refusing in (file, other):
            with self.assertRaises(ValueError) as caught:
                refusing.add("event", b"2", None, "a", "name")
            self.assertEqual(
                str(caught.exception), "id 'a' is that of an event that is held"
            )
        for own in (f"{file.epoch}-0", f"{file.epoch}-9"):
            with self.assertRaises(ValueError) as caught:
                other.add("event", b"2", None, own)
            text = f"id {own!r} has the form of this server's own ids"
            self.assertEqual(str(caught.exception), text)
        self.assertEqual(self.bodies(file), ["1"])
        self.assertEqual(self.retained(file), [(None, "name", b"1")])
        with self.trimming(0):
            file.add("event", b"3")
            self.assertEqual(file.add("event", b"4", None, "a"), 3)

    def test_whether_something_was_added_is_told_once(self):
        file, other = self.file(), self.file()
        for adding in (file, other):
            self.assertTrue(file.changed())
            self.assertFalse(file.changed())
            adding.add("event")
        self.assertTrue(file.changed())
        with self.assertRaises(ValueError):
            other.add("event", b"", None, "a")
            other.add("event", b"", None, "a")
        self.assertTrue(file.changed())
        file.read(0)
        self.assertFalse(file.changed())

    def test_it_is_read_in_batches(self):
        file = self.file()
        for size in (3, 3, 3, 9, 1, 1):
            file.add("event", b"a" * size)
        limits = {"_BATCH_BYTES": 6, "_FILE_BATCH_EVENTS": 3}
        with mock.patch.multiple(sse_server, **limits):
            for after, sizes, has_more in (
                (0, [3, 3], True),
                (1, [3, 3], True),
                (2, [3, 9], True),
                (3, [9], True),
                (4, [1, 1], False),
                (6, [], False),
            ):
                rows, more = file.read(after)
                found = [len(row.body) for row in rows], more
                self.assertEqual(found, (sizes, has_more))
            file.add("event")
            self.assertEqual(len(file.read(4)[0]), 3)
            self.assertTrue(file.read(4)[1])

    @contextlib.contextmanager
    def trimming(self, spare, every=1):
        limits = {"_FILE_SPARE_EVENTS": spare, "_FILE_TRIM_EVENTS": every}
        with mock.patch.multiple(sse_server, **limits):
            yield

    def test_the_oldest_are_forgotten_and_the_newest_never(self):
        cost = 400 + len(b"data") + len("c")  # of each
        for bounds, held in (
            ((3, 10**6), 3 + 2),
            ((1, 10**6), 1 + 2),
            ((0, 10**6), 0 + 2),
            ((9, 3 * cost), 3),
            ((9, 3 * cost - 1), 2),
            ((9, 1), 1),
            ((9, 0), 1),
        ):
            with self.subTest(bounds), self.trimming(spare=2):
                file = self.file(*bounds, path=f"{self.path} {bounds}")
                for number in range(1, 10):
                    file.add("event", b"data", "c")
                    numbers = [row.number for row in self.rows(file)]
                    first = max(1, number + 1 - held)
                    self.assertEqual(numbers, [*range(first, number + 1)])
                self.assertEqual(file.read_base(), (first - 1, []))

    def test_what_is_too_old_is_forgotten(self):
        file = self.file(9, 10**6, 9, 60)
        with self.trimming(spare=9), mock.patch("time.time") as clock:
            for clock.return_value in (1000, 1060, 1030, 1100, 1120):
                file.add("event")
            # The third is as old as the first, but it follows one that is not.
            self.assertEqual(
                [row.time for row in self.rows(file)], [1060, 1030, 1100, 1120]
            )
            clock.return_value = 5000
            file.set_bounds()
            self.assertEqual([row.time for row in self.rows(file)], [1120])

    def test_forgetting_waits_for_many_events_but_not_for_large_ones(self):
        file = self.file(2)
        with self.trimming(spare=0, every=5):
            counts = []
            for _ in range(10):
                file.add("event")
                counts.append(len(self.rows(file)))
            self.assertEqual(counts, [1, 2, 3, 4, 2, 3, 4, 5, 6, 2])
            file.add("event", b"a" * (sse_server._BATCH_BYTES + 1))
            self.assertEqual(len(self.rows(file)), 2)

    def test_the_bounds_that_were_set_last_count_for_all(self):
        server, cron = self.file(3), self.file(1)
        with self.trimming(spare=0):
            server.set_bounds()
            for _ in range(5):
                cron.add("event")
            self.assertEqual(len(self.rows(server)), 3)
            self.file(2).set_bounds()
            self.assertEqual(len(self.rows(server)), 2)

    def test_the_newest_of_each_channel_and_name_is_retained(self):
        file = self.file()
        for body, key in (
            (b"1", (None, "a")),
            (b"2", (None, "b")),
            (b"3", ("a", "a")),
            (b"4", (None, "a")),
            (b"5", ("", "a")),
        ):
            file.add("event", body, key[0], None, key[1])
        retained = [
            (None, "b", b"2"),
            ("a", "a", b"3"),
            (None, "a", b"4"),
            ("", "a", b"5"),
        ]
        self.assertEqual(self.retained(file), retained)
        self.assertEqual(file.add("forget", b"", None, None, "a"), 6)
        self.assertEqual(file.add("forget", b"", None, None, "a"), 0)
        self.assertEqual(file.add("forget", b"", "b", None, "b"), 0)
        del retained[2]
        self.assertEqual(self.retained(file), retained)
        self.assertEqual(len(self.rows(file)), 6)

    def test_those_retained_and_unchanged_for_the_longest_are_forgotten(self):
        cost = 400 + len(b"data") + len("c")
        for bounds, held in (
            ((10**6, 3), 3),
            ((10**6, 0), 0),
            ((3 * cost, 9), 3),
            ((3 * cost - 1, 9), 2),
            ((1, 9), 0),
        ):
            with self.subTest(bounds):
                file = self.file(0, *bounds, path=f"{self.path} {bounds}")
                for number in range(10):
                    file.add("event", b"data", "c", None, f"{number % 6}")
                names = [name for _, name, _ in self.retained(file)]
                self.assertEqual(names, ["1", "2", "3"][3 - held :])

    def test_each_file_is_for_its_owner_alone(self):
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        file = self.file()
        file.add("event")
        for suffix in ("", "-wal", "-shm"):
            mode = os.stat(self.path + suffix).st_mode
            self.assertEqual(mode & 0o777, 0o600 if os.name == "posix" else 0o666)

    def test_a_file_that_has_been_closed_is_opened_again(self):
        file = self.file()
        file.close()
        file.add("event")
        file.close()
        file.close()
        self.assertEqual(len(self.rows(file)), 1)
        self.assertTrue(file.changed())
        file.close()
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["events.db"])

    def test_it_is_closed_with_the_last_reference_to_it(self):
        file = self.file(path=self.path)
        epoch = file.epoch
        self._cleanups.pop()
        del file
        self.assertEqual(epoch, "")
        file = sse_server._LogFile(self.path, (9, 9, 9, None))
        file.add("event")
        epoch = file.epoch
        del file
        with mock.patch.object(sse_server, "_boot_id", return_value="another"):
            file = self.file()
            file.open()
        self.assertEqual(file.epoch, epoch)

    # Epochs.

    def test_an_epoch_ends_when_the_machine_was_started_before_all_had_closed(self):
        for closed, same_boot, goes_on in (
            (2, True, True),
            (1, True, True),
            (0, True, True),
            (2, False, True),
            (1, False, False),
            (0, False, False),
        ):
            with self.subTest(closed=closed, same_boot=same_boot):
                path = f"{self.path} {closed} {same_boot}"
                files = [self.file(path=path) for _ in range(2)]
                for file in files:
                    file.add("event")
                for file in files[:closed]:
                    file.close()
                boot = sse_server._boot_id() if same_boot else "another"
                with mock.patch.object(sse_server, "_boot_id", return_value=boot):
                    later = [self.file(path=path) for _ in range(2)]
                    self.assertEqual([file.add("event") for file in later], [3, 4])
                    # Both have the same, whether it is a new one or not.
                    self.assertEqual(later[0].epoch, later[1].epoch)
                self.assertEqual(later[0].epoch == files[0].epoch, goes_on)

    def test_an_epoch_that_was_closed_in_order_goes_on_whatever_was_before(self):
        epochs = []
        for boot, closes in (("a", False), ("b", True), ("c", True), ("d", True)):
            with mock.patch.object(sse_server, "_boot_id", return_value=boot):
                file = self.file()
                file.open()
                epochs.append(file.epoch)
                if closes:
                    file.close()
        self.assertNotEqual(epochs[0], epochs[1])
        self.assertEqual(epochs[1:], [epochs[1]] * 3)

    @unittest.skipUnless(sys.platform == "linux", "only Linux tells the boot")
    def test_the_boot_is_told(self):
        self.assertRegex(sse_server._boot_id(), "^[0-9a-f-]{36}$")
        self.assertEqual(sse_server._boot_id(), sse_server._boot_id())

    def test_where_no_boot_is_told_an_epoch_goes_on(self):
        with mock.patch("builtins.open", side_effect=FileNotFoundError):
            self.assertEqual(sse_server._boot_id(), "")
        with mock.patch.object(sse_server, "_boot_id", return_value=""):
            files = [self.file() for _ in range(2)]
            self.assertEqual([file.add("event") for file in files], [1, 2])
            self.assertEqual(files[0].epoch, files[1].epoch)

    def test_where_no_boot_is_told_each_row_survives_a_crash_of_the_machine(self):
        for boot, level in (("a", 1), ("", 2)):  # NORMAL, FULL
            file = self.file()
            with mock.patch.object(sse_server, "_boot_id", return_value=boot):
                file.open()
            found = file._connections[0].execute("PRAGMA synchronous").fetchone()
            self.assertEqual(found, (level,))
            file.close()

    # One that waits.

    def test_it_is_read_while_another_process_writes(self):
        file = self.file()
        file.add("event", b"1")
        other = self.other()
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE events SET body = 'never'")
        self.assertEqual(self.bodies(file), ["1"])
        self.assertTrue(file.changed())
        other.execute("ROLLBACK")

    def test_a_lock_that_is_held_too_long_is_an_error_and_nothing_is_added(self):
        file = self.file()
        file.add("event", b"1")
        other = self.other()
        other.execute("BEGIN IMMEDIATE")
        with mock.patch.object(sse_server, "_FILE_WAIT_SECONDS", 0.02):
            for add in (file.add, file.add, self.file().add):
                with self.assertRaises(OSError) as caught:
                    add("event", b"2")
                self.assertIn("locked; another program has", str(caught.exception))
        other.execute("ROLLBACK")
        file.add("event", b"3")
        self.assertEqual(self.bodies(file), ["1", "3"])

    def test_it_waits_for_a_lock(self):
        file = self.file()
        file.add("event", b"1")
        other = self.other()
        other.execute("BEGIN IMMEDIATE")

        def end(seconds):
            if other.in_transaction:
                other.execute("ROLLBACK")

        with mock.patch("time.sleep", side_effect=end) as sleep:
            file.add("event", b"2")
        self.assertGreaterEqual(sleep.call_count, 1)
        self.assertEqual(self.bodies(file), ["1", "2"])

    def test_threads_that_wait_for_the_same_lock_fail_together(self):
        file = self.file()
        file.open()
        other = self.other()
        other.execute("BEGIN IMMEDIATE")
        errors = []

        def add():
            try:
                file.add("event")
            except OSError as error:
                errors.append(str(error))

        begun = time.monotonic()
        with mock.patch.object(sse_server, "_FILE_WAIT_SECONDS", 0.05):
            threads = [threading.Thread(target=add) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(errors), 20)
        self.assertLess(time.monotonic() - begun, 20 * 0.05)

    def test_a_call_from_within_is_refused(self):
        file = self.file()

        def now():  # as the handler of a signal might
            with self.assertRaises(RuntimeError) as caught:
                file.add("event", b"within")
            self.assertIn("from within", str(caught.exception))
            return 0.0

        with mock.patch("time.time", side_effect=now):
            file.add("event", b"1")
        file.add("event", b"2")
        self.assertEqual(self.bodies(file), ["1", "2"])

    def test_threads_add_at_once(self):
        file = self.file()
        numbers = []

        def add(thread):
            for count in range(50):
                numbers.append((file.add("event", b"%d %d" % (thread, count)), thread))

        threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(n for n, _ in numbers), [*range(1, 201)])
        owners = dict(numbers)
        for row in self.rows(file):
            self.assertEqual(int(row.body.split()[0]), owners[row.number])

    # One that cannot be used.

    def assertRefused(self, text, *, unchanged=True):
        before = None
        if unchanged:
            with open(self.path, "rb") as opened:
                before = opened.read()
        file = self.file()
        for use in (file.open, file.changed, lambda: file.add("event"), file.read_base):
            with self.assertRaises(OSError) as caught:
                use()
            message = str(caught.exception)
            self.assertTrue(
                message.startswith(f"history file {self.path!r}: "), message
            )
            self.assertIn(text, message)
            self.assertNotIn("\n", message)
        file.close()
        if unchanged:
            with open(self.path, "rb") as opened:
                self.assertEqual(opened.read(), before)

    def write(self, data):
        with open(self.path, "wb") as opened:
            opened.write(data)

    def test_what_is_no_database_is_refused(self):
        for data in (b"x", b"SQLite format 3\0", b"a text\n" * 20, b"\0" * 5000):
            with self.subTest(data[:20]):
                self.write(data)
                self.assertRefused("file is not a database; it belongs to another")

    def test_the_database_of_another_program_is_refused(self):
        other = self.other()
        for statement in (
            "CREATE TABLE events (number INTEGER PRIMARY KEY)",
            "PRAGMA user_version = 1",
            f"PRAGMA application_id = {sse_server._LogFile._APPLICATION + 1}",
        ):
            other.execute(statement)
            with self.subTest(statement):
                self.assertRefused(
                    "not a database of sse_server; it belongs to another"
                )

    def test_an_empty_file_is_a_new_one(self):
        self.write(b"")
        self.assertEqual(self.file().add("event"), 1)

    def test_one_of_a_newer_version_is_refused(self):
        file = self.file()
        file.add("event")
        file.close()
        self.other().execute("PRAGMA user_version = 2")
        self.assertRefused(
            "format is 2, and this version knows 1; use a newer sse_server"
        )

    def whole_file(self):
        file = self.file(20)
        for number in range(60):
            name = f"{number % 7}" if number % 3 == 0 else None
            file.add("event", b"data: %d\n\n" % number, "c", f"id {number}", name)
        found = file.read_base(), self.rows(file), file.epoch
        file.close()
        with open(self.path, "rb") as opened:
            return opened.read(), found

    def test_a_damaged_one_is_refused_or_the_damage_changes_nothing(self):
        whole, (begin, rows, epoch) = self.whole_file()
        refused = 0
        for at in range(100):  # the database's header
            bad = bytearray(whole)
            bad[at] ^= random.Random(SEED + at).randrange(1, 256)
            with self.subTest(at=at, seed=SEED):
                self.write(bad)
                file = self.file(20)
                try:
                    self.assertEqual(file.read_base(), begin)
                    self.assertEqual(self.rows(file), rows)
                    self.assertEqual(file.epoch, epoch)
                    self.assertEqual(file.add("event", b"", None, None, "1"), 61)
                except OSError as error:
                    self.assertIn("; ", str(error))
                    self.assertNotIn("\n", str(error))
                    refused += 1
                    with open(self.path, "rb") as opened:
                        self.assertEqual(opened.read(), bad)
                file.close()
        self.assertGreater(refused, 40)

    def test_a_truncated_one_is_refused(self):
        whole, _ = self.whole_file()
        for size in (1, 99, 100, 101, 4096, 4097, len(whole) - 4096):
            with self.subTest(size):
                self.write(whole[:size])
                self.assertRefused("damaged")

    def test_a_folder_is_refused(self):
        os.mkdir(self.path)
        self.assertRefused("", unchanged=False)

    def test_a_folder_that_does_not_exist_is_named(self):
        self.path = os.path.join(self.path, "events.db")
        self.assertRefused("its folder, which must exist", unchanged=False)

    @unittest.skipUnless(os.name == "posix", "there are no such permissions")
    def test_one_that_may_not_be_written_is_refused(self):
        self.whole_file()
        folder = os.path.dirname(self.path)
        for path, mode in ((folder, 0o555), (self.path, 0o444)):
            program = textwrap.dedent(
                """
                import os, sqlite3, sys, sse_server
                sse_server._boot_id()  # imports what it needs
                if not os.geteuid():
                    os.seteuid(65534)
                try:
                    sse_server._LogFile(sys.argv[1], (9, 9, 9, None)).add("event")
                except OSError as error:
                    print(error)
                """
            )
            os.chmod(folder, 0o777)
            os.chmod(self.path, 0o666)
            os.chmod(path, mode)
            with self.subTest(path):
                (text,) = self.python(program)
                self.assertIn("; let this user write to it and to its folder", text)
        os.chmod(folder, 0o777)

    def test_a_python_without_sqlite3_says_so(self):
        lacking = mock.patch.dict(sys.modules, {"sqlite3": None})
        with lacking, self.assertRaises(ValueError) as caught:
            self.file()
        text = "history_file needs the module sqlite3, which this Python does not have"
        self.assertEqual(str(caught.exception), text)

    @unittest.skipUnless(os.name == "posix", "an open file cannot be deleted")
    def test_a_file_that_is_deleted_or_replaced_while_it_is_in_use_is_refused(self):
        def delete():
            os.unlink(self.path)

        def replace():
            for suffix in ("", "-wal", "-shm"):
                os.unlink(self.path + suffix)
            new = self.file()
            new.add("event", b"new")
            return new

        for change in (delete, replace):
            with self.subTest(change.__name__):
                self.path += "_"
                file = self.file()
                file.add("event", b"old")
                new = change()
                for use in (lambda file=file: file.add("event"), file.changed):
                    once = mock.patch.object(file, "_check_due", 0.0)
                    with once, self.assertRaises(OSError) as caught:
                        use()
                    text = "it was deleted or replaced while it was in use; restart"
                    self.assertIn(text, str(caught.exception))
                file.before_fork()  # which closes it
                file.after_fork()
                with self.assertRaises(OSError) as caught:
                    file.add("event")
                self.assertIn(text, str(caught.exception))
                file.close()
                if new:  # it is not harmed by what used the old one
                    self.assertEqual(new.add("event", b"more"), 2)
                    self.assertEqual(self.bodies(self.file()), ["new", "more"])

    @unittest.skipUnless(os.name == "posix", "an open file cannot be moved")
    def test_a_file_that_is_out_of_reach_for_a_while(self):
        folder, away = os.path.dirname(self.path), os.path.dirname(self.path) + "_"
        file = self.file()
        file.add("event", b"1")
        os.rename(folder, away)
        try:
            with open(folder, "w"):
                pass
            for use in (lambda: file.add("event"), file.changed):
                once = mock.patch.object(file, "_check_due", 0.0)
                with once, self.assertRaises(sse_server._LogFileError) as caught:
                    use()
                self.assertIn("Not a directory; let this user", str(caught.exception))
            os.unlink(folder)
        finally:
            os.rename(away, folder)
        file.add("event", b"2")
        self.assertEqual(self.bodies(file), ["1", "2"])

    def test_a_full_disk_is_an_error_and_nothing_is_added(self):
        file = self.file()
        file.add("event", b"1")
        (pages,) = file._connections[0].execute("PRAGMA page_count").fetchone()
        file._connections[0].execute(f"PRAGMA max_page_count = {pages + 2}")
        with self.assertRaises(OSError) as caught:
            file.add("event", b"a" * 2**16, None, "id", "name")
        self.assertIn("full; make room on its disk", str(caught.exception))
        file.add("event", b"2", None, "id")
        self.assertEqual(self.bodies(file), ["1", "2"])
        self.assertEqual(self.retained(file), [])

    # The WAL.

    def test_the_wal_stays_small_though_somebody_always_reads_and_writes(self):
        file, other = self.file(), self.file()
        limits = {"_FILE_WAL_BYTES": 2**17, "_FILE_CHECKPOINT_SECONDS": 0.01}
        begun_anew = size = number = 0
        with mock.patch.multiple(sse_server, **limits):
            while begun_anew < 3:
                number += 1
                (file, other)[number % 2].add("event", b"a" * 500)
                file.read(number - 1)
                before, size = size, os.stat(self.path + "-wal").st_size
                begun_anew += size < before
                self.assertLess(size, 2**25)
        numbers = [row.number for row in self.rows(file)]
        self.assertEqual(numbers, [*range(1, number + 1)])
        for opened in (file, other):
            opened.close()
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["events.db"])

    def test_it_is_noted_as_closed_though_another_process_writes_at_this_moment(self):
        file, other = self.file(), self.other()
        file.add("event")
        other.execute("BEGIN IMMEDIATE")
        closing = threading.Thread(target=file.close)
        closing.start()
        closing.join(0.05)  # it needs no more if it does not wait
        other.execute("ROLLBACK")
        closing.join()
        (openers,) = other.execute("SELECT openers FROM state").fetchone()
        self.assertEqual(openers, 0)

    def test_nothing_waits_for_a_thread_that_cannot_be_started(self):
        file = self.file()
        limits = {"_FILE_WAL_BYTES": 0, "_FILE_TRIM_EVENTS": 1}
        with mock.patch.multiple(sse_server, **limits):
            with mock.patch("threading.Thread.start", side_effect=RuntimeError):
                self.assertEqual([file.add("event"), file.add("event")], [1, 2])
            file.add("event")
        file.close()

    def test_a_thread_that_cannot_open_the_file_says_nothing(self):
        file, said = self.file(), []
        file.add("event")
        error = sqlite3.OperationalError("unable to open database file")
        with (
            mock.patch.object(threading, "excepthook", said.append),
            mock.patch.multiple(
                sse_server,
                _FILE_WAL_BYTES=0,
                _FILE_TRIM_EVENTS=1,
                _FILE_CHECKPOINT_SECONDS=0.01,
            ),
            mock.patch.object(file, "_connect", side_effect=error) as connect,
        ):
            self.assertEqual([file.add("event"), file.add("event")], [2, 3])
            file._checkpoint.join()
        self.assertEqual(said, [])
        connect.assert_called()


class ModelFile:
    """What _LogFile promises, on a list of all rows that there ever were."""

    def __init__(self, max_events, max_bytes, max_retained, every, large):
        self.max_events, self.max_bytes = max_events, max_bytes
        self.max_retained = max_retained
        self.every, self.large = every, large
        self.rows = []
        self.base = 0
        self.retained = {}  # by channel and name, the number of the row

    def add(self, kind, body, channel, id, name):
        if kind == "forget" and (channel, name) not in self.retained:
            return 0
        if id is not None and id in [row[3] for row in self.rows[self.base :]]:
            raise ValueError(id)
        self.rows.append((kind, body, channel, id, name))
        number = len(self.rows)
        if name is not None:
            self.retained.pop((channel, name), None)
        if kind == "event" and name is not None:
            self.retained[channel, name] = number
        while self.is_full(self.retained.values(), self.max_retained):
            del self.retained[next(iter(self.retained))]
        if number % self.every == 0 or self.size(number) > self.large:
            held = range(self.base + 1, number + 1)
            while len(held) > 1 and self.is_full(held, self.max_events):
                held = held[1:]
            self.base = held[0] - 1
        return number

    def is_full(self, numbers, max_count):
        size = sum(map(self.size, numbers))
        return len(numbers) > max_count or size > self.max_bytes

    def size(self, number):
        _, body, channel, id, _ = self.rows[number - 1]
        return 400 + len(body) + len(channel or "") + len(id or "")


class LogFileModelTest(LogFileTestCase):
    BATCH_BYTES, BATCH_EVENTS = 500, 4

    def test_random_histories_of_two_processes_agree_with_a_plain_list(self):
        for seed in range(SEED, SEED + 30 * _FACTOR):
            with self.subTest(seed=seed):
                self.run_history(random.Random(seed), f"{self.path} {seed}")

    def run_history(self, random_, path):
        bounds = (
            random_.choice((0, 1, 3, 10)),
            random_.choice((1, 900, 3000, 10**6)),
            random_.choice((0, 1, 3, 10)),
        )
        every = random_.choice((1, 3))
        self.random = random_
        self.model = ModelFile(*bounds, every, self.BATCH_BYTES)
        limits = {
            "_BATCH_BYTES": self.BATCH_BYTES,
            "_FILE_BATCH_EVENTS": self.BATCH_EVENTS,
            "_FILE_SPARE_EVENTS": 0,
            "_FILE_TRIM_EVENTS": every,
        }
        with mock.patch.multiple(sse_server, **limits):
            self.files = [self.file(*bounds, path=path) for _ in range(2)]
            self.places = [0, 0]
            steps = self.add, self.add, self.read, self.begin, self.reopen
            for _ in range(40):
                random_.choices(steps, (10, 10, 10, 3, 1))[0]()
            for file in self.files:
                file.close()

    def add(self):
        choose = self.random.choice
        row = (
            choose(("event", "event", "event", "gap", "end", "forget")),
            b"a" * choose((0, 1, 50, 600)),
            choose((None, "x", EVERYBODY)),
            choose((None, None, "a", "b", "\u00e9")),
            choose((None, "n", "m", "o")),
        )
        if row[0] == "forget":
            row = ("forget", b"", row[2], None, row[4] or "n")
        elif row[0] != "event":
            row = (*row[:3], None, None)
        try:
            expected = self.model.add(*row)
        except ValueError:
            with self.assertRaises(ValueError):
                choose(self.files).add(*row)
        else:
            self.assertEqual(choose(self.files).add(*row), expected)

    def read(self):
        which = self.random.randrange(2)
        after = max(self.places[which], self.model.base)
        expected = self.model.rows[after:][: self.BATCH_EVENTS]
        sizes = itertools.accumulate(len(row[1]) for row in expected)
        expected = [
            row
            for row, size in zip(expected, sizes)
            if size - len(row[1]) < self.BATCH_BYTES
        ]
        rows, has_more = self.files[which].read(self.places[which])
        self.assertEqual([tuple(row[1:-1]) for row in rows], expected)
        numbers = [row.number for row in rows]
        self.assertEqual(numbers, [*range(after + 1, after + 1 + len(rows))])
        if rows:
            self.places[which] = numbers[-1]
        if not has_more:
            self.assertEqual(after + len(rows), len(self.model.rows))

    def begin(self):
        file = self.random.choice(self.files)
        file.set_bounds()
        base, begun_with = file.read_base()
        rows = self.model.rows
        retained = self.model.retained
        expected = [(*key, rows[number - 1][1]) for key, number in retained.items()]
        self.assertEqual(self.retained(file), expected)
        # To set bounds is to forget, for which the next add() might have waited.
        held = range(self.model.base + 1, len(rows) + 1)
        while len(held) > 1 and self.model.is_full(held, self.model.max_events):
            held = held[1:]
        self.model.base = held[0] - 1 if held else 0
        self.assertEqual(base, self.model.base)
        older = [
            (number, rows[number - 1][1], *key)
            for key, number in retained.items()
            if number <= base
        ]
        self.assertEqual(begun_with, older)

    def reopen(self):
        self.random.choice(self.files).close()


class LogFileProcessTest(LogFileTestCase):
    """What several processes do to one file, and what the end of one does to it."""

    def test_processes_that_publish_at_once_into_a_new_file(self):
        program = """if True:
            import os, sys, sse_server
            file = sse_server._LogFile(sys.argv[1], (1000, 2**24, 9, None))
            for count in range(100):
                print(file.add("event", b"%d %d" % (os.getpid(), count)))
        """
        outputs = self.python(program, count=4)
        numbers = [[int(line) for line in out.split()] for out in outputs]
        self.assertEqual(sorted(itertools.chain(*numbers)), [*range(1, 401)])
        for ascending in numbers:
            self.assertEqual(ascending, sorted(ascending))
        rows = self.rows(self.file())
        self.assertEqual([row.number for row in rows], [*range(1, 401)])
        counts = collections.defaultdict(list)
        for row in rows:
            process, count = row.body.split()
            counts[process].append(int(count))
        self.assertEqual(list(counts.values()), [[*range(100)]] * 4)

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork()")
    def test_what_was_added_survives_a_kill_at_any_line(self):
        # A child is killed at the n-th line that it runs in the module, for each n
        # until one adds all that it wants.  What it says it has added is there.
        program = """if True:
            import itertools, os, signal, sys
            import sse_server

            module = sse_server.main.__code__.co_filename

            def run(at):
                lines = itertools.count(1)
                def trace(frame, event, argument):
                    if frame.f_code.co_filename != module:
                        return None
                    if event == "line" and next(lines) == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return trace
                file.open()
                sys.settrace(trace)
                number = file.add("event", b"", None, f"id {at}", "name")
                sys.stdout.write(f"{number} id {at}\\n")
                sys.stdout.flush()
                file.add("forget", b"", None, None, "name")

            sse_server._FILE_TRIM_EVENTS = 1
            file = sse_server._LogFile(sys.argv[1], (10**6, 10**9, 9, None))
            file.add("event", b"", None, None, "name")
            for at in itertools.count(1):
                process = os.fork()
                if not process:
                    run(at)
                    os._exit(0)
                _, status = os.waitpid(process, 0)
                if status == 0:
                    break
                assert os.WTERMSIG(status) == signal.SIGKILL, status
        """
        (out,) = self.python(program)
        said = dict(line.split(" ", 1) for line in out.splitlines())
        rows = self.rows(self.file())
        self.assertEqual([row.number for row in rows], [*range(1, len(rows) + 1)])
        for row in rows:
            self.assertEqual(said.pop(str(row.number), row.id), row.id)
        self.assertEqual(said, {})
        self.assertGreater(len(rows), 30)
        self.assertEqual(self.retained(self.file()), [])
        (found,) = self.other().execute("PRAGMA integrity_check").fetchone()
        self.assertEqual(found, "ok")

    def test_ctrl_c_at_any_line_leaves_all_or_nothing(self):
        file, other, retained = self.file(), self.file(), 0
        file.open()
        for at in itertools.count(1):
            left = [at]

            def trace(frame, event, argument, left=left):
                if frame.f_code.co_filename != sse_server.__file__:
                    return None
                left[0] -= event == "line"
                if left[0] == 0:
                    left[0] = -1
                    raise KeyboardInterrupt
                return trace

            before = len(self.rows(file))
            sys.settrace(trace)
            try:
                file.add("event", b"", None, f"{at}", "name")
            except KeyboardInterrupt:
                added = len(self.rows(file)) - before
            else:
                break
            finally:
                sys.settrace(None)
            self.assertIn(added, (0, 1))
            retained = max(retained, added)
            self.assertEqual(len(self.retained(file)), retained)
            self.assertEqual(other.add("event"), before + added + 1)
        self.assertGreater(at, 30)

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork()")
    def test_a_forked_child_opens_the_file_anew(self):
        program = """if True:
            import os, sys, threading, warnings
            import sse_server

            file = sse_server._LogFile(sys.argv[1], (1000, 2**24, 9, None))
            file.add("event", b"before")
            warnings.simplefilter("ignore")  # Python warns of a fork beside threads
            is_held, may_end = threading.Event(), threading.Event()

            def hold():  # as a thread does that adds an event
                with file._transaction():
                    is_held.set()
                    may_end.wait()

            for way in ("exit", "_exit", "with a thread"):
                if way == "with a thread":
                    threading.Thread(target=hold).start()
                    is_held.wait()
                process = os.fork()
                if not process:
                    assert file.read(0)[0][0].body == b"before"
                    file.add("event", b"child")
                    os._exit(0) if way != "exit" else sys.exit()
                may_end.set()
                assert os.waitpid(process, 0)[1] == 0
                file.add("event", b"parent")
            print(*(row.body.decode() for row in file.read(0)[0]))
        """
        (out,) = self.python(program)
        self.assertEqual(out, "before child parent child parent child parent\n")
        self.assertEqual(self.file().add("event"), 8)
        (found,) = self.other().execute("PRAGMA integrity_check").fetchone()
        self.assertEqual(found, "ok")
        # What os._exit() ended has not closed the file; this test has it open.
        (openers,) = self.other().execute("SELECT openers FROM state").fetchone()
        self.assertEqual(openers, 2 + 1)

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork()")
    def test_who_has_forked_and_does_nothing_more_has_closed_the_file(self):
        program = """if True:
            import os, sys
            import sse_server

            file = sse_server._LogFile(sys.argv[1], (1000, 2**24, 9, None))
            file.add("event")
            process = os.fork()
            if not process:
                os._exit(0)
            os.waitpid(process, 0)
        """
        self.python(program)
        self.python(program + "    file.close()\n")
        (openers,) = self.other().execute("SELECT openers FROM state").fetchone()
        self.assertEqual(openers, 0)

    @unittest.skipUnless(
        sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare"),
        "only root can make a small disk, with Linux's unshare",
    )
    def test_a_disk_that_is_full_until_there_is_room_again(self):
        program = """if True:
            import os, sys
            import sse_server

            folder = os.path.dirname(sys.argv[1])
            assert not os.system(f"mount -t tmpfs -o size=1m none {folder}")
            with open(f"{folder}/ballast", "wb") as ballast:
                ballast.write(bytes(2**19))
            file = sse_server._LogFile(sys.argv[1], (10**6, 10**9, 9, None))
            for removed in (False, True):
                try:
                    while True:
                        print(file.add("event", bytes(1000), None, None, "name"))
                except OSError as error:
                    print(error)
                assert file.read(0)[0]
                if not removed:
                    os.unlink(ballast.name)
            count = after = 0
            while rows := file.read(after)[0]:
                count += len(rows)
                after = rows[-1].number
            retained = file._connections[1].execute("SELECT number FROM retained")
            print(after, count, *retained.fetchone())
        """
        (out,) = self.python(program, prefix=("unshare", "-m"))
        *lines, last = out.splitlines()
        (first, second) = (at for at, line in enumerate(lines) if "full" in line)
        numbers = [int(line) for line in lines if line.isdigit()]
        self.assertEqual(numbers, [*range(1, len(lines) - 1)])
        self.assertGreater(second, first + 20)
        self.assertEqual({*last.split()}, {str(numbers[-1])})

    def test_without_a_history_file_nothing_of_it_is_loaded(self):
        program = "import sse_server, sys; print('sqlite3' in sys.modules)"
        self.assertEqual(self.python(program), ["False\n"])


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
    for piece in pieces:
        received += piece
        if not reader:
            end = sse_server._find_head_end(received, searched)
            searched = len(received)
            if not end:
                continue
            request = sse_server._parse_request(bytes(received[:end]), "peer")
            reader = sse_server._BodyReader(request, limit)
            del received[:end]
        while reader.read(received):
            pass
    if not reader or not reader.complete:
        return None
    return request, bytes(reader.content), bytes(received)


def lines(*texts):
    """A request's head, or a body's trailer section, from its lines."""
    return b"".join(as_bytes(text) + b"\r\n" for text in (*texts, ""))


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def get(*fields, target="/sse", method="GET", version="1.1"):
    """The parsed Request of these header fields (and a Host)."""
    return sse_server._parse_request(
        lines(f"{method} {target} HTTP/{version}", "Host: a", *fields)
    )


MAX_HEAD = 16 * 1024
HEAD_TOO_LARGE = f"request head is larger than {MAX_HEAD} bytes"
NO_PROXY_PROTOCOL = "; this port does not speak the PROXY protocol"
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
    (
        lines(GET, HOST, LENGTH + "0" * 5000 + "2") + b"ab",
        {"content_length": 2},
        b"ab",
    ),
    (
        lines(GET, HOST, LENGTH + "1", "Expect: 100-Continue") + b"a",
        {"content_length": 1, "expects_continue": True},
        b"a",
    ),
    (lines(GET, HOST, "Expect: ,"), {"expects_continue": False}, b""),
    (
        lines("GET / HTTP/1.0", "Expect: 100-continue"),
        {"expects_continue": False},
        b"",
    ),
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
        + b'1;a\r\n\r\r\n2 \t; a="\t;~b\\"\xff" ;b = c\r\n\r\n\r\n000;d\r\n\r\n',
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
            "GET /",
            "GET HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET / a HTTP/1.1",
            "G(T / HTTP/1.1",
            "G,T / HTTP/1.1",
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
            "a" * 80,
        )
    ),
    *(
        (
            lines(line, HOST),
            400,
            f"malformed request line {shown(line)}; percent-encode what is not ASCII",
        )
        for line in (b"G\xc9T / HTTP/1.1", b"GET /\xe9 HTTP/1.1")
    ),
    (lines("", HOST), 400, "no request begins with the byte 13"),
    (lines(" GET / HTTP/1.1", HOST), 400, "no request begins with the byte 32"),
    (lines("\n"), 400, "no request begins with the byte 10"),
    (
        b"\0\r\nQUIT\n\x21\x11\0\x0c",
        400,
        f"no request begins with the byte 0{NO_PROXY_PROTOCOL}",
    ),
    (
        b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n" + lines(GET, HOST),
        400,
        f"malformed request line 'PROXY TCP4 10.0.0.1 10.0.0.2 5 80'{NO_PROXY_PROTOCOL}",
    ),
    (
        lines(b"\x16\x03\x01\x02", HOST),
        400,
        "no request begins with the byte 22; this port does not speak TLS",
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
    (lines("OPTIONS ! HTTP/1.1", HOST), 400, "malformed request target '!'"),
    (lines("PUT * HTTP/1.1", HOST), 400, "malformed request target '*'"),
    (lines("TRACE * HTTP/1.1", HOST), 400, "malformed request target '*'"),
    (
        lines(f"GET {'a' * 81} HTTP/1.1", HOST),
        400,
        f"malformed request target '{'a' * 80}'...",
    ),
    (
        lines(f"GET http://[/{'a' * 72} HTTP/1.1", HOST),
        400,
        f"malformed request target 'http://[/{'a' * 71}'...",
    ),
    (lines("CONNECT a HTTP/1.1"), 501, "CONNECT is for proxies, and this is none"),
    (lines("CONNECT / HTTP/1.1"), 501, "CONNECT is for proxies, and this is none"),
    (
        lines("CONNECT a:80 HTTP/1.1", HOST),
        501,
        "CONNECT is for proxies, and this is none",
    ),
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
        )
    ),
    *(
        (
            lines(POST, HOST, CODING + coding),
            400,
            f"Transfer-Encoding {shown(coding)}: chunked is not last",
        )
        for coding in ("chunked, chunked", "chunked, gzip", "Chunked,identity")
    ),
    (
        lines(POST, HOST, CODING + "chunked", CODING + "identity"),
        400,
        "Transfer-Encoding 'chunked, identity': chunked is not last",
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
    # What is too large; what just fits is in tests of its own
    (lines(GET, HOST, "X: " + "a" * MAX_HEAD), 431, HEAD_TOO_LARGE),
    (
        lines(f"GET /{'a' * MAX_HEAD} HTTP/1.1", HOST),
        414,
        f"request line is longer than {MAX_HEAD} bytes",
    ),
    (
        lines(GET, HOST, *["X: a"] * 200),
        431,
        "201 header fields; allowed are 200",
    ),
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
    (b"0\r\na\r\n\r\n", 400, "malformed trailer field 'a'"),
    (b"0\r\n a: b\r\n\r\n", 400, "malformed trailer field ' a: b'"),
    (b"0\r\na: b\rc\r\n\r\n", 400, r"control character in trailer field 'a: b\rc'"),
    (
        b"0\r\n" + b"a: b\r\n" * 201 + b"\r\n",
        431,
        "201 trailer fields; allowed are 200",
    ),
    (b"0\r\na: b\r\n\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\na: b\n\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\na: b\n\r\n", 400, "a trailer line ends with a bare LF"),
    (b"0\r\n\n", 400, "a trailer line ends with a bare LF"),
]

# (what no stream can be asked for, why): each is a 400
REFUSED_QUERIES = [
    *queries_of_refused_names("channel"),
    ("channel=a&channel", "channel has 0 bytes; allowed are 1 to 256 (UTF-8)"),
    ("channel=a&" * 101, "101 channels asked for; allowed are 100"),
    (
        "&".join(f"channel={n}" for n in range(101)),
        "101 channels asked for; allowed are 100",
    ),
    *(
        (
            "replay=" + urllib.parse.quote(value),
            f"replay is {value!a}; allowed: a number, all",
        )
        for value in ("", "-1", "1.5", "ALL", "\u0663", "1" * 10)
    ),
    (
        "&".join(f"a{n}=1" for n in range(201)),
        "query of more than 200 parameters",
    ),
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
        for size in (MAX_HEAD - 1, MAX_HEAD):
            data = lines("GET / HTTP/1.1", HOST, "X: ")
            data = data[:-4] + b"a" * (size - len(data)) + data[-4:]
            for pieces in (
                [data + NEXT],
                [data[i : i + 1] for i in range(size)] + [NEXT],
            ):
                request, _, rest = receive(pieces)
                self.assertEqual((request.path, rest), ("/", NEXT))

    def test_a_head_of_one_byte_above_16_kib_gets_431(self):
        start = lines("GET / HTTP/1.1", HOST)[:-2] + b"X: "
        ended = start + b"a" * (MAX_HEAD - 3 - len(start)) + b"\r\n\r\n"
        endless = start + b"a" * (MAX_HEAD + 1 - len(start))
        for data in (ended, endless):
            with self.subTest(data[:50]):
                self.assertEqual(len(data), MAX_HEAD + 1)
                self.assertRefused([data], 431, HEAD_TOO_LARGE)
                self.assertRefused([data[:-1], data[-1:]], 431, HEAD_TOO_LARGE)
                self.assertIsNone(receive([data[:-1]]))

    def test_a_request_line_of_16_kib_gets_414(self):
        """Without the line's end; with one byte less, the head is too large."""
        for size, status in (
            (MAX_HEAD - 1, 431),
            (MAX_HEAD, 414),
            (MAX_HEAD + 1, 414),
        ):
            data = (b"GET /".ljust(size, b"a") + b"\nX: ").ljust(MAX_HEAD + 1, b"b")
            with self.subTest(size), self.assertRaises(HTTPError) as caught:
                receive([data])
            self.assertEqual(caught.exception.status, status)

    def test_up_to_200_fields(self):
        for count in (199, 200):
            data = lines(GET, HOST, *["X: a"] * (count - 1))
            self.assertEqual(len(receive([data])[0].fields), count)

    def test_trailers_of_up_to_16_kib(self):
        for extra in (-1, 0):
            trailers = b"X: " + b"a" * (MAX_HEAD - 7 + extra) + b"\r\n\r\n"
            for pieces in ([trailers + NEXT], [trailers[:100], trailers[100:] + NEXT]):
                self.assertEqual(receive([CHUNKED + b"0\r\n", *pieces])[2], NEXT)
        endless = b"X: " + b"a" * (MAX_HEAD - 2)
        for pieces in ([endless], [endless[:-1], b"a"]):
            self.assertRefused(
                [CHUNKED + b"0\r\n", *pieces],
                431,
                f"trailers are larger than {MAX_HEAD} bytes",
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
        empty = f"malformed chunk size {shown(b'')}"  # whatever comes behind it
        self.assertRefused([CHUNKED + b"\r\n".ljust(258, b"a")], 400, empty)

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
        reader, received = sse_server._BodyReader(request, 1000), bytearray()
        for _ in range(999):
            received += b"a"
            self.assertFalse(reader.read(received))
            self.assertFalse(reader.complete)
            self.assertEqual(received, b"")
        received += b"ab"
        self.assertFalse(reader.read(received))
        self.assertTrue(reader.complete)
        self.assertEqual((len(reader.content), received), (1000, b"b"))

    def test_a_body_that_nobody_wants_is_not_kept(self):
        request = get(f"{CODING}chunked", method="POST")
        reader, received = sse_server._BodyReader(request, 10, keep=False), bytearray()
        received += b"5\r\nabcde\r\n0\r\n\r\nrest"
        self.assertFalse(reader.read(received))
        self.assertTrue(reader.complete)
        self.assertEqual((reader.content, received), (b"", b"rest"))

    def test_a_body_of_many_small_chunks_gives_way(self):
        request = get(f"{CODING}chunked", method="POST")
        reader = sse_server._BodyReader(request, 1000)
        received = bytearray(b"1\r\na\r\n" * 1000 + b"0\r\n\r\n")
        turns = 1
        while reader.read(received):
            turns += 1
        self.assertGreater(turns, 10)
        self.assertTrue(reader.complete)
        self.assertEqual((reader.content, received), (b"a" * 1000, b""))

    def test_what_is_fed_after_the_end_is_kept_for_the_next_request(self):
        for data in (lines("GET / HTTP/1.1", HOST), CHUNKED + b"0\r\n\r\n"):
            self.assertEqual(receive([data, b"a", b"b"])[2], b"ab")

    def test_the_peer_is_unknown_unless_given(self):
        self.assertEqual(get().peer, "")
        head = lines("GET / HTTP/1.0")
        self.assertEqual(sse_server._parse_request(head, "[::1]:80").peer, "[::1]:80")

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
            ("a=%FF%zz%", {"a": ["\udcff%zz%"]}),
        ):
            with self.subTest(query):
                self.assertEqual(get(target=f"/sse?{query}").parameters, expected)

    def test_up_to_200_parameters(self):
        for count in (199, 200):
            query = "&".join(f"a{n}=1" for n in range(count))
            self.assertEqual(len(get(target=f"/sse?{query}").parameters), count)

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
            ("?channel=" + "a" * 256, {"a" * 256}),
            ("?" + "channel=a&" * 100, {"a"}),
            (
                "?" + "&".join(f"channel={n}" for n in range(100)),
                set(map(str, range(100))),
            ),
        ):
            with self.subTest(query[:60]):
                self.assertEqual(get(target="/sse" + query).channels, expected)

    def test_queries_that_are_refused(self):
        for query, message in REFUSED_QUERIES:
            with self.subTest(query[:60]), self.assertRaises(HTTPError) as caught:
                request = get(target="/sse?" + query)
                self.fail((request.channels, request.replay))
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

    def test_a_last_event_id_that_was_doubled_on_the_way_is_one(self):
        request = get("Last-Event-ID: a, b", "Last-Event-ID: a, b")
        self.assertEqual(request.last_event_id, "a, b")
        for fields in (("a", "b"), ("a", ""), ("a", "b", "c")):
            request = get(*[f"Last-Event-ID: {value}" for value in fields])
            with self.assertRaises(HTTPError) as caught:
                request.last_event_id  # noqa: B018
            message = f"400 {len(fields)} different values of Last-Event-ID"
            self.assertEqual(str(caught.exception), message)

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

    SIZE = 4 * 1024

    def count(self, data, before=b""):
        pattern = CountingPattern(sse_server._EMPTY_LINE)
        with mock.patch.object(sse_server, "_EMPTY_LINE", pattern):
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
        self.assertGreater(self.count(b"a" * 100), 0, "it is not counted")

    def test_trailers_of_the_worst_shapes(self):
        for unit in (b"a", b"\r", b"\n\ra", b"a:b\r\n"):
            data = unit * (self.SIZE // len(unit))
            data = data[: self.SIZE - 4] + b"\r\n\r\n"
            with self.subTest(unit):
                before = CHUNKED + b"0\r\n"
                searched = self.count(data, before) - len(before)
                # The CRLF before them is searched as well.
                self.assertLessEqual(searched, 3 * len(data) + 2)


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
        for seed in range(SEED, SEED + 1000 * _FACTOR):
            random_ = random.Random(seed)
            data = bytearray(random_.choice(corpus))
            for _ in range(random_.choice((1, 1, 2, 3, 8))):
                self.mutate(random_, data)
            with self.subTest(seed=seed, data=bytes(data)):
                self.check(random_, bytes(data))

    def test_random_bytes(self):
        for seed in range(SEED, SEED + 250 * _FACTOR):
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


# ------------------------------------------------------------------------------------
# 6. The site
# ------------------------------------------------------------------------------------

SECRET = "Authorization: Bearer secret"
EVENT_SOURCE = "Accept: text/event-stream"
BROWSER = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"
FULL = {"is_full": True}
BODY = ("body", LIMIT, False)
WANTED_BODY = ("body", LIMIT, True)
RETRY = (200, rb"retry: [0-9]+\n")
FULL_503 = (503, "the server is full")
OK_PAGE = (
    rb"<!doctype html>.*<title>ok</title>\n<p>ok</p>\n"
    rb'<p>The event stream is at <a href="/sse">/sse</a>.</p>\n'
)
JSON = "Accept: application/json"
NO_COUNTS = (
    "without a publish_token there are no counts as JSON; the stream is "
    "text/event-stream"
)
NO_COUNT = "the counts need Authorization: Bearer and the right token"
NO_TOKEN = "publishing needs Authorization: Bearer and the right token"
POST_405 = (
    "POST is not allowed on /sse: no token is set to publish with (--publish-token)"
)
ANOTHER_NAME = (
    "this server does not answer to 'a'; its names are set by hosts (--allow-host)"
)
ALLOWED_PARAMETERS = "allowed are event, channel, id, retain=1 and finish=1, each once"


def new_site(**policy):
    """A site of no server.  What it publishes is in `published`."""
    published = []

    def publish(data, **fields):
        published.append((data, fields))
        return f"id-{len(published)}"

    policy = {
        "path": "/sse",
        "hosts": None,
        "cors_origins": (),
        "publish_token": None,
        "asks": False,
        "compress": False,
        "max_event_bytes": LIMIT,
        "restart_retry": 5.0,
        "replay": 0,
        "publishing_waits": False,
        "read_page": None,
        "publish": publish,
        "held": lambda id: None,
        "finish": lambda channel: publish("", finish=channel),
        "has_ended": lambda channels, last_event_id, replay: False,
        "stats": lambda: sse_server.Stats(1, 2, 3, 4, 5, 6, 7, 8),
        "newest_id": lambda: "newest",
        "closed_because": lambda: "",
        **policy,
    }
    site = sse_server._Site(**policy)
    site.published = published
    return site


def stream(*channels, chunked=True, gzip=False, last=None, replay=0):
    """What is shown of the decision to open such a stream."""
    return "stream", set(channels or [None]), chunked, gzip, last, replay


PLAIN_TEXT = ("Content-Type", "text/plain; charset=utf-8")


def decided(site, request, **known):
    """A decision in a form to compare."""
    found = site.decide(request, **known)
    if isinstance(found, sse_server._Question):
        return "ask"
    if isinstance(found, sse_server._Body):
        return ("body", *found)
    if isinstance(found, sse_server._Stream):
        _, (channels, chunked, gzip, _), *rest = found
        return ("stream", channels - {EVERYBODY}, chunked, gzip, *rest)
    is_text = PLAIN_TEXT in found.headers and found.body[-1:] == b"\n"
    return found.status, found.body.decode()[:-1] if is_text else found.body


def permit(request, answer):
    """What authorize permits with this answer."""
    return sse_server._permitted(request, answer)


# what it is about: (policy, request, what is known besides, decision).  The text of a
# decision may be a pattern.
DECISIONS = {
    # Every path but that of the stream.
    "any path": ({}, get(target="/"), {}, (200, b"ok")),
    "a path below": ({}, get(target="/sse/"), {}, (200, b"ok")),
    "an encoded slash": ({}, get(target="/%2Fsse"), {}, (200, b"ok")),
    "any method": ({}, get(target="/", method="BREW"), {}, (200, b"ok")),
    "OPTIONS for all": ({}, get(target="*", method="OPTIONS"), {}, (200, b"ok")),
    "a body that nobody wants": ({}, get(f"{LENGTH}1", target="/"), {}, BODY),
    "after that": (
        {},
        get(f"{LENGTH}1", target="/"),
        {"body": b"a"},
        (200, b"ok"),
    ),
    "another path for the stream": (
        {"path": "/%7Eevents"},
        get(target="/~event%73"),
        {},
        stream(),
    ),
    "no name is asked for elsewhere": (
        {"hosts": ["b"]},
        get(target="/"),
        {},
        (200, b"ok"),
    ),
    "nor authorize": ({"asks": True}, get(target="/"), {}, (200, b"ok")),
    "a browser at another path": ({}, get(BROWSER, target="/"), {}, (200, OK_PAGE)),
    "HEAD of it": ({}, get(BROWSER, target="/", method="HEAD"), {}, (200, OK_PAGE)),
    "a form that is sent": (
        {},
        get(BROWSER, target="/", method="POST"),
        {},
        (200, b"ok"),
    ),
    "an EventSource at another path": (
        {},
        get(EVENT_SOURCE, target="/"),
        {},
        (200, b"ok"),
    ),
    # The stream.
    "GET": ({}, get(), {}, stream()),
    "an encoded path": ({}, get(target="/%73se?a=b"), {}, stream()),
    "HTTP/1.0": ({}, get(version="1.0"), {}, stream(chunked=False)),
    "HEAD": ({}, get(method="HEAD"), {}, (200, None)),
    "channels": ({}, get(target="/sse?channel=a&channel=b"), {}, stream("a", "b")),
    "a bad channel": (
        {},
        get(target="/sse?channel="),
        {},
        (400, "channel has 0 bytes; allowed are 1 to 256 (UTF-8)"),
    ),
    "an id": ({}, get("Last-Event-ID: é"), {}, stream(last="é")),
    "an id in the query": (
        {},
        get(target="/sse?last_event_id=7"),
        {},
        stream(last="7"),
    ),
    "the header wins": (
        {},
        get("Last-Event-ID: 8", target="/sse?lastEventId=7"),
        {},
        stream(last="8"),
    ),
    "the same id twice": (
        {},
        get("Last-Event-ID: 8", "Last-Event-ID: 8"),
        {},
        stream(last="8"),
    ),
    **{
        f"two ids, {method}": (
            {},
            get("Last-Event-ID: 8", "Last-Event-ID: 9", method=method),
            {},
            (400, "2 different values of Last-Event-ID"),
        )
        for method in ("GET", "HEAD")
    },
    "replay": ({}, get(target="/sse?replay=20"), {}, stream(replay=20)),
    "replay of all": ({}, get(target="/sse?replay=all"), {}, stream(replay=math.inf)),
    "replay by default": ({"replay": 3}, get(), {}, stream(replay=3)),
    "a bad replay": (
        {},
        get(target="/sse?replay=x"),
        {},
        (400, "replay is 'x'; allowed: a number, all"),
    ),
    "a bad replay of HEAD": (
        {},
        get(target="/sse?replay=x", method="HEAD"),
        {},
        (400, "replay is 'x'; allowed: a number, all"),
    ),
    "gzip": (
        {"compress": True},
        get("Accept-Encoding: gzip"),
        {},
        stream(gzip=True),
    ),
    "no gzip": ({}, get("Accept-Encoding: gzip"), {}, stream()),
    "no gzip for HTTP/1.0": (
        {"compress": True},
        get("Accept-Encoding: gzip", version="1.0"),
        {},
        stream(chunked=False),
    ),
    "GET with a body": ({}, get(f"{LENGTH}1"), {}, BODY),
    "GET with its body": ({}, get(f"{LENGTH}1"), {"body": b"a"}, stream()),
    "the page": ({}, get(BROWSER), {}, (200, rb"<!doctype html>.*</html>\n")),
    "the page with a bad channel": (
        {},
        get(BROWSER, target="/sse?channel="),
        {},
        (200, rb"<!doctype html>.*</html>\n"),
    ),
    "the stream before the page": (
        {},
        get("Accept: text/html, text/event-stream"),
        {},
        stream(),
    ),
    # Other methods.
    "OPTIONS": ({}, get(method="OPTIONS"), {}, (204, b"")),
    "PUT": ({}, get(method="PUT"), {}, (405, "PUT is not allowed on /sse")),
    "PUT with a body": (
        {},
        get(f"{LENGTH}1", method="PUT"),
        {},
        (405, "PUT is not allowed on /sse"),
    ),
    "POST without a token": (
        {},
        get(f"{LENGTH}1", SECRET, method="POST"),
        {},
        (405, POST_405),
    ),
    # Names.
    "its name": ({"hosts": ["A"]}, get(), {}, stream()),
    "any name": ({"hosts": ["*"]}, get(), {}, stream()),
    "another name": (
        {"hosts": ["b"]},
        get(),
        {},
        (421, ANOTHER_NAME),
    ),
    "another name, whatever is asked": (
        {"hosts": ["b"]},
        get(method="PUT"),
        {},
        (421, ".*"),
    ),
    # Publishing.
    "a wrong token": (
        {"publish_token": "other"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {},
        (401, NO_TOKEN),
    ),
    "no token": (
        {"publish_token": "secret"},
        get(method="POST"),
        {},
        (401, NO_TOKEN),
    ),
    "the token": (
        {"publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {},
        WANTED_BODY,
    ),
    "a body in chunks": (
        {"publish_token": "secret"},
        get(SECRET, f"{CODING}chunked", method="POST"),
        {},
        WANTED_BODY,
    ),
    "an event": (
        {"publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {"body": b"a"},
        (200, b"id-1"),
    ),
    "an event without data": (
        {"publish_token": "secret"},
        get(SECRET, method="POST"),
        {},
        (200, b"id-1"),
    ),
    "no UTF-8": (
        {"publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {"body": b"\xff"},
        (400, "the body is not UTF-8: .*"),
    ),
    "an unknown parameter": (
        {"publish_token": "secret"},
        get(SECRET, method="POST", target="/sse?evnt=a"),
        {},
        (400, f"unknown parameter 'evnt'; {ALLOWED_PARAMETERS}"),
    ),
    "retain that is not 1": (
        {"publish_token": "secret"},
        get(SECRET, method="POST", target="/sse?retain=yes"),
        {},
        (400, "retain is 'yes'; allowed is 1"),
    ),
    "POST elsewhere": (
        {"publish_token": "secret"},
        get(f"{LENGTH}1", method="POST", target="/"),
        {},
        BODY,
    ),
    "publishing elsewhere": (
        {"publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST", target="/events"),
        {},
        (404, "POST to '/events' publishes nothing; publish at /sse"),
    ),
    "publishing elsewhere without a token": (
        {},
        get(SECRET, f"{LENGTH}1", method="POST", target="/events"),
        {},
        BODY,
    ),
    # The counts.
    "the counts": (
        {"publish_token": "secret"},
        get(SECRET, JSON),
        {},
        (200, b'{"live":1,"behind":2,.*}'),
    ),
    "the counts with a wrong token": (
        {"publish_token": "other"},
        get(SECRET, JSON),
        {},
        (401, NO_COUNT),
    ),
    "the counts without a token": (
        {"publish_token": "secret"},
        get(JSON),
        {},
        (401, NO_COUNT),
    ),
    "the counts where no token is set": (
        {},
        get(JSON),
        {},
        (406, NO_COUNTS),
    ),
    "JSON, or anything": ({}, get(f"{JSON}, text/plain, */*"), {}, stream()),
    "JSON, or anything, with the token": (
        {"publish_token": "secret"},
        get(SECRET, f"{JSON}, text/plain, */*"),
        {},
        (200, b'{"live":1,"behind":2,.*}'),
    ),
    "JSON, or a stream": ({}, get(f"{JSON}, text/event-stream"), {}, stream()),
    "JSON, or a page": (
        {},
        get(f"{JSON}, text/html"),
        {},
        (200, rb"<!doctype html>.*</html>\n"),
    ),
    # authorize.
    "GET is asked about": ({"asks": True}, get(), {}, "ask"),
    "HEAD is asked about": ({"asks": True}, get(method="HEAD"), {}, "ask"),
    "a body is not read before": ({"asks": True}, get(f"{LENGTH}1"), {}, "ask"),
    "but after": (
        {"asks": True},
        get(f"{LENGTH}1"),
        {"permit": permit(get(), True)},
        BODY,
    ),
    "POST is asked about, without its body": (
        {"asks": True, "publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {},
        "ask",
    ),
    "and read when it is permitted": (
        {"asks": True, "publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {"permit": permit(get(), True)},
        WANTED_BODY,
    ),
    "or not, when it is not": (
        {"asks": True, "publish_token": "secret"},
        get(SECRET, f"{LENGTH}1", method="POST"),
        {"permit": HTTPError(403, "no")},
        (403, "no"),
    ),
    "a wrong token is not asked about": (
        {"asks": True, "publish_token": "other"},
        get(SECRET, method="POST"),
        {},
        (401, NO_TOKEN),
    ),
    "POST without a token is not asked about": (
        {"asks": True},
        get(method="POST"),
        {},
        (405, ".*"),
    ),
    "OPTIONS is not asked about": (
        {"asks": True},
        get(method="OPTIONS"),
        {},
        (204, b""),
    ),
    "permitted": ({"asks": True}, get(), {"permit": permit(get(), True)}, stream()),
    "permitted channels": (
        {"asks": True},
        get(),
        {"permit": permit(get(), ["a", "b"])},
        stream("a", "b"),
    ),
    "refused": (
        {"asks": True},
        get(),
        {"permit": HTTPError(429, "later")},
        (429, "later"),
    ),
    **{
        f"refused with {status}, shown by a browser": (
            {"asks": True},
            get(BROWSER),
            {"permit": HTTPError(status, text)},
            (
                seen,
                rb"<!doctype html>.*<p>You may not read this .* \(%b\)\.</p>\n" % said,
            ),
        )
        for status, text, seen, said in (
            (204, "", 403, b"204 No Content"),
            (401, "<log in>", 401, b"401 &lt;log in&gt;"),
            (403, "", 403, b"403 Forbidden"),
        )
    },
    "refused with 204, for an EventSource": (
        {"asks": True},
        get(EVENT_SOURCE),
        {"permit": HTTPError(204)},
        (204, b""),
    ),
    "an authorize that fails": (
        {"asks": True},
        get(),
        {"permit": HTTPError(500)},
        (500, "Internal Server Error"),
    ),
    "an authorize that fails for an EventSource": (
        {"asks": True},
        get(EVENT_SOURCE),
        {"permit": HTTPError(500)},
        RETRY,
    ),
    "an authorize that fails for who publishes": (
        {"asks": True, "publish_token": "secret"},
        get(SECRET, EVENT_SOURCE, method="POST"),
        {"permit": HTTPError(503, "late")},
        (503, "late"),
    ),
    # Full, or closing.
    "full": ({}, get(), FULL, FULL_503),
    "full, at any path": ({}, get(EVENT_SOURCE, target="/"), FULL, FULL_503),
    "full, for an EventSource": ({}, get(EVENT_SOURCE), FULL, RETRY),
    "full, for one with a body": ({}, get(EVENT_SOURCE, f"{LENGTH}1"), FULL, RETRY),
    "full, for one of HEAD": ({}, get(EVENT_SOURCE, method="HEAD"), FULL, RETRY),
    "full, for who publishes": (
        {"publish_token": "secret"},
        get(SECRET, EVENT_SOURCE, method="POST"),
        FULL,
        FULL_503,
    ),
    "full, and nobody is asked": ({"asks": True}, get(), FULL, FULL_503),
    "a page": ({"read_page": lambda: b"<p>"}, get(target="/"), {}, (200, b"<p>")),
    "a page for a browser": (
        {"read_page": lambda: b"<p>"},
        get(BROWSER, target="/?a=b"),
        {},
        (200, b"<p>"),
    ),
    "HEAD of a page": (
        {"read_page": lambda: b"<p>"},
        get(target="/", method="HEAD"),
        {},
        (200, b"<p>"),
    ),
    "POST to a page": (
        {"read_page": lambda: b"<p>"},
        get(target="/", method="POST"),
        {},
        (200, b"ok"),
    ),
    "beside a page": (
        {"read_page": lambda: b"<p>"},
        get(target="/index.html"),
        {},
        (200, b"ok"),
    ),
    "closing, with a page": (
        {"read_page": lambda: b"<p>", "closed_because": lambda: "the end"},
        get(target="/"),
        {},
        (503, "the end"),
    ),
    "closing": (
        {"closed_because": lambda: "the end"},
        get(),
        {},
        (503, "the end"),
    ),
    "closing, whatever was permitted": (
        {"asks": True, "closed_because": lambda: "the end"},
        get(),
        {"permit": permit(get(), True)},
        (503, "the end"),
    ),
}


class SiteTest(unittest.TestCase):
    """Rule 7: what is answered, without a socket."""

    def setUp(self):
        logger = logging.getLogger("sse_server")
        quiet = mock.patch.multiple(logger, propagate=False, handlers=[])
        quiet.start()
        self.addCleanup(quiet.stop)
        logger.addHandler(logging.NullHandler())

    def assertDecides(self, found, expected):
        *found, text = found if isinstance(found, tuple) else (found, None)
        *expected, form = expected if isinstance(expected, tuple) else (expected, None)
        self.assertEqual(found, expected)
        if not (isinstance(form, (str, bytes)) and isinstance(text, type(form))):
            self.assertEqual(text, form)
        elif form != text:
            self.assertTrue(re.fullmatch(form, text, re.DOTALL), (form, text[:200]))

    def test_decisions(self):
        for name, (policy, request, known, expected) in DECISIONS.items():
            with self.subTest(name):
                found = decided(new_site(**policy), request, **known)
                self.assertDecides(found, expected)

    def test_what_is_published(self):
        site = new_site(publish_token="secret")
        for query, fields in (
            ("", {}),
            ("?event=e&channel=c&id=1", {"event": "e", "channel": "c", "id": "1"}),
            ("?retain=1", {"retain": True}),
        ):
            request = get(SECRET, f"{LENGTH}2", method="POST", target=f"/sse{query}")
            found = site.decide(request, body="é".encode())
            self.assertEqual(site.published[-1], ("é", fields))
            self.assertEqual(found.newest_id, found.body.decode())

    def test_what_publish_raises(self):
        same = b"data: a\n\n", None
        for error, target, held, expected in (
            (ValueError("no"), "/sse", None, (400, "no")),
            (RuntimeError("no"), "/sse?id=1", same, (503, "no")),
            (ValueError("no"), "/sse?id=1", None, (400, "no")),
            (ValueError("no"), "/sse?id=1", (b"data: b\n\n", None), (409, "no")),
            (ValueError("no"), "/sse?id=1", (b"data: a\n\n", "a"), (409, "no")),
            (ValueError("no"), "/sse?id=1&event=e", same, (409, "no")),
            (ValueError("no"), "/sse?id=1&retain=1", same, (200, b"1")),
        ):
            with self.subTest(expected, target=target):
                site = new_site(
                    publish_token="secret",
                    publish=mock.Mock(side_effect=error),
                    held=mock.Mock(return_value=held),
                )
                request = get(SECRET, method="POST", target=target)
                self.assertEqual(decided(site, request, body=b"a"), expected)
                if expected[0] == 200:
                    site.held.assert_called_once_with("1")

    def test_the_newest_id_is_not_for_those_who_hear_some_channels(self):
        site = new_site(asks=True)
        for method in ("GET", "HEAD"):
            request = get(method=method)
            for answer, newest in ((True, "newest"), ([None, "a"], "")):
                found = site.decide(request, permit(request, answer))
                head = found.head if method == "GET" else found
                self.assertEqual(head.newest_id, newest)

    def test_a_page_of_another_origin_is_named_in_the_log_once(self):
        origin = "Origin: https://a.example"
        hint = ": its page may not read this: 'https://a.example' is not among "
        hint += "cors_origins (--cors-origin)"
        for policy, fields, said in (
            ({}, [], 0),
            ({}, [origin], 1),
            ({"cors_origins": ["*"]}, [origin], 0),
            ({"cors_origins": ["https://a.example"]}, [origin], 0),
            ({}, ["Origin: https://a"], 0),  # its own name, as Host says
        ):
            site = new_site(**policy)
            with (
                self.subTest(policy, fields=fields),
                self.assertLogs("sse_server") as caught,
            ):
                logging.getLogger("sse_server").warning("so that there is one")
                for method in ("GET", "OPTIONS", "PUT"):
                    decided(site, get(*fields, method=method))
            found = [record.getMessage() for record in caught.records[1:]]
            self.assertEqual(found, [hint] * said)
            self.assertEqual({r.levelname for r in caught.records}, {"WARNING"})

    def test_so_many_origins_are_named_at_most(self):
        site = new_site()
        with self.assertLogs("sse_server", "WARNING") as caught:
            for number in range(300):
                decided(site, get(f"Origin: https://{number}.example"))
        self.assertEqual(len(caught.records), 100)

    def test_what_makes_a_head_too_large_is_logged_once_a_minute(self):
        site = new_site()
        head = lines("GET / HTTP/1.1", "A: b", "Cookie: secret", "C: d")
        error = HTTPError(431, "too large")
        with self.assertLogs("sse_server", "WARNING") as caught:
            for now in (5.0, 6.0, 64.0, 65.0, 66.0):
                site.log_large_head(error, head, "peer", now)
            site.log_large_head(error, b"GET", "peer", 1000.0)
        found = [record.getMessage() for record in caught.records]
        size = f"{len(head)} bytes have come, 14 of them of 'Cookie'"
        self.assertEqual(found[:2], [f"peer: too large; {size}"] * 2)
        self.assertEqual(
            found[2:], ["peer: too large; 3 bytes have come, 0 of them of ''"]
        )

    def preflight(self, origins, *fields):
        """The fields that answer it."""
        request = get("Origin: https://a.example", *fields, method="OPTIONS")
        found = dict(new_site(cors_origins=origins).decide(request).headers)
        prefix = "Access-Control-Allow-"
        return {
            name[len(prefix) :]: value
            for name, value in found.items()
            if name.startswith(prefix)
        }

    def test_a_preflight_is_allowed_the_fields_that_it_asks_for(self):
        usual = "Authorization, Content-Type, Last-Event-ID"
        many = ", ".join(f"x-{number}" for number in range(51))
        for asked, allowed in (
            ([], usual),
            (["cache-control"], f"{usual}, cache-control"),
            (["hx-request, HX-Current-URL", "traceparent"],
             f"{usual}, hx-current-url, hx-request, traceparent"),
            (["authorization,content-type, , last-event-id"], usual),
            (["a b"], usual),
            (["a, b;c"], usual),
            ([many], usual),
            ([many.replace(", x-50", "")], None),
        ):  # fmt: skip
            with self.subTest(asked):
                fields = [f"Access-Control-Request-Headers: {value}" for value in asked]
                for origins in (["https://a.example"], ["*"]):
                    found = self.preflight(origins, *fields)["Headers"]
                    if allowed is None:
                        self.assertEqual(found.count("x-"), 50)
                    else:
                        self.assertEqual(found, allowed)
                self.assertEqual(self.preflight(["https://b.example"], *fields), {})

    def test_a_page_of_a_named_origin_may_reach_into_a_private_network(self):
        field = "Access-Control-Request-Private-Network: true"
        for origins, fields, expected in (
            (["https://a.example"], [field], "true"),
            (["https://a.example"], [], None),
            (["*"], [field], None),
            (["https://b.example"], [field], None),
        ):
            found = self.preflight(origins, *fields).get("Private-Network")
            self.assertEqual(found, expected, origins)

    def test_who_is_turned_away_is_counted_and_told_when_to_come_back(self):
        for policy, known, low, high in (
            ({}, FULL, 15, 45),
            ({"closed_because": lambda: "the end"}, {}, 2.5, 8),
        ):
            site = new_site(**policy)
            for number in range(1, 21):
                plain = site.decide(get(), **known)
                self.assertTrue(plain.is_last)
                seconds = int(dict(plain.headers)["Retry-After"])
                self.assertTrue(low <= seconds <= high, seconds)
                found = site.decide(get(EVENT_SOURCE), **known)
                self.assertTrue(found.is_last)
                milliseconds = int(found.body[7:])
                self.assertTrue(1000 * low <= milliseconds <= 1000 * high)
                self.assertEqual(site.refused, 2 * number)

    def test_a_request_may_come_from_elsewhere_than_a_connection(self):
        """Such as from the scope of an ASGI server."""
        scope = {
            "method": "GET",
            "http_version": "2",
            "raw_path": b"/events",
            "query_string": b"channel=a",
            "headers": [(b"accept", b"text/event-stream"), (b"last-event-id", b"7")],
            "client": ("::1", 80),
        }
        request = Request(
            method=scope["method"],
            target="/events?channel=a",
            path="/sse",
            query=scope["query_string"].decode(),
            version=(2, 0),
            fields=tuple(scope["headers"]),
            peer="[::1]:80",
        )
        found = decided(new_site(asks=True), request, permit=permit(request, True))
        self.assertEqual(found, stream("a", last="7"))


# ------------------------------------------------------------------------------------
# What the tests of time and sockets stand on: a client of bytes, and a test case that
# looks for what was left behind.
# ------------------------------------------------------------------------------------

# Seconds, for whatever a test waits for.  Up to 13 pass at once while a client waits.
DEADLINE = 20.0
DESCRIPTORS = "/proc/self/fd"
KIB = 1024
BUFFER = 64 * KIB  # of the kernel, for a client that is to stall soon


def inside(server):
    """The parts of a server that no program sees; the tests reach them from here."""
    return types.SimpleNamespace(
        broadcaster=server._broadcaster,
        intake=server._intake,
        log=server._intake.log,
        registry=server._registry,
        service=server._service,
        turns=server._service.parts.turns,
    )


class Answer(NamedTuple):
    """An HTTP answer as a client sees it."""

    status: int
    reason: str
    fields: list[tuple[str, str]]  # (name in lower case, value)
    body: bytes = b""

    def field(self, name):
        """The values of a field, joined, or None."""
        values = [value for field, value in self.fields if field == name.lower()]
        return ", ".join(values) if values else None


async def anext_of(iterator):
    """anext(), which Python 3.9 does not have, with the deadline."""
    return await asyncio.wait_for(iterator.__anext__(), DEADLINE)


async def rest_of(iterator):
    """All that it gives until its end."""
    found = []
    with contextlib.suppress(StopAsyncIteration):
        while True:
            found.append(await anext_of(iterator))
    return found


def ask(target="/sse", *fields, method="GET", version="1.1", body=b""):
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def post(target, body, *fields, token="secret"):
    """The bytes of a request to publish."""
    length = f"Content-Length: {len(body)}"
    bearer = [] if token is None else [f"Authorization: Bearer {token}"]
    return ask(target, length, *bearer, *fields, method="POST", body=body)


class Client:
    """An HTTP client on a bare socket; every wait has the deadline."""

    def __init__(self, sock):
        self.sock = sock
        self.received = bytearray()  # and not yet parsed
        self.answer = None  # of the stream
        self.content = bytearray()  # of the stream, framing taken off; compressed
        self.chunks = None  # its ChunkDecoder; None where it is not framed
        self.inflater = None  # None where it is not compressed
        self.decoder = Decoder()
        self._events = []
        self._reader = None  # the task that waits for what comes

    @classmethod
    async def connect(cls, port, host="127.0.0.1", receive_buffer=None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            connecting = asyncio.get_running_loop().sock_connect(sock, (host, port))
            await asyncio.wait_for(connecting, DEADLINE)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def name(self):
        """What the server knows it by."""
        host, port = self.sock.getsockname()
        return f"{host}:{port}"

    async def send(self, data):
        sending = asyncio.get_running_loop().sock_sendall(self.sock, data)
        await asyncio.wait_for(sending, DEADLINE)

    async def receive(self):
        """What comes next; b"" at the end."""
        receiving = asyncio.get_running_loop().sock_recv(self.sock, 64 * KIB)
        self._reader = asyncio.current_task()
        try:
            return await asyncio.wait_for(receiving, DEADLINE)
        finally:
            self._reader = None

    async def ended(self):
        """Whether nothing but the end of the connection comes."""
        try:
            return not self.received and await self.receive() == b""
        except ConnectionResetError:
            return True

    def close(self):
        if self._reader:  # of a test that failed: it would wait for another's socket
            self._reader.cancel()
        self.sock.close()

    def reset(self):
        """Leave as a crashed program does: the peer receives a RST."""
        linger = struct.pack("ii", 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()

    def end_of_input(self):
        """Say that no more will be sent, and stay to read."""
        self.sock.shutdown(socket.SHUT_WR)

    async def read_head(self):
        while b"\r\n\r\n" not in self.received:
            await self._receive_more()
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        self.received = bytearray(rest)
        status_line, *lines = head.decode().split("\r\n")
        version, status, reason = status_line.split(" ", 2)
        assert version == "HTTP/1.1", status_line
        fields = [line.split(": ", 1) for line in lines]
        return Answer(int(status), reason, [(n.lower(), v) for n, v in fields])

    async def read_answer(self, *, head_only=False):
        answer = await self.read_head()
        length = int(answer.field("content-length") or 0)
        if head_only:
            return answer
        while len(self.received) < length:
            await self._receive_more()
        body = bytes(self.received[:length])
        del self.received[:length]
        return answer._replace(body=body)

    async def request(self, data, **options):
        await self.send(data)
        return await self.read_answer(**options)

    async def _receive_more(self):
        data = await self.receive()
        if not data:
            raise EOFError(f"the connection ended after {bytes(self.received)!r}")
        self.received += data

    # Streams.

    async def open(self, data):
        """Send the request for a stream and read the head of the answer."""
        if data:
            await self.send(data)
        self.answer = await self.read_head()
        assert self.answer.status == 200, self.answer
        if self.answer.field("transfer-encoding") == "chunked":
            self.chunks = ChunkDecoder()
        if self.answer.field("content-encoding") == "gzip":
            self.inflater = zlib.decompressobj(GZIP)
        self._decode(bytes(self.received))
        return self

    def _decode(self, data):
        content = self.chunks.feed(data) if self.chunks else data
        self.content += content
        if self.inflater:
            content = self.inflater.decompress(content)
        self._events += self.decoder.feed(content)

    async def read_stream(self):
        """Read what comes next of the stream; whether it goes on."""
        data = await self.receive()
        self._decode(data)
        return bool(data)

    async def events(self, count):
        """The next events, so many; EOFError where the stream ends before."""
        deadline = time.monotonic() + DEADLINE  # for the next: heartbeats do not count
        while len(self._events) < count:
            before = len(self._events)
            if not await self.read_stream():
                raise EOFError(f"the stream ended after {self._events}")
            if len(self._events) > before:
                deadline = time.monotonic() + DEADLINE
            elif time.monotonic() > deadline:
                raise TimeoutError(f"no event for {DEADLINE:g} s")
        taken, self._events = self._events[:count], self._events[count:]
        return taken

    async def data(self, count):
        """The data of the next events."""
        return [event.data for event in await self.events(count)]

    async def until(self, last):
        """The next events up to the one of this data."""
        found = []
        while not found or found[-1].data != last:
            found += await self.events(1)
        return found

    async def rest(self):
        """The events that come until the stream ends, as it should."""
        while await self.read_stream():
            pass
        assert self.chunks is None or self.chunks.ended, "no last chunk"
        return self._take_all()

    async def rest_of_cut(self):
        """The events that come until the connection is cut, without an end."""
        with contextlib.suppress(ConnectionResetError):
            while await self.read_stream():
                pass
        assert self.chunks is None or not self.chunks.ended, "the last chunk"
        return self._take_all()

    def _take_all(self):
        taken, self._events = self._events, []
        return taken


OPENSSL = shutil.which("openssl")


@functools.cache
def certificate():
    """The files of a certificate for localhost and 127.0.0.1, and of its key."""
    folder = folder_of_the_module()
    unittest.addModuleCleanup(certificate.cache_clear)
    files = [os.path.join(folder, name) for name in ("certificate.pem", "key.pem")]
    command = [OPENSSL, "req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return files


def tls_context():
    """What a server speaks TLS with."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate())
    return context


class TLSClient(Client):
    """The same over TLS, by the standard library's layer that has no socket.

    Who reads to the end answers the server's close_notify, as clients do.
    """

    def __init__(self, sock):
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None
        self._over = False  # both sides have said close_notify

    @classmethod
    async def connect(cls, port, host="127.0.0.1", receive_buffer=None):
        client = await super().connect(port, host, receive_buffer)
        context = ssl.create_default_context(cafile=certificate()[0])
        client._tls = context.wrap_bio(
            client._incoming, client._outgoing, server_hostname=host
        )
        try:
            await client._run(client._tls.do_handshake)
        except BaseException:
            client.close()
            raise
        return client

    async def _run(self, operation, *arguments):
        while True:
            try:
                result = operation(*arguments)
                await self._flush()
                return result
            except ssl.SSLWantReadError:
                await self._flush()
                data = await super().receive()
                self._incoming.write(data)
                if not data:
                    self._incoming.write_eof()

    async def _flush(self):
        if self._outgoing.pending:
            await super().send(self._outgoing.read())

    async def send(self, data):
        if data:  # Python 3.9 takes the write of nothing for an error
            await self._run(self._tls.write, data)

    async def receive(self):
        if self._over:
            return b""
        try:
            data = await self._run(self._tls.read, 64 * KIB)
        except ssl.SSLZeroReturnError:  # close_notify, where ours was said before
            data = b""
        except ssl.SSLEOFError as error:
            raise ConnectionResetError("no close_notify") from error
        if not data:
            self._over = True
            with contextlib.suppress(ConnectionError):  # the server may have gone
                await self._run(self._tls.unwrap)
        return data

    def end_of_input(self):
        with contextlib.suppress(ssl.SSLWantReadError):  # for the server's answer
            self._tls.unwrap()
        self.sock.send(self._outgoing.read())
        super().end_of_input()


class ServerTestCase(unittest.IsolatedAsyncioTestCase):
    """Runs servers and clients, and fails where a test leaves something behind.

    That is a task, a thread, a descriptor, an object that had to be closed, or a
    warning or an error in the log that the test has not taken out with `logged`.
    """

    send_buffer = None  # of the kernel, for the server's connections
    tls = False  # whether servers and clients speak it: see OverTLS

    async def asyncSetUp(self):
        loop = asyncio.get_running_loop()
        loop.set_debug(False)  # it is slow, and logs what is slow
        loop.slow_callback_duration = float("inf")  # also of the step that is here
        self.clients = []
        self.transports = []  # of the server's connections, in order
        self.connections = []  # and what these transports call
        self.records = []
        self.unraisable = []
        self._watch_warnings()
        self._watch_log()
        self._watch_connections()
        self._take_over_the_clock()
        self.addAsyncCleanup(self._check_nothing_is_left, *self._what_there_is())
        self.addCleanup(self._close_clients)

    def _what_there_is(self):
        threads = {t for t in threading.enumerate() if "asyncio" not in t.name}
        descriptors = 0
        if os.path.isdir(DESCRIPTORS):
            descriptors = len(os.listdir(DESCRIPTORS))
        return asyncio.all_tasks(), threads, descriptors

    async def _check_nothing_is_left(self, tasks, threads, descriptors):
        expected = (set(), set(), 0)
        deadline = time.monotonic() + DEADLINE
        while True:
            now_tasks, now_threads, now_descriptors = self._what_there_is()
            left = (
                now_tasks - tasks - {asyncio.current_task()},
                now_threads - threads,
                now_descriptors - descriptors,
            )
            if left == expected or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.002)
        self.assertEqual(left, expected, "tasks, threads, descriptors left behind")
        # The test case is frozen (setUpModule), so what it keeps is never collected.
        for name in ("clients", "transports", "connections", "web", "ports"):
            vars(self).pop(name, None)
        gc.collect()
        self.assertEqual(self.unraisable, [])
        bad = [r.getMessage() for r in self.records if r.levelno >= logging.WARNING]
        self.assertEqual(bad, [], "logged and not expected")

    def _watch_warnings(self):
        catching = warnings.catch_warnings()
        catching.__enter__()
        self.addCleanup(catching.__exit__, None, None, None)
        warnings.simplefilter("error", ResourceWarning)
        warnings.simplefilter("error", RuntimeWarning)
        hook = mock.patch.object(
            sys,
            "unraisablehook",
            lambda failure: self.unraisable.append(repr(failure.exc_value)),
        )
        hook.start()
        self.addCleanup(hook.stop)

    def _watch_log(self):
        handler = logging.Handler(logging.DEBUG)
        handler.emit = self.records.append
        for name in ("sse_server", "asyncio"):
            logger = logging.getLogger(name)
            before = logger.level, logger.propagate
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
            self.addCleanup(self._restore_logger, logger, handler, *before)

    @staticmethod
    def _restore_logger(logger, handler, level, propagate):
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

    def _watch_connections(self):
        start_server = asyncio.start_server

        async def start(accept, *arguments, **options):
            def accepted(reader, writer):
                transport = writer.transport
                self.transports.append(transport)
                if self.send_buffer:
                    transport.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer
                    )
                accept(reader, writer)
                protocol = transport.get_protocol()
                connection = getattr(protocol, "connection", protocol)  # TLS knows it
                if hasattr(connection, "state"):  # it is not cut at once
                    self.connections.append(connection)

            return await start_server(accepted, *arguments, **options)

        self.change(asyncio, start_server=start)

    def _take_over_the_clock(self):
        """Only pass_time() makes it differ; the event loop goes by it as well."""
        monotonic = time.monotonic
        self.passed = 0.0  # seconds
        self.change(time, monotonic=lambda: monotonic() + self.passed)

    def _close_clients(self):
        for client in self.clients:
            client.close()

    def logged(self, level=logging.INFO):
        """Take the messages of a level out of the log."""
        taken = [r for r in self.records if r.levelno == level]
        self.records[:] = [r for r in self.records if r.levelno != level]
        return [record.getMessage() for record in taken]

    async def until(self, condition, what):
        """Wait for something that can be observed."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"not within {DEADLINE:g} s: {what}")
            await asyncio.sleep(0.002)

    async def until_stats(self, server, **expected):
        """Wait for the server's counts to be these."""

        def found():
            stats = server.stats
            return {name: getattr(stats, name) for name in expected}

        try:
            await self.until(lambda: found() == expected, "")
        except AssertionError:
            self.fail(f"not within {DEADLINE:g} s: {expected}, but {server.stats}")

    def in_state(self, *states):
        """The connections that are in one of these states, in the order they came."""
        return [c for c in self.connections if c.state in states]

    async def until_gone(self):
        """Wait until no connection is left."""
        await self.until(
            lambda: all(c.state == "closed" for c in self.connections), "the departures"
        )

    def new_server(self, host="127.0.0.1", port=0, **options):
        """A server that has yet to start."""
        if self.tls:
            options.setdefault("ssl", tls_context())
        return SSEServer(host, port, **options)

    async def start(self, host="127.0.0.1", port=0, **options):
        """A server that runs until the test ends."""
        options.setdefault("shutdown_timeout", 2.0)
        server = self.new_server(host, port, **options)
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        return server

    async def _stop(self, server):
        self._close_clients()
        await asyncio.wait_for(server.__aexit__(), DEADLINE)

    def change(self, holder, **values):
        """Have these attributes be others until the test ends."""
        patch = mock.patch.multiple(holder, **values)
        patch.start()
        self.addCleanup(patch.stop)

    async def in_thread(self, function, *arguments):
        """What the function returns, called where nothing else runs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, function, *arguments)

    async def cancel(self, task):
        """Before Python 3.12, wait_for() may lose a cancellation."""
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)

    async def pass_time(self, seconds):
        """Have so many seconds pass at once, in steps: a timer may set itself again."""
        for _ in range(20):
            self.passed += seconds / 20
            for _ in range(5):
                await asyncio.sleep(0)

    async def until_dropped(self, server, count):
        """Have time pass until so many were dropped.

        A kernel that takes some bytes late gives a client the whole of its time anew.
        """
        for _ in range(100):
            if server.stats.dropped == count:
                return
            await self.pass_time(1)
        self.fail(f"{server.stats.dropped} dropped, and not {count}")

    def give_way_after(self, writes):
        """Have a sweep's turn end after so many writes, and not after a time."""
        self.change(sse_server, _WRITES_PER_LOOK=writes)
        start = sse_server._Broadcaster.start

        def start_impatient(broadcaster):
            broadcaster.turn_is_over = lambda: True
            return start(broadcaster)

        self.change(sse_server._Broadcaster, start=start_impatient)

    async def visit(self, port, kind=Client, **options):
        """A client of whatever listens there, which the end of the test closes."""
        client = await kind.connect(port, **options)
        self.clients.append(client)
        return client

    async def asking(self, data, permission=True, **options):
        """A client whose request is being authorized; gate.set() answers it.

        Returns the server, the client and the gate.
        """
        gate = asyncio.Event()

        async def authorize(request):
            await gate.wait()
            return permission

        server = await self.start(authorize=authorize, **options)
        client = await self.connect(server)
        await client.send(data)
        await self.until(lambda: self.in_state("asking"), "the question")
        return server, client, gate

    async def connect(self, server, **options):
        kind = TLSClient if self.tls else Client
        return await self.visit(server.port, kind, **options)

    async def ask(self, server, data, **options):
        """The answer to one request on a connection of its own."""
        client = await self.connect(server)
        return await client.request(data, **options)

    async def stream(self, server, target="/sse", *fields, version="1.1", **options):
        """A client whose stream is open: who has read the head is a subscriber."""
        client = await self.connect(server, **options)
        return await client.open(ask(target, *fields, version=version))

    async def stall(self, server, size=8 * KIB, **options):
        """A client that does not read, so that its subscriber stays behind.

        Returns it and the data that were published meanwhile: more than the kernel and
        the transport take.
        """
        client = await self.stream(server, receive_buffer=BUFFER, **options)
        behind = server.stats.behind
        published = [f"{n} ".ljust(size, "x") for n in range(768 * KIB // size)]
        for data in published:
            server.publish(data)
            await server.drain()
        await self.until(lambda: server.stats.behind > behind, "one that is behind")
        return client, published


class Again:
    """Before a class of tests, in the bases of another: some of them in another way.

    `again` names the tests whose way through the module is another one.  The others
    would only be run twice.
    """

    again = ()

    def __init_subclass__(cls):
        if not cls.again:
            return  # a way, and no tests
        inherited = {name for name in dir(cls) if name.startswith("test_")}
        inherited -= set(vars(cls))
        unknown = set(cls.again) - inherited
        assert not unknown, unknown
        for name in inherited - set(cls.again):
            setattr(cls, name, None)


@unittest.skipUnless(OPENSSL, "the openssl program is not here")
class OverTLS(Again):
    """Over TLS."""

    tls = True


class WebServer:
    """Serves an ASGI application, as uvicorn and others do.

    It frames answers as the module does on its own port, so that tests can compare.
    """

    def __init__(self, application, **scope):
        self.application = application
        self.scope = scope  # what differs in it
        self.messages = asyncio.Queue()  # for the application's lifespan
        self.answers = []  # what it said to them
        self.tasks = set()

    async def start(self):
        self.lifespan = asyncio.ensure_future(
            self.application({"type": "lifespan"}, self.messages.get, self.note)
        )
        await self.say("lifespan.startup")
        self.listener = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = self.listener.sockets[0].getsockname()[1]
        return self

    async def note(self, message):
        self.answers.append(message)
        self.noted.set()

    async def say(self, kind):
        self.noted = asyncio.Event()
        await self.messages.put({"type": kind})
        await asyncio.wait_for(self.noted.wait(), DEADLINE)

    async def close(self):
        self.listener.close()
        await self.say("lifespan.shutdown")
        await self.lifespan

    def accept(self, reader, writer):
        task = asyncio.ensure_future(self.serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await Exchange(reader, writer).run(self.application, self.scope):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Exchange:
    """One request to an ASGI application, and its answer."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.chunks = False
        self.start = None  # the message with the answer's head, until it is written

    async def run(self, application, others):
        """Whether another request may follow."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head[:-4].split(b"\r\n")
        method, target, version = request_line.decode().split(" ")
        fields = [line.partition(b":") for line in lines]
        self.headers = [(name.lower(), value.strip()) for name, _, value in fields]
        self.version, self.method = version.partition("/")[2], method
        path, _, query = target.partition("?")
        asked = dict(self.headers)
        self.is_chunked = b"transfer-encoding" in asked
        self.missing = int(asked.get(b"content-length", 0))  # of the body
        closes = asked.get(b"connection", b"").lower() == b"close"
        self.keeps = self.version != "1.0" and not closes
        scope = {
            "type": "http",
            "http_version": self.version,
            "method": method,
            "path": urllib.parse.unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": self.headers,
            "client": self.writer.get_extra_info("peername"),
            **others,
        }
        await application(scope, self.receive, self.send)
        await asyncio.sleep(0)  # what waited for the client's departure ends
        return self.keeps and not (self.chunks and method != "HEAD")

    async def receive(self):
        try:
            return await self._receive()
        except (ConnectionError, asyncio.IncompleteReadError):
            return {"type": "http.disconnect"}

    async def _receive(self):
        if self.is_chunked:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            body = (await self.reader.readexactly(size + 2))[:-2]
            self.is_chunked = size > 0
            return {"type": "http.request", "body": body, "more_body": size > 0}
        if self.missing is not None:
            body = b""
            if self.missing:
                body = await self.reader.read(min(self.missing, 1000))
                if not body:
                    raise ConnectionResetError
            self.missing -= len(body)
            more = self.missing > 0
            self.missing = self.missing or None
            return {"type": "http.request", "body": body, "more_body": more}
        while await self.reader.read(64 * KIB):
            pass
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
            return
        if self.start:
            self._write_head(self.start["status"], self.start["headers"])
            self.start = None
        body, goes_on = message.get("body", b""), message.get("more_body", False)
        if self.chunks and body:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        if self.chunks and not goes_on:
            body += b"0\r\n\r\n"
        self.writer.write(body if self.method != "HEAD" else b"")
        await self.writer.drain()

    def _write_head(self, status, headers):
        lines = [f"HTTP/1.1 {status} {HTTPError(status).message}".encode()]
        lines += [b"%b: %b" % field for field in headers]
        self.keeps = self.keeps and not self.missing and not self.is_chunked
        unsized = status != 204 and b"content-length" not in dict(headers)
        self.chunks = unsized and self.version != "1.0"
        if self.chunks:
            lines.append(b"transfer-encoding: chunked")
        if unsized or not self.keeps:
            kept = b"keep-alive" if self.keeps else b"close"
            lines.append(b"connection: " + kept)
        lines.append(b"date: " + email.utils.formatdate(usegmt=True).encode())
        self.writer.write(b"\r\n".join([*lines, b"", b""]))


class OverASGI(Again):
    """By ASGI, where the server is the whole application."""

    async def start(self, host="127.0.0.1", port=0, **options):
        self.change(sse_server, _LINGER_SECONDS=0.05)
        server = await super().start(host, None, **options)
        self.web = await WebServer(server).start()
        self.addAsyncCleanup(self.web.close)
        self.ports = {**getattr(self, "ports", {}), server: self.web.port}
        return server

    async def connect(self, server, **options):
        return await self.visit(self.ports[server], **options)


# ------------------------------------------------------------------------------------
# 7. Audiences and the broadcaster
# ------------------------------------------------------------------------------------


class Kernel:
    """The sockets of a model: descriptors, lowest free one first, and their room."""

    def __init__(self, random_):
        self.table = {}
        self.random = random_

    def open(self, transport):
        descriptor = min(set(range(100, 100 + len(self.table) + 1)) - set(self.table))
        self.table[descriptor] = transport
        return descriptor

    def write(self, descriptor, data):
        """socket.send: what the socket has room for, or an error where it has none.

        Sometimes there is room a moment after the error.
        """
        transport = self.table[descriptor]
        if transport.held:
            raise AssertionError("written past what the transport holds")
        taken = self.random.random() < 0.95 and transport.take(data)
        if not taken:
            raise BlockingIOError
        return taken


class ModelTransport(asyncio.Transport):
    """A transport without a loop, whose socket has as much room as a test gives it."""

    def __init__(self, kernel):
        super().__init__()
        self.received = b""  # by the client
        self.held = b""  # waits for room
        self.room = 0
        self.protocol = asyncio.Protocol()
        self.closing = self.lost = self.paused = False
        self.written_late = False  # after its end
        self.kernel = kernel
        self.descriptor = kernel.open(self)

    def take(self, data):
        taken = data[: self.room]
        self.room -= len(taken)
        self.received += taken
        return len(taken)

    def write(self, data):
        self.written_late = self.written_late or self.closing
        if self.closing:
            return
        rest = data if self.held else data[self.take(data) :]
        self.held += rest
        if self.held and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def give_room(self, size):
        self.room += size
        self.held = self.held[self.take(self.held) :]
        if self.paused and not self.held:
            self.paused = False
            if not self.closing:
                self.protocol.resume_writing()
        if self.closing and not self.held:
            self.lose()

    def lose(self):
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(None)
            del self.kernel.table[self.descriptor]

    def close(self):
        self.closing = True
        if not self.held:
            self.lose()

    def abort(self):
        self.closing, self.held = True, b""
        self.lose()

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return len(self.held)

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def get_protocol(self):
        return self.protocol

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_extra_info(self, name, default=None):
        return self if name == "socket" else default

    def fileno(self):
        return self.descriptor

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def can_write_eof(self):
        return True

    def write_eof(self):
        pass


class ModelClient:
    """What a client was given and what it is owed, by the plain rules."""

    def __init__(self, transport, channels, position, owed_from, gzip):
        self.transport = transport
        self.channels = channels
        self.position = position  # it knows everything up to here, or was told a gap
        self.owed_from = owed_from  # of a new client: what it is owed follows this
        self.last_id = ""  # of the last event that came
        self.table = {}  # the newest data of each retained event it was given
        self.read = 0
        self.chunks = ChunkDecoder()
        self.inflater = zlib.decompressobj(GZIP) if gzip else None
        self.decoder = Decoder()


class SubscriberModelTest(unittest.TestCase):
    """Random lives of subscribers, against the promise: each event once, in order, or
    a gap in its place that says so; and in the end everybody knows all that is
    retained; each opening and closing is told once."""

    SCHEDULES = 100 * _FACTOR
    CHANNELS = ("a", "b", None)

    def test_random_schedules(self):
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        for seed in range(SEED, SEED + self.SCHEDULES):
            with self.subTest(seed=seed):
                loop.run_until_complete(self.run_schedule(random.Random(seed)))

    async def run_schedule(self, random_):
        self.random = random_
        self.kernel = Kernel(random_)
        self.direct = random_.random() < 0.6
        patches = {
            "_BATCH_EVENTS": random_.randint(1, 5),
            "_BATCH_BYTES": random_.choice((1, 100, 10_000)),
            "_WRITES_PER_LOOK": random_.randint(1, 5),
            "_CATCH_UPS_PER_TURN": random_.randint(1, 5),
            "_MAX_TRACKED_CHANNELS": 100,
            "_TAIL_BYTES": random_.choice((1, 100, 1000)),
            "_STORED_BYTES": random_.choice((0, 16, 100)),
            "_COMPRESSED_BYTES_PER_LOOK": random_.choice((50, 10_000)),
            "_direct_socket": lambda transport: (
                transport.descriptor if self.direct else None
            ),
            "_send": self.kernel.write,
        }
        with (
            mock.patch.multiple(sse_server, **patches),
            mock.patch.object(sse_server._Turns, "is_over", lambda *_: False),
            mock.patch.object(
                sse_server._Broadcaster,
                "turn_is_over",
                lambda broadcaster: random_.random() < 0.5,
            ),
            mock.patch.object(asyncio, "start_server", self.listen),
        ):
            await self.live()

    async def listen(self, accept, sock, **options):
        """Nobody connects but the clients of the model."""

        async def start_serving():
            self.accept = accept

        return types.SimpleNamespace(start_serving=start_serving, close=sock.close)

    async def live(self):
        random_ = self.random
        self.server = self.new_server(
            "127.0.0.1",
            0,
            history=random_.randint(0, 5),
            history_bytes=random_.choice((1000, 3000, 2**20)),
            heartbeat=None,
            write_timeout=1000,
            max_connections=1000,
            compress=True,
            on_open=lambda request: self.told.append((request.query, 1)),
            on_close=lambda request: self.told.append((request.query, -1)),
        )
        self.told, self.opened, self.finished = [], 0, {}
        self.end_stream = inside(self.server).broadcaster.end
        inside(self.server).broadcaster.end = self.end
        self.gap_for_all = False  # also for those who may have missed nothing
        self.tables = [{}]  # what is retained after each event
        self.evicted = False
        self.published = []  # (number, channel); a gap of the publisher's: EVERYBODY
        self.clients, self.gone, self.everybody = [], [], []
        self.work = iter(())
        acts = [self.publish] * 4 + [self.step] * 8 + [self.give_room] * 4 + [
            self.arrive, self.arrive, self.leave, self.disconnect, self.look,
            *[self.pause] * 4, self.rarely_forget, self.beat, self.fill, self.fill,
            self.say_gap, self.rarely_end, *self.more_acts(),
        ]  # fmt: skip
        # Several of one audience, of which some have room and some have none.
        self.alike = random_.random() < 0.4
        async with self.server:
            # From here on nothing runs but the acts, as they wait for nothing.
            for _ in range(6 * self.alike):
                self.arrive()
            for _ in range(60):
                random_.choice(acts)()
                self.check()
            await self.finish()

    def new_server(self, *arguments, **options):
        return SSEServer(*arguments, **options)

    def more_acts(self):
        return []

    def publisher(self):
        return self.server

    def publish(self):
        channel = self.random.choice((*self.CHANNELS, EVERYBODY))
        number = len(self.published) + 1
        data = f"{number} ".ljust(self.random.choice((1, 1, 300)), "x")
        name = self.random.choice((None, None, "one", "two"))
        self.publisher().publish(data, channel=channel, event=name, retain=bool(name))
        self.note(channel, (channel, name), number)

    def note(self, channel, key, number):
        self.published.append(channel)
        self.tables.append(dict(self.tables[-1]))
        if key[1]:
            self.tables[-1][key] = number
        retained = inside(self.server).log._retained
        self.evicted = self.evicted or set(retained) != set(self.tables[-1])

    def rarely_forget(self):
        if self.random.random() < 0.05:
            self.forget()

    def forget(self):
        """What was retained is forgotten; who knows it need not be told."""
        key = self.random.choice((*self.CHANNELS, EVERYBODY)), "one"
        known = key in inside(self.server).log._retained
        found = self.server.forget(event="one", channel=key[0])
        self.assertEqual(found, known)
        self.evicted = self.evicted or found

    def say_gap(self):
        self.publisher().publish_gap("lost")
        self.note(EVERYBODY, (None, None), None)

    def rarely_end(self):
        """A channel ends; what is published on it later begins it anew."""
        if self.random.random() < 0.1:
            channel = self.random.choice(self.CHANNELS)
            self.publisher().finish(channel)
            self.note(f"the end of {channel}", (None, None), None)

    def beat(self):
        inside(self.server).broadcaster._heartbeat_due = True

    def step(self):
        broadcaster = inside(self.server).broadcaster
        for _ in self.work:
            if broadcaster.turn_is_over():
                return
        self.work = broadcaster.work()

    def give_room(self):
        if self.clients:
            client = self.random.choice(self.clients)
            client.transport.give_room(self.random.choice((1, 10, 200, 5000)))

    def fill(self):
        """The sockets of some clients have little room left, or none."""
        for client in self.random.sample(self.clients, len(self.clients) // 2):
            client.transport.room = self.random.choice((0, 1, 30))

    def arrive(self):
        newest = len(self.published)
        number = 0 if self.alike else self.random.randint(0, 2)
        channels = self.random.sample(self.CHANNELS[:2], number)
        query = "&".join(f"channel={channel}" for channel in channels)
        fields, position, owed_from = [], None, newest
        kind = self.random.random()
        if kind < 0.4 and self.published:
            position = self.random.randint(0, newest)
            epoch = self.server.last_event_id.partition("-")[0]
            fields = [f"Last-Event-ID: {epoch}-{position}"]
        elif kind < 0.5:
            position, fields = 0, ["Last-Event-ID: nobody knows"]
        elif kind < 0.7:
            owed_from, replay = self.replayed(set(channels) or {None})
            query += f"&replay={replay}"
        transport = ModelTransport(self.kernel)
        transport.room = 10_000 if self.alike else self.random.choice((0, 50, 10_000))
        self.accept(None, types.SimpleNamespace(transport=transport))
        gzip = not self.alike and self.random.random() < 0.5
        fields += ["Accept-Encoding: gzip"] * gzip
        channels = set(channels) or {None}
        client = ModelClient(transport, channels, position, owed_from, gzip)
        if position:
            client.table = self.table(client, position)
        self.clients.append(client)
        self.everybody.append(client)
        connection = transport.protocol
        connection.data_received(ask(f"/sse?{query}", *fields))
        if connection.audience:
            self.opened += 1
        else:
            self.take_end(client, position, newest)

    def take_end(self, client, position, newest):
        """It is answered 204: nothing will come, and it has missed nothing."""
        self.assertEqual(client.transport.protocol.state in ("idle", "answering"), True)
        for channel in client.channels:
            end = f"the end of {channel}"
            found = [name for name in self.published if name in (channel, end)]
            self.assertEqual(found[-1:], [end])
        if position:
            self.assertEqual(self.owed(client, position, newest), [])
        self.clients.remove(client)
        self.everybody.remove(client)
        client.transport.lose()

    def end(self, connection, why, *retry):
        """Who is told that a stream is finished has everything."""
        self.finished[connection] = inside(self.server).log.sent
        if why != "finished":
            del self.finished[connection]
        self.end_stream(connection, why, *retry)

    def pause(self):
        """A transport may pause without being written to, as TLS does."""
        transports = [c.transport for c in self.clients if not self.direct]
        for transport in self.random.sample(transports, min(2, len(transports))):
            if not transport.paused and not transport.closing:
                transport.paused = True
                transport.protocol.pause_writing()

    def replayed(self, channels):
        """So many events are asked for: the position before them, and how many."""
        log = inside(self.server).log
        replay = self.random.choice((1, 2, "all"))
        held = [
            number
            for number in range(log.base + 1, log.newest + 1)
            if self.published[number - 1] in channels | {EVERYBODY}
        ]
        wanted = held if replay == "all" else held[-replay:]
        before = min([log.sent, *(number - 1 for number in wanted)])
        return max(before, log.base), replay

    def table(self, client, position):
        """The retained events of its channels at this position."""
        channels = client.channels | {EVERYBODY}
        found = self.tables[position].items()
        return {key: number for key, number in found if key[0] in channels}

    def leave(self):
        if self.clients:
            self.random.choice(self.clients).transport.lose()

    def disconnect(self):
        if self.clients and self.random.random() < 0.3:
            connection = self.random.choice(self.clients).transport.protocol
            if connection.state in sse_server._STREAMING:
                inside(self.server).broadcaster.end(connection, "disconnected")

    def look(self):
        for client in self.clients:
            connection = client.transport.protocol
            if connection.state == "full" and self.random.random() < 0.2:
                connection.expire()

    def check(self):
        """Each is in the one collection of its state, and read what it may."""
        server = self.server
        self.gone += [c for c in self.clients if c.transport.lost]
        self.clients = [c for c in self.clients if not c.transport.lost]
        members = inside(server).registry.members
        for client in self.clients:
            connection = client.transport.protocol
            found = [state for state in members if connection in members[state]]
            self.assertEqual(found, [connection.state])
            if connection.state == "live":
                self.assertEqual(client.transport.held, b"")
                audience = connection.audience
                found = [connection in audience.live, connection in audience.young]
                self.assertEqual(found.count(True), 1)
        live = sum(
            len(audience.live) + len(audience.young)
            for audience in inside(server).broadcaster._audiences.all()
        )
        self.assertEqual(live, len(members["live"]))
        self.assertEqual(len(inside(server).registry), len(self.clients))
        for client in [*self.clients, *self.gone]:
            self.read(client)
        for client in self.gone:
            end = self.finished.get(client.transport.protocol, 0)
            start = client.owed_from if client.position is None else client.position
            if start < end and not client.transport.held:
                self.assertEqual(self.owed(client, start, end), [], "ended too soon")
        self.gone.clear()

    def read(self, client):
        _, end, content = client.transport.received.partition(b"\r\n\r\n")
        if not end:
            return
        piece, client.read = content[client.read :], len(content)
        content = client.chunks.feed(piece)
        if client.inflater:
            content = client.inflater.decompress(content)
        for block in re.split(rb"(?<=\n\n)", content):
            self.read_block(client, block)

    def read_block(self, client, block):
        events = client.decoder.feed(block)
        if not events and client.decoder.last_event_id != client.last_id:
            # What else was retained was forgotten meanwhile: only the place comes.
            client.last_id = client.decoder.last_event_id
            self.assertIsNone(client.position, "a place, and neither new nor a gap")
            client.position = int(client.last_id.rpartition("-")[2])
            self.assertLessEqual(client.position, client.owed_from)
        for event in events:
            told = event.last_event_id != client.last_id
            client.last_id = event.last_event_id
            position = int(client.last_id.rpartition("-")[2] or 0) if told else None
            if event.type == "gap" and "lost" not in event.data:
                self.take_gap(client, position, event)
            elif event.type == "gap":
                self.take(client, position, position)
            else:
                number = int(event.data.split()[0])
                channel = self.published[number - 1]
                if event.type != "message":
                    client.table[channel, event.type] = number
                self.assertIn(channel, client.channels | {EVERYBODY})
                self.take(client, number, position)

    def take_gap(self, client, position, event):
        if position is None:  # what is retained follows; the last of it says the place
            client.position, client.owed_from = None, math.inf
            return
        if "history" in event.data and client.position is not None:
            owed = self.owed(client, client.position, position)
            ends = {f"the end of {channel}" for channel in client.channels}
            missed = owed or ends.intersection(self.published[client.position :])
            self.assertTrue(missed or self.gap_for_all, "needless")
        client.position = position

    def take(self, client, number, position):
        if position != number:  # retained
            self.assertIsNone(client.position, "retained, and neither new nor a gap")
            if position is not None:
                self.assertLess(number, position)
                self.assertLessEqual(position, client.owed_from)
                client.position = position
            return
        start = client.position
        if start is None:  # a new client may be given what was not swept when it came
            start = min(number - 1, client.owed_from)
        self.assertGreater(number, start, "twice, or out of order")
        self.assertEqual(self.owed(client, start, number - 1), [], "lost in silence")
        client.position = number

    def owed(self, client, start, end):
        return [
            number
            for number, channel in enumerate(self.published[start:end], start + 1)
            if channel in client.channels or channel == EVERYBODY
        ]

    async def finish(self):
        """With room for everything, everybody has everything in the end."""
        for _ in range(100_000):
            for client in self.clients:
                client.transport.give_room(10_000)
            self.step()
            broadcaster = inside(self.server).broadcaster
            newest = broadcaster.log.newest
            swept = broadcaster.log.sent == newest == broadcaster._written
            swept = swept and not inside(self.server).intake.has_news
            if swept and not inside(self.server).registry.count(
                "ready", "full", "leaving"
            ):
                break
        self.check()
        newest = len(self.published)
        for client in self.clients:
            connection = client.transport.protocol
            self.assertEqual(connection.state, "live")
            start = client.owed_from if client.position is None else client.position
            if start < math.inf:
                self.assertEqual(self.owed(client, start, newest), [], "undelivered")
            if not self.evicted:
                self.assertEqual(client.table, self.table(client, newest))
        for _ in self.work:
            pass
        await asyncio.wait_for(self.server.close(), DEADLINE)
        self.check()
        self.assertEqual([c for c in self.everybody if c.transport.written_late], [])
        self.assertEqual(self.kernel.table, {})
        await asyncio.sleep(0)
        sums = collections.Counter()
        for query, change in self.told:
            sums[query] += change
            self.assertGreaterEqual(sums[query], 0, "closed before it was opened")
        self.assertEqual(sum(change == 1 for _, change in self.told), self.opened)
        self.assertEqual(set(sums.values()) - {0}, set(), "opened and not closed")


class WindowModelTest(LogFileTestCase):
    """The logs of two processes that share a file, against a list of what was added."""

    CHANNELS = ("a", None, EVERYBODY)

    def test_random_histories(self):
        for seed in range(SEED, SEED + 20 * _FACTOR):
            with self.subTest(seed=seed):
                self.run_history(random.Random(seed), f"{self.path} {seed}")

    def run_history(self, random_, path):
        self.random = random_
        self.rows = []  # (channel, the event that a client is given, or None)
        self.retained = {}  # by channel and name: the event's data
        self.last_id = None  # of the newest row, if it is the publisher's
        options = {
            "history": random_.choice((0, 2, 100)),
            "retained": random_.choice((2, 100)),
        }
        limits = {
            "_FILE_SPARE_EVENTS": random_.choice((0, 3, 1000)),
            "_FILE_TRIM_EVENTS": random_.choice((1, 4)),
            "_FILE_BATCH_EVENTS": random_.choice((1, 3, 256)),
        }
        with mock.patch.multiple(sse_server, **limits):
            self.servers = [
                SSEServer(port=None, history_file=path, **options) for _ in range(2)
            ]
            self.begins = [self.count_begins(server) for server in self.servers]
            acts = self.publish, self.publish_gap, self.forget, self.compare
            for _ in range(50):
                random_.choices(acts, (6, 1, 2, 4))[0]()
            self.compare()
            for server in self.servers:
                inside(server).intake.close_file()

    def count_begins(self, server):
        log = inside(server).log
        count = mock.Mock(side_effect=log.restart)
        log.restart = count
        return count

    def publish(self):
        number = len(self.rows) + 1
        server, channel = map(self.random.choice, (self.servers, self.CHANNELS))
        name = self.random.choice((None, None, "x", "y", "z"))
        id = self.random.choice((None, None, f"own {number}"))
        found = server.publish(
            str(number), channel=channel, event=name, id=id, retain=bool(name)
        )
        self.last_id = id
        self.rows.append((channel, Event(name or "message", str(number), {found})))
        if name:
            self.retain(server, (channel, name), number)

    def retain(self, server, key, number):
        self.retained.pop(key, None)
        self.retained[key] = number
        if len(self.retained) > inside(server).log._max_retained:
            del self.retained[next(iter(self.retained))]

    def publish_gap(self):
        found = self.random.choice(self.servers).publish_gap("lost")
        # It has the id before it, if the log knows that, and else one of its own.
        ids = {found, self.last_id or found}
        self.rows.append((EVERYBODY, Event("gap", '{"reason":"lost"}', ids)))

    def forget(self):
        channel = self.random.choice(self.CHANNELS)
        name = self.random.choice("xyz")
        found = self.random.choice(self.servers).forget(name, channel)
        self.assertEqual(found, (channel, name) in self.retained)
        if found:
            del self.retained[channel, name]
            self.rows.append(("nobody", None))

    def compare(self):
        which = self.random.randrange(2)
        intake = self.servers[which]._intake
        log = intake.log
        before, begins = log.newest, self.begins[which].call_count
        intake.catch_up()
        self.assertEqual(log.newest, len(self.rows))
        entries, position = {}, log.base
        while position < log.newest:
            batch, position = log.read(position, log.newest)
            entries.update((entry.number, entry) for entry in batch)
        self.assertEqual([*entries], [*range(log.base + 1, log.newest + 1)])
        for number, entry in entries.items():
            channel, event = self.rows[number - 1]
            if event:
                (decoded,) = decode(entry.frame)
                self.assertEqual(decoded[:2], event[:2])
                self.assertIn(decoded.last_event_id, event.last_event_id)
                self.assertEqual(log.id_at(number) in event.last_event_id, True)
                self.assertEqual(entry.channel, channel)
            else:
                self.assertNotIn(entry.channel, self.CHANNELS)
        names = frozenset(self.CHANNELS)
        found = decode(b"".join(log.snapshot(0, log.newest, names)[0]))
        expected = [str(number) for number in self.retained.values()]
        self.assertEqual([event.data for event in found], expected)
        self.compare_missed(log, before, self.begins[which].call_count > begins)

    def compare_missed(self, log, before, has_begun):
        """What was forgotten is missed, by all if it was never read."""
        for channel in self.CHANNELS:
            last = max(
                (n for n in range(1, log.base + 1) if self.rows[n - 1][0] == channel),
                default=0,
            )
            for position in range(log.newest + 1):
                missed = log.missed(position, frozenset([channel]))
                if position < last:
                    self.assertTrue(missed, (position, last))
                elif missed:
                    self.assertTrue(log._forgotten_floor > position)
        if before == 0 or not has_begun:
            return
        self.assertGreater(log._forgotten_floor, before)


class FileSubscriberModelTest(SubscriberModelTest, LogFileTestCase):
    """The same, with a file into which another process publishes as well."""

    SCHEDULES = 30 * _FACTOR

    def new_server(self, *arguments, **options):
        file = {"history_file": f"{self.path} {self.random.random()}"}
        self.other = SSEServer(port=None, **file)
        # Few rows stay for who is slow to read them: then there is a gap for all.
        self.limits = mock.patch.multiple(
            sse_server,
            _FILE_SPARE_EVENTS=self.random.choice((0, 3, 1000)),
            _FILE_TRIM_EVENTS=self.random.choice((1, 3)),
            _FILE_BATCH_EVENTS=self.random.choice((1, 4, 256)),
        )
        self.limits.start()
        self.addCleanup(self.limits.stop)
        server = SSEServer(*arguments, **options, **file)
        log = inside(server).log
        begin, begins = log.restart, itertools.count()

        def begin_and_note(*state):
            self.gap_for_all = next(begins) > 0  # the first one is at the start
            begin(*state)

        log.restart = begin_and_note
        return server

    async def finish(self):
        self.see_the_other()
        await super().finish()
        self.assertEqual(inside(self.server).log.newest, len(self.published))
        await self.other.close()

    def more_acts(self):
        return [self.see_the_other] * 4

    def publisher(self):
        return self.random.choice((self.server, self.other))

    def see_the_other(self):
        """What is done every 20 ms."""
        intake = inside(self.server).intake
        if intake.file.changed():
            intake.has_news = True

    def note(self, channel, key, number):
        if self.random.random() < 0.5:
            inside(self.server).intake.catch_up()
        super().note(channel, key, number)

    def replayed(self, channels):
        inside(self.server).intake.catch_up()  # as each request does
        return super().replayed(channels)

    def forget(self):
        key = self.random.choice((*self.CHANNELS, EVERYBODY)), "one"
        found = self.publisher().forget(event="one", channel=key[0])
        if found:  # it has a place in the log, which nobody is sent
            self.note("nobody", (None, None), None)
        self.evicted = self.evicted or found


def numbers(ids):
    """The numbers in the server's own ids."""
    return [int(id.rpartition("-")[2]) for id in ids]


class BroadcastTest(ServerTestCase):
    async def test_everybody_receives_every_event_in_order(self):
        server = await self.start()
        clients = [await self.stream(server) for _ in range(5)]
        clients.append(await self.stream(server, version="1.0"))
        ids = [server.publish({"n": n}) for n in range(50)]
        expected = [
            Event("message", json.dumps({"n": n}, separators=(",", ":")), id)
            for n, id in enumerate(ids)
        ]
        for client in clients:
            self.assertEqual(await client.events(50), expected)
        self.assertEqual(server.last_event_id, ids[-1])

    async def test_a_burst_is_one_chunk_of_whole_events(self):
        """Rule 1: one batch, one write."""
        server = await self.start()
        client = await self.stream(server)
        for n in range(100):
            server.publish(str(n))
        await client.events(100)
        opening, burst = client.chunks.chunks
        self.assertTrue(opening.startswith(b": open\n"))
        self.assertEqual(burst.count(b"\n\n"), 100)

    async def test_every_chunk_ends_with_an_event(self):
        """Rule 5: no event is split between two batches."""
        server = await self.start(heartbeat=0.01)
        client = await self.stream(server)
        stream = await self.stream(server, version="1.0")
        for n in range(300):
            server.publish(f"{n}\n" * 200)
            if n % 7 == 0:
                await asyncio.sleep(0)
        expected = [f"{n}\n" * 200 for n in range(300)]
        self.assertEqual(await client.data(300), expected)
        self.assertEqual(await stream.data(300), expected)
        for chunk in client.chunks.chunks[1:]:
            self.assertTrue(chunk == b":\n" or chunk.endswith(b"\n\n"), chunk[-80:])

    async def test_the_batches_of_a_large_burst_are_bounded(self):
        """Rule 4: a batch is a buffer, too."""
        server = await self.start(history=10_000)
        client = await self.stream(server)
        for n in range(100):
            server.publish("x" * 10_000)
        server.publish("y" * 200_000)
        for n in range(3000):
            server.publish(str(n))
        await client.events(3101)
        sizes = [len(chunk) for chunk in client.chunks.chunks]
        large = [size for size in sizes if size > sse_server._BATCH_BYTES]
        self.assertEqual(len(large), 1, sizes)
        counts = [chunk.count(b"\n\n") for chunk in client.chunks.chunks]
        self.assertLessEqual(max(counts), sse_server._BATCH_EVENTS)
        self.assertGreater(len(counts), 13)

    async def test_who_joins_during_a_sweep_misses_nothing_and_gets_nothing_twice(self):
        """Rule 1: it begins where the live are, which is after the batch on its way."""
        self.give_way_after(1)
        server = await self.start()
        clients = [await self.stream(server) for _ in range(5)]
        ended = asyncio.Event()

        async def publish():
            while not ended.is_set():
                server.publish("")
                await asyncio.sleep(0)
            server.publish("end")

        publishing = asyncio.ensure_future(publish())
        for _ in range(20):
            clients.append(await self.stream(server))
        ended.set()
        await publishing
        last = numbers([server.last_event_id])[0]
        for client in clients:
            events = await client.until("end")
            found = numbers(event.last_event_id for event in events)
            self.assertEqual(found, list(range(found[0], last + 1)))

    async def count_turns(self, data):
        """The rounds of the event loop in which ten clients are written an event."""
        server = await self.start()
        clients = [await self.stream(server) for _ in range(10)]
        turns = []

        async def count():
            while server.stats.events_written < 10:
                turns.append(None)
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        server.publish(data)
        for client in clients:
            self.assertEqual(await client.data(1), [data])
        await counting
        return len(turns)

    async def test_a_sweep_gives_way_to_others(self):
        self.give_way_after(2)
        self.assertGreaterEqual(await self.count_turns("a"), 5)

    async def test_a_sweep_of_a_large_event_gives_way_sooner(self):
        self.give_way_after(10)
        at_once = await self.count_turns("x" * 2950)
        size = len(sse_server._chunk(format_event("x" * 2950, id="01234567-1")))
        for limit, pieces in (
            (1, 10), (2 * size - 1, 10), (2 * size, 5), (2 * size + 1, 5),
            (3 * size - 1, 5), (3 * size, 4), (10 * size - 1, 2), (10 * size, 1),
        ):  # fmt: skip
            with self.subTest(limit=limit):
                self.change(sse_server, _WRITTEN_BYTES_PER_LOOK=limit)
                turns = await self.count_turns("x" * 2950)
                self.assertEqual(turns, at_once + pieces - 1)

    async def test_nothing_is_kept_for_who_has_gone(self):
        server = await self.start(compress=True)
        server.publish("x" * 100_000)
        client = await self.stream(server, "/sse?replay=all")
        await client.data(1)
        client.close()
        await self.until_stats(server, live=0)
        await server.drain()
        kinds = sse_server._Audience, sse_server._Batch
        gc.collect()
        found = [o for o in gc.get_objects() if isinstance(o, kinds)]
        self.assertEqual(found, [])

    async def test_heartbeats_reach_who_is_ahead(self):
        server = await self.start(heartbeat=0.01, id_order=int, compress=True)
        server.publish("a", id="1")
        for fields in ((), ("Accept-Encoding: gzip",)):
            client = await self.stream(server, "/sse", "Last-Event-ID: 2", *fields)
            while not client.decoder.comments[2:]:
                await client.read_stream()
            self.assertEqual(server.stats.live, 0)

    async def test_heartbeats_reach_the_live_ones_at_their_interval(self):
        server = await self.start(heartbeat=0.02)
        framed = await self.stream(server)
        unframed = await self.stream(server, version="1.0")
        began = time.monotonic()
        for client in (framed, unframed):
            while client.content.count(b":\n") < 4:
                await client.read_stream()
        self.assertGreater(time.monotonic() - began, 0.04)
        self.assertEqual(framed.chunks.chunks[1:4], [b":\n"] * 3)
        self.assertEqual(server.stats.events_written, 0)
        server.publish("a")
        self.assertEqual(await framed.data(1), ["a"])

    async def test_heartbeats_go_on_while_events_pour_in(self):
        server = await self.start(heartbeat=0.02)
        quiet = await self.stream(server, "/sse?channel=quiet")
        await self.stream(server)

        async def pour():
            while True:
                server.publish("x")
                await asyncio.sleep(0)

        pouring = asyncio.ensure_future(pour())
        comments = len(quiet.decoder.comments)
        while len(quiet.decoder.comments) < comments + 3:
            await quiet.read_stream()
        pouring.cancel()

    async def test_without_heartbeats_nothing_is_sent_unasked(self):
        server = await self.start(heartbeat=None)
        other = await self.start(heartbeat=0.01)
        client = await self.stream(server)
        beating = await self.stream(other)
        while beating.content.count(b":\n") < 5:
            await beating.read_stream()
        server.publish("a")
        await client.events(1)
        self.assertEqual(len(client.chunks.chunks), 2)

    async def test_stats_count_what_was_written(self):
        server = await self.start()
        self.assertEqual(server.stats, sse_server.Stats(0, 0, 0, 0, 0, 0, 0, 0))
        clients = [await self.stream(server) for _ in range(3)]
        before = server.stats.bytes_written
        server.publish("a")
        server.publish("b")
        for client in clients:
            await client.data(2)
        await server.drain()
        stats = server.stats
        self.assertEqual((stats.live, stats.behind), (3, 0))
        self.assertEqual((stats.published, stats.events_written), (2, 6))
        chunk = clients[0].chunks.chunks[1]
        framed = len(chunk) + len(f"{len(chunk):x}\r\n\r\n")
        self.assertEqual(stats.bytes_written - before, 3 * framed)
        late = await self.stream(server, "/sse?replay=all")
        await late.data(2)
        await self.until_stats(server, live=4, bytes_written=before + 4 * framed)

    async def test_stats_count_while_others_catch_up(self):
        self.give_way_after(1)
        self.change(sse_server, _BATCH_EVENTS=1)
        server = await self.start()
        start = server.last_event_id
        for n in range(40):
            server.publish(str(n))
        await server.drain()
        clients = [await self.stream(server) for _ in range(30)]
        resuming = await self.connect(server)
        await resuming.send(ask(f"/sse?lastEventId={start}"))
        for n in range(40, 60):
            server.publish(str(n))
            await server.drain()
        for client in clients:
            self.assertEqual(await client.data(20), [*map(str, range(40, 60))])
        await resuming.open(b"")
        self.assertEqual(await resuming.data(60), [*map(str, range(60))])
        self.assertEqual(server.stats.events_written, 30 * 20 + 60)

    async def test_open_streams_have_no_tasks(self):
        """Rule 1: a subscriber owns no task."""
        server = await self.start()
        before = len(asyncio.all_tasks())
        clients = [await self.stream(server) for _ in range(20)]
        await self.until(lambda: len(asyncio.all_tasks()) <= before, "tasks to end")
        server.publish("a")
        for client in clients:
            self.assertEqual(await client.data(1), ["a"])


class BroadcastOverTLSTest(OverTLS, BroadcastTest):
    again = (
        "test_everybody_receives_every_event_in_order",
        "test_a_burst_is_one_chunk_of_whole_events",
        "test_who_joins_during_a_sweep_misses_nothing_and_gets_nothing_twice",
        "test_heartbeats_reach_the_live_ones_at_their_interval",
        "test_stats_count_what_was_written",
        "test_open_streams_have_no_tasks",
    )


class ResumeTest(ServerTestCase):
    async def test_who_resumes_at_the_same_place_gets_what_is_held_then(self):
        """Batches for those at the same position are shared only while they fit."""
        server = await self.start(history=3)
        first = server.publish("0")
        server.publish("state", event="s", retain=True)
        field = f"Last-Event-ID: {first}"
        gap = '{"reason":"history"}'
        for act, expected in (
            (lambda: None, ["state"]),
            (lambda: server.publish("2"), ["state", "2"]),
            (lambda: [server.publish(n) for n in "345"], [gap, "state", *"345"]),
            (lambda: server.forget("s"), [gap, *"345"]),
            (lambda: server.publish("6"), [gap, *"456"]),
        ):
            act()
            await server.drain()
            for _ in range(2):
                client = await self.stream(server, "/sse", field)
                self.assertEqual(await client.data(len(expected)), expected)

    async def test_ways_to_say_where_to_resume(self):
        server = await self.start()
        ids = [server.publish(str(n)) for n in range(5)]
        own = server.publish("5", id="own é/7")
        server.publish("6")
        quoted = "own%20%C3%A9%2F7"
        cases = {
            "header": ("/sse", [f"Last-Event-ID: {ids[2]}"], ["3", "4", "5", "6"]),
            "query": (f"/sse?last_event_id={ids[3]}", [], ["4", "5", "6"]),
            "query as polyfills do": (f"/sse?lastEventId={ids[4]}", [], ["5", "6"]),
            "the header wins": (
                f"/sse?lastEventId={ids[0]}",
                [f"Last-Event-ID: {ids[4]}"],
                ["5", "6"],
            ),
            "the caller's id in UTF-8": ("/sse", [f"Last-Event-ID: {own}"], ["6"]),
            "the caller's id in the query": (f"/sse?lastEventId={quoted}", [], ["6"]),
            "before the first": (
                f"/sse?lastEventId={ids[0][:-1]}0",
                [],
                ["0", "1", "2", "3", "4", "5", "6"],
            ),
        }
        for name, (target, fields, expected) in cases.items():
            with self.subTest(name):
                client = await self.stream(server, target, *fields)
                self.assertEqual(await client.data(len(expected)), expected)
        self.assertEqual(server.stats.gaps, 0)

    async def test_without_a_position_only_what_is_new(self):
        server = await self.start()
        server.publish("old")
        clients = [
            await self.stream(server),
            await self.stream(server, "/sse", "Last-Event-ID:"),
            await self.stream(server, "/sse?lastEventId="),
            await self.stream(server, "/sse", f"Last-Event-ID: {server.last_event_id}"),
        ]
        server.publish("new")
        for client in clients:
            self.assertEqual(await client.data(1), ["new"])

    async def test_a_page_that_knows_last_event_id_misses_nothing(self):
        server = await self.start()
        rendered = server.last_event_id
        ids = [server.publish("0"), server.publish("1")]
        client = await self.stream(server, f"/sse?last_event_id={rendered}")
        self.assertEqual(await client.data(2), ["0", "1"])
        self.assertEqual(server.last_event_id, ids[1])
        self.assertEqual(server.publish("2", id="mine"), "mine")
        self.assertEqual(server.last_event_id, "mine")
        self.assertEqual((await client.events(1))[0].last_event_id, "mine")

    async def test_an_unknown_id_is_one_gap_and_then_what_is_held(self):
        """Rule 3: what may be lost is said."""
        server = await self.start()
        for n in range(3):
            server.publish(str(n))
        for id in ("00000000-2", "nothing", "é"):
            with self.subTest(id):
                client = await self.stream(server, "/sse", f"Last-Event-ID: {id}")
                gap, *events = await client.events(4)
                self.assertEqual(gap.type, "gap")
                self.assertEqual(json.loads(gap.data), {"reason": "unknown id"})
                self.assertEqual([event.data for event in events], ["0", "1", "2"])
                self.assertNotIn(gap.last_event_id, ["", id])
        self.assertEqual(server.stats.gaps, 3)
        server.publish("3")
        self.assertEqual(await client.data(1), ["3"])

    async def test_who_may_have_missed_something_is_told(self):
        """Rule 3."""
        cases = {
            "a gap": [{"id": "7"}, None, {"id": "8"}],
            "events without an id": [{"id": "7"}, {}, {}, {}],
        }
        for (name, published), order in itertools.product(cases.items(), (None, int)):
            with self.subTest(name, order=order):
                server = await self.start(history=1, id_order=order)
                for fields in published:
                    if fields is None:
                        server.publish_gap()
                    else:
                        server.publish("a", **fields)
                await server.drain()
                client = await self.stream(server, "/sse?lastEventId=7")
                events = await client.events(2)
                self.assertEqual([e.type for e in events], ["gap", "message"])

    async def test_an_unknown_id_is_a_gap_even_where_nothing_is_held(self):
        server = await self.start()
        client = await self.stream(server, "/sse?lastEventId=before-the-restart")
        server.publish("0")
        events = await client.events(2)
        self.assertEqual([event.type for event in events], ["gap", "message"])
        again = await self.stream(server, f"/sse?lastEventId={events[0].last_event_id}")
        self.assertEqual(await again.data(1), ["0"])

    async def test_a_position_that_fell_off_the_log_is_a_gap(self):
        """Rule 3: what is lost is said."""
        server = await self.start(history=5)
        ids = [server.publish(str(n)) for n in range(20)]
        lost = await self.stream(server, f"/sse?lastEventId={ids[13]}")
        gap, *events = await lost.events(6)
        self.assertEqual((gap.type, gap.data), ("gap", '{"reason":"history"}'))
        self.assertEqual([event.data for event in events], [*map(str, range(15, 20))])
        self.assertEqual(gap.last_event_id, ids[14])
        held = await self.stream(server, f"/sse?lastEventId={ids[14]}")
        self.assertEqual(await held.data(5), [*map(str, range(15, 20))])
        self.assertEqual(server.stats.gaps, 1)

    async def test_events_that_are_too_old_are_forgotten(self):
        """Rule 3, on a server on which nothing happens meanwhile."""
        server = await self.start(history_seconds=60)
        ids = [server.publish(str(n), retain=n == 0) for n in range(2)]
        await server.drain()
        now = time.time()
        self.change(inside(server).log, _clock=lambda: now)
        replay = await self.stream(server, "/sse?replay=all")
        self.assertEqual(await replay.data(2), ["0", "1"])
        now += 100
        lost = await self.stream(server, f"/sse?lastEventId={ids[0]}")
        unknown = await self.stream(server, "/sse?lastEventId=unknown")
        held = await self.stream(server, f"/sse?lastEventId={ids[1]}")
        replay = await self.stream(server, "/sse?replay=all")
        server.publish("2")
        for client, reason in ((lost, "history"), (unknown, "unknown id")):
            gap, *others = await client.events(3)
            self.assertEqual(
                (gap.type, json.loads(gap.data)["reason"]), ("gap", reason)
            )
            self.assertEqual([event.data for event in others], ["0", "2"])
        self.assertEqual(await held.data(1), ["2"])
        self.assertEqual(await replay.data(2), ["0", "2"])
        self.assertEqual(server.stats.gaps, 2)

    async def test_history_of_none(self):
        server = await self.start(history=0)
        live = await self.stream(server)
        ids = [server.publish(str(n)) for n in range(3)]
        self.assertEqual(await live.data(3), ["0", "1", "2"])
        await server.drain()
        current = await self.stream(server, f"/sse?lastEventId={ids[2]}")
        lost = await self.stream(server, f"/sse?lastEventId={ids[1]}")
        server.publish("3")
        self.assertEqual(await live.data(1), ["3"])
        self.assertEqual(await current.data(1), ["3"])
        events = await lost.events(2)
        self.assertEqual(
            [event.data for event in events], ['{"reason":"history"}', "3"]
        )

    async def test_a_burst_above_history_bytes_is_a_gap_for_the_live(self):
        """Rule 3: even those who are live may lose something, and are told."""
        server = await self.start(history_bytes=20_000)
        client = await self.stream(server)
        other = await self.stream(server, "/sse?channel=other")
        for n in range(100):
            server.publish(f"{n} ".ljust(1000, "x"))
        gap, *events = await client.events(2)
        self.assertEqual((gap.type, gap.data), ("gap", '{"reason":"history"}'))
        first = int(events[0].data.split()[0])
        self.assertGreater(first, 80)
        self.assertEqual(numbers([gap.last_event_id])[0], first)
        found = [int(d.split()[0]) for d in await client.data(99 - first)]
        self.assertEqual(found, list(range(first + 1, 100)))
        self.assertEqual(server.stats.gaps, 1)
        server.publish("", channel="other")
        self.assertEqual(await other.data(1), [""])

    async def test_who_pauses_before_it_is_put_behind_is_told_of_the_gap(self):
        server = await self.start(history_bytes=20_000)
        clients = [await self.stream(server) for _ in range(2)]
        first, other = self.in_state("live")
        broadcaster = inside(server).broadcaster
        get_ready = broadcaster._get_ready

        def pause_the_other(subscriber):
            if subscriber is first:
                broadcaster.pause(other)
            get_ready(subscriber)

        broadcaster._get_ready = pause_the_other
        for n in range(100):
            server.publish(f"{n} ".ljust(1000, "x"))
        await self.until(lambda: other.state == "full", "the pause")
        await server.drain()
        other.resume_writing()
        for client in clients:
            self.assertEqual((await client.events(1))[0].type, "gap")

    async def test_those_who_lost_something_are_put_behind_in_turns(self):
        server = await self.start(history_bytes=20_000)
        for _ in range(3):
            await self.stream(server)
        for n in range(100):
            server.publish(f"{n} ".ljust(1000, "x"))
        work = inside(server).broadcaster.work()
        found = [server.stats.live for _ in itertools.islice(work, 3)]
        self.assertEqual(found, [2, 1, 0])

    async def test_resuming_at_full_speed_sees_every_event_once(self):
        """Rule 2: from its own position to that of the live, without a seam."""
        server = await self.start(history=100_000)
        position = server.last_event_id
        total = 6000

        async def publish():
            for n in range(total):
                server.publish(str(n))
                if n % 20 == 0:
                    await asyncio.sleep(0)

        publishing = asyncio.ensure_future(publish())
        seen = []
        while len(seen) < total:
            client = await self.connect(server)
            await client.open(ask("/sse", f"Last-Event-ID: {position}"))
            events = await client.events(min(237, total - len(seen)))
            seen += [event.data for event in events]
            position = events[-1].last_event_id
            client.reset()
        await publishing
        self.assertEqual(seen, [*map(str, range(total))])
        self.assertEqual(server.stats.gaps, 0)
        await self.until_stats(server, live=0, behind=0)

    async def test_an_id_that_the_live_have_not_been_given_yet(self):
        """Rule 2: the position is ahead of `sent`."""
        self.give_way_after(1)
        self.change(sse_server, _BATCH_EVENTS=1)
        server = await self.start()
        clients = [await self.stream(server) for _ in range(10)]
        ids = [server.publish(str(n), id=str(n)) for n in range(300)]
        ahead = await self.connect(server)
        await ahead.open(ask(f"/sse?lastEventId={ids[290]}"))
        self.assertLess(server.stats.events_written, 10 * 290)
        self.assertEqual(await ahead.data(9), [*map(str, range(291, 300))])
        for client in clients:
            self.assertEqual(await client.data(300), [*map(str, range(300))])


class RetainedTest(ServerTestCase):
    """What a new client is given at once, and who missed something."""

    async def seen(self, server, count, target="/sse", *fields):
        client = await self.stream(server, target, *fields)
        events = await client.events(count)
        client.close()
        return [(event.type, event.data, event.last_event_id) for event in events]

    async def test_a_new_client_is_given_the_newest_of_each_name_and_channel(self):
        server = await self.start()
        for number in range(3):
            server.publish(f"a{number}", event="a", retain=True)
            server.publish(f"b{number}", event="b", channel="b", retain=True)
            server.publish(f"plain{number}", retain=True)
        server.publish("everybody", channel=EVERYBODY, event="c", retain=True)
        server.publish("not retained")
        end = server.last_event_id
        self.assertEqual(
            await self.seen(server, 3),
            [("a", "a2", ""), ("message", "plain2", ""), ("c", "everybody", end)],
        )
        self.assertEqual(
            await self.seen(server, 2, "/sse?channel=b"),
            [("b", "b2", ""), ("c", "everybody", end)],
        )

    async def test_then_it_goes_on_live_and_resumes_by_the_last_ones_id(self):
        server = await self.start()
        server.publish("state", event="s", retain=True)
        client = await self.stream(server)
        (state,) = await client.events(1)
        server.publish("new")
        self.assertEqual(await client.data(1), ["new"])
        field = f"Last-Event-ID: {state.last_event_id}"
        again = await self.stream(server, "/sse", field)
        self.assertEqual(await again.data(1), ["new"])

    async def test_one_that_resumes_gets_what_it_missed_and_no_more(self):
        server = await self.start()
        first = server.publish("1", event="s", retain=True)
        server.publish("2", event="t", retain=True)
        seen = await self.seen(server, 1, "/sse", f"Last-Event-ID: {first}")
        self.assertEqual(seen[0][:2], ("t", "2"))

    async def test_after_a_gap_the_state_that_is_no_longer_held(self):
        server = await self.start(history=2)
        old = server.publish("old", event="s", retain=True)
        base = [server.publish(str(number)) for number in range(4)][1]
        for field, reason in (
            (f"Last-Event-ID: {old[:-1]}0", "history"),
            ("Last-Event-ID: nobody knows", "unknown id"),
        ):
            await server.drain()
            gap = json.dumps({"reason": reason}, separators=(",", ":"))
            seen = await self.seen(server, 4, "/sse", field)
            self.assertEqual(seen[:2], [("gap", gap, ""), ("s", "old", base)])
            self.assertEqual([data for _, data, _ in seen[2:]], ["2", "3"])

    async def test_an_id_is_the_last_field_of_its_event(self):
        """A client that takes it from its line loses no event that is cut off there."""
        server = await self.start(history=2)
        for data in ("retained", "b", "c", "d"):
            server.publish(data, event=data, retain=data == "retained")
        await server.drain()
        for field in ("A: new", "Last-Event-ID: unknown", "Last-Event-ID: mine"):
            client = await self.stream(server, "/sse?replay=1", field)
            server.publish_gap()
            server.publish({"last": [1, 2]}, id=f"mine, for {field}")
            await client.until('{"last":[1,2]}')
            _, _, blocks = bytes(client.content).partition(b"\nretry: ")
            lines = blocks.split(b"\n")[1:]
            after = {
                line for id, line in zip(lines, lines[1:]) if id.startswith(b"id: ")
            }
            self.assertEqual(after, {b""})

    async def test_forget(self):
        server = await self.start()
        server.publish("1", event="s", retain=True)
        server.publish("2", channel="c", retain=True)
        self.assertFalse(server.forget())
        self.assertTrue(server.forget("s"))
        self.assertFalse(server.forget("s"))
        self.assertTrue(server.forget(event="message", channel="c"))
        client = await self.stream(server, "/sse")
        server.publish("new")
        self.assertEqual(await client.data(1), ["new"])

    async def test_the_bound_on_their_number(self):
        for bound in (0, 1, 2, 3):
            server = await self.start(retained=bound)
            for number in range(bound + 1):
                server.publish(str(number), event=f"n{number}", retain=True)
            server.publish("again", event="n1", retain=True)
            server.publish("last")
            retained = inside(server).log._retained
            expected = [f"n{number}" for number in range(1, bound + 1)]
            self.assertEqual(sorted(name for _, name in retained), expected)

    async def test_they_do_not_shorten_the_history(self):
        server = await self.start(history_bytes=100_000)
        for number in range(10):
            server.publish("x" * 20_000, event=f"n{number}", retain=True)
        await server.drain()
        client = await self.stream(server, "/sse", "Last-Event-ID: unknown")
        await client.events(5)  # the gap, and the retained events, held or not
        before = server.last_event_id
        small = [str(number) for number in range(60)]
        for data in small:
            server.publish(data)
        self.assertEqual(await client.data(60), small)
        late = await self.stream(server, f"/sse?lastEventId={before}")
        self.assertEqual(await late.data(60), small)
        self.assertEqual(server.stats.gaps, 1)

    async def test_after_a_gap_those_that_are_held_come_once(self):
        server = await self.start(history=2)
        for name in "abc":
            server.publish(name, event=name, retain=True)
        await server.drain()
        client = await self.stream(server, "/sse", "Last-Event-ID: unknown")
        server.publish("end")
        events = await client.events(5)
        self.assertEqual([e.type for e in events], ["gap", *"abc", "message"])

    async def test_the_bound_on_their_bytes_is_that_of_the_history(self):
        size = cost_of(b"id: 01234567-1\nevent: s\ndata: \n\n", "s") + 100
        for bound, kept in ((2 * size - 1, 1), (2 * size, 2), (2 * size + 1, 2)):
            server = await self.start(history_bytes=bound)
            for name in "abc":
                server.publish("x" * 100, event=name, retain=True)
            self.assertEqual(len(inside(server).log._retained), kept)
            self.assertEqual(size_of(inside(server).log), kept)

    async def test_a_large_snapshot_goes_out_in_batches(self):
        server = await self.start()
        texts = [f"{number} " + "x" * 20_000 for number in range(20)]
        for number, text in enumerate(texts):
            server.publish(text, event=f"n{number}", retain=True)
        await server.drain()
        client = await self.stream(server)
        events = await client.events(20)
        self.assertEqual([event.data for event in events], texts)
        ids = [event.last_event_id for event in events]
        self.assertEqual(ids, [""] * 19 + [server.last_event_id])

    async def test_the_rest_of_a_snapshot_is_forgotten_meanwhile(self):
        """The client has the id of its position all the same."""
        self.change(sse_server, _BATCH_BYTES=20_000)
        server = await self.start()
        for name in "abc":
            server.publish("x" * 15_000, event=name, retain=True)
        await server.drain()
        send = inside(server).broadcaster._send

        def send_and_forget(*arguments):
            send(*arguments)
            for name in "bc":
                server.forget(name)

        self.change(inside(server).broadcaster, _send=send_and_forget)
        client = await self.stream(server)
        (state,) = await client.events(1)
        self.assertEqual((state.type, state.last_event_id), ("a", ""))
        await server.drain(behind=True)
        given = f"id: {server.last_event_id}\n\n".encode()
        server.publish("end")
        self.assertEqual(await client.data(1), ["end"])
        self.assertIn(given, client.content)
        self.assertEqual((server.stats.gaps, server.stats.events_written), (0, 2))

    async def test_by_post(self):
        server = await self.start(publish_token="secret")
        answer = await self.ask(server, post("/sse?event=s&retain=1", b"state"))
        self.assertEqual(answer.status, 200)
        id = answer.body.decode()
        self.assertEqual(await self.seen(server, 1), [("s", "state", id)])


class ReplayTest(ServerTestCase):
    async def test_a_new_client_asks_for_the_newest(self):
        server = await self.start(history=5)
        for number in range(8):
            server.publish(str(number), channel="ab"[number % 2])
        for query, expected in (
            ("channel=b&replay=1", ["7"]),
            ("channel=b&replay=2", ["5", "7"]),
            ("channel=b&replay=9", ["3", "5", "7"]),
            ("channel=a&channel=b&replay=all", ["3", "4", "5", "6", "7"]),
            ("channel=b&replay=0", []),
            ("channel=b", []),
        ):
            with self.subTest(query):
                client = await self.stream(server, f"/sse?{query}")
                server.publish("end", channel=EVERYBODY)
                data = await client.data(len(expected) + 1)
                self.assertEqual(data, [*expected, "end"])
                server = await self.start(history=5)
                for number in range(8):
                    server.publish(str(number), channel="ab"[number % 2])

    async def test_the_bound_on_what_is_looked_at(self):
        server = await self.start()
        for number in range(5):
            server.publish(str(number))
        await server.drain()
        for bound, expected in ((4, "1"), (5, "0"), (6, "0")):
            with mock.patch.object(sse_server, "_MAX_REPLAY_SCAN", bound):
                client = await self.stream(server, "/sse?replay=all")
                self.assertEqual(await client.data(1), [expected])

    async def test_a_last_event_id_wins(self):
        server = await self.start()
        ids = [server.publish(str(number)) for number in range(4)]
        field = f"Last-Event-ID: {ids[2]}"
        client = await self.stream(server, "/sse?replay=all", field)
        self.assertEqual(await client.data(1), ["3"])

    async def test_what_a_client_gets_that_asks_for_nothing(self):
        server = await self.start(replay=2)
        for number in range(4):
            server.publish(str(number))
        client = await self.stream(server)
        self.assertEqual(await client.data(2), ["2", "3"])


class SlowClientTest(ServerTestCase):
    send_buffer = BUFFER

    async def test_who_never_reads_harms_nobody_and_is_dropped(self):
        """Rule 5: the broadcaster waits for no client.  Rule 4: nor does it for ever."""
        server = await self.start(write_timeout=15, history=100_000)
        stalled = [await self.stream(server, receive_buffer=BUFFER) for _ in range(2)]
        reading = [await self.stream(server) for _ in range(4)]
        expected = [f"{n} ".ljust(8 * KIB, "x") for n in range(250)]

        async def publish():
            for data in expected:
                server.publish(data)
                await server.drain()

        publishing = asyncio.ensure_future(publish())
        found = await asyncio.gather(*[client.data(250) for client in reading])
        await publishing
        for data in found:
            self.assertEqual(data, expected)
        largest = sse_server._BATCH_BYTES + 64 * KIB
        for transport in self.transports:
            self.assertLess(transport.get_write_buffer_size(), largest)
        self.assertEqual((server.stats.behind, server.stats.dropped), (2, 0))
        await self.until_dropped(server, 2)
        self.assertEqual((server.stats.live, server.stats.behind), (4, 0))
        left = [line for line in self.logged() if " left, " in line]
        self.assertEqual(len(left), 2)
        self.assertIn("left, took nothing for 15 s; 5 remain", left[0])
        events = await stalled[0].rest_of_cut()
        self.assertEqual([e.data for e in events], expected[: len(events)])

    async def test_who_reads_again_catches_up_and_is_live(self):
        """Rule 2; at once, and not when its time is looked at."""
        server = await self.start(history=100_000, write_timeout=1000)
        client, expected = await self.stall(server)
        for n in range(40):
            server.publish(str(n))
        await server.drain()
        self.assertEqual((server.stats.live, server.stats.behind), (0, 1))
        self.assertEqual(await client.data(len(expected)), expected)
        self.assertEqual(await client.data(40), [*map(str, range(40))])
        await self.until_stats(server, live=1, behind=0)
        server.publish("live again")
        self.assertEqual(await client.data(1), ["live again"])
        self.assertEqual((server.stats.gaps, server.stats.dropped), (0, 0))
        for chunk in client.chunks.chunks[1:]:
            self.assertTrue(chunk.endswith(b"\n\n"))

    async def test_after_a_gap_come_events_however_fast_the_log_forgets(self):
        """Between two turns of its own, all that the live were given is forgotten."""
        server = await self.start(history=2, history_bytes=1500)
        serve = inside(server).broadcaster._serve_ready
        turns = [0]

        def serve_late():
            if turns[0] < 3 and server.stats.behind:
                turns[0] += 1
                for n in range(5):
                    server.publish(f"{turns[0]}.{n}")
            return serve()

        inside(server).broadcaster._serve_ready = serve_late
        client = await self.stream(server, "/sse", "Last-Event-ID: unknown")
        events = await client.until("3.4")
        gaps = [event.type == "gap" for event in events]
        self.assertTrue(gaps[0])
        self.assertNotIn((True, True), list(zip(gaps, gaps[1:])))

    async def test_who_reads_again_too_late_is_told_of_the_gap(self):
        """Rule 3; of more than one, where the kernel took something in between."""
        server = await self.start(history=10)
        client, published = await self.stall(server)
        for n in range(50):
            published.append(str(n))
            server.publish(published[-1])
        await server.drain()
        events = await client.until("49")
        position, gap = 0, False
        for event in events:
            if event.type == "gap":
                self.assertEqual(event.data, '{"reason":"history"}')
                self.assertFalse(gap, "two gaps at once")
                gap = True
                continue
            found = published.index(event.data)
            if gap:
                self.assertGreater(found, position)
            else:
                self.assertEqual(found, position)
            position, gap = found + 1, False
        last = [event.data for event in events[-11:]]
        self.assertEqual(last, ['{"reason":"history"}', *map(str, range(40, 50))])
        gaps = sum(event.type == "gap" for event in events)
        self.assertEqual(server.stats.gaps, gaps)

    async def test_one_who_left_while_behind_finds_its_events_again(self):
        server = await self.start(history=100_000)
        client, expected = await self.stall(server)
        await self.until_dropped(server, 1)
        events = await client.rest_of_cut()
        position = events[-1].last_event_id
        again = await self.stream(server, "/sse", f"Last-Event-ID: {position}")
        rest = await again.data(len(expected) - len(events))
        self.assertEqual([e.data for e in events] + rest, expected)

    async def test_a_slow_reader_that_takes_something_is_not_dropped(self):
        server = await self.start(write_timeout=6, history_bytes=4 * 1024 * KIB)
        client = await self.stream(server, version="1.0", receive_buffer=BUFFER)
        expected = ["x" * 1000 * KIB, "y"]  # the first: one write, long under way
        for data in expected:
            server.publish(data)
        await self.until_stats(server, live=0, behind=1)
        for number in range(1, 13):
            await self.pass_time(1)
            while len(client.content) < number * 40 * KIB:
                await client.read_stream()
            self.assertEqual(server.stats.behind, 1)
        self.assertEqual(server.stats.dropped, 0)
        self.assertEqual(await client.data(2), expected)

    async def test_heartbeats_keep_nobody_who_never_reads(self):
        """Rule 4: neither does its time begin anew, nor does what it is owed grow."""
        server = await self.start(write_timeout=12, heartbeat=0.5)
        await self.stall(server)
        await self.pass_time(7)
        self.assertEqual(server.stats.dropped, 0)
        held = self.transports[0].get_write_buffer_size()
        self.assertLess(held, sse_server._BATCH_BYTES + 64 * KIB)
        await self.until_dropped(server, 1)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))

    async def test_a_little_that_is_read_late_is_no_harm(self):
        server = await self.start(heartbeat=0.02)
        client = await self.stream(server, receive_buffer=BUFFER)
        count = 0
        while not server.stats.behind:
            server.publish(f"{count} ".ljust(8 * KIB, "x"))
            await server.drain()
            count += 1
        found = await client.data(count)
        self.assertEqual([int(d.split()[0]) for d in found], list(range(count)))
        await self.until_stats(server, live=1, behind=0)
        server.publish("end")
        self.assertEqual(await client.data(1), ["end"])

    async def test_who_reads_again_among_heartbeats_catches_up(self):
        """Rule 2; with heartbeats, which look at what was not taken."""
        server = await self.start(write_timeout=1.5, history=100_000, heartbeat=0.02)
        client = await self.stream(server, receive_buffer=BUFFER)
        transport = self.transports[0]
        published = []

        def fell_behind():
            if not transport.get_write_buffer_size():
                published.append(str(len(published)).ljust(8 * KIB, "x"))
                server.publish(published[-1])
            return server.stats.behind

        await self.until(fell_behind, "one that is behind")
        for n in range(100):
            published.append(str(n).ljust(8 * KIB, "y"))
            server.publish(published[-1])
        self.assertEqual(await client.data(len(published)), published)
        await self.until_stats(server, live=1, behind=0)
        self.assertEqual((server.stats.dropped, server.stats.gaps), (0, 0))

    async def test_drain_waits_for_those_behind_only_if_asked(self):
        server = await self.start(history=100_000)
        client, expected = await self.stall(server)
        for n in range(200):
            server.publish(str(n).ljust(8 * KIB, "x"))
        await asyncio.wait_for(server.drain(), DEADLINE)
        draining = asyncio.ensure_future(server.drain(behind=True))
        await asyncio.sleep(0)
        for _ in range(300):
            server.publish("after".ljust(8 * KIB, "x"))
        await asyncio.wait_for(server.drain(), DEADLINE)
        self.assertFalse(draining.done())
        await client.data(len(expected) + 200)
        await asyncio.wait_for(draining, DEADLINE)
        self.assertEqual(server.stats.behind, 1)  # what came later is not waited for

    async def test_drain_of_those_behind_ends_when_they_leave(self):
        server = await self.start(write_timeout=1000, history=100_000)
        client, _ = await self.stall(server)
        draining = asyncio.ensure_future(server.drain(behind=True))
        await asyncio.sleep(0)
        self.assertFalse(draining.done())
        client.reset()
        await asyncio.wait_for(draining, DEADLINE)
        self.assertEqual(server.stats.behind, 0)

    async def test_drain_of_those_behind_ends_when_they_are_dropped(self):
        server = await self.start(write_timeout=12, history=100_000)
        await self.stall(server)
        for n in range(200):
            server.publish(str(n).ljust(8 * KIB, "x"))
        draining = asyncio.ensure_future(server.drain(behind=True))
        await self.pass_time(7)
        self.assertFalse(draining.done())
        await self.until_dropped(server, 1)
        await asyncio.wait_for(draining, DEADLINE)
        self.assertEqual(server.stats.behind, 0)

    async def test_who_has_not_read_the_answers_before_is_not_given_a_stream_yet(self):
        """Rule 4: what a connection holds is bounded, whatever it asks for."""
        self.send_buffer = 4 * KIB
        server = await self.start(write_timeout=1000)
        client = await self.connect(server, receive_buffer=BUFFER)
        page = ask("/sse", "Accept: text/html")
        await client.send(page * 20 + ask())
        await self.until(
            lambda: self.transports and self.transports[0].get_write_buffer_size(),
            "an answer that is not taken",
        )
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))
        size = len((await client.read_answer()).body)
        self.assertLess(self.transports[0].get_write_buffer_size(), 2 * size)
        for _ in range(19):
            self.assertEqual(len((await client.read_answer()).body), size)
        await client.open(b"")
        await self.until_stats(server, live=1, behind=0)


class SlowClientOverTLSTest(OverTLS, SlowClientTest):
    again = (
        "test_who_never_reads_harms_nobody_and_is_dropped",
        "test_who_reads_again_catches_up_and_is_live",
        "test_who_reads_again_too_late_is_told_of_the_gap",
        "test_one_who_left_while_behind_finds_its_events_again",
        "test_a_slow_reader_that_takes_something_is_not_dropped",
        "test_heartbeats_keep_nobody_who_never_reads",
        "test_a_little_that_is_read_late_is_no_harm",
        "test_who_reads_again_among_heartbeats_catches_up",
        "test_drain_of_those_behind_ends_when_they_leave",
        "test_who_has_not_read_the_answers_before_is_not_given_a_stream_yet",
    )


class DepartureTest(ServerTestCase):
    rounds = 10  # of many visits

    async def test_ways_to_leave_are_noticed_without_a_write(self):
        """Rule 6: the connection's transport tells it."""
        ways = {"close": Client.close, "reset": Client.reset}
        server = await self.start(heartbeat=None)
        stays = await self.stream(server)
        for way, leave in ways.items():
            for version in ("1.1", "1.0"):
                with self.subTest(way, version=version):
                    client = await self.stream(server, version=version)
                    self.logged()
                    name = client.name
                    leave(client)
                    await self.until_stats(server, live=1, behind=0)
                    await self.until(lambda: self.records, "the departure in the log")
                    (line,) = self.logged()
                    self.assertRegex(line, f"^{name} left, .+; 1 remain$")
        server.publish("a")
        self.assertEqual(await stays.data(1), ["a"])
        self.assertEqual(server.stats.events_written, 1)

    async def test_who_ends_its_input_is_told_to_come_back(self):
        for version in ("1.1", "1.0"):
            with self.subTest(version):
                server = await self.start(heartbeat=None)
                client = await self.stream(server, version=version)
                client.end_of_input()
                self.assertEqual(await client.rest(), [])
                self.assertTrue(2500 <= client.decoder.retry <= 7500)
                await self.until_stats(server, live=0)

    async def test_many_visits_leave_nothing(self):
        server = await self.start()
        for n in range(self.rounds):
            clients = [await self.stream(server) for _ in range(20)]
            server.publish(str(n))
            for number, client in enumerate(clients):
                if number % 3 == 0:
                    client.reset()
                elif number % 3 == 1:
                    client.close()
                else:
                    self.assertEqual(await client.data(1), [str(n)])
                    client.end_of_input()
            await self.until_stats(server, live=0, behind=0)
            for client in clients:
                client.close()
        self.assertEqual(server.stats.published, self.rounds)

    async def test_one_that_leaves_in_the_midst_of_writes_is_no_error(self):
        server = await self.start()
        clients = [await self.stream(server) for _ in range(10)]
        for n in range(40):
            server.publish(str(n) * 1000)
            if n % 4 == 3:
                clients.pop().reset()
            await server.drain()
        await self.until_stats(server, live=0, behind=0)

    async def test_one_that_leaves_while_it_is_authorized_is_no_subscriber(self):
        ways = {
            "close": (Client.close, b""),
            "reset": (Client.reset, b""),
            "end of input": (lambda client: client.end_of_input(), b""),
            "end of input after data": (lambda client: client.end_of_input(), b"x"),
        }
        for name, (leave, data) in ways.items():
            with self.subTest(name):
                server, client, gate = await self.asking(ask(), heartbeat=None)
                await client.send(data)
                leave(client)
                await self.look_around()
                gate.set()
                await self.until(self.transports[-1].is_closing, "the end")
                await self.until_stats(server, live=0, behind=0)

    async def test_one_that_sent_much_while_it_was_authorized_is_seen_to_leave(self):
        """Rule 6: its input was not read any more."""
        server, client, gate = await self.asking(ask(), heartbeat=None)
        await client.send(b"x" * 300_000)
        gate.set()
        await client.open(b"")
        client.close()
        await self.pass_time(20)  # a stream's input is read slowly
        await self.until_stats(server, live=0)

    async def look_around(self):
        """Let the event loop see what has come."""
        other = await self.start()
        await self.ask(other, ask("/", "Connection: close"))
        self.transports.pop()

    async def test_arrivals_and_departures_are_logged(self):
        server = await self.start()
        self.logged()
        first = await self.stream(server)
        second = await self.stream(server)
        one, two = first.name, second.name
        first.close()
        await self.until_stats(server, live=1)
        lines = self.logged()
        self.assertEqual(
            lines[:2], [f"{one} joined; 1 connected", f"{two} joined; 2 connected"]
        )
        self.assertRegex(lines[2], f"^{one} left, .*client; 1 remain$")


class DepartureOverTLSTest(OverTLS, DepartureTest):
    rounds = 3
    again = (
        "test_ways_to_leave_are_noticed_without_a_write",
        "test_who_ends_its_input_is_told_to_come_back",
        "test_many_visits_leave_nothing",
        "test_one_that_leaves_in_the_midst_of_writes_is_no_error",
        "test_one_that_leaves_while_it_is_authorized_is_no_subscriber",
        "test_one_that_sent_much_while_it_was_authorized_is_seen_to_leave",
    )


class ChannelTest(ServerTestCase):
    async def test_nothing_is_left_of_a_channel_that_nobody_hears(self):
        server = await self.start()
        versions = ("1.1", "1.0", "1.1")  # two audiences
        clients = [
            await self.stream(server, "/sse?channel=a", version=version)
            for version in versions
        ]
        server.publish("a", channel="a")
        for client in clients:
            self.assertEqual(await client.data(1), ["a"])
            client.close()
        await self.until_stats(server, live=0)
        self.assertEqual(inside(server).broadcaster._audiences._by_channel, {})

    async def test_a_sweep_of_many_channels_gives_way_by_time(self):
        server = await self.start()
        names = [f"c{number}" for number in range(20)]
        clients = [await self.stream(server, f"/sse?channel={n}") for n in names]
        clock = itertools.count()  # each look at it takes a second
        fake = types.SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
        self.change(sse_server, time=fake, _BROADCAST_SECONDS=3)
        looks = []
        is_over = inside(server).broadcaster.turn_is_over
        inside(server).broadcaster.turn_is_over = lambda: (
            looks.append(is_over()) or looks[-1]
        )
        for name in names:
            server.publish(name, channel=name)
        for name, client in zip(names, clients):
            self.assertEqual(await client.data(1), [name])
        turns = "".join("over" if look else "." for look in looks)
        self.assertRegex(turns, r"^(\.\.\.?over){5,}\.*$")

    async def test_a_sweep_of_many_channels_is_no_work_for_the_garbage_collector(self):
        server = await self.start()
        wish = sse_server._Wish(frozenset("a"), True, False, True)
        audiences = [sse_server._Audience(wish) for _ in range(1000)]
        for audience in audiences:
            audience.live[audience] = None
        gc.collect()
        self.addCleanup(gc.enable)
        gc.disable()
        before = len(gc.get_objects())
        taken = inside(server).broadcaster._take(audiences)
        self.assertLess(len(gc.get_objects()) - before, 100)
        self.assertTrue(taken)

    async def test_who_receives_what(self):
        server = await self.start()
        targets = {
            "/sse": ["0", "4"],
            "/sse?channel=a": ["1", "5"],
            "/sse?channel=b": ["2"],
            "/sse?channel=a&channel=b": ["1", "2", "5"],
            "/sse?channel=b&channel=a&channel=a": ["1", "2", "5"],
            "/sse?channel=%C3%A9+%2F&channel=b": ["2", "3"],
            "/sse?channel=nothing": [],
        }
        clients = {t: await self.stream(server, t) for t in targets}
        for n, channel in enumerate([None, "a", "b", "é /", None, "a"]):
            server.publish(str(n), channel=channel)
        for channel in (None, "a", "b", "é /", "nothing"):
            server.publish("end", channel=channel)
        for target, expected in targets.items():
            with self.subTest(target):
                found = await clients[target].until("end")
                self.assertEqual([e.data for e in found], [*expected, "end"])

    async def test_one_sequence_of_ids_resumes_them_all(self):
        server = await self.start()
        ids = [server.publish(str(n), channel="abc"[n % 3]) for n in range(12)]
        self.assertEqual(numbers(ids), list(range(1, 13)))
        target = f"/sse?channel=a&channel=c&lastEventId={ids[4]}"
        client = await self.stream(server, target)
        self.assertEqual(await client.data(5), ["5", "6", "8", "9", "11"])
        self.assertEqual(client.decoder.last_event_id, ids[11])

    async def test_a_channel_nobody_listens_to_costs_nothing(self):
        server = await self.start()
        client = await self.stream(server)
        for n in range(50):
            server.publish(str(n), channel=f"channel {n}")
        await server.drain()
        self.assertEqual(server.stats.events_written, 0)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(len(client.chunks.chunks), 2)

    async def test_a_gap_is_only_for_whose_channel_lost_something(self):
        """Rule 3: who lost nothing is told nothing."""
        server = await self.start(history=10)
        quiet = server.publish("kept", channel="quiet")
        for n in range(30):
            server.publish(str(n), channel="busy")
        server.publish("new", channel="quiet")
        server.publish("new", channel="busy")
        client = await self.stream(server, f"/sse?channel=quiet&lastEventId={quiet}")
        events = await client.events(1)
        self.assertEqual((events[0].type, events[0].data), ("message", "new"))
        client = await self.stream(server, f"/sse?channel=busy&lastEventId={quiet}")
        self.assertEqual((await client.events(1))[0].type, "gap")
        target = f"/sse?channel=quiet&channel=busy&lastEventId={quiet}"
        client = await self.stream(server, target)
        self.assertEqual((await client.events(1))[0].type, "gap")
        self.assertEqual(server.stats.gaps, 2)

    async def test_up_to_100_channels_of_up_to_256_bytes(self):
        server = await self.start()
        longest = "x" * 256
        many = "&".join(f"channel={n}" for n in range(100))
        client = await self.stream(server, f"/sse?channel={longest}")
        hundred = await self.stream(server, f"/sse?{many}")
        server.publish("a", channel=longest)
        server.publish("b", channel="99")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(await hundred.data(1), ["b"])


class CompressionTest(ServerTestCase):
    """One deflate for a whole audience; each client inflates what it got by itself."""

    ACCEPT = "Accept-Encoding: gzip, deflate, br"

    async def zipped(self, server, target="/sse", *fields, **options):
        client = await self.stream(server, target, self.ACCEPT, *fields, **options)
        self.assertEqual(client.answer.field("content-encoding"), "gzip")
        return client

    async def test_who_is_sent_gzip(self):
        """RFC 9110, 12.5.3."""
        cases = {
            None: False,
            "": False,
            "gzip": True,
            "GZip": True,
            "x-gzip": True,
            "br, deflate , gzip": True,
            "*": True,
            "*;q=0": False,
            "gzip;q=0": False,
            "gzip; q=0.000": False,
            "gzip;q=0.001": True,
            "gzip;q=1.000, *;q=0": True,
            "*, gzip;q=0": False,
            "identity": False,
            "identity, gzip": True,
            "identity, gzip;q=0.5": False,
            "identity;q=0.5, gzip;q=0.5": True,
            "deflate, br": False,
            "gzip;q=2": False,
            "gzip;q=": False,
            "gzip;q=no": False,
            "gzipped": False,
        }
        server = await self.start(compress=True)
        for given, expected in cases.items():
            fields = [] if given is None else [f"Accept-Encoding: {given}"]
            head = await self.ask(
                server, ask("/sse", *fields, method="HEAD"), head_only=True
            )
            client = await self.stream(server, "/sse", *fields)
            for answer in (client.answer, head):
                with self.subTest(given, answer=answer):
                    coding = answer.field("content-encoding")
                    self.assertEqual(coding, "gzip" if expected else None)
                    self.assertEqual(answer.field("vary"), "Accept, Accept-Encoding")
        server.publish("for all")
        for client in self.clients:
            if client.answer:
                self.assertEqual(await client.data(1), ["for all"])

    async def test_what_is_never_compressed(self):
        server = await self.start(compress=True)
        old = await self.stream(server, "/sse", self.ACCEPT, version="1.0")
        self.assertIsNone(old.answer.field("content-encoding"))
        server.publish("a")
        self.assertEqual(await old.data(1), ["a"])
        off = await self.start()
        client = await self.stream(off, "/sse", self.ACCEPT)
        self.assertIsNone(client.answer.field("content-encoding"))
        self.assertEqual(client.answer.field("vary"), "Accept")
        ok = await self.ask(server, ask("/", self.ACCEPT))
        self.assertEqual((ok.body, ok.field("vary")), (b"ok", None))

    async def test_every_answer_of_the_path_varies(self):
        server = await self.start(compress=True, cors_origins=["*"])
        for method, status in (("OPTIONS", 204), ("PUT", 405)):
            answer = await self.ask(server, ask(method=method))
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.field("vary"), "Accept-Encoding, Origin")

    async def test_each_event_can_be_read_when_it_is_written(self):
        server = await self.start(compress=True, heartbeat=0.05)
        clients = [await self.zipped(server) for _ in range(3)]
        for client in clients:
            self.assertIsNotNone(client.decoder.retry)
        for n in range(100):
            server.publish({"n": n})
            for client in clients:
                self.assertEqual(await client.data(1), [f'{{"n":{n}}}'])
        while len(clients[0].decoder.comments) < 3:
            await clients[0].read_stream()

    async def test_what_was_before_is_the_dictionary(self):
        """They all get the same bytes, and few of them."""
        server = await self.start(compress=True)
        clients = [await self.zipped(server) for _ in range(3)]
        text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=2000))
        sizes = []
        for n in range(5):
            server.publish(f"{n} {text}")
            for client in clients:
                await client.data(1)
            sizes.append(len(clients[0].chunks.chunks[-1]))
            self.assertEqual(len({bytes(c.chunks.chunks[-1]) for c in clients}), 1)
        self.assertGreater(min(sizes[:3]), 1000)  # until they have 4 KiB
        self.assertLess(max(sizes[3:]), 100)

    async def test_who_is_young_and_for_how_long(self):
        """One is written without the dictionary until it has the whole of it."""
        tail = 1000
        self.change(sse_server, _TAIL_BYTES=tail)
        server = await self.start(compress=True)
        early = [await self.zipped(server) for _ in range(2)]
        (audience,) = inside(server).broadcaster._audiences.all()
        size = len(format_event("x", id=server.publish("x")))
        for client in early:
            await client.data(1)
        for written, is_young in ((tail - 1, True), (tail, False), (tail + 1, False)):
            with self.subTest(written=written):
                late = await self.zipped(server)
                early.append(late)
                data = "y" * (written - size + 1)
                more = len(format_event(data, id=server.last_event_id)) - written
                server.publish(data[: len(data) - more])
                for client in early:
                    await client.data(1)
                self.assertEqual(len(audience.young), int(is_young))
                self.assertEqual(len(audience.tail), tail)
                server.publish("z")
                for client in early:
                    self.assertEqual(await client.data(1), ["z"])
                server.publish("z" * tail)  # nobody is young after that
                for client in early:
                    await client.data(1)
                self.assertEqual(len(audience.young), 0)
                chunks = {bytes(c.chunks.chunks[-2]) for c in early}
                self.assertEqual(len(chunks), 1 + is_young)

    async def test_what_is_tiny_is_stored(self):
        """A stored block (RFC 1951, 3.2.4) needs no compressor."""
        server = await self.start(compress=True, heartbeat=0.01)
        client = await self.zipped(server)
        while not client.decoder.comments[1:]:
            await client.read_stream()
        heartbeat = client.chunks.chunks[-1]
        self.assertEqual(heartbeat, b"\0\2\0\xfd\xff:\n")

    async def test_a_large_event_is_compressed_in_turns(self):
        server = await self.start(compress=True)
        clients = [await self.zipped(server) for _ in range(2)]
        (audience,) = inside(server).broadcaster._audiences.all()
        turns = []
        data = os.urandom(512 * KIB).hex()  # a mebibyte
        inside(server).broadcaster.turn_is_over = lambda: not turns.append(1)
        server.publish(data)
        late = await self.zipped(server)  # joins in the midst of it
        for client in clients:
            self.assertEqual(await client.data(1), [data])
        self.assertGreater(len(turns), len(data) // sse_server._BATCH_BYTES)
        server.publish("next")
        for client in (*clients, late):
            self.assertEqual(await client.data(1), ["next"])
        self.assertEqual(audience.members, 3)

    async def test_what_is_new_does_not_wait_for_a_large_batch(self):
        server = await self.start(compress=True)
        server.publish(os.urandom(512 * KIB).hex())
        live = await self.zipped(server)
        await self.until_stats(server, live=1)
        counts = []  # of events and kilobytes, while the other one is behind
        rounds = []  # of the event loop, meanwhile

        async def go_round():
            while True:
                rounds.append(server.stats.behind)
                await asyncio.sleep(0)

        going_round = asyncio.ensure_future(go_round())
        self.addCleanup(going_round.cancel)

        def is_over():
            stats = server.stats
            if stats.behind:
                if not counts:
                    server.publish("new")
                counts.append((stats.events_written, stats.bytes_written // KIB))
            return True

        inside(server).broadcaster.turn_is_over = is_over
        late = await self.zipped(server, "/sse?replay=all")
        self.assertEqual(await live.data(1), ["new"])
        self.assertEqual((await late.data(2))[1], "new")
        self.assertIn((1, 0), counts)
        pieces = 1024 * KIB // sse_server._COMPRESSED_BYTES_PER_LOOK
        self.assertGreaterEqual(sum(rounds), pieces)

    async def test_slow_ones_come_back_and_all_get_their_end(self):
        """With the system's own buffers."""
        server = await self.start(compress=True, restart_retry=100)
        quick = await self.zipped(server)
        slow = await self.zipped(server)
        expected = []
        while not server.stats.behind:
            expected.append(os.urandom(32 * KIB).hex())
            server.publish(expected[-1])
            self.assertEqual(await quick.data(1), expected[-1:])
        for n in range(100):
            expected.append(str(n))
            server.publish(expected[-1])
        self.assertEqual(await slow.data(len(expected)), expected)
        await self.until_stats(server, live=2)
        server.publish("both")
        closing = asyncio.ensure_future(server.close())
        for client in (quick, slow):
            before = client.decoder.retry
            events = await client.rest()
            self.assertEqual(events[-1].data, "both")
            self.assertGreater(client.decoder.retry, before)
        await closing

    async def test_resuming_gaps_and_what_is_retained(self):
        server = await self.start(compress=True, history=3)
        server.publish("on", event="state", retain=True)
        ids = [server.publish(str(n)) for n in range(6)]
        new = await self.zipped(server)
        resumed = await self.zipped(server, f"/sse?last_event_id={ids[3]}")
        lost = await self.zipped(server, f"/sse?last_event_id={ids[0]}")
        server.publish("end")
        self.assertEqual(await new.data(2), ["on", "end"])
        self.assertEqual(await resumed.data(3), ["4", "5", "end"])
        found = [(e.type, e.data) for e in await lost.events(6)]
        expected = [("gap", '{"reason":"history"}'), ("state", "on")]
        expected += [("message", data) for data in ("3", "4", "5", "end")]
        self.assertEqual(found, expected)

    async def test_an_iterator_compresses_for_who_passes_the_field_on(self):
        server = await self.start(port=None, compress=True)
        for given, coding in (("gzip", "gzip"), ("br", None), (None, None)):
            headers = server.stream_headers(given)
            self.assertEqual(headers.get("Content-Encoding"), coding)
            self.assertEqual(headers["Content-Type"], "text/event-stream")
            self.assertEqual(headers["Vary"], "Accept-Encoding")
            self.assertEqual(headers["Cache-Control"], "no-cache, no-transform")
            iterator = server.stream(accept_encoding=given)
            inflater = zlib.decompressobj(GZIP) if coding else None
            decoder, events = Decoder(), []
            server.publish("ahead of it")
            while len(events) < 2:
                data = await asyncio.wait_for(anext_of(iterator), DEADLINE)
                if not decoder.retry:
                    server.publish("a")
                    server.publish("b")
                data = inflater.decompress(data) if inflater else data
                events += decoder.feed(data)
            self.assertEqual([event.data for event in events][-2:], ["a", "b"])
            await iterator.aclose()

    async def test_who_is_skipped_in_a_sweep_is_as_young_as_before(self):
        """Otherwise what it gets would refer to bytes that it never got."""
        self.change(sse_server, _WRITES_PER_LOOK=1)
        server = await self.start(compress=True, heartbeat=None)
        for _ in range(2):
            await self.zipped(server)
        skipped, other = self.in_state("live")
        sweep = inside(server).broadcaster._write_heartbeats()
        next(sweep)
        skipped.pause_writing()
        next(sweep)
        skipped.resume_writing()
        collections.deque(sweep, 0)  # to its end
        self.assertEqual(skipped.state, "live")
        whole = sse_server._TAIL_BYTES
        lacking = [whole, whole - len(sse_server._HEARTBEAT)]
        self.assertEqual([skipped.lacks, other.lacks], lacking)


class FinishTest(ServerTestCase):
    """The end of a channel."""

    async def test_who_is_there_gets_all_and_then_the_end(self):
        server = await self.start(compress=True, retry=1.0, restart_retry=100)
        job = "/sse?channel=job"
        clients = [
            await self.stream(server, job),
            await self.stream(server, job, version="1.0"),
            await self.stream(server, job, "Accept-Encoding: gzip"),
        ]
        both = await self.stream(server, job + "&channel=other")
        other = await self.stream(server)
        ids = [server.publish(str(n), channel="job") for n in range(3)]
        server.finish("job")
        for client in clients:
            events = await client.rest()
            self.assertEqual([e.data for e in events], ["0", "1", "2"])
            self.assertLess(client.decoder.retry, 1501)
            again = await self.ask(server, ask(job, f"Last-Event-ID: {ids[2]}"))
            self.assertEqual((again.status, again.body), (204, b""))
        server.publish("still", channel="other")
        server.publish("there")
        self.assertEqual(await both.data(4), ["0", "1", "2", "still"])
        self.assertEqual(await other.data(1), ["there"])
        server.finish("other")
        self.assertEqual(await both.rest(), [])
        server.finish()
        self.assertEqual(await other.rest(), [])
        self.assertEqual(server.stats.live, 0)

    async def test_who_missed_something_gets_it_and_then_the_end(self):
        server = await self.start()
        ids = [server.publish(str(n), channel="job") for n in range(3)]
        server.finish("job")
        server.publish("for others")
        target = "/sse?channel=job&last_event_id="
        for id, expected in ((ids[0], ["1", "2"]), (ids[1], ["2"])):
            client = await self.stream(server, target + id)
            self.assertEqual([e.data for e in await client.rest()], expected)
        unknown = await self.stream(server, target + "unknown")
        found = [e.type for e in await unknown.rest()]
        self.assertEqual(found, ["gap"] + 3 * ["message"])
        for method in ("GET", "HEAD"):
            answer = await self.ask(server, ask(target + ids[2], method=method))
            self.assertEqual(answer.status, 204)
        server.publish("for all", channel=EVERYBODY)
        client = await self.stream(server, target + ids[2])
        self.assertEqual([e.data for e in await client.rest()], ["for all"])

    async def test_who_comes_late_gets_what_is_retained_or_replayed(self):
        server = await self.start()
        job = "/sse?channel=job"
        server.publish("1", channel="job")
        server.finish("job")
        self.assertEqual((await self.ask(server, ask(job))).status, 204)
        client = await self.stream(server, job + "&replay=5")
        self.assertEqual([e.data for e in await client.rest()], ["1"])
        server.publish("done", event="state", channel="job", retain=True)
        server.finish("job")
        client = await self.stream(server, job)
        (state,) = await client.rest()
        self.assertEqual((state.type, state.data), ("state", "done"))
        again = await self.ask(
            server, ask(job, f"Last-Event-ID: {state.last_event_id}")
        )
        self.assertEqual(again.status, 204)

    async def test_publishing_again_begins_it_anew(self):
        server = await self.start()
        first = server.publish("1", channel="job")
        server.finish("job")
        server.publish("2", channel="job")
        client = await self.stream(server, f"/sse?channel=job&last_event_id={first}")
        self.assertEqual(await client.data(1), ["2"])
        server.publish("3", channel="job")
        self.assertEqual(await client.data(1), ["3"])

    async def test_one_that_is_slow_gets_all_before_the_end(self):
        server = await self.start()
        client, published = await self.stall(server)
        server.finish()
        self.assertEqual([e.data for e in await client.rest()], published)

    async def test_an_iterator_ends(self):
        server = await self.start(port=None)
        iterator = server.stream(channels=["job"])
        reading = asyncio.ensure_future(rest_of(iterator))
        await self.until_stats(server, live=1)
        server.publish("1", channel="job")
        server.finish("job")
        rest = b"".join(await asyncio.wait_for(reading, DEADLINE))
        self.assertEqual([e.data for e in decode(rest)], ["1"])

    async def test_the_end_is_known_while_it_is_held(self):
        server = await self.start(history=2)
        server.finish("job")
        server.publish("a")
        self.assertEqual((await self.ask(server, ask("/sse?channel=job"))).status, 204)
        server.publish("b")
        await server.drain()
        client = await self.stream(server, "/sse?channel=job")
        server.publish("1", channel="job")
        self.assertEqual(await client.data(1), ["1"])

    async def test_who_has_missed_nothing_is_told_so_whatever_has_followed(self):
        self.change(sse_server, _MAX_REPLAY_SCAN=3)
        server = await self.start()
        last = server.publish("1", channel="job")
        server.finish("job")
        for number in range(5):
            server.publish(str(number))
        for query in (f"last_event_id={last}", "replay=all"):
            answer = await self.ask(server, ask(f"/sse?channel=job&{query}"))
            self.assertEqual(answer.status, 204, query)

    async def test_who_was_not_told_of_an_end_that_is_forgotten_gets_a_gap(self):
        """Else it would wait for ever."""
        server = await self.start(history=2)
        last = server.publish("1", channel="job")
        server.finish("job")
        for number in range(3):
            server.publish(str(number))
        await server.drain()
        client = await self.stream(server, f"/sse?channel=job&last_event_id={last}")
        (gap,) = await client.events(1)
        self.assertEqual((gap.type, gap.data), ("gap", '{"reason":"history"}'))

    async def test_by_post(self):
        server = await self.start(publish_token="secret")
        client = await self.stream(server, "/sse?channel=job")
        answer = await self.ask(server, post("/sse?channel=job&finish=1", b""))
        self.assertEqual(
            (answer.status, answer.body.decode()), (200, server.last_event_id)
        )
        self.assertEqual(await client.rest(), [])
        for target, body, fault in (
            ("finish=1", b"a", "finish=1 goes with channel alone, not with a body"),
            (
                "finish=1&event=e&retain=1",
                b"",
                "finish=1 goes with channel alone, not with event, retain",
            ),
            ("finish=yes", b"", "finish is 'yes'; allowed is 1"),
        ):
            answer = await self.ask(server, post(f"/sse?{target}", body))
            self.assertEqual(answer.status, 400)
            self.assertIn(fault, answer.body.decode())

    def test_what_is_refused(self):
        server = SSEServer()
        for channel in ("", EVERYBODY, "a\n", 1):
            with self.assertRaises((ValueError, TypeError)):
                server.finish(channel)

    async def test_an_end_is_no_event_that_was_written(self):
        server = await self.start(heartbeat=None)
        live = await self.stream(server, "/sse?channel=a&channel=b")
        behind = await self.stream(server, "/sse?channel=a&replay=all&channel=b")
        server.publish("1", channel="a")
        server.finish("a")
        server.finish("b")
        for client in (live, behind):
            self.assertEqual([event.data for event in await client.rest()], ["1"])
        later = await self.stream(server, "/sse?channel=a&channel=b&replay=all")
        self.assertEqual([event.data for event in await later.rest()], ["1"])
        self.assertEqual(server.stats.events_written, 3)


class FailureTest(ServerTestCase):
    """What goes wrong stays with whom it concerns, and is said."""

    async def test_a_drain_ends_when_broadcasting_fails(self):
        server = await self.start(shutdown_timeout=0.2)
        with (
            mock.patch.object(inside(server).log, "read", side_effect=MemoryError),
            self.assertLogs("sse_server", "CRITICAL"),
        ):
            server.publish("a")
            with self.assertRaisesRegex(RuntimeError, "broadcasting has failed"):
                await asyncio.wait_for(server.drain(), DEADLINE)

    async def test_an_event_that_is_published_while_it_starts_is_delivered(self):
        """The publisher has seen that the server is not started, and waits."""
        server = SSEServer("127.0.0.1", 0)
        intake = inside(server).intake
        waits, goes_on = threading.Event(), threading.Event()
        lock = intake.lock

        class SlowLock:
            _is_owned = lock._is_owned

            def __enter__(self):
                if threading.current_thread().name == "publisher":
                    waits.set()
                    goes_on.wait(DEADLINE)
                return lock.__enter__()

            def __exit__(self, *raised):
                return lock.__exit__(*raised)

        intake.lock = SlowLock()
        publisher = threading.Thread(
            target=server.publish, args=("a",), name="publisher"
        )
        publisher.start()
        waits.wait(DEADLINE)
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        client = await self.stream(server)
        goes_on.set()
        self.assertEqual(await client.data(1), ["a"])
        publisher.join()

    async def test_a_transport_that_raises_costs_only_its_subscriber(self):
        self.change(sse_server, _direct_socket=lambda transport: None)
        server = await self.start()
        client = await self.stream(server)
        other = await self.stream(server)
        connection, _ = self.in_state("live")
        failing = connection.transport = mock.Mock(wraps=connection.transport)
        failing.write.side_effect = ZeroDivisionError
        with self.assertLogs("sse_server", "ERROR") as caught:
            server.publish("a")
            await server.drain()
        self.assertIn("writing failed", caught.output[0])
        await client.rest_of_cut()
        await self.until_stats(server, live=1, behind=0)
        server.publish("b")
        self.assertEqual(await other.data(2), ["a", "b"])

    async def test_a_transport_that_raises_at_one_who_is_behind(self):
        """At its head, and at its first batch."""
        told = []
        server = await self.start(on_open=told.append, on_close=told.append)
        server.publish("a")
        other = await self.stream(server, "/sse?replay=all")
        self.assertEqual(await other.data(1), ["a"])
        add = inside(server).broadcaster.add
        for before in ([], [mock.DEFAULT]):

            def add_broken(subscriber, *arguments, before=before):
                subscriber.transport = mock.Mock(wraps=subscriber.transport)
                failing = [*before, ZeroDivisionError]
                subscriber.transport.write.side_effect = failing
                add(subscriber, *arguments)

            with (
                mock.patch.object(inside(server).broadcaster, "add", add_broken),
                self.assertLogs("sse_server", "ERROR") as caught,
            ):
                client = await self.connect(server)
                await client.send(ask("/sse?replay=all"))
                await self.until(lambda: caught.output, "the failure")
                self.assertTrue(await client.ended() or before)
            self.assertIn("writing failed", caught.output[0])
            await self.until_stats(server, live=1, behind=0)
        server.publish("b")
        self.assertEqual(await other.data(1), ["b"])
        self.assertEqual(len(told), 1 + 2 + 2)

    async def test_one_that_pauses_within_a_sweep_is_given_its_batch_later(self):
        self.change(sse_server, _direct_socket=lambda transport: None)
        server = await self.start()
        clients = [await self.stream(server) for _ in range(2)]
        (audience,) = inside(server).broadcaster._audiences.all()
        _, second = audience.live
        write = audience.write

        def write_and_pause(subscriber, data):
            if second.state == "live":
                second.pause_writing()
            return write(subscriber, data)

        self.give_way_after(1)
        inside(server).broadcaster.turn_is_over = lambda: True
        audience.write = write_and_pause
        server.publish("a")
        await server.drain()
        self.assertEqual((server.stats.live, server.stats.behind), (1, 1))
        audience.write = write
        second.resume_writing()
        server.publish("b")
        for client in clients:
            self.assertEqual(await client.data(2), ["a", "b"])

    async def half_a_head(self, server):
        """A client that has sent a part of its request; the server's side of it."""
        client = await self.connect(server)
        await client.send(b"GET / HTTP/1.1\r\n")
        await self.until(
            lambda: any(c.received for c in self.in_state("head")), "the line"
        )
        (connection,) = (c for c in self.in_state("head") if c.received)
        return client, connection

    async def test_after_an_answer_that_could_not_be_written_there_is_none(self):
        server = await self.start()
        client, connection = await self.half_a_head(server)
        transport = connection.transport
        failing = connection.transport = mock.Mock(wraps=transport)
        failing.write.side_effect = lambda data: transport.abort()
        await client.send(b"Host: localhost\r\n\r\n" + ask("/") * 20)
        await self.until_gone()
        self.assertEqual(failing.write.call_count, 1)

    async def test_a_server_that_is_late_itself_cuts_nobody(self):
        server = await self.start()
        client, connection = await self.half_a_head(server)
        inside(server).turns.defer(connection)
        inside(server).registry.members["head"][connection] = 0  # its time is over
        with mock.patch.object(inside(server).turns, "is_over", return_value=False):
            inside(server).registry._expire_due()
        self.assertEqual(connection.state, "head")
        await client.send(b"Host: localhost\r\n\r\n")
        self.assertEqual((await client.read_answer()).status, 200)

    async def test_an_earlier_deadline_replaces_the_timer(self):
        server = await self.start()
        await self.half_a_head(server)
        timer = inside(server).registry._timer
        answer = await self.ask(server, b"x y z\r\n\r\n")  # and it lingers
        self.assertEqual(answer.status, 400)
        self.assertTrue(timer.cancelled())

    async def test_after_the_last_deadline_come_others(self):
        server = await self.start(header_timeout=1)
        for _ in range(2):
            client = await self.connect(server)
            await self.pass_time(2)
            self.assertEqual((await client.read_answer()).status, 408)
            self.assertTrue(await client.ended())
            client.close()
            await self.pass_time(2 * sse_server._LINGER_SECONDS)

    async def test_a_client_that_has_gone_when_its_time_is_over(self):
        server = await self.start()
        client, connection = await self.half_a_head(server)
        connection.transport = mock.Mock(wraps=connection.transport)
        connection.transport.write_eof.side_effect = OSError
        await self.pass_time(11)
        self.assertEqual(connection.state, "lingering")
        client.close()
        await self.until_gone()

    async def test_one_that_cannot_be_ended_does_not_keep_the_others(self):
        server = await self.start()
        _, first = await self.half_a_head(server)
        client = await self.connect(server)
        await self.until(lambda: len(self.in_state("head")) == 2, "the second")
        first.transport = mock.Mock(wraps=first.transport)
        first.transport.write.side_effect = ZeroDivisionError
        with self.assertLogs("sse_server", "ERROR") as caught:
            await self.pass_time(11)
        self.assertIn("ending it failed", caught.output[0])
        self.assertEqual((await client.read_answer()).status, 408)
        client.close()
        await self.until_gone()

    async def test_the_sockets_are_looked_at_before_anybody_is_cut(self):
        """As after SIGSTOP and SIGCONT: timers are due before what came is read."""
        server = await self.start()
        client, connection = await self.half_a_head(server)
        client.sock.send(b"Host: a\r\n\r\n")
        inside(server).registry.members["head"][connection] = (
            0  # the time was over while the process did nothing
        )
        inside(server).registry._read_sockets_first()
        self.assertEqual((await client.read_answer()).status, 200)

    async def test_who_leaves_during_a_sweep_is_not_written_to(self):
        """Its descriptor may be a newcomer's by then: the kernel gives the lowest."""
        self.give_way_after(1)
        server = await self.start()
        first = await self.stream(server)
        leaver = await self.stream(server)
        (audience,) = inside(server).broadcaster._audiences.all()
        descriptor = list(audience.live)[1].target.fileno()
        write = audience.write
        swapped = []

        def write_and_swap(key, data):
            swapped.append(key)
            return write(key, data)

        audience.write = write_and_swap
        server.publish("a")
        work = inside(server).broadcaster.work()
        while not swapped:
            next(work)
        self.assertEqual(len(swapped), 1)  # `first` was written to, `leaver` not yet
        leaver.close()
        await self.until_stats(server, live=1)
        newcomer = await self.stream(server)
        newest = list(audience.live)[-1].target.fileno()
        self.assertEqual(newest, descriptor, "it is not reused")
        for _ in work:
            pass
        self.assertEqual(swapped, [swapped[0]])
        server.publish("b")
        self.assertEqual(await first.data(2), ["a", "b"])
        self.assertEqual(await newcomer.data(1), ["b"])

    async def test_ctrl_c_in_the_midst_of_broadcasting_is_no_failure_to_log(self):
        server = await self.start(shutdown_timeout=0.2)
        interrupted = asyncio.get_running_loop().create_future()
        interrupted.set_exception(KeyboardInterrupt())
        inside(server).service.broadcasting.remove_done_callback(
            inside(server).service._broadcasting_ended
        )
        inside(server).service._broadcasting_ended(
            interrupted
        )  # what is logged fails the test
        with self.assertRaisesRegex(RuntimeError, "broadcasting has failed"):
            server.publish("a")

    async def test_broadcasting_that_fails_ends_the_server(self):
        server = await self.start(shutdown_timeout=0.2)
        client = await self.stream(server)
        kept = await self.connect(server)
        await kept.request(ask("/"))
        with (
            mock.patch.object(inside(server).log, "read", side_effect=MemoryError),
            self.assertLogs("sse_server", "CRITICAL"),
        ):
            server.publish("a")
            await client.rest()
        answer = await kept.request(ask("/"))
        self.assertEqual(
            (answer.status, answer.body), (503, b"broadcasting has failed\n")
        )
        kept.close()
        with self.assertRaisesRegex(RuntimeError, "broadcasting has failed"):
            server.publish("b")
        with self.assertRaises(MemoryError):
            await server.serve_forever()

    async def test_an_event_loop_that_was_closed_before_the_server(self):
        server = SSEServer(port=0)
        loop = asyncio.new_event_loop()

        def run():
            loop.run_until_complete(inside(server).service.start())
            for listener in inside(server).service.listeners:
                listener.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        await self.in_thread(run)
        self.logged(logging.CRITICAL)
        inside(server).intake.closed_because = ""
        with self.assertRaisesRegex(RuntimeError, "event loop was closed"):
            server.publish("a")
        self.assertEqual(server.stats.published, 0)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork on this platform")
    async def test_a_forked_process_is_told_that_it_does_not_serve(self):
        server = await self.start()
        forked = self.assertRaisesRegex(RuntimeError, "forked from")
        for call in (server.publish, server.forget, server.publish_gap):
            with mock.patch.object(os, "getpid", return_value=-1), forked:
                call("a")
            call("a")

    async def test_a_logging_handler_may_publish(self):
        server = await self.start()
        logger = logging.getLogger("sse_server")
        handler = logging.Handler()
        published, refused = [], []

        def emit(record):
            try:
                published.append(server.publish("a"))
            except RuntimeError as error:
                refused.append(str(error))

        handler.emit = emit
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        client = await self.stream(server)
        other = await self.stream(server)
        other.close()
        await self.until(lambda: len(published) > 2, "a departure that is logged")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(refused, [])
        await server.close()
        closed = "the server is closed; nothing can be published"
        self.assertLessEqual(set(refused), {closed})

    async def test_who_publishes_outside_of_a_task_wakes_the_loop(self):
        server = await self.start()
        loop, wake = asyncio.get_running_loop(), inside(server).intake.bell._wake

        async def publish():
            server.publish("a")

        async def in_callback():
            loop.call_soon(server.publish, "a")

        cases = (
            ("a task", publish, False),
            ("a callback, as a signal's handler", in_callback, True),
            ("a thread", lambda: self.in_thread(server.publish, "a"), True),
            ("another loop", lambda: self.in_thread(asyncio.run, publish()), True),
        )
        for name, case, wakes in cases:
            with (
                self.subTest(name),
                mock.patch.object(
                    loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe
                ) as woken,
            ):
                await case()
                await asyncio.sleep(0)
                await server.drain()
                self.assertEqual(mock.call(wake) in woken.mock_calls, wakes)

    async def test_a_signal_may_publish_at_any_instruction_of_the_broadcaster(self):
        server = await self.start(port=None, heartbeat=None)
        interrupted = set()

        def within():
            interrupted.add(sys._getframe(2).f_code.co_name)
            with contextlib.suppress(RuntimeError):  # it is refused
                server.publish("within")

        owners = [sse_server._Broadcaster._run, sse_server._Bell]
        for number in range(1, 1000):
            with interrupting(owners, number, within) as left:
                server.publish("a")
                await asyncio.wait_for(server.drain(), DEADLINE)
                for _ in range(3):  # until the broadcaster sleeps
                    await asyncio.sleep(0)
            with self.subTest(number):
                await asyncio.wait_for(server.drain(), DEADLINE)
            if left:
                break
        expected = {"_run", "wait", "_wake", "ring_from_any_thread"}
        self.assertEqual(interrupted, expected)

    async def test_an_order_that_asks_the_server_does_not_lock_it(self):
        answered = []

        def order(id):
            asking = threading.Thread(target=server.forget, daemon=True)
            asking.start()
            asking.join(DEADLINE)
            answered.append(not asking.is_alive())
            return int(id)

        server = await self.start(id_order=order)
        server.publish("a", id="1")
        self.assertEqual(answered, [True])
        server.finish()
        await self.ask(server, ask("/sse", "Last-Event-ID: 2"))
        self.assertEqual(answered, [True] * len(answered))
        count = len(answered)
        await self.ask(server, ask("/sse", "Last-Event-ID: " + "2" * 257))
        self.assertEqual(len(answered), count, "no id is so long")

    async def test_keys_that_have_no_order(self):
        keys = {"a": math.nan, "b": [1], "c": (1,), "e": (1, math.nan)}
        server = await self.start(id_order=keys.get)
        for id, key in (
            ("a", "nan"),
            ("b", r"\[1\]"),
            ("d", "None"),
            ("e", r"\(1, nan\)"),
        ):
            with self.assertRaisesRegex(TypeError, f"^id_order gave {key}; allowed"):
                server.publish("x", id=id)
        self.assertEqual(server.publish("x", id="c"), "c")


class SharedLogTest(ServerTestCase):
    """Ids that many processes share, and what the publisher itself has lost."""

    async def resume(self, server, id):
        client = await self.connect(server)
        await client.send(ask("/sse", f"Last-Event-ID: {id}"))
        await client.open(b"")
        return client

    def publish(self, server, *numbers):
        for number in numbers:
            server.publish(str(number), id=str(number))

    async def test_an_id_of_its_own_is_never_ahead(self):
        """Whatever `id_order` takes for an id of the publisher's."""
        server = await self.start(id_order=str)
        server.publish("before")
        own = server.last_event_id
        server.publish("a", id="\x21")
        client = await self.stream(server, f"/sse?last_event_id={own}")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(self.in_state("ahead"), [])

    async def test_a_client_that_is_ahead_waits_for_what_it_has_seen(self):
        server = await self.start(id_order=int)
        self.publish(server, 1, 2)
        client = await self.resume(server, 4)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 1))
        self.publish(server, 3, 4, 5)
        self.assertEqual(await client.data(1), ["5"])
        await self.until_stats(server, live=1, behind=0)
        self.assertEqual(server.stats.gaps, 0)

    async def test_a_client_that_is_ahead_of_the_end_of_its_channel(self):
        """Where it has been, the channel has begun anew."""
        server = await self.start(id_order=int)
        server.publish("1", id="1", channel="job")
        server.finish("job")
        client = await self.stream(server, "/sse?channel=job&last_event_id=2")
        for number in ("2", "3"):
            server.publish(number, id=number, channel="job")
        self.assertEqual(await client.data(1), ["3"])

    async def test_what_it_has_seen_may_be_skipped_by_the_log(self):
        server = await self.start(id_order=int)
        self.publish(server, 1, 2)
        client = await self.resume(server, 4)
        self.publish(server, 3, 5, 6)
        self.assertEqual(await client.data(2), ["5", "6"])

    async def test_what_has_no_id_and_comes_while_a_client_is_ahead_is_a_gap(self):
        """It has seen what has an id elsewhere, but not this."""
        server = await self.start(id_order=int)
        self.publish(server, 1)
        server.publish("before it came")
        here = await self.resume(server, 3)
        there = await self.stream(server, "/sse?channel=a&last_event_id=3")
        server.publish("for one", channel="a")
        self.publish(server, 2, 3, 4)
        server.publish("5", id="5", channel="a")
        self.assertEqual(await here.data(1), ["4"])
        gap, five = await there.events(2)
        self.assertEqual((gap.type, five.data), ("gap", "5"))

    async def test_what_is_forgotten_before_a_client_wakes_is_a_gap(self):
        server = await self.start(id_order=int, history=2)
        self.publish(server, 1, 2)
        client = await self.resume(server, 5)
        self.publish(server, *range(3, 10))
        gap, *others = await client.events(3)
        # Which reason depends on when it wakes.
        self.assertEqual(gap.type, "gap")
        self.assertEqual([event.data for event in others], ["8", "9"])

    async def test_waking_those_who_are_ahead_gives_way(self):
        self.give_way_after(1)
        server = await self.start(id_order=int)
        self.publish(server, 1)
        clients = [await self.resume(server, 2) for _ in range(5)]
        self.publish(server, 2, 3)
        ahead = [len(self.in_state("ahead")) for _ in inside(server).broadcaster.work()]
        self.assertGreaterEqual(set(ahead), {0, 1, 2, 3, 4})
        for client in clients:
            self.assertEqual(await client.data(1), ["3"])

    async def test_an_id_that_never_comes_is_a_gap_in_time(self):
        with mock.patch.object(sse_server, "_AHEAD_SECONDS", 0.05):
            server = await self.start(id_order=int)
            self.publish(server, 1, 2)
            client = await self.resume(server, 999)
            events = await client.events(3)
        self.assertEqual([event.type for event in events], ["gap", *["message"] * 2])

    async def test_an_id_between_two_others_has_its_place(self):
        server = await self.start(id_order=int)
        self.publish(server, 10, 20, 30)
        client = await self.resume(server, 15)
        self.assertEqual(await client.data(2), ["20", "30"])
        self.assertEqual(server.stats.gaps, 0)

    async def test_the_end_does_not_wait_for_who_is_ahead(self):
        server = await self.start(id_order=int, shutdown_timeout=30)
        self.publish(server, 1)
        client = await self.resume(server, 5)
        await asyncio.wait_for(server.close(), DEADLINE)
        self.assertEqual(await client.rest(), [])
        self.assertTrue(client.decoder.retry)

    async def test_the_end_of_those_who_are_ahead_gives_way(self):
        self.give_way_after(1)
        server = await self.start(id_order=int)
        self.publish(server, 1)
        for _ in range(5):
            await self.resume(server, 5)
        closing = asyncio.ensure_future(server.close())
        ahead = set()
        while not closing.done():
            ahead.add(len(self.in_state("ahead")))
            await asyncio.sleep(0)
        self.assertEqual(ahead, {0, 1, 2, 3, 4, 5})

    async def test_one_that_is_ahead_and_leaves_is_gone(self):
        server = await self.start(id_order=int)
        self.publish(server, 1)
        client = await self.resume(server, 5)
        client.reset()
        self.publish(server, 2)
        await self.until_stats(server, live=0, behind=0)
        await server.close()

    async def test_a_gap_of_the_publisher_reaches_every_channel_in_its_place(self):
        server = await self.start()
        clients = [
            await self.stream(server, target) for target in ("/sse", "/sse?channel=a")
        ]
        start = server.last_event_id
        server.publish("1", channel="a")
        server.publish_gap("trimmed")
        server.publish("2", channel="a")
        clients.append(await self.stream(server, f"/sse?channel=a&lastEventId={start}"))
        gap = ("gap", '{"reason":"trimmed"}')
        expected = [("message", "1"), gap, ("message", "2")]
        for client, events in zip(clients, ([gap], expected, expected)):
            seen = await client.events(len(events))
            self.assertEqual([(event.type, event.data) for event in seen], events)


@unittest.skipIf(sqlite3 is None, "this Python has no sqlite3")
class HistoryFileTest(ServerTestCase):
    """Servers that share a history file are one server, also one after the other."""

    def setUp(self):
        super().setUp()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = tempfile.TemporaryDirectory(dir=memory)
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "events.db")

    def new_server(self, *arguments, **options):
        options.setdefault("history_file", self.path)
        server = super().new_server(*arguments, **options)
        self.addAsyncCleanup(server.close)
        return server

    def lock(self):
        """Lock the file, as a program does that is writing; returns what ends it."""
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        return lambda: other.execute("ROLLBACK")

    def write(self, content):
        with open(self.path, "wb") as file:
            file.write(content)

    def stop_looking(self):
        """Let servers take in only what they publish, until the test looks."""
        self.change(sse_server, _FILE_LOOK_SECONDS=1e6)

    def look(self, server):
        inside(server).intake._look(inside(server).intake.file)

    async def test_what_a_request_takes_in_of_a_burst_is_bounded(self):
        """The rest is taken in turns, and nothing of it is missed."""
        self.stop_looking()
        self.change(sse_server, _FILE_BATCH_EVENTS=10, _FILE_BATCHES_PER_REQUEST=2)
        servers = [await self.start() for _ in range(2)]
        ids = [servers[0].publish(str(number)) for number in range(100)]
        log = servers[1]._intake.log
        with mock.patch.object(servers[1]._intake.bell, "ring_from_any_thread"):
            self.assertEqual((servers[1].last_event_id, log.newest), (ids[19], 20))
        client = await self.stream(servers[1], "/sse?replay=all")
        found = [event.data for event in await client.events(100)]
        self.assertEqual(found, [str(number) for number in range(100)])
        servers[0].publish("100")
        ids = [servers[0].publish(str(number)) for number in range(101, 200)]
        client = await self.stream(servers[1], f"/sse?last_event_id={ids[97]}")
        self.assertEqual(await client.data(1), ["199"])

    async def test_a_thread_takes_in_something_while_the_server_starts(self):
        """It waits for the lock, and begins when streams are open."""
        self.stop_looking()
        server, other = self.new_server(), await self.start()
        waits, may_go_on = asyncio.Event(), threading.Event()
        loop, main = asyncio.get_running_loop(), threading.current_thread()
        lock = inside(server).intake.lock

        class Lock:
            def __enter__(self):
                if threading.current_thread() is not main:
                    loop.call_soon_threadsafe(waits.set)
                    may_go_on.wait(DEADLINE)
                lock.acquire()

            def __exit__(self, *raised):
                lock.release()

        inside(server).intake.lock = Lock()
        counting = asyncio.ensure_future(asyncio.to_thread(lambda: server.stats))
        self.addCleanup(may_go_on.set)
        await waits.wait()
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        client = await self.stream(server)
        other.publish("a")
        may_go_on.set()
        self.assertEqual((await counting).published, 1)
        self.assertEqual(await client.data(1), ["a"])

    async def test_without_a_stream_it_looks_seldom(self):
        server = await self.start()
        loop = asyncio.get_running_loop()

        def until_the_next_look():
            return inside(server).intake._look_timer.when() - loop.time()

        self.assertGreater(until_the_next_look(), 0.5)
        client = await self.stream(server)
        self.assertLess(until_the_next_look(), 0.1)
        client.close()
        await self.until_stats(server, live=0)
        self.assertGreater(until_the_next_look(), 0.5)
        await server.close()
        self.assertTrue(inside(server).intake._look_timer.cancelled())

    # Many processes.

    async def test_all_servers_deliver_all_events_in_one_order_with_the_same_ids(self):
        servers = [await self.start() for _ in range(3)]
        clients = [await self.stream(server) for server in servers]
        ids = [servers[n % 3].publish(str(n)) for n in range(60)]
        expected = [Event("message", str(n), id) for n, id in enumerate(ids)]
        for client in clients:
            self.assertEqual(await client.events(60), expected)
        for server in servers:
            self.assertEqual(server.stats.published, 60)
            self.assertEqual(server.last_event_id, ids[-1])
        self.assertEqual(numbers(ids), [*range(1, 61)])

    async def test_a_client_may_resume_at_any_of_them_at_once(self):
        self.stop_looking()
        servers = [await self.start() for _ in range(2)]
        ids = [servers[0].publish(str(n), id=f"own {n}"[n % 2 * 9 :] or None)
               for n in range(4)]  # fmt: skip
        for id, rest in zip(ids, (["1", "2", "3"], ["2", "3"], ["3"])):
            client = await self.connect(servers[1])
            await client.open(ask("/sse", f"Last-Event-ID: {id}"))
            self.assertEqual(await client.data(len(rest)), rest)
        ids.append(servers[0].publish("4"))
        servers[0].publish("5")
        stream, content = servers[1].stream(ids[-1]), b""
        while not content.endswith(b"\n\n"):
            content += await asyncio.wait_for(stream.__anext__(), DEADLINE)
        await stream.aclose()
        self.assertEqual([event.data for event in decode(content)], ["5"])
        self.assertEqual(servers[1].stats.gaps, 0)

    async def test_gaps_and_what_is_retained_are_the_same_for_all(self):
        servers = [await self.start() for _ in range(2)]
        clients = [await self.stream(server) for server in servers]
        servers[0].publish("1", event="a", retain=True)
        servers[1].publish("2", event="b", retain=True)
        gap = servers[0].publish_gap("lost")
        self.assertTrue(servers[1].forget("a"))
        self.assertFalse(servers[0].forget("a"))
        last = servers[0].publish("3")
        for client in clients:
            events = await client.events(4)
            self.assertEqual([e.type for e in events], ["a", "b", "gap", "message"])
            self.assertEqual(events[2].last_event_id, gap)
            self.assertEqual(client.decoder.last_event_id, last)
        for server in servers:
            client = await self.stream(server)
            self.assertEqual(await client.events(1), [Event("b", "2", last)])

    async def test_a_process_that_serves_nothing_publishes(self):
        server = await self.start()
        client = await self.stream(server)
        publisher = self.new_server(port=None)
        ids = [publisher.publish("1"), publisher.publish("2", id="own")]
        self.assertEqual(await client.events(2), [
            Event("message", "1", ids[0]), Event("message", "2", "own")
        ])  # fmt: skip
        self.assertEqual(publisher.last_event_id, "own")
        server.publish("3")
        self.assertEqual(publisher.stats.published, 3)
        await publisher.close()
        with self.assertRaises(RuntimeError):
            publisher.publish("4")
        with self.assertRaises(RuntimeError):
            publisher.forget()
        self.assertEqual(await client.data(1), ["3"])
        self.assertEqual(publisher.stats.published, 3)

    async def test_a_cron_job_does_not_change_the_bounds(self):
        self.change(sse_server, _FILE_SPARE_EVENTS=0, _FILE_TRIM_EVENTS=1)
        server = await self.start(history=5)
        client = await self.stream(server)
        publisher = self.new_server(port=None, history=1)
        for n in range(9):
            publisher.publish(str(n))
            await client.events(1)
        await publisher.close()
        client = await self.stream(server, "/sse?replay=all")
        self.assertEqual(await client.data(5), ["4", "5", "6", "7", "8"])

    async def test_who_was_stopped_for_longer_than_the_history_tells_of_a_gap(self):
        self.stop_looking()
        self.change(sse_server, _FILE_SPARE_EVENTS=0, _FILE_TRIM_EVENTS=1)
        server = await self.start(history=3)
        server.publish("0", event="a", retain=True)
        server.publish("0", event="b", retain=True)
        client = await self.stream(server)
        await client.events(2)
        publisher = self.new_server(port=None)
        publisher.forget("b")
        for n in range(9):
            publisher.publish(str(n), event="ac"[n % 2], retain=n < 4)
        self.look(server)
        events = await client.events(6)
        self.assertEqual(
            [(event.type, event.data) for event in events],
            [
                ("gap", '{"reason":"history"}'),
                ("a", "2"),
                ("c", "3"),
                ("a", "6"),
                ("c", "7"),
                ("a", "8"),
            ],
        )
        self.assertEqual(client.decoder.last_event_id, publisher.last_event_id)
        self.assertEqual(server.stats.gaps, 1)
        await publisher.close()

    async def test_a_burst_of_another_process_reaches_all_in_order(self):
        self.change(sse_server, _FILE_BATCH_EVENTS=7)
        server = await self.start(history=5)
        client = await self.stream(server)
        publisher = self.new_server(port=None, history=5)
        for n in range(300):
            publisher.publish(str(n))
        await publisher.close()
        self.assertEqual(await client.data(300), [str(n) for n in range(300)])
        self.assertEqual(server.stats.gaps, 0)

    async def test_drain_waits_for_what_was_published_here(self):
        server = await self.start()
        client = await self.stream(server)
        for n in range(50):
            server.publish(str(n))
            await server.drain()
            self.assertEqual(server.stats.events_written, n + 1)
        self.assertEqual(len(await client.data(50)), 50)

    async def test_close_delivers_what_anybody_has_published(self):
        self.stop_looking()
        servers = [await self.start() for _ in range(2)]
        client = await self.stream(servers[0])
        servers[1].publish("1")
        servers[0].publish("2")
        await servers[0].close()
        self.assertEqual([e.data for e in await client.rest()], ["1", "2"])

    async def test_threads_publish_at_once(self):
        servers = [await self.start() for _ in range(2)]
        clients = [await self.stream(server) for server in servers]

        def publish(server, name):
            return [server.publish(f"{name} {n}") for n in range(50)]

        ids = await asyncio.gather(
            *(self.in_thread(publish, servers[n % 2], n) for n in range(4))
        )
        self.assertEqual(sorted(numbers(itertools.chain(*ids))), [*range(1, 201)])
        found = [await client.data(200) for client in clients]
        self.assertEqual(found[0], found[1])
        for name in range(4):
            own = [data for data in found[0] if data.startswith(f"{name} ")]
            self.assertEqual(own, [f"{name} {n}" for n in range(50)])

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork()")
    async def test_a_forked_child_publishes(self):
        program = textwrap.dedent(
            """
            import os, sys, sse_server, threading, warnings
            warnings.simplefilter("ignore")  # Python warns of a fork beside threads
            is_held, may_end = threading.Event(), threading.Event()
            def hold(lock):
                with lock:
                    is_held.set()
                    may_end.wait()
            with sse_server.SSEServer(port=None, history_file=sys.argv[1]) as server:
                server.publish("parent")
                threading.Thread(target=hold, args=(server._intake.lock,)).start()
                is_held.wait()
                process = os.fork()
                if not process:
                    server.publish("child")
                    assert server.last_event_id
                    os._exit(0)
                may_end.set()
                assert os.waitpid(process, 0)[1] == 0
                server.publish("parent")
            """
        )
        server = await self.start()
        client = await self.stream(server)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, self.path),
            cwd=compiled(),
            stderr=subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
        self.assertEqual((process.returncode, errors), (0, b""))
        self.assertEqual(await client.data(3), ["parent", "child", "parent"])

    async def test_a_channel_that_ends_and_one_that_begins_anew_end_so_for_all(self):
        self.stop_looking()
        servers = [await self.start() for _ in range(2)]
        client = await self.stream(servers[1], "/sse?channel=a")
        first = servers[0].publish("1", channel="a")
        end = servers[0].finish("a")
        answer = await self.ask(servers[1], ask(f"/sse?channel=a&last_event_id={end}"))
        self.assertEqual(answer.status, 204)
        self.look(servers[1])
        self.assertEqual([event.data for event in await client.rest()], ["1"])
        late = await self.stream(
            servers[1], f"/sse?channel=a&last_event_id={first[:-1]}0"
        )
        self.assertEqual([event.data for event in await late.rest()], ["1"])
        servers[0].publish("2", channel="a")
        client = await self.stream(servers[1], f"/sse?channel=a&last_event_id={end}")
        self.assertEqual(await client.data(1), ["2"])

    async def test_what_is_older_than_history_seconds_is_forgotten_by_all(self):
        servers = [await self.start(history_seconds=3600) for _ in range(2)]
        with mock.patch("time.time", return_value=time.time() - 3601):
            first = servers[0].publish("old")
        servers[0].publish("1")
        servers.append(await self.start(history_seconds=3600))
        for server in servers:
            client = await self.stream(server, "/sse?replay=all")
            self.assertEqual(await client.data(1), ["1"])
            target = f"/sse?last_event_id={first.rpartition('-')[0]}-0"
            client = await self.stream(server, target)
            self.assertEqual(
                [e.type for e in await client.events(2)], ["gap", "message"]
            )

    # A restart.

    async def test_a_restart_is_invisible(self):
        ids = []
        for restart in range(5):
            server = await self.start()
            client = await self.connect(server)
            await client.open(ask("/sse", *(f"Last-Event-ID: {id}" for id in ids[-1:])))
            server.publish(str(restart), event="a", retain=True)
            ids.append(server.publish("more", id=f"own {restart}" if restart else None))
            self.assertEqual(await client.data(2), [str(restart), "more"])
            self.assertEqual(server.stats.gaps, 0)
            await server.close()
        server = await self.start()
        self.assertEqual(server.last_event_id, ids[-1])
        self.assertEqual(server.stats.published, 10)
        client = await self.stream(server)
        self.assertEqual(await client.events(1), [Event("a", "4", ids[-1])])
        client = await self.stream(server, f"/sse?last_event_id={ids[0]}")
        self.assertEqual((await client.data(8))[::2], ["1", "2", "3", "4"])
        client = await self.stream(server, "/sse?replay=3")
        self.assertEqual(await client.data(3), ["more", "4", "more"])

    async def test_what_was_published_before_the_start_is_there(self):
        server = self.new_server()
        server.publish("1")
        first = server.last_event_id
        server.publish("2")
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        client = await self.stream(server, f"/sse?last_event_id={first}")
        self.assertEqual(await client.data(1), ["2"])
        client = await self.stream(server)
        server.publish("3")
        self.assertEqual(await client.data(1), ["3"])

    async def test_an_id_from_before_a_crash_of_the_machine_is_unknown(self):
        server = await self.start()
        last = server.publish("1")
        with mock.patch.object(sse_server, "_boot_id", return_value="another"):
            after = await self.start()
        client = await self.stream(after, f"/sse?last_event_id={last}")
        gap, event = await client.events(2)
        self.assertEqual((gap.type, gap.data), ("gap", '{"reason":"unknown id"}'))
        self.assertEqual(event.data, "1")
        self.assertNotEqual(event.last_event_id, last)

    # Files that cannot be used.

    async def test_while_the_file_is_locked_nothing_is_published_and_all_else_goes_on(
        self,
    ):
        self.change(sse_server, _FILE_WAIT_SECONDS=0.2)
        server = await self.start(heartbeat=0.01, publish_token="secret")
        client = await self.stream(server)
        server.publish("1")
        await client.events(1)
        unlock = self.lock()
        comments = len(client.decoder.comments)
        posted = await self.connect(server)
        await posted.send(post("/sse", b"never") + ask("/other"))
        answering = asyncio.ensure_future(posted.read_answer())
        while len(client.decoder.comments) < comments + 3:
            await client.read_stream()
            self.assertFalse(answering.done(), "heartbeats waited for the file")
        answer = await answering
        self.assertEqual(answer.status, 503)
        self.assertEqual(
            answer.body, b"the history file cannot be written now; try again\n"
        )
        self.assertEqual(answer.field("retry-after"), "1")
        self.assertEqual((await posted.read_answer()).body, b"ok")
        self.change(sse_server, _FILE_WAIT_SECONDS=0.01)
        for publish in (server.publish, self.new_server(port=None).publish):
            with self.assertRaises(OSError) as caught:
                publish("never")
            self.assertIn("locked", str(caught.exception))
        (error,) = self.logged(logging.ERROR)
        self.assertIn("locked; another program has kept it locked", error)
        unlock()
        answer = await self.ask(server, post("/sse?id=x", b"2"))
        self.assertEqual((answer.status, answer.body), (200, b"x"))
        self.assertEqual(await client.data(1), ["2"])

    async def test_a_post_that_is_repeated_at_another_process(self):
        self.stop_looking()
        servers = [await self.start(publish_token="secret") for _ in range(2)]
        for server, data, status in (
            (servers[0], b"1", 200),
            (servers[1], b"1", 200),
            (servers[1], b"2", 409),
            (servers[0], b"1", 200),
        ):
            answer = await self.ask(server, post("/sse?id=a", data))
            self.assertEqual(answer.status, status)
            if status == 200:
                self.assertEqual(answer.body, b"a")
        answer = await self.ask(servers[1], post("/sse?event=x\0", b""))
        self.assertEqual(answer.status, 400)
        self.assertEqual(servers[1].stats.published, 1)

    async def test_a_post_is_known_as_long_as_the_file_holds_it(self):
        """The file holds more events than the history has in memory."""
        server = await self.start(publish_token="secret", history=1)
        for number in range(3):
            server.publish("", id=f"{number}")
        await server.drain()
        for data, status in ((b"", 200), (b"x", 409)):
            answer = await self.ask(server, post("/sse?id=0", data))
            self.assertEqual(answer.status, status)

    async def test_the_end_while_an_event_waits_does_not_stop_the_event_loop(self):
        server = await self.start(publish_token="secret", shutdown_timeout=0.01)
        unlock, lock = self.lock(), server._intake.file._write_lock

        def waits():  # the thread that publishes
            is_free = lock.acquire(blocking=False)
            if is_free:
                lock.release()
            return not is_free

        client = await self.connect(server)
        await client.send(post("/sse", b"1"))
        await self.until(waits, "its turn")
        asyncio.get_running_loop().call_later(0.05, unlock)
        await server.close()
        file = sse_server._LogFile(self.path, (9, 9, 9, None))
        self.addCleanup(file.close)
        await self.until(lambda: file.read(0)[0], "the event")

    async def test_a_publisher_that_leaves_while_its_event_waits(self):
        server = await self.start(publish_token="secret")
        unlock = self.lock()
        client = await self.connect(server)
        await client.send(post("/sse", b"1"))
        await self.until(
            lambda: inside(server).registry.count("publishing"), "its turn"
        )
        client.reset()
        await self.until(lambda: not len(inside(server).registry), "its end")
        unlock()
        reader = await self.stream(server, "/sse?replay=all")
        self.assertEqual(await reader.data(1), ["1"])

    @unittest.skipUnless(os.name == "posix", "an open file cannot be deleted")
    async def test_a_file_that_is_deleted_is_reported_once_and_streams_go_on(self):
        server = await self.start(heartbeat=0.01)
        client = await self.stream(server)
        server.publish("1")
        await client.events(1)
        os.unlink(self.path)
        await self.pass_time(2)
        await self.until(lambda: self.records[-1].levelno >= logging.ERROR, "the error")
        for _ in range(3):
            with self.assertRaises(OSError):
                server.publish("2")
        comments = len(client.decoder.comments)
        while len(client.decoder.comments) < comments + 10:
            await client.read_stream()
        (error,) = self.logged(logging.ERROR)
        self.assertIn("deleted or replaced", error)
        await server.close()
        self.assertEqual(await client.rest(), [])

    async def test_a_file_that_cannot_be_read_for_a_while_loses_nothing(self):
        server = await self.start()
        client = await self.stream(server)
        failures = [OSError("the disk is gone")] * 3
        read = inside(server).intake.file.read

        def fail(after):
            if failures:
                raise failures.pop()
            return read(after)

        self.change(inside(server).intake.file, read=fail)
        server.publish("1")
        self.assertEqual(await client.data(1), ["1"])
        self.assertEqual(self.logged(logging.ERROR), ["the disk is gone"])
        self.assertIn("the history file can be read again", self.logged())

    async def test_a_server_does_not_start_with_a_file_that_it_cannot_use(self):
        self.write(b"a text, and no database\n" * 9)
        server = self.new_server()
        for _ in range(2):
            with self.assertRaises(OSError) as caught:
                await server.__aenter__()
            self.assertIn("not a database", str(caught.exception))
        with self.assertRaises(OSError):
            server.publish("1")
        with self.assertRaises(OSError):
            server.last_event_id  # noqa: B018
        os.unlink(self.path)
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        server.publish("1")

    async def test_what_does_not_go_with_a_file(self):
        for options, error, text in (
            ({"id_order": int}, ValueError, "id_order cannot go with it"),
            ({"history_file": 5}, TypeError, "history_file is 5; allowed is a path"),
        ):
            with self.assertRaises(error) as caught:
                self.new_server(**options)
            self.assertIn(text, str(caught.exception))
        lacking = mock.patch.dict(sys.modules, {"sqlite3": None})
        with lacking, self.assertRaises(ValueError):
            self.new_server()
        server = self.new_server()
        own = server.publish("1")
        for id in (own, own + "0"):
            with self.assertRaises(ValueError) as caught:
                server.publish("2", id=id)
            self.assertIn("has the form of this server's own", str(caught.exception))
        await server.close()

    async def test_a_server_with_a_file_and_nothing_to_do_reads_nothing(self):
        server = await self.start()
        file = inside(server).intake.file
        changed, read = mock.Mock(side_effect=file.changed), mock.Mock()
        self.change(file, changed=changed, read=read)
        await self.pass_time(10)
        self.assertGreaterEqual(changed.call_count, 5)
        self.assertEqual(read.call_count, 0)


# ------------------------------------------------------------------------------------
# 8 and 9. The connection and the server
# ------------------------------------------------------------------------------------


async def coroutine_function(argument):
    """No hook, because nobody would await it."""


NOT_SECONDS = (0, -1, float("nan"), float("inf"), "1", None, True)
ORIGINS = (
    "allowed are https://example.com and the like in ASCII, without a path or a "
    "default port, and *"
)
VISIBLE = "allowed are visible ASCII characters"
HOSTS = "allowed are names and addresses without a port, IPv6 in brackets, and *"

# (parameter of SSEServer, value that it refuses, ValueError or TypeError, message)
REFUSED_ARGUMENTS = [
    *(
        (name, value, ValueError, f"{name} is {value!r}; allowed {allowed}")
        for name, allowed, values in (
            ("port", "are integers from 0 to 65535", (-1, 65536, "80", 1.0)),
            ("history", "are integers from 0", (-1, "5", 1.5, None, True)),
            ("history_bytes", "are integers from 0", (-1, None)),
            ("replay", "are integers from 0, math.inf", (-1, 1.5, True)),
            ("max_event_bytes", "are integers from 1", (0, None)),
            ("max_connections", "are integers from 1", (0, 1.5, False)),
            ("heartbeat", "are seconds above 0", NOT_SECONDS[:5] + NOT_SECONDS[6:]),
            (
                "history_seconds",
                "are seconds above 0",
                NOT_SECONDS[:5] + NOT_SECONDS[6:],
            ),
            ("retry", "are seconds above 0", NOT_SECONDS),
            ("restart_retry", "are seconds above 0", NOT_SECONDS),
            ("lifetime", "are seconds above 0", NOT_SECONDS[:5] + NOT_SECONDS[6:]),
            ("header_timeout", "are seconds above 0", NOT_SECONDS),
            ("body_timeout", "are seconds above 0", NOT_SECONDS),
            ("keepalive_timeout", "are seconds above 0", NOT_SECONDS),
            ("write_timeout", "are seconds above 0", NOT_SECONDS),
            ("shutdown_timeout", "are seconds above 0", NOT_SECONDS),
            (
                "path",
                "is ASCII that begins with /",
                ("", "sse", "/s?", "/s#", "/é", "/a b", "/a\n", None),
            ),
        )
        for value in values
    ),
    *(
        (
            name,
            "example.com",
            ValueError,
            f"{name} is a str; allowed is a sequence of them",
        )
        for name in ("cors_origins", "hosts")
    ),
    *(
        (
            "cors_origins",
            ["*", origin],
            ValueError,
            f"cors_origin is {origin!r}; {ORIGINS}",
        )
        for origin in (
            *("https://a.example/", "a.example", "", "https://"),
            *("HTTPS://a.example:443", "http://a.example:80"),  # browsers omit these
            *("https://\xe9.example", "https://a?", "https://a#"),
        )
    ),
    *(
        ("hosts", ["*", host], ValueError, f"host is {host!r}; {HOSTS}")
        for host in ("example.com:80", "http://a", "::1", "")
    ),
    *(
        (name, 1, TypeError, f"{name} is 1; allowed is a function")
        for name in ("authorize", "id_order", "on_open", "on_close", "dumps")
    ),
    *(
        (
            name,
            coroutine_function,
            TypeError,
            f"{name} is a coroutine function; allowed is a plain one",
        )
        for name in ("on_open", "on_close", "dumps")
    ),
    *(
        (
            "publish_token",
            token,
            ValueError,
            f"publish_token has {shown} at index {at}; {VISIBLE}",
        )
        for token, at, shown in (
            ("secret ", 6, "' '"),
            (" secret", 0, "' '"),
            ("my secret", 2, "' '"),
            ("secret\n", 6, r"'\n'"),
            ("secr\x7ft", 4, r"'\x7f'"),
            ("s\xe9cret", 1, r"'\xe9'"),
            ("s\udcffcret", 1, r"'\udcff'"),
        )
    ),
    (
        "publish_token",
        b"secret",
        TypeError,
        "publish_token is not a str; allowed is a str or None",
    ),
    *(
        ("host", host, TypeError, f"host is {host}; allowed is a str or None")
        for host in (8000, 0)
    ),
    (
        "ssl",
        "cert.pem",
        TypeError,
        "ssl is 'cert.pem'; allowed is an ssl.SSLContext or None",
    ),
    (
        "ssl",
        ssl.create_default_context(),
        ValueError,
        "ssl is for clients; see ssl.Purpose.CLIENT_AUTH",
    ),
]


class ConstructorTest(unittest.TestCase):
    def test_what_is_refused(self):
        for name, value, kind, message in REFUSED_ARGUMENTS:
            with self.subTest(name, value=value):
                with self.assertRaises(kind) as caught:
                    SSEServer(**{name: value})
                self.assertEqual(str(caught.exception), message)

    def test_help_explains_each_parameter_and_its_default(self):
        signature = inspect.signature(SSEServer)
        parameters = [(p.name, p.default) for p in signature.parameters.values()]
        found = re.findall(r"(?m)^ +(\w+)=(\S+) +\S", SSEServer.__doc__)
        explained = [(name, eval(default)) for name, default in found]
        self.assertEqual(explained, parameters)

    # What a Python without these modules runs; some small systems have one.
    WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["ssl", "_ssl", "zlib"]))  # to import them fails
import socket
import sse_server
with sse_server.SSEServer("127.0.0.1", 0) as server:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(b"GET /sse HTTP/1.0\\r\\nAccept-Encoding: gzip\\r\\n\\r\\n")
    file = client.makefile("rb")
    while not file.readline().startswith(b"retry"):
        pass
    server.publish("a")
    while not (line := file.readline()).startswith(b"data"):
        pass
    print(line)
    file.close()
    client.close()
for options in ({"ssl": 1}, {"compress": True}):
    try:
        sse_server.SSEServer(**options)
    except ValueError as error:
        print(error)
sse_server.main(["--certfile", "x"])
"""

    def test_without_ssl_and_zlib_all_works_that_does_not_need_them(self):
        command = [sys.executable, "-c", self.WITHOUT]
        options = {"capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(command, cwd=compiled(), check=False, **options)
        missing = "needs the module {}, which this Python does not have"
        expected = [
            "b'data: a\\n'",
            "ssl " + missing.format("ssl"),
            "compress " + missing.format("zlib"),
        ]
        self.assertEqual(done.stdout.splitlines(), expected, done.stderr)
        error = (
            f"sse_server: --certfile {missing.format('ssl')}; --help shows all options"
        )
        self.assertEqual((done.returncode, done.stderr.splitlines()), (2, [error]))

    def test_the_limits_of_what_is_allowed(self):
        SSEServer(port=65535, history=0, history_bytes=0, max_event_bytes=1)
        SSEServer(max_connections=1, heartbeat=None, retry=1e-9, path="/")

    def test_where_it_is(self):
        cases = {
            ("localhost", 8080): "http://localhost:8080/sse",
            ("::1", 1): "http://[::1]:1/sse",
            (None, 80): "http://localhost:80/sse",
        }
        for (host, port), url in cases.items():
            server = SSEServer(host, port)
            self.assertEqual((server.url, server.port), (url, port))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server = SSEServer(ssl=context, path="/%65vents")
        self.assertEqual(server.url, "https://localhost:8080/events")

    def test_without_a_port_there_is_no_url(self):
        server = SSEServer(port=None)
        self.assertEqual(server.port, 0)
        with self.assertRaises(RuntimeError) as caught:
            server.url  # noqa: B018
        self.assertEqual(str(caught.exception), "the server has no port of its own")


PLAIN = ("content-type", "text/plain; charset=utf-8")
NOSNIFF = ("x-content-type-options", "nosniff")
OK = (200, [PLAIN, NOSNIFF, ("content-length", "2")], b"ok")
OK_HEAD = (200, [PLAIN, NOSNIFF, ("content-length", "2")], b"")
STREAM_FIELDS = [
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
    ("vary", "Accept"),
    NOSNIFF,
]
CLOSE = ("connection", "close")
ALLOW = ("allow", "GET, HEAD, OPTIONS")


def refused(status, text, *fields):
    body = f"{text}\n".encode()
    length = ("content-length", str(len(body)))
    return status, [PLAIN, NOSNIFF, *fields, length, CLOSE], body


def not_allowed(method, why=""):
    body = f"{method} is not allowed on /sse{why}\n".encode()
    length = ("content-length", str(len(body)))
    return 405, [PLAIN, NOSNIFF, ALLOW, length], body


TOO_LONG = b"19\r\n%b\r\n" % (b"x" * 25)  # a chunk

# what is asked: (bytes, answer).  Where the answer has no Connection: close another
# request on the same connection is answered.
ANSWERS = {
    "any path": (ask("/"), OK),
    "any other path": (ask("/anything?a=b"), OK),
    "a path below": (ask("/sse/"), OK),
    "another case": (ask("/SSE"), OK),
    "an encoded slash": (ask("/%2Fsse"), OK),
    "any method": (ask("/", method="BREW"), OK),
    "POST elsewhere": (post("/", b"body", token=None), OK),
    "HEAD elsewhere": (ask("/", method="HEAD"), OK_HEAD),
    "OPTIONS elsewhere": (ask("/", method="OPTIONS"), OK),
    "OPTIONS for all": (ask("*", method="OPTIONS"), OK),
    "HTTP/1.2": (ask("/", version="1.2"), OK),
    "HTTP/1.0": (
        ask("/", version="1.0"),
        (200, [PLAIN, NOSNIFF, ("content-length", "2"), CLOSE], b"ok"),
    ),
    "HTTP/1.0 without Host": (
        b"GET / HTTP/1.0\r\n\r\n",
        (200, [PLAIN, NOSNIFF, ("content-length", "2"), CLOSE], b"ok"),
    ),
    "Connection: close": (
        ask("/", "Connection: Close"),
        (200, [PLAIN, NOSNIFF, ("content-length", "2"), CLOSE], b"ok"),
    ),
    "HEAD": (
        ask(method="HEAD"),
        (
            200,
            [
                *STREAM_FIELDS,
                ("connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
            ],
            b"",
        ),
    ),
    "HEAD on HTTP/1.0": (
        ask(method="HEAD", version="1.0"),
        (200, [*STREAM_FIELDS, CLOSE], b""),
    ),
    "HEAD and Connection: close": (
        ask("/sse", "Connection: close", method="HEAD"),
        (200, [*STREAM_FIELDS, ("transfer-encoding", "chunked"), CLOSE], b""),
    ),
    "OPTIONS": (ask(method="OPTIONS"), (204, [ALLOW], b"")),
    "PUT": (ask(method="PUT"), not_allowed("PUT")),
    "DELETE of an encoded path": (
        ask("/%73s%65?a", method="DELETE"),
        not_allowed("DELETE"),
    ),
    "a body that nobody will read": (
        ask("/sse", "Transfer-Encoding: chunked", method="PUT", body=b"19\r\n"),
        refused(405, "PUT is not allowed on /sse", ALLOW),
    ),
    "a body above the limit, whatever the method": (
        ask("/", "Transfer-Encoding: chunked", method="PUT", body=TOO_LONG),
        refused(413, "body of 25 bytes or more; allowed are 24"),
    ),
}


class AnswerTest(ServerTestCase):
    async def test_answers(self):
        server = await self.start(max_event_bytes=LIMIT)
        for name, (data, expected) in ANSWERS.items():
            with self.subTest(name):
                await self.check_answer(server, data, *expected)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))

    async def test_what_is_no_request(self):
        server = await self.start(max_event_bytes=LIMIT)
        cases = REFUSED_HEADS + [
            (CHUNKED + body, status, message)
            for body, status, message in REFUSED_BODIES
        ]
        for data, status, message in cases:
            if data.startswith(b"\r\n"):
                continue  # an empty line before a request is none (RFC 9112, 2.2)
            with self.subTest(data[:80]):
                await self.check_answer(server, data, *refused(status, message))
        self.assertEqual(len(self.logged(logging.WARNING)), 1)  # of the 431

    async def test_queries_that_get_400(self):
        server = await self.start()
        client = await self.connect(server)
        for query, message in REFUSED_QUERIES:
            with self.subTest(query[:60]):
                answer = await client.request(ask(f"/sse?{query}"))
                self.assertEqual(
                    (answer.status, answer.body), (400, f"{message}\n".encode())
                )
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))

    async def check_answer(self, server, data, status, fields, body):
        client = await self.connect(server)
        head_only = data.startswith(b"HEAD")
        answer = await client.request(data, head_only=head_only)
        (date,) = (value for name, value in answer.fields if name == "date")
        age = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
        self.assertTrue(-1 <= age < DEADLINE, date)
        newest = ("last-event-id", server.last_event_id)
        rest = {field for field in answer.fields if field[0] != "date"} - {newest}
        rest = sorted(rest)
        self.assertEqual(newest in answer.fields, ("vary", "Accept") in fields)
        self.assertEqual(
            (answer.status, rest, answer.body), (status, sorted(fields), body)
        )
        self.assertEqual(answer.reason, HTTPError(status).message)
        if CLOSE in fields:
            self.assertTrue(await client.ended())
        else:
            again = await client.request(ask("/"))
            self.assertEqual((again.status, again.body), (200, b"ok"))
        client.close()

    async def test_another_path_for_the_stream(self):
        server = await self.start(path="/%7Eevents/live")
        self.assertEqual((await self.ask(server, ask("/sse"))).body, b"ok")
        client = await self.stream(server, "/~event%73/live?a=b")
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(server.url, f"http://127.0.0.1:{server.port}/~events/live")

    async def test_a_target_in_absolute_form(self):
        server = await self.start()
        client = await self.stream(server, "http://localhost/sse")
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])


class CountingBytes(bytearray):
    """Counts the deletions from it."""

    deletions = 0

    def __delitem__(self, index):
        self.deletions += 1
        super().__delitem__(index)


class ConnectionTest(ServerTestCase):
    async def test_a_client_is_read_by_32_kib_at_a_time(self):
        sizes, data_received = [], sse_server._Connection.data_received

        def receive(connection, data):
            sizes.append(len(data))
            data_received(connection, data)

        self.change(sse_server._Connection, data_received=receive)
        server = await self.start()
        request = post("/", bytes(1024 * KIB), token=None)
        self.assertEqual((await self.ask(server, request)).status, 200)
        self.assertEqual(sum(sizes), len(request))
        self.assertLessEqual(max(sizes), 32 * KIB)

    async def test_pipelined_requests_are_answered_in_order(self):
        server = await self.start()
        client = await self.connect(server)
        chunked = ask("/", "Transfer-Encoding: chunked", method="POST")
        requests = [
            ask("/"),
            post("/", b"GET /sse HTTP/1.1\r\n\r\n", token=None),
            ask(method="OPTIONS"),
            chunked + b"3\r\nabc\r\n0\r\nTrailer: a\r\n\r\n",
            ask(method="PUT"),
            ask(),
        ]
        await client.open(b"".join(requests[:1]))
        client = await self.connect(server)
        await client.send(b"\r\n".join(requests))
        found = [(await client.read_answer()).status for _ in requests[:-1]]
        self.assertEqual(found, [200, 200, 204, 200, 405])
        await client.open(b"")
        await self.until_stats(server, live=1)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])

    async def test_empty_lines_before_a_request_are_thrown_away_many_at_a_time(self):
        server = await self.start()
        client = await self.connect(server)
        await self.until(lambda: self.in_state("head"), "the connection")
        (connection,) = self.in_state("head")
        connection.received = received = CountingBytes()
        connection.data_received(b"\r\n" * (2**17 - 1) + ask("/") + b"\r\n\r")
        self.assertEqual((await client.read_answer()).body, b"ok")
        await self.until(lambda: connection.received == b"\r", "the next byte")
        self.assertLess(received.deletions, 1000)
        again = await client.request(b"\n" + ask("/"))
        self.assertEqual(again.body, b"ok")

    async def test_a_request_in_pieces(self):
        server = await self.start()
        client = await self.connect(server)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in post("/", b"body", token=None):
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            self.assertEqual((await client.read_answer()).body, b"ok")

    async def test_what_makes_a_head_too_large_is_logged(self):
        server = await self.start()
        cookie = "Cookie: " + "a" * MAX_HEAD
        for fields in ([cookie, "X: a"], ["X: a"] * 300, [cookie]):
            answer = await self.ask(server, ask("/", "Y: b", *fields))
            self.assertEqual(answer.status, 431)
        (found,) = self.logged(logging.WARNING)  # once a minute
        self.assertIn(f": {HEAD_TOO_LARGE}; 1", found)
        self.assertIn(f" bytes have come, {len(cookie)} of them of 'Cookie'", found)

    async def test_a_silent_connection_gets_408(self):
        """Rule 4: the wait for a request has a deadline."""
        server = await self.start(header_timeout=1)
        client = await self.connect(server)
        await self.pass_time(2)
        answer = await client.read_answer()
        self.assertEqual(answer.status, 408)
        await self.pass_time(2 * sse_server._LINGER_SECONDS)
        self.assertTrue(await client.ended())

    async def test_an_idle_kept_connection_is_closed_without_a_word(self):
        """Rule 4: the wait for the next request has a deadline."""
        server = await self.start(keepalive_timeout=12)
        client = await self.connect(server)
        await client.request(ask("/"))
        ended = asyncio.ensure_future(client.ended())
        await self.pass_time(7)
        self.assertFalse(ended.done())
        await self.pass_time(6)
        self.assertTrue(await ended)

    async def test_a_head_that_is_not_complete_in_time_gets_408(self):
        """Rule 4: the wait for the rest of a head has a deadline."""
        server = await self.start(header_timeout=2)
        for before in (b"", ask("/")):
            with self.subTest(before=before):
                client = await self.connect(server)
                if before:
                    await client.send(before + b"GET")
                    await client.read_answer()
                else:
                    await client.send(b"GET")
                await self.pass_time(3)
                answer = await client.read_answer()
                self.assertEqual(answer.status, 408)
                self.assertEqual(answer.body, b"request head not complete in 2 s\n")
                await self.pass_time(2 * sse_server._LINGER_SECONDS)
                self.assertTrue(await client.ended())

    async def test_a_body_that_is_not_complete_in_time_gets_408(self):
        """Rule 4: the wait for the rest of a body has a deadline."""
        server = await self.start(body_timeout=2)
        client = await self.connect(server)
        await client.send(post("/", b"12345", token=None)[:-1])
        await self.pass_time(4)
        answer = await client.read_answer()
        self.assertEqual(answer.status, 408)
        self.assertEqual(answer.body, b"request body not complete in 2 s\n")

    async def test_who_asks_and_does_not_read_is_cut(self):
        """Rule 4: the wait for an answer to be taken has a deadline."""
        self.send_buffer = BUFFER
        server = await self.start(write_timeout=12)
        client = await self.connect(server, receive_buffer=BUFFER)

        async def send():
            while True:
                await client.send(ask("/sse", "Accept: text/html") * 10)

        sending = asyncio.ensure_future(send())
        await self.until(
            lambda: self.transports and self.transports[0].get_write_buffer_size(),
            "an answer that is not taken",
        )
        await self.pass_time(7)
        self.assertFalse(self.transports[0].is_closing())
        await self.pass_time(6)
        with self.assertRaises(ConnectionError):
            await sending
        self.assertTrue(self.transports[0].is_closing())

    async def test_who_reads_the_last_answer_slowly_gets_all_of_it(self):
        """Rule 4: the timer of a connection that has ended does nothing."""
        self.send_buffer = 4 * KIB
        server = await self.start()
        client = await self.connect(server, receive_buffer=4 * KIB)
        await client.send(ask("/sse", "Accept: text/html", "Connection: close"))
        await self.until(lambda: self.in_state("leaving"), "the end")
        self.assertGreater(self.transports[0].get_write_buffer_size(), 0)
        await self.pass_time(2 * sse_server._LINGER_SECONDS)
        answer = await client.read_answer()
        self.assertTrue(answer.body.endswith(b"</html>\n"))
        self.assertTrue(await client.ended())

    async def test_who_does_not_read_the_last_answer_is_cut(self):
        """Rule 4: the wait for the last bytes to be taken has a deadline."""
        self.send_buffer = 4 * KIB
        server = await self.start(write_timeout=12)
        client = await self.connect(server, receive_buffer=4 * KIB)
        await client.send(ask("/sse", "Accept: text/html", "Connection: close"))
        await self.until(
            lambda: self.transports and self.transports[0].get_write_buffer_size(),
            "an answer that is not taken",
        )
        await self.pass_time(7)
        self.assertGreater(self.transports[0].get_write_buffer_size(), 0)
        await self.pass_time(6)
        with self.assertRaises((ConnectionError, EOFError)):
            await client.read_answer()

    async def test_100_continue_where_the_body_is_wanted(self):
        server = await self.start(publish_token="secret", max_event_bytes=10)
        expect = "Expect: 100-continue"
        client = await self.connect(server)
        await client.send(post("/sse", b"abc", expect)[:-3])
        self.assertEqual((await client.read_head()).status, 100)
        answer = await client.request(b"abc")
        self.assertEqual(answer.status, 200)
        answer = await client.request(post("/sse", b"abc", expect))
        self.assertEqual(answer.status, 200, "the body had come")
        cases = {
            "wrong token": (post("/sse", b"abc", expect, token="x"), 401),
            "too large": (post("/sse", b"a" * 11, expect), 413),
        }
        for name, (data, status) in cases.items():
            with self.subTest(name):
                client = await self.connect(server)
                answer = await client.request(
                    data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                )
                self.assertEqual(answer.status, status)

    async def test_a_body_that_nobody_reads_is_refused_by_its_head(self):
        """Without a 100 Continue, and before any of the body is kept."""
        without_token = await self.start()
        with_token = await self.start(publish_token="secret")
        for server, method, length in (
            (without_token, "POST", "Content-Length: 1000"),
            (without_token, "POST", "Transfer-Encoding: chunked"),
            (without_token, "PUT", "Content-Length: 1000"),
            (with_token, "PATCH", "Content-Length: 1000"),
        ):
            for expect in ("Expect: 100-continue", "Authorization: Bearer secret"):
                with self.subTest(method=method, length=length, expect=expect):
                    client = await self.connect(server)
                    answer = await client.request(
                        ask("/sse", length, expect, method=method)
                    )
                    self.assertEqual(answer.status, 405)
                    self.assertEqual(answer.field("connection"), "close")

    async def test_an_error_is_read_by_who_still_uploads_megabytes(self):
        server = await self.start(publish_token="secret", shutdown_timeout=0.2)
        body = b"x" * (3 * 1024 * KIB)

        async def upload(data):
            client = await self.connect(server)
            # So that it is only sent to its end while the server reads.
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            self.assertEqual((await client.request(ask("/"))).status, 200)
            await client.send(data)
            return (await client.read_answer()).status

        found = await asyncio.gather(
            upload(post("/sse", body, token="wrong")),
            upload(post("/", body, token=None)),
            upload(post("/ /", body)),
        )
        self.assertEqual(found, [401, 413, 400])
        await self.pass_time(2 * sse_server._LINGER_SECONDS)
        for client in self.clients:
            self.assertTrue(await client.ended())

    async def test_after_an_error_who_ends_its_input_is_not_waited_for(self):
        self.change(sse_server, _LINGER_SECONDS=1000)
        client = await self.connect(await self.start())
        self.assertEqual((await client.request(b"x\r\n\r\n")).status, 400)
        client.end_of_input()
        await self.until_gone()

    async def test_lingering_is_bounded_in_time_and_in_bytes(self):
        """Rule 4: what is read after an error has a bound, in time and in bytes."""
        for limit in (
            {"_LINGER_SECONDS": 12},
            {"_LINGER_SECONDS": 1000, "_LINGER_BYTES": 100_000},
        ):
            with self.subTest(limit), mock.patch.multiple(sse_server, **limit):
                server = await self.start()
                client = await self.connect(server)
                await client.send(b"x y z\r\n\r\n")
                self.assertEqual((await client.read_answer()).status, 400)
                if "_LINGER_BYTES" in limit:
                    self.assertEqual(len(self.in_state("lingering")), 1)
                    with contextlib.suppress(ConnectionError):
                        await client.send(b"x" * 100_000)
                else:
                    await self.pass_time(7)
                    self.assertFalse(self.transports[-1].is_closing())
                    await self.pass_time(6)
                await self.until(
                    lambda: not self.in_state("lingering"), "the server to close"
                )
                self.assertTrue(await client.ended())

    async def test_a_client_that_leaves_within_a_request(self):
        server = await self.start()
        for data in (b"", b"GET", post("/", b"body")[:-1]):
            for leave in (Client.close, Client.reset):
                client = await self.connect(server)
                await client.send(data)
                await self.until(
                    lambda: self.in_state("head", "body"), "the connection"
                )
                leave(client)
                await self.until_gone()
        self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")


class ConnectionOverTLSTest(OverTLS, ConnectionTest):
    again = (
        "test_pipelined_requests_are_answered_in_order",
        "test_a_request_in_pieces",
        "test_a_silent_connection_gets_408",
        "test_an_idle_kept_connection_is_closed_without_a_word",
        "test_who_asks_and_does_not_read_is_cut",
        "test_who_reads_the_last_answer_slowly_gets_all_of_it",
        "test_who_does_not_read_the_last_answer_is_cut",
        "test_an_error_is_read_by_who_still_uploads_megabytes",
        "test_lingering_is_bounded_in_time_and_in_bytes",
        "test_a_client_that_leaves_within_a_request",
    )


class ModelSocket(ModelTransport):
    """A transport that also reads, and that is lost in a later round of the loop."""

    reads = True

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True

    def lose(self):
        self.closing = True
        asyncio.get_running_loop().call_soon(super().lose)


class ModelVisitor:
    """Who sends requests to a ModelSocket, plain or over TLS, and reads the answers."""

    def __init__(self, socket, context, requests):
        self.socket = socket
        self.requests = requests  # that were not sent yet
        self.sent = bytearray()  # on its way
        self.answers = b""
        self.ended = False  # it will send no more
        self.is_told = False  # by TLS, that the server will send no more
        self._read = 0  # of what the socket was given
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context and context.wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )

    def go_on(self):
        came, self._read = self.socket.received[self._read :], len(self.socket.received)
        if not self.tls:
            self.answers += came
            self.sent += self.requests
            self.requests = b""
            return
        self._incoming.write(came)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            if self.requests:
                self.tls.write(self.requests)
                self.requests = b""
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while piece := self.tls.read(2**16):
                    self.answers += piece
            self.is_told = True
        self.sent += self._outgoing.read()

    def may_end(self):
        """Whether all was sent; before the handshake TLS cannot end."""
        is_agreed = not self.tls or self.tls.version()
        return is_agreed and not self.requests and not self.ended

    def say_end(self):
        """As TLS does it."""
        self.ended = True
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.sent += self._outgoing.read()


class RequestsModelTest(unittest.TestCase):
    """Random requests in random pieces and turns, plain and over TLS, from visitors that
    read as they like: all are answered, in order, and the server holds little."""

    SCHEDULES = 50 * _FACTOR

    def test_random_schedules(self):
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.contexts = [(None, None)]
        if OPENSSL:
            theirs = ssl.create_default_context(cafile=certificate()[0])
            self.contexts += [(tls_context(), theirs)] * 2
        for seed in range(SEED, SEED + self.SCHEDULES):
            with self.subTest(seed=seed):
                loop.run_until_complete(self.run_schedule(random.Random(seed)))

    async def run_schedule(self, random_):
        self.random = random_
        self.hurries = False  # then no turn is over, and everything is taken
        is_over = sse_server._Turns.is_over

        def is_over_at_random(turns, *seconds):
            is_over(turns, *seconds)  # it begins the next round
            return not self.hurries and random_.random() < 0.4

        async def listen(accept, sock, **options):
            async def start_serving():
                self.accept = accept

            return types.SimpleNamespace(start_serving=start_serving, close=sock.close)

        with (
            mock.patch.object(sse_server._Turns, "is_over", is_over_at_random),
            mock.patch.object(sse_server, "_direct_socket", lambda transport: None),
            mock.patch.object(sse_server, "_IGNORED_INPUT_SECONDS", 0),
            mock.patch.object(asyncio, "start_server", listen),
        ):
            ours, theirs = random_.choice(self.contexts)
            options = {"publish_token": "secret", "heartbeat": None, "ssl": ours}
            async with SSEServer("127.0.0.1", 0, **options) as server:
                await self.visit(server, theirs)

    def requests(self):
        """Their bytes, the statuses of the answers, and what they publish."""
        data, statuses, published = b"", [], []
        for _ in range(self.random.randrange(8)):
            body = os.urandom(self.random.choice((1, 10, 40_000))).hex().encode()
            kind = self.random.randrange(4)
            length = f"Content-Length: {len(body)}"
            data += (
                ask("/"),
                ask("/", length, method="PUT", body=body),
                ask("/sse", method="DELETE") + b"\r\n" * 3,
                post("/sse", body),
            )[kind]
            statuses.append(405 if kind == 2 else 200)
            published += [body.decode()] * (kind == 3)
        return data, statuses, published

    async def visit(self, server, context):
        random_ = self.random
        data, statuses, published = self.requests()
        if streams := random_.random() < 0.5:
            data += ask("/sse?replay=all") + b"ignored" * random_.randrange(3)
            statuses.append(200)
        way = random_.choice(
            ("stays", "ends", "says that it ends", "breaks off", "vanishes")
        )
        steps = random_.randrange(1, 500)
        breaks = random_.randrange(steps)
        sizes = random_.sample((1, 100, 5000, 32 * KIB), 2)
        rooms = random_.sample((0, 0, 99, 9999), 2)
        socket = ModelSocket(Kernel(random_))
        self.accept(None, types.SimpleNamespace(transport=socket))
        connection = getattr(socket.protocol, "connection", socket.protocol)
        visitor = ModelVisitor(socket, context, data)
        quiet, before = 0, None
        while quiet < 20:
            steps -= 1
            self.hurries = steps < 0
            visitor.go_on()
            self.deliver(visitor, way, random_.choice(sizes))
            socket.give_room(10**6 if self.hurries else random_.choice(rooms))
            if way == "vanishes" and not steps:
                socket.lose()
            elif way == "breaks off" and steps == breaks:
                visitor.sent.clear()
                visitor.ended = True
                if not socket.protocol.eof_received():
                    socket.close()
            if random_.random() < 0.1 and not self.hurries:
                published.append(f"later {steps}")
                server.publish(published[-1])
            await asyncio.sleep(0)
            encrypted = getattr(socket.protocol, "_held", b"")
            self.assertLess(len(connection.received) + len(encrypted), 100 * KIB)
            now = len(visitor.answers), len(visitor.sent), socket.lost
            quiet = quiet + 1 if self.hurries and now == before else 0
            before = now
        self.assertEqual(len(inside(server).turns.waiting), 0)
        self.assertEqual(len(inside(server).registry), way == "stays")
        self.assertEqual(socket.lost, way != "stays")
        if way in ("breaks off", "vanishes"):
            return
        self.assertEqual(visitor.is_told, bool(visitor.tls) and way != "stays")
        self.assertFalse(socket.written_late)
        found = re.findall(rb"HTTP/1\.1 ([0-9]+)", visitor.answers)
        self.assertEqual([*map(int, found)], statuses)
        if streams:
            self.check_stream(visitor, published, way == "stays")

    def deliver(self, visitor, way, size):
        """Some of what was sent; in the end, the end."""
        socket = visitor.socket
        if not socket.reads or socket.closing:
            return
        if visitor.sent:
            piece = bytes(visitor.sent[:size])
            del visitor.sent[:size]
            socket.protocol.data_received(piece)
        elif way not in ("ends", "says that it ends") or not visitor.may_end():
            return
        elif way == "says that it ends" and visitor.tls:
            visitor.say_end()
        else:
            visitor.ended = True
            if not socket.protocol.eof_received():
                socket.close()

    def check_stream(self, visitor, published, stays):
        head = visitor.answers.index(b"text/event-stream")
        body = visitor.answers[visitor.answers.index(b"\r\n\r\n", head) + 4 :]
        chunks = ChunkDecoder()
        events = Decoder().feed(chunks.feed(body))
        found = [event.data for event in events]
        order = numbers([event.last_event_id for event in events])
        self.assertEqual(order, [*range(1, len(order) + 1)])
        self.assertEqual(chunks.ended, not stays)
        self.assertEqual(set(found) - set(published), set())
        if stays:
            self.assertEqual(sorted(found), sorted(published))


def visit_quietly(port, data, end, reads, context):
    """Send the data to a port, read an answer or not, and leave in one of the ways."""
    sock = socket.create_connection(("127.0.0.1", port))
    if context:
        sock = context.wrap_socket(sock)
    sock.settimeout(DEADLINE)
    with contextlib.suppress(OSError):
        sock.sendall(data)
        while reads and (data or end == "wait") and sock.recv(4096):
            if end != "wait":
                break
        if end == "reset":
            linger = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    sock.close()


class SeamTest(ServerTestCase):
    """Where requests, answers and streams follow each other on one connection."""

    async def test_after_the_end_of_input_nobody_lingers(self):
        self.change(sse_server, _LINGER_SECONDS=1000)
        _, client, gate = await self.asking(ask(method="HEAD") + b"x y z\r\n\r\n")
        client.end_of_input()
        connection = self.in_state("asking")[0]
        await self.until(lambda: connection.input_ended, "the end of input")
        gate.set()
        answer = await client.read_answer(head_only=True)
        self.assertEqual(answer.status, 200)
        self.assertEqual((await client.read_answer()).status, 400)
        self.assertTrue(await client.ended())
        await self.until_gone()

    async def test_tls_on_a_plain_port_gets_400_at_once(self):
        server = await self.start()
        client = await self.connect(server)
        answer = await client.request(b"\x16\x03\x01\x02\x00\x01")
        self.assertEqual(answer.status, 400)
        self.assertIn(b"this port does not speak TLS", answer.body)
        self.assertTrue(await client.ended())

    async def test_the_proxy_protocol_gets_400_that_names_it(self):
        server = await self.start()
        version_1 = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"
        version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)
        for data in (version_1, version_2):
            answer = await self.ask(server, data + ask())
            self.assertEqual(answer.status, 400)
            self.assertIn(NO_PROXY_PROTOCOL.encode(), answer.body)

    async def test_an_end_of_input_behind_a_pipelined_request_is_seen(self):
        requests = ask("/sse", "Accept: text/html") + ask()
        server, client, gate = await self.asking(requests)
        client.end_of_input()
        gate.set()
        await client.read_answer()
        with self.assertRaises(EOFError):  # its stream would end at once
            await client.read_head()
        await self.until_stats(server, live=0, behind=0)

    async def test_reading_pauses_when_much_is_sent_ahead(self):
        _, client, gate = await self.asking(ask(), permission=False)
        sending = asyncio.ensure_future(client.send(ask() * 200_000))
        (connection,) = self.in_state("asking")
        await self.until(lambda: not connection.transport.is_reading(), "the pause")
        self.assertLess(len(connection.received), 512 * KIB)
        await self.cancel(sending)
        client.reset()
        gate.set()
        await self.until_gone()

    async def test_reading_pauses_while_much_waits_for_its_turn(self):
        server = await self.start()
        client = await self.connect(server)
        await self.until(lambda: self.in_state("head"), "the connection")
        (connection,) = self.in_state("head")
        with mock.patch.object(inside(server).turns, "is_over", return_value=True):
            connection.data_received(b"\r\n")
            self.assertTrue(connection.transport.is_reading())
            connection.data_received(b"\r")
            self.assertFalse(connection.transport.is_reading())
        inside(server).turns.defer(connection)
        await client.send(b"\n" + ask("/"))
        self.assertEqual((await client.read_answer()).body, b"ok")

    async def test_after_a_pause_the_next_request_is_read(self):
        _, client, gate = await self.asking(ask(method="HEAD"))
        (connection,) = self.in_state("asking")
        await client.send(post("/", b"x" * 1000))
        await self.until(lambda: not connection.transport.is_reading(), "the pause")
        gate.set()
        # The answers are taken only later.
        connection_class = sse_server._Connection
        with mock.patch.object(connection_class, "has_room", return_value=False):
            for head_only in (True, False):
                answer = await client.read_answer(head_only=head_only)
                self.assertEqual(answer.status, 200)
                self.assertFalse(connection.transport.is_reading())
                connection.resume_writing()
        self.assertEqual((await client.request(ask("/"))).body, b"ok")

    async def test_a_stream_that_is_asked_for_with_close_says_so(self):
        server = await self.start()
        client = await self.stream(server, "/sse", "Connection: close")
        self.assertEqual(client.answer.field("connection"), "close")
        self.assertEqual(client.answer.field("transfer-encoding"), "chunked")

    async def test_authorize_that_fails_does_not_end_an_event_source(self):
        async def authorize(request):
            raise ZeroDivisionError

        server = await self.start(authorize=authorize)
        with self.assertLogs("sse_server", "ERROR"):
            answer = await self.ask(server, ask("/sse", "Accept: text/event-stream"))
            plain = await self.ask(server, ask())
        self.assertEqual(answer.status, 200)
        self.assertRegex(answer.body, rb"\Aretry: [0-9]+\n\Z")
        self.assertEqual(plain.status, 500)

    async def test_a_thread_that_cannot_be_started_costs_one_answer(self):
        """And not the place of the call among those that may run."""
        self.change(sse_server, _AUTHORIZE_THREADS=1, _AUTHORIZE_SECONDS=5)
        server = await self.start(authorize=lambda request: True)

        async def status():
            head = ask(method="HEAD")
            return (await self.ask(server, head, head_only=True)).status

        with (
            mock.patch.object(
                threading.Thread, "start", side_effect=RuntimeError("no")
            ),
            self.assertLogs("sse_server", "ERROR"),
        ):
            self.assertEqual(await status(), 500)
        self.assertEqual(await status(), 200)

    async def test_blocking_hooks_do_not_refuse_those_who_wait_their_turn(self):
        def authorize(request):
            time.sleep(0.001)
            return True

        with mock.patch.object(sse_server, "_AUTHORIZE_THREADS", 2):
            server = await self.start(authorize=authorize)
            clients = [await self.connect(server) for _ in range(40)]
            opened = await asyncio.gather(*[client.open(ask()) for client in clients])
        self.assertEqual(len(opened), 40)
        await self.until_stats(server, live=40)

    async def test_a_blocked_hook_does_not_hold_the_end(self):
        release = threading.Event()
        self.addCleanup(release.set)
        server = SSEServer(
            "127.0.0.1",
            0,
            authorize=lambda request: release.wait(),
            shutdown_timeout=0.03,
        )
        await self.in_thread(server.start)
        client = await self.connect(server)
        await client.send(ask())
        await self.until(lambda: self.in_state("asking"), "the question")
        await asyncio.wait_for(self.in_thread(server.stop), DEADLINE)
        release.set()

    async def test_disconnect_holds_for_those_who_are_being_let_in(self):
        server, client, gate = await self.asking(
            ask("/sse", "Accept: text/event-stream")
        )
        chosen = []
        server.disconnect(lambda request: chosen.append(request) or True)
        await self.until(lambda: chosen, "the predicate")
        gate.set()
        answer = await client.read_answer()
        self.assertRegex(answer.body, rb"\Aretry: [0-9]+\n\Z")
        self.assertEqual(server.stats.live, 0)

    async def test_what_is_no_stream_is_told_that_it_was_disconnected(self):
        for data in (post("/sse", b"a"), ask("/sse")):
            with self.subTest(data):
                await self.check_disconnected(data)

    async def check_disconnected(self, data):
        server, client, _ = await self.asking(data, publish_token="secret")
        server.disconnect(lambda request: True)
        answer = await client.read_answer()
        text = b"disconnected by the program\n"
        self.assertEqual((answer.status, answer.body), (503, text))
        self.assertEqual(server.stats.published, 0)

    async def test_no_visit_leaves_a_cycle_for_the_garbage_collector(self):
        def alive():
            kinds = (
                asyncio.StreamReaderProtocol,
                sse_server._Connection,
                sse_server._BodyReader,
                sse_server.Request,
                HTTPError,
            )
            return sum(isinstance(found, kinds) for found in gc.get_objects())

        def authorize(request):
            if "raise" in request.query:
                try:
                    raise KeyError
                except KeyError:
                    refusal = HTTPError(403)  # its traceback refers to this frame
                    raise refusal  # and so does its context's
            if "fail" in request.query:
                raise ZeroDivisionError
            return "refuse" not in request.query

        async def authorize_later(request):
            return authorize(request)

        targets = ["/", "/\x7f"]
        targets += [f"/sse?{way}" for way in ("refuse", "raise", "fail", "channel=")]
        for hook in (authorize, authorize_later):
            with self.subTest(hook=hook):
                await self.visit_without_cycles(alive, targets, hook)

    async def visit_without_cycles(self, alive, targets, authorize):
        server = await self.start(authorize=authorize, publish_token="secret")
        logging.getLogger("sse_server").setLevel(logging.CRITICAL)
        await self.visit_in_each_way(server, targets)  # equal heads are parsed once
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        before = alive()
        await self.visit_in_each_way(server, targets)
        await self.until(lambda: alive() <= before, "the end of the connections")

    async def visit_in_each_way(self, server, targets):
        end = "Connection: close"
        for _ in range(5):
            for target in targets:
                await self.ask(server, ask(target, end))
            await self.ask(server, post("/sse", b"a" * 2**21, end))
            client = await self.connect(server)
            await client.send(post("/sse", b"a" * 100)[:-1])
            await self.until(lambda: self.in_state("body"), "a body")
            client.close()
        late = await self.connect(server)
        await late.send(post("/sse", b"a" * 100)[:-1])
        await self.until(lambda: self.in_state("body"), "a body")
        await self.pass_time(40)
        self.assertEqual((await late.read_answer()).status, 408)
        late.close()
        for _ in range(5):
            client = await self.stream(server)
            client.close()
        await self.until_gone()
        self.transports.clear()
        self.connections.clear()

    async def test_no_end_of_a_connection_leaves_anything_to_the_collector(self):
        """Neither of ours nor of asyncio's: closed, reset, cut, refused, with TLS."""
        requests = [ask("/"), ask(), b"x y z\r\n\r\n", b"GET / HT", b""]
        ways = [*itertools.product(requests, ("close", "reset"), (True,))]
        ways += [(ask(), "close", False), (ask(), "reset", False), (b"", "wait", True)]
        for tls in (False, True) if OPENSSL else (False,):
            options = {"ssl": tls_context()} if tls else {}
            server = await self.start(**options)
            context = ssl.create_default_context() if tls else None
            if context:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            for data, end, reads in ways:
                for secured in {tls, False}:
                    visit = server.port, data, end, reads, context if secured else None
                    state = "head" if secured or not tls else "handshake"
                    with self.subTest(data, end=end, reads=reads, secured=secured):
                        await self.visit_and_collect(server, visit, state)

    async def visit_and_collect(self, server, visit, waits_in):
        def collected():
            gc.collect()
            found = [type(o).__name__ for o in gc.garbage]
            gc.garbage.clear()
            return found

        gc.disable()
        self.addCleanup(gc.enable)
        visiting = asyncio.ensure_future(self.in_thread(visit_quietly, *visit))
        await self.until(
            lambda: visiting.done() or self.in_state(waits_in), "the connection"
        )
        await asyncio.wait([visiting], timeout=0.02)
        if not visiting.done():  # it waits until it is cut
            await self.pass_time(14)
        await visiting
        self.addCleanup(gc.set_debug, 0)
        await self.until_gone()
        self.transports.clear()
        self.connections.clear()
        for _ in range(5):  # asyncio's own last calls
            await asyncio.sleep(0)
        gc.set_debug(gc.DEBUG_SAVEALL)
        found = [name for name in collected() if "Thread" not in name]
        gc.set_debug(0)
        self.assertEqual(found, [])
        self.logged(logging.ERROR)

    async def test_the_kernel_holds_little_for_who_does_not_read(self):
        server = await self.start()
        await self.stream(server)
        sock = self.transports[0].get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            size = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            self.assertEqual(size, 128 * KIB)

    @unittest.skipUnless(sys.platform == "linux", "other systems do not tell")
    async def test_the_kernel_ends_no_one_who_reads_slowly(self):
        """It counts a small window that is never open for long as no progress."""
        server = await self.start(history=100_000)
        client, expected = await self.stall(server)
        (subscriber,) = self.in_state("full")
        sock = self.transports[0].get_extra_info("socket")

        def timeout():
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

        self.assertEqual(timeout(), 0)
        before = subscriber.count_unsent()
        await client.data(1)  # less than what has to go before the transport writes
        await self.until(lambda: subscriber.count_unsent() < before, "progress")
        await client.data(len(expected) - 1)
        await self.until_stats(server, live=1)
        self.assertEqual(timeout(), 40_000)
        self.assertEqual(subscriber.count_unsent(), 0)


class StreamTest(ServerTestCase):
    async def test_the_head(self):
        server = await self.start()
        client = await self.stream(server)
        fields = [field for field in client.answer.fields if field[0] != "date"]
        expected = [
            *STREAM_FIELDS,
            ("connection", "keep-alive"),
            ("last-event-id", server.last_event_id),
            ("transfer-encoding", "chunked"),
        ]
        self.assertEqual(sorted(fields), sorted(expected))

    async def test_to_http_1_0_it_is_unframed_and_ended_by_the_close(self):
        server = await self.start()
        client = await self.stream(server, version="1.0")
        fields = [field for field in client.answer.fields if field[0] != "date"]
        newest = ("last-event-id", server.last_event_id)
        self.assertEqual(fields, [*STREAM_FIELDS, newest, CLOSE])
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])
        rest, _ = await asyncio.gather(client.rest(), server.close())
        self.assertEqual(rest, [])
        self.assertRegex(
            client.content.decode(),
            r"\A: open\nretry: [0-9]+\ndata: a\nid: [0-9a-f]{8}-1\n\nretry: [0-9]+\n\Z",
        )

    async def test_it_opens_with_a_comment_and_a_jittered_retry_and_no_blank_line(self):
        server = await self.start(retry=1.0)
        seen = set()
        for _ in range(30):
            client = await self.stream(server)
            while not client.content:
                await client.read_stream()
            self.assertRegex(bytes(client.content), rb"\A: open\nretry: [0-9]+\n\Z")
            self.assertEqual(len(client.chunks.chunks), 1)
            seen.add(client.decoder.retry)
            client.close()
        self.assertGreaterEqual(min(seen), 500)
        self.assertLessEqual(max(seen), 1500)
        self.assertGreater(len(seen), 15)
        self.assertLess(min(seen), 1000)
        self.assertGreater(max(seen), 1000)

    async def test_the_retry_is_never_zero(self):
        server = await self.start(retry=1e-9)
        client = await self.stream(server)
        while client.decoder.retry is None:
            await client.read_stream()
        self.assertEqual(client.decoder.retry, 1)

    async def test_what_the_client_sends_is_ignored(self):
        """Rule 6: the connection goes on reading, and sees its client leave."""
        server = await self.start()
        client = await self.stream(server)
        for _ in range(20):
            await client.send(ask("/") + b"x" * 10_000)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(len(client.chunks.chunks), 2)

    async def test_one_that_sends_is_not_read_for_a_second(self):
        server = await self.start()
        await self.stream(server)
        (connection,) = self.in_state("live")
        connection.data_received(b"x")
        await self.pass_time(0.5)
        self.assertFalse(connection.transport.is_reading())
        await self.pass_time(0.6)
        self.assertTrue(connection.transport.is_reading())

    async def test_those_that_sent_are_read_again_in_turns(self):
        server = await self.start()
        for _ in range(3):
            await self.stream(server)
        connections = self.in_state("live")
        for connection in connections:
            connection.data_received(b"x")
        clock = itertools.count()  # each look at it takes the time of a turn
        fake = types.SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
        self.change(sse_server, time=fake, _REQUEST_SECONDS=2)
        for connection in connections:
            inside(server).turns.defer(connection)
        read = []
        for _ in range(20):
            await asyncio.sleep(0)
            read.append(sum(c.transport.is_reading() for c in connections))
        self.assertEqual(sorted({*read} - {0}), [1, 2, 3])

    async def test_what_the_client_sends_with_the_request_is_ignored(self):
        server = await self.start()
        client = await self.connect(server)
        await client.open(ask() + ask("/") + b"x" * 300_000)
        await self.until_stats(server, live=1)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])

    async def test_the_options_of_the_sockets(self):
        server = await self.start(write_timeout=7)
        await self.stream(server)
        sock = self.transports[0].get_extra_info("socket")
        option = sock.getsockopt
        self.assertTrue(option(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(option(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        if hasattr(socket, "TCP_KEEPIDLE"):
            idle = option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            interval = option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            count = option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            self.assertLessEqual(idle + interval * count, 60)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            vanished = option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            self.assertTrue(7000 <= vanished <= 60_000, vanished)

    async def test_timeouts_longer_than_the_kernel_knows(self):
        server = await self.start(write_timeout=1e9, header_timeout=1e9)
        client = await self.stream(server)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])


class StreamOverTLSTest(OverTLS, StreamTest):
    again = (
        "test_to_http_1_0_it_is_unframed_and_ended_by_the_close",
        "test_what_the_client_sends_is_ignored",
        "test_what_the_client_sends_with_the_request_is_ignored",
        "test_the_options_of_the_sockets",
        "test_timeouts_longer_than_the_kernel_knows",
    )


class IteratorTest(ServerTestCase):
    """stream(): what another framework sends as its own response."""

    def reading(self, server, **parameters):
        iterator = server.stream(**parameters)
        self.addAsyncCleanup(self.end, iterator)
        return iterator

    async def end(self, iterator):
        await iterator.aclose()

    async def read(self, iterator, count):
        """So many events, in the order in which they come."""
        decoder, events = Decoder(), []
        while len(events) < count:
            events += decoder.feed(await anext_of(iterator))
        return [event.data for event in events]

    async def test_it_gets_what_a_connection_gets(self):
        server = await self.start(port=None, heartbeat=0.05, history=3)
        server.publish("state", event="s", retain=True)
        first = server.publish("0")
        await server.drain()
        iterator = self.reading(server)
        self.assertTrue((await anext_of(iterator)).startswith(b": open\nretry: "))
        self.assertEqual(await self.read(iterator, 1), ["state"])
        server.publish("1")
        server.publish("a", channel="a")
        self.assertEqual(await self.read(iterator, 1), ["1"])
        self.assertEqual(await anext_of(iterator), b":\n")
        resuming = self.reading(server, last_event_id=first)
        self.assertEqual(await self.read(resuming, 1), ["1"])
        other = self.reading(server, channels=["a"], replay=1)
        self.assertEqual(await self.read(other, 1), ["a"])
        for number in range(5):
            server.publish(str(number))
        await server.drain()
        late = self.reading(server, last_event_id=first)
        gap = '{"reason":"history"}'
        self.assertEqual(await self.read(late, 5), [gap, "state", "2", "3", "4"])

    async def test_one_that_is_slow_is_behind_and_then_dropped(self):
        server = await self.start(port=None, write_timeout=12)
        iterator = self.reading(server)
        await anext_of(iterator)
        for _ in range(3):
            server.publish("x" * 100_000)
        await self.pass_time(7)
        self.assertEqual(server.stats.dropped, 0)
        await self.until_dropped(server, 1)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))
        rest = await rest_of(iterator)
        self.assertEqual(rest, [])

    async def test_it_ends_with_the_server_and_with_disconnect(self):
        server = await self.start(port=None)
        for end in (
            lambda: server.disconnect(lambda request: True),
            lambda: asyncio.ensure_future(server.close()),
        ):
            iterator = self.reading(server, channels=["a", "b"])
            await anext_of(iterator)
            self.assertEqual(server.requests()[0].channels, {"a", "b"})
            reading = asyncio.ensure_future(rest_of(iterator))
            await self.until_stats(server, live=1)
            server.publish("last", channel="a")
            ending = end()
            rest = b"".join(await reading)
            self.assertRegex(rest, rb"data: last\nid: .+\n\nretry: ")
            if ending:
                await ending
        after = await rest_of(server.stream())
        self.assertEqual(len(after), 1)
        self.assertTrue(after[0].startswith(b"retry: "))

    async def test_one_that_resumes_while_a_sweep_looks_for_losses(self):
        """The sweep does not look for the losses of an audience that is new."""
        server = await self.start(port=None, history_bytes=3000)
        first = server.publish("0")
        reader = self.reading(server)
        await anext_of(reader)
        await server.drain()
        log = inside(server).log
        missed, late = log.missed, []

        def join(position, channels):
            if not late:
                late.append(server.stream(first, channels=["a"]))
                with self.assertRaises(StopIteration):  # it has its first bytes
                    late[0].__anext__().send(None)
            return missed(position, channels)

        with mock.patch.object(log, "missed", join):
            for _ in range(3):
                server.publish("x" * 1000, channel="a")
            await server.drain()
        self.addAsyncCleanup(self.end, late[0])
        found = await asyncio.wait_for(self.read(late[0], 3), DEADLINE)
        self.assertEqual(found, ['{"reason":"history"}', *["x" * 1000] * 2])

    async def test_one_that_is_cancelled_or_closed_is_gone(self):
        told = []
        server = await self.start(port=None, on_close=told.append)
        waiting = asyncio.ensure_future(self.read(self.reading(server), 1))
        await self.until_stats(server, live=1)
        waiting.cancel()
        closed = self.reading(server)
        await anext_of(closed)
        await closed.aclose()
        await self.until_stats(server, live=0, behind=0)
        await self.until(lambda: len(told) == 2, "on_close")

    async def test_closing_does_not_wait_for_one_that_nobody_reads(self):
        server = await self.start(port=None, shutdown_timeout=0.02)
        iterator = self.reading(server)
        await anext_of(iterator)
        server.publish("never read")
        await asyncio.wait_for(server.close(), DEADLINE)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))

    async def test_one_above_the_limit_is_told_to_come_back(self):
        server = await self.start(port=None, max_connections=1)
        await anext_of(self.reading(server))
        self.assertEqual(len(await rest_of(server.stream())), 1)
        self.assertEqual(server.stats.refused, 1)

    async def test_what_is_refused(self):
        server = await self.start(port=None)
        cases = [
            ({"channels": ["a", name]}, message.format("channel"))
            for name, message in REFUSED_NAMES
        ]
        many = [str(number) for number in range(101)]
        cases.append(({"channels": many}, "101 channels; allowed are 100"))
        cases += [
            ({name: value}, message)
            for name, value, _, message in REFUSED_ARGUMENTS
            if name == "replay"
        ]
        for parameters, message in cases:
            with self.subTest(parameters), self.assertRaises(ValueError) as caught:
                server.stream(**parameters)  # at once, not when it is read
            self.assertEqual(str(caught.exception), message)
        self.assertEqual(server.stats.live, 0)

    async def test_channels_are_not_a_text(self):
        server = await self.start(port=None)
        with self.assertRaisesRegex(ValueError, "^channels is a str; allowed is a seq"):
            server.stream(channels="news")

    async def test_an_id_that_is_not_utf_8_is_unknown(self):
        server = await self.start(port=None)
        reading = self.reading(server, last_event_id="\udcff")
        self.assertIn("unknown id", (await self.read(reading, 1))[0])

    async def test_a_full_server_answers_in_the_coding_that_its_headers_say(self):
        server = await self.start(port=None, max_connections=1, compress=True)
        opened = self.reading(server)
        await anext_of(opened)
        coding = server.stream_headers("gzip")["Content-Encoding"]
        turned_away = self.reading(server, accept_encoding="gzip")
        content = await anext_of(turned_away)
        self.assertEqual(coding, "gzip")
        content = zlib.decompressobj(GZIP).decompress(content)
        self.assertRegex(content, rb"^retry: [0-9]+\n$")

    async def test_it_belongs_into_the_event_loop_of_the_server(self):
        server = SSEServer(port=None)
        with self.assertRaisesRegex(RuntimeError, "the server was not started"):
            server.stream()
        with (
            server,
            self.assertRaisesRegex(RuntimeError, "must be called in the event loop"),
        ):
            server.stream()

    async def test_a_large_event_is_taken_in_pieces(self):
        """So a reader that is slow is seen to take something."""
        server = await self.start(port=None)
        reading = self.reading(server)
        await anext_of(reading)
        server.publish("x" * 300 * KIB)
        decoder, pieces = Decoder(), []
        while not decoder.feed(b"".join(pieces[-1:])):
            pieces.append(await anext_of(reading))
        self.assertEqual(max(map(len, pieces)), sse_server._BATCH_BYTES)
        server.publish("next")
        self.assertEqual(await self.read(reading, 1), ["next"])

    async def test_it_waits_for_a_server_that_starts(self):
        server = SSEServer("127.0.0.1", 0)  # to look up the address takes some rounds
        serving = asyncio.ensure_future(server.serve_forever())
        self.addAsyncCleanup(self.cancel, serving)
        await asyncio.sleep(0)
        reading = self.reading(server)
        self.assertIn(b": open\n", await anext_of(reading))
        self.assertEqual(server.stats.refused, 0)


class PublishTest(ServerTestCase):
    async def test_it_returns_the_ids_and_takes_the_callers(self):
        server = await self.start()
        client = await self.stream(server)
        first = server.publish(None)
        self.assertRegex(first, "^[0-9a-f]{8}-1$")
        self.assertEqual(server.publish("text\r\n", event="name", id="mine"), "mine")
        moment = datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)
        third = server.publish({"timestamp": moment, "é": [1, 2]})
        self.assertEqual(third, f"{first[:-1]}3")
        expected = [
            Event("message", "null", first),
            Event("name", "text\n", "mine"),
            Event(
                "message", '{"timestamp":"2024-02-29T00:00:00+00:00","é":[1,2]}', third
            ),
        ]
        self.assertEqual(await client.events(3), expected)

    async def test_what_is_refused(self):
        server = await self.start(max_event_bytes=10)
        cases = [
            ({"data": "x" * 11}, ValueError, "data has 11 bytes; allowed are 10"),
            ({"data": "é" * 6}, ValueError, "data has 12 bytes; allowed are 10"),
            ({"data": {"a": 12345}}, ValueError, "data has 11 bytes; allowed are 10"),
        ]
        cases += [case for case in REFUSED_EVENTS if case[1] is TypeError]
        for parameter in ("event", "id", "channel"):
            cases.append(
                ({parameter: 5}, TypeError, f"{parameter} is 5; allowed is a str")
            )
            cases += [
                ({parameter: name}, ValueError, message.format(parameter))
                for name, message in REFUSED_NAMES
            ]
        for arguments, kind, message in cases:
            with self.subTest(arguments), self.assertRaises(kind) as caught:
                server.publish(**{"data": "", **arguments})
            self.assertEqual(str(caught.exception), message)
        self.assertEqual(server.stats.published, 0)

    async def test_what_is_just_allowed(self):
        server = await self.start(max_event_bytes=10)
        client = await self.stream(server)
        longest = "é" * 128
        server.publish("x" * 10, event=longest, id=longest)
        server.publish("\n" * 10)
        expected = [
            Event(longest, "x" * 10, longest),
            Event("message", "\n" * 10, server.last_event_id),
        ]
        self.assertEqual(await client.events(2), expected)

    async def test_before_the_start_is_there_for_those_who_resume(self):
        server = SSEServer("127.0.0.1", 0)
        first = server.publish("0")
        server.publish("1")
        async with server:
            new = await self.stream(server)
            resuming = await self.stream(server, f"/sse?lastEventId={first}")
            server.publish("2")
            self.assertEqual(await new.data(1), ["2"])
            self.assertEqual(await resuming.data(2), ["1", "2"])
            await asyncio.wait_for(server.drain(), DEADLINE)

    async def test_after_the_end_is_an_error(self):
        ran, never_ran = await self.start(), SSEServer("127.0.0.1", 0)
        for server in (ran, never_ran):
            await server.close()
            with self.assertRaises(RuntimeError) as caught:
                server.publish("a")
            self.assertEqual(
                str(caught.exception), "the server is closed; nothing can be published"
            )
            self.assertEqual(server.stats.published, 0)

    async def test_from_many_threads_in_the_order_of_each(self):
        server = await self.start()
        client = await self.stream(server)

        def publish(name):
            for n in range(500):
                server.publish(f"{name} {n}")

        threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        events = await client.events(4000)
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(
            numbers(event.last_event_id for event in events), list(range(1, 4001))
        )
        found = {}
        for event in events:
            name, n = event.data.split()
            found.setdefault(name, []).append(int(n))
        self.assertEqual(found, {str(name): list(range(500)) for name in range(8)})

    async def test_drain_returns_when_the_live_were_written_everything(self):
        server = await self.start()
        for _ in range(300):
            await self.stream(server)
        for n in range(3):
            server.publish(str(n))
        await asyncio.wait_for(server.drain(), DEADLINE)
        self.assertEqual(server.stats.events_written, 900)
        await asyncio.wait_for(server.drain(), DEADLINE)

    async def test_drain_belongs_into_the_event_loop_of_the_server(self):
        text = "drain() must be called in the event loop of the server"
        with self.assertRaisesRegex(
            RuntimeError, r"^drain\(\): the server was not star"
        ):
            await SSEServer().drain()
        server = await self.start()

        def elsewhere():
            with self.assertRaises(RuntimeError) as caught:
                asyncio.run(server.drain())
            self.assertEqual(str(caught.exception), text)

        await self.in_thread(elsewhere)


class AuthorizeTest(ServerTestCase):
    async def test_what_the_hook_may_answer(self):
        """For a stream, and for publishing."""
        outcome = None

        def say(request):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        async def say_later(request):
            await asyncio.sleep(0)
            return say(request)

        class Hook:
            async def __call__(self, request):
                return say(request)

        basic = ("WWW-Authenticate", "Basic")
        cases = [
            (False, 403, "Forbidden\n"),
            (None, 403, "Forbidden\n"),
            (0, 403, "Forbidden\n"),
            (HTTPError(401, "log in", [basic]), 401, "log in\n"),
            (HTTPError(204), 204, ""),
            (HTTPError(429, "é"), 429, "é\n"),
            (HTTPError(418, "tea"), 418, "tea\n"),
            (ZeroDivisionError("oh"), 500, "Internal Server Error\n"),
        ]
        for hook in (say, say_later, Hook()):
            server = await self.start(authorize=hook, publish_token="secret")
            for outcome, status, text in cases:
                for data in (
                    ask("/sse?key=secret"),
                    post("/sse", b"a"),
                    ask(method="HEAD"),
                ):
                    method = data[:4]
                    with self.subTest(hook=hook, outcome=outcome, method=method):
                        head_only = method == b"HEAD"
                        answer = await self.ask(server, data, head_only=head_only)
                        self.assertEqual(answer.status, status)
                        body = b"" if head_only else text.encode()
                        self.assertEqual(answer.body, body)
                        self.assertIsNone(answer.field("content-encoding"))
                        if status == 401:
                            self.assertEqual(answer.field("www-authenticate"), "Basic")
                        if status == 204:
                            self.assertIsNone(answer.field("content-length"))
            outcome = True
            client = await self.stream(server)
            answer = await self.ask(server, post("/sse", b"a"))
            self.assertEqual(answer.status, 200)
            self.assertEqual(await client.data(1), ["a"])
            self.assertEqual(server.stats.published, 1)
            logged = self.logged(logging.ERROR)
            self.assertEqual(logged, ["authorize() failed for /sse"] * 3)

    async def test_a_client_that_has_gone_needs_no_answer(self):
        """Its descriptor is free, although the call may go on for long."""
        go = threading.Event()
        self.addCleanup(go.set)

        async def wait(request):
            await asyncio.Event().wait()

        for authorize in (lambda request: go.wait(DEADLINE), wait):
            server = await self.start(authorize=authorize)
            for fields in ((), (EVENT_SOURCE,)):
                client = await self.connect(server)
                await client.send(ask("/sse", *fields))
                await self.until(lambda: self.in_state("asking"), "the question")
                client.close()
                await self.until_gone()

    async def test_about_a_client_that_has_gone_nobody_is_asked(self):
        """Its request waited for its turn."""
        asked = []
        server = await self.start(authorize=asked.append)
        turns = inside(server).turns
        client = await self.connect(server)
        with mock.patch.object(turns, "is_over", return_value=True):
            await client.send(ask("/sse"))
            client.close()
            waiting = turns.waiting
            await self.until(lambda: [c for c in waiting if c.input_ended], "its end")
        for connection in list(waiting):
            turns.defer(connection)
        await self.until_gone()
        self.assertEqual(asked, [])

    async def test_who_ends_its_input_and_waits_for_an_answer_gets_it(self):
        for data in (ask(method="HEAD"), ask("/sse", BROWSER), post("/sse", b"a")):
            _, client, gate = await self.asking(data, publish_token="secret")
            client.end_of_input()
            (connection,) = self.in_state("asking")
            await self.until(lambda c=connection: c.input_ended, "the end of input")
            gate.set()
            self.assertEqual((await client.read_head()).status, 200)

    @unittest.skipUnless(hasattr(asyncio, "eager_task_factory"), "Python 3.12")
    async def test_one_that_does_not_wait_where_tasks_begin_at_once(self):
        async def authorize(request):
            return True

        loop = asyncio.get_running_loop()
        self.addCleanup(loop.set_task_factory, loop.get_task_factory())
        server = await self.start(authorize=authorize)
        loop.set_task_factory(asyncio.eager_task_factory)
        client = await self.connect(server)
        # Their answers do not fit into the socket, so the connection has to wait.
        await client.send(ask("/sse", BROWSER) * 60 + ask())
        for _ in range(60):
            self.assertEqual((await client.read_answer()).status, 200)
        await client.open(b"")
        (connection,) = self.in_state("live")
        self.assertIsNone(connection.task)

    async def test_a_304_has_no_body(self):
        async def authorize(request):
            raise HTTPError(304)

        server = await self.start(authorize=authorize)
        client = await self.connect(server)
        await client.send(ask())
        answer = await client.read_head()
        self.assertEqual((answer.status, answer.field("content-type")), (304, None))

    async def test_it_is_given_the_request_and_not_asked_elsewhere(self):
        requests = []

        def authorize(request):
            requests.append(request)
            return True

        server = await self.start(authorize=authorize)
        for data in (ask("/"), ask(method="OPTIONS"), ask(method="PUT")):
            await self.ask(server, data)
        self.assertEqual(requests, [])
        client = await self.stream(server, "/sse?channel=a&x=1", "Cookie: é=1")
        (request,) = requests
        self.assertEqual((request.method, request.path), ("GET", "/sse"))
        self.assertEqual(request.parameters, {"channel": ["a"], "x": ["1"]})
        self.assertEqual(request.header("cookie"), "é=1")
        self.assertEqual(request.peer, client.name)

    async def test_one_that_takes_its_time_holds_up_nobody(self):
        go = threading.Event()
        self.addCleanup(go.set)

        def block(request):
            if request.query == "slow":
                go.wait(DEADLINE)
            return True

        server = await self.start(authorize=block)
        slow = await self.connect(server)
        await slow.send(ask("/sse?slow"))
        fast = await self.stream(server)
        server.publish("a")
        self.assertEqual(await fast.data(1), ["a"])
        self.assertEqual(server.stats.live, 1)
        go.set()
        await slow.open(b"")
        server.publish("b")
        self.assertEqual(await slow.data(1), ["b"])

    async def test_it_may_take_longer_than_every_timeout(self):
        server, client, gate = await self.asking(
            ask(),
            header_timeout=1,
            body_timeout=1,
            keepalive_timeout=1,
            write_timeout=1,
        )
        await self.pass_time(3)
        gate.set()
        await client.open(b"")
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])

    async def test_one_that_forgets_to_await_lets_nobody_in(self):
        async def may(request):
            return False

        async def authorize(request):
            asked.append(may(request))
            return asked[-1]

        asked = []
        server = await self.start(authorize=authorize)
        with self.assertLogs("sse_server", "ERROR"):
            answer = await self.ask(server, ask("/sse?channel=secret"))
        self.assertEqual(answer.status, 500)
        asked[0].close()

    async def test_one_whose_work_is_cancelled_gets_500(self):
        async def authorize(request):
            work = asyncio.ensure_future(asyncio.Event().wait())
            work.cancel()
            return await work

        server = await self.start(authorize=authorize)
        client = await self.connect(server)
        with self.assertLogs("sse_server", "ERROR"):
            answer = await client.request(ask())
        self.assertEqual(answer.status, 500)

    async def test_an_answer_that_fails_ends_the_connection(self):
        server = await self.start(authorize=lambda request: True)
        client = await self.connect(server)
        decide = [sse_server._Question(get(), for_stream=True), None]
        with (
            mock.patch.object(server._site, "decide", side_effect=decide),
            self.assertLogs("sse_server", "ERROR"),
        ):
            await client.send(ask())
            self.assertTrue(await client.ended())

    async def test_one_that_takes_too_long_gets_503(self):
        async def authorize(request):
            await asyncio.Event().wait()

        server = await self.start(authorize=authorize)
        client = await self.connect(server)
        with (
            mock.patch.object(sse_server, "_AUTHORIZE_SECONDS", 0.05),
            self.assertLogs("sse_server", "ERROR") as caught,
        ):
            answer = await client.request(ask("/sse?key=secret"))
            event_source = await self.ask(
                server, ask("/sse", "Accept: text/event-stream")
            )
        self.assertEqual(answer.status, 503)
        self.assertEqual(answer.body, b"asking for permission took too long\n")
        self.assertNotIn("secret", "".join(caught.output))
        # An error would stop a browser's EventSource for good.
        self.assertEqual(event_source.status, 200)
        self.assertRegex(event_source.body, rb"\Aretry: [0-9]+\n\Z")

    async def test_a_body_is_asked_for_only_when_it_is_permitted(self):
        data = post("/sse", b"abc", "Expect: 100-continue")
        for permission, statuses in ((True, [100, 200]), (False, [403])):
            server, client, gate = await self.asking(
                data[:-3], permission, publish_token="secret"
            )
            gate.set()
            found = [(await client.read_head()).status]
            if found == [100]:
                found.append((await client.request(data[-3:])).status)
            self.assertEqual(found, statuses)
            self.assertEqual(server.stats.published, int(permission))

    async def test_a_body_is_not_received_before_it_is_permitted(self):
        """Rule 4."""
        body = b"x" * 2**20
        data = post("/sse", body)
        head = data[: -len(body)]
        for permission, status in ((True, 200), (False, 403)):
            _, client, gate = await self.asking(
                head, permission, publish_token="secret"
            )
            sending = asyncio.ensure_future(client.send(body))
            (connection,) = self.in_state("asking")
            await self.until(lambda c=connection: not c.transport.is_reading(), "it")
            self.assertLess(len(connection.received), 512 * KIB)
            gate.set()
            self.assertEqual((await client.read_answer()).status, status)
            await sending

    async def test_a_body_that_came_with_the_head_waits_for_the_permission(self):
        server, client, gate = await self.asking(
            post("/sse", b"abc") + ask("/"), publish_token="secret"
        )
        gate.set()
        self.assertEqual((await client.read_answer()).status, 200)
        self.assertEqual((await client.read_answer()).body, b"ok")
        self.assertEqual(server.stats.published, 1)

    async def blocking(self, **options):
        """A server with one thread for `authorize`, and a request that has it.

        Returns the server, its client, and for each call an event that ends it.
        """
        self.change(sse_server, _AUTHORIZE_THREADS=1)
        calls = []

        def authorize(request):
            self.assertTrue(threading.current_thread().daemon)
            calls.append(threading.Event())
            return calls[-1].wait(DEADLINE)

        server = await self.start(authorize=authorize)
        client = await self.connect(server)
        await client.send(ask())
        await self.until(lambda: calls, "the first call")
        self.addCleanup(lambda: [call.set() for call in calls])
        return server, client, calls

    async def test_the_wait_for_a_thread_has_an_end(self):
        server, first, calls = await self.blocking()
        await self.pass_time(10)
        second = await self.connect(server)
        await second.send(ask())
        await self.until(lambda: len(self.in_state("asking")) == 2, "the wait")
        with self.assertLogs("sse_server", "ERROR"):
            await self.pass_time(23)
            self.assertEqual((await first.read_answer()).status, 503)
            self.assertEqual(len(self.in_state("asking")), 1)
            await self.pass_time(12)
            self.assertEqual((await second.read_answer()).status, 503)
        self.assertEqual(len(calls), 1)

    async def test_the_wait_for_a_thread_is_not_counted_as_the_call(self):
        server, first, calls = await self.blocking()
        second = await self.connect(server)
        await second.send(ask())
        await self.until(lambda: len(self.in_state("asking")) == 2, "the wait")
        await self.pass_time(20)
        calls[0].set()
        await first.open(b"")
        await self.until(lambda: len(calls) == 2, "the second call")
        await self.pass_time(20)
        self.assertEqual(len(self.in_state("asking")), 1)
        with self.assertLogs("sse_server", "ERROR"):
            await self.pass_time(12)
            self.assertEqual((await second.read_answer()).status, 503)

    async def test_who_leaves_while_it_is_asked_about_is_answered_no_more(self):
        """In whatever round of the event loop the answer of `authorize` comes."""
        for rounds in range(6):
            _, client, gate = await self.asking(ask("/sse", EVENT_SOURCE))
            (connection,) = self.in_state("asking")
            gate.set()
            for _ in range(rounds):
                await asyncio.sleep(0)
            connection.eof_received()
            self.assertEqual(connection.state, "leaving")
            await client.rest()
            await self.until_gone()


class PermissionTest(ServerTestCase):
    """`authorize` may return the channels that a client may use."""

    async def test_a_channel_that_may_not_be_heard_gets_403(self):
        for allowed, query, status in (
            (["mine"], "?channel=mine", 200),
            (("mine",), "?channel=mine&channel=mine", 200),
            ({"mine"}, "?channel=mine&channel=other", 403),
            ({"mine"}, "?channel=other", 403),
            (frozenset(["mine", None]), "", 200),
            (["mine", "yours"], "", 200),
            ([], "", 403),
            ([], "?channel=mine", 403),
            ("mine", "?channel=m", 500),
            (["a\nb"], "", 500),
            ([1], "", 500),
            (True, "?channel=other", 200),
            (None, "?channel=other", 403),
            (iter(["mine"]), "?channel=mine", 500),
            ({"mine": 1}, "?channel=mine", 500),
            (filter(None, []), "?channel=other", 500),
            (1, "", 500),
        ):
            with self.subTest(allowed=allowed, query=query):
                server = await self.start(authorize=lambda request, a=allowed: a)
                data = ask(f"/sse{query}", method="HEAD")
                logs = self.assertLogs("sse_server") if status == 500 else None
                with logs or contextlib.nullcontext():
                    answer = await self.ask(server, data, head_only=True)
                self.assertEqual(answer.status, status)

    async def test_who_asks_for_none_hears_all_that_it_may(self):
        async def authorize(request):
            return ["a", "b"]

        server = await self.start(authorize=authorize)
        client = await self.stream(server)
        for channel in ("a", None, "c", "b"):
            server.publish(channel or "none", channel=channel)
        self.assertEqual(await client.data(2), ["a", "b"])

    async def test_they_hold_for_publishing_as_well(self):
        server = await self.start(
            authorize=lambda request: ["a"], publish_token="secret"
        )
        for query, status in (("channel=a", 200), ("channel=b", 403), ("", 403)):
            answer = await self.ask(server, post(f"/sse?{query}", b"x"))
            self.assertEqual(answer.status, status, query)


class DisconnectTest(ServerTestCase):
    async def test_a_predicate_that_is_a_coroutine_function(self):
        async def predicate(request):
            return False

        with self.assertRaisesRegex(TypeError, "^predicate is a coroutine function"):
            SSEServer().disconnect(predicate)
        with self.assertRaisesRegex(TypeError, "^predicate is '42'; allowed is a func"):
            SSEServer().disconnect("42")

    async def test_it_ends_the_chosen_streams(self):
        self.give_way_after(1)
        server = await self.start(history=100_000)
        stays = await self.stream(server, "/sse?user=1")
        leaves = [
            await self.stream(server, "/sse?user=2"),
            await self.stream(server, "/sse?user=2", version="1.0"),
        ]
        server.publish("a")
        server.disconnect(lambda request: request.parameters["user"] == ["2"])
        for client in leaves:
            self.assertEqual([event.data for event in await client.rest()], ["a"])
            self.assertTrue(2500 <= client.decoder.retry <= 7500)
        server.publish("b")
        self.assertEqual(await stays.data(2), ["a", "b"])
        self.assertEqual(server.stats.live, 1)
        left = [line for line in self.logged() if " left, " in line]
        self.assertIn("left, disconnected by the program; 2 remain", left[0])

    async def test_others_have_their_turn_between_two_questions(self):
        server = await self.start()
        for _ in range(3):
            await self.stream(server)
        seen = []

        def predicate(request):
            if not seen:  # the next one is gone before it is asked about
                self.connections[1].cut()
            seen.append("asked")
            asyncio.get_running_loop().call_soon(seen.append, "turn")

        with mock.patch.object(inside(server).turns, "is_over", return_value=True):
            server.disconnect(predicate)
            await self.until(lambda: seen.count("turn") == 2, "both")
        self.assertEqual(seen, ["asked", "turn"] * 2)

    async def test_from_a_thread_and_of_those_behind(self):
        self.send_buffer = BUFFER
        server = await self.start(history=100_000)
        client, sent = await self.stall(server)
        for n in range(50):
            server.publish(str(n))
        await self.in_thread(server.disconnect, lambda request: True)
        await self.until_stats(server, live=0, behind=0)
        events = await client.rest()
        self.assertEqual([e.data for e in events], sent[: len(events)])
        self.assertGreater(len(events), 0)
        await self.pass_time(40)

    async def test_of_one_that_never_reads(self):
        """Rule 4: the wait for the last bytes to be taken has a deadline."""
        self.send_buffer = BUFFER
        server = await self.start(history=100_000, write_timeout=12)
        client, _ = await self.stall(server, 48 * KIB)  # more than is taken late
        server.disconnect(lambda request: True)
        await self.until_stats(server, live=0, behind=0)
        await self.pass_time(13)
        await client.rest_of_cut()

    async def test_a_predicate_that_fails_is_logged(self):
        server = await self.start()
        client = await self.stream(server)
        server.disconnect(lambda request: 1 / 0)
        await self.until(lambda: self.logged(logging.ERROR), "the error")
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])

    async def test_of_a_server_that_does_not_run_is_nothing(self):
        asked = []
        SSEServer().disconnect(asked.append)
        server = await self.start()
        await self.stream(server)
        self._close_clients()
        await server.close()
        server.disconnect(asked.append)
        await asyncio.sleep(0)
        self.assertEqual(asked, [])

    async def test_just_before_the_end(self):
        server = await self.start()
        client = await self.stream(server)
        server.disconnect(lambda request: True)
        rest, _ = await asyncio.gather(client.rest(), server.close())
        self.assertEqual(rest, [])


class DisconnectOverTLSTest(OverTLS, DisconnectTest):
    again = (
        "test_it_ends_the_chosen_streams",
        "test_from_a_thread_and_of_those_behind",
        "test_of_one_that_never_reads",
        "test_just_before_the_end",
    )

    async def test_a_stream_that_ended_does_not_wait_for_who_does_not_answer(self):
        """Rule 4: nobody waits for its close_notify."""
        server = await self.start()
        before = len(os.listdir(DESCRIPTORS)) if os.path.isdir(DESCRIPTORS) else None
        if before is None:
            self.skipTest(f"no {DESCRIPTORS}")
        await self.stream(server)
        server.disconnect(lambda request: True)
        await self.until_stats(server, live=0)
        # The client's own descriptor stays.
        await self.until(
            lambda: len(os.listdir(DESCRIPTORS)) <= before + 1, "the server to close"
        )


class PresenceTest(ServerTestCase):
    async def test_each_stream_is_told_once_whatever_ends_it(self):
        told = []
        server = await self.start(
            on_open=lambda request: told.append(("open", request.query)),
            on_close=lambda request: told.append(("close", request.query)),
        )
        ends = (
            lambda client: client.close(),
            lambda client: client.reset(),
            lambda client: server.disconnect(lambda request: request.query == "2"),
        )
        for number, end in enumerate(ends):
            client = await self.stream(server, f"/sse?{number}")
            self.assertEqual([r.query for r in server.requests()], [str(number)])
            end(client)
            expected = [("open", str(number)), ("close", str(number))]
            await self.until(lambda e=expected: told[-2:] == e, str(number))
        await self.stream(server, "/sse?last")
        await server.close()
        self.assertEqual(told[6:], [("open", "last"), ("close", "last")])
        self.assertEqual(server.requests(), [])

    async def test_what_a_hook_raises_is_logged(self):
        server = await self.start(on_open=lambda request: 1 / 0)
        with self.assertLogs("sse_server", "ERROR") as caught:
            client = await self.stream(server)
            server.publish("a")
            self.assertEqual(await client.data(1), ["a"])
        self.assertIn("a hook failed", caught.output[0])

    async def test_a_hook_that_publishes_at_the_end_is_no_failure(self):
        def changed(request):
            server.publish(len(server.requests()), retain=True)

        server = await self.start(on_open=changed, on_close=changed)
        client = await self.stream(server)
        self.assertEqual(await client.data(1), ["1"])
        with self.assertLogs("sse_server", "INFO") as caught:
            await server.close()
            await asyncio.sleep(0)  # until the hook is called
        levels = {record.levelname for record in caught.records}
        self.assertEqual(levels, {"INFO"}, caught.output)


class PostTest(ServerTestCase):
    async def asyncSetUp(self):
        await super().asyncSetUp()
        self.server = await self.start(publish_token="secret", max_event_bytes=100)

    async def test_the_body_is_the_data_as_it_is(self):
        client = await self.stream(self.server)
        channel = await self.stream(self.server, "/sse?channel=a+b")
        data = ' {"é": 1}\r\n\n'
        answer = await self.ask(self.server, post("/sse", data.encode()))
        self.assertEqual((answer.status, answer.reason), (200, "OK"))
        self.assertEqual(answer.field("content-type"), PLAIN[1])
        id = answer.body.decode()
        self.assertEqual(id, self.server.last_event_id)
        self.assertEqual(
            await client.events(1), [Event("message", ' {"é": 1}\n\n', id)]
        )
        target = "/sse?event=n%C3%A9&channel=a%20b&id=7"
        answer = await self.ask(self.server, post(target, b""))
        self.assertEqual((answer.status, answer.body), (200, b"7"))
        self.assertEqual(await channel.events(1), [Event("né", "", "7")])

    async def test_a_chunked_body(self):
        client = await self.stream(self.server)
        head = ask(
            "/sse",
            "Transfer-Encoding: chunked",
            "Authorization: bearer  secret ",
            method="POST",
        )
        answer = await self.ask(self.server, head + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        self.assertEqual(answer.status, 200)
        self.assertEqual(await client.data(1), ["abc"])

    async def test_a_wrong_token_gets_401(self):
        wrong = "publishing needs Authorization: Bearer and the right token\n"
        cases = [
            ["Authorization: Bearer wrong"],
            ["Authorization: Bearer secre"],
            ["Authorization: Bearer secret2"],
            ["Authorization: Bearer"],
            ["Authorization: Basic secret"],
            ["Authorization: secret"],
            ["Authorization: Bearer é\udcff"],
            ["Authorization: Bearer secret", "Authorization: Bearer secret"],
            [],
        ]
        for fields in cases:
            with self.subTest(fields):
                head = "\r\n".join(
                    [
                        "POST /sse HTTP/1.1",
                        "Host: localhost",
                        *fields,
                        "Content-Length: 1\r\n\r\n",
                    ]
                ).encode("utf-8", "surrogateescape")
                answer = await self.ask(self.server, head + b"a")
                self.assertEqual((answer.status, answer.body.decode()), (401, wrong))
                challenge = answer.field("www-authenticate")
                self.assertEqual(challenge, 'Bearer realm="publish"')
        self.assertEqual(self.server.stats.published, 0)

    async def test_tokens_of_any_length_and_visible_ascii(self):
        for token in ("t", "".join(map(chr, range(0x21, 0x7F))), "x" * 5000):
            with self.subTest(token[:10]):
                server = await self.start(publish_token=token)
                answer = await self.ask(server, post("/sse", b"a", token=token))
                self.assertEqual(answer.status, 200)

    async def test_without_a_token_it_gets_405(self):
        why = ": no token is set to publish with (--publish-token)"
        status, _, body = not_allowed("POST", why)
        for token in (None, ""):
            server = await self.start(publish_token=token)
            for given in ("", "secret"):
                answer = await self.ask(server, post("/sse", b"a", token=given))
                self.assertEqual((answer.status, answer.body), (status, body))
                self.assertEqual(answer.field("allow"), ALLOW[1])

    async def test_what_is_refused(self):
        size = "body of 101 bytes or more; allowed are 100"
        utf_8 = (
            "the body is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 1: "
            "invalid start byte"
        )
        allowed = "allowed are event, channel, id, retain=1 and finish=1, each once"
        cases = [
            ("", b"x" * 101, 413, size),
            ("", b"a\xff", 400, utf_8),
            ("evnt=a", b"", 400, f"unknown parameter 'evnt'; {allowed}"),
            (
                "channel=a&channel=b",
                b"",
                400,
                f"repeated parameter 'channel'; {allowed}",
            ),
            ("retain=yes", b"", 400, "retain is 'yes'; allowed is 1"),
            ("retain=", b"", 400, "retain is ''; allowed is 1"),
            ("retain=1&retain=1", b"", 400, f"repeated parameter 'retain'; {allowed}"),
        ]
        for parameter in ("event", "channel", "id"):
            cases += [
                (query, b"", 400, message)
                for query, message in queries_of_refused_names(parameter)
            ]
        for query, body, status, text in cases:
            with self.subTest(query=query[:60], text=text):
                answer = await self.ask(self.server, post(f"/sse?{query}", body))
                found = answer.status, answer.body.decode()
                self.assertEqual(found, (status, f"{text}\n"))
        self.assertEqual(self.server.stats.published, 0)

    async def test_a_gap_is_refused(self):
        """Whoever may publish cannot tell clients that events are missing."""
        text = "event 'gap' is the server's own; see publish_gap()"
        with self.assertRaises(ValueError) as caught:
            self.server.publish("a", event="gap")
        self.assertEqual(str(caught.exception), text)
        answer = await self.ask(self.server, post("/sse?event=g%61p", b"a"))
        self.assertEqual((answer.status, answer.body.decode()), (400, f"{text}\n"))
        self.assertEqual(self.server.stats.published, 0)
        for name in ("open", "error", "Gap", "gaps"):
            self.server.publish("a", event=name)

    async def test_an_id_like_the_servers_own_is_refused(self):
        held = self.server.publish("a")
        for id in (held, held[:-1] + "2"):
            text = f"id {id!r} has the form of this server's own ids"
            with self.assertRaisesRegex(ValueError, text):
                self.server.publish("b", id=id)
            answer = await self.ask(self.server, post(f"/sse?id={id}", b"b"))
            found = answer.status, answer.body.decode()
            self.assertEqual(found, (400, f"{text}\n"))
        self.assertEqual(self.server.stats.published, 1)

    async def test_a_repeated_request_publishes_nothing_again(self):
        """Such as that of a publisher that has lost the first answer."""
        server = await self.start(publish_token="secret", id_order=int)
        client = await self.stream(server, "/sse?channel=c")
        for query, data, status in (
            ("event=e&channel=c&id=1", b"a\nb", 200),
            ("event=e&channel=c&id=1", b"a\nb", 200),
            ("event=e&channel=c&id=1&retain=1", b"a\nb", 200),
            ("event=e&channel=c&id=1", b"a", 409),
            ("channel=c&id=1", b"a\nb", 409),
            ("event=e&id=1", b"a\nb", 409),
            ("event=e&channel=c&id=0", b"a\nb", 400),  # it does not ascend
        ):
            with self.subTest(query, data=data):
                answer = await self.ask(server, post(f"/sse?{query}", data))
                self.assertEqual(answer.status, status, answer.body)
                if status == 200:
                    self.assertEqual(answer.body, b"1")
        self.assertEqual(server.stats.published, 1)
        self.assertEqual(await client.data(1), ["a\nb"])

    async def test_a_body_of_the_limit(self):
        answer = await self.ask(self.server, post("/sse", b"x" * 100))
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.server.stats.published, 1)

    async def test_it_is_in_the_list_of_what_is_allowed(self):
        for method in ("OPTIONS", "PUT"):
            answer = await self.ask(self.server, ask(method=method))
            self.assertEqual(answer.field("allow"), "GET, HEAD, OPTIONS, POST")

    async def test_a_body_that_ends_after_the_server_is_closed_gets_503(self):
        client = await self.connect(self.server)
        data = post("/sse", b"abc")
        await client.send(data[:-1])
        await self.until(lambda: self.transports, "the connection")
        # Answered: the server has read what was sent before.
        await self.ask(self.server, ask("/", "Connection: close"))
        closing = asyncio.ensure_future(self.server.close())
        await asyncio.sleep(0)
        await client.send(data[-1:])
        answer = await client.read_answer()
        self.assertEqual(answer.status, 503)
        await closing


class MonitorTest(ServerTestCase):
    async def test_the_counts_as_json_with_the_token(self):
        server = await self.start(publish_token="secret")
        server.publish("a")
        accept = "Accept: application/json"
        answer = await self.ask(
            server, ask("/sse", accept, "Authorization: Bearer secret")
        )
        self.assertEqual(answer.field("content-type"), "application/json")
        self.assertEqual(json.loads(answer.body), dataclasses.asdict(server.stats))
        answer = await self.ask(server, ask("/sse", accept, "Authorization: Bearer x"))
        self.assertEqual(answer.status, 401)
        client = await self.stream(server, "/sse", f"{accept}, */*")
        server.publish("b")
        self.assertEqual(await client.data(1), ["b"])

    async def test_data_becomes_text_by_the_programs_function(self):
        server = await self.start(dumps=lambda data: f"<{data!r}>")
        client = await self.stream(server)
        for data in ({1}, "text", None):
            server.publish(data)
        self.assertEqual(await client.data(3), ["<{1}>", "text", "<None>"])
        wrong = await self.start(dumps=lambda data: b"bytes")
        with self.assertRaisesRegex(TypeError, "allowed is a str"):
            wrong.publish(1)


class CorsTest(ServerTestCase):
    ORIGIN = "https://example.com"
    ALLOWED = "access-control-allow-"
    EXPOSED = {"access-control-expose-headers": "Last-Event-ID"}  # noqa: RUF012

    async def fields_of(self, server, *fields, method="HEAD", target="/sse"):
        answer = await self.ask(
            server, ask(target, *fields, method=method), head_only=method == "HEAD"
        )
        prefix = "access-control-"
        found = {n: v for n, v in answer.fields if n.startswith(prefix)}
        return found, answer.field("vary")

    async def test_without_origins_there_is_nothing(self):
        server = await self.start()
        for method in ("HEAD", "OPTIONS", "PUT"):
            found = await self.fields_of(
                server, f"Origin: {self.ORIGIN}", method=method
            )
            self.assertEqual(found[0], {})
        self.assertEqual(len(self.logged(logging.WARNING)), 1)

    async def test_an_origin_of_the_list(self):
        server = await self.start(cors_origins=["https://a.example", self.ORIGIN])
        expected = {
            f"{self.ALLOWED}origin": self.ORIGIN,
            f"{self.ALLOWED}credentials": "true",
        }
        field = f"Origin: {self.ORIGIN}"
        self.assertEqual(
            await self.fields_of(server, field),
            (expected | self.EXPOSED, "Accept, Origin"),
        )
        client = await self.stream(server, "/sse", field)
        self.assertEqual(client.answer.field(f"{self.ALLOWED}origin"), self.ORIGIN)
        self.assertEqual(client.answer.field("vary"), "Accept, Origin")
        found = await self.fields_of(server, field, method="PUT")
        self.assertEqual(found, (expected, "Origin"))
        found = await self.fields_of(
            server, field, target="/sse?channel=", method="GET"
        )
        self.assertEqual(found, (expected, "Origin"))
        found = await self.fields_of(server, field, target="/")
        self.assertEqual(found, ({}, None))

    async def test_an_origin_that_is_given_in_capitals(self):
        """Browsers send the scheme and the host in lower case (RFC 6454, 4)."""
        server = await self.start(cors_origins=["HTTPS://Example.COM", "http://a:443"])
        found, _ = await self.fields_of(server, f"Origin: {self.ORIGIN}")
        self.assertEqual(found[f"{self.ALLOWED}origin"], self.ORIGIN)

    async def test_an_origin_that_is_not_of_the_list(self):
        server = await self.start(cors_origins=[self.ORIGIN])
        for fields in (
            [],
            ["Origin: https://evil.example"],
            ["Origin: null"],
            [f"Origin: {self.ORIGIN}.evil"],
            [f"Origin: {self.ORIGIN}", "Origin: https://evil.example"],
        ):
            for method in ("HEAD", "OPTIONS"):
                with self.subTest(fields, method=method):
                    found, vary = await self.fields_of(server, *fields, method=method)
                    self.assertEqual(found, {})
                    self.assertIn("Origin", vary)
        self.assertEqual(len(self.logged(logging.WARNING)), 4)  # once for each

    async def test_all_origins_are_without_credentials(self):
        server = await self.start(cors_origins=["*"])
        for fields in ([], ["Origin: https://evil.example"]):
            found, vary = await self.fields_of(server, *fields)
            self.assertEqual(found, {f"{self.ALLOWED}origin": "*"} | self.EXPOSED)
            self.assertIn("Origin", vary)

    async def test_the_preflight(self):
        server = await self.start(cors_origins=[self.ORIGIN], publish_token="secret")
        found, _ = await self.fields_of(
            server,
            f"Origin: {self.ORIGIN}",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization",
            method="OPTIONS",
        )
        expected = {
            f"{self.ALLOWED}origin": self.ORIGIN,
            f"{self.ALLOWED}credentials": "true",
            f"{self.ALLOWED}methods": "GET, HEAD, OPTIONS, POST",
            f"{self.ALLOWED}headers": "Authorization, Content-Type, Last-Event-ID",
            "access-control-max-age": "600",
        }
        self.assertEqual(found, expected)

    async def test_what_authorize_refuses_can_be_read_too(self):
        server = await self.start(
            cors_origins=[self.ORIGIN], authorize=lambda request: False
        )
        field = f"Origin: {self.ORIGIN}"
        found, _ = await self.fields_of(server, field, method="GET")
        self.assertEqual(found[f"{self.ALLOWED}origin"], self.ORIGIN)


class HostTest(ServerTestCase):
    """A page of another site may have its own name point at this machine."""

    async def status(self, server, host, target="/sse"):
        data = f"HEAD {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        return (await self.ask(server, data, head_only=True)).status

    async def test_the_address_that_it_was_given_is_its_own_name(self):
        server = await self.start("127.0.0.2")
        for host, status in (("127.0.0.2", b"200"), ("evil.example", b"421")):
            reader, writer = await asyncio.open_connection("127.0.0.2", server.port)
            writer.write(f"HEAD /sse HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            self.assertIn(status, await reader.readline())
            writer.close()
            await writer.wait_closed()

    async def test_on_loopback_another_name_gets_421(self):
        server = await self.start()
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:9", "[::1]",
                     "a.localhost", "localhost."):  # fmt: skip
            self.assertEqual(await self.status(server, host), 200, host)
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example",
                     "localhost.evil.example", "evillocalhost", "10.0.0.1", ""):  # fmt: skip
            self.assertEqual(await self.status(server, host), 421, host)
            self.assertEqual(await self.status(server, host, "/"), 200, host)

    async def test_the_421_says_what_to_set(self):
        server = await self.start()
        answer = await self.ask(server, b"GET /sse HTTP/1.1\r\nHost: a.b\r\n\r\n")
        self.assertIn("--allow-host", answer.body.decode())
        self.assertEqual(answer.body.count(b"\n"), 1)

    async def test_the_names_that_are_given(self):
        server = await self.start(hosts=["Example.com"])
        for host, status in (("example.com:443", 200), ("evil.example", 421),
                             ("localhost", 200), ("127.0.0.1:1", 200)):  # fmt: skip
            self.assertEqual(await self.status(server, host), status, host)
        everywhere = await self.start("0.0.0.0", hosts=["my.localhost", "example.com."])
        for host, status in (("my.localhost", 200), ("example.com", 200),
                             ("other.localhost", 421), ("localhost", 421)):  # fmt: skip
            self.assertEqual(await self.status(everywhere, host), status, host)
        everything = await self.start(hosts=["*"])
        self.assertEqual(await self.status(everything, "evil.example"), 200)

    async def test_where_others_can_connect_any_name_will_do(self):
        server = await self.start("0.0.0.0")
        self.assertEqual(await self.status(server, "evil.example"), 200)


class FullTest(ServerTestCase):
    async def test_who_is_only_turned_away_is_not_asked_about(self):
        asked = []
        server = await self.start(
            max_connections=1, authorize=lambda request: not asked.append(request)
        )
        await self.stream(server)
        answer = await self.ask(server, ask("/sse", "Accept: text/event-stream"))
        self.assertIn(b"retry: ", answer.body)
        self.assertEqual(len(asked), 1)

    async def test_who_is_refused_gets_503_or_as_an_event_source_a_retry(self):
        server = await self.start(max_connections=2)
        streams = [await self.stream(server) for _ in range(2)]
        event_stream = "Accept: text/event-stream"
        client = await self.connect(server)
        answer = await client.request(ask("/sse", event_stream))
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.field("content-type"), "text/event-stream")
        self.assertEqual(answer.field("connection"), "close")
        self.assertRegex(answer.body, rb"\Aretry: [0-9]+\n\Z")
        self.assertTrue(15_000 <= int(answer.body[7:]) <= 45_000, answer.body)
        self.assertTrue(await client.ended())
        posting = post("/sse", b"a", "Accept: application/json, text/event-stream")
        for data in (ask(), ask("/", event_stream), ask("/"), posting):
            with self.subTest(data):
                client = await self.connect(server)
                answer = await client.request(data)
                self.assertEqual(answer.status, 503)
                self.assertEqual(answer.reason, "Service Unavailable")
                self.assertEqual(answer.body, b"the server is full\n")
                self.assertTrue(15 <= int(answer.field("retry-after")) <= 45)
                self.assertTrue(await client.ended())
                client.close()
        self.assertEqual(server.stats.refused, 5)
        server.publish("a")
        for client in streams:
            self.assertEqual(await client.data(1), ["a"])

    async def test_room_for_so_many_and_again_when_one_leaves(self):
        server = await self.start(max_connections=3)
        streams = [await self.stream(server) for _ in range(2)]
        kept = await self.connect(server)
        self.assertEqual((await kept.request(ask("/"))).status, 200)
        self.assertEqual((await self.ask(server, ask("/"))).status, 503)
        for client in (kept, streams[0]):
            client.close()
        await self.until_stats(server, live=1)
        streams.append(await self.stream(server))
        await self.room(server)
        streams.append(await self.stream(server))
        self.assertEqual((await self.ask(server, ask("/"))).status, 503)
        self.assertEqual(server.stats.live, 3)

    async def test_who_has_not_taken_its_last_bytes_takes_room(self):
        server = await self.start(max_connections=1)
        client, _ = await self.stall(server)
        client.end_of_input()
        await self.until(lambda: self.in_state("leaving"), "the departure")
        self.assertEqual((await self.ask(server, ask("/"))).status, 503)
        client.close()
        await self.until(lambda: not self.in_state("leaving"), "the end")
        await self.room(server)

    async def room(self, server):
        """Wait until there is room for one more."""
        deadline = time.monotonic() + DEADLINE
        while True:
            client = await self.connect(server)
            status = (await client.request(ask("/"))).status
            client.close()
            if status == 200:
                break
            self.assertLess(time.monotonic(), deadline, "no room")
        await self.until(self.transports[-1].is_closing, "the connection to end")
        await asyncio.sleep(0)

    async def test_those_who_are_refused_take_no_room(self):
        server = await self.start(max_connections=1)
        stream = await self.stream(server)
        for _ in range(5):
            answer = await self.ask(server, ask("/"))  # and stays connected
            self.assertEqual(answer.status, 503)
        stream.close()
        await self.until_stats(server, live=0)
        await self.stream(server)
        self.assertEqual(server.stats.live, 1)

    async def test_more_than_can_be_told_are_cut(self):
        """Rule 4: the number of those who are only told is bounded, too."""
        with mock.patch.object(sse_server, "_MAX_REFUSALS_AT_ONCE", 2):
            server = await self.start(max_connections=1)
            stream = await self.stream(server)
            waiting = [await self.connect(server) for _ in range(2)]
            await self.until(lambda: len(self.transports) == 3, "the connections")
            self.assertTrue(await (await self.connect(server)).ended())
            self.assertEqual(server.stats.refused, 1)
            for client in waiting:
                self.assertEqual((await client.request(ask("/"))).status, 503)
        server.publish("a")
        self.assertEqual(await stream.data(1), ["a"])

    async def test_the_limit_follows_from_the_descriptors(self):
        resource = self.need("resource")
        reserve = sse_server._RESERVED_DESCRIPTORS
        for soft in (reserve + 2, 1):
            with (
                self.subTest(soft),
                mock.patch.object(resource, "getrlimit", return_value=(soft, soft)),
            ):
                server = await self.start()
                room = max(1, soft - reserve)
                for _ in range(room):
                    await self.stream(server)
                self.assertEqual((await self.ask(server, ask("/"))).status, 503)
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with mock.patch.object(resource, "getrlimit", return_value=infinite):
            await self.stream(await self.start())

    def need(self, module):
        try:
            return __import__(module)
        except ImportError:
            self.skipTest(f"{module} is not here")


class EndingTest(ServerTestCase):
    async def test_streams_end_in_order_where_every_task_is_cancelled(self):
        """As asyncio.run() does at Ctrl-C, before Python 3.11."""
        server = await self.start(shutdown_timeout=1000)
        client = await self.stream(server)
        with self.assertLogs("sse_server", "INFO") as caught:
            closing = asyncio.ensure_future(server.close())
            await asyncio.sleep(0)
            inside(server).service.broadcasting.cancel()
            self.assertEqual(await client.rest(), [])
            await asyncio.wait_for(closing, DEADLINE)
        self.assertNotIn("CRITICAL", "".join(caught.output))
        self.assertRegex(bytes(client.content), rb"retry: [0-9]+\n\Z")

    async def test_everybody_is_told_when_to_come_back(self):
        server = await self.start()
        clients = [await self.stream(server) for _ in range(20)]
        clients.append(await self.stream(server, version="1.0"))
        server.publish("last")
        began = time.monotonic()
        closing = asyncio.ensure_future(server.close())
        rests = await asyncio.gather(*[client.rest() for client in clients])
        await closing
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertEqual([[e.data for e in rest] for rest in rests], [["last"]] * 21)
        retries = {client.decoder.retry for client in clients}
        self.assertTrue(2500 <= min(retries) <= max(retries) <= 7500, retries)
        self.assertGreater(len(retries), 10)
        self.assertEqual(server.stats.live, 0)
        with self.assertRaises(OSError):
            await self.connect(server)

    async def test_what_was_published_is_delivered_to_all_first(self):
        server = await self.start(history=100_000)
        start = server.last_event_id
        for n in range(3000):
            server.publish(str(n).ljust(100))
        await server.drain()
        live = await self.stream(server)
        resuming = await self.connect(server)
        await resuming.send(ask(f"/sse?lastEventId={start}"))
        await self.until(
            lambda: server.stats.live + server.stats.behind == 2, "the second"
        )
        for n in range(3000, 6000):
            server.publish(str(n).ljust(100))
        closing = asyncio.ensure_future(server.close())
        await resuming.open(b"")
        found = [int(event.data) for event in await resuming.rest()]
        self.assertEqual(found, list(range(6000)))
        found = [int(event.data) for event in await live.rest()]
        self.assertEqual(found, list(range(3000, 6000)))
        await closing

    async def test_one_that_catches_up_in_time_is_given_all_and_told(self):
        self.send_buffer = BUFFER
        server = await self.start(history=100_000, shutdown_timeout=DEADLINE)
        client, expected = await self.stall(server)
        began = time.monotonic()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        self.assertEqual([event.data for event in await client.rest()], expected)
        self.assertTrue(2500 <= client.decoder.retry <= 7500)
        await closing
        self.assertLess(time.monotonic() - began, DEADLINE / 2)

    async def test_twice_and_at_once(self):
        server = await self.start()
        client = await self.stream(server)
        rest, *_ = await asyncio.gather(
            client.rest(), *[server.close() for _ in range(3)]
        )
        await server.close()
        self.assertEqual(rest, [])
        async with await self.start() as other:
            await other.close()

    async def test_a_close_that_is_cancelled_goes_on(self):
        self.send_buffer = BUFFER
        server = await self.start(shutdown_timeout=3)
        await self.stall(server)
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(server.close(), 0.01)
        closing = asyncio.ensure_future(server.close())
        await self.pass_time(4)
        await asyncio.wait_for(closing, DEADLINE)
        self.assertEqual(server.stats.behind, 0)

    async def test_stalled_clients_are_cut_within_the_shutdown_timeout(self):
        """Rule 4: the end has a deadline."""
        self.send_buffer = BUFFER
        server = await self.start(shutdown_timeout=12, history=100_000)
        stalled, _ = await self.stall(server)
        for n in range(100):
            server.publish("x" * 8 * KIB)
        await server.drain()
        reading = await self.stream(server)
        for data in (b"GET", ask("/"), post("/", b"body")[:-1]):
            await (await self.connect(server)).send(data)
        await self.until(lambda: len(self.transports) == 5, "the connections")
        closing = asyncio.ensure_future(server.close())
        await self.pass_time(7)
        self.assertFalse(closing.done())
        await self.pass_time(6)
        await asyncio.wait_for(closing, DEADLINE)
        self.assertEqual(await reading.rest(), [])
        await stalled.rest_of_cut()
        for transport in self.transports:
            self.assertTrue(transport.is_closing())

    async def test_one_that_was_told_and_reads_late_is_no_error(self):
        """Rule 4: the timer of a stream that has ended does nothing."""
        self.send_buffer = BUFFER
        server = await self.start(shutdown_timeout=5)
        client = await self.stream(server, receive_buffer=BUFFER)
        transport = self.transports[0]
        while not transport.get_write_buffer_size():
            server.publish("x" * 8 * KIB)
            await server.drain()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        events = await client.rest()
        self.assertEqual(len(events), server.stats.published)
        await closing
        await self.pass_time(40)

    async def test_idle_connections_are_closed_at_once(self):
        server = await self.start()
        kept = await self.connect(server)
        await kept.request(ask("/"))
        silent = await self.connect(server)
        await self.until(lambda: len(self.transports) == 2, "the connections")
        began = time.monotonic()
        ended = await asyncio.gather(kept.ended(), silent.ended(), server.close())
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertEqual(ended[:2], [True, True])

    async def test_who_asks_while_it_ends_is_told_to_come_back(self):
        server = await self.start()
        for data, found in (
            (ask("/sse", "Accept: text/event-stream"), rb"retry: ([0-9]+)\n"),
            (ask("/"), rb"the server is closed\n()"),
        ):
            client = await self.connect(server)
            await client.send(data[:-2])
            client.expected = data[-2:], found
        await self.until(
            lambda: sum(bool(c.received) for c in self.in_state("head")) == 2, "them"
        )
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        for client in self.clients:
            rest, pattern = client.expected
            answer = await client.request(rest)
            retry = re.fullmatch(pattern, answer.body)[1] or b"5000"
            self.assertTrue(2500 <= int(retry) <= 7500, retry)
            after = int(answer.field("retry-after") or 5)
            self.assertTrue(3 <= after <= 8, after)
            client.close()
        await closing

    async def test_the_end_stops_every_timer(self):
        loop = asyncio.get_running_loop()
        call_later, timers = loop.call_later, []

        def note(*arguments, **options):
            timers.append(call_later(*arguments, **options))
            return timers[-1]

        self.change(loop, call_later=note)
        server = await self.start(lifetime=100)
        await self.stream(server)
        await server.close()
        left = [t for t in timers if t.when() > loop.time() and not t.cancelled()]
        self.assertEqual((len(timers) > 2, left), (True, []))

    async def test_closing_idle_connections_gives_way(self):
        server = await self.start()
        for _ in range(5):
            await self.ask(server, ask("/"))
        await self.until(lambda: len(self.in_state("idle")) == 5, "idleness")
        inside(server).turns.is_over = lambda: True
        closing = asyncio.ensure_future(server.close())
        idle = set()
        while not closing.done():
            idle.add(len(self.in_state("idle")))
            await asyncio.sleep(0)
        self.assertEqual(idle, {0, 1, 2, 3, 4, 5})

    async def test_what_comes_while_idle_connections_are_closed_is_answered(self):
        server = await self.start()
        clients = [await self.connect(server) for _ in range(3)]
        for client in clients:
            await client.request(ask("/"))
        await self.until(lambda: len(self.in_state("idle")) == 3, "idleness")
        second = self.in_state("idle")[1]
        others = (None, asyncio.current_task())  # whose turn is never over
        inside(server).turns.is_over = lambda: asyncio.current_task() not in others
        closing = asyncio.ensure_future(server.close())
        while len(self.in_state("idle")) == 3:
            await asyncio.sleep(0)
        second.data_received(post("/", b"body")[:-1])
        while self.in_state("idle"):
            await asyncio.sleep(0)
        self.assertEqual(second.state, "lingering")
        answer = await clients[1].read_answer()
        self.assertEqual((answer.status, answer.body), (503, b"the server is closed\n"))
        clients[1].close()
        await closing

    async def test_a_request_in_progress_is_answered_and_the_connection_closed(self):
        server = await self.start()
        client = await self.connect(server)
        await client.send(post("/", b"abc", token=None)[:-1])
        await self.until(lambda: self.in_state("body"), "the head")
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        answer = await client.request(b"c")
        self.assertEqual(answer.field("connection"), "close")
        self.assertTrue(await client.ended())
        await closing

    async def test_a_stream_that_was_being_authorized_does_not_open(self):
        server, client, gate = await self.asking(
            ask("/sse", "Accept: text/event-stream"), shutdown_timeout=5
        )
        began = time.monotonic()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        gate.set()
        answer = await client.read_head()
        self.assertEqual(answer.field("content-type"), "text/event-stream")
        while data := await client.receive():
            client.received += data
        self.assertIn(b"retry: ", client.received)
        await closing
        self.assertLess(time.monotonic() - began, 2.5)

    async def test_drain_ends_when_the_start_fails(self):
        server = self.new_server()
        failure = OSError("no")
        with mock.patch.object(sse_server, "_listen", side_effect=failure):
            starting = asyncio.ensure_future(server.__aenter__())
            await asyncio.sleep(0)
            server.publish("a")
            draining = asyncio.ensure_future(server.drain())
            await asyncio.wait([starting, draining], timeout=DEADLINE)
        self.assertIs(starting.exception(), failure)
        self.assertIsInstance(draining.exception(), RuntimeError)

    async def test_an_answer_that_is_taken_late_is_the_last(self):
        with tempfile.NamedTemporaryFile() as page:
            page.truncate(2**24)
            server = await self.start(page=page.name, shutdown_timeout=1000)
            client = await self.connect(server, receive_buffer=BUFFER)
            await client.send(ask("/"))
            await self.until(lambda: self.in_state("answering"), "an answer")
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        self.assertEqual(len((await client.read_answer()).body), 2**24)
        self.assertTrue(await client.ended())
        await asyncio.wait_for(closing, DEADLINE)

    async def test_to_close_one_that_has_not_begun_leaves_it_as_it_is(self):
        server = self.new_server()
        self.assertIsNone(inside(server).service.begin_closing())
        async with server:
            server.publish("a")

    async def test_forget_after_the_end(self):
        server = await self.start()
        server.publish("a", retain=True)
        await server.close()
        with self.assertRaisesRegex(RuntimeError, "the server is closed; nothing"):
            server.forget()

    async def test_serve_forever_ends_with_close(self):
        server = self.new_server()
        serving = asyncio.ensure_future(server.serve_forever())
        await self.until(lambda: server.port, "the start")
        client = await self.stream(server)
        server.publish("a")
        rest, _ = await asyncio.gather(client.rest(), server.close())
        self.assertIsNone(await asyncio.wait_for(serving, DEADLINE))
        self.assertEqual([event.data for event in rest], ["a"])

    async def test_serve_forever_ends_politely_when_it_is_cancelled(self):
        server = self.new_server()
        serving = asyncio.ensure_future(server.serve_forever())
        await self.until(lambda: server.port, "the start")
        client = await self.stream(server)
        server.publish("a")
        serving.cancel()
        self.assertEqual([event.data for event in await client.rest()], ["a"])
        with self.assertRaises(asyncio.CancelledError):
            await serving

    async def test_an_error_in_the_block_ends_it_too(self):
        with self.assertRaises(ZeroDivisionError):
            async with self.new_server() as server:
                client = await self.stream(server)
                reading = asyncio.ensure_future(client.rest())
                raise ZeroDivisionError
        self.assertEqual(await reading, [])

    async def test_a_server_that_never_started(self):
        server = self.new_server()
        await server.close()
        await server.close()
        self.assertEqual(server.port, 0)

    async def test_a_server_runs_once(self):
        ran, never_ran = await self.start(), self.new_server()
        for server in (ran, never_ran):
            await server.close()
            for start in (server.__aenter__, server.serve_forever):
                with self.assertRaises(RuntimeError) as caught:
                    await start()
                self.assertEqual(
                    str(caught.exception), "the server was closed; a server runs once"
                )

    async def test_a_server_belongs_to_one_event_loop(self):
        server = await self.start()

        def elsewhere():
            with self.assertRaises(RuntimeError) as caught:
                asyncio.run(server.serve_forever())
            text = (
                "the server was started in another event loop, and a server runs once; "
                "make a new SSEServer"
            )
            self.assertEqual(str(caught.exception), text)

        await self.in_thread(elsewhere)
        self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")


class EndingOverTLSTest(OverTLS, EndingTest):
    again = (
        "test_an_answer_that_is_taken_late_is_the_last",
        "test_everybody_is_told_when_to_come_back",
        "test_one_that_catches_up_in_time_is_given_all_and_told",
        "test_twice_and_at_once",
        "test_stalled_clients_are_cut_within_the_shutdown_timeout",
        "test_one_that_was_told_and_reads_late_is_no_error",
        "test_idle_connections_are_closed_at_once",
        "test_who_asks_while_it_ends_is_told_to_come_back",
        "test_a_request_in_progress_is_answered_and_the_connection_closed",
        "test_a_stream_that_was_being_authorized_does_not_open",
        "test_serve_forever_ends_with_close",
    )

    async def test_the_end_does_not_wait_for_who_does_not_answer(self):
        """Rule 4: a client that never says close_notify."""
        server = await self.start(shutdown_timeout=12)
        await self.stream(server)
        silent = await self.connect(server)
        await silent.request(ask("/"))
        await self.stall(server)
        closing = asyncio.ensure_future(server.close())
        await self.pass_time(7)
        self.assertFalse(closing.done())
        await self.pass_time(6)
        await asyncio.wait_for(closing, DEADLINE)


class ListenTest(ServerTestCase):
    async def test_localhost_is_every_loopback_address_on_one_port(self):
        server = await self.start("localhost")
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
        hosts = {address[0] for *_, address in found}
        self.assertIn("127.0.0.1", hosts)
        clients = [await self.connect(server, host=host) for host in sorted(hosts)]
        for client in clients:
            await client.open(ask())
        server.publish("a")
        for client in clients:
            self.assertEqual(await client.data(1), ["a"])
        self.assertEqual(server.url, f"http://localhost:{server.port}/sse")

    async def test_every_address(self):
        for host in (None, "", "0.0.0.0"):
            with self.subTest(host):
                server = await self.start(host)
                self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")

    @unittest.skipUnless(socket.has_ipv6, "no IPv6")
    async def test_ipv6_alone(self):
        server = await self.start("::1")
        self.assertEqual(server.url, f"http://[::1]:{server.port}/sse")
        client = await self.connect(server, host="::1")
        await client.open(ask())
        self.assertRegex(self.logged()[0], r"^\[::1\]:[0-9]+ joined; 1 connected$")
        with self.assertRaises(OSError):
            await self.connect(server)

    async def test_an_address_that_the_machine_does_not_have(self):
        """As ::1 where IPv6 is off: the others of the name serve."""
        real = socket.getaddrinfo

        def getaddrinfo(host, port, *arguments, **options):
            if host != "both":
                return real(host, port, *arguments, **options)
            return real("192.0.2.1", port, type=socket.SOCK_STREAM) + real(
                "127.0.0.1", port, type=socket.SOCK_STREAM
            )

        with mock.patch.object(socket, "getaddrinfo", getaddrinfo):
            server = await self.start("both")
        self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")
        with self.assertRaises(OSError):
            await self.start("192.0.2.1")

    async def test_a_port_that_is_taken(self):
        first = await self.start()
        with self.assertRaises(OSError) as caught:
            await self.start(port=first.port)
        self.assertEqual(caught.exception.errno, errno.EADDRINUSE)
        self.assertEqual((await self.ask(first, ask("/"))).body, b"ok")

    async def test_a_failed_start_may_be_tried_again(self):
        first = await self.start()
        second = SSEServer("127.0.0.1", first.port)
        with self.assertRaises(OSError):
            await second.serve_forever()
        await first.close()
        async with second:
            self.assertEqual((await self.ask(second, ask("/"))).body, b"ok")

    async def test_a_failure_on_one_address_closes_the_others(self):
        create_server = socket.create_server

        def fail(address, **options):
            if address[0] == "127.0.0.1":
                raise PermissionError(errno.EACCES, "no")
            return create_server(address, **options)

        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))
            for host in ("127.0.0.2", "127.0.0.1")
        ]
        with (
            mock.patch.object(socket, "create_server", fail),
            mock.patch.object(socket, "getaddrinfo", return_value=found),
            self.assertRaises(PermissionError),
        ):
            await self.start("both")

    async def test_port_0_that_is_taken_on_the_second_address(self):
        create_server = socket.create_server
        failures = 3

        def fail(address, **options):
            nonlocal failures
            if failures and address[0] == "::1":
                failures -= 1
                raise OSError(errno.EADDRINUSE, "taken")
            return create_server(address, **options)

        with mock.patch.object(socket, "create_server", fail):
            server = await self.start("localhost")
        self.assertEqual(failures, 0)
        self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")

    @unittest.skipUnless(hasattr(socket, "SO_REUSEPORT"), "no SO_REUSEPORT")
    async def test_two_may_share_a_port_if_asked(self):
        first = await self.start(reuse_port=True)
        second = await self.start(port=first.port, reuse_port=True)
        await first.close()
        self.assertEqual((await self.ask(second, ask("/"))).body, b"ok")

    async def test_several_servers_in_one_process(self):
        servers = [await self.start() for _ in range(3)]
        clients = [await self.stream(server) for server in servers]
        for n, server in enumerate(servers):
            server.publish(str(n))
        await servers[0].close()
        servers[1].publish("more")
        self.assertEqual([event.data for event in await clients[0].rest()], ["0"])
        self.assertEqual(await clients[1].data(2), ["1", "more"])
        self.assertEqual(await clients[2].data(1), ["2"])
        epochs = {server.last_event_id.partition("-")[0] for server in servers}
        self.assertEqual(len(epochs), 3)

    async def test_successive_event_loops(self):
        async def visit():
            async with SSEServer("127.0.0.1", 0) as server:
                client = await Client.connect(server.port)
                await client.open(ask())
                server.publish("a")
                found = await client.data(1)
            client.close()
            return found

        def run():
            return [asyncio.run(visit()) for _ in range(3)]

        self.assertEqual(await self.in_thread(run), [["a"]] * 3)


class LifeTest(ServerTestCase):
    """Beginning and ending, in every order."""

    async def test_a_close_while_it_starts(self):
        server = SSEServer("127.0.0.1", 0)
        starting = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        await server.close()
        with self.assertRaisesRegex(RuntimeError, "closed while it started"):
            await starting
        self.assertEqual(inside(server).service.listeners, [])

    async def test_a_close_from_another_event_loop_while_it_starts(self):
        server, go_on = SSEServer("127.0.0.1", 0), threading.Event()
        listen = sse_server._listen

        async def listen_late(*arguments):
            await self.in_thread(go_on.wait, DEADLINE)
            return await listen(*arguments)

        self.change(sse_server, _listen=listen_late)
        starting = asyncio.ensure_future(self.in_thread(server.start))
        await self.until(
            lambda: inside(server).service.state == "starting", "the start"
        )
        closing = asyncio.ensure_future(server.close())
        await self.until(lambda: inside(server).service.state == "closing", "the end")
        go_on.set()
        with self.assertRaisesRegex(RuntimeError, "closed while it started"):
            await starting
        await closing
        self.assertEqual(inside(server).service.state, "closed")

    async def test_two_starts_at_once_are_one(self):
        server = SSEServer("127.0.0.1", 0)
        one, two = (asyncio.ensure_future(server.serve_forever()) for _ in range(2))
        await self.until(lambda: server.port, "the port")
        client = await self.stream(server)
        server.publish("a")
        self.assertEqual(await client.data(1), ["a"])
        await server.close()
        await asyncio.gather(one, two)

    async def test_a_close_from_another_event_loop(self):
        server = await self.start()
        client = await self.stream(server)

        def close():
            asyncio.run(server.close())

        await self.in_thread(close)
        self.assertEqual(await client.rest(), [])

    async def test_a_close_from_another_event_loop_while_its_own_is_stopped(self):
        self.change(sse_server, _CLOSE_MARGIN_SECONDS=0.02)
        server = SSEServer("127.0.0.1", 0, shutdown_timeout=0.03)
        loop = asyncio.new_event_loop()
        await self.in_thread(loop.run_until_complete, server.__aenter__())
        with self.assertRaises(RuntimeError) as caught:
            await asyncio.wait_for(server.close(), DEADLINE)
        text = "the server did not end within 0.05 s; does its event loop run?"
        self.assertEqual(str(caught.exception), text)
        await self.in_thread(loop.run_until_complete, server.close())
        loop.close()

    async def test_the_port_is_not_known_before_it_listens(self):
        """Who waits for it in another thread connects at once."""
        start_server = asyncio.start_server
        ports = []

        async def start_and_note(accept, **options):
            ports.append(server.port)
            return await start_server(accept, **options)

        server = SSEServer("localhost", 0)
        self.change(asyncio, start_server=start_and_note)
        await server.__aenter__()
        self.addAsyncCleanup(self._stop, server)
        self.assertEqual(set(ports), {0})
        self.assertGreater(server.port, 0)

    async def test_the_port_is_known_when_it_listens(self):
        server = SSEServer("127.0.0.1", 0)
        starting = asyncio.ensure_future(self.in_thread(server.start))
        await self.until(lambda: server.port, "the port")
        self.assertEqual((await self.ask(server, ask("/"))).body, b"ok")
        await starting
        await self.in_thread(server.stop)
        with self.assertRaisesRegex(RuntimeError, "started before"):
            server.start()

    async def test_leaving_the_block_when_it_was_closed_from_within(self):
        server = SSEServer("127.0.0.1", 0)

        def run():
            with server:
                asyncio.run_coroutine_threadsafe(
                    server.close(), inside(server).service.loop
                )

        await asyncio.wait_for(self.in_thread(run), DEADLINE)
        with self.assertRaises(RuntimeError):
            server.publish("a")

    async def test_drain_while_it_starts(self):
        server = SSEServer("127.0.0.1", 0, heartbeat=None)
        server.publish("a")
        starting = asyncio.ensure_future(inside(server).service.start())
        await asyncio.sleep(0)
        await asyncio.wait_for(server.drain(), DEADLINE)
        await starting
        await server.close()

    async def test_a_close_from_another_event_loop_that_comes_too_late(self):
        server = await self.start()
        with mock.patch.object(
            asyncio, "run_coroutine_threadsafe", side_effect=RuntimeError
        ):
            await self.in_thread(asyncio.run, server.close())

    async def test_drain_waits_once_for_one_who_takes_little(self):
        server = await self.start(write_timeout=12, history=10_000)
        client, _ = await self.stall(server)
        for _ in range(300):
            server.publish("x" * 8 * KIB)
        draining = asyncio.ensure_future(server.drain(behind=True))
        for _ in range(7):
            await client.receive()  # enough for the server to see it
            await self.pass_time(1)
        self.assertFalse(draining.done())
        await client.receive()
        await self.pass_time(6)
        await asyncio.wait_for(draining, DEADLINE)
        server.publish("a")
        began = time.monotonic()
        await asyncio.wait_for(server.drain(behind=True), DEADLINE)
        self.assertLess(time.monotonic() - began, 6)
        self.assertEqual((server.stats.behind, server.stats.dropped), (1, 0))
        while server.stats.behind:
            await client.receive()
        # The next time that it falls behind, it is waited for again.
        self.assertEqual(inside(server).broadcaster._not_waited_for, set())

    async def test_drain_does_not_wait_for_one_who_is_ahead(self):
        server = await self.start(id_order=int)
        server.publish("a", id="1")
        await self.stream(server, "/sse", "Last-Event-ID: 99")
        self.assertEqual(server.stats.behind, 1)
        server.publish("b", id="2")
        await asyncio.wait_for(server.drain(behind=True), DEADLINE)


class ThreadTest(ServerTestCase):
    """`with SSEServer()`: the blocks run where nothing else does."""

    async def test_leaving_the_block_delivers_and_closes(self):
        server = SSEServer("127.0.0.1", 0, history=100_000)
        opened = threading.Event()

        def program():
            with server:
                opened.wait(DEADLINE)
                for n in range(2000):
                    server.publish(str(n))

        running = asyncio.ensure_future(self.in_thread(program))
        await self.until(lambda: server.port, "the start")
        clients = [await self.stream(server) for _ in range(3)]
        await self.until_stats(server, live=3)
        opened.set()
        for client in clients:
            events = await client.rest()
            self.assertEqual([e.data for e in events], [*map(str, range(2000))])
        await running
        with self.assertRaises(RuntimeError):
            server.publish("a")

    def test_stop_after_a_start_that_was_interrupted(self):
        """By Ctrl-C: before the thread began, or before it runs the event loop."""
        for begins in (False, True):
            server, go = SSEServer("127.0.0.1", 0), threading.Event()
            run = server._run_in_thread

            def run_later(started, go=go, run=run):
                go.wait(DEADLINE)
                run(started)

            started = mock.Mock()
            started.result.side_effect = KeyboardInterrupt
            started.done.return_value = False
            server._run_in_thread = run_later
            begin = threading.Thread.start if begins else (lambda thread: None)
            with (
                mock.patch.object(
                    sse_server.concurrent.futures, "Future", return_value=started
                ),
                mock.patch.object(threading.Thread, "start", begin),
                self.assertRaises(KeyboardInterrupt),
            ):
                server.start()
            threading.Timer(0.05, go.set).start()
            server.stop()
            self.assertFalse(server._thread.is_alive())
            (error,) = [*started.set_exception.call_args_list, None][:1]
            self.assertEqual(error is not None, begins)

    async def test_close_elsewhere_when_the_server_ends_by_itself(self):
        """Its event loop has stopped before it was asked to close the server."""
        server = SSEServer("127.0.0.1", 0, shutdown_timeout=60)
        await self.in_thread(server.start)
        never = sse_server.concurrent.futures.Future()
        with mock.patch.object(
            asyncio, "run_coroutine_threadsafe", return_value=never
        ) as asking:
            closing = asyncio.ensure_future(server.close())
            await self.until(lambda: asking.called, "the question")
        await self.in_thread(server.stop)
        await asyncio.wait_for(closing, DEADLINE)

    async def test_a_start_that_is_interrupted_when_it_has_succeeded(self):
        """It does not wait for the end of the server that runs."""

        class Interrupted(sse_server.concurrent.futures.Future):
            def result(self):
                super().result()
                raise KeyboardInterrupt

        server, raised = SSEServer("127.0.0.1", 0), []

        def program():
            futures = types.SimpleNamespace(Future=Interrupted)
            concurrent = types.SimpleNamespace(futures=futures)
            with mock.patch.object(sse_server, "concurrent", concurrent):
                try:
                    server.start()
                except KeyboardInterrupt:
                    raised.append(server.port)

        thread = threading.Thread(target=program, daemon=True)
        thread.start()
        await self.in_thread(lambda: thread.join(3))
        self.assertEqual(raised, [server.port])
        await self.in_thread(server.stop)

    async def test_a_failure_to_start_is_raised_in_the_caller(self):
        first = await self.start()

        def program():
            with (
                self.assertRaises(OSError) as caught,
                SSEServer("127.0.0.1", first.port),
            ):
                self.fail("it started")
            self.assertEqual(caught.exception.errno, errno.EADDRINUSE)

        await self.in_thread(program)

    async def test_a_failure_to_make_an_event_loop_is_raised_in_the_caller(self):
        failure = OSError(errno.EMFILE, "no descriptors")
        raised = []

        def program():
            try:
                with SSEServer("127.0.0.1", 0):
                    raised.append(None)
            except OSError as error:
                raised.append(error)

        thread = threading.Thread(target=program, daemon=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(mock.patch.object(threading, "excepthook"))
            for holder in (asyncio, asyncio.events):
                failing = mock.patch.object(
                    holder, "new_event_loop", side_effect=failure
                )
                stack.enter_context(failing)
            thread.start()
            await self.in_thread(lambda: thread.join(3))
            failure.__traceback__ = None  # which holds a coroutine that never ran
            gc.collect()
        self.assertEqual(raised, [failure])

    async def test_an_error_in_the_block_ends_it_too(self):
        server = SSEServer("127.0.0.1", 0)

        def program():
            with self.assertRaises(ZeroDivisionError), server:
                raise ZeroDivisionError

        await self.in_thread(program)
        with self.assertRaises(OSError):
            await self.connect(server)

    async def test_disconnect_from_the_program(self):
        server = SSEServer("127.0.0.1", 0)
        go = threading.Event()

        def program():
            with server:
                go.wait(DEADLINE)

        running = asyncio.ensure_future(self.in_thread(program))
        await self.until(lambda: server.port, "the start")
        client = await self.stream(server)
        server.disconnect(lambda request: True)
        self.assertEqual(await client.rest(), [])
        go.set()
        await running

    async def test_stop_in_a_hook_does_not_wait(self):
        server = SSEServer("127.0.0.1", 0, on_open=lambda request: server.stop())
        await self.in_thread(server.start)
        client = await self.stream(server)
        self.assertEqual(await client.rest(), [])
        await self.in_thread(server.stop)

    async def test_a_script_that_ends_right_after_its_last_publish(self):
        script = (
            "import sse_server, sys\n"
            "with sse_server.SSEServer('127.0.0.1', 0) as server:\n"
            "    print(server.port, flush=True)\n"
            "    sys.stdin.readline()\n"
            "    for n in range(500): server.publish(n)\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=compiled(),
        )
        port = int(await process.stdout.readline())
        client = await self.visit(port)
        await client.open(ask())
        _, err = await asyncio.wait_for(process.communicate(b"\n"), DEADLINE)
        self.assertEqual((process.returncode, err), (0, b""))
        self.assertEqual([e.data for e in await client.rest()], [*map(str, range(500))])


@unittest.skipUnless(hasattr(os, "fork"), "no fork")
class ForkTest(ServerTestCase):
    """A forked child lets go of the sockets that it inherited."""

    async def test_clients_see_their_end_and_the_port_is_free(self):
        server = await self.start()
        streams = [await self.stream(server) for _ in range(2)]
        kept = await self.connect(server)
        await kept.request(ask("/"))
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(ready[1], b"x")
                os.read(done[0], 1)
            finally:
                os._exit(0)
        try:
            await self.in_thread(os.read, ready[0], 1)
            server.publish("a")  # the parent goes on as before
            for client in streams:
                self.assertEqual(await client.data(1), ["a"])
            self.assertEqual((await kept.request(ask("/"))).status, 200)
            late = await self.stream(server)
            await server.close()
            for client in (*streams, late):
                self.assertEqual(await client.rest(), [])
            self.assertTrue(await kept.ended())
            async with SSEServer("127.0.0.1", server.port):
                pass
        finally:
            os.write(done[1], b"x")
            await self.in_thread(os.waitpid, child, 0)
            for descriptor in (*ready, *done):
                os.close(descriptor)


class LifetimeTest(ServerTestCase):
    async def test_a_stream_is_ended_in_order_after_its_lifetime(self):
        """The client is told the usual retry and not that of a restart."""
        server = await self.start(
            lifetime=20, retry=1.0, restart_retry=100, authorize=self.count
        )
        self.asked = 0
        client = await self.stream(server)
        server.publish("a")
        await self.pass_time(10)
        self.assertEqual(server.stats.live, 1)
        await self.pass_time(15)
        self.assertEqual(server.stats.live, 0)
        self.assertEqual([e.data for e in await client.rest()], ["a"])
        self.assertLess(client.decoder.retry, 1501)
        again = await self.stream(server)
        await self.pass_time(25)
        await again.rest()
        self.assertEqual(self.asked, 2)

    def count(self, request):
        self.asked += 1
        return True

    async def test_lifetimes_are_jittered(self):
        """By 20 %, so that streams that began together do not end together."""
        server = await self.start(lifetime=1000)
        for _ in range(20):
            await self.stream(server)
        left = [s.timer.when() for s in self.in_state("live")]
        now = asyncio.get_running_loop().time()
        self.assertGreater(min(left) - now, 790)
        self.assertLess(max(left) - now, 1200)
        self.assertGreater(max(left) - min(left), 50)

    async def test_no_timer_is_left_of_who_has_gone(self):
        server = await self.start(lifetime=1000)
        client = await self.stream(server)
        (connection,) = self.in_state("live")
        timer = connection.timer
        client.close()
        await self.until_stats(server, live=0)
        self.assertTrue(timer.cancelled())

    async def test_the_retry_of_a_restart(self):
        server = await self.start(restart_retry=0.001)
        client = await self.stream(server)
        await server.close()
        await client.rest()
        self.assertLessEqual(client.decoder.retry, 2)


class TLSTest(OverTLS, ServerTestCase):
    async def test_a_handshake_that_goes_on_counts_among_the_connections(self):
        server = await self.start(max_connections=2)
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            self.addCleanup(writer.close)
        await self.until(lambda: len(self.in_state("handshake")) == 3, "all")
        self.assertEqual(len(server._service.parts.refusing), 1)

    async def test_the_end_does_not_wait_for_a_handshake(self):
        server = await self.start(shutdown_timeout=1000, header_timeout=1000)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        self.addCleanup(writer.close)
        await self.until(lambda: self.in_state("handshake"), "the handshake")
        await asyncio.wait_for(server.close(), DEADLINE)

    async def test_who_leaves_before_its_turn_costs_no_handshake(self):
        server = await self.start()
        client = await self.visit(server.port)
        hello, tls = ssl.MemoryBIO(), ssl.create_default_context()
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="a").do_handshake()
        with mock.patch.object(ssl.SSLContext, "wrap_bio") as begin:
            with mock.patch.object(inside(server).turns, "is_over", return_value=True):
                await client.send(hello.read())
                await self.until(lambda: inside(server).turns.waiting, "the wait")
                client.close()
                transport = self.transports[0].get_protocol()
                await self.until(lambda: transport._input_ended, "the end")
            transport.proceed()
            await self.until_gone()
        begin.assert_not_called()

    async def test_a_connection_takes_little_memory(self):
        """asyncio's own TLS begins with 256 KiB for each."""
        server = await self.start()
        await self.stream(server)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(10):
            await self.stream(server)
        self.assertLess(tracemalloc.get_traced_memory()[0] / 10, 40 * KIB)

    async def test_what_is_large_is_encrypted_in_pieces(self):
        """OpenSSL does not give back the memory that it once took for the largest."""
        server = await self.start()
        client = await self.stream(server)
        (connection,) = self.in_state("live")
        sizes, tls = [], connection.transport._tls

        def write(data):
            sizes.append(len(data))
            return tls.write(data)

        fake = types.SimpleNamespace(write=write, read=tls.read)
        with mock.patch.object(connection.transport, "_tls", fake):
            server.publish("x" * 200 * KIB)
            await client.data(1)
        self.assertLessEqual(max(sizes), 32 * KIB)

    async def test_who_does_not_read_what_tls_answers_is_not_read(self):
        """Such as the answers to requests for new keys: a client may send thousands."""
        server = await self.start()
        await self.stream(server, receive_buffer=BUFFER)
        (connection,) = self.in_state("live")
        tls = connection.transport

        def answer(size):
            tls._outgoing.write(bytes(1000))
            raise ssl.SSLWantReadError

        with (
            mock.patch.object(tls, "_tls", types.SimpleNamespace(read=answer)),
            mock.patch.object(inside(server).turns, "is_over", return_value=False),
        ):
            for _ in range(40_000):
                tls.data_received(b"x")
        held = self.transports[0].get_write_buffer_size() + tls._outgoing.pending
        self.assertLess(held, 20 * KIB)
        self.assertFalse(self.transports[0].is_reading())
        # When the socket has taken everything, it goes on.
        with mock.patch.object(tls, "_lower") as lower:
            lower.get_write_buffer_size.return_value = 0
            tls.resume_writing()
            lower.write.assert_called_once()
        self.assertEqual(tls._outgoing.pending, 0)
        self.assertIn(tls, inside(server).turns.waiting)
        self.transports[0].abort()

    async def test_many_handshakes_at_once(self):
        server = await self.start()
        clients = await asyncio.gather(*[self.connect(server) for _ in range(60)])
        for client in clients:
            self.assertEqual((await client.request(ask("/"))).body, b"ok")

    async def test_who_waits_for_its_turn_is_not_cut_for_the_time_it_takes(self):
        """The server is late, and not the client."""
        server = await self.start()
        client = await self.connect(server)
        with mock.patch.object(inside(server).turns, "is_over", return_value=True):
            await client.send(ask("/"))
            await self.until(lambda: inside(server).turns.waiting, "the wait")
            self.connections[0].expire()
        inside(server).turns.defer(self.transports[0].get_protocol())
        self.assertEqual((await client.read_answer()).body, b"ok")

    async def test_what_is_sent_in_a_pause_is_read_after_it(self):
        server = await self.start()
        client = await self.connect(server)
        await self.until(lambda: self.in_state("head"), "the handshake's end")
        (connection,) = self.in_state("head")
        connection.transport.pause_reading()
        await client.send(ask("/"))
        connection.transport.resume_reading()
        self.assertEqual((await client.read_answer()).body, b"ok")

    async def test_the_url_is_of_https(self):
        server = await self.start()
        self.assertEqual(server.url, f"https://127.0.0.1:{server.port}/sse")

    async def test_a_client_that_ends_in_the_segment_of_its_handshake(self):
        server = await self.start()
        context = ssl.create_default_context(cafile=certificate()[0])
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(received, sent, server_hostname="localhost")
        client = await self.visit(server.port)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await client.send(sent.read())
                received.write(await client.receive())
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        await client.send(sent.read())
        await self.until_gone()
        self.assertEqual(self.logged(logging.WARNING), [])

    async def test_a_batch_for_who_has_broken_tls_is_no_error(self):
        """It is cut, but leaves only in the next round of the event loop."""
        server = await self.start()
        await self.stream(server)
        (transport,) = self.transports
        transport.get_protocol().data_received(b"\x17\x03\x03\0\x10" + bytes(16))
        self.assertTrue(self.in_state("live"))
        server.publish("a")
        collections.deque(inside(server).broadcaster.work(), maxlen=0)
        await self.until_gone()
        self.assertEqual(self.logged(logging.WARNING), [])

    async def test_who_does_not_speak_tls(self):
        server = await self.start()
        plain = await self.visit(server.port)
        with self.assertLogs("sse_server", "DEBUG") as logged:
            await plain.send(ask("/"))
            with contextlib.suppress(ConnectionResetError):
                self.assertNotIn(b"HTTP", await plain.receive())
                self.assertEqual(await plain.receive(), b"")
        self.assertIn(": no TLS: ", " ".join(logged.output))
        silent = await self.visit(server.port)
        await self.pass_time(11)
        self.assertEqual(self.in_state("handshake"), [])
        self.assertTrue(await silent.ended())


class AnswerOverASGITest(OverASGI, AnswerTest):
    again = ("test_answers", "test_queries_that_get_400")


class ReadingOverASGITest(OverASGI, ResumeTest, RetainedTest, ReplayTest, ChannelTest):
    again = (
        "test_ways_to_say_where_to_resume",
        "test_a_position_that_fell_off_the_log_is_a_gap",
        "test_resuming_at_full_speed_sees_every_event_once",
        "test_then_it_goes_on_live_and_resumes_by_the_last_ones_id",
        "test_a_large_snapshot_goes_out_in_batches",
        "test_a_new_client_asks_for_the_newest",
        "test_who_receives_what",
    )


class StreamOverASGITest(OverASGI, StreamTest, DepartureTest, FinishTest):
    again = (
        "test_the_head",
        "test_what_the_client_sends_is_ignored",
        "test_ways_to_leave_are_noticed_without_a_write",
        "test_many_visits_leave_nothing",
        "test_one_that_leaves_in_the_midst_of_writes_is_no_error",
        "test_arrivals_and_departures_are_logged",
        "test_who_is_there_gets_all_and_then_the_end",
        "test_who_missed_something_gets_it_and_then_the_end",
    )


class SlowClientOverASGITest(OverASGI, SlowClientTest):
    again = (
        "test_who_never_reads_harms_nobody_and_is_dropped",
        "test_who_reads_again_catches_up_and_is_live",
        "test_a_slow_reader_that_takes_something_is_not_dropped",
        "test_drain_of_those_behind_ends_when_they_leave",
    )


class CompressionOverASGITest(OverASGI, CompressionTest):
    again = (
        "test_who_is_sent_gzip",
        "test_each_event_can_be_read_when_it_is_written",
        "test_what_was_before_is_the_dictionary",
        "test_who_is_young_and_for_how_long",
        "test_slow_ones_come_back_and_all_get_their_end",
    )


class PostOverASGITest(OverASGI, PostTest):
    again = (
        "test_the_body_is_the_data_as_it_is",
        "test_a_chunked_body",
        "test_a_wrong_token_gets_401",
        "test_what_is_refused",
        "test_a_repeated_request_publishes_nothing_again",
        "test_a_body_of_the_limit",
    )


class AccessOverASGITest(OverASGI, CorsTest, AuthorizeTest, PermissionTest, FullTest):
    again = (
        "test_an_origin_of_the_list",
        "test_the_preflight",
        "test_what_the_hook_may_answer",
        "test_a_304_has_no_body",
        "test_it_is_given_the_request_and_not_asked_elsewhere",
        "test_one_whose_work_is_cancelled_gets_500",
        "test_a_channel_that_may_not_be_heard_gets_403",
        "test_who_asks_for_none_hears_all_that_it_may",
        "test_who_is_only_turned_away_is_not_asked_about",
    )


class DisconnectOverASGITest(OverASGI, DisconnectTest, MonitorTest):
    again = (
        "test_it_ends_the_chosen_streams",
        "test_of_one_that_never_reads",
        "test_the_counts_as_json_with_the_token",
    )


LEAVES = {"type": "http.disconnect"}


def part(body, more_body=False):
    """The message with so much of a request's body."""
    return {"type": "http.request", "body": body, "more_body": more_body}


WITHOUT_BODY = (part(b""),)


class HandMadeCall:
    """One call of an ASGI application, with a scope that is made by hand."""

    def __init__(self, application, *fields, parts=WITHOUT_BODY, **scope):
        lines = [field.encode().partition(b": ") for field in fields]
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/events",
            "query_string": b"",
            "headers": [(name.lower(), value) for name, _, value in lines],
            **scope,
        }
        self.sent = []  # the messages
        self.takes = asyncio.Event()  # whether send() returns
        self.takes.set()
        self.failure = None  # what it raises
        self._messages = asyncio.Queue()
        for message in parts:
            self.say(message)
        self.task = asyncio.ensure_future(
            application(self.scope, self._messages.get, self._send)
        )

    def say(self, message):
        self._messages.put_nowait(message)

    async def _send(self, message):
        if self.failure:
            raise self.failure
        self.sent.append(message)
        await self.takes.wait()

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def fields(self):
        return self.sent[0]["headers"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    async def answer(self):
        """The status and the body, when the call has ended."""
        await asyncio.wait_for(self.task, DEADLINE)
        ends = [not message.get("more_body", False) for message in self.sent[1:]]
        assert ends == [False] * (len(ends) - 1) + [True], self.sent
        return self.status, self.body


# what it is about: (the stream's path of SSEServer, whether the server is the whole
# application, the scope, whether that is the stream).
ASGI_PATHS = {
    "routed to any path": ("/sse", False, {"path": "/events"}, True),
    "routed to the root": ("/sse", False, {"path": "/"}, True),
    "routed by a parameter": ("/sse", False, {"path": "/é b/sse/1"}, True),
    "mounted": ("/sse", False, {"path": "/events/", "root_path": "/events"}, True),
    "the application": ("/sse", True, {"path": "/sse"}, True),
    "another path of it": ("/sse", True, {"path": "/events"}, False),
    "the path in other letters": (
        "/sse",
        True,
        {"path": "/sse", "raw_path": b"/%73se"},
        True,
    ),
    "an encoded slash": (
        "/a/sse",
        True,
        {"path": "/a/sse", "raw_path": b"/a%2Fsse"},
        False,
    ),
    "below a prefix that the path has": (
        "/sse",
        True,
        {"path": "/api/sse", "root_path": "/api"},
        True,
    ),
    "below a prefix that the path has not": (
        "/sse",
        True,
        {"path": "/sse", "root_path": "/api"},
        True,
    ),
    "below a prefix that is its own": (
        "/sse",
        True,
        {"path": "/sse", "root_path": "/sse"},
        True,
    ),
    "another path below a prefix": (
        "/sse",
        True,
        {"path": "/api", "root_path": "/api"},
        False,
    ),
}


class ASGITest(ServerTestCase):
    """What differs by ASGI from the server's own port."""

    async def start(self, **options):
        return await super().start(port=None, **options)

    def call(self, application, *fields, **scope):
        call = HandMadeCall(application, *fields, **scope)
        self.addAsyncCleanup(self.end, call)
        return call

    async def end(self, call):
        call.say(LEAVES)
        call.takes.set()
        await asyncio.wait([call.task])

    async def test_which_path_is_the_streams(self):
        for name, (path, is_whole, scope, expected) in ASGI_PATHS.items():
            server = await self.start(path=path)
            if is_whole:
                web = await WebServer(server).start()
                self.addAsyncCleanup(web.close)
            with self.subTest(name):
                found = await self.call(server, method="HEAD", **scope).answer()
                self.assertEqual(found[0], 200)
                call = self.call(server, method="PUT", **scope)
                status, body = await call.answer()
                if expected:
                    shown = scope["path"].replace("/api/", "/")
                    shown = urllib.parse.quote(shown).encode()
                    self.assertEqual(body, b"PUT is not allowed on %b\n" % shown)
                else:
                    self.assertEqual((status, body), (200, b"ok"))

    async def test_the_request_that_hooks_get(self):
        asked = []
        server = await self.start(authorize=lambda request: bool(asked.append(request)))
        call = self.call(
            server,
            "Cookie: é=1",
            path="/é b",
            query_string=b"channel=a",
            http_version="2",
            client=("::1", 5),
        )
        self.assertEqual((await call.answer())[0], 403)
        (request,) = asked
        self.assertEqual(request.target, "/%C3%A9%20b?channel=a")
        self.assertEqual((request.path, request.version), ("/%C3%A9%20b", (2, 0)))
        self.assertEqual((request.method, request.peer), ("GET", "[::1]:5"))
        self.assertEqual(request.parameters, {"channel": ["a"]})
        self.assertEqual(request.header("cookie"), "é=1")

    async def test_it_answers_to_any_name_unless_hosts_are_given(self):
        for options, status in (({}, 200), ({"hosts": ["example.com"]}, 421)):
            server = await ServerTestCase.start(self, **options)  # with a loopback port
            for host, expected in (("evil.example", status), ("example.com:1", 200)):
                call = self.call(server, f"Host: {host}", method="HEAD")
                self.assertEqual((await call.answer())[0], expected, options)

    async def test_what_is_no_request(self):
        server = await self.start()
        connect = {"type": "websocket.connect"}
        call = self.call(server, type="websocket", parts=[connect])
        await call.task
        self.assertEqual(call.sent, [{"type": "websocket.close"}])
        with self.assertRaisesRegex(ValueError, "^ASGI scope 'x'; served is http$"):
            await self.call(server, type="x").task

    async def test_it_may_start_with_its_first_request(self):
        server = SSEServer(port=None)
        before = signal.getsignal(signal.SIGTERM)
        calls = [self.call(server), self.call(server)]
        await self.until_stats(server, live=2)
        self.assertNotEqual(signal.getsignal(signal.SIGTERM), before)
        await server.close()
        for call in calls:
            _, body = await call.answer()
            self.assertRegex(body, rb"\A: open\nretry: [0-9]+\nretry: [0-9]+\n\Z")
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)
        call = self.call(server, EVENT_SOURCE)
        self.assertRegex((await call.answer())[1], rb"\Aretry: [0-9]+\n\Z")
        self.assertEqual((await self.call(server).answer())[0], 503)

    async def test_it_belongs_into_the_event_loop_of_the_server(self):
        with (
            SSEServer(port=None) as server,
            self.assertRaisesRegex(RuntimeError, "an ASGI request must be called in"),
        ):
            await self.call(server).task

    async def test_a_body_is_received_within_its_limit(self):
        server = await self.start(publish_token="secret", max_event_bytes=10)
        for size, parts, expected in (
            (10, [part(b"x" * 9, True), part(b"x")], 200),
            (0, [part(b"")], 200),
            (11, [part(b"x" * 11)], 413),
            (None, [part(b"x" * 9, True), part(b"xx", True), part(b"xx")], 413),
        ):
            length = "Transfer-Encoding: chunked"
            if size is not None:
                length = f"Content-Length: {size}"
            call = self.call(server, SECRET, length, method="POST", parts=parts)
            self.assertEqual((await call.answer())[0], expected, parts)
        self.assertEqual(server.stats.published, 2)

    async def test_the_rest_of_a_body_is_received_before_an_error(self):
        """Otherwise its sender may see a reset, and not the answer."""
        server = await self.start(publish_token="secret", max_event_bytes=10)
        length = "Content-Length: 1000000000"
        options = {"method": "POST", "parts": []}
        megabyte = part(b"x" * 2**20, True)
        for name, messages, status in (
            ("all of it", [megabyte, part(b"x")], 413),
            ("so much of it", [megabyte] * 4, 413),
            ("until it leaves", [LEAVES], None),
        ):
            with self.subTest(name):
                call = self.call(server, SECRET, length, **options)
                await self.until(
                    lambda: inside(server).registry.count("lingering"), "it"
                )
                for message in messages:
                    self.assertEqual(call.sent, [])
                    call.say(message)
                await asyncio.wait_for(call.task, DEADLINE)
                self.assertEqual(call.status, status)
        call = self.call(server, SECRET, length, **options)
        await self.until(lambda: inside(server).registry.count("lingering"), "the wait")
        await self.pass_time(2)
        self.assertEqual((await call.answer())[0], 413)
        fields = [SECRET, length, "Expect: 100-continue"]  # it waits for the answer
        self.assertEqual((await self.call(server, *fields, **options).answer())[0], 413)

    async def test_a_length_that_is_no_number(self):
        """Not every server looks at it."""
        server = await self.start(publish_token="secret")
        for lengths, fault in (
            (["x"], b"malformed Content-Length 'x'\n"),
            (["1", "2"], b"two differing values of Content-Length\n"),
        ):
            fields = [f"Content-Length: {length}" for length in lengths]
            call = self.call(server, SECRET, *fields, method="POST")
            self.assertEqual(await call.answer(), (400, fault))
        self.assertEqual(len(inside(server).registry), 0)

    async def test_from_http_2_on_a_body_needs_no_length(self):
        server = await self.start(publish_token="secret")
        stream = self.call(server)
        options = {"http_version": "2", "method": "POST", "parts": [part(b"body")]}
        call = self.call(server, SECRET, **options)
        self.assertEqual((await call.answer())[0], 200)
        await self.until(lambda: b"data: body\n" in stream.body, "the event")

    async def test_who_leaves_within_the_body_publishes_nothing(self):
        server = await self.start(publish_token="secret")
        parts = [part(b"x", True), LEAVES]
        length = "Content-Length: 2"
        call = self.call(server, SECRET, length, method="POST", parts=parts)
        await asyncio.wait_for(call.task, DEADLINE)
        self.assertEqual((call.sent, server.stats.published), ([], 0))

    async def test_a_body_that_does_not_come_gets_408(self):
        server = await self.start(publish_token="secret", body_timeout=10)
        parts = [part(b"x", True)]
        length = "Content-Length: 2"
        call = self.call(server, SECRET, length, method="POST", parts=parts)
        await self.until(
            lambda: inside(server).registry.count("body"), "the wait for more"
        )
        await self.pass_time(10)
        await self.until(
            lambda: inside(server).registry.count("lingering"), "the end of it"
        )
        call.say(part(b"x"))
        error = (408, b"request body not complete in 10 s\n")
        self.assertEqual(await call.answer(), error)

    async def test_a_request_that_is_cancelled_does_not_end_the_start(self):
        server = SSEServer(port=None)
        self.addAsyncCleanup(server.close)
        call = self.call(server)
        await asyncio.sleep(0)
        call.task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await call.task
        other = self.call(server, headers=[(b"accept", b"text/html")])
        self.assertEqual((await other.answer())[0], 200)

    @unittest.skipIf(sqlite3 is None, "this Python has no sqlite3")
    async def test_publishing_may_wait_for_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "events.db")
            server = await self.start(publish_token="secret", history_file=file)
            parts = [part(b"x")]
            length = "Content-Length: 1"
            call = self.call(server, SECRET, length, method="POST", parts=parts)
            self.assertEqual((await call.answer())[1].decode(), server.last_event_id)
            await server.close()

    async def asked(self, server, *fields, **scope):
        """A call about which `authorize` is asked."""
        call = self.call(server, *fields, **scope)
        await self.until(
            lambda: inside(server).registry.count("asking"), "the question"
        )
        return call

    async def test_ways_to_end_while_it_is_asked_about(self):
        cancelled = []

        async def authorize(request):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(request)
                raise

        server = await self.start(authorize=authorize, shutdown_timeout=0.01)
        gone = await self.asked(server)
        gone.say(LEAVES)
        await asyncio.wait_for(gone.task, DEADLINE)
        self.assertEqual(gone.sent, [])
        unwanted = await self.asked(server, EVENT_SOURCE)
        server.disconnect(lambda request: True)
        self.assertRegex((await unwanted.answer())[1], rb"\Aretry: [0-9]+\n\Z")
        cut = await self.asked(server)
        await server.close()
        await asyncio.wait_for(cut.task, DEADLINE)
        self.assertEqual(cut.sent, [])
        self.assertEqual(len(cancelled), 3)

    async def test_who_takes_nothing_is_dropped(self):
        server = await self.start(write_timeout=8)
        call = self.call(server)
        await self.until_stats(server, live=1)
        call.takes.clear()
        server.publish("taken, and not returned from")
        await self.until(lambda: b"taken" in call.body, "the event")
        server.publish("not taken")
        await self.until_stats(server, live=0, behind=1)
        await self.pass_time(9)
        await asyncio.wait_for(call.task, DEADLINE)
        self.assertEqual((server.stats.dropped, server.stats.behind), (1, 0))
        self.assertNotIn(b"not taken", call.body)

    async def test_who_does_not_take_an_answer_is_cut(self):
        server = await self.start(write_timeout=8)
        call = self.call(server, method="PUT")
        call.takes.clear()
        await self.until(lambda: call.sent, "the head")
        await self.pass_time(8)
        await asyncio.wait_for(call.task, DEADLINE)
        self.assertEqual(len(call.sent), 1)

    async def test_who_leaves_while_something_is_sent(self):
        """Some servers do not return from send() then."""
        told = []
        server = await self.start(on_close=told.append)
        call = self.call(server)
        await self.until_stats(server, live=1)
        call.takes.clear()
        server.publish("a")
        await self.until(lambda: b"data: a" in call.body, "the event")
        call.say(LEAVES)
        await asyncio.wait_for(call.task, DEADLINE)
        await self.until(lambda: told, "on_close")

    async def test_what_send_raises(self):
        server = await self.start()
        for failure in (OSError("it has left"), ValueError("a middleware's fault")):
            call = self.call(server)
            await self.until_stats(server, live=1)
            call.failure = failure
            server.publish("a")
            await asyncio.wait([call.task])
            found = call.task.exception()
            self.assertEqual(found, None if isinstance(failure, OSError) else failure)
            self.assertEqual((server.stats.live, server.stats.behind), (0, 0))

    async def test_what_receive_raises(self):
        """It would not tell any more that the client leaves, so the stream ends."""
        server = await self.start()
        fault = ValueError("a middleware's fault")
        for failure, errors in ((OSError("it has left"), 0), (fault, 1)):
            receive = mock.AsyncMock(side_effect=[WITHOUT_BODY[0], failure])

            async def application(scope, _, send, receive=receive):
                await server(scope, receive, send)

            await asyncio.wait_for(self.call(application).task, DEADLINE)
            self.assertEqual((server.stats.live, server.stats.behind), (0, 0))
            self.assertEqual(len(self.logged(logging.ERROR)), errors)

    async def test_a_receive_that_repeats_the_request(self):
        """So middlewares do that have read it: the event loop would stand still."""
        server = await self.start()
        receive = mock.AsyncMock(side_effect=100 * WITHOUT_BODY)

        async def application(scope, _, send):
            await server(scope, receive, send)

        await asyncio.wait_for(self.call(application).task, DEADLINE)
        self.assertEqual(receive.await_count, 2)
        self.assertEqual((server.stats.live, server.stats.behind), (0, 0))
        self.assertEqual(len(self.logged(logging.ERROR)), 1)

    async def test_one_that_is_cancelled_is_gone(self):
        server = await self.start()
        call = self.call(server)
        await self.until_stats(server, live=1)
        call.task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await call.task
        await self.until_stats(server, live=0, behind=0)

    async def test_many_events_wait_together_for_one_that_is_late(self):
        server = await self.start()
        call = self.call(server)
        await self.until_stats(server, live=1)
        call.takes.clear()
        for number in range(100):
            server.publish(str(number))
            await server.drain()
        call.takes.set()
        await self.until(lambda: b"data: 99\n" in call.body, "the last event")
        self.assertLess(len(call.sent), 7)
        decoded = [event.data for event in Decoder().feed(call.body)]
        self.assertEqual(decoded, [str(number) for number in range(100)])
        await self.until_stats(server, live=1, behind=0)


class LifespanTest(ServerTestCase):
    async def test_it_runs_for_as_long_as_the_framework(self):
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, handler)
        server = SSEServer(port=None)
        signals = signal.SIGINT, signal.SIGTERM
        before = [signal.getsignal(number) for number in signals]
        async with server.lifespan(object()) as state:
            self.assertIsNone(state)  # Starlette would take it for the state
            iterator = server.stream()
            await anext_of(iterator)
            reading = asyncio.ensure_future(rest_of(iterator))
            for number, handler in zip(signals, before):
                self.assertNotEqual(signal.getsignal(number), handler)
        self.assertEqual([signal.getsignal(number) for number in signals], before)
        self.assertRegex(b"".join(await reading), rb"\Aretry: [0-9]+\n\Z")
        with self.assertRaisesRegex(RuntimeError, "the server is closed"):
            server.publish("a")

    async def test_one_that_cannot_start_says_why(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = SSEServer("127.0.0.1", taken.getsockname()[1])
            web = WebServer(server)
            await web.start()
            web.listener.close()
        await web.lifespan
        (answer,) = web.answers
        self.assertEqual(answer["type"], "lifespan.startup.failed")
        self.assertRegex(answer["message"], "^sse_server: .*in use")

    async def end(self, reader):
        await reader.aclose()

    async def signalled(self, *handlers, come=signal.raise_signal):
        """A lifespan in which SIGTERM has come; its server, and what was called."""
        called = []
        handler = handlers[0] if handlers else lambda *_: called.append("framework")
        before = signal.signal(signal.SIGTERM, handler)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        server = SSEServer(port=None, on_close=lambda request: called.append("close"))
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(server.lifespan())
        self.addAsyncCleanup(stack.aclose)
        reader = server.stream()
        await anext_of(reader)
        self.addAsyncCleanup(self.end, reader)
        come(signal.SIGTERM)
        return server, reader, called, stack

    async def test_at_a_signal_streams_end_and_then_the_framework_is_told(self):
        server, reader, called, _ = await self.signalled()
        self.assertEqual(called, [])
        self.assertRegex(b"".join(await rest_of(reader)), rb"\Aretry: [0-9]+\n\Z")
        await self.until(lambda: len(called) == 2, "the framework's handler")
        self.assertEqual(called, ["close", "framework"])
        turned_away = b"".join(await rest_of(server.stream()))
        self.assertRegex(turned_away, rb"\Aretry: [0-9]+\n\Z")

    async def test_what_is_published_between_the_signal_and_the_end_is_no_fault(self):
        server, reader, called, stack = await self.signalled()
        await rest_of(reader)
        await self.until(lambda: "framework" in called, "the end of all streams")
        self.assertEqual(server.publish("a"), server.last_event_id)
        await asyncio.wait_for(server.drain(), DEADLINE)
        await stack.aclose()
        with self.assertRaisesRegex(RuntimeError, "the server is closed"):
            server.publish("b")

    async def test_a_signal_that_comes_while_something_is_logged(self):
        """Many a log refuses to be written to by who has interrupted a write."""

        def come(number):
            handler = logging.Handler()

            def write(record):
                with mock.patch.object(handler, "emit", self.fail):
                    signal.raise_signal(number)

            handler.emit = write
            sse_server.logger.addHandler(handler)
            sse_server.logger.info("something")
            sse_server.logger.removeHandler(handler)

        _, reader, called, _ = await self.signalled(come=come)
        await rest_of(reader)
        await self.until(lambda: "framework" in called, "the end of all streams")
        self.assertIn("SIGTERM: ending the streams", self.logged())

    async def test_what_is_published_while_a_left_block_still_ends_is_refused(self):
        server, _, _, stack = await self.signalled()
        leaving = asyncio.ensure_future(stack.aclose())
        await self.until(lambda: inside(server).intake.closed_because, "the refusal")
        self.assertFalse(leaving.done())  # nobody reads the stream to its end
        with self.assertRaisesRegex(RuntimeError, "the server is closed"):
            server.publish("a")

    async def test_a_second_signal_waits_for_nothing(self):
        numbers = []
        await self.signalled(lambda number, frame: numbers.append(number))
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(numbers, [signal.SIGTERM] * 2)  # the first came first

    async def test_a_handler_of_the_event_loop_is_called_at_once(self):
        """Such as uvloop's, which would act twice if it were called late."""
        loop, called = asyncio.get_running_loop(), []
        note = types.MethodType(lambda loop, *signalled: called.append(signalled), loop)
        await self.signalled(note)
        self.assertEqual(called, [(signal.SIGTERM, None)])

    async def test_a_signal_that_the_program_handles_keeps_its_handler(self):
        loop, came = asyncio.get_running_loop(), []
        for name, setting in (
            ("ignored", lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)),
            ("its own", lambda: signal.signal(signal.SIGINT, came.append)),
            ("the loop's", lambda: loop.add_signal_handler(signal.SIGINT, came.append)),
        ):
            with self.subTest(name):
                before = signal.getsignal(signal.SIGINT)
                self.addCleanup(signal.signal, signal.SIGINT, before)
                setting()
                handler = signal.getsignal(signal.SIGINT)
                server = SSEServer(port=None)
                serving = asyncio.ensure_future(server.serve_forever())
                service = inside(server).service
                await self.until(lambda s=service: s.state == "serving", "a start")
                self.assertEqual(signal.getsignal(signal.SIGINT), handler)
                self.assertNotEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
                await self.cancel(serving)
                self.assertEqual(signal.getsignal(signal.SIGINT), handler)
                loop.remove_signal_handler(signal.SIGINT)
                signal.signal(signal.SIGINT, before)

    async def test_an_ignored_signal_stays_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        async with SSEServer(port=None).lifespan():
            self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    async def test_a_handler_that_was_put_there_meanwhile_stays(self):
        before = signal.getsignal(signal.SIGINT)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        async with SSEServer(port=None).lifespan():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    async def test_in_another_thread_signals_are_left_alone(self):
        before = signal.getsignal(signal.SIGINT)

        async def run():
            async with SSEServer(port=None).lifespan():
                return signal.getsignal(signal.SIGINT)

        self.assertEqual(await self.in_thread(asyncio.run, run()), before)


# ------------------------------------------------------------------------------------
# 10. The page
# ------------------------------------------------------------------------------------


class PageTest(ServerTestCase):
    NAVIGATION = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"

    async def test_who_gets_it(self):
        server = await self.start()
        cases = {
            self.NAVIGATION: "text/html; charset=utf-8",
            "Accept: TEXT/HTML ;q=1": "text/html; charset=utf-8",
            "Accept: text/event-stream": "text/event-stream",
            "Accept: text/html, text/event-stream": "text/event-stream",
            "Accept: */*": "text/event-stream",
            "Accept: text/*": "text/event-stream",
            "Accept:": "text/event-stream",
            "X: y": "text/event-stream",
        }
        for field, expected in cases.items():
            for method in ("GET", "HEAD"):
                with self.subTest(field, method=method):
                    client = await self.connect(server)
                    await client.send(ask("/sse?channel=a", field, method=method))
                    answer = await client.read_head()
                    self.assertEqual(answer.field("content-type"), expected)
                    self.assertIn("Accept", answer.field("vary"))
                    client.close()
        await self.until_stats(server, live=0)

    async def test_its_policy_allows_its_own_script_and_style_and_nothing_else(self):
        server = await self.start()
        client = await self.connect(server)
        answer = await client.request(ask("/sse", self.NAVIGATION))
        page = answer.body.decode()
        self.assertEqual(answer.field("cache-control"), "no-store")
        self.assertEqual(answer.field("x-content-type-options"), "nosniff")
        self.assertEqual(answer.field("referrer-policy"), "no-referrer")
        policy = {}
        for directive in answer.field("content-security-policy").split("; "):
            name, *sources = directive.split(" ")
            policy[name] = sources
        none = ["'none'"]
        for element in ("script", "style"):
            (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest())
            self.assertEqual(
                policy.pop(f"{element}-src"), [f"'sha256-{digest.decode()}'"]
            )
            self.assertEqual(page.count(f"<{element}"), 1)
        self.assertEqual(
            policy,
            {
                "default-src": none,
                "connect-src": ["'self'"],
                "img-src": ["data:"],
                "base-uri": none,
                "form-action": none,
                "frame-ancestors": none,
            },
        )
        self.assertNotRegex(page, r"\s(on[a-z]+|style|src|href)=[\"'](?!data:)")
        self.assertNotIn("innerHTML", page)
        self.assertEqual((await client.request(ask("/"))).body, b"ok")


class OwnPageTest(ServerTestCase):
    """`page`: a file of the program's own at /."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.page = self.folder / "index.html"
        self.page.write_text("<p>one")

    async def test_it_is_read_anew_each_time(self):
        server = await self.start(page=self.page)
        client = await self.connect(server)
        for text in ("<p>one", "<p>two and more"):
            self.page.write_text(text)
            answer = await client.request(ask("/?a=b"))
            self.assertEqual((answer.status, answer.body), (200, text.encode()))
            self.assertEqual(answer.field("content-type"), "text/html; charset=utf-8")
            self.assertEqual(answer.field("cache-control"), "no-cache")
        head = await client.request(ask("/", method="HEAD"), head_only=True)
        self.assertEqual(head.field("content-length"), str(len(text)))
        self.assertEqual((await client.request(ask("/index.html"))).body, b"ok")

    async def test_one_that_is_gone_is_an_error_until_it_is_there_again(self):
        server = await self.start(page=str(self.page))
        client = await self.connect(server)
        self.page.unlink()
        answer = await client.request(ask("/"))
        self.assertEqual(answer.status, 500)
        self.assertEqual(answer.body, b"the page cannot be read\n")
        (line,) = self.logged(logging.ERROR)
        self.assertRegex(line, f"^the page: .*{re.escape(str(self.page))}")
        self.page.write_text("again")
        self.assertEqual((await client.request(ask("/"))).body, b"again")

    async def test_what_is_refused_when_the_server_is_made(self):
        for options, kind, message in (
            ({"page": self.folder / "none"}, FileNotFoundError, "none'$"),
            ({"page": self.folder}, OSError, self.folder.name),
            ({"page": 5}, TypeError, "^page is 5; allowed is a path or None$"),
            (
                {"page": self.page, "path": "/"},
                ValueError,
                "^path is '/', where the page is; allowed is another one$",
            ),
        ):
            with self.subTest(options), self.assertRaisesRegex(kind, message):
                SSEServer(**options)

    async def test_by_asgi_it_belongs_to_the_whole_application(self):
        for root in ("", "/api"):
            server = await self.start(port=None, page=self.page)
            scope = {"path": f"{root}/", "root_path": root}
            call = HandMadeCall(server, method="HEAD", **scope)
            await asyncio.wait_for(call.task, DEADLINE)
            self.assertIn((b"content-type", b"text/event-stream"), call.fields)
            web = await WebServer(server).start()
            self.addAsyncCleanup(web.close)
            found = await HandMadeCall(server, **scope).answer()
            self.assertEqual(found, (200, b"<p>one"))


# ------------------------------------------------------------------------------------
# 11. The command line
# ------------------------------------------------------------------------------------

TIMESTAMP = (
    r'\{"timestamp":"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}[.][0-9]{3}Z",'
    r'"clients":[0-9]+\}'
)
OPTIONS = (
    *("--version", "--host", "--port", "--path", "--certfile", "--keyfile", "--page"),
    *("--event", "--channel", "--lossless", "--publish-token", "--cors-origin"),
    *("--history", "--history-seconds", "--lifetime", "--restart-retry"),
    *("--history-file",),
    *("--heartbeat", "--max-event-bytes", "--max-connections", "--verbose", "--quiet"),
)
# What the tests' own environment may have set.
ENVIRONMENT = {
    "PYTHON_COLORS": "0",  # stronger than FORCE_COLOR
    "PYTHONUNBUFFERED": "",  # as if it was not set
    "SSE_PUBLISH_TOKEN": "",
}


@contextlib.contextmanager
def ended_by_sigint():
    """What is started in here is, even if it is ignored here: by a script's `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class CommandLineTestCase(ServerTestCase):
    async def run_command(
        self,
        *arguments,
        environment=(),
        program=None,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ):
        """Start the program; its output is read by the test."""
        program = program or [os.path.join(compiled(), "sse_server.pyc")]
        with ended_by_sigint():
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *program,
                *arguments,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=compiled(),
                env={**os.environ, **ENVIRONMENT, **dict(environment)},
                limit=2**22,
            )
        self.addAsyncCleanup(self.kill, process)
        return process

    async def kill(self, process):
        self._close_clients()
        if process.returncode is None:
            process.kill()
        await process.communicate()

    async def finish(self, process, input=None):
        """The exit status and what it said on standard error."""
        _, err = await asyncio.wait_for(process.communicate(input), DEADLINE)
        return process.returncode, err.decode()

    async def end(self, process):
        """What it said on standard error, when it has ended in order."""
        process.terminate()
        status, err = await self.finish(process)
        self.assertEqual(status, 0, err)
        return err

    async def serve(self, *arguments, **options):
        """The running program and its port."""
        process = await self.run_command("--port", "0", *arguments, **options)
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        listening = re.fullmatch(
            rb"Listening on (https?)://localhost:([0-9]+)/sse\n", line
        )
        if not listening:
            self.fail(f"{line} {await process.stderr.read()}")
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        self.assertRegex(line, rb"\AWatch it: curl -N .+/sse.*, or open it")
        return process, int(listening[2])

    async def watch(self, port, target="/sse", **options):
        client = await self.visit(port, **options)
        return await client.open(ask(target))

    async def errors_until(self, process, pattern):
        """What it says on standard error up to a line that matches."""
        found = []
        while not found or not re.search(pattern, found[-1]):
            line = await asyncio.wait_for(process.stderr.readline(), DEADLINE)
            self.assertTrue(line, f"no {pattern} in {found}")
            found.append(line.decode())
        return found


@unittest.skipIf(sqlite3 is None, "this Python has no sqlite3")
class CommandLineFileTest(CommandLineTestCase):
    """`--history-file`."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "events.db")

    async def test_a_restart_goes_on(self):
        last = None
        for count in range(3):
            process, port = await self.serve("--history-file", self.path, "-")
            process.stdin.write(b"%d\n" % count)
            client = await self.watch(
                port, f"/sse?last_event_id={last}" if last else "/sse?replay=all"
            )
            self.assertEqual(await client.data(1), [str(count)])
            last = client.decoder.last_event_id
            (process.kill if count == 1 else process.terminate)()
            await self.finish(process)
        self.assertRegex(last, "^[0-9a-f]{8}-3$")

    async def test_a_file_that_cannot_be_used_is_one_line(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute("CREATE TABLE cookies (name TEXT)")
        process = await self.run_command("--port", "0", "--history-file", self.path)
        status, error = await self.finish(process)
        fault = "file is not a database of sse_server; it belongs to another program"
        text = f"sse_server: history file {self.path!r}: {fault}, or is damaged; "
        self.assertEqual((status, error), (1, text + "name another file\n"))

    async def test_lines_wait_while_the_file_is_locked(self):
        program = (
            "import sys, time, sse_server\n"
            "sse_server._FILE_WAIT_SECONDS = 0.01\n"
            "sleep = time.sleep\n"
            "time.sleep = lambda seconds: sleep(seconds / 20)\n"
            "sys.exit(sse_server.main())"
        )
        options = "--history-file", self.path, "-"
        process, port = await self.serve(*options, program=["-c", program])
        client = await self.watch(port)
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            process.stdin.write(b"1\n2\n")
            errors = await self.errors_until(process, "database is locked")
        self.assertNotIn("Traceback", "".join(errors))
        self.assertEqual(await client.data(2), ["1", "2"])
        process.terminate()
        await self.finish(process)


class TerminationTest(CommandLineTestCase):
    """SIGTERM and Ctrl-C in programs of one's own, which only have a `with` block."""

    ASYNC = """
import asyncio, sse_server
async def main():
    async with sse_server.SSEServer("127.0.0.1", 0) as server:
        print(server.port, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    FOREVER = """
import asyncio, sse_server
async def main():
    async with sse_server.SSEServer("127.0.0.1", 0) as server:
        print(server.port, flush=True)
        await server.serve_forever()
asyncio.run(main())
"""
    ALONE = """
import asyncio, sse_server
async def main():
    server = sse_server.SSEServer("127.0.0.1", 0)
    serving = asyncio.ensure_future(server.serve_forever())
    while not server.port:
        await asyncio.sleep(0)
    print(server.port, flush=True)
    await serving
asyncio.run(main())
"""
    TOGETHER = """
import asyncio, sse_server
async def main():
    servers = [sse_server.SSEServer("127.0.0.1", 0) for _ in range(2)]
    serving = [asyncio.ensure_future(each.serve_forever()) for each in servers]
    while not all(each.port for each in servers):
        await asyncio.sleep(0)
    print(*[each.port for each in servers], flush=True)
    await asyncio.wait(serving)
asyncio.run(main())
"""
    ONE_AFTER_THE_OTHER = """
import asyncio, contextlib, sse_server
async def main():
    one, two = (sse_server.SSEServer("127.0.0.1", 0) for _ in range(2))
    serving = [asyncio.ensure_future(each.serve_forever()) for each in (one, two)]
    while not two.port:
        await asyncio.sleep(0)
    await one.close()
    with contextlib.suppress(RuntimeError):  # it had not begun to serve
        await serving[0]
    print(two.port, flush=True)
    await serving[1]
asyncio.run(main())
"""
    THREAD = """
import time, sse_server
with sse_server.SSEServer("127.0.0.1", 0) as server:
    print(server.port, flush=True)
    time.sleep(60)
"""
    STUCK = """
import time, sse_server
with sse_server.SSEServer("127.0.0.1", 0) as server:
    try:
        print(server.port, flush=True)
        time.sleep(60)
    finally:
        print("stuck", flush=True)
        time.sleep(60)
"""
    OWN_HANDLER = (
        """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
"""
        + THREAD
    )
    LOGGING = """
import io, logging, os, signal, sys
class Raw(io.FileIO):
    def write(self, data):
        if b" joined; " in data.tobytes():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(data)
raw = io.BufferedWriter(Raw(2, "w", closefd=False))
stream = io.TextIOWrapper(raw, line_buffering=True)
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=stream)
"""
    ENDING = """
import asyncio, sys, sse_server
def publish(server):
    print(server.port, flush=True)
    sys.stdin.readline()
    for _ in range(8):
        server.publish(2**20 * "x")
async def main():
    async with sse_server.SSEServer("127.0.0.1", 0, shutdown_timeout=60) as server:
        await asyncio.to_thread(publish, server)
def in_thread():
    with sse_server.SSEServer("127.0.0.1", 0, shutdown_timeout=60) as server:
        publish(server)
"""
    FORKED = """
import multiprocessing, os, signal, time
multiprocessing.set_start_method("fork")
import sse_server
def work(ready):
    ready.set()
    time.sleep(60)
with sse_server.SSEServer("127.0.0.1", 0) as server:
    ready = multiprocessing.Event()
    child = multiprocessing.Process(target=work, args=(ready,))
    child.start()
    ready.wait()
    child.terminate()
    child.join()
    print(server.port, child.exitcode, flush=True)
    time.sleep(60)
"""

    async def run_program(self, text):
        process = await self.run_command(program=["-c", text])
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        self.assertTrue(line, "it did not start")
        port, *more = line.split()
        return process, await self.watch(int(port)), more

    async def test_sigterm_ends_each_block_in_order(self):
        for program in (self.ASYNC, self.FOREVER, self.THREAD):
            with self.subTest(program=program):
                process, client, _ = await self.run_program(program)
                process.send_signal(signal.SIGTERM)
                self.assertEqual(await client.rest(), [])
                # At the beginning, and in the end when to come back.
                self.assertEqual(client.content.count(b"retry: "), 2)
                self.assertEqual(await self.finish(process), (0, ""))

    async def test_serve_forever_returns_at_either_signal(self):
        """The program goes on after it, to its own end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            for program in (self.FOREVER, self.ALONE):
                with self.subTest(number=number, program=program), ended_by_sigint():
                    text = program + "print('done')\n"
                    process, client, _ = await self.run_program(text)
                    process.send_signal(number)
                    self.assertEqual(await client.rest(), [])
                    self.assertEqual(await process.stdout.readline(), b"done\n")
                    self.assertEqual(await self.finish(process), (0, ""))

    async def test_a_signal_ends_all_servers_of_a_program(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for program in (self.TOGETHER, self.ONE_AFTER_THE_OTHER):
                with self.subTest(number=number, program=program), ended_by_sigint():
                    text = program + "print('done')\n"
                    process, client, more = await self.run_program(text)
                    clients = [client] + [await self.watch(int(port)) for port in more]
                    process.send_signal(number)
                    for client in clients:
                        self.assertEqual(await client.rest(), [])
                    self.assertEqual(await process.stdout.readline(), b"done\n")
                    self.assertEqual(await self.finish(process), (0, ""))

    async def test_a_second_sigterm_ends_it_at_once(self):
        process, _, _ = await self.run_program(self.STUCK)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.finish(process), (-signal.SIGTERM, ""))

    async def test_a_signal_that_comes_when_the_block_ends_by_itself(self):
        """What ends it goes on: a client that is behind gets everything."""
        for call in ("asyncio.run(main())", "in_thread()"):
            with self.subTest(call=call):
                process = await self.run_command(program=["-c", self.ENDING + call])
                port = int(await process.stdout.readline())
                client, other = [await self.watch(port) for _ in range(2)]
                process.stdin.write(b"\n")
                self.assertEqual(len(await other.rest()), 8)  # the server ends
                process.send_signal(signal.SIGTERM)
                self.assertEqual(len(await client.rest()), 8)
                self.assertEqual(await self.finish(process), (0, ""))

    async def test_a_signal_that_comes_while_something_is_logged(self):
        """A stream's buffer refuses to be written to by who has interrupted a write."""
        process, client, _ = await self.run_program(self.LOGGING + self.FOREVER)
        self.assertEqual(await client.rest(), [])
        status, err = await self.finish(process)
        self.assertEqual(status, 0, err)
        self.assertRegex(err, r"\A.* joined; 1 connected\nSIGTERM: ending\n.*\n\Z")

    async def test_a_program_that_handles_sigterm_keeps_its_handler(self):
        process, client, _ = await self.run_program(self.OWN_HANDLER)
        process.send_signal(signal.SIGTERM)
        await client.rest()
        self.assertEqual(await self.finish(process), (7, ""))

    async def test_after_the_block_sigterm_is_what_it_was(self):
        # Another test may have left a server without leaving its block.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        server = SSEServer("127.0.0.1", 0)
        async with server:
            self.assertNotEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
            async with server:  # as serve_forever() does
                pass
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
        with SSEServer("127.0.0.1", 0):
            self.assertNotEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)

    async def test_a_handler_that_is_set_within_the_block_stays(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGTERM, signal.SIG_DFL)
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        async with SSEServer(port=None):
            loop.add_signal_handler(signal.SIGTERM, came.set)
        self.assertNotEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(came.wait(), DEADLINE)
        loop.remove_signal_handler(signal.SIGTERM)
        with SSEServer(port=None):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_IGN)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork")
    async def test_a_forked_child_is_ended_by_sigterm_and_its_parent_is_not(self):
        process, client, (status,) = await self.run_program(self.FORKED)
        self.assertEqual(int(status), -signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await client.rest(), [])
        self.assertEqual(await self.finish(process), (0, ""))


class CommandLineTest(CommandLineTestCase):
    async def test_it_says_where_the_events_can_be_watched(self):
        channel = ("--channel", "a b")
        process = await self.run_command("--port=0", "--path=/live", *channel)
        first, second = [await process.stdout.readline() for _ in range(2)]
        url = first.decode().split()[-1]
        self.assertRegex(url, "/live$")
        watched = f'"{url}?channel=a+b"'
        hint = f"Watch it: curl -N {watched}, or open it in a browser\n"
        self.assertEqual(second.decode(), hint)
        client = await self.watch(urllib.parse.urlsplit(url).port, "/live?channel=a+b")
        self.assertRegex((await client.events(1))[0].data, TIMESTAMP)

    async def test_a_clock_that_cannot_be_published_is_reported(self):
        process, _ = await self.serve("--max-event-bytes=9")
        await self.errors_until(process, "data has [0-9]+ bytes; allowed are 9$")

    async def test_the_demo_is_a_clock(self):
        process, port = await self.serve(program=[os.path.abspath(sse_server.__file__)])
        client = await self.watch(port, "/sse?replay=all")
        other = await self.watch(port, "/sse?replay=all")
        joined = datetime.datetime.now(datetime.timezone.utc)
        events, times = [], []
        while len(times) < 2 or times[-1] <= joined:
            events += await client.events(1)
            self.assertRegex(events[-1].data, rf"\A{TIMESTAMP}\Z")
            text = json.loads(events[-1].data)["timestamp"].replace("Z", "+00:00")
            times.append(datetime.datetime.fromisoformat(text))
        self.assertEqual(await other.events(len(events)), events)
        self.assertEqual(json.loads(events[-1].data)["clients"], 2)
        self.assertTrue(0.5 < (times[1] - times[0]).total_seconds() < 1.9)
        age = datetime.datetime.now(datetime.timezone.utc) - times[-1]
        self.assertTrue(-1 < age.total_seconds() < DEADLINE)
        err = await self.end(process)
        self.assertIn(" joined; 1 connected\n", err)
        self.assertRegex(err, r"SIGTERM: ending\n(?s:.*); 0 remain\n")

    async def test_signals_end_it_politely(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process, port = await self.serve("--restart-retry=50", "-")
            clients = [await self.watch(port) for _ in range(20)]
            process.send_signal(number)
            status, err = await self.finish(process)
            self.assertEqual(status, 0, err)
            self.assertNotIn("Traceback", err)
            self.assertIn(f"{number.name}: ending\n", err)
            for client in clients:
                self.assertEqual(await client.rest(), [])
                self.assertTrue(25_000 <= client.decoder.retry <= 75_000)

    async def test_a_second_signal_ends_it_at_once(self):
        process, port = await self.serve()
        client = await self.visit(port)
        await client.send(b"GET")
        await self.watch(port)
        process.send_signal(signal.SIGTERM)
        await self.errors_until(process, "SIGTERM: ending")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, err = await self.finish(process)
        self.assertEqual(status, -signal.SIGINT, err)
        self.assertLess(time.monotonic() - began, 3)

    async def test_while_it_ends_the_clock_says_nothing(self):
        """With a client that holds up the end for longer than its second, of 0.1 s."""
        program = (
            "import asyncio, sys, sse_server\n"
            "sleep = asyncio.sleep\n"
            "asyncio.sleep = lambda seconds: sleep(seconds / 10)\n"
            "sse_server.SSEServer.__init__.__kwdefaults__['shutdown_timeout'] = 0.3\n"
            "sys.exit(sse_server.main())\n"
        )
        process, port = await self.serve(program=["-c", program])
        client = await self.visit(port)
        await client.send(b"GET")
        await self.watch(port)
        err = await self.end(process)
        self.assertNotIn("Traceback", err)
        self.assertNotIn("never retrieved", err)

    async def test_broadcasting_that_fails_is_not_reported_as_the_start(self):
        program = (
            "import sys, sse_server\n"
            "def read(*arguments):\n"
            "    raise OSError('the reason')\n"
            "sse_server._EventLog.read = read\n"
            "sys.exit(sse_server.main())\n"
        )
        process, _ = await self.serve(program=["-c", program])
        status, err = await self.finish(process)
        self.assertEqual(status, 1)
        self.assertNotIn("cannot listen", err)
        self.assertTrue(err.endswith("OSError: the reason\n"), err)

    def main(self, *arguments):
        """Run it in this process: (exit status, standard output, standard error)."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT))
            stack.enter_context(mock.patch.object(logging, "basicConfig"))
            with contextlib.suppress(ImportError):
                import resource

                stack.enter_context(mock.patch.object(resource, "setrlimit"))
            out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            err = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            try:
                status = sse_server.main(arguments)
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    OLD_PYTHON = """
import runpy, sys
sys.version_info, sys.version = (3, 8, 18), "3.8.18 (main)"
path, = sys.argv[1:]
try:
    runpy.run_path(path, run_name="sse_server")
except ImportError as error:
    print(error)
runpy.run_path(path, run_name="__main__")
"""

    async def test_an_older_python_is_told_in_one_line(self):
        path = os.path.abspath(sse_server.__file__)
        process = await self.run_command(program=["-c", self.OLD_PYTHON, path])
        text = "sse_server needs Python 3.9 or later; this is 3.8.18\n"
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        seen = process.returncode, out.decode(), err.decode()
        self.assertEqual(seen, (1, text, text))

    def test_older_pythons_come_as_far_as_that(self):
        """If the parser refuses a later line, that one is not reached."""
        with open(sse_server.__file__, encoding="utf-8") as file:
            ast.parse(file.read(), feature_version=(3, 7))

    async def test_arguments_that_are_refused(self):
        """One clear line and exit status 2."""
        name = "{} has {} bytes; allowed are 1 to 256 (UTF-8)".format
        cases = {
            "--port 65536": "port is 65536; allowed are integers from 0 to 65535",
            "--port -1": "port is -1; allowed are integers from 0 to 65535",
            "--history -1": "history is -1; allowed are integers from 0",
            "--event gap": "event 'gap' is the server's own; see publish_gap()",
            "--heartbeat 0": "heartbeat is 0.0; allowed are seconds above 0",
            "--lifetime 0": "lifetime is 0.0; allowed are seconds above 0",
            "--restart-retry 0": "restart_retry is 0.0; allowed are seconds above 0",
            "--heartbeat nan": "heartbeat is nan; allowed are seconds above 0",
            "--max-connections 0": "max_connections is 0; allowed are integers from 1",
            "--max-event-bytes 0": "max_event_bytes is 0; allowed are integers from 1",
            "--event=": name("event", 0),
            f"--channel {'x' * 257}": name("channel", 257),
            "- --lossless --history -1": "history is -1; allowed are integers from 0",
            "--publish-token=s\xe9": rf"publish_token has '\xe9' at index 1; {VISIBLE}",
            "--publish-token=": "--publish-token is empty",
            "a.log": "'a.log' is no option; to publish a file: "
            "tail -f a.log | python sse_server.py -",
            "9000": "'9000' is no option; --port 9000?",
            "--lossless": "--lossless goes with -, the lines of standard input",
            **{
                f"--publish-token a {option}": "with a token, a POST says its "
                f"{option[2:].split('=')[0]}; {option.split('=')[0]} is for -"
                for option in ("--event=a", "--channel=a", "--retain")
            },
            "--keyfile key.pem": "--keyfile goes with --certfile",
            "--verbose --quiet": "argument --quiet: not allowed with argument --verbose",
            "--what": "unrecognized arguments: --what",
        }
        for line, text in cases.items():
            with self.subTest(line):
                error = f"sse_server: {text}; --help shows all options\n"
                self.assertEqual(self.main(*line.split(" ")), (2, "", error))

    async def test_a_refusal_as_the_shell_sees_it(self):
        process = await self.run_command("--port", "1e3")
        status, err = await self.finish(process)
        expected = "sse_server: argument --port: invalid int value: '1e3'; --help"
        self.assertEqual((status, err.count("\n")), (2, 1))
        self.assertTrue(err.startswith(expected), err)

    async def test_what_cannot_be_served(self):
        """One clear line and exit status 1."""
        taken = await self.start()
        port = taken.port
        process = await self.run_command("--host=127.0.0.1", f"--port={port}")
        status, err = await self.finish(process)
        text = f"sse_server: cannot listen on 127.0.0.1:{port}: "
        self.assertEqual((status, err.count("\n")), (1, 1), err)
        self.assertTrue(err.startswith(text), err)
        self.assertIn("Address already in use", err)
        cases = {
            "--host 192.0.2.1 --port 0": "cannot listen on 192.0.2.1:0: ",
            "--host a..b --port 0": "cannot listen on a..b:0: ",
            "--certfile /nowhere": "cannot use /nowhere: ",
            "--page /nowhere": "cannot read /nowhere: ",
            f"--certfile {__file__}": f"cannot use {__file__}: ",
        }
        for line, text in cases.items():
            with self.subTest(line):
                arguments = line.split(" ")
                status, out, err = await self.in_thread(self.main, *arguments)
                self.assertEqual((status, out), (1, ""))
                self.assertRegex(err, rf"\Asse_server: {re.escape(text)}.+\n\Z")

    async def test_a_page(self):
        process, port = await self.serve("--page", __file__)
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        self.assertRegex(line, rb"\AThe page: http://.+:%d/\n\Z" % port)
        client = await self.visit(port)
        answer = await client.request(ask("/"))
        self.assertEqual(answer.body, pathlib.Path(__file__).read_bytes())

    async def test_help_and_version(self):
        status, text, error = self.main("--help")
        self.assertEqual((status, error), (0, ""))
        for option in OPTIONS:
            self.assertRegex(text, rf"(?m)^  {option}\b")
        flat = " ".join(text.split())
        for default in ("8080", "localhost", "1000", "15.0", "1048576"):
            self.assertIn(f"({default})", flat)
        self.assertNotIn("None", text)
        version = f"sse_server {sse_server.__version__}\n"
        self.assertEqual(self.main("--version"), (0, version, ""))

    async def test_the_options_reach_the_server(self):
        _, port = await self.serve(
            "--heartbeat=0.05",
            "--max-connections=2",
            "--cors-origin=https://a.example",
            "--cors-origin=https://b.example",
            "--publish-token=secret",
            "--max-event-bytes=40",
            "--history=1",
            "--replay=all",
            "--allow-host=a.example",
            "--allow-host=localhost",
            "--verbose",
        )
        silent = await self.watch(port)
        while silent.content.count(b":\n") < 2:
            await silent.read_stream()
        client = await self.visit(port)
        answer = await client.request(
            post("/sse", b"x" * 40, "Origin: https://b.example")
        )
        self.assertEqual(answer.status, 200)
        allowed = answer.field("access-control-allow-origin")
        self.assertEqual(allowed, "https://b.example")
        self.assertEqual(await silent.data(1), ["x" * 40])
        answer = await client.request(post("/sse", b"x" * 41))
        self.assertEqual(answer.status, 413)
        client.close()
        late = await self.admitted(port, "/sse")
        self.assertEqual(await late.data(1), ["x" * 40])
        full = await self.visit(port)
        self.assertEqual((await full.request(ask("/"))).status, 503)

    async def test_a_stream_has_a_lifetime(self):
        _, port = await self.serve("--lifetime=0.05", "-")
        self.assertEqual(await (await self.watch(port)).rest(), [])

    async def test_the_clock(self):
        _, port = await self.serve("--channel=clock", "--event=tick", "--retain")
        first = await self.watch(port, "/sse?channel=clock")
        (event,) = await first.events(1)
        self.assertEqual(event.type, "tick")
        late = await self.watch(port, "/sse?channel=clock")
        (retained,) = await late.events(1)
        self.assertEqual(retained.type, "tick")

    async def test_another_host_gets_421(self):
        _, port = await self.serve("--allow-host=a.example")
        for host, status in (("a.example", 200), ("b.example", 421)):
            client = await self.visit(port)
            data = f"HEAD /sse HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            answer = await client.request(data, head_only=True)
            self.assertEqual(answer.status, status)

    async def admitted(self, port, target):
        """A stream, as soon as there is room for it."""
        deadline = time.monotonic() + DEADLINE
        while True:
            self.assertLess(time.monotonic(), deadline, "no room")
            with contextlib.suppress(AssertionError, ConnectionError, EOFError):
                return await self.watch(port, target)

    async def test_the_token_may_come_from_the_environment(self):
        process, port = await self.serve(
            "--verbose",
            environment={"SSE_PUBLISH_TOKEN": "my:secret"},
        )
        line = await process.stdout.readline()
        self.assertEqual(
            line, b"The clock is off: events come by POST with the token\n"
        )
        client = await self.visit(port)
        answer = await client.request(post("/sse", b"a", token="my:secret"))
        self.assertEqual(answer.status, 200)
        answer = await client.request(post("/sse/", b"a", token=None))
        self.assertEqual(answer.body, b"ok")
        answer = await client.request(post("/sse", b"a", token="secret"))
        self.assertEqual(answer.status, 401)
        client.close()
        process.terminate()
        status, err = await self.finish(process)
        self.assertEqual(status, 0)
        self.assertNotIn("secret", err)
        # Why a client may wonder is logged.
        self.assertIn(": POST to '/sse/' publishes nothing; publish at /sse\n", err)
        self.assertIn(": 401 publishing needs Authorization", err)

    async def test_quiet_says_nothing(self):
        with contextlib.closing(socket.socket()) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        process = await self.run_command(
            "--quiet", "--host=127.0.0.1", f"--port={port}"
        )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                client = await self.watch(port)
                break
            except ConnectionRefusedError:
                self.assertLess(time.monotonic(), deadline)
                await asyncio.sleep(0.01)
        client.close()
        process.terminate()
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        self.assertEqual((process.returncode, out, err), (0, b"", b""))

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full here")
    async def test_it_serves_where_its_greeting_cannot_be_written(self):
        full = os.open("/dev/full", os.O_WRONLY)
        self.addCleanup(os.close, full)
        process = await self.run_command(
            "-", "--port=0", stdin=subprocess.DEVNULL, stdout=full
        )
        await self.errors_until(process, "still serving")
        err = await self.end(process)
        self.assertRegex(err, r"\A.+ SIGTERM: ending\n\Z")

    @unittest.skipUnless(OPENSSL, "the openssl program is not here")
    async def test_https(self):
        certfile, keyfile = certificate()
        _, port = await self.serve(
            "--retain", f"--certfile={certfile}", f"--keyfile={keyfile}"
        )
        client = await self.visit(port, TLSClient)
        await client.open(ask())
        self.assertRegex((await client.data(1))[0], TIMESTAMP)


class StandardInputTest(CommandLineTestCase):
    async def test_each_line_is_an_event(self):
        process, port = await self.serve(
            "-", "--event=line", "--channel=log", "--max-event-bytes=20"
        )
        client = await self.watch(port, "/sse?channel=log")
        lines = [
            b"plain\n",
            b"crlf\r\n",
            b"\n",
            "é\u2028\x85\x0b漢\n".encode(),
            b"a\rb\n",
            b"bad \xff\xc3\n",
            b"x" * 20 + b"\n",
            b"y" * 20 + b"\r\n",
            b"z" * 21 + b"\n",
            b"w" * 3_000_000 + b"\n",
            b"\xff" * 10 + b"\n",
            b'{"n": 1}\n',
        ]
        process.stdin.write(b"".join(lines))
        await process.stdin.drain()
        expected = [
            "plain",
            "crlf",
            "",
            "é\u2028\x85\x0b漢",
            "a",
            "b",
            "bad \ufffd\ufffd",
            "x" * 20,
            "y" * 20,
            *['{"reason":"a line was too long"}'] * 3,
            '{"n": 1}',
        ]
        events = await client.events(len(expected))
        self.assertEqual([event.data for event in events], expected)
        types = ["line"] * 9 + ["gap"] * 3 + ["line"]
        self.assertEqual([event.type for event in events], types)
        process.stdin.write(b"half")
        await process.stdin.drain()
        process.stdin.write(b" and half\nlast")
        self.assertEqual(await client.data(1), ["half and half"])
        process.stdin.close()
        self.assertEqual(await client.data(1), ["last"])
        found = "".join(await self.errors_until(process, "still serving"))
        for fault in (
            " of 21 bytes; allowed: 20 (--max-event-bytes)\n",
            " of 3000000 bytes; allowed: 20 (--max-event-bytes)\n",
            ": data has 30 bytes; allowed are 20 (--max-event-bytes)\n",
        ):
            self.assertIn(f"skipped a line{fault}", found)
        self.assertEqual(found.count("skipped"), 3)
        again = await self.watch(port, "/sse?channel=log&lastEventId=x")
        found = await again.data(len(expected) + 3)
        self.assertEqual(found[1:], [*expected, "half and half", "last"])
        await self.end(process)

    async def test_the_progress_of_a_program_is_seen_while_it_runs(self):
        """Such a program writes a CR before each state, or after it."""
        process, port = await self.serve("-")
        client = await self.watch(port)
        for written, seen in (
            (b"\r#   1 %\r##", ["#   1 %"]),
            (b"  2 %\r", ["##  2 %"]),
            (b"\r###  3 %\r\r", ["###  3 %"]),
            (b"\nready\r", ["", "ready"]),
            (b"\n\r\n\n\rlast", ["", ""]),
        ):
            process.stdin.write(written)
            self.assertEqual(await client.data(len(seen)), seen)
        process.stdin.close()
        self.assertEqual(await client.data(1), ["last"])

    def test_the_lines_are_the_same_however_the_input_comes_in_pieces(self):
        content = b"\r\n\r\na\r\n\r\n\n\rb\r\r\r\nc\n\r\n\r"
        lines = [b"", b"", b"a", b"", b"", b"b", b"", b"c", b""]
        for pieces in slicings(content):
            read = mock.Mock(side_effect=[*pieces, b""])
            with (
                mock.patch.object(os, "read", read),
                mock.patch.object(os, "set_blocking"),
                mock.patch.object(sys, "stdin", mock.Mock()),
            ):
                self.assertEqual([*sse_server._read_lines(10)], lines, pieces)

    async def test_a_byte_order_mark_at_the_begin_is_dropped(self):
        process, port = await self.serve("-")
        client = await self.watch(port)
        process.stdin.write(b"\xef\xbb\xbf{}\n\xef\xbb\xbf1\n")
        self.assertEqual(await client.data(2), ["{}", "\ufeff1"])

    async def test_a_stalled_viewer_holds_up_neither_the_pipe_nor_the_others(self):
        process, port = await self.serve("-", "--history=100000")
        await self.watch(port, receive_buffer=BUFFER)  # and does not read
        reading = await self.watch(port)
        count = 400
        data = b"".join(b"%d %b\n" % (n, b"x" * 20_000) for n in range(count))

        async def feed():
            process.stdin.write(data)
            await process.stdin.drain()
            process.stdin.close()

        feeding = asyncio.ensure_future(feed())
        numbers = [int(d.split()[0]) for d in await reading.data(count)]
        self.assertEqual(numbers, list(range(count)))
        await asyncio.wait_for(feeding, DEADLINE)

    async def test_lossless_waits_for_the_slowest(self):
        process, port = await self.serve("-", "--lossless", "--history=3")
        slow = await self.watch(port, receive_buffer=BUFFER)
        fast = await self.watch(port)
        count = 120
        data = b"".join(b"%d %b\n" % (n, b"x" * 60_000) for n in range(count))
        process.stdin.write(data)
        process.stdin.close()
        reading = asyncio.ensure_future(fast.data(count))
        found = []
        while len(found) < count:
            found += await slow.data(1)
            await asyncio.sleep(0.001)  # the pace of the client
        for data in (found, await reading):
            numbers = [int(line.split()[0]) for line in data]
            self.assertEqual(numbers, list(range(count)))

    async def test_lossless_without_a_history(self):
        process, port = await self.serve("-", "--lossless", "--history=0")
        slow = await self.watch(port, receive_buffer=BUFFER)
        data = b"".join(b"%d %b\n" % (n, b"x" * 80_000) for n in range(100))
        process.stdin.write(data)
        process.stdin.close()
        for _ in range(100):
            self.assertEqual((await slow.events(1))[0].type, "message")
            await asyncio.sleep(0.001)  # the pace of the client

    async def test_a_signal_while_lines_pour_in(self):
        with tempfile.TemporaryFile() as file:
            file.write(b"line\n" * 3_000_000)
            file.seek(0)
            process, port = await self.serve("-", stdin=file)
        client = await self.watch(port)
        await client.events(1000)
        process.terminate()
        rest, (status, err) = await asyncio.gather(client.rest(), self.finish(process))
        self.assertEqual(status, 0, err)
        self.assertNotIn("Traceback", err)
        self.assertNotIn("never awaited", err)
        self.assertNotIn("end of the input", err)
        # It may be told that it is too slow for a pipe of three million lines.
        kinds = {(event.type, event.data) for event in rest}
        self.assertLessEqual(
            kinds, {("message", "line"), ("gap", '{"reason":"history"}')}
        )

    @unittest.skipUnless(hasattr(os, "set_blocking"), "Windows")
    async def test_an_input_that_is_set_not_to_block(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        os.set_blocking(reading, False)
        _, port = await self.serve("-", stdin=reading)
        os.close(reading)
        client = await self.watch(port)
        for number in range(3):
            os.write(writing, b"line %d\nhalf " % number)
            self.assertRegex((await client.data(1))[0], rf"\A(half )?line {number}\Z")

    async def test_without_a_standard_input(self):
        program = (
            "import os, sys\n"
            "os.close(0)\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        )
        path = os.path.abspath(sse_server.__file__)
        process, port = await self.serve("-", program=["-c", program, path])
        client = await self.watch(port)
        err = await self.end(process)
        self.assertNotIn("Traceback", err)
        self.assertEqual(await client.rest(), [])


# ------------------------------------------------------------------------------------
# README.md: its examples as they stand there, and the recipes that need no packages.
# The other recipes are run by .ci/run.
# ------------------------------------------------------------------------------------

FOLDER = os.path.dirname(os.path.abspath(__file__))
RECIPES = os.path.join(FOLDER, ".recipes")


def read_text(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


class ReadmeTest(ServerTestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = read_text(FOLDER, "README.md")
        blocks = re.findall(
            r"(?:<!-- (example|recipe): (\S+) -->\n)?```python\n(.*?)```",
            cls.text,
            re.DOTALL,
        )
        (cls.page,) = re.findall(r"```html\n(.*?)```", cls.text, re.DOTALL)
        cls.unmarked = [code for kind, _, code in blocks if not kind]
        cls.examples = {name: code for kind, name, code in blocks if kind == "example"}

    def setUp(self):
        defaults = mock.patch.object(
            SSEServer.__init__, "__defaults__", ("localhost", 0)
        )
        defaults.start()
        self.addCleanup(defaults.stop)

    def run_example(self, name, **names):
        code = compile(self.examples[name], f"README.md: {name}", "exec")
        exec(code, names)  # noqa: S102 - it is what a reader would run
        return names

    def run_recipe(self, name):
        code = compile(read_text(RECIPES, name), f".recipes/{name}", "exec")
        names = {"__name__": name}
        exec(code, names)  # noqa: S102 - it is what a reader would run
        return names

    async def serve_recipe(self, name):
        names = self.run_recipe(name)
        await names["server"].__aenter__()
        self.addAsyncCleanup(self._stop, names["server"])
        return names

    def test_every_block_is_run_by_somebody(self):
        tested = {"asyncio", "thread", "channel", "authorize", "disconnect", "forget"}
        self.assertEqual((set(self.examples), self.unmarked), (tested, []))

    def test_every_link_leads_somewhere(self):
        for path in ("README.md", ".recipes/README.md", ".ci/bench/README.md"):
            for file, heading in self.links_of(path):
                target = os.path.join(os.path.dirname(path), file) if file else path
                with self.subTest(f"{path}: {file}#{heading}"):
                    self.assertTrue(os.path.exists(os.path.join(FOLDER, target)))
                    if heading:
                        self.assertIn(heading, self.headings_of(target))

    def links_of(self, path):
        """(file, heading) each, without those to other sites."""
        targets = re.findall(r"\]\((?!https?:)([^)]+)\)", read_text(FOLDER, path))
        return [target.partition("#")[::2] for target in targets]

    def headings_of(self, path):
        """As they are named in links."""
        headings = re.findall("^#+ (.*)", read_text(FOLDER, path), re.MULTILINE)
        return [
            re.sub("[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings
        ]

    def test_every_recipe_is_listed(self):
        links = {file for file, _ in self.links_of(".recipes/README.md")}
        listed = {file for file in links if file and "/" not in file}
        found = {
            name for name in os.listdir(RECIPES) if not name.startswith((".", "_"))
        }
        self.assertEqual(found - {"README.md"}, listed)

    async def serve_example(self, name):
        """Run it as a program, beside the page of README; return its process and port."""
        program = textwrap.dedent(
            """
            import asyncio, sys, sse_server
            sleep = asyncio.sleep
            asyncio.sleep = lambda seconds: sleep(seconds / 50)
            server = sse_server.SSEServer
            server.__init__.__defaults__ = ("localhost", 0)
            publish = server.publish
            def publish_and_say(self, *arguments, **options):
                print(self.port, flush=True)
                return publish(self, *arguments, **options)
            server.publish = publish_and_say
            exec(sys.argv[1])
            """
        )
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pathlib.Path(folder.name, "index.html").write_text(self.page, "utf-8")
        with ended_by_sigint():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, self.examples[name]),
                cwd=folder.name,
                env={**os.environ, "PYTHONPATH": compiled()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        port = 0
        while not port:  # it may publish before it listens
            line = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
            self.assertNotEqual(line, b"", "the example ended")
            port = int(line)
        return process, port

    async def test_the_first_examples_serve_and_end_at_a_signal(self):
        for name, event in (("asyncio", "temperature"), ("thread", "progress")):
            for number in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(f"{name}: {number.name}"):
                    process, port = await self.serve_example(name)
                    client = await (await self.visit(port)).open(ask())
                    self.assertEqual((await client.events(1))[0].type, event)
                    process.send_signal(number)
                    await client.rest()
                    _, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
                    self.assertEqual((process.returncode, errors), (0, b""))

    async def test_the_first_page_comes_from_the_server(self):
        process, port = await self.serve_example("asyncio")
        url = f"http://localhost:{port}/"
        page = await self.in_thread(lambda: urllib.request.urlopen(url).read().decode())
        self.assertEqual(page, self.page)
        process.terminate()
        await asyncio.wait_for(process.communicate(), DEADLINE)

    async def test_the_example_in_a_thread(self):
        entered, watched = threading.Event(), threading.Event()
        servers = []

        class Server(SSEServer):
            def __enter__(self):
                servers.append(super().__enter__())
                entered.set()
                watched.wait(DEADLINE)
                return self

        with (
            mock.patch.object(sse_server, "SSEServer", Server),
            mock.patch.object(time, "sleep"),
        ):
            running = asyncio.ensure_future(self.in_thread(self.run_example, "thread"))
            await self.in_thread(entered.wait, DEADLINE)
            client = await self.stream(servers[0])
            watched.set()
            await running
        events = await client.rest()
        expected = [("progress", f'{{"percent":{n}}}') for n in range(101)]
        found = [(event.type, event.data) for event in events]
        self.assertEqual(found, [*expected, ("done", "")])

    async def test_the_example_of_channels(self):
        server = await self.start()
        football = await self.stream(server, "/sse?channel=football")
        both = await self.stream(server, "/sse?channel=football&channel=news")
        others = await self.stream(server)
        self.run_example("channel", server=server)
        await server.close()
        for client, expected in ((football, 1), (both, 1), (others, 0)):
            self.assertEqual(len(await client.rest()), expected)

    async def test_the_examples_of_access(self):
        names = self.run_example("authorize")
        authorize = names["authorize"]
        self.assertEqual(authorize(get(b"Cookie: session=42")), ["jobs-42"])
        with self.assertRaises(HTTPError) as caught:
            authorize(get())
        self.assertEqual(caught.exception.status, 204)
        server = await self.start(authorize=authorize)
        clients = {
            session: await self.stream(server, "/sse", f"Cookie: session={session}")
            for session in (41, 42)
        }
        self.run_example("disconnect", **{**names, "server": server})
        self.assertEqual(await clients[42].rest(), [])
        server.publish("still here", channel="jobs-41")
        self.assertEqual(await clients[41].data(1), ["still here"])

    async def test_nobody_hears_the_job_of_another(self):
        authorize = self.run_example("authorize")["authorize"]
        server = await self.start(authorize=authorize)
        mine, other = "channel=jobs-41", "channel=jobs-42"
        for query, status in (
            ("", 200),
            (mine, 200),
            (f"{mine}&{mine}", 200),
            (f"{mine}&{other}", 403),
            (other, 403),
        ):
            data = ask(f"/sse?{query}", "Cookie: session=41", method="HEAD")
            answer = await self.ask(server, data, head_only=True)
            self.assertEqual(answer.status, status, query)

    async def test_the_recipe_of_a_test(self):
        test = self.run_recipe("test_hello.py")["HelloTest"]
        result = await self.in_thread(test("test_hello_is_published").run)
        self.assertEqual((result.testsRun, result.wasSuccessful()), (1, True))

    async def test_the_recipe_of_a_job(self):
        names = await self.serve_recipe("job_cookies.py")
        server = names["server"]
        mine = names["signed"]("7")
        for cookie, query, status in (
            (mine, "", 200),
            (mine, "?channel=job-7", 200),
            (mine, "?channel=job-8", 403),
            (mine.replace("7.", "8."), "", 403),
            ("", "", 403),
        ):
            data = ask(f"/sse{query}", f"Cookie: job={cookie}", method="HEAD")
            answer = await self.ask(server, data, head_only=True)
            self.assertEqual(answer.status, status, (cookie, query))
        names["report"]("8", 10)
        names["report"]("7", 50)
        client = await self.stream(server, "/sse", f"Cookie: job={mine}")
        (event,) = await client.events(1)
        self.assertEqual((event.type, event.data), ("progress", '{"percent":50}'))

    def test_the_options_are_those_of_the_command_line(self):
        actions = sse_server._argument_parser()._actions
        options = {option for action in actions for option in action.option_strings}
        text = self.text.partition("## The command line")[2].partition("##")[0]
        found = set(re.findall(r"`(--[a-z-]+)", text))
        self.assertEqual(found, options - {"-h"})

    async def test_the_example_of_what_is_kept_no_longer(self):
        server = await self.start()
        server.publish("kept", event="temperature", retain=True)
        self.run_example("forget", server=server)
        await server.drain()
        client = await self.stream(server)
        server.publish("new")
        self.assertEqual(await client.data(1), ["new"])

    async def test_the_recipe_of_following(self):
        follow = self.run_recipe("follow.py")["follow"]
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        options = {"history_file": f"{folder.name}/events.db", "restart_retry": 0.01}
        server = await self.start(**options)
        server.publish("before", channel="job")
        events = follow(server.url + "?channel=job")
        taking = asyncio.ensure_future(self.in_thread(next, events))
        await self.until_stats(server, live=1)
        server.publish("one\ntwo", channel="job", event="lines")
        self.assertEqual(await taking, ("lines", "one\ntwo"))
        await server.close()
        again = await self.start("127.0.0.1", server.port, **options)
        again.publish("while it was away", channel="job")
        self.assertEqual(
            await self.in_thread(next, events), ("message", "while it was away")
        )
        again.finish("job")
        self.assertIsNone(await self.in_thread(next, events, None))

    async def test_the_recipe_of_answers(self):
        async def tokens(prompt):
            try:
                for word in ("to ", prompt):
                    yield word
                await waiting[prompt].wait()
            finally:
                ended.append(prompt)
                waiting[prompt].set()

        ended, waiting = [], {name: asyncio.Event() for name in ("left", "right")}
        model = {"model": types.SimpleNamespace(tokens=tokens)}
        with mock.patch.dict(sys.modules, model):
            names = await self.serve_recipe("answers.py")
        server, targets = names["server"], {}
        names["PATIENCE"] = 0
        for prompt, event in waiting.items():
            targets[prompt] = f"/sse?channel=c-{prompt}&prompt={prompt}"
            client = await self.stream(server, targets[prompt])
            self.assertEqual(await client.data(3), ["", "to ", prompt])
            # It comes back, and its old connection ends after that.
            old, client = client, await self.stream(server, targets[prompt])
            old.close()
            await self.until_stats(server, live=1)
            self.assertEqual(ended, [])
            if prompt == "left":
                client.close()
            else:
                event.set()
                self.assertEqual(await client.rest(), [])
            await asyncio.wait_for(event.wait(), DEADLINE)
            self.assertEqual(ended.pop(), prompt)
        for query, status in (("channel=a", 403), ("prompt=a", 403)):
            data = ask(f"/sse?{query}", method="HEAD")
            answer = await self.ask(server, data, head_only=True)
            self.assertEqual(answer.status, status, query)

    async def test_the_recipe_of_presence(self):
        server = (await self.serve_recipe("presence.py"))["server"]
        ann = await self.stream(server, "/sse", "Cookie: user=ann")
        bob = await self.stream(server, "/sse", "Cookie: user=bob")
        came, left = (f'{{"user":"bob","here":{here}}}' for here in ("true", "false"))
        self.assertEqual(
            [(event.type, event.data) for event in await bob.events(2)],
            [("presence", came), ("online", '["ann","bob"]')],
        )
        second = await self.stream(server, "/sse", "Cookie: user=bob")
        await second.events(1)
        for client in (second, bob):
            client.close()
        self.assertEqual(
            [(event.type, event.data) for event in await ann.events(4)],
            [
                ("presence", '{"user":"ann","here":true}'),
                ("online", '["ann"]'),
                ("presence", came),
                ("presence", left),
            ],
        )
        stranger = await self.ask(server, ask("/sse"), head_only=True)
        self.assertEqual(stranger.status, 204)

    def test_the_limits_are_those_of_the_module(self):
        defaults = SSEServer.__init__.__kwdefaults__
        rows = re.findall(r"^\| (`[\w`, ]+) \| (.*?) \|", self.text, re.MULTILINE)
        limits = {
            name: text
            for names, text in rows
            for name in re.findall(r"\w+", names)
            if name in defaults
        }
        self.assertEqual(len(limits), 15)
        for name, value in {
            "history": "1000 events",
            "history_seconds": "`None`",
            "history_bytes": "16 MiB",
            "retained": "1000 events",
            "max_event_bytes": "1 MiB",
            "max_connections": "the limit of open files minus 64",
            "lifetime": "`None`",
        }.items():
            self.assertIn(value, limits.pop(name))
        for name, text in limits.items():
            self.assertIn(f"{defaults[name]:g} s", text, name)
        self.assertEqual((defaults["history"], defaults["retained"]), (1000, 1000))
        self.assertIsNone(defaults["history_seconds"])
        self.assertEqual(defaults["history_bytes"], 16 * 1024 * KIB)
        self.assertEqual(defaults["max_event_bytes"], 1024 * KIB)
        self.assertEqual(sse_server._RESERVED_DESCRIPTORS, 64)
        self.assertIn(f"{sse_server._MAX_NAME_BYTES} bytes", self.text)
        channels, parameters = sse_server._MAX_CHANNELS, sse_server._MAX_PARAMETERS
        self.assertIn(f"| {channels}, {parameters} |", self.text)
        self.assertIn(
            f"{sse_server._MAX_HEAD_BYTES // KIB} KiB, {sse_server._MAX_FIELDS} fields | 431",
            self.text,
        )


if __name__ == "__main__":
    unittest.main()
