#!/usr/bin/env python3
"""A Server-Sent Events server in one file that needs nothing but Python 3.9.

    python sse_server.py                     a clock at http://localhost:8080/sse
    tail -f app.log | python sse_server.py - each line an event

    async with SSEServer() as server:        in your own program; publish() may be
        server.publish({"temperature": 21})  called from a coroutine or any thread

It broadcasts events over HTTP (`text/event-stream`, HTML standard, section 9.2) to
everybody connected to /sse and answers 200 `ok` on every other path.

     publish(data) --> format_event --> log.append --> ring the bell     (any thread)
                                           |
                EventLog   ... [ 17  18  19  20  21  22 ]   the one buffer: bounded
                                  ^               ^         in events and in bytes
              behind: a tablet ---'               '--- sent: every live subscriber
              (its own position, its own task)         (one position for all of them)
                                           |
     GET /sse --> parse_request --> position of Last-Event-ID --> catch up --> live

The rules that the rest follows from:

1. A subscriber is a position in the log; it owns no queue.  The live ones share one
   position, `sent`, and the broadcaster moves it: it takes what was published since
   as one batch, encodes the batch once for each audience (the live subscribers who
   want identical bytes) and makes one `write` per subscriber.  It never waits for
   anybody.
2. A subscriber that resumes and one that is slow are the same thing: behind.  Its own
   task reads from its own position until that equals `sent`; then it joins the live
   ones, with no `await` between the comparison and the joining.
3. Losing is allowed, losing silently is not: a position that the log no longer holds,
   or an id it does not know, gets one event named `gap`, then what is held.
4. Every buffer has a bound and every wait a deadline.
5. Only the broadcaster writes to live subscribers, only its own task writes to one
   that is behind, and an event is always written whole.
6. Once a connection has become a stream, no coroutine waits on it: a `_Subscriber` is
   the protocol of its transport, so that data, the end of the input, a full buffer
   and a lost connection reach it as calls.

It does not do HTTP/2, certificates' renewal, WebSocket, sessions, or storage: put a
proxy in front, use the `authorize` hook, and to run many processes feed each from a
broker's log whose ids become the ids of the events.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import errno
import functools
import hashlib
import hmac
import inspect
import json
import logging
import math
import os
import random
import re
import secrets
import signal
import socket
import ssl as ssl_module
import sys
import threading
import time
import urllib.parse
import weakref
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any, NoReturn, Optional, Union

__version__ = "1.0.0"
__all__ = ["EventLog", "HTTPError", "Request", "SSEServer", "Stats", "format_event"]

logger = logging.getLogger("sse_server")


# ------------------------------------------------------------------------------------
# 1. Limits.  Numbers that can say no; those that a user may want to change are
#    parameters of SSEServer and have their defaults there.
# ------------------------------------------------------------------------------------

KIB = 1024
MIB = 1024 * KIB

# Request line and header fields together.  Browsers stay below 8 KiB, and so do the
# proxies' defaults; a Last-Event-ID or a cookie jar needs some of it.
MAX_HEAD_BYTES = 16 * KIB
# A chunk's size line with its extensions, which nobody uses (RFC 9112, 7.1.1).
MAX_CHUNK_LINE_BYTES = 256
# An event's name, an id, a channel's name, each in bytes of UTF-8.  UUIDs, topics and
# the ids of brokers are well below; the sum of id and name stays below one packet.
MAX_NAME_BYTES = 256
# Channels of one subscription: what it costs to route to it is bounded by this.
MAX_CHANNELS = 100
# Parameters of a query: channels, and those of a program's own; decoding has a price.
MAX_PARAMETERS = 200
# What the broadcaster or a catch-up writes at once.  Enough to make system calls
# rare, little enough that a stalled client costs its high-water mark and one of these.
BATCH_BYTES = 64 * KIB
BATCH_EVENTS = 1000
# What a transport may hold unsent before its subscriber counts as behind.
HIGH_WATER_BYTES = 64 * KIB
# Writes between two moments at which the event loop may do something else: at about
# 10 us each, accepting and answering wait for 4 ms at most.
WRITES_PER_TURN = 400
# Batches written, in such a moment, to subscribers who are behind: however many resume
# at once, the live ones are not kept waiting for them.
CATCH_UPS_PER_TURN = 8
# The bookkeeping that one event in the log costs beside its bytes: 150 to 240 were
# measured, on Python 3.9 to 3.13, without and with an id of the publisher's.
EVENT_OVERHEAD_BYTES = 300
# Channels whose last forgotten event is remembered, so that a gap is announced to those
# who missed something; beyond, the announcement errs on the side of saying too much.
MAX_TRACKED_CHANNELS = 10_000
# Descriptors left to the program that embeds the server, to listening sockets, and to
# those connections above the limit that are only told that the server is full.
RESERVED_DESCRIPTORS = 64
MAX_REFUSALS_AT_ONCE = 32
# Connections that wait to be accepted; the kernel takes the smaller of this and its own
# bound (net.core.somaxconn).
BACKLOG = 4096
# Of these accepted before anything else may happen.  With the descriptors used up each
# of them is one failure a second in asyncio's log.
ACCEPTS_PER_TURN = 10
# How long (seconds) and how much is read and thrown away after an error, so that the
# client reads the answer before it sees a reset (RFC 9112, 9.6).
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * MIB
# What clients are told to wait (seconds, jittered): when the server ends, long enough
# for a restart, because Firefox gives up for good when a reconnect is refused; when it
# is full, long enough to matter.
RESTART_RETRY_SECONDS = 5.0
FULL_RETRY_SECONDS = 30.0
# How long (seconds) a client is kept waiting whose last event this process has yet to
# be given, because another one was faster; then it is told of a gap.
AHEAD_SECONDS = 30.0
# How long (seconds) the program's authorize() may take, while the client waits.
AUTHORIZE_SECONDS = 30.0
# A peer that vanished without a word is probed (seconds, seconds, count), and given up
# when it has acknowledged nothing for this long (seconds): so all in all in a minute.
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_PROBES = 15, 5, 3
VANISHED_SECONDS = 40


# ------------------------------------------------------------------------------------
# 2. Errors.  One exception that knows its status; one place answers with it.
# ------------------------------------------------------------------------------------


class HTTPError(Exception):
    """The request is answered with this status and one line of plain text.

    `status` is 200 to 599, `headers` are added to the answer as (name, value) pairs.
    Raised by the parser, and by an `authorize` hook that wants a say in the answer:
    `HTTPError(401, "log in", [("WWW-Authenticate", "Basic")])`, or `HTTPError(204)`,
    which tells an EventSource to stop for good (HTML standard, 9.2.3).
    """

    def __init__(
        self,
        status: int,
        message: str = "",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        if not 200 <= status <= 599:
            raise ValueError(f"status is {status}; allowed are 200 to 599")
        self.status = status
        self.message = message or REASONS.get(status, "")
        self.headers = tuple(headers)
        for name, value in self.headers:
            _refuse_characters("header", name + value)
        super().__init__(f"{status} {self.message}")


REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


# ------------------------------------------------------------------------------------
# 3. The event on the wire (HTML standard, 9.2.5 and 9.2.6).
#
#    Everything is checked here, once; whatever comes out can be written as it is.
# ------------------------------------------------------------------------------------

_LINE_BREAKS = re.compile("[\r\n\0]")
# An id comes back as the value of a header, which can hold none of these.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f]")
_CHARACTER_NAMES = {"\r": "CR", "\n": "LF", "\0": "NUL"}


def format_event(
    data: Any = None,
    *,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """Return the bytes of one event; pure, callable from any thread.

    `data` that is not a `str` becomes compact JSON, in which objects with an
    `isoformat()` (dates and times) stand as that text; None means no data field.
    `event` is the event's name, `id` becomes the client's Last-Event-ID ("" resets it),
    `retry` is the reconnection time in milliseconds, at least 1.  `comment` is ignored
    by clients.  A client dispatches only an event that has data.

    The blank line that ends an event is left out where there is none to end: `retry`
    and comments count at once, and some clients show an empty block as an event.

    Raises ValueError for a CR, LF or NUL in `event` or `id`, for a lone surrogate, for
    NaN or infinity in the data, for a retry below 1, and where nothing is given;
    TypeError for data that JSON does not know (bytes among them).
    """
    lines = []
    if comment is not None:
        lines += [f": {line}" for line in _split_lines(comment)]
    if retry is not None:
        if isinstance(retry, bool) or not isinstance(retry, int) or retry < 1:
            raise ValueError(f"retry is {retry!r}; allowed are integers from 1 (ms)")
        lines.append(f"retry: {retry}")
    if id is not None:
        lines.append("id: " + _refuse_characters("id", id))
    if event is not None:
        lines.append("event: " + _refuse_characters("event", event))
    if data is not None:
        lines += [f"data: {line}" for line in _split_lines(_to_text(data))]
    if not lines:
        raise ValueError("an event needs at least one of its fields or a comment")
    if id is not None or event is not None or data is not None:
        lines.append("")
    lines.append("")
    return _encode("\n".join(lines))


def _split_lines(text: str) -> list[str]:
    """Split where a client does: at CRLF, CR or LF.  splitlines() knows seven more."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _refuse_characters(what: str, text: str) -> str:
    found = _LINE_BREAKS.search(text)
    if found:
        name = _CHARACTER_NAMES[found[0]]
        raise ValueError(f"{what} {text!r} has a {name} at index {found.start()}")
    return text


def _to_text(data: Any) -> str:
    return data if isinstance(data, str) else _JSON.encode(data)


def _json_default(value: Any) -> str:
    isoformat = getattr(value, "isoformat", None)
    if isoformat is None:
        hint = "; decode it first" if isinstance(value, (bytes, bytearray)) else ""
        raise TypeError(f"{type(value).__name__} cannot be sent as JSON{hint}")
    return str(isoformat())


# NaN is refused because no browser's JSON.parse takes it.
_JSON = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    separators=(",", ":"),
    default=_json_default,
)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"lone surrogate {text[error.start]!r} at index {error.start} of "
            f"{text[max(0, error.start - 20) : error.start + 20]!r}: not valid Unicode"
        ) from None


def _check_name(what: str, name: str) -> str:
    """An event's name, an id or a channel, as publish() and a request may give it."""
    if not isinstance(name, str):
        raise TypeError(f"{what} is {name!r}; allowed is a str")
    size = len(_encode(_refuse_characters(what, name)))
    if not 1 <= size <= MAX_NAME_BYTES:
        raise ValueError(
            f"{what} has {size} bytes; allowed are 1 to {MAX_NAME_BYTES} (UTF-8)"
        )
    if name != name.strip(" ") or _UNSENDABLE.search(name):
        raise ValueError(
            f"{what} {name!r} has a control character or a space at an end"
        )
    return name


def _chunk(payload: bytes) -> bytes:
    """Frame for `Transfer-Encoding: chunked` (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK = b"0\r\n\r\n"
HEARTBEAT = b":\n"


# ------------------------------------------------------------------------------------
# 4. The log.
#
#    Events are numbered from 1.  A position is the number of the last event that
#    somebody was given: position 7 has events 1 to 7 behind it and 8 to come.  The log
#    holds the events after `base` up to `head`, and knows how far the live subscribers
#    are: `sent`.  Beyond `max_events` it forgets what they were given; what they were
#    not goes only when `max_bytes` would be exceeded.
# ------------------------------------------------------------------------------------

Channels = frozenset[Optional[str]]  # None: the events published without a channel
DEFAULT_CHANNEL: Channels = frozenset([None])
# The channel that every audience has; as a name it is refused.
EVERYBODY = ""
_OWN_ID = re.compile("([0-9a-f]{8})-(0|[1-9][0-9]{0,18})")


class _Entry:
    """One event in the log, ready to be written."""

    __slots__ = ("channel", "frame", "id")

    def __init__(self, frame: bytes, channel: str | None, id: str | None) -> None:
        self.frame = frame
        self.channel = channel
        self.id = id  # the publisher's; None where the log numbered it

    @property
    def cost(self) -> int:
        return len(self.frame) + EVENT_OVERHEAD_BYTES


class EventLog:
    """The events that are held, in order, bounded in number and in bytes.

    `max_events` bounds their number, but for those that the live subscribers were not
    given yet; `max_bytes` bounds everything, each event with 300 bytes for its
    bookkeeping, but for a single event that is larger.  `id_order` is what the
    publisher's ids are sorted by, if they ascend: an id that is not held then has a
    place between those that are.  Not thread-safe: the server calls it under its lock.
    """

    def __init__(
        self,
        max_events: int = 1000,
        max_bytes: int = 16 * MIB,
        id_order: Callable[[str], Any] | None = None,
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._id_order = id_order
        self._entries: dict[int, _Entry] = {}  # by number, base + 1 to head
        self._bytes = 0  # the sum of their costs
        self._numbers: dict[str, int] = {}  # of the publisher's ids; see _forget_oldest
        # A position from before a restart must never be taken for one of now, whatever
        # the clock says, so the epoch is drawn and not counted.
        self._epoch = secrets.token_hex(4)
        self._forgotten: dict[str | None, int] = {}  # channel: its last lost event
        self._forgotten_floor = 0  # the same for channels not (or no longer) in there
        self._forgotten_id: str | None = None  # the publisher's id of event `base`
        self.base = 0
        self.head = 0
        self.sent = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_id(self) -> str:
        """The id of the newest event; before the first, one that precedes it."""
        newest = self._entries.get(self.head)
        own = newest.id if newest else self._forgotten_id
        return own or self.id_at(self.head)

    @property
    def base_id(self) -> str:
        """The id of the newest event that is no longer held."""
        return self._forgotten_id or self.id_at(self.base)

    def id_at(self, position: int) -> str:
        """The log's own name of a position, which `find` knows."""
        return f"{self._epoch}-{position}"

    def append(self, body: bytes, channel: str | None, id: str | None) -> str:
        """Add an event (without an id field) and return the id it now has."""
        name = self.id_at(self.head + 1) if id is None else id
        entry = _Entry(b"id: %b\n%b" % (_encode(name), body), channel, id)
        self.head += 1
        self._entries[self.head] = entry
        self._bytes += entry.cost
        if id is not None:
            self._numbers.setdefault(id, self.head)
        while self._bytes > self._max_bytes and self.base + 1 < self.head:
            self._forget_oldest()
        return name

    def advance(self, position: int) -> None:
        """The live subscribers were given everything up to `position`."""
        self.sent = position
        while len(self._entries) > self._max_events and self.base < self.sent:
            self._forget_oldest()

    def find(self, id: str) -> int | None:
        """The position that an id names, or None where nothing is known of it.

        The position may lie before `base`: `missed` tells whether anything was lost.
        """
        number = self._numbers.get(id)
        if number is not None:
            return number
        if id == self._forgotten_id:
            return self.base
        own = _OWN_ID.fullmatch(id)
        if own and own[1] == self._epoch and int(own[2]) <= self.head:
            return int(own[2])
        earlier = self._not_later(id)
        return self._numbers[earlier] if earlier else None

    def is_ahead(self, id: str) -> bool:
        """Whether the id is one to come: it is later than the publisher's newest."""
        newest = next(reversed(self._numbers), None)
        if not self._id_order or newest is None:
            return False
        try:
            return bool(self._id_order(newest) < self._id_order(id))
        except Exception:  # it is none of the publisher's
            return False

    def _not_later(self, id: str) -> str | None:
        """The last of the publisher's ids that are held and not later than this one."""
        if not self._id_order:
            return None
        ids = list(self._numbers)
        low, high = 0, len(ids)
        try:
            wanted = self._id_order(id)
            while low < high:
                middle = (low + high) // 2
                if self._id_order(ids[middle]) <= wanted:
                    low = middle + 1
                else:
                    high = middle
        except Exception:  # it is none of the publisher's
            return None
        return ids[low - 1] if low else None

    def missed(self, position: int, channels: Channels) -> bool:
        """Whether an event of these channels after `position` was forgotten."""
        if position >= self.base:
            return False
        last = max(self._forgotten.get(c, self._forgotten_floor) for c in channels)
        return last > position

    def read(self, position: int, end: int) -> tuple[list[_Entry], int]:
        """The next batch after `position`, up to `end`: its events, its last number.

        At most BATCH_EVENTS and, beyond the first event, BATCH_BYTES.
        """
        start = max(position, self.base)
        batch: list[_Entry] = []
        size = 0
        for number in range(start + 1, min(end, start + BATCH_EVENTS) + 1):
            entry = self._entries[number]
            size += len(entry.frame)
            if size > BATCH_BYTES and batch:
                break
            batch.append(entry)
        return batch, start + len(batch)

    def _forget_oldest(self) -> None:
        self.base += 1
        entry = self._entries.pop(self.base)
        self._bytes -= entry.cost
        self._forgotten_id = entry.id
        if entry.id is not None and self._numbers.get(entry.id) == self.base:
            del self._numbers[entry.id]
        # Taken out and put in again, so that the first key is the longest unchanged.
        self._forgotten.pop(entry.channel, None)
        self._forgotten[entry.channel] = self.base
        if len(self._forgotten) > MAX_TRACKED_CHANNELS:
            oldest = next(iter(self._forgotten))
            self._forgotten_floor = self._forgotten.pop(oldest)


# ------------------------------------------------------------------------------------
# 5. The request on the wire, and the answer (RFC 9112).
#
#    Bytes in, a frozen Request or the bytes of a body out, or an HTTPError that knows
#    its status; anything else raised here is a bug.  Where the standard lets a
#    recipient choose between lenience and refusal this refuses, because two parsers
#    that guess differently are how requests are smuggled past a proxy.
# ------------------------------------------------------------------------------------

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN.pattern)
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]*)(:[0-9]*)?")
_SCHEME = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)

Fields = tuple[tuple[bytes, bytes], ...]  # (name in lower case, value), in order


@dataclasses.dataclass(frozen=True)
class Request:
    """One HTTP request without its body, as it was on the wire, checked."""

    __slots__ = ("fields", "method", "path", "peer", "query", "target", "version")

    method: str
    target: str  # as it came
    path: str  # of the target, percent-encoded unreserved characters decoded
    query: str  # of the target, without the "?", as it came
    version: tuple[int, int]  # (1, 0) or (1, 1) and above
    fields: Fields
    peer: str  # the address and port it came from, "" where unknown

    def header(self, name: str) -> str | None:
        """The field's value, several joined by ", ", or None where it is absent.

        Values are bytes on the wire; they are decoded as UTF-8, and what is not UTF-8
        stands as surrogate escapes, so that nothing is lost.
        """
        found = self._values(name)
        return b", ".join(found).decode("utf-8", "surrogateescape") if found else None

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The query's parameters, decoded; what is not UTF-8 is replaced by U+FFFD.

        HTTPError 400 where there are more than 200.
        """
        try:
            return urllib.parse.parse_qs(
                self.query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS
            )
        except ValueError:
            message = f"query of more than {MAX_PARAMETERS} parameters"
            raise HTTPError(400, message) from None

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may be used for another request (RFC 9112, 9.3)."""
        return self.version >= (1, 1) and b"close" not in self._tokens("connection")

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits to be asked for the body (RFC 9110, 10.1.1)."""
        return self.version >= (1, 1) and b"100-continue" in self._tokens("expect")

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return bool(self._values("transfer-encoding"))

    @property
    def content_length(self) -> int:
        """The body's length in bytes where it is not chunked."""
        lengths = self._values("content-length")
        # int() of thousands of digits is slow or an error; all of them are too many.
        digits = lengths[0].split(b",")[0].lstrip(b"0")[:19] if lengths else b""
        return int(digits or b"0")

    @property
    def channels(self) -> Channels:
        """The channels a subscription asks for; HTTPError 400 where a name is bad."""
        names = self.parameters.get("channel")
        if names is None:
            return DEFAULT_CHANNEL
        if len(names) > MAX_CHANNELS:
            raise HTTPError(
                400, f"{len(names)} channels asked for; allowed are {MAX_CHANNELS}"
            )
        try:
            return frozenset(_check_name("channel", name) for name in names)
        except ValueError as error:
            raise HTTPError(400, str(error)) from None

    @property
    def last_event_id(self) -> str | None:
        """Where to resume: the header, else the query; None or "" for nowhere."""
        header = self.header("last-event-id")
        if header is not None:
            return header
        parameters = self.parameters
        for name in ("lastEventId", "last_event_id"):
            if name in parameters:
                return parameters[name][0]
        return None

    def accepts(self, media_type: str) -> bool:
        """Whether the Accept field names this media type itself."""
        return media_type.encode() in (
            item.split(b";")[0].strip() for item in self._tokens("accept")
        )

    def _values(self, name: str) -> list[bytes]:
        wanted = name.lower().encode()
        return [value for field, value in self.fields if field == wanted]

    def _tokens(self, name: str) -> set[bytes]:
        joined = b",".join(self._values(name)).lower()
        return {token.strip(b" \t") for token in joined.split(b",")}


def find_head_end(received: bytearray, searched: int) -> int:
    """Where the head ends in what was received, or 0 where more is needed.

    The first `searched` bytes are known to hold no end.  An empty line made of bare
    LFs ends a head as well, so that parse_request refuses it now and not at a timeout.
    """
    found = _HEAD_END.search(received, max(0, searched - 2))
    end = found.end() if found else 0
    if end > MAX_HEAD_BYTES or (not end and len(received) > MAX_HEAD_BYTES):
        raise HTTPError(431, f"request head is larger than {MAX_HEAD_BYTES} bytes")
    return end


def parse_request(head: bytes, peer: str = "") -> Request:
    """Parse a request's head, its empty line included (RFC 9112, 2 to 6)."""
    if not head.endswith(b"\r\n\r\n"):
        raise HTTPError(400, "a line of the request ends with a bare LF")
    request_line, *lines = head[:-4].split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(request_line)
    if not found:
        raise HTTPError(400, f"malformed request line {_quote(request_line)}")
    version = (int(found[3]), int(found[4]))
    if version[0] != 1:
        raise HTTPError(505, f"HTTP version {version[0]}.{version[1]}; served is 1.x")
    fields = _parse_fields(lines)
    method = found[1].decode()
    target = found[2].decode()
    path, query = _parse_target(method, target)
    request = Request(method, target, path, query, version, fields, peer)
    _check_host(request)
    _check_framing(request)
    return request


def _parse_fields(lines: Sequence[bytes]) -> Fields:
    """Parse header or trailer fields (RFC 9112, 5)."""
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise HTTPError(400, f"malformed header field {_quote(line)}")
        if _CONTROLS.search(value):
            raise HTTPError(400, f"control character in header field {_quote(line)}")
        fields.append((name.lower(), value.strip(b" \t")))
    return tuple(fields)


def _parse_target(method: str, target: str) -> tuple[str, str]:
    """The path and the query of a request target (RFC 9112, 3.2)."""
    if method == "CONNECT":
        raise HTTPError(501, "CONNECT is for proxies, and this is none")
    if target == "*" and method == "OPTIONS":
        return "*", ""
    rest = target
    absolute = _SCHEME.match(target)
    if absolute:
        host = _HOST.fullmatch(absolute[1].rpartition("@")[2].encode())
        if not host or not host[1]:
            raise HTTPError(400, f"malformed request target {target[:80]!r}")
        rest = target[absolute.end() :]
        rest = rest if rest.startswith("/") else "/" + rest
    if not rest.startswith("/") or "#" in rest:
        raise HTTPError(400, f"malformed request target {target[:80]!r}")
    path, _, query = rest.partition("?")
    return _ESCAPE.sub(_decode_unreserved, path), query


def _decode_unreserved(escape: re.Match[str]) -> str:
    """%73 and s are the same, %2F and / are not (RFC 3986, 6.2.2.2)."""
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0]


def _check_host(request: Request) -> None:
    """RFC 9112, 3.2: exactly one valid Host on HTTP/1.1, at most one on 1.0."""
    hosts = request._values("host")
    if len(hosts) > 1 or (not hosts and request.version >= (1, 1)):
        raise HTTPError(400, f"{len(hosts)} Host fields; there must be one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HTTPError(400, f"malformed Host {_quote(hosts[0])}")


def _check_framing(request: Request) -> None:
    """RFC 9112, 6: whatever could be read in two ways is refused."""
    codings = request._values("transfer-encoding")
    lengths = request._values("content-length")
    if codings and lengths:
        raise HTTPError(400, "Content-Length together with Transfer-Encoding")
    if codings and request.version < (1, 1):
        raise HTTPError(400, "Transfer-Encoding on HTTP/1.0")
    if codings and b", ".join(codings).lower() != b"chunked":
        raise HTTPError(501, f"Transfer-Encoding {_quote(b', '.join(codings))}")
    different = {part.strip(b" \t") for value in lengths for part in value.split(b",")}
    if len(different) > 1:
        raise HTTPError(400, "two differing values of Content-Length")
    for value in different:
        if not value.isdigit():  # of bytes: ASCII digits only
            raise HTTPError(400, f"malformed Content-Length {_quote(value)}")
    expectations = request._tokens("expect") - {b""}
    if expectations - {b"100-continue"}:
        raise HTTPError(417, f"Expect {_quote(b', '.join(sorted(expectations)))}")


def _quote(text: bytes) -> str:
    """What was seen, short and printable, for an error's text."""
    return ascii(text[:80].decode("latin-1")) + ("..." if len(text) > 80 else "")


class BodyReader:
    """Decodes one request's body from the pieces in which it arrives (RFC 9112, 6, 7).

    `feed` it what was received until it returns True; then `body` holds the content and
    `rest` what was received after it.  Raises HTTPError 413 for a body of more than
    `limit` bytes as soon as that is known, and 400 for broken chunks.  Without `keep`
    the content is thrown away.
    """

    def __init__(self, request: Request, limit: int, keep: bool = True) -> None:
        self.body = bytearray()
        self.rest = bytearray()  # received and not yet decoded
        self._limit = limit
        self._keep = keep
        self._size = 0  # of the body so far
        self._missing = request.content_length  # bytes to come of the body or chunk
        self._step: Callable[[], bool] | None = self._read_content
        if request.chunked:
            self._step = self._read_size_line
        self._trailers_searched = 0
        self._check_limit(self._missing)

    def feed(self, data: bytes | bytearray) -> bool:
        """Take what was received; True when the body is complete."""
        self.rest += data
        while self._step and self._step():
            pass
        return self._step is None

    # Each step returns whether it got on; the last one leaves no step.

    def _read_content(self) -> bool:
        self._take_missing()
        if not self._missing:
            self._step = None
        return False

    def _read_size_line(self) -> bool:
        end = self.rest.find(b"\r\n", 0, MAX_CHUNK_LINE_BYTES + 2)
        if end < 0:
            if len(self.rest) >= MAX_CHUNK_LINE_BYTES + 2:
                raise HTTPError(
                    400, f"chunk size line is longer than {MAX_CHUNK_LINE_BYTES} bytes"
                )
            return False
        line = bytes(self.rest[:end])
        size = _CHUNK_SIZE.fullmatch(line)
        if not size:
            raise HTTPError(400, f"malformed chunk size {_quote(line)}")
        del self.rest[: end + 2]
        self._missing = int(size[1], 16)
        self._check_limit(self._size + self._missing)
        self._step = self._read_chunk if self._missing else self._read_trailers
        return True

    def _read_chunk(self) -> bool:
        self._take_missing()
        if self._missing or len(self.rest) < 2:
            return False
        if self.rest[:2] != b"\r\n":
            raise HTTPError(400, "chunk is longer than its size")
        del self.rest[:2]
        self._step = self._read_size_line
        return True

    def _read_trailers(self) -> bool:
        if self.rest[:1] == b"\n":
            raise HTTPError(400, "a trailer line ends with a bare LF")
        if self.rest[:2] == b"\r\n":
            end = 2
        else:
            end = find_head_end(self.rest, self._trailers_searched)
            self._trailers_searched = len(self.rest)
            if not end:
                return False
            if self.rest[end - 4 : end] != b"\r\n\r\n":
                raise HTTPError(400, "a trailer line ends with a bare LF")
            _parse_fields(bytes(self.rest[: end - 4]).split(b"\r\n"))
        del self.rest[:end]
        self._step = None
        return True

    def _take_missing(self) -> None:
        taken = self.rest[: self._missing]
        if self._keep:
            self.body += taken
        self._size += len(taken)
        self._missing -= len(taken)
        del self.rest[: len(taken)]

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise HTTPError(
                413, f"body of {size} bytes or more; allowed are {self._limit}"
            )


@dataclasses.dataclass
class _Response:
    """An answer before it is bytes; a body of None is a stream to come."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes | None

    def render(self, now: float, keep_alive: bool, with_body: bool) -> bytes:
        """The head and, if wanted, the body, at a time in seconds since 1970."""
        lines = [
            f"HTTP/1.1 {self.status} {REASONS.get(self.status, '')}",
            f"Date: {_http_date(int(now))}",
            *(f"{name}: {value}" for name, value in self.fields),
        ]
        if self.body is not None and self.status != 204:
            lines.append(f"Content-Length: {len(self.body)}")
        if not keep_alive:
            lines.append("Connection: close")
        elif self.body is None:
            lines.append("Connection: keep-alive")
        head = "\r\n".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape")
        return head + (self.body or b"") if with_body else head


_STREAM_FIELDS = [
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # nginx: pass on what comes, when it comes
    ("Vary", "Accept"),
]


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def _text_response(status: int, text: str) -> _Response:
    body = text.encode("utf-8", "replace")
    return _Response(status, [("Content-Type", "text/plain; charset=utf-8")], body)


def _error_response(error: HTTPError) -> _Response:
    if error.status in (204, 304):
        response = _Response(error.status, [], b"")
    else:
        response = _text_response(error.status, error.message + "\n")
    response.fields.extend(error.headers)
    return response


# ====================================================================================
#    Above this line: bytes and values.  Below it: time and sockets.
# ====================================================================================


# ------------------------------------------------------------------------------------
# 6. Audiences and the broadcaster.
#
#    Everything here runs in the event loop, but for publish().  A sweep fixes who gets
#    a batch in the moment in which `sent` moves; who joins later starts at the new one.
# ------------------------------------------------------------------------------------


class _Audience:
    """The subscribers who want identical bytes: the same channels, the same framing."""

    __slots__ = ("channels", "chunked", "live", "members")

    def __init__(self, channels: Channels, chunked: bool) -> None:
        self.channels = channels
        self.chunked = chunked  # HTTP/1.1; to HTTP/1.0 the stream goes unframed
        # In the order of arrival, which is about that in memory: a sweep in another
        # order, such as a set's, costs some 3 % more.
        self.live: dict[_Subscriber, None] = {}
        self.members = 0  # live and behind

    def frame(self, payload: bytes) -> bytes:
        """The payload as it is written to each of them."""
        return _chunk(payload) if self.chunked else payload


class _Subscriber(asyncio.Protocol):
    """One open stream: a position in the log, and the protocol of its transport."""

    __slots__ = ("audience", "broadcaster", "gap", "head", "live", "paused", "peer",
                 "position", "task", "transport", "waiter", "writer")  # fmt: skip

    def __init__(
        self,
        broadcaster: _Broadcaster,
        writer: asyncio.StreamWriter,
        peer: str,
        head: bytes,
    ) -> None:
        self.broadcaster = broadcaster
        self.transport = writer.transport
        self.writer = writer  # kept: when it is collected it closes the transport
        self.peer = peer  # its address and port
        self.head = head  # the request as it came, parsed again when somebody asks
        self.audience: _Audience | None = None  # None once it has left
        self.live = False
        self.position = 0  # of its own, while it is behind
        self.gap: str | None = None  # the reason of a gap to announce

        self.paused = False  # the transport holds more than it should
        self.waiter: asyncio.Future[None] | None = None  # for paused to end
        self.task: asyncio.Task[None] | None = None  # the catch-up, while behind

    def request(self) -> Request:
        """The request that opened the stream."""
        return parse_request(self.head, self.peer)

    def eof_received(self) -> bool:
        """The client has closed, or will at least not ask for anything again."""
        self.broadcaster.end(self, "closed by the client")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self.broadcaster.forget(self, f"lost: {exc}" if exc else "closed")
        if not self.transport.is_closing():  # asyncio's TLS before Python 3.11
            self.transport.close()

    def pause_writing(self) -> None:
        """The transport holds more than its high-water mark."""
        self.paused = True

    def resume_writing(self) -> None:
        """The transport holds less than its low-water mark."""
        self.paused = False
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def writable(self, timeout: float) -> None:
        """Wait while paused; TimeoutError when nothing was taken for `timeout` s."""
        loop = asyncio.get_running_loop()
        held = _unsent(self.transport)
        deadline = loop.time() + timeout
        while self.paused:
            self.waiter = loop.create_future()
            # Looks more often than the timeout, to know when the last byte was taken.
            await asyncio.wait([self.waiter], timeout=timeout / 8)
            now_held = _unsent(self.transport)
            if now_held < held:
                deadline = loop.time() + timeout
            elif loop.time() >= deadline:
                raise TimeoutError(f"took nothing for {timeout:g} s")
            held = now_held


def _peer_name(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    if not peer:
        return ""
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a server has done since its start, in one moment.

    A subscriber counts from the moment its stream opens until it has left.
    """

    live: int  # subscribers who were given everything that was published
    behind: int  # subscribers who are resuming or slow
    published: int  # events
    events_written: int  # an event that is written to ten subscribers counts ten
    bytes_written: int  # of events, gaps and heartbeats, framing included
    gaps: int  # announced to subscribers
    dropped: int  # subscribers ended because they took nothing for write_timeout
    refused: int  # connections turned away because the server was full or closing


class _Broadcaster:
    """Moves the live subscribers through the log, and those behind to the live."""

    def __init__(
        self, log: EventLog, heartbeat: float | None, write_timeout: float
    ) -> None:
        self.log = log
        self.lock = threading.Lock()  # guards the log, _rung, _started and closing
        self.count = 0  # subscribers
        self.behind: set[_Subscriber] = set()
        self.leaving: set[_Subscriber] = set()  # ended, the connection still open
        self.events_written = self.bytes_written = self.gaps = self.dropped = 0
        self._heartbeat = heartbeat
        self._write_timeout = write_timeout
        self._audiences: dict[tuple[Channels, bool], _Audience] = {}
        self._by_channel: dict[str | None, set[_Audience]] = {}

        self._swept = 0  # the position up to which sweeps are complete
        self._turn_left = WRITES_PER_TURN
        self._next_batch_key: tuple[object, ...] = ()  # what _next_batch belongs to
        self._next_batch = (b"", 0, 0, 0)
        self._rung = False
        self._started = False
        self.closing = False
        self._heartbeat_due = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin, in the running event loop; the task ends after stop()."""
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()
        self._change: asyncio.Future[None] = self._loop.create_future()
        self._catch_up_turn = asyncio.Semaphore(CATCH_UPS_PER_TURN)
        self._schedule_heartbeat()
        with self.lock:
            self._swept = self.log.sent
            self._started = True
        return self._loop.create_task(self._run())

    # Publishing: from any thread.

    def publish(self, body: bytes, channel: str | None, id: str | None) -> str:
        """Append to the log and ring the bell; never waits for a client."""
        with self.lock:
            if self.closing:
                raise RuntimeError("the server is closed; nothing can be published")
            name = self.log.append(body, channel, id)
            if not self._started:
                self.log.advance(self.log.head)
            elif not self._rung:
                self._loop.call_soon_threadsafe(self._bell.set)
                self._rung = True
        return name

    def stop(self) -> None:
        """Publish nothing more; the sweep of what was published still happens."""
        with self.lock:
            self.closing = True
        if self._started:
            self._bell.set()
            self.notify()
        if self._timer:
            self._timer.cancel()

    # The broadcaster's coroutine.

    async def _run(self) -> None:
        while True:
            await self._bell.wait()
            with self.lock:
                self._bell.clear()
                self._rung = False
            while self.log.sent < self.log.head or self._heartbeat_due:
                if self._heartbeat_due:
                    self._heartbeat_due = False
                    await self._send_heartbeat()
                await self._sweep()
            if self.closing:
                return

    async def _sweep(self) -> None:
        """Give one batch to all who are live in this moment."""
        with self.lock:
            position = self.log.sent
            batch, end = self.log.read(position, self.log.head)
            gaps = self._announce_gap(position)
            self.log.advance(end)
        channels = {entry.channel for entry in batch}
        wanting = [a for c in channels for a in self._by_channel.get(c, ())]
        # All the lists are made before the first write gives way to anybody.
        sweep = [(a, list(a.live)) for a in dict.fromkeys([*gaps, *wanting]) if a.live]
        for audience, subscribers in sweep:
            frames = [e.frame for e in batch if e.channel in audience.channels]
            payload = audience.frame(b"".join(gaps.get(audience, []) + frames))
            written = await self._write(subscribers, payload)
            self.events_written += written * len(frames)
        self._swept = end
        self.notify()
        await asyncio.sleep(0)

    def _announce_gap(self, position: int) -> dict[_Audience, list[bytes]]:
        """What the audiences are written who lose an event the log could not hold."""
        if position >= self.log.base:
            return {}
        audiences = [a for a in self._audiences.values() if a.live]
        losers = [a for a in audiences if self.log.missed(position, a.channels)]
        self.gaps += sum(len(a.live) for a in losers)
        return {audience: [self._gap("history")] for audience in losers}

    async def _write(self, subscribers: list[_Subscriber], payload: bytes) -> int:
        """Write to each that is still live, and give way now and then."""
        start = written = 0
        while start < len(subscribers):
            if not self._turn_left:
                await asyncio.sleep(0)
                self._turn_left = WRITES_PER_TURN
            turn = subscribers[start : start + self._turn_left]
            for subscriber in turn:
                if subscriber.live:
                    subscriber.transport.write(payload)
                    written += 1
                    if subscriber.paused:
                        self._fall_behind(subscriber)
            start += len(turn)
            self._turn_left -= len(turn)
        self.bytes_written += written * len(payload)
        return written

    def _schedule_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._timer = self._loop.call_later(self._heartbeat, self._ring_heartbeat)

    def _ring_heartbeat(self) -> None:
        self._heartbeat_due = True
        self._bell.set()
        self._schedule_heartbeat()

    async def _send_heartbeat(self) -> None:
        for audience in list(self._audiences.values()):
            for subscriber in audience.live:
                # What was not taken since the last event or heartbeat may never be:
                # from now on it has to be taken wholly, within the write timeout.
                # (1 and not 0, at which asyncio's TLS pauses though it holds nothing.)
                if _unsent(subscriber.transport):
                    _set_high_water(subscriber.transport, 1)
            await self._write(list(audience.live), audience.frame(HEARTBEAT))

    def _gap(self, reason: str) -> bytes:
        """The event that says that events were missed, up to the oldest one held."""
        return format_event({"reason": reason}, event="gap", id=self.log.base_id)

    # Subscribers come, fall behind, catch up and leave.

    def add(
        self,
        subscriber: _Subscriber,
        channels: Channels,
        chunked: bool,
        last_event_id: str | None,
    ) -> None:
        """Take a new subscriber in, whose stream's head is written."""
        channels |= {EVERYBODY}
        key = (channels, chunked)
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = _Audience(channels, chunked)
            for channel in channels:
                self._by_channel.setdefault(channel, set()).add(audience)
        audience.members += 1
        subscriber.audience = audience
        self.count += 1
        ahead = None
        with self.lock:
            position: int | None = self.log.sent
            if last_event_id:
                position = self.log.find(last_event_id)
                if self.log.is_ahead(last_event_id):
                    ahead = last_event_id
            if position is None:
                position = self.log.base
                subscriber.gap = "unknown id"
        subscriber.position = position
        logger.info("%s joined; %d connected", subscriber.peer, self.count)
        _set_high_water(subscriber.transport, HIGH_WATER_BYTES)
        in_step = position == self.log.sent and not subscriber.gap and not ahead
        if in_step and not subscriber.paused:
            self._join(subscriber)
        else:
            self._start_catching_up(subscriber, ahead)

    def _join(self, subscriber: _Subscriber) -> None:
        assert subscriber.audience
        self.behind.discard(subscriber)
        subscriber.task = None
        subscriber.live = True
        subscriber.audience.live[subscriber] = None
        if self.closing and self.log.sent == self.log.head:
            self.end(subscriber, "the server ends")
        self.notify()

    def _fall_behind(self, subscriber: _Subscriber) -> None:
        assert subscriber.audience
        subscriber.live = False
        subscriber.audience.live.pop(subscriber, None)
        subscriber.position = self.log.sent
        self._start_catching_up(subscriber)

    def _start_catching_up(
        self, subscriber: _Subscriber, ahead: str | None = None
    ) -> None:
        self.behind.add(subscriber)
        subscriber.task = self._loop.create_task(self._catch_up(subscriber, ahead))

    async def _catch_up(self, subscriber: _Subscriber, ahead: str | None) -> None:
        """Write from the subscriber's own position until it is where the live are.

        `ahead` is the id of an event that the client has seen and that is yet to come.
        """
        try:
            if ahead:
                await self._overtake(subscriber, ahead)
            while True:
                await subscriber.writable(self._write_timeout)
                if subscriber.position > self.log.sent:
                    await self.progress()  # it knows events not swept yet
                elif subscriber.position < self.log.sent or subscriber.gap:
                    async with self._catch_up_turn:
                        self._write_next(subscriber)
                        await asyncio.sleep(0)
                else:
                    _set_high_water(subscriber.transport, HIGH_WATER_BYTES)
                    self._join(subscriber)
                    return
        except TimeoutError as error:
            self.dropped += 1
            self._drop(subscriber, str(error))
        except Exception:
            logger.exception("catching up failed")
            self._drop(subscriber, "an error")

    async def _overtake(self, subscriber: _Subscriber, id: str) -> None:
        """Wait for the event that the client has seen in another process."""
        deadline = self._loop.time() + AHEAD_SECONDS
        while True:
            with self.lock:
                position = self.log.find(id)
                ahead = self.log.is_ahead(id) and not self.closing
            left = deadline - self._loop.time()
            if not ahead or left <= 0:
                break
            await self.progress(left)
        if position is None or left <= 0:
            position, subscriber.gap = self.log.base, "unknown id"
        subscriber.position = position

    def _write_next(self, subscriber: _Subscriber) -> None:
        audience = subscriber.audience
        assert audience
        with self.lock:
            # After an outage many come back to one position: they share the bytes too.
            key = audience, subscriber.position, subscriber.gap, self.log.sent
            if self._next_batch_key != (*key, self.log.base):
                self._next_batch_key = (*key, self.log.base)
                self._next_batch = self._encode_next(audience, subscriber)
        payload, events, gaps, subscriber.position = self._next_batch
        subscriber.gap = None
        if payload:
            subscriber.transport.write(payload)
        self.events_written += events
        self.bytes_written += len(payload)
        self.gaps += gaps
        self.notify()

    def _encode_next(
        self, audience: _Audience, subscriber: _Subscriber
    ) -> tuple[bytes, int, int, int]:
        """The bytes after a subscriber's position; its events, gaps, last number."""
        batch, end = self.log.read(subscriber.position, self.log.sent)
        frames = [entry.frame for entry in batch if entry.channel in audience.channels]
        reason = subscriber.gap
        if not reason and self.log.missed(subscriber.position, audience.channels):
            reason = "history"
        events = len(frames)
        if reason:
            frames.insert(0, self._gap(reason))
        payload = audience.frame(b"".join(frames)) if frames else b""
        return payload, events, len(frames) - events, end

    def end(self, subscriber: _Subscriber, why: str) -> None:
        """Tell the client when to come back, end its stream, close."""
        if not subscriber.audience:
            return
        farewell = format_event(retry=_jittered_ms(RESTART_RETRY_SECONDS))
        ending = subscriber.audience.frame(farewell)
        if subscriber.audience.chunked:
            ending += LAST_CHUNK
        self._leave(subscriber, why)
        self.leaving.add(subscriber)
        subscriber.transport.write(ending)
        _close_soon(subscriber.transport, self._loop, self._write_timeout)

    def _drop(self, subscriber: _Subscriber, why: str) -> None:
        if not subscriber.audience:
            return
        self._leave(subscriber, why)
        self.leaving.add(subscriber)
        subscriber.transport.abort()

    def forget(self, subscriber: _Subscriber, why: str) -> None:
        """Its connection is gone."""
        self._leave(subscriber, why)
        self.leaving.discard(subscriber)
        self.notify()

    def _leave(self, subscriber: _Subscriber, why: str) -> None:
        audience = subscriber.audience
        if audience is None:
            return
        subscriber.audience = None
        subscriber.live = False
        audience.live.pop(subscriber, None)
        audience.members -= 1
        if not audience.members:
            del self._audiences[audience.channels, audience.chunked]
            for channel in audience.channels:
                self._by_channel[channel].discard(audience)
                if not self._by_channel[channel]:
                    del self._by_channel[channel]
        self.behind.discard(subscriber)
        if subscriber.task and subscriber.task is not asyncio.current_task():
            subscriber.task.cancel()
        subscriber.task = None
        self.count -= 1
        logger.info("%s left, %s; %d remain", subscriber.peer, why, self.count)
        self.notify()

    def subscribers(self) -> list[_Subscriber]:
        """All of them, live and behind, in no order."""
        live = [s for a in self._audiences.values() for s in a.live]
        return [*live, *self.behind]

    # Waiting for it.

    async def progress(self, timeout: float | None = None) -> None:
        """Wait until anything here has changed, or for so many seconds."""
        await asyncio.wait([self._change], timeout=timeout)

    def notify(self) -> None:
        """Wake whoever waits for progress()."""
        self._change.set_result(None)
        self._change = self._loop.create_future()

    async def drain(self, behind: bool) -> None:
        """See SSEServer.drain."""
        target = self.log.head
        while self._swept < target or (
            behind and any(s.position < target for s in self.behind)
        ):
            await self.progress()


def _set_high_water(transport: asyncio.WriteTransport, size: int) -> None:
    """What the transport may hold before it says pause."""
    transport.set_write_buffer_limits(high=size)


def _jittered_ms(seconds: float) -> int:
    """Spread over half to one and a half, so that clients do not come back at once."""
    return max(1, round(seconds * 1000 * random.uniform(0.5, 1.5)))


def _close_soon(
    transport: asyncio.WriteTransport,
    loop: asyncio.AbstractEventLoop,
    timeout: float,
) -> None:
    """Close once everything is sent, or without that after `timeout` seconds."""
    if transport.is_closing():  # and a second close() would break asyncio's TLS
        return
    transport.close()
    # Over TLS the peer has to agree to the end, and not all that is unsent shows.
    if _unsent(transport) or transport.get_extra_info("sslcontext"):
        loop.call_later(timeout, _abort_late, weakref.ref(transport))


def _abort_late(reference: Callable[[], asyncio.WriteTransport | None]) -> None:
    transport = reference()
    # One whose connection is gone by now has nothing unsent, and no abort().
    if transport and (_unsent(transport) or transport.get_extra_info("sslcontext")):
        transport.abort()


# asyncio's TLS before Python 3.11 does not know that its connection is gone: it has no
# socket then, does not say that it is closing, and fails to say what is unsent.


def _is_closing(transport: asyncio.WriteTransport) -> bool:
    return transport.is_closing() or transport.get_extra_info("socket") is None


def _unsent(transport: asyncio.WriteTransport) -> int:
    """The bytes that the transport holds."""
    if transport.get_extra_info("socket") is None:
        return 0
    return transport.get_write_buffer_size()


# ------------------------------------------------------------------------------------
# 7. The server: connections, requests, answers.
#
#    A connection is a coroutine until it ends or becomes a stream.
# ------------------------------------------------------------------------------------

Authorize = Callable[[Request], Union[bool, Awaitable[bool]]]


class _Connection:
    """One HTTP connection: what was received of it, and the clock that it runs on."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, full: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.full = full  # above the limit: only told so
        self.idle = True  # nothing of a request has come since the last answer
        self.kept = False  # and there was an answer
        self.whole = False  # the current request was received to its end
        self.streaming = False  # a _Subscriber has taken it over
        self.received = bytearray()  # and not yet understood
        self.peer = _peer_name(writer.transport)
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self) -> bytes:
        """What comes next, b"" at the end; TimeoutError after the deadline."""
        data = await self.reader.read(64 * KIB)
        if data:
            self.idle = False
        return data

    def allow(self, seconds: float) -> None:
        """From now on the client has this long for what is expected of it."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + seconds
        # Setting a timer costs more than letting an old one find that it is early.
        if self._timer and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if not self._timer:
            self._timer = loop.call_at(self._deadline, self._check_deadline)

    def pause_clock(self) -> None:
        """It is not the client who is waited for."""
        self._deadline = math.inf

    def stop_clock(self) -> None:
        """There is nothing to wait for any more."""
        if self._timer:
            self._timer.cancel()

    def _check_deadline(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if loop.time() < self._deadline:
            if self._deadline < math.inf:
                self._timer = loop.call_at(self._deadline, self._check_deadline)
        elif _unsent(self.writer.transport):
            self.writer.transport.abort()  # it asks and does not read the answers
        else:
            self.reader.set_exception(TimeoutError())


class SSEServer:
    """Broadcasts what is published to everybody who is connected.

    Use it as `async with SSEServer() as server:` in a running event loop, as `with
    SSEServer() as server:` for an event loop in a thread of its own, or let
    `serve_forever()` do both ends.  A server runs once.  Raises ValueError for a bad
    argument; starting raises OSError where it cannot listen.

    Access: `authorize(request)` is asked before a request to `path` is served, for
    streams and for publishing (`request.method` tells).  True lets in, false is 403,
    an HTTPError is what it says, any other exception is logged and is 500.  A
    coroutine function runs in the event loop; a plain function in a thread, so that it
    may block.  `publish_token` allows `POST` to publish ("" and None: 405).
    `cors_origins` are the origins whose pages may read the stream, as in
    "https://example.com"; "*" is all of them, without credentials.

    Many processes: where all publish the same ids, which ascend when they are sorted
    by `id_order` (such as `int`), a client may resume at any of them.  One that has
    seen more than this process was given yet waits for it, up to 30 seconds.
    """

    def __init__(
        self,
        host: str | None = "localhost",  # None: every address of the machine
        port: int = 8080,  # 0: one that is free
        *,
        path: str = "/sse",
        # History, for those who come back
        history: int = 1000,  # events
        history_bytes: int = 16 * MIB,
        # Timing, in seconds
        heartbeat: float | None = 15.0,  # a comment to everybody; None: never
        retry: float = 2.0,  # clients wait this long to reconnect, jittered by half
        header_timeout: float = 10.0,  # for a request's head to be complete
        body_timeout: float = 30.0,  # for its body
        keepalive_timeout: float = 75.0,  # for the next request on a connection
        write_timeout: float = 30.0,  # a client that takes nothing for so long is cut
        shutdown_timeout: float = 5.0,  # for close() to be polite
        # Limits
        max_connections: int | None = None,  # None: what the descriptors allow
        max_event_bytes: int = MIB,  # of data, in UTF-8
        # Access
        authorize: Authorize | None = None,
        publish_token: str | None = None,
        cors_origins: Iterable[str] = (),
        # Transport
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
        # Ids that come from elsewhere: what they are sorted by, where they ascend
        id_order: Callable[[str], Any] | None = None,
    ) -> None:
        _check_integer("port", port, 0, 65535)
        for name, number, low in (
            ("history", history, 0),
            ("history_bytes", history_bytes, 0),
            ("max_connections", 1 if max_connections is None else max_connections, 1),
            ("max_event_bytes", max_event_bytes, 1),
        ):
            _check_integer(name, number, low)
        for name, seconds in (
            ("heartbeat", 1.0 if heartbeat is None else heartbeat),
            ("retry", retry),
            ("header_timeout", header_timeout),
            ("body_timeout", body_timeout),
            ("keepalive_timeout", keepalive_timeout),
            ("write_timeout", write_timeout),
            ("shutdown_timeout", shutdown_timeout),
        ):
            _check_seconds(name, seconds)
        if not re.fullmatch("/[!-~]*", path) or set(path) & set("?#"):
            raise ValueError(f"path is {path!r}; allowed is ASCII that begins with /")
        if isinstance(cors_origins, str):
            raise ValueError("cors_origins is a str; allowed is a sequence of them")
        for origin in cors_origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
                raise ValueError(
                    f"origin is {origin!r}; allowed are https://example.com and the "
                    "like, without a path, and *"
                )
        self._host, self._port = host, port
        self._path = _ESCAPE.sub(_decode_unreserved, path)
        self._retry = retry
        self._header_timeout = header_timeout
        self._body_timeout = body_timeout
        self._keepalive_timeout = keepalive_timeout
        self._write_timeout = write_timeout
        self._shutdown_timeout = shutdown_timeout
        self._max_connections = max_connections
        self._max_event_bytes = max_event_bytes
        self._authorize = authorize
        self._publish_token = (publish_token or "").encode()
        self._cors_origins = frozenset(cors_origins)
        self._ssl = ssl
        self._reuse_port = reuse_port
        log = EventLog(history, history_bytes, id_order)
        self._broadcaster = _Broadcaster(log, heartbeat, write_timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._refusing = 0  # connections above the limit, which are only told so
        self._refused = 0

    # What a program calls.

    def publish(
        self,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        channel: str | None = None,
    ) -> str:
        """Send an event to every subscriber of the channel; return the event's id.

        May be called from any thread, before the server is started (the event is then
        there for those who resume), and never waits for a client.  `data` and `event`
        are as in format_event, but None is sent as JSON's null; events named `open`,
        `error` or `gap` look to a client like the stream's own.  `id` is the caller's
        own, unique, and Last-Event-ID finds it; by default the server numbers.

        A burst that is larger than `history_bytes` loses its first events, and who
        misses them is told by a gap; a producer that may be so fast awaits drain().

        Raises ValueError for data above `max_event_bytes`, for what format_event
        refuses, and for an event, id or channel that is empty, above 256 bytes, or has
        a control character, or a space at an end (no header could bring it back);
        TypeError for data that is not JSON; RuntimeError once the server is closed.
        """
        for what, name in (("event", event), ("id", id), ("channel", channel)):
            if name is not None:
                _check_name(what, name)
        text = _to_text(data)
        body = format_event(text, event=event)
        # The frame is never shorter than the data, so the data is seldom measured.
        if len(body) > self._max_event_bytes:
            size = len(text.encode())
            if size > self._max_event_bytes:
                raise ValueError(
                    f"data has {size} bytes; allowed are {self._max_event_bytes}"
                )
        return self._broadcaster.publish(body, channel, id)

    def publish_gap(self, reason: str = "source") -> str:
        """Tell everybody, of every channel, that events are missing at this point.

        Who is connected gets an event `gap` with this reason, and so does who resumes
        from an earlier event, in its place.  For a program that feeds the server from
        elsewhere and has lost something on the way.  As publish(), from any thread.
        """
        body = format_event({"reason": reason}, event="gap")
        return self._broadcaster.publish(body, EVERYBODY, None)

    async def drain(self, behind: bool = False) -> None:
        """Return once all that was published is written to every live subscriber.

        With `behind`, also to every one that is behind, unless it is dropped first.
        Written means given to the connection's transport.  Must be awaited in the
        server's own event loop.
        """
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("drain() belongs into the event loop of the server")
        await self._broadcaster.drain(behind)

    def disconnect(self, predicate: Callable[[Request], bool]) -> None:
        """End the streams of the subscribers whose request the predicate is true of.

        May be called from any thread and does not wait; the predicate is called in the
        event loop soon after.  Browsers reconnect, so let `authorize` refuse them.
        """
        if self._loop is None or self._closing:
            return
        self._loop.call_soon_threadsafe(
            lambda: self._spawn(self._disconnect(predicate))
        )

    async def serve_forever(self) -> None:
        """Start if need be, and serve until close() or until this is cancelled."""
        async with self:
            await asyncio.shield(self._broadcasting)
            await self.close()

    async def close(self) -> None:
        """Deliver what was published, end every stream, and stop listening.

        Takes at most `shutdown_timeout` seconds; what has not ended by then is cut.
        Later calls wait for the first.
        """
        if self._loop is None:
            self._broadcaster.stop()
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    @property
    def port(self) -> int:
        """The port it listens on (or will; 0 becomes the real one at the start)."""
        return self._port

    @property
    def url(self) -> str:
        """Where the stream is."""
        host = self._host or "localhost"
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self._ssl else 'http'}://{host}:{self._port}{self._path}"

    @property
    def last_event_id(self) -> str:
        """The newest event's id: a stream that resumes there continues right after.

        Put it into a page that is rendered, and have the page open
        `/sse?last_event_id=...`: it will miss nothing between the two.
        """
        with self._broadcaster.lock:
            return self._broadcaster.log.last_id

    @property
    def stats(self) -> Stats:
        """Counts of this moment; may be read from any thread."""
        broadcaster = self._broadcaster
        behind = len(broadcaster.behind)
        return Stats(
            live=broadcaster.count - behind,
            behind=behind,
            published=broadcaster.log.head,
            events_written=broadcaster.events_written,
            bytes_written=broadcaster.bytes_written,
            gaps=broadcaster.gaps,
            dropped=broadcaster.dropped,
            refused=self._refused,
        )

    # Beginning and ending.

    async def __aenter__(self) -> SSEServer:
        await self._start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def __enter__(self) -> SSEServer:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run_in_thread, args=(started,), name="sse_server", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            if started.done():  # else it is Ctrl-C, and the start goes on
                self._thread.join()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._thread and self._loop
        with contextlib.suppress(RuntimeError):  # it was closed from within
            asyncio.run_coroutine_threadsafe(self.close(), self._loop).result()
        self._thread.join()

    def _run_in_thread(self, started: concurrent.futures.Future[None]) -> None:
        async def serve() -> None:
            await self._start()
            started.set_result(None)
            await self.serve_forever()

        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._broadcaster.closing:
            raise RuntimeError("the server was closed; a server runs once")
        if self._loop:
            if self._loop is not loop:
                raise RuntimeError("the server runs in another event loop")
            return
        if self._max_connections is None:
            self._max_connections = _connections_by_descriptors()
        await self._bind_all()
        self._loop = loop
        self._broadcasting = self._broadcaster.start()
        self._broadcasting.add_done_callback(_report_failure)
        try:
            for listener in self._listeners:
                await listener.start_serving()
                for sock in listener.sockets:
                    with sock.dup() as same:
                        same.listen(BACKLOG)  # accepting goes by ACCEPTS_PER_TURN
        except BaseException:
            await self.close()
            raise

    async def _bind_all(self) -> None:
        """Bind every address of the host, all of them to one port."""
        # Both, whatever the hosts file says: a browser may try either (RFC 6761, 6.3).
        addresses = ["127.0.0.1", "::1"]
        if self._host != "localhost":
            try:
                found = await asyncio.get_running_loop().getaddrinfo(
                    self._host or None,
                    self._port,
                    type=socket.SOCK_STREAM,
                    flags=socket.AI_PASSIVE,
                )
            except UnicodeError:
                raise OSError(f"{self._host!r} is not a host's name") from None
            addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        # With port 0 the first address gets a free port that may be taken on the next.
        attempts = 1 if self._port else 10
        for attempt in range(1, attempts + 1):
            try:
                self._listeners, self._port = await self._bind(addresses)
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or attempt == attempts:
                    raise

    async def _bind(self, addresses: list[str]) -> tuple[list[asyncio.Server], int]:
        listeners: list[asyncio.Server] = []
        port = self._port
        failure: OSError | None = None
        for address in addresses:
            try:
                listener = await asyncio.start_server(
                    self._accept,
                    address,
                    port,
                    backlog=ACCEPTS_PER_TURN,  # so asyncio uses it; see _start
                    start_serving=False,
                    ssl=self._ssl,
                    ssl_handshake_timeout=self._header_timeout if self._ssl else None,
                    reuse_port=self._reuse_port or None,
                )
            except OSError as error:
                # A name may have an address that the machine does not, as ::1 where
                # IPv6 is off; of Python 3.12 on the error comes without a number.
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, None):
                    failure = error
                    continue
                for bound in listeners:
                    bound.close()
                raise
            listeners.append(listener)
            (sock,) = listener.sockets
            port = sock.getsockname()[1]
            with sock.dup() as same:
                _set_socket_options(same, self._write_timeout)
        if not listeners:
            raise failure or OSError(f"{self._host} has no address")
        return listeners, port

    async def _close(self) -> None:
        assert self._loop
        deadline = self._loop.time() + self._shutdown_timeout
        for listener in self._listeners:
            listener.close()
        broadcaster = self._broadcaster
        aborted = self._loop.call_at(deadline, self._abort)
        broadcaster.stop()
        for connection in self._connections.values():
            if connection.idle:
                _close_soon(connection.writer.transport, self._loop, LINGER_SECONDS)
        await asyncio.wait([self._broadcasting])
        # Those behind end as soon as they have caught up.
        for subscriber in broadcaster.subscribers():
            if subscriber.live:
                broadcaster.end(subscriber, "the server ends")
        while self._connections or broadcaster.count or broadcaster.leaving:
            await broadcaster.progress()
        aborted.cancel()
        for task in self._tasks:
            task.cancel()

    def _abort(self) -> None:
        """The time to be polite is over."""
        broadcaster = self._broadcaster
        for subscriber in [*broadcaster.subscribers(), *broadcaster.leaving]:
            subscriber.transport.abort()
        for task, connection in self._connections.items():
            connection.writer.transport.abort()
            task.cancel()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _disconnect(self, predicate: Callable[[Request], bool]) -> None:
        for number, subscriber in enumerate(self._broadcaster.subscribers(), 1):
            try:
                if subscriber.audience and predicate(subscriber.request()):
                    self._broadcaster.end(subscriber, "disconnected by the program")
            except Exception:
                logger.exception("the predicate of disconnect() failed")
            if number % WRITES_PER_TURN == 0:
                await asyncio.sleep(0)

    # Connections.

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert self._max_connections
        served = len(self._connections) - self._refusing + self._broadcaster.count
        full = served >= self._max_connections
        if self._closing or (full and self._refusing == MAX_REFUSALS_AT_ONCE):
            self._refused += 1
            writer.transport.abort()
            return
        self._refusing += full
        connection = _Connection(reader, writer, full)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connection_done)

    def _connection_done(self, task: asyncio.Task[None]) -> None:
        self._refusing -= self._connections.pop(task).full
        self._broadcaster.notify()

    async def _serve(self, connection: _Connection) -> None:
        """Answer one request after the other, until the end or until a stream."""
        try:
            connection.allow(self._header_timeout)
            while await self._serve_request(connection) and not self._closing:
                connection.idle = not connection.received
                connection.kept = True
                connection.allow(self._keepalive_timeout)
                if connection.received:  # perhaps hundreds of requests: give way
                    await asyncio.sleep(0)
                if _is_closing(connection.writer.transport):
                    break
        except (OSError, TimeoutError) as error:
            logger.debug("%s: %r", connection.peer, error)
        except Exception:
            logger.exception("%s: serving a request failed", connection.peer)
        finally:
            connection.stop_clock()
            if not connection.streaming:
                transport = connection.writer.transport
                _close_soon(transport, asyncio.get_running_loop(), LINGER_SECONDS)

    async def _serve_request(self, connection: _Connection) -> bool:
        """Answer one request; whether the connection is good for another."""
        request = None
        connection.whole = False
        try:
            head = await self._receive_head(connection)
            if not head:
                return False
            request = parse_request(head, connection.peer)
            response = await self._respond(connection, request, head)
            if response is None:
                return False
        except HTTPError as error:
            response = _error_response(error)
        if request and request.path == self._path:
            response.fields.extend(self._cors_fields(request))
        again = request is not None and request.keep_alive and connection.whole
        body_wanted = not request or request.method != "HEAD"
        connection.writer.write(
            response.render(time.time(), again and not self._closing, body_wanted)
        )
        if _unsent(connection.writer.transport):
            connection.allow(self._write_timeout)
            await connection.writer.drain()
        if not connection.whole:
            await self._linger(connection)
        return again

    async def _receive_head(self, connection: _Connection) -> bytes:
        """The next request's head; b"" where the client leaves without one."""
        received = connection.received
        searched = 0
        try:
            while True:
                while received.startswith(b"\r\n"):  # RFC 9112, 2.2
                    del received[:2]
                end = find_head_end(received, searched)
                if end:
                    break
                if connection.kept and not connection.idle:
                    connection.kept = False
                    connection.allow(self._header_timeout)
                searched = len(received)
                data = await connection.receive()
                if not data:
                    return b""
                received += data
        except TimeoutError:
            if connection.kept:
                return b""
            seconds = f"{self._header_timeout:g} s"
            raise HTTPError(408, f"request head not complete in {seconds}") from None
        head = bytes(received[:end])
        del received[:end]
        return head

    async def _receive_body(
        self, connection: _Connection, request: Request, keep: bool = False
    ) -> bytes:
        """The request's body, which ends where the next request begins."""
        body = BodyReader(request, self._max_event_bytes, keep)
        complete = body.feed(connection.received)
        if not complete:
            connection.allow(self._body_timeout)
            if request.expects_continue:
                connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            while not complete:
                data = await connection.receive()
                if not data:
                    raise ConnectionResetError("closed within a request's body")
                complete = body.feed(data)
        except TimeoutError:
            seconds = f"{self._body_timeout:g} s"
            raise HTTPError(408, f"request body not complete in {seconds}") from None
        connection.received = body.rest
        connection.whole = True
        connection.pause_clock()
        return bytes(body.body)

    async def _linger(self, connection: _Connection) -> None:
        """Let the client read the answer before it sees a reset (RFC 9112, 9.6)."""
        if connection.writer.can_write_eof():
            connection.writer.write_eof()
        connection.allow(LINGER_SECONDS)
        left = LINGER_BYTES
        while left > 0:
            data = await connection.receive()
            if not data:
                break
            left -= len(data)

    # Answers.

    async def _respond(
        self, connection: _Connection, request: Request, head: bytes
    ) -> _Response | None:
        """Receive the request's body and answer; None where it became a stream."""
        if connection.full or self._closing:
            self._refused += 1
            return self._full_response(request)
        if request.path != self._path:
            await self._receive_body(connection, request)
            return _text_response(200, "ok")
        method = request.method
        if method == "POST" and self._publish_token:
            self._check_token(request)
            body = await self._receive_body(connection, request, keep=True)
            await self._check_authorized(connection, request)
            return self._publish_body(request, body)
        await self._receive_body(connection, request)
        if method == "OPTIONS":
            return _Response(204, [("Allow", self._allow)], b"")
        if method not in ("GET", "HEAD"):
            message = f"{method} is not allowed on {self._path}"
            raise HTTPError(405, message, [("Allow", self._allow)])
        await self._check_authorized(connection, request)
        if request.accepts("text/html") and not request.accepts("text/event-stream"):
            return _page_response()
        response = self._stream_response(request)
        if method == "HEAD":
            return response
        self._open_stream(connection, request, head, response)
        return None

    @property
    def _allow(self) -> str:
        return "GET, HEAD, OPTIONS" + (", POST" if self._publish_token else "")

    def _full_response(self, request: Request) -> _Response:
        """An error status would end a browser's EventSource for good."""
        seconds, why = FULL_RETRY_SECONDS, "the server is full"
        if self._closing:
            seconds, why = RESTART_RETRY_SECONDS, "the server is closing"
        milliseconds = _jittered_ms(seconds)
        if request.path == self._path and request.accepts("text/event-stream"):
            fields = [("Content-Type", "text/event-stream"), *_STREAM_FIELDS]
            return _Response(200, fields, format_event(retry=milliseconds))
        after = str(-(-milliseconds // 1000))
        raise HTTPError(503, why, [("Retry-After", after)])

    def _check_token(self, request: Request) -> None:
        given = (request.header("authorization") or "").encode(
            "utf-8", "surrogateescape"
        )
        scheme, _, token = given.partition(b" ")
        # Digests, so that not even the length shows in the time that it takes.
        expected = hashlib.sha256(self._publish_token).digest()
        equal = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), expected)
        if scheme.lower() != b"bearer" or not equal:
            raise HTTPError(
                401,
                "publishing needs Authorization: Bearer and the right token",
                [("WWW-Authenticate", 'Bearer realm="publish"')],
            )

    async def _check_authorized(
        self, connection: _Connection, request: Request
    ) -> None:
        """Ask the program; a plain function in a thread, because it may block."""
        if self._authorize is None:
            return
        transport = connection.writer.transport
        assert isinstance(transport, asyncio.Transport)
        # What comes meanwhile, such as the end of the input, is for the subscriber.
        transport.pause_reading()
        try:
            allowed = await asyncio.wait_for(
                _ask(self._authorize, request), AUTHORIZE_SECONDS
            )
        except HTTPError:
            raise
        except asyncio.TimeoutError:
            logger.error("authorize() took too long for %s", request.target)
            raise HTTPError(503, "asking for permission took too long") from None
        except Exception:
            logger.exception("authorize() failed for %s", request.target)
            raise HTTPError(500) from None
        finally:
            if not _is_closing(transport):
                transport.resume_reading()
        if not allowed:
            raise HTTPError(403)

    def _publish_body(self, request: Request, body: bytes) -> _Response:
        """POST: the body is the data; event, channel and id stand in the query."""
        fields = {}
        for name, values in request.parameters.items():
            if name not in ("event", "channel", "id") or len(values) > 1:
                raise HTTPError(
                    400,
                    f"parameter {name[:80]!a}, {len(values)} times; allowed are "
                    "event, channel and id, each once",
                )
            fields[name] = values[0]
        try:
            return _text_response(200, self.publish(body.decode(), **fields))
        except UnicodeDecodeError as error:
            raise HTTPError(400, f"the body is not UTF-8: {error}") from None
        except ValueError as error:
            raise HTTPError(400, str(error)) from None
        except RuntimeError as error:  # it was closed meanwhile
            raise HTTPError(503, str(error)) from None

    def _cors_fields(self, request: Request) -> list[tuple[str, str]]:
        """What lets pages of other origins read the answer (Fetch standard, 3.2)."""
        if not self._cors_origins:
            return []
        fields = [("Vary", "Origin")]
        origin = request.header("origin")
        if origin in self._cors_origins:
            fields.append(("Access-Control-Allow-Origin", origin))
            fields.append(("Access-Control-Allow-Credentials", "true"))
        elif "*" in self._cors_origins:
            fields.append(("Access-Control-Allow-Origin", "*"))
        else:
            return fields
        if request.method == "OPTIONS":
            fields.append(("Access-Control-Allow-Methods", self._allow))
            fields.append(
                (
                    "Access-Control-Allow-Headers",
                    "Authorization, Content-Type, Last-Event-ID",
                )
            )
            fields.append(("Access-Control-Max-Age", "600"))
        return fields

    # Streams.

    def _stream_response(self, request: Request) -> _Response:
        fields = [("Content-Type", "text/event-stream"), *_STREAM_FIELDS]
        if request.version >= (1, 1):
            fields.append(("Transfer-Encoding", "chunked"))
        return _Response(200, fields, None)

    def _open_stream(
        self,
        connection: _Connection,
        request: Request,
        head: bytes,
        response: _Response,
    ) -> None:
        """Write the stream's head, and hand the connection over to a _Subscriber."""
        transport = connection.writer.transport
        channels = request.channels
        if _is_closing(transport):
            return  # it left while it was being authorized
        chunked = request.version >= (1, 1)
        # Firefox calls onopen when the first byte of the body comes, and the retry
        # counts without a blank line, which some clients would take for an event.
        prelude = format_event(comment="open", retry=_jittered_ms(self._retry))
        response.fields.extend(self._cors_fields(request))
        subscriber = _Subscriber(
            self._broadcaster, connection.writer, connection.peer, head
        )
        connection.streaming = True
        transport.set_protocol(subscriber)
        transport.write(
            response.render(time.time(), chunked, True)
            + (_chunk(prelude) if chunked else prelude)
        )
        self._broadcaster.add(subscriber, channels, chunked, request.last_event_id)


async def _ask(authorize: Authorize, request: Request) -> bool:
    if inspect.iscoroutinefunction(authorize):
        return bool(await authorize(request))
    loop = asyncio.get_running_loop()
    allowed = await loop.run_in_executor(None, authorize, request)
    return bool(await allowed if inspect.isawaitable(allowed) else allowed)


def _report_failure(broadcasting: asyncio.Task[None]) -> None:
    if not broadcasting.cancelled() and broadcasting.exception():
        logger.critical("broadcasting ended", exc_info=broadcasting.exception())


def _check_integer(name: str, value: int, low: int, high: float = math.inf) -> None:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        allowed = f"integers from {low}" + (f" to {high}" if high < math.inf else "")
        raise ValueError(f"{name} is {value!r}; allowed are {allowed}")


def _check_seconds(name: str, value: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; allowed are seconds above 0")


def _connections_by_descriptors() -> int:
    """What the process may open, less a reserve for everything else."""
    try:
        import resource
    except ImportError:  # Windows: select() takes 512 sockets
        return 512 - RESERVED_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, soft - RESERVED_DESCRIPTORS)


def _set_socket_options(listening: socket.socket, write_timeout: float) -> None:
    """Notice within a minute that a peer has vanished (asyncio sets TCP_NODELAY).

    Connections inherit the options of the socket that they were accepted from.
    """
    # Linux also ends who is there and takes nothing; that is write_timeout's task.
    user_timeout = min(2**31 - 1, int(1000 * max(VANISHED_SECONDS, write_timeout)))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", user_timeout),
    ):
        if hasattr(socket, name):  # where the platform has it
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# ------------------------------------------------------------------------------------
# 8. The page that a browser is given when it navigates to the stream.
# ------------------------------------------------------------------------------------

_PAGE = rb"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Event stream</title>
<link rel="icon" href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'
viewBox='0 0 4 4'><circle cx='2' cy='2' r='2' fill='%230a66c2'/></svg>">
<style>
:root { color-scheme: light dark;
  --back: #fbfbfa; --card: #fff; --text: #1d1f21; --quiet: #686c71; --line: #e3e4e2;
  --accent: #0a66c2; --fresh: #e4effb; --alert: #b3470b; --alert-back: #fdf1e7; }
@media (prefers-color-scheme: dark) { :root {
  --back: #131517; --card: #1a1d20; --text: #e4e6e8; --quiet: #959ba1; --line: #2b2f33;
  --accent: #6db3f8; --fresh: #1b2c3f; --alert: #f2a365; --alert-back: #30221a; } }
* { box-sizing: border-box; margin: 0; padding: 0; }
[hidden] { display: none !important; }
body { background: var(--back); color: var(--text);
  font: 14px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1, ol { font-family: ui-monospace, Menlo, Consolas, monospace; }
header, main { max-width: 1400px; margin: auto; padding: 12px 20px; }
header { position: sticky; top: 0; z-index: 1; background: var(--back);
  border-bottom: 1px solid var(--line); display: grid; gap: 8px 24px;
  grid: "url numbers" "status tools" / minmax(0, 1fr) auto; align-items: center; }
h1 { grid-area: url; font-size: 16px; }
#numbers { grid-area: numbers; color: var(--quiet); text-align: right; }
#numbers b { display: inline-block; min-width: 5ch;
  color: var(--text); font-size: 16px; }
#status { grid-area: status; display: flex; align-items: center; gap: 8px;
  min-height: 32px; color: var(--quiet); }
#state { display: flex; align-items: center; gap: 8px; font-weight: 600; }
#state::before { content: ""; padding: 3px; border: 2px solid; border-radius: 50%; }
.live #state { color: var(--accent); }
.reconnecting #state, .stopped #state { color: var(--alert); }
.live #state::before, .stopped #state::before { background: currentColor; }
.stopped #state::before { border-radius: 1px; }
#tools { grid-area: tools; display: flex; gap: 8px; }
input, button { height: 32px; padding: 0 10px; font: inherit; color: inherit;
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
input { width: 260px; flex: 1; min-width: 0; }
button { cursor: pointer; white-space: nowrap; min-width: 84px; }
button:hover { border-color: var(--quiet); }
[aria-pressed="true"] { border-color: var(--alert); color: var(--alert); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
#charts { display: grid; gap: 12px; margin-bottom: 12px;
  grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px 14px; min-width: 0; }
figcaption, .range { display: flex; justify-content: space-between; gap: 8px; }
.range { color: var(--quiet); font-size: 12px; }
h1, figure span, .name, .id { overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
svg { display: block; width: 100%; height: 56px; margin: 10px 0; overflow: visible; }
path { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke; }
.dot { stroke-width: 6; }
ol { list-style: none; font-size: 13px; }
li { display: grid; grid-template-columns: 13ch 12ch 20ch minmax(0, 1fr); gap: 0 16px;
  padding: 5px 8px; border-bottom: 1px solid var(--line);
  content-visibility: auto; contain-intrinsic-size: auto 30px; }
time, .id, .plain .name, .note, #empty { color: var(--quiet); }
pre { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; text-align: left;
  max-height: 13em; overflow-y: auto; }
.note pre { grid-column: 2 / -1; grid-row: 1; }
.gap { background: var(--alert-back); box-shadow: inset 3px 0 var(--alert); }
.gap .name, .gap pre::first-line { color: var(--alert); font-weight: 600; }
#empty { padding: 24px 8px; }
@media (max-width: 720px) {
  header, main { padding: 10px 12px; }
  header { gap: 6px; grid-template-areas: "url numbers" "status status" "tools tools"; }
  #numbers b { min-width: 0; margin-left: 4px; }
  #detail { font-size: 13px; line-height: 1.2; }
  #charts { gap: 8px; overflow-x: auto; grid: auto / auto-flow minmax(150px, 1fr); }
  li { grid-template-columns: auto auto minmax(0, 1fr); }
  pre { grid-column: 1 / -1; }
}
@media (prefers-reduced-motion: no-preference) { .fresh { animation: fresh .8s; } }
@keyframes fresh { from { background: var(--fresh); } }
</style>
</head>
<body>
<header>
  <h1 id="url"></h1>
  <p id="numbers"><b id="rate"></b> events/s <b id="total"></b> events</p>
  <div id="status"><span id="state" role="status"></span> <span id="detail"></span>
    <button id="again" type="button" hidden>Try again</button></div>
  <div id="tools">
    <input id="filter" type="search" placeholder="Filter by name, id or text"
      aria-label="Filter by name, id or text" autocomplete="off" spellcheck="false">
    <button id="pause" type="button" aria-pressed="false">Pause</button></div>
</header>
<main>
  <section id="charts" aria-label="Numbers in the data" hidden></section>
  <ol id="list" aria-label="Events, newest first"></ol>
  <p id="empty">No events yet.</p>
  <noscript><p>This page needs JavaScript. The stream itself does not.</p></noscript>
</main>
<template id="row"><li><time></time><span class="name"></span><span class="id"></span
  ><pre></pre></li></template>
<template id="chart"><figure>
  <figcaption><span></span><b></b></figcaption>
  <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"
    ><path class="line"/><path class="dot"/></svg>
  <div class="range"><span></span><span></span></div></figure></template>
<script>
"use strict";
const ROWS = 200;            // events in the list
const TEXT = 2000;           // characters of an event's data in the list
const NAME = 256;            // characters of a name, of an id, of a chart's label
const CHARTS = 12;           // numeric fields that are drawn: the first to appear
const POINTS = 240;          // values in a chart
const DEPTH = 2;             // levels of JSON that are searched for numbers
const SEARCHED = 64 * 1024;  // characters; longer data is not searched
const PAINT_EVERY = 100;     // ms
const BACK_OFF = 30000;      // ms between attempts, unless `retry` asks for more
const RETRY = [250, 864e5];  // ms, the limits to `retry`: no busy loop, no overflow
const SILENT = 35000;        // ms: two heartbeats at the usual 15 s are overdue

const $ = (id) => document.getElementById(id);
const encoder = new TextEncoder();
const grouped = new Intl.NumberFormat("en", {maximumFractionDigits: 4});
const compact = new Intl.NumberFormat("en",
  {notation: "compact", maximumSignificantDigits: 4});

// The event stream format of the HTML standard, 9.2.6: text in, events out.
class Decoder {
  constructor(dispatch) {
    Object.assign(this, {dispatch, lastId: "", retry: 2000});
    this.restart();
  }
  restart() {  // for a new connection: an incomplete event is dropped
    this.id = this.lastId;
    this.name = this.data = this.rest = "";
    this.afterCR = false;
  }
  push(text) {
    if (text === "") return;
    if (this.afterCR && text[0] === "\n") text = text.slice(1);
    this.afterCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.rest + lines[0];
    this.rest = lines.pop();
    for (const line of lines) this.take(line);
  }
  take(line) {
    if (line === "") return this.end();
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (field === "data") this.data += value + "\n";
    else if (field === "event") this.name = value;
    else if (field === "id" && !value.includes("\0")) this.id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }
  end() {
    const {name, data, id} = this;
    Object.assign(this, {lastId: id, name: "", data: ""});
    if (data !== "") this.dispatch(name || "message", id, data.slice(0, -1));
  }
}

// The list. What arrives waits in `pending`, which is bounded, for the next painting.
const pending = [];
let total = 0, gaps = 0, paused = false, wanted = "";
let painted = -PAINT_EVERY, paintDue = false;

function receive(name, id, data) {
  total += 1;
  if (name === "gap") gaps += 1;
  if (name === "gap") charts.forEach((chart) => addPoint(chart, NaN));
  else if (data.length <= SEARCHED) chartNumbers(name, data);
  add(name === "gap" ? "gap" : name === "message" ? "plain" : "", name, id, data);
}

function add(kind, name, id, data) {
  const text = (data.length <= TEXT ? "" : `[the first ${grouped.format(TEXT)} of `
    + `${grouped.format(data.length)} characters]\n`) + copy(data, TEXT);
  const at = Date.now();
  const event = {kind, at, name: copy(name, NAME), id: copy(id, NAME), text};
  if (matches(event)) pending.push(event);
  if (pending.length >= 2 * ROWS) pending.splice(0, ROWS);
  paintSoon();
}

// A mere slice would keep the whole long text that it was cut from in memory.
function copy(text, most) {
  const bytes = encoder.encode(text.slice(0, most));
  return new TextDecoder("utf-8", {ignoreBOM: true}).decode(bytes);
}

function matches({name, id, text}) {
  return !wanted || `${name} ${id} ${text}`.toLowerCase().includes(wanted);
}

// Characters that cannot be seen, or that reorder others, become their code points.
function visible(text) {
  return text.replace(
    /[\0-\x08\v-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (c) => "[U+" + c.charCodeAt().toString(16).toUpperCase().padStart(4, "0") + "]");
}

function makeRow(event, fresh) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  const [time, name, id, pre] = row.children;
  const local = event.at - new Date(event.at).getTimezoneOffset() * 60000;
  time.textContent = new Date(local).toISOString().slice(11, 23);
  name.textContent = name.title = visible(event.name);
  id.textContent = id.title = visible(event.id);
  pre.textContent = (event.kind === "gap" ? "gap: events were missed\n" : "")
    + visible(event.text);
  row.className = event.kind + (fresh ? " fresh" : "");
  row.event = event;
  row.hidden = !matches(event);  // the filter may have changed since it arrived
  return row;
}

// Never more often than each PAINT_EVERY, and not at all while the tab is hidden.
function paintSoon() {
  if (paintDue) return;
  paintDue = true;
  setTimeout(requestAnimationFrame, painted + PAINT_EVERY - performance.now(), paint);
}

function paint() {
  paintDue = false;
  painted = performance.now();
  if (!paused) {
    const events = pending.splice(0).slice(-ROWS).reverse();
    $("list").prepend(...events.map((event) => makeRow(event, events.length === 1)));
    while ($("list").childElementCount > ROWS) $("list").lastElementChild.remove();
    charts.forEach((chart) => chart.changed && drawChart(chart));
  }
  $("total").textContent = grouped.format(total);
  $("empty").hidden = $("list").querySelector("li:not([hidden])") !== null;
  $("empty").textContent = wanted ? "No event matches the filter." : "No events yet.";
}

// The charts: one for each numeric field, by the event's name and the field's path.
const charts = new Map();

function chartNumbers(name, data) {
  try { data = JSON.parse(data); } catch { return; }
  eachNumber(data, name === "message" ? [] : [name], DEPTH, (path, number) => {
    const label = path.join(".").slice(0, NAME) || "data";
    if (!charts.has(label) && charts.size < CHARTS) charts.set(label, makeChart(label));
    if (charts.has(label)) addPoint(charts.get(label), number);
  });
}

function eachNumber(value, path, depth, use) {
  if (Number.isFinite(value)) use(path, value);
  if (depth === 0 || typeof value !== "object" || value === null) return;
  for (const [key, inner] of Object.entries(value))
    eachNumber(inner, [...path, key], depth - 1, use);
}

function makeChart(label) {
  const figure = $("chart").content.firstElementChild.cloneNode(true);
  const [title, value, line, dot, low, high] = figure.querySelectorAll("span, b, path");
  title.textContent = title.title = visible(label);
  $("charts").append(figure);
  $("charts").hidden = false;
  return {value, line, dot, low, high, points: [], changed: false};
}

// NaN, for a gap, breaks the line.
function addPoint(chart, number) {
  if (isNaN(number) && isNaN(chart.points.at(-1))) return;
  chart.points.push(number);
  if (chart.points.length > POINTS) chart.points.shift();
  chart.changed = true;
}

function drawChart(chart) {
  const {points} = chart, known = points.filter(Number.isFinite);
  const low = Math.min(...known), high = Math.max(...known);
  const height = high / 2 - low / 2;  // halves, because high - low may overflow
  const width = Math.max(30, points.length) - 1;
  const place = (i) => (100 - (points.length - 1 - i) / width * 100).toFixed(2) + " "
    + (height ? 100 - (points[i] / 2 - low / 2) / height * 100 : 50).toFixed(2);
  const step = (v, i) => isNaN(v) ? ""
    : isNaN(points[i - 1]) ? "M" + place(i) + "h0" : "L" + place(i);
  const last = points.length - (isNaN(points.at(-1)) ? 2 : 1);
  chart.line.setAttribute("d", points.map(step).join(""));
  chart.dot.setAttribute("d", "M" + place(last) + "h0");
  chart.value.textContent = format(points[last], grouped);
  chart.low.textContent = "min " + format(low, compact);
  chart.high.textContent = "max " + format(high, compact);
  chart.changed = false;
}

function format(number, style) {
  const size = Math.abs(number);
  return size >= 1e12 || size < 1e-3 && size > 0 ? number.toExponential(2)
    : style.format(number);
}

// The connection. EventSource would not do: it hides events whose names it is not told.
const decoder = new Decoder(receive);
const samples = [];
let failures = 0, heard = 0, resumeAt = 0, state = "", reason = "", wake = () => {};

async function follow() {
  for (;;) {
    show("connecting", reason);
    const [outcome, why] = await connect();
    if (outcome === "stopped") {
      show("stopped", why);
      await sleep(Infinity);
    } else {
      const retry = Math.min(Math.max(decoder.retry, RETRY[0]), RETRY[1]);
      const wait = Math.max(retry, Math.min(BACK_OFF, retry * 2 ** failures));
      failures += 1;
      resumeAt = Date.now() + wait;
      show("reconnecting", why);
      await sleep(wait);
    }
  }
}

// One connection, until it ends: what comes next, and why.
async function connect() {
  const headers = {Accept: "text/event-stream"};
  // Header values are bytes: UTF-8, each byte in the place of one Latin-1 character.
  const id = Array.from(encoder.encode(decoder.lastId), (b) => String.fromCharCode(b));
  if (id.length) headers["Last-Event-ID"] = id.join("");
  const address = location.origin + location.pathname + location.search;
  const answer = await fetch(address, {headers, cache: "no-store"}).catch(() => null);
  if (!answer) return ["lost", "no answer"];
  // A proxy says so while the server restarts.
  if (answer.status >= 500) return ["lost", answer.status + " " + answer.statusText];
  const type = answer.headers.get("Content-Type") || "no type";
  if (answer.status !== 200 || !/^text\/event-stream *(;|$)/i.test(type)) {
    answer.body?.cancel();
    return ["stopped", answer.status === 204 ? "by the server (204)"
      : answer.status !== 200 ? answer.status + " " + answer.statusText
      : "not an event stream: " + type];
  }
  return read(answer.body.getReader());
}

async function read(reader) {
  const text = new TextDecoder();
  let rested = performance.now();
  if (reason) note("connected");
  failures = 0;
  heard = Date.now();
  decoder.restart();
  show("live", "");
  for (;;) {
    const {value, done} = await reader.read().catch(() => ({}));
    if (!value) {
      const why = done ? "the stream ended" : "the connection broke";
      note(why);
      return ["lost", why];
    }
    heard = Date.now();
    decoder.push(text.decode(value, {stream: true}));
    // A flood must leave time to paint and to click. Hidden tabs have slow timers.
    if (performance.now() - rested > PAINT_EVERY / 2 && !document.hidden) {
      await sleep(0);
      rested = performance.now();
    }
  }
}

function note(text) { add("note", "", "", text); }

function sleep(ms) {
  return new Promise((resolve) => {
    wake = resolve;
    if (ms < Infinity) setTimeout(resolve, ms);
  });
}

function show(newState, why) {
  state = newState;
  reason = why;
  $("status").className = $("state").textContent = state;
  $("again").hidden = state === "live" || state === "connecting";
  showDetail();
}

function showDetail() {
  const left = Math.max(0, Math.ceil((resumeAt - Date.now()) / 1000));
  const silent = Math.round((Date.now() - heard) / 1000);
  $("detail").textContent = state === "reconnecting" ? `in ${left} s: ${reason}`
    : state !== "live" ? reason
    : silent * 1000 >= SILENT ? `silent for ${silent} s`
    : gaps > 0 ? `events were missed ${gaps === 1 ? "once" : gaps + " times"}` : "";
}

function eachSecond() {
  const now = performance.now();
  samples.push([now, total]);
  const [then, before] = samples.length > 10 ? samples.shift() : samples[0];
  const rate = (total - before) * 1000 / (now - then) || 0;
  const text = rate < 10 ? rate.toFixed(1) : grouped.format(Math.round(rate));
  $("rate").textContent = text;
  document.title = (state === "live" ? text + "/s " : state + " ") + location.pathname;
  showDetail();
}

$("again").addEventListener("click", () => wake());
addEventListener("online", () => state === "reconnecting" && wake());
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").textContent = paused ? "Resume" : "Pause";
  $("pause").setAttribute("aria-pressed", paused);
  paintSoon();
});
$("filter").addEventListener("input", () => {
  wanted = $("filter").value.toLowerCase();
  for (const row of $("list").children) row.hidden = !matches(row.event);
  paintSoon();
});
$("url").textContent = location.pathname + location.search;
setInterval(eachSecond, 1000);
eachSecond();
paint();
follow();
</script>
</body>
</html>
"""


def _page_response() -> _Response:
    return _Response(200, list(_PAGE_FIELDS), _PAGE)


def _csp_hash(element: str) -> str:
    """The hash by which the policy allows the page's own script or style."""
    found = re.search(f"<{element}>(.*?)</{element}>", _PAGE.decode(), re.DOTALL)
    assert found
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_PAGE_FIELDS = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Vary", "Accept"),
    (
        "Content-Security-Policy",
        (
            f"default-src 'none'; script-src {_csp_hash('script')}; "
            f"style-src {_csp_hash('style')}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]


# ------------------------------------------------------------------------------------
# 9. The command line: a clock to look at, or the lines of standard input.
# ------------------------------------------------------------------------------------


async def publish_clock(server: SSEServer, options: argparse.Namespace) -> None:
    """The demo's feed: the time, every second."""
    while True:
        now = datetime.datetime.now(datetime.timezone.utc)
        timestamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        server.publish(
            {"timestamp": timestamp}, event=options.event, channel=options.channel
        )
        await asyncio.sleep(1)


def read_lines(fd: int, max_bytes: int) -> Iterator[list[bytes]]:
    """The lines of a file descriptor, as many at once as one read brings.

    Blocks while there are none.  A line above `max_bytes` is reported and left out;
    what follows the last line's end is a line too.
    """
    rest = b""
    cut = 0  # bytes dropped of `rest`, which is too long anyway
    while True:
        data = os.read(fd, 64 * KIB)
        *lines, rest = (rest + data).split(b"\n")
        if not data and rest:
            lines, rest = [rest], b""
        fitting = []
        for line in lines:
            line = line[:-1] if line.endswith(b"\r") else line
            size = len(line) + cut
            cut = 0
            if size <= max_bytes:
                fitting.append(line)
            else:
                logger.error("skipped a line of %d bytes; allowed: %d", size, max_bytes)
        yield fitting
        if not data:
            return
        excess = len(rest) - (max_bytes + 2)
        if excess > 0:
            cut += excess
            rest = rest[:-excess]


def publish_lines(
    server: SSEServer, loop: asyncio.AbstractEventLoop, options: argparse.Namespace
) -> None:
    """Publish standard input line by line; runs in a thread, because reading blocks.

    The next lines are read when these are swept; with --lossless, when they are written
    to everybody who is behind as well, and never more at once than the history holds.
    """
    at_once = max(1, options.history) if options.lossless else sys.maxsize
    fd = sys.stdin.fileno() if sys.stdin else -1  # None: it was closed
    try:
        for lines in read_lines(fd, options.max_event_bytes):
            for start in range(0, len(lines), at_once):
                for line in lines[start : start + at_once]:
                    publish_line(server, line, options)
                drained = server.drain(behind=options.lossless)
                asyncio.run_coroutine_threadsafe(drained, loop).result()
    except OSError as error:
        logger.error("cannot read the input: %s; still serving", error)
    except (RuntimeError, concurrent.futures.CancelledError):
        logger.info("the input goes on, and the server ends")
    else:
        logger.info("end of the input; still serving")


def publish_line(server: SSEServer, line: bytes, options: argparse.Namespace) -> None:
    """Publish one line; what is not UTF-8 becomes U+FFFD."""
    text = line.decode("utf-8", "replace")
    try:
        server.publish(text, event=options.event, channel=options.channel)
    except ValueError as error:  # U+FFFD takes more bytes than what it replaces
        logger.error("skipped a line: %s", error)


# For each group its options: name, type, default, metavar, help.
_OPTIONS: dict[str, list[tuple[str, Any, Any, str, str]]] = {
    "where it listens": [
        ("--host", str, "localhost", "HOST", "name or address; 0.0.0.0 is any of them"),
        ("--port", int, 8080, "PORT", "TCP; 0 is one that is free"),
        ("--certfile", str, None, "FILE", "serve HTTPS, with this certificate"),
        ("--keyfile", str, None, "FILE", "its key, if in a file of its own"),
    ],
    "what it publishes": [
        ("--event", str, None, "NAME", "the name of the events"),
        ("--channel", str, None, "NAME", "the channel they go to"),
        ("--publish-token", str, None, "TOKEN", "let POST publish with this token"),
    ],
    "who may read it": [],
    "limits": [
        ("--history", int, 1000, "EVENTS", "kept for those who come back"),
        ("--heartbeat", float, 15.0, "SECONDS", "between comments on idle streams"),
        ("--max-event-bytes", int, MIB, "BYTES", "of data in one event"),
        ("--max-connections", int, None, "NUMBER", "default: what descriptors allow"),
    ],
}  # fmt: skip


class _ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sse_server: {message}; --help shows all options\n")


def _argument_parser() -> argparse.ArgumentParser:
    parser = _ArgumentParser(
        prog="sse_server.py",
        usage="%(prog)s [options] [-]",
        description="Broadcast Server-Sent Events: a clock, or the lines of the input.",
        epilog="SSE_PUBLISH_TOKEN in the environment is a --publish-token that other "
        "users do not see.",
    )
    parser.add_argument(
        "input", nargs="?", choices=["-"], help="publish the lines of standard input"
    )
    parser.add_argument(
        "--version", action="version", version=f"sse_server {__version__}"
    )
    groups = {title: parser.add_argument_group(title) for title in _OPTIONS}
    for title, options in _OPTIONS.items():
        for name, kind, default, metavar, text in options:
            shown = text if default is None else f"{text} ({default})"
            groups[title].add_argument(
                name, type=kind, default=default, metavar=metavar, help=shown
            )
    groups["what it publishes"].add_argument(
        "--lossless",
        action="store_true",
        help="with -: read on when all clients are written what was read",
    )
    groups["who may read it"].add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        help="pages of this origin (https://example.com), or of all (*), may read the "
        "stream; may be repeated",
    )
    says = parser.add_argument_group("what it says").add_mutually_exclusive_group()
    says.add_argument("--verbose", action="store_true", help="everything")
    says.add_argument("--quiet", action="store_true", help="only what is wrong")
    return parser


def _make_server(options: argparse.Namespace) -> SSEServer:
    """ValueError for a bad option, OSError for a certificate that cannot be used."""
    for name in (options.event, options.channel):
        if name is not None:
            _check_name("name", name)
    return SSEServer(
        options.host,
        options.port,
        # What a client that is behind has not been written must be held somewhere.
        history=max(options.history, 1) if options.lossless else options.history,
        heartbeat=options.heartbeat,
        max_connections=options.max_connections,
        max_event_bytes=options.max_event_bytes,
        publish_token=options.publish_token or os.environ.get("SSE_PUBLISH_TOKEN"),
        cors_origins=options.cors_origin or (),
        ssl=_tls_context(options.certfile, options.keyfile),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _argument_parser()
    options = parser.parse_args(arguments)
    if options.lossless and not options.input:
        parser.error("--lossless goes with -, the lines of standard input")
    if options.keyfile and not options.certfile:
        parser.error("--keyfile goes with --certfile")
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        level=logging.DEBUG if options.verbose else level,
    )
    _raise_descriptor_limit()
    try:
        server = _make_server(options)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        files = " and ".join(filter(None, (options.certfile, options.keyfile)))
        print(f"sse_server: cannot use {files}: {error}", file=sys.stderr)
        return 1
    try:
        asyncio.run(_run(server, options))
    except OSError as error:
        print(
            f"sse_server: cannot listen on {options.host}:{options.port}: "
            f"{error.strerror or error}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:  # where the event loop cannot handle signals
        pass
    return 0


async def _run(server: SSEServer, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    closing: list[asyncio.Task[None]] = []

    def stop(number: signal.Signals) -> None:
        if closing:  # the second signal ends it at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        logger.info("%s: ending", number.name)
        closing.append(loop.create_task(server.close()))

    async with server:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, stop, number)
        if not options.quiet:
            with contextlib.suppress(BrokenPipeError):  # nobody reads it
                print(f"Listening on {server.url}", flush=True)
                print(
                    f"Watch it: curl -N {server.url}, or open it in a browser",
                    flush=True,
                )
        if options.input:
            threading.Thread(
                target=publish_lines, args=(server, loop, options), daemon=True
            ).start()
            await server.serve_forever()
        else:
            feed = loop.create_task(publish_clock(server, options))
            await server.serve_forever()
            feed.cancel()


def _raise_descriptor_limit() -> None:
    """Each stream is a descriptor, and the usual soft limit is 1024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tls_context(
    certfile: str | None, keyfile: str | None
) -> ssl_module.SSLContext | None:
    if not certfile:
        return None
    context = ssl_module.create_default_context(ssl_module.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    return context


if __name__ == "__main__":
    sys.exit(main())
