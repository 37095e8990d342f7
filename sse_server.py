#!/usr/bin/env python3
"""A Server-Sent Events server in one file.  It needs only Python 3.9 or later.

    python sse_server.py                     a clock at http://localhost:8080/sse
    tail -f app.log | python sse_server.py - each line an event

    async with SSEServer() as server:        in your own program; publish() may be
        server.publish({"temperature": 21})  called from a coroutine or any thread

It broadcasts events over HTTP (`text/event-stream`, HTML standard, section 9.2) to
everybody connected to /sse and answers 200 `ok` on every other path.

     publish(data) --> format_event --> log.append --> ring the bell     (any thread)
                                           |
                _EventLog  ... [ 17  18  19  20  21  22 ]   the one buffer: bounded
                                  ^               ^         in events and in bytes
              behind: a tablet ---'               '--- sent: every live subscriber
              (a position of its own)                  (one position for all of them)
                                           |
     GET /sse --> parse_request --> site.decide --> position --> catch up --> live

The rules from which the rest follows:

1. A subscriber is a position in the log.  It owns no queue and no task.  All live
   subscribers share one position, `sent`.  The broadcaster moves it: it takes the next
   batch of events after `sent`, encodes the batch once for each audience (the
   subscribers that need identical bytes), and writes it to each live subscriber.
2. A subscriber that resumes and a subscriber that is slow are the same thing: they are
   behind.  Each has a position of its own, gets the next batch when its socket has
   room, and becomes live when its position equals `sent`.
3. An event may be lost, but never silently.  A client whose position is no longer in
   the log, or whose id is unknown, gets one event named `gap`, then the events that the
   log holds.  A program can publish an event as retained.  The log keeps the newest
   retained event of each name even when it forgets the events around it.  A new client
   gets the retained events first.  A client that was told of a gap gets them after it.
4. Every buffer has a bound.  Every wait for a client has a deadline.
5. One coroutine, the broadcaster's, writes all events.  It waits for no client.  An
   event is never split between two batches.
6. A connection is one object from its first byte to its last: the protocol of its
   transport.  It has one state, and only `_Registry.enter` changes it:

   state       what happens in it                      it ends with
   handshake   TLS is being agreed on                  head, closed
   head        a request's head is received            asking, body, answering
   asking      `authorize` decides (a task)            body, publishing, answering
   body        a request's body is received            publishing, answering
   publishing  an event is added to a file (a task)    answering
   answering   the socket takes the answer             head, idle, a stream's states
   idle        the next request may come               head
   lingering   after an error, input is discarded      leaving
   ready       behind, and its socket has room         ready, full, live
   full        behind, and its socket has no room      ready, live
   ahead       its last event is not published here    ready, full
   live        it was given all, its socket took it    full, ready
   leaving     the last bytes are being sent           closed

   Each state but leaving may also end with leaving or closed; head, asking and body may
   also end with lingering.  A subscriber is live only while its socket has taken
   everything.  A request that comes by ASGI is a call, with the same states but without
   a socket: it comes for the next bytes of its stream, and is live while it does.
7. The site decides what is answered.  It is given values and returns values, and has no
   socket.  It is asked when a request's head is there, again when `authorize` has
   decided, and again when the body is there.

With a history file, the log is a SQLite database, _LogFile.  All processes that name it
add to it, and each takes what is new into its _EventLog, in the order of the file: the
_EventLog is then a window of the newest events.  Everything else is as without a file.

It does not do HTTP/2, WebSocket, sessions, or the renewal of certificates.  For HTTP/2
and certificates, put a proxy in front.  For sessions, use the `authorize` hook.  To run
processes on many machines, feed each from the log of a broker and use the broker's ids
as the ids of the events, or let the other processes read from one server.
"""

from __future__ import annotations  # this file needs Python 3.9 or later

import abc
import argparse
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import errno
import functools
import hashlib
import hmac
import html
import http
import importlib
import inspect
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import types
import urllib.parse
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    NoReturn,
    Optional,
    TypeVar,
    Union,
    cast,
)

if TYPE_CHECKING:  # some small systems have no `ssl`, and no `zlib`
    import sqlite3
    import ssl as ssl_module

# 3.7 and 3.8 get here, as long as this file contains no syntax that is new in 3.8.
if sys.version_info < (3, 9):  # noqa: UP036
    _kind = SystemExit if __name__ == "__main__" else ImportError
    _found = sys.version.split()[0]
    raise _kind(f"sse_server needs Python 3.9 or later; this is {_found}")

__version__ = "2.0.0"
__all__ = ["EVERYBODY", "HTTPError", "Request", "SSEServer", "Stats", "format_event"]

logger = logging.getLogger("sse_server")


# ------------------------------------------------------------------------------------
# 1. Limits.  One that a user may want to change is a parameter of SSEServer.
# ------------------------------------------------------------------------------------

_KIB = 1024
_MIB = 1024 * _KIB

_MAX_HEAD_BYTES = 16 * _KIB  # request line and header fields; browsers stay below 8 KiB
_MAX_FIELDS = 200  # header fields of one request; browsers send about 15
_MAX_CHUNK_LINE_BYTES = 256  # a chunk's size with its extensions (RFC 9112, 7.1.1)
_MAX_NAME_BYTES = 256  # an event's name, an id or a channel's name, in UTF-8
_MAX_CHANNELS = 100  # of one subscriber
_MAX_PARAMETERS = 200  # of one query
_MAX_ASKED_FIELDS = 50  # names that a preflight asks for and is allowed
_MAX_LOGGED_ORIGINS = 100  # of pages that may not read the stream, each logged once
# What is read of a connection at once.  At most twice as much is held before it is
# parsed: what came while its turn was over, and what came before reading was paused.
_READ_BYTES = 32 * _KIB
_TLS_BYTES_PER_LOOK = 4 * _KIB  # encrypted; as requests for new keys, 1 to 2 ms
_IGNORED_INPUT_SECONDS = 1.0  # pause in reading from an open stream that sends
_LARGE_HEAD_SECONDS = 60.0  # from one head that is too large and logged to the next
# The largest batch for one subscriber.  Larger writes would save few system calls, and
# a client that stalls makes the server keep this much in memory.
_BATCH_BYTES = 64 * _KIB
_BATCH_EVENTS = 1000
# Unsent bytes of one connection in the kernel (TCP_NOTSENT_LOWAT), whose own limit is
# 4 MiB, and which then reports room to write only in steps of megabytes.
_NOTSENT_BYTES = 128 * _KIB
# The time in each round of the event loop, for writing events and for serving requests.
# A sweep over 1,000 clients takes one or two rounds.
_BROADCAST_SECONDS = 0.003
_REQUEST_SECONDS = 0.001
# The work between two looks at the clock, 1 to 2 ms: a write takes 4 to 6
# microseconds, and one of 64 KiB takes some 20.
_WRITES_PER_LOOK = 256
_WRITTEN_BYTES_PER_LOOK = 4 * _MIB
_PARTS_PER_TURN = 200  # of a body, two for each chunk; then the clock is read
_COMPRESSED_BYTES_PER_LOOK = 32 * _KIB
_CHECKS = 4  # of a slow client's progress, per write_timeout
# A batch is compressed with so many bytes before it as the dictionary.  With 32 KiB,
# which deflate allows, a small event would be hardly smaller.
_TAIL_BYTES = 4 * _KIB
_STORED_BYTES = 16  # what is not longer is sent in a stored block, without compression
# What a reader may be given and is still live, because it comes for it at once.
_READER_BYTES = 4 * _KIB
_CATCH_UPS_PER_TURN = 8  # batches for clients that are behind, before the next sweep
# The memory that one event in the log takes in addition to its bytes, its names and its
# key.  Measured on Python 3.9 to 3.13: 240 to 380 bytes.
_EVENT_OVERHEAD_BYTES = 400
_MAX_REPLAY_SCAN = 10_000  # events that are searched for those to replay
# Channels whose last forgotten event is remembered.  With more channels, a client may
# be told of a gap although it missed nothing.
_MAX_TRACKED_CHANNELS = 10_000
# A history file.  A writer, or an opening process, waits this long for another one.
_FILE_WAIT_SECONDS = 5.0
_FILE_LEAVE_SECONDS = 1.0  # the same, for who closes it
_FILE_RETRY_SECONDS = 0.0005  # on average
# The events that a history file holds beyond `history`, so that a burst is not
# forgotten before the event loop of each process has taken it in.
_FILE_SPARE_EVENTS = 10_000
# Threads that publish what clients send.  One at a time can write, but all may wait.
_FILE_THREADS = 8
_FILE_THREAD_SECONDS = 30.0  # for each wait: for a thread, and for the thread
_FILE_CHECK_SECONDS = 1.0  # between two looks whether the file was replaced
_FILE_LOOK_SECONDS = 0.02  # between two looks for what other processes have added
_FILE_IDLE_SECONDS = 1.0  # the same while there is no stream
_FILE_BATCH_EVENTS = 256  # that are read at once, in less than 2 ms
_FILE_BATCHES_PER_REQUEST = 4  # that are read because a client asks
_FILE_TRIM_EVENTS = 128  # after so many the oldest are forgotten
# What SQLite has not moved into the file yet (its WAL).  Above the size a thread moves
# it, with this pause.  A reader that stays for hours may let it grow larger.
_FILE_WAL_BYTES = 4 * _MIB
_FILE_CHECKPOINT_SECONDS = 0.5
# Descriptors for everything but connections: the program's own, the listening sockets,
# and the clients that are only told that the server is full.
_RESERVED_DESCRIPTORS = 64
_MAX_REFUSALS_AT_ONCE = 32
_BACKLOG = 4096  # connections to be accepted; the kernel may have a lower limit
# What a listening socket accepts in one round of the event loop; from Python 3.14 on
# one more.  When no descriptor is free, asyncio logs this many errors per second.
_ACCEPTS_PER_TURN = 10
# Listening sockets for each address.  On Linux, each of the sockets that share a port
# has its own queue, and the kernel distributes the clients among the queues.  A client
# whose queue is full tries again only after one second.
_LISTENERS = 2 if sys.platform == "linux" else 1
# Input that is read and thrown away after an error.  Otherwise the client may see a
# reset before it has read the answer (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 * _MIB
_FULL_RETRY_SECONDS = 30.0  # for clients of a full server to wait, before jitter
# For an event that a client has seen elsewhere; then the client is told of a gap.
_AHEAD_SECONDS = 30.0
_CLOSE_MARGIN_SECONDS = 5.0  # close() in another event loop waits so much longer
_CLOSE_LOOK_SECONDS = 0.1  # between two looks whether that of the server has ended
_AUTHORIZE_SECONDS = 30.0  # for each wait: for a thread, for the call, for its answer
_AUTHORIZE_THREADS = 64  # for the calls that may block
# TCP keep-alive probes, and the time without an acknowledgement after which the kernel
# ends a connection.  With both, a vanished client is gone within a minute.
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_PROBES = 15, 5, 3
_VANISHED_SECONDS = 40


# ------------------------------------------------------------------------------------
# 2. Errors.  The exception contains the status of the answer.
# ------------------------------------------------------------------------------------

# Python before 3.13 has older phrases for these two (RFC 9110, 15.5.14 and 15.5.15).
_REASONS: dict[int, str] = {
    **{status.value: status.phrase for status in http.HTTPStatus},
    413: "Content Too Large",
    414: "URI Too Long",
}


class HTTPError(Exception):
    """An error that the server answers with this status and a text of one line.

    The parser raises this, and an `authorize` hook may raise it to choose the answer:
    `HTTPError(401, "log in", [("WWW-Authenticate", "Basic")])`.  `HTTPError(204)` tells
    an EventSource not to reconnect (HTML standard, 9.2.3).  Raises ValueError for a
    status that is not 200 to 599, for a malformed header and for one that only the
    server sets, TypeError for a message that is not a str.
    """

    def __init__(
        self, status: int, message: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"status is {status}; allowed are 200 to 599")
        if not isinstance(message, str):
            raise TypeError(f"message is {message!r}; allowed is a str")
        self.status = int(status)
        self.message = message or _REASONS.get(status, "")
        self.headers = tuple((name, value) for name, value in headers)
        for name, value in self.headers:
            _refuse_characters("header", name + value)
            if not _TOKEN.fullmatch(name.encode()) or _CONTROLS.search(value.encode()):
                raise ValueError(f"header {name!r}: {value!r} is malformed")
            if name.lower() in ("connection", "content-length", "transfer-encoding"):
                raise ValueError(f"header {name!r} is set by the server alone")
        super().__init__(status, message, self.headers)

    def __str__(self) -> str:
        return f"{self.status} {self.message}"


# ------------------------------------------------------------------------------------
# 3. The event on the wire (HTML standard, 9.2.5 and 9.2.6).  What is formatted here was
#    checked, and can be written without another check.
# ------------------------------------------------------------------------------------

_LINE_BREAKS = re.compile("[\r\n\0]")
# An id returns as the value of a header field, which cannot contain these characters.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f]")


def format_event(
    data: Any = None,
    *,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """Return the bytes of one event.  Any thread may call this.

    A `data` that is not a `str` becomes compact JSON, in which an object with an
    `isoformat()` method (a date or a time) becomes that text.  None sends no data.
    `event` is the event's name.  `id` becomes the client's Last-Event-ID; "" resets it.
    `retry` is the reconnection time in milliseconds, at least 1.  Clients ignore
    `comment`.  A client dispatches only an event that has data.

    A blank line ends an event.  If there is only a `retry` or a comment, no blank line
    follows: none is necessary, and some clients would show it as an empty event.

    Raises ValueError for a CR, LF or NUL in `event` or `id`, a lone surrogate, NaN or
    infinity in the data, a retry below 1, and a call without arguments; TypeError for
    data that JSON cannot express, such as bytes.
    """
    lines = []
    if comment is not None:
        lines += [f": {line}" for line in _split_lines(comment)]
    if retry is not None:
        if isinstance(retry, bool) or not isinstance(retry, int) or retry < 1:
            raise ValueError(f"retry is {retry!r}; allowed are integers from 1 (ms)")
        lines.append(f"retry: {retry}")
    if event is not None:
        lines.append("event: " + _refuse_characters("event", event))
    if data is not None:
        lines += [f"data: {line}" for line in _split_lines(_to_text(data))]
    if id is not None:
        # The last field: some clients take it when they read its line.  If the event
        # is cut off after that, they resume behind an event that they never got.
        lines.append("id: " + _refuse_characters("id", id))
    if not lines:
        raise ValueError("an event needs at least one of its fields or a comment")
    if id is not None or event is not None or data is not None:
        lines.append("")
    lines.append("")
    return _encode("\n".join(lines))


def _with_id(event: bytes, id: str) -> bytes:
    """Add an id, as the last field, to the bytes of an event that has none."""
    return b"%bid: %b\n\n" % (event[:-1], _encode(id))


def _without_id(event: bytes) -> bytes:
    """Take the last field off the bytes of an event."""
    return event[: event.rindex(b"\n", 0, -2)] + b"\n\n"


def _split_lines(text: str) -> list[str]:
    """Split at CRLF, CR and LF only; str.splitlines() splits at seven more."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _refuse_characters(what: str, text: str) -> str:
    match = _LINE_BREAKS.search(text)
    if match:
        name = {"\r": "CR", "\n": "LF", "\0": "NUL"}[match[0]]
        raise ValueError(f"{what} {text!r} has a {name} at index {match.start()}")
    return text


def _to_text(data: Any) -> str:
    return data if isinstance(data, str) else _JSON.encode(data)


def _json_default(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    is_bytes = isinstance(value, (bytes, bytearray))
    hint = "decode it first" if is_bytes else "convert it first, or see dumps"
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON; {hint}")


# NaN is refused because no browser's JSON.parse accepts it.
_JSON = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_json_default
)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(
            f"lone surrogate {text[at]!r} at index {at} of "
            f"{text[max(0, at - 20) : at + 20]!r}: not valid Unicode"
        ) from None


def _check_name(what: str, name: str) -> str:
    """Return a valid event name, id or channel; else raise ValueError or TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"{what} is {name!r}; allowed is a str")
    size = len(_encode(_refuse_characters(what, name)))
    if not 1 <= size <= _MAX_NAME_BYTES:
        bounds = f"1 to {_MAX_NAME_BYTES} (UTF-8)"
        raise ValueError(f"{what} has {size} bytes; allowed are {bounds}")
    if name != name.strip(" ") or _UNSENDABLE.search(name):
        fault = "a control character or a space at an end"
        raise ValueError(f"{what} {name!r} has {fault}")
    if what == "event" and name == "gap":
        raise ValueError("event 'gap' is the server's own; see publish_gap()")
    return name


def _chunk(payload: bytes) -> bytes:
    """Return the payload as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


_LAST_CHUNK = b"0\r\n\r\n"
_HEARTBEAT = b":\n"


# ------------------------------------------------------------------------------------
# 4. The log.
#
#    Events are numbered from 1.  A position is the number of the last event that a
#    subscriber was given: at position 7, the next one is event 8.  The log holds the
#    events after `base`, up to `newest`.  The live subscribers are at position `sent`.
#
#    Ctrl-C may interrupt any method between two instructions.  So append() computes
#    everything first, and its last assignment makes the event exist.  _settle() does
#    what follows from that: it retains the event and forgets old ones.  What Ctrl-C
#    leaves undone, the next call of _settle() does.  _Intake refuses a call from
#    within, of a signal's handler or a `__del__`.
# ------------------------------------------------------------------------------------

Channels = frozenset[Optional[str]]  # None: the events published without a channel
_NO_CHANNEL: Channels = frozenset([None])
_NOBODY = "\0nobody"  # as a channel: of an entry that only has a place in the log
EVERYBODY = "\0everybody"  # as a channel: all subscribers; no channel has this name
_ALL: Channels = frozenset([EVERYBODY])


# What an entry of the log is.  Each has a number, and so a place among the others.
_EVENT = "event"
_GAP = "gap"  # events are missing here
_END = "end"  # nothing more will come on this channel; it has no frame
# What is retained under a name is dropped.  Only in a history file, where it needs a
# place for all processes; it has no frame.
_FORGET = "forget"


class _Entry(NamedTuple):
    number: int
    frame: bytes
    channel: str | None
    id: str | None  # the publisher's; what is no event has that of the one before it
    last_key: tuple[Any, int] | None  # the newest up to here, and its event's number
    total: int  # the sum of the costs of all events up to this one, in bytes
    time: float  # when it was published, in seconds since 1970
    retain: str | None = None  # the name under which the event is retained
    kind: str = _EVENT


# Of an event: its bytes without its id, and its channel; None: there is none.
_Held = Optional[tuple[bytes, Optional[str]]]
_OWN_ID = re.compile("([0-9a-f]{8})-(0|[1-9][0-9]{0,18})")


def _number_in(id: str, epoch: str) -> int | None:
    """The event's number, if the log of this epoch made the id."""
    match = _OWN_ID.fullmatch(id)
    return int(match[2]) if match and match[1] == epoch else None


def _refuse_own_id(id: str, epoch: str) -> None:
    if _number_in(id, epoch) is not None:
        raise ValueError(f"id {id!r} has the form of this server's own ids")


def _cost(frame: bytes, *names: Any) -> int:
    """The memory that an event takes, in bytes; with its id, channel, name and key."""
    return len(frame) + _EVENT_OVERHEAD_BYTES + sum(map(_size_of, filter(None, names)))


def _size_of(name: Any) -> int:
    """A text of 256 bytes in UTF-8 may take 1,088 here.  A tuple has a key in it."""
    parts = sum(map(_size_of, name)) if isinstance(name, tuple) else 0
    return sys.getsizeof(name) + parts


class _Bounds(NamedTuple):
    """What a log holds.  When one is exceeded, it forgets its oldest event."""

    max_events: int
    # With names, and _EVENT_OVERHEAD_BYTES for each event.  The newest event is held
    # whatever its size.  Once more so many bytes for the retained events.
    max_bytes: int
    max_retained: int  # of the retained events
    max_seconds: float | None  # the age of an event; None: any


class _EventLog:
    """The events that are held, in order, and the newest retained events.

    An event that the live subscribers were not given yet is forgotten only for the
    bytes.  `clock` gives the seconds since 1970, which are the same in all processes.

    The publisher's ids may have keys, which ascend.  With the key of an id that is not
    held, find() knows between which two held ids it belongs.

    Call the methods under the server's lock; `base`, `sent`, `newest`, `newest_id`,
    retains(), is_finished() and is_ahead() do not need it.
    """

    def __init__(self, bounds: _Bounds, clock: Callable[[], float] = time.time) -> None:
        self._max_events, self._max_bytes, self._max_retained, seconds = bounds
        self._max_seconds = math.inf if seconds is None else seconds
        self._clock = clock
        self.sent = 0
        self.retained_changes = 0  # by unretain(); other changes change `newest`
        # Random, so that an id from before a restart never names another event.
        self.restart(secrets.token_hex(4))

    def restart(self, epoch: str, base: int = 0, retained: Iterable[Any] = ()) -> None:
        """Hold nothing but these retained events; all up to `base` was forgotten.

        With a history file, this is how a log goes on after it has missed rows.
        """
        self.epoch = epoch
        # By number, from `base` on.  The entry at `base` no longer has a frame.
        self._newest = _Entry(base, b"", None, None, None, 0, 0.0)
        self._entries = {base: self._newest}
        self._numbers: dict[str | None, int] = {}  # of the publisher's ids
        # By channel and name, oldest first: the event and its cost.
        self._retained = collections.OrderedDict[Any, tuple[_Entry, int]]()
        self._retained_bytes = 0  # their sum; below 0: not known
        self._finished: dict[str | None, int] = {}  # by channel, its end's number
        self._last: dict[str | None, int] = {}  # by channel, of its newest held event
        self._settled = base  # the number of the last entry that _settle() has noted
        # The number of the last forgotten event of each channel, the oldest first.
        self._forgotten = collections.OrderedDict[Optional[str], int]()
        self._forgotten_floor = base  # the same, for all channels not in `_forgotten`
        self.base = base  # the position before the oldest event that is held
        for number, body, channel, name in retained:
            frame = _with_id(body, self._make_id(number))
            held = _Entry(number, frame, channel, None, None, 0, 0.0)
            self._replace_retained((channel, name), held)

    @property
    def newest(self) -> int:
        return self._newest.number

    @property
    def newest_id(self) -> str:
        """The newest event's id.  Before the first event: an id that precedes all."""
        newest = self._newest
        return newest.id or self._make_id(newest.number)

    def id_at(self, number: int) -> str:
        """An id with which find() finds what is held, or the entry at `base`."""
        entry = self._entries[number]
        # Not that of a gap, nor one that was given to another event since.
        if entry.id is not None and self._find_published(entry.id) == number:
            return entry.id
        return self._make_id(number)

    def _make_id(self, number: int) -> str:
        return f"{self.epoch}-{number}"

    def append(
        self,
        body: bytes,
        channel: str | None,
        id: str | None = None,
        key: Any = None,
        retain: str | None = None,
        kind: str = _EVENT,
        added: float | None = None,
    ) -> str:
        """Add an event (without an id field) and return the id that it now has.

        `retain` is the name under which it is retained.  Raises ValueError for the id
        of an event that is held, for one like those that the log makes, and for a key
        that is not above the newest key.  `added` is the time at which a row was added
        to the history file, which has checked its id; None: now.
        """
        if added is None:
            added = self._clock()
            if id is not None:
                self._check_id(id, key)
        self._note_newest()
        number, last_key = self.newest + 1, self._newest.last_key
        own_key = None if key is None else (key, number)
        if kind != _EVENT:
            id = self._newest.id  # with which other processes find this place, too
        elif id is not None:
            last_key = own_key
        name = id or self._make_id(number)
        frame = _with_id(body, name) if kind in (_EVENT, _GAP) else b""
        total = self._newest.total + _cost(frame, id, channel, retain, own_key)
        entry = _Entry(number, frame, channel, id, last_key, total, added, retain, kind)
        self._entries[number] = entry
        self._newest = entry  # from here on the event exists
        self._settle()
        return name

    def append_row(self, row: _Row) -> None:
        """Add the row that follows in the history file."""
        _, kind, body, channel, id, name, added = row
        if kind == _FORGET:
            self.unretain(channel, name or "")
            channel, name = _NOBODY, None
        self.append(body, channel, id, None, name, kind, added)

    def _check_id(self, id: str, key: Any) -> None:
        self._settle()  # events may have become too old
        _refuse_own_id(id, self.epoch)
        last_key = self._newest.last_key
        if (self._find_published(id) or 0) > self.base:
            raise ValueError(f"id {id!r} is that of an event that is held")
        if last_key and not last_key[0] < key:
            raise ValueError(f"id {id!r} does not follow {self.newest_id!r}")

    def advance(self, position: int) -> None:
        """The live subscribers are at this position now."""
        self.sent = position
        self._settle()

    def unretain(self, channel: str | None, name: str) -> bool:
        """Drop a retained event.  Return whether there was one."""
        self._note_newest()
        self.retained_changes += 1
        was_retained = (channel, name) in self._retained
        self._replace_retained((channel, name), None)
        return was_retained

    def _settle(self) -> None:
        """Note what the newest entry changes, and forget old ones."""
        self._note_newest()
        oldest = self._clock() - self._max_seconds
        while self._must_forget(oldest):
            self._forget(self.base + 1)

    def _must_forget(self, oldest: float) -> bool:
        """Whether a limit is exceeded; events since the time `oldest` may stay."""
        base, newest = self.base, self._newest
        held = newest.number - base
        if base < self.sent and (
            held > self._max_events or self._entries[base + 1].time < oldest
        ):
            return True
        size = newest.total - self._entries[base].total
        return size > self._max_bytes and held > 1

    def _note_newest(self) -> None:
        newest = self._newest
        if self._settled < newest.number:
            if newest.retain is not None:
                self._replace_retained((newest.channel, newest.retain), newest)
            if newest.kind == _EVENT and newest.id is not None:
                self._numbers[newest.id] = newest.number
            if newest.frame:
                self._last[newest.channel] = newest.number
            self._finished.pop(newest.channel, None)
            if newest.kind == _END:
                self._finished[newest.channel] = newest.number
            self._settled = newest.number

    def _replace_retained(self, key: tuple[str | None, str], by: _Entry | None) -> None:
        """Retain `by` under this channel and name, or nothing; keep to the bounds."""
        retained, size = self._retained, self._retained_bytes
        self._retained_bytes = -1  # Ctrl-C may come before it is known again
        if size < 0:
            size = sum(cost for _, cost in retained.values())
        size -= retained.pop(key, (None, 0))[1]
        if by:
            cost = _cost(by.frame, *key)
            retained[key] = by._replace(id=None, last_key=None), cost
            size += cost
        while retained and (
            len(retained) > self._max_retained or size > self._max_bytes
        ):
            size -= retained.popitem(last=False)[1][1]
        self._retained_bytes = size

    def _forget(self, number: int) -> None:
        """Forget the oldest event.  Ctrl-C may come after each step."""
        entry = self._entries[number]
        self._forgotten[entry.channel] = number  # before the event is gone
        self._forgotten.move_to_end(entry.channel)
        if len(self._forgotten) > _MAX_TRACKED_CHANNELS:
            oldest, self._forgotten_floor = next(iter(self._forgotten.items()))
            del self._forgotten[oldest]
        if self._finished.get(entry.channel) == number:
            del self._finished[entry.channel]
        if self._last.get(entry.channel) == number:
            del self._last[entry.channel]
        self.base = number  # from here on it is not held
        self._entries[number] = entry._replace(frame=b"", retain=None)
        for gone in (number - 2, number - 1):  # Ctrl-C may have left the first
            if gone in self._entries:
                id = self._entries[gone].id
                if self._numbers.get(id) == gone:  # it was given to no event since
                    del self._numbers[id]
                del self._entries[gone]

    def _find_published(self, id: str) -> int | None:
        """The number of the event, held or at `base`, that has this published id."""
        number = self._numbers.get(id)
        return None if number is None or number < self.base else number

    def find(self, id: str, key: Any = None) -> int | None:
        """The position of an id, even one below `base`; None: the id is unknown."""
        self._settle()  # events may have become too old
        number = self._find_published(id)
        if number is not None:
            return number
        number = _number_in(id, self.epoch)
        if number is not None and number <= self.newest:
            return number
        # Binary search for the last key that is not above this one.
        low, high, below = self.base, self.newest + 1, None
        with contextlib.suppress(TypeError):  # it is not a key of the publisher's
            while key is not None and low < high:
                middle = (low + high) // 2
                last_key = self._entries[middle].last_key
                if last_key and key < last_key[0]:
                    high = middle
                else:
                    low, below = middle + 1, last_key
            # It may be below `base`: then what follows it was perhaps forgotten.
            return below[1] if below else None
        return None

    def is_ahead(self, key: Any) -> bool:
        """Whether `key` is above the newest key, so that its event is yet to come."""
        last_key = self._newest.last_key
        with contextlib.suppress(TypeError):  # it is not a key of the publisher's
            return key is not None and (last_key is None or bool(last_key[0] < key))
        return False

    def missed(self, position: int, channels: Channels) -> bool:
        """Whether an event of these channels after `position` was forgotten."""
        last, floor = self._forgotten, self._forgotten_floor
        return any(last.get(channel, floor) > position for channel in channels)

    def is_finished(self, channels: Channels, position: int) -> bool:
        """Whether each of these channels has ended at or before the position."""
        return bool(channels) and all(
            self._finished.get(c, math.inf) <= position for c in channels
        )

    def follows(self, position: int, channels: Channels) -> bool:
        """Whether any held event of these channels follows the position."""
        self._note_newest()
        return any(self._last.get(channel, 0) > position for channel in channels)

    def has_unordered(self, after: int, upto: int, channels: Channels) -> bool:
        """Whether an event without a key, or a gap, is held between the positions."""
        entries = map(self._entries.__getitem__, range(max(after, self.base) + 1, upto))
        return any(
            entry.frame and entry.channel in channels
            for entry in entries
            if not entry.last_key or entry.last_key[1] != entry.number
        )

    def read(self, position: int, end: int) -> tuple[list[_Entry], int]:
        """The next batch after `position`, up to `end`, and its last event's number."""
        start = max(position, self.base)
        batch = _take_batch(map(self._entries.__getitem__, range(start + 1, end + 1)))
        return batch, start + len(batch)

    def before_newest(self, count: int, channels: Channels) -> int:
        """The position before the newest `count` events of these channels."""
        self._settle()  # events may have become too old
        newest = self.newest
        numbers = range(newest, max(self.base, newest - _MAX_REPLAY_SCAN), -1)
        entries = map(self._entries.__getitem__, numbers)
        found = (e.number for e in entries if e.frame and e.channel in channels)
        return min(itertools.islice(found, count), default=newest + 1) - 1

    def retains(self, channels: Channels) -> bool:
        """Whether there may be retained events of these channels."""
        if self._settled < self.newest:  # the newest may be one
            return True
        return any(channel in channels for channel, _ in list(self._retained))

    def snapshot(
        self, after: int, upto: int, channels: Channels
    ) -> tuple[list[bytes], int]:
        """The next batch of retained events, without ids, and the position reached."""
        self._note_newest()
        wanted = [
            entry
            for entry, _ in self._retained.values()
            if entry.channel in channels and after < entry.number <= upto
        ]
        batch = _take_batch(wanted)
        reached = batch[-1].number if len(batch) < len(wanted) else upto
        return [_without_id(entry.frame) for entry in batch], reached

    def held(self, id: str) -> _Held:
        """The event that is held under a publisher's id."""
        number = self._find_published(id)
        if number is None or number <= self.base:
            return None
        entry = self._entries[number]
        return _without_id(entry.frame), entry.channel


def _take_batch(entries: Iterable[_Entry]) -> list[_Entry]:
    """The first entries, at most _BATCH_EVENTS and _BATCH_BYTES, but at least one."""
    batch: list[_Entry] = []
    size = 0
    for entry in itertools.islice(entries, _BATCH_EVENTS):
        size += len(entry.frame)
        if size > _BATCH_BYTES and batch:
            break
        batch.append(entry)
    return batch


class _Row(NamedTuple):
    """An entry of the log, as a history file has it."""

    number: int
    kind: str
    body: bytes  # the event without its id field
    channel: str | None
    id: str | None  # the publisher's; None: the log numbered the event
    name: str | None  # the name under which the event is retained
    time: float  # when it was added, in seconds since 1970


class _LogFileError(OSError):
    """The history file cannot be used now.  The text, of one line, says what to do."""


class _LogFile:
    """The log as a SQLite database, with which it survives a restart.

    The processes that name the same file have one log: each adds rows, and each reads
    all rows in one order.  A row that add() has returned survives the death of any
    process.  A crash of the machine may take the newest rows, and their numbers would
    be given again.  Therefore the file notes the boot of the machine, and how many have
    opened it and not closed it.  If it was not closed by all before another boot, it
    gets a new epoch, in which no id of the log from before is known.

    The bounds of the process that called set_bounds() last count for all, so that a
    program which only publishes need not know them.

    Any thread may call the methods.  Each opens the file, or raises _LogFileError.
    """

    _APPLICATION, _FORMAT = 0x53534531, 1  # application_id: "SSE1", and user_version
    # openers: those that opened the file since this boot and did not close it.
    # total: the sum of the sizes of all rows up to this one.
    _SCHEMA = """
        CREATE TABLE state (epoch TEXT, boot TEXT, openers INTEGER,
            max_events INTEGER, max_bytes INTEGER, max_retained INTEGER,
            max_seconds REAL, retained INTEGER, retained_bytes INTEGER)

        CREATE TABLE events (number INTEGER PRIMARY KEY, kind TEXT, body BLOB,
            channel TEXT, id TEXT, name TEXT, time REAL, size INTEGER, total INTEGER)

        CREATE UNIQUE INDEX event_ids ON events (id) WHERE id IS NOT NULL

        CREATE TABLE retained (number INTEGER PRIMARY KEY, body BLOB,
            channel TEXT, name TEXT, size INTEGER, UNIQUE (channel, name))

        CREATE TRIGGER more AFTER INSERT ON retained BEGIN UPDATE state SET
            retained = retained + 1, retained_bytes = retained_bytes + new.size; END

        CREATE TRIGGER less AFTER DELETE ON retained BEGIN UPDATE state SET
            retained = retained - 1, retained_bytes = retained_bytes - old.size; END"""

    def __init__(self, path: str | os.PathLike[str], bounds: _Bounds) -> None:
        self._sqlite3 = _need_module("history_file", "sqlite3")
        self.path = os.path.abspath(path)
        self.epoch = ""  # begins the log's own ids; known once the file is open
        self._bounds = bounds
        self._process = 0  # the one in which the file is open; 0: it is not
        self._connections: list[sqlite3.Connection] = []  # the writer, the reader
        self._check_due = 0.0  # whether the file was replaced
        self._version = 0  # it changes when a row is added; 0: not known
        # A thread that needs both takes the lock of the reader first.
        self._read_lock, self._write_lock = threading.RLock(), threading.RLock()
        self._forking = 0  # the thread that forks, and so holds both
        self._checkpoint: threading.Timer | None = None
        _files.add(self)

    # Adding rows.

    def add(
        self,
        kind: str,
        body: bytes = b"",
        channel: str | None = None,
        id: str | None = None,
        name: str | None = None,
    ) -> int:
        """Add a row, in one transaction; return its number.

        With a `name`, an event is retained, and _FORGET drops what is retained.  If
        there is nothing to drop, no row is added, and 0 is returned.  Raises ValueError
        for the id of an event that is held, and for an id of the log's own form.  It
        waits for other processes and threads, for less than twice _FILE_WAIT_SECONDS in
        all, and then raises _LogFileError.
        """
        with self._transaction() as db:
            if id is not None:
                _refuse_own_id(id, self.epoch)
            dropped = 0
            if name is not None:
                drop = "DELETE FROM retained WHERE channel IS ? AND name = ?"
                dropped = db.execute(drop, (channel, name)).rowcount
            if kind == _FORGET and not dropped:
                return 0
            newest = "SELECT number, total FROM events ORDER BY number DESC LIMIT 1"
            number, total = db.execute(newest).fetchone() or (0, 0)
            number += 1
            size = len(body) + len(channel or "") + len(id or "")
            size += _EVENT_OVERHEAD_BYTES
            row = number, kind, body, channel, id, name, time.time(), size, total + size
            try:
                db.execute("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?)", row)
            except self._sqlite3.IntegrityError:
                fault = f"id {id!r} is that of an event that is held"
                raise ValueError(fault) from None
            if name is not None and kind == _EVENT:
                self._retain(db, number, body, channel, name, size)
            if number % _FILE_TRIM_EVENTS == 0 or size > _BATCH_BYTES:
                self._trim(db)
                if os.stat(self.path + "-wal").st_size > _FILE_WAL_BYTES:
                    self._begin_checkpoint()
        return number

    def _retain(self, db: sqlite3.Connection, *row: Any) -> None:
        """Retain an event; forget those that did not change for the longest time."""
        db.execute("INSERT INTO retained VALUES (?,?,?,?,?)", row)
        is_full = "SELECT retained > max_retained OR retained_bytes > max_bytes"
        while db.execute(f"{is_full} FROM state").fetchone()[0]:
            oldest = "SELECT min(number) FROM retained"
            db.execute(f"DELETE FROM retained WHERE number = ({oldest})")

    def _trim(self, db: sqlite3.Connection) -> None:
        """Forget the oldest rows, some at a time, but never the newest.

        Nor one between two others, however the clock is set: who reads takes a number
        that is missing for rows that were forgotten before it could read them.
        """
        newest = db.execute(
            "SELECT number, total, max_events, max_bytes, max_seconds "
            "FROM events, state ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if not newest:
            return
        number, total, max_events, max_bytes, max_seconds = newest
        count = number - max_events - _FILE_SPARE_EVENTS
        oldest = -math.inf if max_seconds is None else time.time() - max_seconds
        kept = db.execute(
            "SELECT number FROM events WHERE number = ? OR number > ? AND "
            "? - total + size <= ? AND time >= ? ORDER BY number LIMIT 1",
            (number, count, total, max_bytes, oldest),
        ).fetchone()
        db.execute("DELETE FROM events WHERE number < ?", kept)

    # Following what all processes add.

    def set_bounds(self) -> None:
        """Let the bounds of this process count for all, from now on."""
        with self._transaction() as db:
            bounds = "max_events = ?, max_bytes = ?, max_retained = ?, max_seconds = ?"
            db.execute(f"UPDATE state SET {bounds}", self._bounds)
            self._trim(db)

    def read_base(self) -> tuple[int, list[Any]]:
        """The position before the oldest row, and what is retained of that time."""
        with self._reading() as db, db:
            db.execute("BEGIN")  # one state of the file
            (oldest,) = db.execute("SELECT min(number) FROM events").fetchone()
            base = (oldest or 1) - 1
            select = "SELECT number, body, channel, name FROM retained"
            which = "WHERE number <= ? ORDER BY number"
            return base, db.execute(f"{select} {which}", (base,)).fetchall()

    def read(self, after: int) -> tuple[list[_Row], bool]:
        """The next rows after this number, and whether there may be more.

        If the first is not the next, others were forgotten.  It waits for no writer.
        """
        rows: list[_Row] = []
        size = 0
        select = "SELECT number, kind, body, channel, id, name, time FROM events"
        which = "WHERE number > ? ORDER BY number LIMIT ?"
        with self._reading() as db:
            cursor = db.execute(f"{select} {which}", (after, _FILE_BATCH_EVENTS))
            for row in map(_Row._make, cursor):
                rows.append(row)
                size += len(row.body)
                if size >= _BATCH_BYTES:
                    break
            cursor.close()  # a checkpoint would wait for it
        return rows, size >= _BATCH_BYTES or len(rows) == _FILE_BATCH_EVENTS

    def held(self, id: str) -> _Held:
        """The event that is held under a publisher's id."""
        with self._reading() as db:
            select = "SELECT body, channel FROM events WHERE id = ?"
            return cast(_Held, db.execute(select, (id,)).fetchone())

    def changed(self) -> bool:
        """Whether somebody has added a row since the last call; it takes 6 us."""
        with self._reading() as db:
            before = self._version
            (self._version,) = db.execute("PRAGMA data_version").fetchone()
            return before != self._version

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock, self._as_os_errors():
            self.open()
            if time.monotonic() > self._check_due:
                self._refuse_replaced()
                self._check_due = time.monotonic() + _FILE_CHECK_SECONDS
            yield self._connections[1]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction; if it raises, nothing was done."""
        begun = time.monotonic()
        with self._write_lock, self._as_os_errors():
            if time.monotonic() - begun > _FILE_WAIT_SECONDS:
                raise self._sqlite3.OperationalError("database is locked")
            self.open()
            db = self._connections[0]
            if db.in_transaction:
                raise RuntimeError("nothing can be published from within publish()")
            with db:  # it rolls back, even if Ctrl-C comes or COMMIT itself fails
                _patiently(db, "BEGIN IMMEDIATE", _FILE_WAIT_SECONDS)
                self._refuse_replaced()
                yield db
                db.execute("COMMIT")

    # Opening and closing.

    def open(self) -> None:
        """Open the file, and make it if there is none."""
        if self._process == os.getpid():
            return
        with self._write_lock, self._as_os_errors():
            if self._process == os.getpid():
                return
            if self._process:
                self._refuse("it was open when this process was forked; open it here")
            self._make()
            # The reader is the event loop's, so it never waits.
            writer, reader = self._connect(_FILE_WAIT_SECONDS), self._connect(0)
            try:
                self._prepare(writer)
                self._identity = self._identify()
            except BaseException:
                reader.close()
                writer.close()
                raise
            self._connections += writer, reader
            self._version = 0
            self._process = os.getpid()
            # It is called at the end of the program, too.
            self._leave = weakref.finalize(
                self, _leave_file, self._process, self._connections
            )

    def close(self) -> None:
        """Note that it was closed; the next call of another method opens it again."""
        with self._read_lock, self._write_lock:
            if self._process == os.getpid():
                if self._checkpoint:
                    self._checkpoint.cancel()
                    self._checkpoint.join()
                self._leave()
                self._process = 0

    def before_fork(self) -> None:
        """Close the file until the fork has been made.

        SQLite keeps in memory which locks of a file its process has.  A forked child
        would inherit that, but not the locks.
        """
        self._read_lock.acquire()
        self._write_lock.acquire()
        self._forking = threading.get_ident()
        self.close()

    def after_fork(self) -> None:
        if self._forking == threading.get_ident():
            self._forking = 0
            self._write_lock.release()
            self._read_lock.release()

    def _make(self) -> None:
        try:
            # SQLite gives the files that it makes beside this one the same mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:  # and so is not touched: a close() releases its locks
            if 0 < os.stat(self.path).st_size < 100:  # SQLite would take it for empty
                raise self._sqlite3.DatabaseError("file is not a database") from None
        except OSError as error:
            self._refuse(f"{error.strerror}; {_FILE_ADVICE['unable to open']}")

    def _connect(self, seconds: float) -> sqlite3.Connection:
        db: sqlite3.Connection = self._sqlite3.connect(
            self.path, timeout=seconds, isolation_level=None, check_same_thread=False
        )
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check the file, write what a new one needs, and count who has it open."""
        with db:
            db.execute("BEGIN")  # to see one state of the file
            self._is_new(db)  # it raises an error if the database is another's
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise self._sqlite3.DatabaseError("database is malformed")
        wal = "PRAGMA journal_mode = WAL"
        if _patiently(db, wal, _FILE_WAIT_SECONDS) != ("wal",):
            self._refuse("SQLite has no WAL on this file system; use a local disk")
        db.execute("PRAGMA synchronous = FULL")  # what follows survives a crash
        db.execute("PRAGMA busy_timeout = 0")  # see _patiently
        with db:
            _patiently(db, "BEGIN IMMEDIATE", _FILE_WAIT_SECONDS)
            if self._is_new(db):
                for statement in self._SCHEMA.split("\n\n"):
                    db.execute(statement)
                new = secrets.token_hex(4), "", 0, *self._bounds, 0, 0
                db.execute("INSERT INTO state VALUES (?,?,?,?,?,?,?,?,?)", new)
                db.execute(f"PRAGMA application_id = {self._APPLICATION}")
                db.execute(f"PRAGMA user_version = {self._FORMAT}")
            select = "SELECT epoch, boot, openers FROM state"
            epoch, boot, openers = db.execute(select).fetchone()
            this_boot = _boot_id()
            if boot != this_boot:
                if openers:
                    epoch = secrets.token_hex(4)
                openers = 0
            state = epoch, this_boot, openers + 1
            db.execute("UPDATE state SET epoch = ?, boot = ?, openers = ?", state)
        if self.epoch and self.epoch != epoch:
            self._refuse(_REPLACED)
        self.epoch = epoch
        # Then the event loop waits for no disk.  Where no boot is told, a crash of the
        # machine would not be noticed, and so must take nothing.
        if this_boot:
            db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # see _begin_checkpoint
        db.execute("PRAGMA journal_size_limit = 0")  # after one, the WAL begins small

    def _is_new(self, db: sqlite3.Connection) -> bool:
        """Whether the database is empty.  Raises an error if it is another's."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == version == tables == 0:
            return True
        if application != self._APPLICATION or version < self._FORMAT:
            raise self._sqlite3.DatabaseError("file is not a database of sse_server")
        if version > self._FORMAT:
            known = f"its format is {version}, and this version knows {self._FORMAT}"
            self._refuse(f"{known}; use a newer sse_server, or name another file")
        return False

    # Faults.

    def _refuse(self, fault: str) -> NoReturn:
        raise _LogFileError(f"history file {self.path!r}: {fault}")

    @contextlib.contextmanager
    def _as_os_errors(self) -> Iterator[None]:
        try:
            yield
        except self._sqlite3.Error as error:
            text = str(error)
            fitting = (advice for part, advice in _FILE_ADVICE.items() if part in text)
            self._refuse(f"{text}; {next(fitting, 'see whether its disk works')}")
        except _LogFileError:
            raise
        except OSError as error:
            self._refuse(f"{error.strerror}; {_FILE_ADVICE['unable to open']}")

    def _identify(self) -> tuple[int, int, int]:
        """What others would open now: the file and its WAL."""
        db, wal = os.stat(self.path), os.stat(self.path + "-wal")
        return db.st_dev, db.st_ino, wal.st_ino

    def _refuse_replaced(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._identify() == self._identity:
                return
        self._refuse(_REPLACED)

    # Moving the rows from the WAL into the file.

    def _begin_checkpoint(self) -> None:
        """Let a thread do it soon, which may wait for the disk.

        A PASSIVE checkpoint waits for nobody and does most of the work, but while
        somebody writes, it does not empty the WAL.  RESTART makes the writers wait.
        """
        if not self._checkpoint or not self._checkpoint.is_alive():
            timer = threading.Timer(_FILE_CHECKPOINT_SECONDS, self._move)
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # the next add() tries again
                timer.start()
                self._checkpoint = timer

    def _move(self) -> None:
        ends = time.monotonic() + _FILE_CHECKPOINT_SECONDS
        quiet = contextlib.suppress(self._sqlite3.Error)  # the next one tries again
        with quiet, contextlib.closing(self._connect(0)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            while time.monotonic() < ends:
                (is_busy, *_) = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
                if not is_busy:
                    break
                time.sleep(_FILE_RETRY_SECONDS)


# What SQLite says, in part, and what to do.
_FILE_ADVICE = {
    "locked": "another program has kept it locked; try again, or end that program",
    "full": "make room on its disk",
    "readonly": "let this user write to it and to its folder",
    "unable to open": "let this user write to it and to its folder, which must exist",
    "not a database": "it belongs to another program, or is damaged; name another file",
    "malformed": "it is damaged; move it away, and a new one will be made",
    "unsupported": "it is damaged; move it away, and a new one will be made",
}


_REPLACED = (
    "it was deleted or replaced while it was in use; restart all programs that use it"
)


def _leave_file(process: int, connections: list[sqlite3.Connection]) -> None:
    if process != os.getpid():  # a forked child, which has opened nothing of this
        return
    with contextlib.suppress(Exception):  # then the file is not noted as closed
        connections[0].execute("PRAGMA synchronous = FULL")
        statement = "UPDATE state SET openers = openers - 1"
        _patiently(connections[0], statement, _FILE_LEAVE_SECONDS)
    while connections:
        connections.pop().close()


def _patiently(db: sqlite3.Connection, statement: str, seconds: float) -> Any:
    """Execute it once no other process is in the way; return what it says.

    SQLite waits longer each time: of four that always write, one waited for seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return db.execute(statement).fetchone()
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, 2 * _FILE_RETRY_SECONDS))


_files: weakref.WeakSet[_LogFile] = weakref.WeakSet()  # of this process


def _before_fork() -> None:
    for file in list(_files):
        file.before_fork()


def _after_fork() -> None:
    for file in list(_files):
        file.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


def _boot_id() -> str:
    """It is another one each time the machine starts; "" where there is none."""
    path = "/proc/sys/kernel/random/boot_id"
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""


# ------------------------------------------------------------------------------------
# 5. The request on the wire, and the answer (RFC 9112).
#
#    Bytes go in.  A frozen Request, the bytes of a body, or an HTTPError comes out; any
#    other exception is a bug.  Where the standard lets a recipient choose between
#    tolerance and refusal, this code refuses: an attacker can smuggle a request past a
#    proxy when two parsers read the same bytes in different ways.
# ------------------------------------------------------------------------------------

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN.pattern)
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FIELD_LINES = re.compile(rb"(?:%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*" % _TOKEN.pattern)
_HOST_NAME = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+)"
_HOST = re.compile(rb"(?:%b)?(?::[0-9]*)?" % _HOST_NAME)
# An absolute form (http://user@host:port/path?query) or an origin form (/path?query).
_TARGET = re.compile(
    rb"(?:https?://(?:[^/?#]*@)?%b(?::[0-9]*)?|(?=/))(/[^?#]*)?(?:\?([^#]*))?"
    % _HOST_NAME,
    re.IGNORECASE,
)
# It ends the fields.  Bare LFs also do, to be refused now and not at a timeout.
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_CHUNK_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*"
    % (_TOKEN.pattern, _TOKEN.pattern, _QUOTED)
)
_CODING = re.compile(rb"([^ \t;]+)(?:[ \t]*;[ \t]*q=([01](?:\.[0-9]{0,3})?))?")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_EMPTY_LINES = b"\r\n" * 512
_NO_PROXY_PROTOCOL = "; this port does not speak the PROXY protocol"
# By their first byte; of the PROXY protocol this is version 2, after empty lines.
_FOREIGN_PROTOCOLS = {0x16: "; this port does not speak TLS", 0: _NO_PROXY_PROTOCOL}

Fields = tuple[tuple[bytes, bytes], ...]  # (name in lower case, value), in order
_Headers = tuple[tuple[str, str], ...]  # (name, value) of an answer


@dataclasses.dataclass(frozen=True)
class Request:
    """The head of one HTTP request, checked and otherwise as it was received.

    `peer` is the address and port of the client, or of a proxy between.  `target` is
    from the request line; `path` and `query` are its parts.

    Text is decoded as UTF-8, and other bytes become surrogate escapes, so that none is
    lost.  Reading a query of more than 200 parameters raises HTTPError 400.
    """

    method: str
    target: str  # as it was received
    path: str  # of the target, percent-encoded unreserved characters decoded
    query: str  # of the target, without the "?", not decoded
    version: tuple[int, int]  # (1, 0) to (1, 9), by ASGI also (2, 0) and (3, 0)
    fields: Fields
    peer: str  # the client's address and port, "" if unknown
    # By ASGI: the path that is the stream's.  None: it came by the server's own port.
    stream_path: str | None = None

    def header(self, name: str) -> str | None:
        """The field's value, several values joined by ", ", or None if it is absent."""
        values = self.values(name.lower().encode())
        return b", ".join(values).decode("utf-8", "surrogateescape") if values else None

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The decoded parameters of the query: a list of values for each name."""
        return {name: [*values] for name, values in _parse_query(self.query).items()}

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on the connection (RFC 9112, 9.3)."""
        return self.version >= (1, 1) and b"close" not in self.tokens(b"connection")

    @property
    def channels(self) -> Channels:
        """The channels that the query names, or {None}: the events without a channel.

        Raises HTTPError 400 for more than 100 channels and for a malformed name.
        """
        names = _parse_query(self.query).get("channel", [])
        if len(names) > _MAX_CHANNELS:
            message = f"{len(names)} channels asked for; allowed are {_MAX_CHANNELS}"
            raise HTTPError(400, message)
        try:
            return frozenset([_check_name("channel", n) for n in names]) or _NO_CHANNEL
        except ValueError as error:
            raise HTTPError(400, str(error)) from None

    @property
    def last_event_id(self) -> str | None:
        """The id to resume after, from the header or else the query, or None.

        Raises HTTPError 400 for two different ones in the header: one may hide a gap.
        """
        ids = set(self.values(b"last-event-id"))
        if len(ids) > 1:
            raise HTTPError(400, f"{len(ids)} different values of Last-Event-ID")
        if ids:
            return ids.pop().decode("utf-8", "surrogateescape")
        parameters = _parse_query(self.query)
        values = parameters.get("lastEventId") or parameters.get("last_event_id")
        return values[0] if values else None

    @property
    def replay(self) -> float | None:
        """How many past events the query asks for: math.inf for all, None if absent.

        Raises HTTPError 400 for a value that is not a number of at most nine digits.
        """
        asked = _parse_query(self.query).get("replay", [None])[-1]
        if asked is None:
            return None
        if not re.fullmatch("[0-9]{1,9}|all", asked):
            raise HTTPError(400, f"replay is {asked[:80]!a}; allowed: a number, all")
        return math.inf if asked == "all" else int(asked)

    def accepts(self, media_type: str) -> bool:
        """Whether the Accept field contains this media type itself, not a wildcard."""
        ranges = self.tokens(b"accept")
        return media_type.encode() in {item.split(b";")[0].strip() for item in ranges}

    @property
    def accepts_gzip(self) -> bool:
        """Whether gzip is accepted and preferred to no coding (RFC 9110, 12.5.3)."""
        codings = map(_CODING.fullmatch, self.tokens(b"accept-encoding"))
        wanted = {coding[1]: float(coding[2] or 1) for coding in codings if coding}
        gzip = wanted.get(b"gzip", wanted.get(b"x-gzip", wanted.get(b"*", 0.0)))
        return gzip > 0 and gzip >= wanted.get(b"identity", 0.0)

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head; from HTTP/2 on, one of no length may."""
        if self.version >= (2, 0) and not self.values(b"content-length"):
            return self.method not in ("GET", "HEAD", "OPTIONS")
        return self.chunked or self.content_length > 0

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks (RFC 9112, 7.1)."""
        return bool(self.values(b"transfer-encoding"))

    @property
    def content_length(self) -> int:
        """The body's length in bytes if it is not chunked."""
        digits = b"".join(self.tokens(b"content-length")).lstrip(b"0")  # all are equal
        # 19 digits are above each limit, and int() of thousands of digits is slow.
        return int(digits[:19] or b"0")

    @property
    def expects_continue(self) -> bool:
        """Whether the client sends the body only after a 100 (RFC 9110, 10.1.1)."""
        return self.version >= (1, 1) and b"100-continue" in self.tokens(b"expect")

    @functools.cached_property
    def _by_name(self) -> dict[bytes, list[bytes]]:
        by_name: dict[bytes, list[bytes]] = {}
        for name, value in self.fields:
            by_name.setdefault(name, []).append(value)
        return by_name

    def values(self, name: bytes) -> list[bytes]:
        """The values of the fields of this name, which is in lower case."""
        return self._by_name.get(name, [])

    def tokens(self, name: bytes) -> frozenset[bytes]:
        """The members of a list field, in lower case."""
        values = self.values(name)
        return _split_list(b",".join(values)) if values else frozenset()


@functools.lru_cache(maxsize=64)
def _split_list(value: bytes) -> frozenset[bytes]:
    return frozenset([member.strip(b" \t") for member in value.lower().split(b",")])


@functools.lru_cache(maxsize=64)
def _parse_query(query: str) -> dict[str, list[str]]:
    """The parameters of a query.  The result is shared, so it must not be changed."""
    try:
        return urllib.parse.parse_qs(
            query,
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        message = f"query of more than {_MAX_PARAMETERS} parameters"
        raise HTTPError(400, message) from None


def _find_head_end(received: bytearray, searched: int = 0) -> int:
    """The index after a request's head, or 0 if the head is not complete.

    The first `searched` bytes are known not to contain the end.
    """
    if received and not _TOKEN.match(received) and received != b"\r":
        hint = _FOREIGN_PROTOCOLS.get(received[0], "")
        raise HTTPError(400, f"no request begins with the byte {received[0]}{hint}")
    if len(received) > _MAX_HEAD_BYTES and received.find(b"\n", 0, _MAX_HEAD_BYTES) < 0:
        raise HTTPError(414, f"request line is longer than {_MAX_HEAD_BYTES} bytes")
    match = _EMPTY_LINE.search(received, max(0, searched - 2))
    end = match.end() if match else 0
    if (end or len(received)) > _MAX_HEAD_BYTES:
        raise HTTPError(431, f"request head is larger than {_MAX_HEAD_BYTES} bytes")
    return end


def _parse_request(head: bytes, peer: str = "") -> Request:
    """Parse a request's head with its empty line (RFC 9112, 2 to 6)."""
    return dataclasses.replace(_parse_head(head), peer=peer)


# When many clients reconnect at once, nearly all heads are equal.
@functools.lru_cache(maxsize=64)
def _parse_head(head: bytes) -> Request:
    if not head.endswith(b"\r\n\r\n"):
        raise HTTPError(400, "a line of the request ends with a bare LF")
    request_line, _, lines = head[:-2].partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if not match:
        hint = "" if request_line.isascii() else "; percent-encode what is not ASCII"
        if request_line.startswith(b"PROXY "):  # its version 1
            hint = _NO_PROXY_PROTOCOL
        raise HTTPError(400, f"malformed request line {_quote(request_line)}{hint}")
    version = (int(match[3]), int(match[4]))
    if version[0] != 1:
        raise HTTPError(505, f"HTTP version {version[0]}.{version[1]}; served is 1.x")
    fields = _parse_fields(lines)
    path, query = _parse_target(match[1], match[2])
    method, target = match[1].decode(), match[2].decode()
    request = Request(method, target, path, query, version, fields, peer="")
    _check_fields(request)
    return request


def _parse_fields(lines: bytes, kind: str = "header") -> Fields:
    """Parse header or trailer fields, each line with its CRLF (RFC 9112, 5)."""
    number = lines.count(b"\r\n")
    if number > _MAX_FIELDS:
        raise HTTPError(431, f"{number} {kind} fields; allowed are {_MAX_FIELDS}")
    if not _FIELD_LINES.fullmatch(lines):
        line = _FIELD_LINES.sub(b"", lines, 1).partition(b"\r\n")[0]
        name, colon, _ = line.partition(b":")
        has_name = colon and _TOKEN.fullmatch(name)
        fault = "control character in" if has_name else "malformed"
        raise HTTPError(400, f"{fault} {kind} field {_quote(line)}")
    pairs = [line.split(b":", 1) for line in lines.split(b"\r\n")[:-1]]
    return tuple([(name.lower(), value.strip(b" \t")) for name, value in pairs])


def _parse_target(method: bytes, target: bytes) -> tuple[str, str]:
    """The path and the query of a request target (RFC 9112, 3.2)."""
    if method == b"CONNECT":
        raise HTTPError(501, "CONNECT is for proxies, and this is none")
    if method == b"OPTIONS" and target == b"*":
        return "*", ""
    match = _TARGET.fullmatch(target)
    if not match:
        raise HTTPError(400, f"malformed request target {_quote(target)}")
    path = (match[1] or b"/").decode()
    return _ESCAPE.sub(_decode_unreserved, path), (match[2] or b"").decode()


def _decode_unreserved(escape: re.Match[str]) -> str:
    """%73 and s are equivalent, %2F and / are not (RFC 3986, 6.2.2.2)."""
    character = chr(int(escape[1], 16))
    return character if re.match("[A-Za-z0-9._~-]", character) else escape[0]


def _check_fields(request: Request) -> None:
    """Require a valid Host (RFC 9112, 3.2), and a body with one clear end (6)."""
    hosts = request.values(b"host")
    if len(hosts) > 1 or (not hosts and request.version >= (1, 1)):
        raise HTTPError(400, f"{len(hosts)} Host fields; there must be one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HTTPError(400, f"malformed Host {_quote(hosts[0])}")
    codings = request.values(b"transfer-encoding")
    lengths = request.values(b"content-length")
    if codings and lengths:
        raise HTTPError(400, "Content-Length together with Transfer-Encoding")
    if codings and request.version < (1, 1):
        raise HTTPError(400, "Transfer-Encoding on HTTP/1.0")
    if codings:
        value = b", ".join(codings)
        *others, _ = [c.split(b";")[0].strip(b" \t") for c in value.lower().split(b",")]
        fault = f"Transfer-Encoding {_quote(value)}"
        if b"chunked" in others:
            raise HTTPError(400, f"{fault}: chunked is not last")
        if value.lower() != b"chunked":
            raise HTTPError(501, fault)
    _check_lengths(lengths)
    expectations = request.tokens(b"expect") - {b""}
    if expectations - {b"100-continue"}:
        raise HTTPError(417, f"Expect {_quote(b', '.join(sorted(expectations)))}")


def _check_lengths(lengths: list[bytes]) -> None:
    """Require one number, however often it is repeated (RFC 9110, 8.6)."""
    different = {part.strip(b" \t") for value in lengths for part in value.split(b",")}
    if len(different) > 1:
        raise HTTPError(400, "two differing values of Content-Length")
    for value in different:
        if not value.isdigit():  # of bytes: ASCII digits only
            raise HTTPError(400, f"malformed Content-Length {_quote(value)}")


def _quote(text: bytes) -> str:
    """The text in a short and printable form, for an error's message."""
    return ascii(text[:80].decode("latin-1")) + ("..." if len(text) > 80 else "")


class _BodyReader:
    """Takes one request's body from what was received (RFC 9112, 6 and 7).

    Whoever receives owns the bytes.  `read` removes those of the body, until the reader
    is `complete`; then `content` holds the body's content, without its framing.  Raises
    HTTPError 413 for more than `limit` bytes as soon as the size is known, and 400 for
    malformed chunks.  The content is discarded unless `keep` is true.
    """

    def __init__(self, request: Request, limit: int, keep: bool = True) -> None:
        self.content = bytearray()
        self.complete = False
        self._limit = limit
        self._keep = keep
        self._chunked = chunked = request.chunked
        self._size = request.content_length  # the content that is announced so far
        self._missing = self._size  # of it, or of the chunk, so much was not received
        self._searched = 0  # so many of the received bytes hold no end of the trailers
        begin = _BodyReader._read_size_line if chunked else _BodyReader._read_content
        # It reads what comes next, and returns False if more must be received first.
        self._read_part: Callable[[_BodyReader, bytearray], bool] = begin
        _check_body_size(self._size, limit)

    def read(self, received: bytearray) -> bool:
        """Take what is there; return whether it may be called again at once.

        At most _PARTS_PER_TURN parts.  False: it is complete, or more must come first.
        """
        for _ in range(_PARTS_PER_TURN):
            if self.complete or not self._read_part(self, received):
                return False
        return True

    def _read_size_line(self, received: bytearray) -> bool:
        end = received.find(b"\r\n", 0, _MAX_CHUNK_LINE_BYTES + 2)
        if end < 0 and len(received) >= _MAX_CHUNK_LINE_BYTES + 2:
            bound = f"{_MAX_CHUNK_LINE_BYTES} bytes"
            raise HTTPError(400, f"chunk size line is longer than {bound}")
        if end < 0:
            return False
        line = bytes(received[:end])
        match = _CHUNK_SIZE.fullmatch(line)
        if not match:
            raise HTTPError(400, f"malformed chunk size {_quote(line)}")
        self._missing = int(match[1], 16)
        self._size += self._missing
        _check_body_size(self._size, self._limit)
        if self._missing:
            del received[: end + 2]
            self._read_part = _BodyReader._read_content
        else:
            del received[:end]  # its CRLF may begin the end of the trailers
            self._read_part = _BodyReader._read_trailers
        return True

    def _read_content(self, received: bytearray) -> bool:
        """Read content, and the CRLF that ends a chunk of it."""
        size = min(len(received), self._missing)
        if self._keep:
            self.content += received[:size]
        del received[:size]
        self._missing -= size
        self.complete = not (self._chunked or self._missing)
        if self.complete or self._missing or len(received) < 2:
            return False
        if not received.startswith(b"\r\n"):
            raise HTTPError(400, "chunk is longer than its size")
        del received[:2]
        self._read_part = _BodyReader._read_size_line
        return True

    def _read_trailers(self, received: bytearray) -> bool:
        match = _EMPTY_LINE.search(received, max(0, self._searched - 2))
        end = match.end() if match else 0
        self._searched = len(received)
        if (end or len(received)) > _MAX_HEAD_BYTES + 2:  # a CRLF stands before them
            raise HTTPError(431, f"trailers are larger than {_MAX_HEAD_BYTES} bytes")
        if not end:
            return False
        if not received.endswith(b"\r\n\r\n", 0, end):
            raise HTTPError(400, "a trailer line ends with a bare LF")
        _parse_fields(bytes(received[2 : end - 2]), "trailer")
        del received[:end]
        self.complete = True
        return True


def _check_body_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPError(413, f"body of {size} bytes or more; allowed are {limit}")


class _Response(NamedTuple):
    """An answer that is not yet bytes.  If `body` is None, it is a stream's head."""

    status: int
    headers: _Headers
    body: bytes | None
    newest_id: str = ""  # the value of the field Last-Event-ID, "" for no such field
    is_last: bool = False  # the connection is closed after it

    @property
    def fields(self) -> _Headers:
        """Its header fields, without those that are about the connection."""
        fields = self.headers
        if self.body is not None and self.status not in (204, 304):
            fields += (("Content-Length", str(len(self.body))),)
        if self.newest_id:
            fields += (("Last-Event-ID", self.newest_id),)
        return fields

    def render(self, now: float, request: Request | None, connection: str) -> bytes:
        """The bytes, at a time in seconds since 1970.

        `connection` is the value of the field Connection, "" for no such field.
        """
        fields = self.fields
        if self.body is None and request and request.version >= (1, 1):
            fields += (("Transfer-Encoding", "chunked"),)
        if connection:
            fields += (("Connection", connection),)
        head = _render_head(self.status, fields, int(now))
        without_body = request and request.method == "HEAD"
        return head + (b"" if without_body else self.body or b"")


@functools.lru_cache(maxsize=256)
def _render_head(status: int, fields: _Headers, second: int) -> bytes:
    date = email.utils.formatdate(second, usegmt=True)
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in (*fields, ("Date", date))]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def _encode_fields(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode(), value.encode("utf-8", "surrogateescape"))
        for name, value in fields
    ]


_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_TEXT_HEADERS = (("Content-Type", "text/plain; charset=utf-8"), _NOSNIFF)
_STREAM_HEADERS = (
    ("Content-Type", "text/event-stream"),
    # Without no-transform, a development proxy that compresses holds events back.
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),  # nginx then passes on each event at once
    ("Vary", "Accept"),
    _NOSNIFF,
)


def _error_response(error: HTTPError) -> _Response:
    if error.status in (204, 205, 304):
        return _Response(error.status, error.headers, b"")
    body = (error.message + "\n").encode("utf-8", "replace")
    return _Response(error.status, _TEXT_HEADERS + error.headers, body)


# A stream with `Content-Encoding: gzip` begins with this header (RFC 1952).  Deflate
# blocks without an end follow, because a stream has no end.  All clients accept this.
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


# ------------------------------------------------------------------------------------
# 6. The site: what is answered.  Values go in, and values come out.
# ------------------------------------------------------------------------------------

# True, false, or the channels that the client may hear.
Permission = Union[bool, Collection[Optional[str]]]
Authorize = Callable[[Request], Union[Permission, Awaitable[Permission]]]


class _Question(NamedTuple):
    """`authorize` must be asked about this request before it is answered."""

    request: Request
    for_stream: bool  # then a client that has gone needs no answer


class _Permit(NamedTuple):
    """What `authorize` has allowed."""

    channels: Channels
    is_limited: bool  # to channels that it has named


class _Body(NamedTuple):
    """The request's body must be read before it is answered."""

    limit: int  # bytes
    keep: bool  # whether its content is wanted


class _Wish(NamedTuple):
    """The content and the coding of a stream.  Equal wishes need the same bytes."""

    channels: Channels  # EVERYBODY is always one of them
    chunked: bool  # for HTTP/1.1; for HTTP/1.0 the stream is not framed
    gzip: bool
    direct: bool = False  # written to sockets, past the transports


class _Stream(NamedTuple):
    """A stream must be opened: what is sent first, and what it contains."""

    head: _Response
    wish: _Wish
    last_event_id: str | None
    replay: float  # events for a new client


class _Publication(NamedTuple):
    """The body must be published, by publish_body() in a thread: a file may be slow."""

    request: Request
    body: bytes


_Decision = Union[_Question, _Body, _Stream, _Publication, _Response]


@dataclasses.dataclass(eq=False, repr=False)
class _Site:
    """Decides what is answered.  It knows what a server was told, and no connection.

    Each decision tells what to do next.  After a question for `authorize` and after a
    body, `decide` is asked again, with what came of it as well.
    """

    # As SSEServer is given them:
    path: str
    hosts: Iterable[str] | None  # None: it answers to any name
    cors_origins: Iterable[str]
    publish_token: str | None
    asks: bool  # whether the program has an `authorize`
    compress: bool
    max_event_bytes: int
    restart_retry: float
    replay: float
    # What the server does and knows:
    read_page: Callable[[], bytes] | None  # for GET /; None: it is "ok" as well
    publishing_waits: bool  # so that it must be done in a thread
    publish: Callable[..., str]
    held: Callable[[str], _Held]  # under a publisher's id
    finish: Callable[[str | None], str]
    # Whether a stream of these channels, after this id or with this replay, is over.
    has_ended: Callable[[Channels, str | None, float], bool]
    stats: Callable[[], Stats]
    newest_id: Callable[[], str]
    closed_because: Callable[[], str]  # why nothing is served now; "": it is
    # What it notes itself:
    refused: int = 0  # requests and streams, because the server was full or closing
    logged_origins: set[str] = dataclasses.field(default_factory=set)
    large_head_due: float = -math.inf  # when the next one is logged, in seconds

    def __post_init__(self) -> None:
        token = self.publish_token or ""
        if not isinstance(token, str):
            raise TypeError("publish_token is not a str; allowed is a str or None")
        match = re.search("[^!-~]", token)
        if match:
            fault = f"publish_token has {match[0]!a} at index {match.start()}"
            raise ValueError(fault + "; allowed are visible ASCII characters")
        self._token = token.encode()
        self._allow = "GET, HEAD, OPTIONS" + (", POST" if token else "")
        self.path = _check_path(self.path)
        if self.read_page and self.path == "/":
            raise ValueError("path is '/', where the page is; allowed is another one")
        if self.hosts is not None:
            names = _check_all("host", self.hosts, *_HOSTS)
            self.hosts = frozenset(name.rstrip(".") for name in names)
        self._given_hosts = self.hosts  # at its own port, it may get others
        self._origins = _check_all("cors_origin", self.cors_origins, *_ORIGINS)
        link = f'<a href="{html.escape(self.path)}">{html.escape(self.path)}</a>'
        self._ok_page = _note("ok", "ok", f"The event stream is at {link}.")

    def decide(
        self,
        request: Request,
        permit: _Permit | HTTPError | None = None,
        body: bytes | None = None,
        is_full: bool = False,
    ) -> _Decision:
        """What is done next about a request; what is wrong with it is answered, too.

        `permit` is what `authorize` has allowed, or the error to answer with; None: it
        was not asked.  `body` is the whole body; None: it was not read.
        """
        decision: _Decision
        try:
            if is_full or self.closed_because():
                decision = self._turn_away(request)
            elif self._is_here(request):
                decision = self._decide_here(request, permit, body)
            else:
                decision = self._decide_elsewhere(request, body)
        except Exception as error:
            decision = self._answer_failure(request, error)
        if isinstance(decision, _Response):
            return self._add_fields(request, decision)
        return decision

    def publish_body(self, publication: _Publication) -> _Response:
        """Publish, in a thread; the answer, also if it fails."""
        request, body = publication
        try:
            response = self._publish_body(request, body)
        except Exception as error:
            response = self._answer_failure(request, error)
        return self._add_fields(request, response)

    def _answer_failure(self, request: Request, error: Exception) -> _Response:
        if not isinstance(error, HTTPError):
            logger.exception("%s: answering a request failed", request.peer)
            return _error_response(HTTPError(500))
        logger.debug("%s: %s", request.peer, error)
        error.__traceback__ = None  # its frames hold it, as a permit
        return _error_response(error)

    def _is_here(self, request: Request) -> bool:
        """Whether it is on the path of the stream."""
        return request.path == (request.stream_path or self.path)

    def _decide_elsewhere(self, request: Request, body: bytes | None) -> _Decision:
        if body is None and request.method == "POST" and self._token:
            fault = f"POST to {request.path[:80]!a} publishes nothing; "
            fault += f"publish at {self.path}"
            logger.info("%s: %s", request.peer, fault)
            if request.header("authorization") is not None:
                # 200 would tell a publisher that it has published.
                raise HTTPError(404, fault)
        if body is None and request.has_body:
            return self._want_body(request, keep=False)
        if self.read_page and request.path == "/" and request.method in ("GET", "HEAD"):
            try:
                return _Response(200, _FILE_HEADERS, self.read_page())
            except OSError as error:
                logger.error("the page: %s", error)
                raise HTTPError(500, "the page cannot be read") from None
        return self._ok_page if _is_navigation(request) else _OK

    def _decide_here(
        self, request: Request, permit: _Permit | HTTPError | None, body: bytes | None
    ) -> _Decision:
        method = request.method
        publishes = method == "POST" and bool(self._token)
        self._require_own_name(request)
        self._log_origin(request)
        if publishes:
            self._check_token(request, "publishing needs")
        elif method not in ("GET", "HEAD", "OPTIONS"):
            message = f"{method} is not allowed on {request.path}"
            if method == "POST":
                message += ": no token is set to publish with (--publish-token)"
            raise HTTPError(405, message, [("Allow", self._allow)])
        if self.asks and permit is None and method != "OPTIONS":
            for_stream = method == "GET" and not _is_navigation(request)
            return _Question(request, for_stream)
        if isinstance(permit, HTTPError):
            return self._answer_refusal(request, permit)
        if body is None and request.has_body:
            return self._want_body(request, keep=publishes)
        if publishes and self.publishing_waits:
            return _Publication(request, body or b"")
        if publishes:
            return self._publish_body(request, body or b"")
        if method == "OPTIONS":
            return _Response(204, (("Allow", self._allow),), b"")
        return self._represent(request, permit)

    def _want_body(self, request: Request, keep: bool) -> _Body:
        _check_body_size(request.content_length, self.max_event_bytes)
        return _Body(self.max_event_bytes, keep)

    def response_to(self, error: HTTPError, request: Request | None) -> _Response:
        """The answer that tells of an error; no request: its head was invalid."""
        response = _error_response(error)
        return self._add_fields(request, response) if request else response

    def log_large_head(
        self, error: HTTPError, head: bytes, peer: str, now: float
    ) -> None:
        """Log what makes a head too large, but not often; `now` is in seconds."""
        if now < self.large_head_due:
            return
        self.large_head_due = now + _LARGE_HEAD_SECONDS
        largest = max(head.splitlines()[1:], key=len, default=b"")
        name = _quote(largest.partition(b":")[0])
        size = f"{len(head)} bytes have come, {len(largest)} of them of {name}"
        logger.warning("%s: %s; %s", peer, error.message, size)

    # What a GET or HEAD of the path is answered.

    def _represent(
        self, request: Request, permit: _Permit | None
    ) -> _Response | _Stream:
        """The counts, the page, or the stream.

        Each carries the newest id, so that another process can render it into a page;
        but not for those who may not hear of every channel.
        """
        newest_id = "" if permit and permit.is_limited else self.newest_id()
        if not request.accepts("text/event-stream"):
            if request.accepts("application/json") and self._may_count(request):
                stats = _JSON.encode(dataclasses.asdict(self.stats())).encode()
                return _Response(200, _STATS_HEADERS, stats, newest_id)
            if request.accepts("text/html"):
                return _Response(200, _PAGE_HEADERS, _PAGE, newest_id)
        replay = self.replay if request.replay is None else request.replay
        last_id = request.last_event_id
        channels = permit.channels if permit else request.channels
        if self.has_ended(channels, last_id, replay):
            return _Response(204, (("Cache-Control", "no-store"),), b"", newest_id)
        is_own = request.stream_path is None  # at the server's own port
        chunked = is_own and request.version >= (1, 1)
        gzip = self.compresses(request)
        headers = (*_STREAM_HEADERS, _GZIP) if gzip else _STREAM_HEADERS
        head = _Response(200, headers, None, newest_id)
        if request.method == "HEAD":
            return head
        head = self._add_fields(request, head)
        return _Stream(head, _Wish(channels | _ALL, chunked, gzip), last_id, replay)

    def _may_count(self, request: Request) -> bool:
        """Whether it gets the counts; HTTPError if it can have nothing else."""
        others = any(map(request.accepts, ("text/html", "text/*", "*/*")))
        if self._token and (request.values(b"authorization") or not others):
            self._check_token(request, "the counts need")
            return True
        if not others:
            fault = "without a publish_token there are no counts as JSON"
            raise HTTPError(406, f"{fault}; the stream is text/event-stream")
        return False

    def compresses(self, request: Request) -> bool:
        return self.compress and request.version >= (1, 1) and request.accepts_gzip

    def come_back(self) -> bytes:
        """The whole of a stream that only says when to come back."""
        return format_event(retry=self._retry_later_ms())

    # Who may ask.

    def require_loopback_name(self, host: str) -> None:
        """It listens on loopback alone: require that requests name it so."""
        own = f"[{host}]" if ":" in host else host
        self.hosts = {*_LOOPBACK_HOSTS, own.lower(), *(self.hosts or ())}

    def _require_own_name(self, request: Request) -> None:
        """HTTPError 421 if the request names another host than this one."""
        given = request.header("host")
        hosts = self.hosts if request.stream_path is None else self._given_hosts
        if given is None or hosts is None:
            return
        if _host_names(given).isdisjoint(hosts):
            fault = f"this server does not answer to {given[:80]!a}"
            raise HTTPError(421, f"{fault}; its names are set by hosts (--allow-host)")

    def _check_token(self, request: Request, what_needs: str) -> None:
        given = b", ".join(request.values(b"authorization"))
        scheme, _, token = given.partition(b" ")
        # Digests are compared, so that the time does not reveal the token's length.
        expected = hashlib.sha256(self._token).digest()
        equal = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), expected)
        if scheme.lower() != b"bearer" or not equal:
            message = f"{what_needs} Authorization: Bearer and the right token"
            challenge = "WWW-Authenticate", 'Bearer realm="publish"'
            raise HTTPError(401, message, [challenge])

    def _log_origin(self, request: Request) -> None:
        """Log that a page may not read this, once for each origin."""
        origin = (request.header("origin") or "")[:_MAX_NAME_BYTES]
        logged = self.logged_origins
        if not origin or origin in logged or len(logged) == _MAX_LOGGED_ORIGINS:
            return
        own = origin.partition("://")[2] == (request.header("host") or "").lower()
        if not own and not self._origins & {origin, "*"}:
            logged.add(origin)
            hint = f"{origin!a} is not among cors_origins (--cors-origin)"
            logger.warning("%s: its page may not read this: %s", request.peer, hint)

    def _answer_refusal(self, request: Request, error: HTTPError) -> _Response:
        """The answer to a request that `authorize` has refused, or has failed for."""
        if error.status >= 500 and self._wants_stream(request):
            return self._come_back_later()
        if error.status not in (204, 401, 403) or not _is_navigation(request):
            raise error
        # For 204 alone, a browser would show nothing at all.
        status = 403 if error.status == 204 else error.status
        said = "You may not read this event stream"
        page = _note(said, f"{said} ({error.status} {html.escape(error.message)}).")
        return page._replace(status=status, headers=page.headers + error.headers)

    def _wants_stream(self, request: Request) -> bool:
        reads = request.method in ("GET", "HEAD") and self._is_here(request)
        return reads and request.accepts("text/event-stream")

    def _turn_away(self, request: Request) -> _Response:
        """The answer of a server that is full or closing.

        For an EventSource it is a stream that ends at once: 503 would stop it for good.
        """
        self.refused += 1
        if self._wants_stream(request):
            return self._come_back_later()._replace(is_last=True)
        why = self.closed_because() or "the server is full"
        after = "Retry-After", str(math.ceil(self._retry_later_ms() / 1000))
        return _error_response(HTTPError(503, why, [after]))._replace(is_last=True)

    def _come_back_later(self) -> _Response:
        return _Response(200, _STREAM_HEADERS, self.come_back())

    def _retry_later_ms(self) -> int:
        closed = self.closed_because()
        return _jittered_ms(self.restart_retry if closed else _FULL_RETRY_SECONDS)

    # What is done with a POST, and what all answers on the path have.

    def _publish_body(self, request: Request, body: bytes) -> _Response:
        """POST: the body is the data; event, channel, id, retain stand in the query."""
        try:
            fields = _event_fields(request.parameters)
            finishes = fields.pop("finish", False)
            data = body.decode()
            others = [name for name in fields if name != "channel"]
            others += ["a body"] if data else []
            if finishes and others:
                named = ", ".join(others)
                raise ValueError(f"finish=1 goes with channel alone, not with {named}")
        except UnicodeDecodeError as error:
            raise HTTPError(400, f"the body is not UTF-8: {error}") from None
        except ValueError as error:
            raise HTTPError(400, str(error)) from None
        try:
            if finishes:
                id = self.finish(fields.get("channel"))
            else:
                id = self.publish(data, **fields)
        except RuntimeError as error:  # it was closed meanwhile
            raise HTTPError(503, str(error)) from None
        except OSError as error:
            logger.error("%s: %s", request.peer, error)
            fault = "the history file cannot be written now; try again"
            raise HTTPError(503, fault, [("Retry-After", "1")]) from None
        except ValueError as error:
            # The publisher may not have got the first answer.
            id, channel = fields.get("id", ""), fields.get("channel")
            held = self.held(id)
            if held != (format_event(data, event=fields.get("event")), channel):
                raise HTTPError(409 if held else 400, str(error)) from None
        return _Response(200, _TEXT_HEADERS, id.encode(), newest_id=id)

    def _add_fields(self, request: Request, response: _Response) -> _Response:
        """Add what all answers on the path have, and CORS (Fetch standard, 3.2)."""
        if not (self._origins or self.compress) or not self._is_here(request):
            return response
        headers = list(response.headers)
        if self.compress:
            headers.append(("Vary", "Accept-Encoding"))
        if self._origins:
            headers.append(("Vary", "Origin"))
        allowed_origin = request.header("origin")
        if allowed_origin in self._origins:
            headers.append(("Access-Control-Allow-Credentials", "true"))
        else:
            allowed_origin = "*" if "*" in self._origins else None
        if allowed_origin:
            headers.append(("Access-Control-Allow-Origin", allowed_origin))
        if allowed_origin and response.newest_id:
            headers.append(("Access-Control-Expose-Headers", "Last-Event-ID"))
        if request.method == "OPTIONS" and allowed_origin:
            headers += self._allow_what_is_asked(request)
        return response._replace(headers=tuple(headers))

    def _allow_what_is_asked(self, request: Request) -> _Headers:
        """The fields with which a preflight is answered."""
        asked = request.tokens(b"access-control-request-headers") - {b""}
        if len(asked) > _MAX_ASKED_FIELDS or not all(map(_TOKEN.fullmatch, asked)):
            asked = frozenset()
        usual = ("Authorization", "Content-Type", "Last-Event-ID")
        others = {name.decode() for name in asked} - {name.lower() for name in usual}
        headers = [
            ("Access-Control-Allow-Methods", self._allow),
            ("Access-Control-Allow-Headers", ", ".join((*usual, *sorted(others)))),
            ("Access-Control-Max-Age", "600"),
        ]
        # Only the pages of a named origin may reach into a private network.
        private = request.header("access-control-request-private-network") == "true"
        if private and request.header("origin") in self._origins:
            headers.append(("Access-Control-Allow-Private-Network", "true"))
        return tuple(headers)


def _event_fields(parameters: dict[str, list[str]]) -> dict[str, Any]:
    """The arguments of publish() that a query names; ValueError for others."""
    fields: dict[str, Any] = {}
    for name, (value, *more) in parameters.items():
        if more or name not in ("event", "channel", "id", "retain", "finish"):
            fault = "repeated" if more else "unknown"
            allowed = "event, channel, id, retain=1 and finish=1, each once"
            raise ValueError(f"{fault} parameter {name[:80]!a}; allowed are {allowed}")
        is_flag = name in ("retain", "finish")
        if is_flag and value != "1":
            raise ValueError(f"{name} is {value[:80]!a}; allowed is 1")
        fields[name] = is_flag or _check_name(name, value)  # so not EVERYBODY
    return fields


def _is_navigation(request: Request) -> bool:
    """Whether a browser asks for a page to show, in an address bar or by a link."""
    reads = request.method in ("GET", "HEAD") and request.accepts("text/html")
    return reads and not request.accepts("text/event-stream")


def _note(title: str, *paragraphs: str) -> _Response:
    """A page that says so much, in HTML."""
    text = "".join(f"<p>{paragraph}</p>\n" for paragraph in paragraphs)
    page = f'<!doctype html>\n<html lang="en">\n<title>{title}</title>\n{text}'
    return _Response(200, _NOTE_HEADERS, page.encode("utf-8", "replace"))


_HTML = ("Content-Type", "text/html; charset=utf-8")
# Of an answer that only those get who accept it, and only now.
_FOR_SOME = (("Cache-Control", "no-store"), ("Vary", "Accept"), _NOSNIFF)
_STATS_HEADERS = (("Content-Type", "application/json"), *_FOR_SOME)
# An EventSource may be tried from the browser's console.
_NOTE_POLICY = "script-src 'none'; frame-ancestors 'none'"
_NOTE_HEADERS = (_HTML, *_FOR_SOME, ("Content-Security-Policy", _NOTE_POLICY))
_FILE_HEADERS = (_HTML, ("Cache-Control", "no-cache"), _NOSNIFF)  # an edit is seen
_OK = _Response(200, _TEXT_HEADERS, b"ok")
_GZIP = ("Content-Encoding", "gzip")


def _permitted(request: Request, permission: Permission) -> _Permit:
    """What a request is permitted by the value that `authorize` returned.

    HTTPError 403 if it asks for more, TypeError or ValueError for an invalid answer.
    """
    if permission is True:
        return _Permit(request.channels, is_limited=False)
    if not permission:
        raise HTTPError(403)
    # A forgotten await, a generator and the like must not let everybody in.
    unfit = isinstance(permission, (str, bytes, Mapping))
    if unfit or not isinstance(permission, Collection):
        message = f"authorize() gave {permission!r}; allowed are "
        raise TypeError(message + "True, False and a list of channels")
    allowed = frozenset(permission)
    for channel in allowed - {None}:
        _check_name("channel", cast(str, channel))
    asked = request.channels
    if "channel" not in request.parameters and request.method != "POST":
        asked = allowed
    if not asked or not asked <= allowed:
        raise HTTPError(403, "authorize() does not allow each of these channels")
    return _Permit(asked, is_limited=True)


def _check_path(path: str) -> str:
    if not isinstance(path, str) or not re.fullmatch('/[!"$->@-~]*', path):
        raise ValueError(f"path is {path!r}; allowed is ASCII that begins with /")
    return _ESCAPE.sub(_decode_unreserved, path)


# A pattern for the values, and its description for the error's message.
_ORIGINS = (
    r"(?!(?i:https://.*:443|http://.*:80)$)[A-Za-z][A-Za-z0-9+.-]*://[!$-.0->@-~]+",
    "https://example.com and the like in ASCII, without a path or a default port",
)
_HOSTS = (
    r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+",
    "names and addresses without a port, IPv6 in brackets",
)


def _check_all(name: str, values: Iterable[str], form: str, how: str) -> frozenset[str]:
    """Return the values in lower case, in which browsers send an origin."""
    if isinstance(values, str):
        raise ValueError(f"{name}s is a str; allowed is a sequence of them")
    checked = list(values)
    for value in checked:
        if value != "*" and not re.fullmatch(form, value):
            raise ValueError(f"{name} is {value!r}; allowed are {how}, and *")
    return frozenset(value.lower() for value in checked)


@functools.lru_cache(maxsize=64)
def _host_names(host: str) -> frozenset[str]:
    """The members of `hosts` that allow this value of the field Host."""
    name = re.sub(r":[0-9]*\Z", "", host).lower().rstrip(".")
    # Names below localhost never leave the machine (RFC 6761, 6.3).
    local = ["localhost"] if name.endswith(".localhost") else []
    return frozenset([name, "*", *local])


_LOOPBACK_HOSTS = frozenset(["localhost", "127.0.0.1", "[::1]"])


def _jittered_ms(seconds: float) -> int:
    """A random time, 0.5 to 1.5 times `seconds`, so that clients return one by one."""
    return max(1, round(seconds * 1000 * random.uniform(0.5, 1.5)))


# ====================================================================================
#    Above this line: bytes and values.  Below it: time and sockets.
# ====================================================================================


# ------------------------------------------------------------------------------------
# 7. Audiences and the broadcaster.
#
#    Everything here runs in the event loop, but any thread may call most methods of
#    _Intake: they take its lock, or wait in the history file.
# ------------------------------------------------------------------------------------

_HANDSHAKE, _HEAD, _BODY, _ASKING = "handshake", "head", "body", "asking"
_PUBLISHING = "publishing"
_ANSWERING, _IDLE, _LINGERING = "answering", "idle", "lingering"
_READY, _FULL, _AHEAD, _LIVE = "ready", "full", "ahead", "live"
_LEAVING, _CLOSED = "leaving", "closed"
_STREAMING = (_LIVE, _READY, _FULL, _AHEAD)  # the states of an open stream

# Which states may follow each state; the prologue says what they mean.
_TRANSITIONS = {
    _HANDSHAKE: {_HEAD, _CLOSED},
    _HEAD: {_ASKING, _BODY, _PUBLISHING, _ANSWERING, _LINGERING, _LEAVING, _CLOSED},
    _ASKING: {_BODY, _PUBLISHING, _ANSWERING, _LINGERING, _LEAVING, _CLOSED},
    _BODY: {_PUBLISHING, _ANSWERING, _LINGERING, _LEAVING, _CLOSED},
    _PUBLISHING: {_ANSWERING, _LEAVING, _CLOSED},
    _ANSWERING: {_HEAD, _IDLE, *_STREAMING, _LEAVING, _CLOSED},
    _IDLE: {_HEAD, _LEAVING, _CLOSED},
    _LINGERING: {_LEAVING, _CLOSED},
    _READY: {_READY, _FULL, _LIVE, _LEAVING, _CLOSED},
    _FULL: {_READY, _LIVE, _LEAVING, _CLOSED},
    _AHEAD: {_READY, _FULL, _LEAVING, _CLOSED},
    _LIVE: {_FULL, _READY, _LEAVING, _CLOSED},
    _LEAVING: {_CLOSED},
}

_Hook = Optional[Callable[[Request], object]]


class _Batch(NamedTuple):
    """What a subscriber that is behind gets next, and where it is after that."""

    payload: bytes
    events: int
    gaps: int
    cursor: _Cursor


class _Cursor(NamedTuple):
    """Where a subscriber is, and what it must be told first."""

    position: int
    gap: str | None = None  # the reason of the gap that it must be told of
    # While it receives retained events: the number of the last one that it was given,
    # and the id at its `position`.  The last retained event carries this id.
    snapshot: tuple[int, str] | None = None

    def next_batch(self, log: _EventLog, channels: Channels) -> _Batch:
        """What it is given next; neither compressed nor framed yet."""
        position, reason, snapshot = self
        gaps: list[bytes] = []
        frames: list[bytes] = []
        end_of_snapshot = b""
        if not reason and log.missed(position, channels):
            reason = "history"
        if reason:
            position = max(position, log.base)
            snapshot = 0, log.id_at(position)
        if snapshot:
            (given, id), snapshot = snapshot, None
            frames, upto = log.snapshot(given, position, channels)
            # A client that loses its connection before it has all of them must not
            # resume after them.  So only the last one carries an id.
            if upto < position:
                snapshot = upto, id
            elif frames:
                frames[-1] = _with_id(frames[-1], id)
            elif given and not reason:  # the others have been forgotten meanwhile
                end_of_snapshot = format_event(id=id)
            if reason:
                told = None if snapshot or frames else id
                gaps = [format_event({"reason": reason}, event="gap", id=told)]
        if snapshot is None:
            # If all up to `sent` are forgotten, it reads on beyond, before the live
            # subscribers.  If it waited, it would lose more events.
            end = log.sent if log.base < log.sent else log.newest
            batch, position = log.read(position, end)
            wanted = [e.frame for e in batch if e.frame and e.channel in channels]
            frames += wanted
        cursor = _Cursor(position, None, snapshot)
        payload = b"".join([*gaps, end_of_snapshot, *frames])
        return _Batch(payload, len(frames), len(gaps), cursor)


class _Subscriber(abc.ABC):
    """A stream, as the broadcaster knows it: where it is, and how to write to it."""

    __slots__ = ("audience", "awaited", "checks", "cursor", "lacks", "peer", "state",
                 "target", "timer", "unsent")  # fmt: skip

    state: str
    cursor: _Cursor  # while it is behind; all live subscribers are at `sent`
    # While it is ahead: the id it has seen, that id's key, and since which position.
    awaited: tuple[str, Any, int]
    unsent: int  # while its socket is full: what it had not taken at the last check
    checks: int  # those without progress that are left before it is cut
    lacks: int  # while it is young: the bytes until it has its audience's whole tail

    def __init__(self, peer: str) -> None:
        self.peer = peer  # its address and port
        # Only while the stream is open:
        self.audience: _Audience | None = None
        self.target: Any = None  # its socket, if a sweep writes to that
        self.timer: asyncio.TimerHandle | None = None  # of the stream's lifetime

    @abc.abstractmethod
    def request(self) -> Request:
        """The request that opened the stream; of a connection, the one in work."""

    @abc.abstractmethod
    def send(self, data: bytes) -> None:
        """Take all of the data; without room for it, have pause() called."""

    @abc.abstractmethod
    def has_room(self) -> bool:
        """Whether everything that was sent has been taken."""

    @abc.abstractmethod
    def count_unsent(self) -> int:
        """The bytes that the client did not take, in every layer below."""

    def expect_acknowledgements(self, within: float | None) -> None:
        """Let the system, if it can, cut it if it acknowledges nothing for so long."""

    @abc.abstractmethod
    def end_with(self, farewell: bytes) -> None:
        """Send the last bytes, and close after them."""

    def own_socket(self) -> socket.socket | None:
        """Its own socket, if it has one."""
        return None

    @abc.abstractmethod
    def cut(self) -> None:
        """Close at once; what was not taken yet is lost."""

    @abc.abstractmethod
    def expire(self) -> None:
        """The time for the present state is over."""


class _Audience:
    """The subscribers with equal wishes, and the bytes that they share.

    With gzip, a compressor of its own compresses each batch.  Its dictionary is the
    tail of what was written to the audience before, so that a small event becomes
    smaller.  A subscriber that has joined lately is young: it gets each batch without
    the dictionary, until as many bytes as the tail has were written to it.
    """

    __slots__ = ("live", "members", "tail", "wish", "write", "young")

    def __init__(self, wish: _Wish) -> None:
        self.wish = wish
        # Dicts: their order is roughly that in memory.  Sets make a sweep 3 % slower.
        self.live: dict[_Subscriber, None] = {}
        self.young: dict[_Subscriber, None] = {}
        self.tail = b""
        self.write = _send if wish.direct else _send_nothing
        self.members = 0  # live and behind

    def join(self, subscriber: _Subscriber) -> None:
        """It is live from now on."""
        subscriber.lacks = _TAIL_BYTES if self.wish.gzip else 0
        (self.young if subscriber.lacks else self.live)[subscriber] = None

    def leave(self, subscriber: _Subscriber) -> None:
        """It is live no more."""
        del (self.live if subscriber in self.live else self.young)[subscriber]

    def was_written(self, payload: bytes, young: set[_Subscriber]) -> None:
        """Note the tail of what was written, and who has all of it now."""
        self.tail = (self.tail + payload[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        for subscriber in young:
            subscriber.lacks -= len(payload)
            if subscriber in self.young and subscriber.lacks <= 0:
                del self.young[subscriber]
                self.live[subscriber] = None

    def encode(
        self,
        payload: bytes,
        dictionary: bytes = b"",
        begins: bool = False,
        ends: bool = False,
    ) -> Generator[None, None, bytes]:
        """The payload as it is written: compressed and framed, as is wished.

        A client must have decoded the dictionary last.  The stream `begins` or `ends`
        with this payload, if so.  It gives way in the midst of a large payload.
        """
        if self.wish.gzip:
            header = _GZIP_HEADER if begins else b""
            payload = header + (yield from _deflate(payload, dictionary))
        if self.wish.chunked:
            payload = _chunk(payload) + (_LAST_CHUNK if ends else b"")
        return payload


class _Audiences:
    """The audiences that have members, by their wish and by their channels."""

    def __init__(self) -> None:
        self._by_wish: dict[_Wish, _Audience] = {}
        # A channel's audiences.  Most channels that belong to one client have one.  If
        # each of these had a collection of its own, 9,000 clients of 100 such channels
        # would make the garbage collector stop the event loop for 0.2 s.
        self._by_channel: dict[str | None, _Audience | dict[_Audience, None]] = {}

    def all(self) -> Collection[_Audience]:
        return self._by_wish.values()

    def of(self, channel: str | None) -> Collection[_Audience]:
        """The audiences of a channel: a dict, or one that has the channel alone."""
        audiences = self._by_channel.get(channel, ())
        return (audiences,) if isinstance(audiences, _Audience) else audiences

    def admit(self, wish: _Wish) -> _Audience:
        """The audience of this wish, with one member more."""
        audience = self._by_wish.get(wish)
        if audience is None:
            audience = self._by_wish[wish] = _Audience(wish)
            for channel in wish.channels:
                others = self.of(channel)
                if not others:
                    self._by_channel[channel] = audience
                elif isinstance(others, dict):
                    others[audience] = None
                else:
                    self._by_channel[channel] = dict.fromkeys((*others, audience))
        audience.members += 1
        return audience

    def leave(self, audience: _Audience) -> None:
        """It has a member less; without any, it is forgotten."""
        audience.members -= 1
        if audience.members:
            return
        del self._by_wish[audience.wish]
        for channel in audience.wish.channels:
            others = self.of(channel)
            if len(others) > 1 and isinstance(others, dict):
                del others[audience]
            else:
                del self._by_channel[channel]


def _deflate(payload: bytes, dictionary: bytes) -> Generator[None, None, bytes]:
    """Deflate blocks that can be decoded at once (RFC 1951)."""
    size = len(payload)
    if size <= _STORED_BYTES:  # a stored block is shorter, and costs no time
        return struct.pack("<xHH", size, 0xFFFF - size) + payload
    import zlib

    # A small window costs less time, and is enough for what is small.
    bits = 13 if size <= _TAIL_BYTES else zlib.MAX_WBITS
    compressor = zlib.compressobj(wbits=-bits, zdict=dictionary)
    pieces = []
    for start in range(0, size, _COMPRESSED_BYTES_PER_LOOK):
        if start:
            yield
        piece = payload[start : start + _COMPRESSED_BYTES_PER_LOOK]
        pieces.append(compressor.compress(piece))
    pieces.append(compressor.flush(zlib.Z_SYNC_FLUSH))
    return b"".join(pieces)


def _at_once(encoding: Generator[None, None, bytes]) -> bytes:
    """The result of encoding a small payload, which need not give way."""
    while True:
        try:
            next(encoding)
        except StopIteration as ended:
            return cast(bytes, ended.value)


# send() takes some 5 % less time in the kernel than os.write().
_send = socket.socket.send


def _send_nothing(target: None, payload: bytes) -> int:
    """Where no socket may be written to: the transport then takes all of it."""
    return 0


class _Registry:
    """The state of each connection and subscriber, and its deadline.

    `seconds` gives the time limit of each state that has one.  It is the same for all
    members of the state, so they expire in the order in which they entered.
    """

    def __init__(self, seconds: dict[str, float], turns: _Turns) -> None:
        self.members: dict[str, dict[_Subscriber, float]] = {
            state: {} for state in _TRANSITIONS
        }
        self.seconds = seconds
        self.listening: list[socket.socket] = []
        self._turns = turns
        self._size = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_due = math.inf  # when it looks at the deadlines
        self._watchers = _Watchers()

    async def wait_until_empty(self) -> None:
        while self._size:
            await self._watchers.wait()

    def stop(self) -> None:
        """Look at no deadline any more."""
        if self._timer:
            self._timer.cancel()
        self._timer_due = -math.inf

    def __len__(self) -> int:
        return self._size

    def count(self, *states: str) -> int:
        return sum(len(self.members[state]) for state in states)

    def all(self, *states: str) -> list[_Subscriber]:
        return [s for state in states for s in list(self.members[state])]

    def add(self, subscriber: _Subscriber, state: str) -> None:
        subscriber.state = state
        self._size += 1
        self._set_deadline(subscriber, state)

    def enter(self, subscriber: _Subscriber, state: str) -> None:
        """Change the state, and update what depends on it.  Nothing else changes it."""
        old, audience = subscriber.state, subscriber.audience
        if state not in _TRANSITIONS[old]:
            raise RuntimeError(f"{old} to {state} is no transition")
        del self.members[old][subscriber]
        subscriber.state = state
        if audience and old == _LIVE:
            audience.leave(subscriber)
        if audience and state == _LIVE:
            audience.join(subscriber)
        if state == _CLOSED:
            self._size -= 1
            if not self._size:
                self._watchers.notify()
        else:
            self._set_deadline(subscriber, state)

    def let_go(self) -> None:
        """In a forked child: close its copies of all sockets, and do nothing else.

        Without this, clients see no end, and the port is in use, until the child ends.
        The event loop must not be told, because its selector is the parent's, too.
        """
        own = [subscriber.own_socket() for subscriber in self.all(*_TRANSITIONS)]
        for sock in [*self.listening, *own]:
            if sock:
                sock.close()

    def _set_deadline(self, subscriber: _Subscriber, state: str) -> None:
        deadline = math.inf
        if state in self.seconds:
            deadline = time.monotonic() + self.seconds[state]
            # It may be too early, and is set again.  A timer for each would cost more.
            if deadline < self._timer_due:
                self._set_timer(self.seconds[state], deadline)
        self.members[state][subscriber] = deadline

    def _set_timer(self, seconds: float, due: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_due = due
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._read_sockets_first)

    def _read_sockets_first(self) -> None:
        """Let the loop read its sockets for two rounds before anything expires.

        If the process was stopped for a while, the awaited input may be there already.
        """
        self._call_soon(self._call_soon, self._expire_due)  # one schedules the other

    def _call_soon(self, function: Callable[..., None], *arguments: object) -> None:
        self._timer = asyncio.get_running_loop().call_soon(function, *arguments)

    def _expire_due(self) -> None:
        """Look at the first of each state, and at the next while they are due."""
        now = time.monotonic()
        for state in self.seconds:
            members = self.members[state]
            while members:
                subscriber, deadline = next(iter(members.items()))
                if deadline > now:
                    break
                if self._turns.is_over():
                    self._call_soon(self._expire_due)
                    return
                # If it stays in this state, it has the time once more.
                del members[subscriber]
                members[subscriber] = now + self.seconds[state]
                try:
                    subscriber.expire()
                except Exception:
                    logger.exception("%s: ending it failed", subscriber.peer)
                    subscriber.cut()
        first = [next(iter(self.members[s].values()), math.inf) for s in self.seconds]
        self._timer, self._timer_due = None, math.inf
        if min(first) < math.inf:
            self._set_timer(max(0.0, min(first) - now), min(first))


class _Turns:
    """The account of the time in each round of the event loop.

    Everybody who works in the loop asks it.  Requests have the first part of a round,
    and broadcasting has a larger part, so neither can keep the other waiting.  Who
    finds its part over leaves the rest of its work to the next round.
    """

    def __init__(self) -> None:
        self.waiting: dict[_Connection | _TLS, None] = {}  # for the next round
        self._began: float | None = None  # this round, or None: nobody has asked yet

    def is_over(self, seconds: float = _REQUEST_SECONDS) -> bool:
        """Whether so many seconds of this round are over."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            asyncio.get_running_loop().call_soon(self._begin_round)
        return now - self._began >= seconds

    def defer(self, connection: _Connection | _TLS) -> None:
        """Let the connection proceed in the next round."""
        self.waiting[connection] = None
        self.is_over()  # schedules the next round

    def _begin_round(self) -> None:
        self._began = None
        while self.waiting and not self.is_over():
            connection = next(iter(self.waiting))
            del self.waiting[connection]
            connection.proceed()


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counts of a server, and how many subscribers it has now.

    A subscriber counts from the moment in which its stream opens until it has left.
    """

    live: int  # subscribers that were given everything that was published
    behind: int  # subscribers that are resuming or slow
    published: int  # the number of the log's newest entry: an event, a gap or an end
    events_written: int  # an event that is written to ten subscribers counts ten times
    bytes_written: int  # of events, gaps and heartbeats, as they are framed and coded
    gaps: int  # that single subscribers were told of, not those of publish_gap()
    dropped: int  # subscribers cut because they took nothing for write_timeout
    refused: int  # requests and streams turned away: it was full or closing


class _Bell:
    """Tells the broadcaster that there may be work to do."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # None: it has not begun
        self.process = 0  # the one in which it has begun
        self._is_rung = False

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell: asyncio.Future[None] = loop.create_future()
        self.loop, self.process = loop, os.getpid()

    def ring(self) -> None:
        """Ring it in the event loop."""
        self._wake()
        self._is_rung = True

    def ring_from_any_thread(self) -> None:
        """Ring it if it has begun; under the lock of the log."""
        if self.loop and not self._is_rung:
            if _is_in_task_of(self.loop):
                self._wake()
            else:
                with contextlib.suppress(RuntimeError):  # it was closed just now
                    self.loop.call_soon_threadsafe(self._wake)
            self._is_rung = True

    async def wait(self, lock: threading.RLock) -> None:
        """Wait until it is rung, and silence it."""
        # A signal's handler may ring between any two steps, and must not be missed.
        self._bell = asyncio.get_running_loop().create_future()
        if not self._is_rung:
            await self._bell
        with lock:
            self._is_rung = False

    def _wake(self) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # it is awake
            self._bell.set_result(None)


@dataclasses.dataclass(eq=False, repr=False)
class _Intake:
    """Brings what is published into the log: from any thread, and from a file."""

    log: _EventLog  # with a file, a window of its newest events
    file: _LogFile | None
    id_order: Callable[[str], Any] | None
    closed_because: str = ""  # why nothing can be published; "": it can
    has_news: bool = False  # whether the file may have rows that are not taken in
    added: int = 0  # the newest row that this process has added

    def __post_init__(self) -> None:
        # Of the log and the bell.  Under it nothing is logged: a handler may publish.
        self.lock = threading.RLock()
        self.bell = _Bell()
        self._file_fault = ""  # why the file cannot be read now
        self._look_timer: asyncio.TimerHandle | None = None
        self._is_followed = False  # whether there is any stream

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on the event loop follows the file, and is told of new events."""
        with self.lock:
            self.bell.begin(loop)
        if self.file:
            self._look(self.file)

    def stop(self, why: str) -> None:
        """Follow the file no more; "" for `why` lets publishing go on."""
        with self.lock:
            self.closed_because = self.closed_because or why
        if self._look_timer:
            self._look_timer.cancel()
        if self.bell.loop:
            self.has_news = self.file is not None  # what was added last
            self.bell.ring()

    def close_file(self) -> None:
        if self.file:
            self.file.close()

    def _key_of(self, id: str) -> Any:
        """The sort key of an id; None if the server has no `id_order`.

        Raises what the program's function raises, and TypeError for a key of anything
        but numbers and texts, whose comparison might run code that publishes.
        """
        if self.id_order is None:
            return None
        key = self.id_order(id)
        parts = key if isinstance(key, tuple) else (key,)
        fits = all(type(part) in (int, float, str, bytes) for part in parts)
        if not fits or any(isinstance(p, float) and math.isnan(p) for p in parts):
            allowed = "int, float, str, bytes and tuples of them"
            raise TypeError(f"id_order gave {key!r}; allowed are {allowed}")
        return key

    def _check_caller(self) -> None:
        """RuntimeError in a forked process, where nobody may ever release the lock.

        And for a call from within the log: that of a signal's handler, or a `__del__`,
        that has interrupted this thread while it holds the lock.
        """
        if self.bell.loop and os.getpid() != self.bell.process:
            fault = "this process was forked from the one in which the server runs"
            raise RuntimeError(f"{fault}; publish there")
        # An attribute of our own for this might be left wrong by Ctrl-C.
        if self.lock._is_owned():  # type: ignore[attr-defined]
            fault = "a signal's handler or a __del__ has interrupted the event log"
            hint = "publish from loop.add_signal_handler() or from another thread"
            raise RuntimeError(f"{fault}; {hint}")

    def publish(
        self,
        body: bytes,
        channel: str | None,
        id: str | None = None,
        retain: str | None = None,
        kind: str = _EVENT,
    ) -> str:
        """Append to the log and ring the bell; never waits for a client."""
        if self.file:
            number = self._add_row(self.file, kind, body, channel, id, retain)
            return id or f"{self.file.epoch}-{number}"
        self._check_caller()
        key = None if id is None else self._key_of(id)
        with self.lock:
            self._refuse_if_closed()
            id = self.log.append(body, channel, id, key, retain, kind)
            if self.bell.loop:
                self.bell.ring_from_any_thread()
            else:
                self.log.advance(self.log.newest)
        return id

    def forget(self, channel: str | None, name: str) -> bool:
        if self.file:
            return self._add_row(self.file, _FORGET, b"", channel, None, name) > 0
        self._check_caller()
        with self.lock:
            self._refuse_if_closed()
            return self.log.unretain(channel, name)

    def _add_row(self, file: _LogFile, *row: Any) -> int:
        """Add a row to the file, from which the event loops of all processes read it.

        A forked child may do this: others read it, and nobody here must be told.
        """
        self._refuse_if_closed()
        number = file.add(*row)
        if self.bell.loop and os.getpid() == self.bell.process:
            with self.lock:
                self.added = max(self.added, number)
                self.has_news = True
                self.bell.ring_from_any_thread()
        return number

    def _refuse_if_closed(self) -> None:
        fault = self.closed_because
        if not fault and self.bell.loop and self.bell.loop.is_closed():
            fault = "the server's event loop was closed before the server"
        if fault:
            raise RuntimeError(f"{fault}; nothing can be published")

    # Following the file, if there is one.

    def load(self) -> None:
        """Take in what the file holds, before the event loop follows it."""
        if self.file:
            self.file.set_bounds()
            self.catch_up()

    def catch_up(self) -> bool:
        """Take in what is new now, from any thread; return whether there may be more.

        While an event loop follows the file, this takes only as much as a request may
        wait for, and faults are noted there.  Else it takes all, or raises OSError.
        """
        loop, file = self.bell.loop, self.file
        if not file or self.closed_because:
            return False
        if loop and (loop.is_closed() or os.getpid() != self.bell.process):
            return False  # in a forked child, nobody may ever release the lock
        with self.lock:
            loop = self.bell.loop  # it may have begun meanwhile
            before, has_more, batches = self.log.newest, True, 0
            try:
                while has_more and not (loop and batches == _FILE_BATCHES_PER_REQUEST):
                    has_more = self._take_in(file)
                    batches += 1
            except OSError:
                if not loop:
                    raise
                has_more = False
            if not loop:
                self.log.advance(self.log.newest)
            elif before < self.log.newest:
                self.has_news = self.has_news or has_more
                self.bell.ring_from_any_thread()
        return has_more

    def held(self, id: str) -> _Held:
        if self.file:  # it may hold more than the log
            return self.file.held(id)
        with self.lock:
            return self.log.held(id)

    def _take_in(self, file: _LogFile) -> bool:
        """Take in the next rows of the file; return whether there may be more."""
        with self.lock:
            rows, has_more = file.read(self.log.newest)
            is_behind = rows and rows[0].number != self.log.newest + 1
            if is_behind or self.log.epoch != file.epoch:
                # Rows were forgotten before they could be read: that is a gap.
                self.log.restart(file.epoch, *file.read_base())
                return True
            for row in rows:
                self.log.append_row(row)
        return has_more

    def read_news(self) -> None:
        """Take in what is new, in the event loop, when all before it was written."""
        self.has_news = False  # before it reads, as another thread may publish now
        before, self._file_fault = self._file_fault, ""
        try:
            if self.file and self._take_in(self.file):
                self.has_news = True
        except OSError as error:
            self._file_fault = str(error)
        if self._file_fault != before:
            if self._file_fault:
                logger.error("%s", self._file_fault)
            else:
                logger.info("the history file can be read again")

    def _look(self, file: _LogFile) -> None:
        """See whether another process has published."""
        has_changed = True
        with contextlib.suppress(OSError):  # read_news() will say why
            has_changed = file.changed()
        if has_changed or self._file_fault:
            self.has_news = True
            self.bell.ring()
        seconds = _FILE_LOOK_SECONDS if self._is_followed else _FILE_IDLE_SECONDS
        loop = asyncio.get_running_loop()
        self._look_timer = loop.call_later(seconds, self._look, file)

    def follow(self, is_followed: bool) -> None:
        """Look often for what other processes publish, if anybody waits for it."""
        self._is_followed = is_followed
        if self.file and self._look_timer and not self._look_timer.cancelled():
            self._look_timer.cancel()
            self._look(self.file)

    def locate(self, id: str) -> tuple[int | None, Any]:
        """The position of an id that a client has seen; None: the id is unknown.

        And its key, if its event is yet to come.
        """
        if len(id) > _MAX_NAME_BYTES:
            return None, None
        key = self._key_of_seen(id)
        with self.lock:
            position, may_come = self.log.find(id, key), self.file is not None
            while position is None and may_come:  # from another process, just now
                may_come = self.catch_up()
                position = self.log.find(id, key)
            return position, (key if self.log.is_ahead(key) else None)

    def has_ended(
        self, channels: Channels, last_event_id: str | None, replay: float
    ) -> bool:
        """Whether all that a stream would get is its end."""
        log, wanted = self.log, channels | _ALL
        self.catch_up()
        if not log.is_finished(channels, log.newest):
            return False
        position = None  # of a new client
        if last_event_id:
            position, awaited_key = self.locate(last_event_id)
            # If it is ahead, the channel may have begun anew elsewhere.
            if position is None or awaited_key is not None:
                return False
        with self.lock:
            if position is None:
                searched = max(log.base, log.newest - _MAX_REPLAY_SCAN)
                position = searched if replay else log.sent
                owes = log.retains(wanted)
            else:
                owes = log.missed(position, wanted)
            return not (owes or log.follows(position, wanted))

    def _key_of_seen(self, id: str) -> Any:
        """The sort key of an id that a client has seen; None: it has none."""
        with contextlib.suppress(Exception):  # the publisher never gave such an id
            if _number_in(id, self.log.epoch) is None:
                return self._key_of(id)
        return None


class _Taken(NamedTuple):
    """Who is live in some audiences at one moment."""

    audiences: list[_Audience]
    members: list[_Subscriber]  # of one audience after the other, the young last
    ends: list[int]  # in `members`: two for each audience, of its old and of its young


@dataclasses.dataclass(eq=False, repr=False)
class _Broadcaster:
    """Moves the live subscribers through the log, and brings those behind to them.

    It takes a batch in one step: it reads the batch, notes who is live, and moves
    `sent`.  Who joins after that step begins after the batch.  Then it writes the batch
    in turns, and encodes it for each audience when its turn comes.  A subscriber that
    stops being live before its turn is put back to its position before the batch.
    """

    intake: _Intake
    registry: _Registry
    turns: _Turns
    heartbeat: float | None
    retry: float
    restart_retry: float
    lifetime: float | None
    write_timeout: float
    on_open: _Hook
    on_close: _Hook
    connected: int = 0  # open streams
    closed_because: str = ""  # why all streams end; "": they go on
    events_written: int = 0
    bytes_written: int = 0
    gaps: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self.log, self._bell = self.intake.log, self.intake.bell
        self._audiences = _Audiences()
        self._written = 0  # events up to here were written to the live; for drain()
        self._last_batch: dict[object, _Batch] = {}  # by what it is for
        self._task: asyncio.Task[None] | None = None
        self._heartbeat_due = False
        self._timer: asyncio.TimerHandle | None = None  # of the next heartbeat
        self._watchers = _Watchers()
        # A drain has waited write_timeout for these, so the next drain does not.
        self._not_waited_for: set[_Subscriber] = set()

    # Beginning and ending.

    def start(self) -> asyncio.Task[None]:
        """Begin, in the running event loop; the task ends after stop()."""
        loop = asyncio.get_running_loop()
        self.intake.begin(loop)
        self._written = self.log.sent
        if self.heartbeat is not None:
            self._beat(self.heartbeat)
        self._task = loop.create_task(self._run())
        self._task.add_done_callback(lambda task: self._watchers.notify())
        self._watchers.notify()  # what was published before counts as delivered
        return self._task

    def stop(self, why: str, mute: bool = True) -> None:
        """End each stream that was given everything; let nothing more be published."""
        self.closed_because = self.closed_because or why
        self.intake.stop(why if mute else "")
        if self._timer:
            self._timer.cancel()

    async def _run(self) -> None:
        while not self.closed_because or self.connected or self._has_work():
            await self._bell.wait(self.intake.lock)
            for _ in self.work():
                if self.turn_is_over():
                    await asyncio.sleep(0)
            if self._has_work():
                self._bell.ring()
                await asyncio.sleep(0)

    def _has_work(self) -> bool:
        is_new = self.log.sent < self.log.newest or self.intake.has_news
        return is_new or bool(self.registry.members[_READY])

    def turn_is_over(self) -> bool:
        """Whether no time for broadcasting is left in this round of the event loop."""
        return self.turns.is_over(_BROADCAST_SECONDS)

    def work(self) -> Iterator[None]:
        """Do some of the work there is.  A turn may end at each yield."""
        yield from self._serve_live()
        for _ in self._serve_ready():
            if self.turn_is_over():
                yield
                # What is new need not wait until a large batch is compressed.
                yield from self._serve_live()
        self._watchers.notify()
        if self._has_work():
            return
        self._last_batch = {}
        if self.closed_because:
            for subscriber in self.registry.all(_LIVE, _AHEAD):
                if subscriber.state in (_LIVE, _AHEAD):
                    self.end(subscriber, "the server ends")
                yield
            self._watchers.notify()

    def _serve_live(self) -> Iterator[None]:
        """Write what is due to those who were given everything before."""
        if self._heartbeat_due:
            self._heartbeat_due = False
            yield from self._write_heartbeats()
        if self.intake.has_news and self.log.sent == self.log.newest:
            self.intake.read_news()
        if self.log.sent < self.log.newest:
            yield from self._sweep()
            self._watchers.notify()

    def _beat(self, seconds: float) -> None:
        self._heartbeat_due = True
        self._bell.ring()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._beat, seconds)

    def _write_heartbeats(self) -> Iterator[None]:
        """To everybody whose socket has room; those behind get events."""
        waiting = self.registry.all(_AHEAD)
        taken = self._take(self._audiences.all())
        before = _Cursor(self.log.sent)
        yield from self._write_to(taken, lambda wish: (_HEARTBEAT, 0), before)
        for subscriber in waiting:
            audience = subscriber.audience
            if audience and subscriber.state == _AHEAD and subscriber.has_room():
                payload = _at_once(audience.encode(_HEARTBEAT))
                self._send(subscriber, payload)
                self.bytes_written += len(payload)
            yield

    # The sweep: it writes one batch to all subscribers that are live at this moment.

    def _sweep(self) -> Iterator[None]:
        with self.intake.lock:  # one step: there is no yield in it
            before = self.log.sent
            position = _Cursor(before)
            batch, end = self.log.read(before, self.log.newest)
            # The frames themselves: the log may forget them before they are written.
            frames: _Frames = {}
            ended = [entry.channel for entry in batch if entry.kind == _END]
            for number, entry in enumerate(batch):
                if entry.frame:
                    frames.setdefault(entry.channel, []).append((number, entry.frame))
            audiences: dict[_Audience, None] = {}
            for channel in frames:
                audiences.update(dict.fromkeys(self._audiences.of(channel)))
            losers: list[_Audience] = []
            if before < self.log.base:  # events were forgotten that these did not get
                for audience in list(self._audiences.all()):
                    if self.log.missed(before, audience.wish.channels):
                        audiences.pop(audience, None)
                        losers.append(audience)
            taken, lost = self._take(audiences), self._take(losers)
            self.log.advance(end)
        for subscriber in lost.members:
            subscriber.cursor = position  # before what is forgotten: it gets a gap
            if subscriber.state == _LIVE:
                self._get_ready(subscriber)
            yield
        yield from self._write_to(
            taken, lambda wish: _payload_for(wish.channels, frames), position
        )
        for channel in ended:
            for audience in list(self._audiences.of(channel)):
                yield from self._end_if_finished(audience)
        self._written = end
        yield from self._end_being_ahead()

    def _take(self, audiences: Iterable[_Audience]) -> _Taken:
        """Who is live in each of these audiences now.

        All are in one list.  With a collection for each of 30,000 audiences, the
        garbage collector would stop the event loop for a second.
        """
        taken = _Taken([*audiences], [], [])
        for audience in taken.audiences:
            taken.members.extend(audience.live)
            taken.ends.append(len(taken.members))
            taken.members.extend(audience.young)
            taken.ends.append(len(taken.members))
        return taken

    def _write_to(
        self,
        taken: _Taken,
        payload_for: Callable[[_Wish], tuple[bytes, int]],
        before: _Cursor,
    ) -> Iterator[None]:
        """Write to each audience the payload for its wish; it comes with its count."""
        begin, ends = 0, iter(taken.ends)
        for audience, middle, end in zip(taken.audiences, ends, ends):
            yield
            live, young = taken.members[begin:middle], taken.members[middle:end]
            begin = end
            payload, events = payload_for(audience.wish)
            skipped: set[_Subscriber] = set()
            for members, dictionary in ((live, audience.tail), (young, b"")):
                if members and payload:
                    encoded = yield from audience.encode(payload, dictionary)
                    skipped = yield from self._write(
                        audience, members, encoded, events, before
                    )
            if audience.wish.gzip:
                audience.was_written(payload, {*young} - skipped)

    def _write(
        self,
        audience: _Audience,
        members: list[_Subscriber],
        payload: bytes,
        events: int,
        before: _Cursor,
    ) -> Generator[None, None, set[_Subscriber]]:
        """Write the same bytes to each of these members that is still live.

        Return those that are not: they have left, or have paused before their turn.
        """
        write, size = audience.write, len(payload)
        skipped: set[_Subscriber] = set()
        step = max(1, min(_WRITES_PER_LOOK, _WRITTEN_BYTES_PER_LOOK // size))
        for start in range(0, len(members), step):
            if start:
                yield
            some = members[start : start + step]
            written = len(some)
            for subscriber in some:
                if subscriber.state != _LIVE:
                    subscriber.cursor = before
                    skipped.add(subscriber)
                    written -= 1
                    continue
                try:
                    count = write(subscriber.target, payload)
                except Exception:  # its transport buffers the payload, or reports why
                    count = 0
                if count < size:
                    self._send(subscriber, payload[count:])
            self.events_written += written * events
            self.bytes_written += written * size
        return skipped

    def _end_if_finished(self, audience: _Audience) -> Iterator[None]:
        """End the streams of which nothing more will come."""
        if self._is_finished(audience):
            for subscriber in [*audience.live, *audience.young]:
                if subscriber.state == _LIVE:
                    self._end_finished(subscriber)
                yield

    def _is_finished(self, audience: _Audience | None) -> bool:
        """Whether those who are at `sent` have got all that will come."""
        if audience is None:
            return False
        return self.log.is_finished(audience.wish.channels - _ALL, self.log.sent)

    def _end_finished(self, subscriber: _Subscriber) -> None:
        # It comes back soon, and then it is told that there is nothing more.
        self.end(subscriber, "finished", self.retry)

    def _send(self, subscriber: _Subscriber, payload: bytes) -> None:
        try:
            subscriber.send(payload)
        except Exception as error:
            self._cut_broken(subscriber, error)

    def _cut_broken(self, subscriber: _Subscriber, error: Exception) -> None:
        logger.error("%s: writing failed", subscriber.peer, exc_info=error)
        self.cut(subscriber, "an error")

    # Subscribers come, fall behind, catch up and leave.

    def add(self, subscriber: _Subscriber, stream: _Stream, head: bytes = b"") -> None:
        """Open the stream of an `answering` subscriber: write its head and first bytes.

        Firefox calls onopen when the first byte of the body comes, and the retry counts
        without a blank line, which some clients would take for an event.
        """
        wish = stream.wish._replace(direct=subscriber.target is not None)
        audience = subscriber.audience = self._audiences.admit(wish)
        first = b": open\nretry: %d\n" % _jittered_ms(self.retry)
        self.connected += 1
        if self.connected == 1:
            self.intake.follow(True)
        # Before its head is written: what is forgotten from here on is a gap.
        is_ahead = not self._find_start(subscriber, wish.channels, stream)
        failure = None
        try:
            subscriber.send(head + _at_once(audience.encode(first, begins=True)))
        except Exception as error:
            failure = error
        if self.lifetime is not None and self._bell.loop:
            seconds = self.lifetime * random.uniform(0.8, 1.2)
            end = functools.partial(self.end, subscriber, "lifetime over", self.retry)
            subscriber.timer = self._bell.loop.call_later(seconds, end)
        if is_ahead:
            self.registry.enter(subscriber, _AHEAD)
        elif self._may_go_live(subscriber) and subscriber.has_room():
            self.registry.enter(subscriber, _LIVE)
        else:
            self._fall_behind(subscriber)
        logger.info("%s joined; %d connected", subscriber.peer, self.connected)
        self._call(self.on_open, subscriber)
        if failure:
            self._cut_broken(subscriber, failure)
            failure = None  # its frames refer to this one, and this one to it

    def _find_start(
        self, subscriber: _Subscriber, channels: Channels, stream: _Stream
    ) -> bool:
        """Find where a stream begins; False if its last event is yet to come."""
        if stream.last_event_id:
            return self._go_on_after(subscriber, stream.last_event_id)
        log, position = self.log, self.log.sent
        with self.intake.lock:
            if stream.replay:
                newest = int(min(stream.replay, _MAX_REPLAY_SCAN))
                position = min(position, log.before_newest(newest, channels))
            # A new client misses nothing that was forgotten before it connected.
            position = max(position, log.base)
            subscriber.cursor = _Cursor(position)
            if log.retains(channels):
                subscriber.cursor = _Cursor(position, None, (0, log.id_at(position)))
        return True

    def _go_on_after(self, subscriber: _Subscriber, id: str) -> bool:
        """Find where to go on after `id`; False if that event is yet to come."""
        position, awaited_key = self.intake.locate(id)
        if awaited_key is not None:
            subscriber.awaited = id, awaited_key, self.log.sent
            return False
        if position is None:
            subscriber.cursor = _Cursor(self.log.base, "unknown id")
        else:
            subscriber.cursor = _Cursor(position)
        return True

    def _end_being_ahead(self) -> Iterator[None]:
        """Let the subscribers resume whose awaited event was published meanwhile."""
        for subscriber in self.registry.all(_AHEAD):
            id, key, since = subscriber.awaited
            has_come = subscriber.state == _AHEAD and not self.log.is_ahead(key)
            if has_come and self._go_on_after(subscriber, id):
                position, audience = subscriber.cursor.position, subscriber.audience
                channels = audience.wish.channels if audience else _NO_CHANNEL
                with self.intake.lock:
                    has_missed = self.log.has_unordered(since, position, channels)
                if has_missed:
                    subscriber.cursor = _Cursor(position, "history")
                self._fall_behind(subscriber)
            yield

    def _call(self, hook: _Hook, subscriber: _Subscriber) -> None:
        """Call the hook in the next round, when the state here is consistent again."""
        if hook and self._bell.loop:
            self._bell.loop.call_soon(self._run_hook, hook, subscriber.request())

    def _run_hook(self, hook: Callable[[Request], object], request: Request) -> None:
        try:
            hook(request)
        except Exception as error:
            if self.closed_because and isinstance(error, RuntimeError):
                logger.debug("%s: a hook: %s", request.peer, error)  # it published
            else:
                logger.exception("%s: a hook failed", request.peer)

    def _is_in_step(self, subscriber: _Subscriber) -> bool:
        """Whether it was given everything that the live were given."""
        return subscriber.cursor == _Cursor(self.log.sent)

    def _may_go_live(self, subscriber: _Subscriber) -> bool:
        is_finished = self._is_finished(subscriber.audience)
        return self._is_in_step(subscriber) and not is_finished

    def _fall_behind(self, subscriber: _Subscriber) -> None:
        """Let it catch up from its own position when its socket has room."""
        if subscriber.has_room():
            self._get_ready(subscriber)
        else:
            self._enter_full(subscriber)

    def pause(self, subscriber: _Subscriber) -> None:
        """Its socket did not take everything that was written."""
        if subscriber.state == _LIVE:
            subscriber.cursor = _Cursor(self.log.sent)
        if subscriber.state in (_LIVE, _READY):
            self._enter_full(subscriber)

    def _enter_full(self, subscriber: _Subscriber) -> None:
        subscriber.unsent = subscriber.count_unsent()
        subscriber.checks = _CHECKS
        # The kernel would also cut a client that reads slowly through a small window.
        subscriber.expect_acknowledgements(None)
        self.registry.enter(subscriber, _FULL)

    def resume(self, subscriber: _Subscriber) -> None:
        """Its socket has room again."""
        if subscriber.state == _FULL:
            # During a sweep that has not written to it yet, it must not end now.
            if self._may_go_live(subscriber):
                self._go_live(subscriber)
                if self._watchers or self.closed_because:
                    self._bell.ring()
            else:
                self._get_ready(subscriber)

    def _go_live(self, subscriber: _Subscriber) -> None:
        self._not_waited_for.discard(subscriber)
        subscriber.expect_acknowledgements(self.write_timeout)
        self.registry.enter(subscriber, _LIVE)

    def _get_ready(self, subscriber: _Subscriber) -> None:
        self.registry.enter(subscriber, _READY)
        self._bell.ring()

    def expire(self, subscriber: _Subscriber) -> None:
        if subscriber.state == _FULL:
            self._check_progress(subscriber)
        elif subscriber.state == _AHEAD:  # the event that it has seen does not come
            subscriber.cursor = _Cursor(self.log.base, "unknown id")
            self._fall_behind(subscriber)
        else:
            subscriber.cut()  # an answer, a farewell or a handshake took too long

    def _check_progress(self, subscriber: _Subscriber) -> None:
        """Cut it if its socket took nothing during the last _CHECKS checks."""
        unsent = subscriber.count_unsent()
        if unsent < subscriber.unsent:
            subscriber.checks = _CHECKS
        else:
            subscriber.checks -= 1
        subscriber.unsent = unsent
        if not subscriber.checks:
            self.dropped += 1
            self.cut(subscriber, f"took nothing for {self.write_timeout:g} s")

    def _serve_ready(self) -> Iterator[None]:
        """Write the next batch to some subscribers that are ready, in turn."""
        ready = self.registry.members[_READY]
        for subscriber in list(itertools.islice(ready, _CATCH_UPS_PER_TURN)):
            if subscriber.state != _READY:
                continue  # it has left while this gave way
            self.registry.enter(subscriber, _READY)  # to the end of the queue
            position, gap, snapshot = subscriber.cursor
            audience = subscriber.audience
            if audience and (position < self.log.sent or gap or snapshot):
                yield from self._write_next(subscriber, audience)
            if subscriber.state == _READY and self._is_in_step(subscriber):
                if self._is_finished(subscriber.audience):
                    self._end_finished(subscriber)
                else:
                    self._go_live(subscriber)
            if self.turn_is_over():
                return

    def _write_next(
        self, subscriber: _Subscriber, audience: _Audience
    ) -> Iterator[None]:
        log = self.log
        with self.intake.lock:
            # After an outage many resume at one position: encode their bytes once.
            key = audience, subscriber.cursor, log.base, log.retained_changes
            batch = known = self._last_batch.get(key)
            if batch is None:
                batch = subscriber.cursor.next_batch(log, audience.wish.channels)
        if known is None:
            payload = batch.payload and (yield from audience.encode(batch.payload))
            batch = batch._replace(payload=payload)
            self._last_batch = {key: batch}
        if subscriber.state != _READY:
            return  # it has left while this gave way
        subscriber.cursor = batch.cursor
        self.events_written += batch.events
        self.bytes_written += len(batch.payload)
        self.gaps += batch.gaps
        if batch.payload:
            self._send(subscriber, batch.payload)

    def end(
        self, subscriber: _Subscriber, why: str, retry: float | None = None
    ) -> None:
        """Tell the client when to come back, end its stream, close."""
        audience = subscriber.audience
        if audience is None:
            return
        farewell = format_event(retry=_jittered_ms(retry or self.restart_retry))
        self.leave(subscriber, _LEAVING, why)
        try:
            subscriber.end_with(_at_once(audience.encode(farewell, ends=True)))
        except Exception:
            logger.exception("%s: ending the stream failed", subscriber.peer)
            subscriber.cut()

    def cut(self, subscriber: _Subscriber, why: str) -> None:
        """End an open stream at once."""
        if subscriber.audience:
            self.leave(subscriber, _LEAVING, why)
            subscriber.cut()

    def leave(self, subscriber: _Subscriber, state: str, why: str) -> None:
        """Let a stream that ends enter `leaving` or `closed`."""
        audience = subscriber.audience
        if audience is None:
            return
        self.registry.enter(subscriber, state)
        subscriber.audience = subscriber.target = None
        if subscriber.timer:
            subscriber.timer.cancel()
            subscriber.timer = None
        self._not_waited_for.discard(subscriber)
        self._audiences.leave(audience)
        self.connected -= 1
        if not self.connected:
            self.intake.follow(False)
        logger.info("%s left, %s; %d remain", subscriber.peer, why, self.connected)
        self._call(self.on_close, subscriber)
        self._bell.ring()  # somebody may wait for this

    def has_closed(self, subscriber: _Subscriber, why: str) -> None:
        """It is gone, whether it was an open stream or not."""
        self.leave(subscriber, _CLOSED, why)
        if subscriber.state != _CLOSED:
            self.registry.enter(subscriber, _CLOSED)

    # Waiting for it.

    async def drain(self, behind: bool) -> None:
        target = max(self.log.newest, self.intake.added)
        while self._written < target:
            if self.closed_because and self._task and self._task.done():
                if not self.intake.closed_because:
                    return  # all clients have been told to come back
                raise RuntimeError(f"{self.closed_because}; nothing can be delivered")
            await self._watchers.wait()
        deadline = time.monotonic() + self.write_timeout
        while behind:
            waited_for = [
                subscriber
                for subscriber in self.registry.all(_READY, _FULL)
                if subscriber.cursor.position < target
                and subscriber not in self._not_waited_for
            ]
            if not waited_for:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                self._not_waited_for.update(waited_for)
                break
            await self._watchers.wait(left)


class _Watchers:
    """Tasks that wait for the next change."""

    def __init__(self) -> None:
        self._change: asyncio.Future[None] | None = None  # while somebody waits for it

    def __bool__(self) -> bool:
        return self._change is not None

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until something may have changed, or for so many seconds."""
        self._change = self._change or asyncio.get_running_loop().create_future()
        await asyncio.wait([self._change], timeout=seconds)

    def notify(self) -> None:
        if self._change:
            self._change.set_result(None)
            self._change = None


def _is_in_task_of(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task of the loop calls this, or is interrupted: then it is awake."""
    try:
        return asyncio.get_running_loop() is loop and bool(asyncio.current_task())
    except RuntimeError:  # in this thread runs no event loop
        return False


# The frames of a batch by channel, each with its place in the batch.
_Frames = dict[Optional[str], list[tuple[int, bytes]]]


def _payload_for(channels: Channels, frames: _Frames) -> tuple[bytes, int]:
    """The events of these channels, in their order, and how many they are."""
    groups = [frames[channel] for channel in channels if channel in frames]
    wanted = groups[0] if len(groups) == 1 else sorted(itertools.chain(*groups))
    return b"".join([frame for _, frame in wanted]), len(wanted)


def _unacknowledged(transport: asyncio.BaseTransport) -> int:
    """The bytes that the kernel holds; 0 where it does not say (SIOCOUTQ of Linux)."""
    # A pipe has no descriptor, and some systems lack these modules.
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import fcntl
        import termios

        descriptor = transport.get_extra_info("socket").fileno()
        held = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(held, sys.byteorder)
    return 0


def _set_user_timeout(sock: Any, write_timeout: float | None) -> None:
    """Have the kernel end a connection without acknowledgements; None: it waits long.

    Linux applies this timeout also to a client that is there and takes nothing.
    write_timeout handles such a client, so this one must not be shorter.
    """
    seconds = 0 if write_timeout is None else max(_VANISHED_SECONDS, write_timeout)
    with contextlib.suppress(AttributeError, OSError):  # where the system has it
        milliseconds = int(min(2**31 - 1, 1000 * seconds))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


# ------------------------------------------------------------------------------------
# 8. The connection, and the ASGI door.
#
#    A connection is called by its transport, and answers a request that needs no
#    waiting in the call that completed it.  A request that comes by ASGI is a call,
#    which goes on until its answer has ended; its stream is pulled.
# ------------------------------------------------------------------------------------


class _Threads:
    """Calls what may block, each in a thread of its own, so many at a time.

    The program's end does not wait for these daemon threads, but for an executor's.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit  # the name of what is called
        self._free: asyncio.Semaphore | None = None  # belongs to the event loop

    async def call(
        self, seconds: float, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """What it returns.  Raises what it raises, and TimeoutError of asyncio.

        Each of two waits may take so many seconds: for a thread, and for the call.
        """
        self._free = free = self._free or asyncio.Semaphore(self._limit)
        await asyncio.wait_for(free.acquire(), seconds)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[Any, Exception | None]] = loop.create_future()

        def settle(answer: Any, failure: Exception | None) -> None:
            free.release()
            if not outcome.done():  # it is still waited for
                outcome.set_result((answer, failure))

        def call() -> None:
            answer, failure = None, None
            try:
                answer = function(*arguments)
            except Exception as error:
                failure = error
            except BaseException as error:  # it must not end the event loop
                failure = RuntimeError(f"{self._name}() raised {error!r}")
            with contextlib.suppress(RuntimeError):  # the event loop was closed
                loop.call_soon_threadsafe(settle, answer, failure)

        name = f"sse_server {self._name}"
        thread = threading.Thread(target=call, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            free.release()
            raise
        answer, failure = await asyncio.wait_for(outcome, seconds)
        if failure:
            raise failure
        return answer


class _Asker:
    """Asks the program's `authorize`: a plain function in a thread, as it may block."""

    def __init__(self, authorize: Authorize | None) -> None:
        self._authorize = cast(Authorize, authorize)  # without it nobody is asked about
        self._threads = _Threads("authorize", _AUTHORIZE_THREADS)

    async def ask(self, request: Request) -> _Permit | HTTPError:
        """What the program permits, or the error to answer with."""
        try:
            return _permitted(request, await self._call(request))
        except HTTPError as error:
            error.__context__ = None  # the frames of either would hold this one
            return error.with_traceback(None)
        except asyncio.TimeoutError:
            logger.exception("authorize() took too long for %s", request.path)
            return HTTPError(503, "asking for permission took too long")
        except Exception as error:
            logger.exception("authorize() failed for %s", request.path)
            error.__traceback__ = None  # its frames hold it
            return HTTPError(500)

    async def _call(self, request: Request) -> Permission:
        authorize = self._authorize
        if inspect.iscoroutinefunction(authorize):
            answer: Any = authorize(request)
        else:
            answer = await self._threads.call(_AUTHORIZE_SECONDS, authorize, request)
        if inspect.isawaitable(answer):
            answer = await asyncio.wait_for(answer, _AUTHORIZE_SECONDS)
        return cast(Permission, answer)


@dataclasses.dataclass(frozen=True, repr=False)
class _Parts:
    """What the connections of one server work with."""

    site: _Site
    asker: _Asker
    registry: _Registry
    broadcaster: _Broadcaster
    turns: _Turns
    publishers: _Threads = dataclasses.field(
        default_factory=lambda: _Threads("publish", _FILE_THREADS)
    )
    # The connections and calls above the limit, which are only told so.
    refusing: set[_Subscriber] = dataclasses.field(default_factory=set)

    async def publish(self, publication: _Publication) -> _Response:
        """Publish in a thread, as a file may be slow; the answer."""
        publish = self.site.publish_body
        try:
            call = self.publishers.call(_FILE_THREAD_SECONDS, publish, publication)
            return cast(_Response, await call)
        except Exception:
            request = publication.request
            logger.exception("%s: publishing failed", request.peer)
            return self.site.response_to(HTTPError(503, "publishing failed"), request)


class _Connection(_Subscriber, asyncio.Protocol):
    """One HTTP/1.1 connection (RFC 9112), and the stream that it may become."""

    __slots__ = ("body", "discarded", "head", "input_ended", "lower", "parts",
                 "permit", "question", "received", "searched", "task", "transport",
                 "writer")  # fmt: skip

    discarded: int  # while it lingers: the bytes that were thrown away

    def __init__(self, parts: _Parts, writer: asyncio.StreamWriter, state: str) -> None:
        transport = cast(asyncio.Transport, writer.transport)
        super().__init__(_join_address(transport.get_extra_info("peername")))
        self.transport = transport
        self.lower = transport  # what TLS writes to; without TLS it is the same
        self.parts = parts
        self.writer = _disarm(writer)
        self.received = bytearray()  # and not yet parsed
        self.searched = 0  # so many of these bytes hold no end of a head
        self.input_ended = False  # nothing more will be received
        self.head = b""  # of the request that is served
        self.question: _Question | None = None  # while `authorize` is asked
        self.permit: _Permit | HTTPError | None = None  # what it has answered
        self.body: _BodyReader | None = None  # of that request, while it is received
        self.task: asyncio.Task[None] | None = None  # that waits for somebody else
        parts.registry.add(self, state)
        # So the transport calls pause_writing() as soon as it must hold one byte.
        transport.set_write_buffer_limits(high=0)
        if _is_plain_asyncio(transport):
            vars(transport)["max_size"] = _READ_BYTES  # of what asyncio reads at once

    # Called by the broadcaster.

    def request(self) -> Request:
        return _parse_request(self.head, self.peer)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def has_room(self) -> bool:
        return not self.lower.get_write_buffer_size()

    def count_unsent(self) -> int:
        return self.lower.get_write_buffer_size() + _unacknowledged(self.lower)

    def expect_acknowledgements(self, within: float | None) -> None:
        _set_user_timeout(self.lower.get_extra_info("socket"), within)

    def end_with(self, farewell: bytes) -> None:
        self.transport.write(farewell)
        self.transport.close()

    def own_socket(self) -> socket.socket | None:
        return _direct_socket(self.lower)

    def cut(self) -> None:
        self.lower.abort()

    @property
    def _receives(self) -> bool:
        """Whether new input is parsed at once; otherwise it is kept for later."""
        waits = self in self.parts.turns.waiting
        return self.state in (_HEAD, _IDLE, _BODY) and not waits

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        """Take what the client sent; an open stream ignores it."""
        if self.state == _LEAVING:
            return
        if self.state in _STREAMING:
            self._pause_reading()
            loop, read_on = asyncio.get_running_loop(), self.parts.turns.defer
            loop.call_later(_IGNORED_INPUT_SECONDS, read_on, self)
            return
        self.received += data
        if self.state == _LINGERING:
            self._throw_away()
        elif self._receives:
            self.proceed()
        else:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client will send no more, but may still read."""
        self.input_ended = True
        if self.state in _STREAMING:
            self.proceed()
        elif self.state == _LINGERING or self._receives:
            self._close()  # what was received is no complete request
        elif self.question and self.question.for_stream:
            self._close()  # the stream would end at once
        return self.state != _LEAVING  # it stays open for the answer

    def connection_lost(self, exc: Exception | None) -> None:
        self.question = None
        if self.task:
            self.task.cancel()
        self.parts.turns.waiting.pop(self, None)
        self.parts.refusing.discard(self)
        self.parts.broadcaster.has_closed(self, f"lost: {exc}" if exc else "closed")
        self.transport = self.lower  # TLS refers to this object
        _break_cycle(self.lower)

    def pause_writing(self) -> None:
        self.parts.broadcaster.pause(self)

    def resume_writing(self) -> None:
        if self.state == _FULL:
            self.parts.broadcaster.resume(self)
        elif self.state == _ANSWERING:
            self._expect_next()

    # The states of a request.

    def end_handshake(self) -> None:
        """TLS is agreed on."""
        self.parts.registry.enter(self, _HEAD)

    def proceed(self) -> None:
        """Go on with what was received, as far as it goes and as time is left."""
        if self.state not in _STREAMING:
            self._try(self._work_off)
        elif not self.input_ended:
            self._receive_more()
        elif self.parts.turns.is_over():
            self.parts.turns.defer(self)
        else:
            self.parts.broadcaster.end(self, "closed by the client")

    def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        """An error of the server's own ends this connection, and no other."""
        try:
            work(*arguments)
        except Exception:
            logger.exception("%s: answering a request failed", self.peer)
            self.cut()

    def _work_off(self) -> None:
        turns = self.parts.turns
        try:
            while self.state in (_HEAD, _IDLE, _BODY):
                if self.transport.is_closing():
                    return  # an answer could not be written
                if turns.is_over():
                    turns.defer(self)
                    return
                body = self.body
                if not (self._read_body(body) if body else self._read_head()):
                    self._receive_more()
                    return
        except HTTPError as error:
            self._answer_error(error)

    def _receive_more(self) -> None:
        if self.input_ended:
            self._close()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _read_head(self) -> bool:
        """Read a request's head; False if more of it must come first."""
        received = self.received
        # RFC 9112, 2.2.  Many at a time, because a client may send nothing else.
        for lines in (_EMPTY_LINES, b"\r\n"):
            while received.startswith(lines):
                del received[: len(lines)]
        if self.state == _IDLE and received:
            self.parts.registry.enter(self, _HEAD)
        end = _find_head_end(received, self.searched)
        self.searched = 0 if end else len(received)
        if not end:
            return False
        self.head = bytes(received[:end])
        del received[:end]
        self._go_on(_parse_request(self.head, self.peer))
        return True

    def _read_body(self, body: _BodyReader) -> bool:
        if body.read(self.received):
            return True
        if body.complete:
            self.body = None
            self._go_on(self.request(), bytes(body.content))
        return body.complete

    def _go_on(self, request: Request, body: bytes | None = None) -> None:
        """Do what the site decides, now that so much is known about the request."""
        site, is_full = self.parts.site, self in self.parts.refusing
        decision = site.decide(request, self.permit, body, is_full)
        if isinstance(decision, _Question):
            if decision.for_stream and self.input_ended:
                self._close()  # the stream would end at once
                return
            self.question = decision
            self._begin_waiting(_ASKING, self._await_permit(decision))
        elif isinstance(decision, _Body):
            self.body = _BodyReader(request, decision.limit, decision.keep)
            self.parts.registry.enter(self, _BODY)
            if request.expects_continue and not self.received:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif isinstance(decision, _Stream):
            self._open_stream(request, decision)
        elif isinstance(decision, _Publication):
            self._begin_waiting(_PUBLISHING, self._await_publication(decision))
        elif body is None and request.has_body:
            self._answer_and_linger(decision, request)
        else:
            self._answer(decision, request)

    def _begin_waiting(self, state: str, work: Coroutine[Any, Any, None]) -> None:
        self.parts.registry.enter(self, state)
        task = asyncio.get_running_loop().create_task(work)
        if not task.done():  # with asyncio.eager_task_factory it may be
            self.task = task

    async def _await_permit(self, question: _Question) -> None:
        permit: _Permit | HTTPError
        try:
            permit = await self.parts.asker.ask(question.request)
        except asyncio.CancelledError:
            if self.question is not question:
                raise  # nobody waits for it any more
            logger.error("%s: what authorize() waited for was cancelled", self.peer)
            permit = HTTPError(500)
        if self.question is question:
            self._go_on_with(question, permit)

    def _go_on_with(self, question: _Question, permit: _Permit | HTTPError) -> None:
        """Go on with the request that `authorize` was asked about."""
        self.question = self.task = None
        self.permit = permit
        self._try(self._go_on, question.request)
        if self.state == _BODY:  # it may be here already
            self.parts.turns.defer(self)

    def disconnect(self) -> None:
        """Answer a request that `authorize` is still asked about: it is not wanted."""
        if self.question and self.task:
            self.task.cancel()
            refusal = HTTPError(503, "disconnected by the program")
            self._go_on_with(self.question, refusal)

    async def _await_publication(self, publication: _Publication) -> None:
        response = await self.parts.publish(publication)
        self.task = None
        if self.state == _PUBLISHING:
            self._try(self._answer, response, publication.request)

    def _answer(self, response: _Response, request: Request) -> None:
        self.parts.registry.enter(self, _ANSWERING)
        again = request.keep_alive and not response.is_last
        keep = "keep-alive" if response.body is None else ""
        connection = keep if again else "close"
        self.transport.write(response.render(time.time(), request, connection))
        if not again:
            self._close()
        elif self.has_room():
            self._expect_next()

    def _expect_next(self) -> None:
        """The answer was taken; the next request may have come already."""
        self.head, self.permit = b"", None
        self.parts.registry.enter(self, _HEAD if self.received else _IDLE)
        if not self.received and self.parts.site.closed_because():
            # Not here: asyncio's transport, which may call this, would end twice.
            asyncio.get_running_loop().call_soon(self.close_if_idle)
        elif self.received:
            self.parts.turns.defer(self)
        else:
            self._receive_more()

    def _open_stream(self, request: Request, stream: _Stream) -> None:
        parts = self.parts
        parts.registry.enter(self, _ANSWERING)
        self.target = _direct_socket(self.transport)
        self.received, self.permit = bytearray(), None
        connection = "keep-alive" if request.keep_alive else "close"
        head = stream.head.render(time.time(), request, connection)
        parts.broadcaster.add(self, stream, head)
        self.proceed()

    def _answer_error(self, error: HTTPError) -> None:
        """Answer an invalid or incomplete request."""
        logger.debug("%s: %s", self.peer, error)
        site, request = self.parts.site, None
        if error.status == 431 and self.state == _HEAD:
            head = bytes(self.head or self.received)
            site.log_large_head(error, head, self.peer, time.monotonic())
        with contextlib.suppress(HTTPError):  # its head may be what is wrong
            request = self.request()
        self._answer_and_linger(site.response_to(error, request), request)

    def _answer_and_linger(self, response: _Response, request: Request | None) -> None:
        """Answer a request that was not read to its end, then close.

        The client may still be sending.  It must read the answer before it sees a
        reset, so for a while its input is read and thrown away (RFC 9112, 9.6).
        """
        self.parts.registry.enter(self, _LINGERING)
        self.body = None
        self.transport.write(response.render(time.time(), request, "close"))
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # it is gone already
                self.transport.write_eof()
        self.discarded = 0
        self._throw_away()
        self._receive_more()

    def _throw_away(self) -> None:
        self.discarded += len(self.received)
        self.received.clear()
        if self.discarded >= _LINGER_BYTES:
            self._close()

    def expire(self) -> None:
        state, parts = self.state, self.parts
        if self in parts.turns.waiting or self.transport in parts.turns.waiting:
            return  # the server is late, not the client
        if state in (_IDLE, _LINGERING):
            self._close()
        elif state in (_HEAD, _BODY):
            message = f"not complete in {parts.registry.seconds[state]:g} s"
            self._answer_error(HTTPError(408, f"request {state} {message}"))
        else:
            parts.broadcaster.expire(self)

    def close_if_idle(self) -> None:
        """Close if no request has begun: the server ends."""
        if self.state == _HANDSHAKE:
            self.cut()
        elif self.state in (_HEAD, _IDLE) and not self.received:
            self._close()

    def _close(self) -> None:
        """Close when everything is sent."""
        if self.state not in (_LEAVING, _CLOSED):
            self.question = None
            self.parts.registry.enter(self, _LEAVING)
            self.transport.close()


class _TLS(asyncio.Protocol, asyncio.Transport):
    """TLS: it receives what comes from the socket, and is the connection's transport.

    asyncio's own holds 256 KiB and more for each connection, and works off at once all
    that has come.  But a handshake takes a millisecond or two, and a client may send a
    thousand requests for new keys in a few kilobytes.  Here the input waits for its
    turn, and before its first turn there is nothing but the input.
    """

    def __init__(self, connection: _Connection, context: ssl_module.SSLContext) -> None:
        import ssl

        self.connection, self._lower = connection, connection.lower
        self._turns = connection.parts.turns
        self._context = context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()  # encrypted
        self._tls: Any = None  # an SSLObject, from the first turn on
        self._is_agreed = False  # the handshake is over
        self._held = bytearray()  # encrypted; it has not had its turn
        self._is_paused = False  # the connection wants no more for now
        self._input_ended = False  # the client will send no more

    # Called by the socket's transport.

    def data_received(self, data: bytes) -> None:
        if self._input_ended:
            return  # it has said so, and sends all the same
        self._held += data
        if self not in self._turns.waiting:
            self.proceed()
        self._choose_reading()

    def eof_received(self) -> bool:
        self._input_ended = True
        return bool(self._held) or self._end_input()

    def connection_lost(self, exc: Exception | None) -> None:
        self._turns.waiting.pop(self, None)
        self._held.clear()
        self.connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self._flush()
        if not self._lower.get_write_buffer_size():
            self.connection.resume_writing()
        self._proceed_later()

    # Called by the connection.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._lower.is_closing():  # TLS may have failed
            return
        # In pieces, because a MemoryBIO never becomes smaller.
        records = []
        for start in range(0, len(data), _READ_BYTES):
            self._tls.write(data[start : start + _READ_BYTES])
            records.append(self._outgoing.read())
        self._lower.write(b"".join(records))

    def close(self) -> None:
        """Tell the client that this is the end, and close when all is sent."""
        import ssl

        if self._is_agreed and not self._lower.is_closing():
            with contextlib.suppress(ssl.SSLError):  # its answer is not waited for
                self._tls.unwrap()
            self._flush()
        self._lower.close()

    def is_closing(self) -> bool:
        return self._lower.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._is_paused = True
        self._choose_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._choose_reading()
        self._proceed_later()

    # The input.

    def _choose_reading(self) -> None:
        """Read only while what was read is wanted, and has its turn soon."""
        if self._input_ended or self._lower.is_closing():
            return
        if self._is_paused or len(self._held) >= _READ_BYTES:
            self._lower.pause_reading()
        else:
            self._lower.resume_reading()

    def _proceed_later(self) -> None:
        if self._held:
            self._turns.defer(self)

    def proceed(self) -> None:
        """Decrypt what was received, as far as it is wanted and as time is left."""
        try:
            while self._held and not (self._is_paused or self._lower.is_closing()):
                # The socket must take the answers to what TLS itself is asked.
                if self._outgoing.pending >= _TLS_BYTES_PER_LOOK:
                    break
                if self._turns.is_over():
                    self._turns.defer(self)
                    break
                piece = bytes(self._held[:_TLS_BYTES_PER_LOOK])
                del self._held[: len(piece)]
                self._decrypt(piece)
            self._choose_reading()
            if self._input_ended and not self._held and not self._end_input():
                self.close()
        except Exception:
            logger.exception("%s: TLS failed", self.connection.peer)
            self.connection.cut()

    def _decrypt(self, piece: bytes) -> None:
        """Give TLS a piece of the input, and the connection what was in it."""
        import ssl

        if self._tls is None:
            if self._input_ended:  # it left before its turn
                self._held.clear()
                return
            self._tls = self._context.wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
        self._incoming.write(piece)
        failure, data = "", list[bytes]()
        try:
            if not self._is_agreed:
                self._tls.do_handshake()
                self._is_agreed = True
                self.connection.end_handshake()
            data += iter(lambda: self._tls.read(_READ_BYTES), b"")
            self._input_ended = True  # it has said so: what follows does not count
            self._held.clear()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = str(error)
        if not self._lower.get_write_buffer_size():
            self._flush()
        if data:
            self.connection.data_received(b"".join(data))
        if failure:
            logger.debug("%s: no TLS: %s", self.connection.peer, failure)
            self.connection.cut()

    def _flush(self) -> None:
        """Send what TLS has to say."""
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())

    def _end_input(self) -> bool:
        """Whether the connection stays open after the client's last byte."""
        return self._is_agreed and self.connection.eof_received()


class _Reader(_Subscriber):
    """A stream that is pulled in this process: see SSEServer.stream().

    It has room for one batch, and only while it waits for one.  It is full when it was
    given more, or when it does not come for what it was given.
    """

    __slots__ = ("_bell", "_broadcaster", "_pending", "_request")

    def __init__(
        self, broadcaster: _Broadcaster, request: Request, state: str = _ANSWERING
    ) -> None:
        super().__init__(request.peer)
        self._broadcaster = broadcaster
        self._request = request
        self._pending = b""  # what it was given and has not taken yet
        self._bell: asyncio.Future[None] | None = None  # while it waits
        broadcaster.registry.add(self, state)

    async def take(self) -> bytes:
        """What is next, as soon as there is something; b"" at the end.

        At most _BATCH_BYTES, so that a reader that is slow is seen to take something.
        """
        while not self._pending and self.state in _STREAMING:
            self._bell = asyncio.get_running_loop().create_future()
            self._broadcaster.resume(self)
            try:
                await self._bell
            finally:
                self._bell = None
        taken = self._pending[:_BATCH_BYTES]
        self._pending = self._pending[_BATCH_BYTES:]
        return taken

    def close(self) -> None:
        """Nobody reads it any more."""
        self._broadcaster.has_closed(self, "closed")

    def request(self) -> Request:
        return self._request

    def send(self, data: bytes) -> None:
        waits = self.has_room()
        self._pending += data
        self._ring()
        if not waits or len(data) > _READER_BYTES:
            self._broadcaster.pause(self)

    def has_room(self) -> bool:
        return self._bell is not None and not self._bell.done()

    def count_unsent(self) -> int:
        return len(self._pending)

    def end_with(self, farewell: bytes) -> None:
        self._pending += farewell
        self._ring()

    def cut(self) -> None:
        self._pending = b""
        self._ring()
        asyncio.get_running_loop().call_soon(self.close)

    def expire(self) -> None:
        self._broadcaster.expire(self)

    def _ring(self) -> None:
        if self._bell and not self._bell.done():
            self._bell.set_result(None)


_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_T = TypeVar("_T")


class _Call(_Reader):
    """One request that comes by ASGI, and the stream that it may become.

    Only the task that calls serve() sends.  Others may break off what it waits for.
    """

    __slots__ = ("_answer_instead", "_has_body", "_is_over", "_parts", "_receive",
                 "_send", "_task", "_watching", "_work")  # fmt: skip

    def __init__(
        self, parts: _Parts, request: Request, receive: _Receive, send: _Send
    ) -> None:
        super().__init__(parts.broadcaster, request, _HEAD)
        self._parts = parts
        self._receive, self._send = receive, send
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._has_body = False  # that was not received to its end
        self._is_over = False  # nothing more can be sent: the client left, or was cut
        # Who does what must be done before the answer is known.
        self._work: asyncio.Task[Any] | None = None
        self._answer_instead: HTTPError | None = None  # if that was broken off
        self._watching: asyncio.Task[None] | None = None  # for the client's departure

    async def serve(self, is_full: bool) -> None:
        """Answer the request; return when the answer, or the stream, has ended."""
        if is_full:
            self._parts.refusing.add(self)
        try:
            decision = await self._decide()
            if self._is_over:
                pass
            elif isinstance(decision, _Stream):
                await self._stream(decision)
            else:
                await self._answer(decision)
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            if sys.version_info >= (3, 11):
                self._task.uncancel()
        except OSError as error:
            logger.debug("%s: it has left: %r", self.peer, error)
        finally:
            if self._watching:
                self._watching.cancel()
            self._parts.refusing.discard(self)
            self.close()

    async def _decide(self) -> _Stream | _Response:
        """What the site decides when it knows enough about the request."""
        site, request = self._parts.site, self._request
        is_full = self in self._parts.refusing
        permit: _Permit | HTTPError | None = None
        body: bytes | None = None
        try:
            _check_lengths(request.values(b"content-length"))  # perhaps nobody has
            self._has_body = request.has_body
            while True:
                decision = site.decide(request, permit, body, is_full)
                if isinstance(decision, _Question):
                    permit = await self._ask(decision)
                elif isinstance(decision, _Body):
                    body = await self._do(_BODY, self._receive_body(decision))
                elif isinstance(decision, _Publication):
                    return await self._do(_PUBLISHING, self._parts.publish(decision))
                else:
                    return decision
        except HTTPError as error:
            logger.debug("%s: %s", self.peer, error)
            return site.response_to(error, request)

    async def _ask(self, question: _Question) -> _Permit | HTTPError:
        if not self._has_body:
            self._watch()
        try:
            return await self._do(_ASKING, self._parts.asker.ask(question.request))
        except HTTPError as error:
            return error

    async def _do(self, state: str, work: Coroutine[Any, Any, _T]) -> _T:
        """What the work gives.  HTTPError if it was broken off."""
        self._parts.registry.enter(self, state)
        self._work = task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            self._work = None
        if not task.cancelled():
            return task.result()
        if not (self._is_over or self._answer_instead):
            logger.error("%s: what the answer waited for was cancelled", self.peer)
        raise self._answer_instead or HTTPError(500)

    def _answer_without(self, error: HTTPError) -> None:
        """Answer with an error, without what must be done before."""
        if self._work:
            self._answer_instead = error
            self._work.cancel()

    async def _receive_body(self, wanted: _Body) -> bytes:
        """The whole body, or nothing of it if it is not wanted."""
        content = bytearray()
        size, received = self._request.content_length, 0
        while True:
            _check_body_size(size, wanted.limit)
            if not self._has_body:
                return bytes(content)
            part = await self._receive_part()
            received += len(part)
            size = max(size, received)
            if wanted.keep:
                content += part

    async def _receive_part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._is_over = True
            raise HTTPError(400, "the client has left")
        self._has_body = message.get("more_body", False)
        return cast(bytes, message.get("body", b""))

    async def _answer(self, response: _Response) -> None:
        if self._has_body and not self._request.expects_continue:
            with contextlib.suppress(HTTPError):
                await self._do(_LINGERING, self._throw_away())
        if self._is_over:
            return
        lingered = self.state == _LINGERING
        self._parts.registry.enter(self, _LEAVING if lingered else _ANSWERING)
        await self._send_head(response)
        without_body = self._request.method == "HEAD"
        body = b"" if without_body else response.body or b""
        await self._send({"type": "http.response.body", "body": body})

    async def _throw_away(self) -> None:
        """Receive what is still sent of the body, before it is answered with an error.

        After that most servers close the connection: its client might see a reset.
        """
        discarded = 0
        while self._has_body and discarded < _LINGER_BYTES:
            discarded += len(await self._receive_part())

    async def _send_head(self, response: _Response) -> None:
        status, fields = response.status, _encode_fields(response.fields)
        start = {"type": "http.response.start", "status": status, "headers": fields}
        await self._send(start)

    async def _stream(self, stream: _Stream) -> None:
        self._parts.registry.enter(self, _ANSWERING)
        self._broadcaster.add(self, stream)
        self._watch()
        await self._send_head(stream.head)
        kind, send, take = "http.response.body", self._send, self.take
        payload = await take()
        while payload:
            await send({"type": kind, "body": payload, "more_body": True})
            payload = await take()
        if not self._is_over:
            await send({"type": kind, "body": b""})

    def _watch(self) -> None:
        """Notice from now on that the client leaves."""
        if not self._watching:
            loop = asyncio.get_running_loop()
            self._watching = loop.create_task(self._await_departure())

    async def _await_departure(self) -> None:
        ends = 0  # of the body; one that is repeated would stop the event loop
        try:
            while ends < 2:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    break
                ends += not message.get("more_body", False)
            else:  # nobody could tell that it leaves
                logger.error("%s: receive() repeats the request", self.peer)
        except OSError as error:
            logger.debug("%s: it has left: %r", self.peer, error)
        except Exception:  # nobody could tell that it leaves
            logger.exception("%s: receive() failed", self.peer)
        self._broadcaster.leave(self, _CLOSED, "closed by the client")
        self._break_off()

    def _break_off(self) -> None:
        """Nothing more can be sent: let serve() return."""
        if not self._is_over:
            self._is_over = True
            self._task.cancel()

    def cut(self) -> None:
        self._break_off()
        asyncio.get_running_loop().call_soon(self.close)

    def expire(self) -> None:
        if self.state in (_BODY, _LINGERING):
            seconds = self._parts.registry.seconds[self.state]
            message = f"request body not complete in {seconds:g} s"
            self._answer_without(HTTPError(408, message))
        else:
            super().expire()

    def disconnect(self) -> None:
        self._answer_without(HTTPError(503, "disconnected by the program"))


def _request_of(scope: _Scope, own_path: str | None) -> Request:
    """The request of an ASGI scope.

    `own_path` is the stream's.  None: it is whatever path was routed here.
    """
    raw = scope.get("raw_path") or urllib.parse.quote(scope["path"]).encode()
    target = raw.partition(b"?")[0].decode("utf-8", "surrogateescape")
    query = scope["query_string"].decode("utf-8", "surrogateescape")
    path = _ESCAPE.sub(_decode_unreserved, target) or "/"
    root = scope.get("root_path", "")
    if own_path is not None and path != own_path and path.startswith(root):
        path = path[len(root) :] or "/"
    major, _, minor = scope["http_version"].partition(".")
    return Request(
        method=scope["method"],
        target=target + ("?" + query if query else ""),
        path=path,
        query=query,
        version=(int(major), int(minor or 0)),
        fields=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
        peer=_join_address(scope.get("client")),
        stream_path=path if own_path is None else own_path,
    )


# Of a writer that has lost its own: when it is collected, it has nothing to close.
_CLOSED_TRANSPORT = types.SimpleNamespace(is_closing=lambda: True)


def _disarm(writer: asyncio.StreamWriter) -> asyncio.StreamWriter | None:
    """Take the transport away from a writer; None if the writer is not needed then.

    asyncio.start_server makes a protocol, a reader and a writer for each connection.
    They are not needed here, and as they refer to each other, each connection would
    leave a cycle for the garbage collector.  From Python 3.11 on, a writer closes its
    transport when it is collected.  So the caller must keep a writer that is returned.
    """
    transport = writer.transport
    cast(asyncio.Protocol, transport.get_protocol()).connection_lost(None)
    if getattr(writer, "_transport", None) is not transport:
        return writer
    setattr(writer, "_transport", _CLOSED_TRANSPORT)  # noqa: B010
    return None


def _break_cycle(transport: asyncio.Transport) -> None:
    """Let a transport that is closed go without the garbage collector.

    asyncio's holds methods that are bound to itself, as what is to be called next.
    """
    if _is_plain_asyncio(transport):
        for name, value in list(vars(transport).items()):
            if getattr(value, "__self__", None) is transport:
                setattr(transport, name, None)


def _is_plain_asyncio(transport: asyncio.Transport) -> bool:
    """Whether it is asyncio's own transport for plain TCP, of its selector loop."""
    return type(transport).__module__ == "asyncio.selector_events"


def _direct_socket(transport: asyncio.Transport) -> socket.socket | None:
    """The socket that may be written to past the transport, if there is one.

    Only while the transport holds nothing, and only past asyncio's own for plain TCP:
    TLS must encrypt, and the transports of other event loops are different.
    """
    if os.name != "posix" or not _is_plain_asyncio(transport):
        return None
    # asyncio hands out a wrapper that has no send().
    return getattr(transport.get_extra_info("socket"), "_sock", None)


def _join_address(address: Sequence[Any] | None) -> str:
    """The text for an address that begins with a host and a port; "" for none."""
    if not address:
        return ""
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ------------------------------------------------------------------------------------
# 9. The server: what a program calls, the beginning and the end.
# ------------------------------------------------------------------------------------

_NEW, _STARTING, _SERVING = "new", "starting", "serving"
_FAILED, _CLOSING = "failed", "closing"  # and _CLOSED

# Which states of a server may follow each state.
_LIFE = {
    _NEW: {_STARTING, _CLOSED},
    _STARTING: {_NEW, _SERVING, _CLOSING},  # new again if the start fails
    _SERVING: {_FAILED, _CLOSING},
    _FAILED: {_CLOSING},
    _CLOSING: {_CLOSED},
    _CLOSED: set[str](),
}


class _Termination:
    """Lets signals end a block in order.

    Without it SIGTERM ends the process without a word to the clients, and process 1 of
    a container ignores it.  A signal that the program handles or ignores is left alone;
    so are all if it does so with SIGTERM, or if the block is not in the main thread.  A
    second signal ends the process at once.

    A task may have blocks in blocks.  A signal ends the innermost block of each task.

    While it handles a signal it logs nothing: what the signal has interrupted may be
    writing to the log, and a stream that is written to twice raises RuntimeError.
    """

    def __init__(
        self,
        leave: Callable[[], object],  # called in the loop, or else by the handler
        *signals: signal.Signals,  # besides SIGTERM
        loop: asyncio.AbstractEventLoop | None = None,  # in which the block is
    ) -> None:
        self.leave = leave  # the block
        self.number = 0  # of the signal that has come
        self.loop = loop
        self.task = asyncio.current_task() if loop else None
        self.process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, *signals):
                if not _is_unhandled(number):
                    break
                self._handle(number)

    def _handle(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        _, blocks = _handled.setdefault(number, (before, []))
        blocks.append(self)
        if self.loop:  # then a signal wakes it, whenever it comes
            with contextlib.suppress(NotImplementedError):  # Windows
                self.loop.add_signal_handler(number, _do_nothing)
        signal.signal(number, _end_blocks)

    def begin_end(self) -> None:
        """The block has come to its end: a signal must not break off what follows."""
        self.leave = _do_nothing

    def leave_in_loop(self) -> None:
        self.log()
        self.leave()

    def log(self) -> None:
        """Log which signal ends the block, if one does."""
        if self.number:
            logger.info("%s: ending", signal.Signals(self.number).name)

    def end(self) -> None:
        """The block has ended; so does the program if a signal has ended the block."""
        self.restore()
        if self.number:
            sys.exit(0)

    def restore(self) -> None:
        """Put back the handlers that stood there before."""
        for number, (handler, blocks) in list(_handled.items()):
            if self in blocks:
                blocks.remove(self)
                present = signal.getsignal(number)
                if blocks:
                    handler = present
                else:
                    del _handled[number]
                if present not in (_end_blocks, signal.SIG_DFL):
                    continue  # the program has set its own within the block
                if self.loop and self.loop not in [block.loop for block in blocks]:
                    with contextlib.suppress(NotImplementedError):
                        self.loop.remove_signal_handler(number)
                signal.signal(number, handler)


def _do_nothing() -> None:
    pass


# Of each signal that ends blocks: the handler before, and the blocks, the newest last.
_handled: dict[signal.Signals, tuple[Any, list[_Termination]]] = {}


def _end_blocks(number: int, frame: object) -> None:
    """The handler: end the innermost block of each task."""
    for each in _handled:
        signal.signal(each, signal.SIG_DFL)
    _, blocks = _handled[signal.Signals(number)]
    newest = blocks[-1]
    if os.getpid() != newest.process:  # a forked child runs no server
        signal.raise_signal(number)
    for block in {block.task: block for block in blocks}.values():
        if block.loop and not block.loop.is_closed():
            block.number = number
            block.loop.call_soon_threadsafe(block.leave_in_loop)
    if not newest.loop:
        newest.number = number
        newest.leave()


def _is_unhandled(number: signal.Signals) -> bool:
    """Whether the program leaves a signal to Python, to asyncio.run() or to a block."""
    handler = signal.getsignal(number)
    owner = getattr(getattr(handler, "func", handler), "__self__", None)
    is_runner = type(owner).__module__ == "asyncio.runners"
    usual = (signal.SIG_DFL, signal.default_int_handler, _end_blocks)
    return handler in usual or is_runner


class _FrameworkSignals:
    """At SIGINT and SIGTERM, has the streams end before the handlers that stand there.

    A framework's server waits for its responses, and a stream does not end by itself.
    gunicorn tells its workers with SIGQUIT.  It needs the main thread, and leaves alone
    what is ignored.  A _Termination is for signals that nobody handles.
    """

    def __init__(self, end: Callable[[], asyncio.Future[None] | None]) -> None:
        self._end = end  # called in the event loop
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._before: dict[int, Any] = {}  # the handlers that stood there
        self._came = False
        self._held = 0  # the signal that they have not been told of yet, or 0
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGQUIT"):
            number = getattr(signal, name, 0)  # Windows has no SIGQUIT
            handler = signal.getsignal(number) if number else None
            if callable(handler) or (handler == signal.SIG_DFL and name != "SIGQUIT"):
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back the handlers that stood there, where nobody else has put another."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        is_child = os.getpid() != self._process
        if self._came or is_child or self._loop.is_closed():
            self._pass_held_on()
            self._pass_on(number)
            return
        self._came = True
        self._loop.call_soon_threadsafe(self._end_streams, signal.Signals(number))
        if getattr(self._before[number], "__self__", None) is self._loop:
            self._pass_on(number)  # uvloop's acts twice if it is called late
        else:
            self._held = number

    def _end_streams(self, number: signal.Signals) -> None:
        logger.info("%s: ending the streams", number.name)
        ending = self._end()
        if ending:  # as it has begun, there is one
            ending.add_done_callback(lambda ended: self._pass_held_on())

    def _pass_held_on(self) -> None:
        number, self._held = self._held, 0
        if number:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        handler = self._before[number]
        if callable(handler):
            handler(number, None)
        else:
            signal.signal(number, handler)
            signal.raise_signal(number)


# Of the servers that run in this process, for a child that is forked from it.
_running: weakref.WeakSet[_Registry] = weakref.WeakSet()


def _let_go() -> None:
    for registry in list(_running):
        registry.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@dataclasses.dataclass(eq=False, repr=False)
class _Service:
    """The one life of a server: where it listens, its beginning and its end.

    It begins in an event loop, and ends there.
    """

    parts: _Parts
    limit: int | None  # of connections, calls and streams; None: not known yet
    context: ssl_module.SSLContext | None  # None: without TLS
    host: str | None
    port: int | None  # None: it does not listen
    reuse_port: bool
    write_timeout: float
    shutdown_timeout: float
    state: str = _NEW
    loop: asyncio.AbstractEventLoop | None = None  # None: it has not begun
    signals: _FrameworkSignals | None = None

    def __post_init__(self) -> None:
        self.intake = self.parts.broadcaster.intake
        self.listeners: list[asyncio.Server] = []
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # that disconnect

    def require_own_loop(self, what: str) -> None:
        """RuntimeError outside the event loop in which it runs."""
        if self.loop is None:
            raise RuntimeError(f"{what}: the server was not started")
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(f"{what} must be called in the event loop of the server")

    async def wait_for_start(self, what: str) -> None:
        """Return when a start that goes on has ended; RuntimeError if it has failed."""
        self.require_own_loop(what)
        if self.state == _STARTING:
            await asyncio.wait([self.starting])
            self.require_own_loop(what)

    def _enter(self, state: str) -> bool:
        """Change the state, if it may follow the present one."""
        with self.intake.lock:
            if state not in _LIFE[self.state]:
                return False
            self.state = state
            return True

    # Taking in connections: so many, and some more that are only told to come back.

    @property
    def is_full(self) -> bool:
        """Whether no more connections and streams are served."""
        admitted = len(self.parts.registry) - len(self.parts.refusing)
        return self.limit is not None and admitted >= self.limit

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve a connection, or cut it; asyncio calls this for each new one."""
        refusing, is_full = self.parts.refusing, self.is_full
        is_closed = self.state in (_CLOSING, _CLOSED)
        if is_closed or (is_full and len(refusing) == _MAX_REFUSALS_AT_ONCE):
            self.parts.site.refused += 1
            writer.transport.abort()
            return
        state = _HANDSHAKE if self.context else _HEAD
        connection = _Connection(self.parts, writer, state)
        protocol: _Connection | _TLS = connection
        if self.context:
            protocol = connection.transport = _TLS(connection, self.context)
        connection.lower.set_protocol(protocol)
        if is_full:
            refusing.add(connection)

    # Beginning.

    async def start(self) -> None:
        """Begin, or wait until it has begun."""
        loop = asyncio.get_running_loop()
        with self.intake.lock:  # stop() in another thread sees all or nothing
            if self._enter(_STARTING):
                self.loop = loop
                self.starting = loop.create_task(self._begin())
        if self.loop not in (None, loop):
            fault = "the server was started in another event loop"
            hint = "a server runs once; make a new SSEServer"
            raise RuntimeError(f"{fault}, and {hint}")
        try:
            if self.state not in (_CLOSING, _CLOSED):
                await asyncio.shield(self.starting)
        except BaseException as error:
            # The end of this event loop would cut short a closing that goes on.
            if isinstance(error, asyncio.CancelledError) or self.state == _CLOSING:
                await self.close()
            raise
        if self.state in (_CLOSING, _CLOSED):
            await self.close()
            raise RuntimeError("the server was closed; a server runs once")

    async def _begin(self) -> None:
        sockets: list[socket.socket] = []
        try:
            self.intake.load()
            self.limit = self.limit or _connections_by_descriptors()
            if self.port is not None:
                sockets = await _listen(
                    self.host, self.port, self.reuse_port, self.write_timeout
                )
            for sock in sockets:
                listener = await asyncio.start_server(
                    self._accept,
                    sock=sock,
                    backlog=_ACCEPTS_PER_TURN,  # asyncio accepts so many in a turn
                    start_serving=False,
                )
                self.listeners.append(listener)
            self.parts.registry.listening = sockets
            names = [sock.getsockname() for sock in sockets]
            if names:
                self.port = names[0][1]
            bound = [ipaddress.ip_address(name[0].split("%")[0]) for name in names]
            if bound and all(address.is_loopback for address in bound):
                self.parts.site.require_loopback_name(self.host or "")
            if not self._enter(_SERVING):
                raise RuntimeError("the server was closed while it started")
        except BaseException:
            self.listeners = []  # none serves yet, so their sockets are all they have
            for sock in sockets:
                sock.close()
            self._cut_all()
            if self._enter(_NEW):
                self.loop = None
            raise
        _running.add(self.parts.registry)
        self.broadcasting = self.parts.broadcaster.start()
        self.broadcasting.add_done_callback(self._broadcasting_ended)
        for listener, sock in zip(self.listeners, sockets):
            await listener.start_serving()
            sock.listen(_BACKLOG)  # asyncio has set _ACCEPTS_PER_TURN

    def _broadcasting_ended(self, broadcasting: asyncio.Task[None]) -> None:
        """Nothing can be delivered any more: end the streams, refuse to publish."""
        cancelled = broadcasting.cancelled()
        error = None if cancelled else broadcasting.exception()
        if self.state == _CLOSING and not cancelled and error is None:
            return
        program_ends = isinstance(error, (KeyboardInterrupt, SystemExit))
        if not program_ends and not (cancelled and self.state == _CLOSING):
            logger.critical("broadcasting ended", exc_info=error)
        self._enter(_FAILED)
        self.parts.broadcaster.stop("broadcasting has failed")
        for subscriber in self.parts.registry.all(*_STREAMING):
            self.parts.broadcaster.end(subscriber, "broadcasting has failed")

    # Ending.

    async def close(self) -> None:
        self.end_unbegun()
        loop = self.loop
        if self.state == _CLOSED:  # perhaps by a signal: then publish() went on
            self.intake.stop("the server is closed")
            self.intake.close_file()
        if self.state == _CLOSED or loop is None or loop.is_closed():
            return
        if loop is asyncio.get_running_loop():
            closing = self.begin_closing()
            if closing:
                await asyncio.shield(closing)
        else:
            await self._close_elsewhere(loop)

    def end_unbegun(self) -> None:
        """If it has not begun, it never will."""
        with self.intake.lock:
            if self.state == _NEW and self._enter(_CLOSED):
                self.parts.broadcaster.stop("the server is closed")

    async def _close_elsewhere(self, loop: asyncio.AbstractEventLoop) -> None:
        closing = self.close()
        try:
            ending = asyncio.run_coroutine_threadsafe(closing, loop)
        except RuntimeError:  # its loop has been closed meanwhile
            closing.close()
            return
        seconds = self.shutdown_timeout + _CLOSE_MARGIN_SECONDS
        deadline = time.monotonic() + seconds
        ended = asyncio.wrap_future(ending)
        while not ended.done():
            if loop.is_closed():  # the server ended before this reached it
                closing.close()
                return
            if time.monotonic() > deadline:
                ended.cancel()
                message = f"the server did not end within {seconds:g} s"
                raise RuntimeError(message + "; does its event loop run?")
            await asyncio.wait([ended], timeout=_CLOSE_LOOK_SECONDS)
        await ended

    def begin_closing(self, mute: bool = True) -> asyncio.Task[None] | None:
        """Let it end in order; None if it has not begun.  `mute` refuses publish()."""
        if self._enter(_CLOSING):
            self.parts.broadcaster.stop("the server is closed", mute)
            self._closing = asyncio.get_running_loop().create_task(self._close())
        elif mute and self._closing:
            self.intake.stop("the server is closed")
        return self._closing

    async def _close(self) -> None:
        await asyncio.wait([self.starting])
        loop = asyncio.get_running_loop()
        cutting = loop.call_later(self.shutdown_timeout, self._cut_all)
        for listener in self.listeners:
            listener.close()
        for subscriber in self.parts.registry.all(_HANDSHAKE, _HEAD, _IDLE):
            if self.parts.turns.is_over():
                await asyncio.sleep(0)
            cast(_Connection, subscriber).close_if_idle()
        # Else it was closed before.
        if not self.starting.cancelled() and self.starting.exception() is None:
            await asyncio.wait([self.broadcasting])
            await self.parts.registry.wait_until_empty()
        cutting.cancel()
        self.parts.registry.stop()
        # Who publishes may have the file too long; then the program's end closes it.
        with contextlib.suppress(RuntimeError, asyncio.TimeoutError):
            if self.intake.file:
                close = _Threads("close", 1).call
                await close(_FILE_LEAVE_SECONDS, self.intake.close_file)
        self._enter(_CLOSED)
        _running.discard(self.parts.registry)
        if self.signals:
            self.signals.restore()

    def _cut_all(self) -> None:
        """Cut all connections: shutdown_timeout is over, or the start has failed."""
        for subscriber in self.parts.registry.all(*_TRANSITIONS):
            subscriber.cut()

    # From any thread.

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in the event loop of the server, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            if self.loop:
                self.loop.call_soon_threadsafe(function, *arguments)

    def disconnect(self, predicate: Callable[[Request], bool]) -> None:
        task = asyncio.get_running_loop().create_task(self._disconnect(predicate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _disconnect(self, predicate: Callable[[Request], bool]) -> None:
        """Ask the predicate about open streams and those that wait for authorize."""
        asked = self.parts.registry.all(*_STREAMING, _ASKING)
        # The streams get the events that were published before the call.
        with contextlib.suppress(RuntimeError):  # broadcasting has failed
            await self.parts.broadcaster.drain(behind=False)
        for subscriber in asked:
            if self.parts.turns.is_over():
                await asyncio.sleep(0)
            if subscriber.state not in (*_STREAMING, _ASKING):
                continue
            try:
                chosen = predicate(subscriber.request())
            except Exception:
                logger.exception("the predicate of disconnect() failed")
                continue
            if chosen and subscriber.state == _ASKING:
                cast(Union[_Connection, _Call], subscriber).disconnect()
            elif chosen:
                self.parts.broadcaster.end(subscriber, "disconnected by the program")


class SSEServer:
    """Broadcasts the events that are published to all connected clients.

        async with SSEServer() as server:   # in a running event loop
            server.publish({"celsius": 21}, event="reading", channel="kitchen")
            print(server.stats.live)        # clients that were given everything

    `with SSEServer() as server:` is for code that is not async: it runs an event loop
    in a thread of its own.  `serve_forever()` starts and ends a server by itself.  A
    server runs once.  A bad argument raises ValueError or TypeError; the start raises
    OSError if the server cannot listen.

    Where it is:
      host="localhost"        A name or an address.  None: every address of the machine.
      port=8080               0: a free one.  None: none, for a server in a framework.
      path="/sse"             The path of the stream.  Other paths are answered "ok".
      page=None               An HTML file that "/" is answered with.  It is read at
                              each request, and must be there at the start.

    History, for clients that come back:
      history=1000            So many events are kept.  Older ones are forgotten, and a
                              client that has missed one of these gets a `gap`.
      history_bytes=2**24     The same in bytes, counting ids, names and 400 bytes more
                              for each event.  The retained events have as much again.
      history_seconds=None    The same in seconds; retained events stay.  None: any age.
      retained=1000           So many events are kept that were published with `retain`.
                              What is unchanged for the longest time is dropped first.
      history_file=None       A file in which they survive a restart.  Servers that name
                              the same file are one, also in other processes.
      replay=0                So many past events are sent to a new client that asks for
                              no number of them.  math.inf: all of the newest 10,000.

    Timing, in seconds:
      heartbeat=15.0          From one comment on every stream to the next.  None: none.
      retry=2.0               A client waits so long before it reconnects, jittered by
                              half: 1 to 3.
      restart_retry=5.0       The same when the server has ended.  A browser that is
                              refused once gives up (Firefox) or waits longer each time,
                              so a restart should take less.
      lifetime=None           A stream is ended after this time, jittered by 20 %, and
                              its client reconnects.  None: never.
      header_timeout=10.0     A request's head may take so long.  Then it gets 408.
      body_timeout=30.0       The same for its body.
      keepalive_timeout=75.0  A connection without a next request is closed after it.
      write_timeout=30.0      A client that takes nothing of its stream for so long is
                              cut, and may resume.  Other answers have this time.
      shutdown_timeout=5.0    close() ends all streams in this time, or cuts them.

    Limits:
      max_connections=None    Above it, requests are answered with 503, and an
                              EventSource, which would stop for good at that, is told to
                              come back in 30 seconds.  None: the process's limit of
                              open files minus 64.
      max_event_bytes=2**20   Of data, in UTF-8.  Above it: ValueError; to a POST 413.

    Access:
      authorize=None          A function that is asked about each request; see below.
                              None: everybody may read.
      publish_token=None      Clients that know it may publish with POST: visible ASCII
                              characters.  None and "": nobody may.
      cors_origins=()         The origins whose pages may read the stream, such as
                              "https://example.com", and send any header fields.  "*":
                              all, but without credentials, and not those that reach
                              into a private network from outside.
      hosts=None              The names of this server that a request to `path` may
                              carry, without ports.  "*": any.  None: any, but only
                              loopback's if the server listens on nothing else, because
                              a foreign page can make its own name point there (DNS
                              rebinding).  Such a server always has loopback's names.

    Hooks:
      on_open=None            A function that is called with the Request of each stream
                              that has opened, in the event loop.  It must not block.
                              What it raises is logged, except the RuntimeError of
                              publish() while the server ends.
      on_close=None           The same for each stream that has ended for any reason.
                              Both are called exactly once.
      dumps=None              A function that makes text of data that is not a str.
                              None: JSON as of format_event().

    Transport:
      compress=False          Whether clients that accept gzip get it: it is compressed
                              once for all that get the same bytes.
      ssl=None                An ssl.SSLContext, for HTTPS.
      reuse_port=False        Whether several processes may listen on the port.
      id_order=None           A function that makes sort keys of your own ids, such as
                              `int`, if these ascend; see below.

    `authorize(request)` is called before a request to `path` is served; this may be a
    stream or a POST, as `request.method` tells.  True allows the request, false is
    answered with 403, and an HTTPError with its own status.  `authorize` may also
    return the names of the channels that the client may hear (None stands for the
    events without a channel).  Then a client that asks for another channel gets 403,
    and a client that asks for none gets all of these; the head of its stream does not
    show the newest id of all channels (Last-Event-ID), which others get.  Any other
    answer and any other exception is logged and answered with 500; but an EventSource
    is told to come back.  A coroutine function runs in the event loop.  A plain
    function runs in a thread and may block.

    History file: with a `history_file`, a local file, a restart loses nothing, and all
    processes of the machine that name the file are one server.  Each of them delivers
    what any of them publishes, also one that is never started.  The file needs the
    module sqlite3.  The start raises OSError if it cannot be used.  Only the hooks,
    requests(), disconnect() and stats know the streams of their own process alone.

    In a framework the server is an ASGI application:

        server = SSEServer(port=None)
        app = FastAPI(lifespan=server.lifespan)
        app.add_route("/events", server)

    Where a framework routes a request to it, it answers as on `path` at its own port,
    whatever the path is.  If an ASGI server runs the lifespan of the server itself (as
    `uvicorn module:server`), it is the whole application, and `path` counts.  If none
    runs a lifespan, as under Django, it starts with the first request.  In each case it
    listens for SIGINT and SIGTERM; see lifespan().  `hosts` are only those that are
    given.  What belongs to connections (`ssl`, `reuse_port`, the timeouts of heads and
    of idle connections) is the framework's part.

    Many machines: if all of them publish events with the same ids, and the ids ascend
    when they are sorted by `id_order` (such as `int`), a client may resume at any of
    them.  For events that a client has seen elsewhere, it waits for up to 30 seconds.
    """

    def __init__(
        self,
        host: str | None = "localhost",
        port: int | None = 8080,
        *,
        path: str = "/sse",
        page: str | os.PathLike[str] | None = None,
        # History
        history: int = 1000,
        history_bytes: int = 16 * _MIB,
        history_seconds: float | None = None,
        retained: int = 1000,
        history_file: str | os.PathLike[str] | None = None,
        replay: float = 0,
        # Timing
        heartbeat: float | None = 15.0,
        retry: float = 2.0,
        restart_retry: float = 5.0,
        lifetime: float | None = None,
        header_timeout: float = 10.0,
        body_timeout: float = 30.0,
        keepalive_timeout: float = 75.0,
        write_timeout: float = 30.0,
        shutdown_timeout: float = 5.0,
        # Limits
        max_connections: int | None = None,
        max_event_bytes: int = _MIB,
        # Access
        authorize: Authorize | None = None,
        publish_token: str | None = None,
        cors_origins: Iterable[str] = (),
        hosts: Iterable[str] | None = None,
        # Hooks
        on_open: Callable[[Request], object] | None = None,
        on_close: Callable[[Request], object] | None = None,
        dumps: Callable[[Any], str] | None = None,
        # Transport
        compress: bool = False,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
        id_order: Callable[[str], Any] | None = None,
    ) -> None:
        _check_arguments(locals())
        self._max_event_bytes = max_event_bytes
        self._dumps = dumps
        seconds = {
            _HANDSHAKE: header_timeout,
            _HEAD: header_timeout,
            _BODY: body_timeout,
            _ANSWERING: write_timeout,
            _IDLE: keepalive_timeout,
            _LINGERING: _LINGER_SECONDS,
            _FULL: write_timeout / _CHECKS,
            _AHEAD: _AHEAD_SECONDS,
            _LEAVING: write_timeout,
        }
        read_page: Callable[[], bytes] | None = None
        if page is not None:
            read_page = functools.partial(_read_file, os.path.abspath(page))
            read_page()  # OSError now rather than at the first request
        bounds = _Bounds(history, history_bytes, retained, history_seconds)
        log = _EventLog(bounds)
        file = None if history_file is None else _LogFile(history_file, bounds)
        turns = _Turns()
        self._registry = registry = _Registry(seconds, turns)
        self._intake = _Intake(log, file, id_order)
        self._broadcaster = broadcaster = _Broadcaster(
            self._intake,
            registry,
            turns,
            heartbeat,
            retry,
            restart_retry,
            lifetime,
            write_timeout,
            on_open,
            on_close,
        )
        self._site = site = _Site(
            path=path,
            hosts=hosts,
            cors_origins=cors_origins,
            publish_token=publish_token,
            asks=authorize is not None,
            compress=compress,
            max_event_bytes=max_event_bytes,
            restart_retry=restart_retry,
            replay=replay,
            read_page=read_page,
            publishing_waits=history_file is not None,
            publish=self.publish,
            held=self._intake.held,
            stats=lambda: self.stats,
            finish=self.finish,
            has_ended=self._intake.has_ended,
            newest_id=lambda: self.last_event_id,
            closed_because=lambda: broadcaster.closed_because,
        )
        self._service = _Service(
            _Parts(site, _Asker(authorize), registry, broadcaster, turns),
            max_connections,
            ssl,
            host,
            port,
            reuse_port,
            write_timeout,
            shutdown_timeout,
        )
        self._thread: threading.Thread | None = None
        self._terminations: list[_Termination] = []  # of the blocks, the newest last
        self._is_application = False  # an ASGI server has run its lifespan

    # What a program calls.

    def publish(
        self,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        channel: str | None = None,
        retain: bool = False,
    ) -> str:
        """Send an event to every subscriber of the channel; return the event's id.

        With `retain`, clients that connect later get it as well: a new client first
        gets the newest retained event of each name of its channels, and so does a
        client that missed something, after its gap.  forget() ends that.

        It may be called from any thread, and before the server is started (then the
        event is there for clients that resume).  It never waits for a client.  For a
        signal, use loop.add_signal_handler(): a handler of signal.signal(), like a
        `__del__`, may interrupt a use of the log, and then this raises RuntimeError.

        `data` and `event` are as in format_event, but None is sent as JSON's null.  No
        event may be named `gap`.  Do not name one `open` or `error`, which a browser
        cannot tell from its own.  `channel` may be EVERYBODY.  `id` is an id of your
        own, which a Last-Event-ID then finds.  Without it the server numbers the event.

        If a burst is larger than `history_bytes`, its first events are lost, and
        clients that miss them get a gap.  A fast producer should await drain().

        With a history file, it is published when it is in the file.  That takes some 40
        microseconds.  While another program holds the file, this waits for it, usually
        up to five seconds; a coroutine makes its event loop wait, too.  After that, and
        if the disk is full, this raises OSError: nothing is published.

        Raises ValueError for data above `max_event_bytes`, for what format_event
        refuses, for the id of an event that is still held, for an id of the form of the
        server's own, for an id that does not ascend by `id_order`, for the event `gap`,
        and for an event, id or channel that is empty, is longer than 256 bytes, or has
        a control character or a space at an end (a header field could not carry it);
        TypeError for data that is not JSON; RuntimeError once the server is closed,
        has failed, or has lost its event loop, in a process forked from its own (unless
        there is a history file), and within a call that it has interrupted.
        """
        for what, name in (("event", event), ("id", id), ("channel", channel)):
            if name is not None and not (what == "channel" and name == EVERYBODY):
                _check_name(what, name)
        if self._dumps and not isinstance(data, str):
            data = self._dumps(data)
            if not isinstance(data, str):
                raise TypeError(f"dumps gave {data!r}; allowed is a str")
        text = _to_text(data)
        body = format_event(text, event=event)
        # The frame is never shorter than the data, so the data is seldom measured.
        if len(body) > self._max_event_bytes:
            size = len(text.encode())
            if size > self._max_event_bytes:
                allowed = self._max_event_bytes
                raise ValueError(f"data has {size} bytes; allowed are {allowed}")
        name = (event or "message") if retain else None
        return self._intake.publish(body, channel, id, name)

    def forget(self, event: str | None = None, channel: str | None = None) -> bool:
        """Drop the retained event of this name and channel; return whether it existed.

        From any thread.  Nothing is sent.  Raises OSError, RuntimeError as publish().
        """
        return self._intake.forget(channel, event or "message")

    def publish_gap(self, reason: str = "source") -> str:
        """Tell everybody, of every channel, that events are missing at this point.

        Connected clients get an event `gap` with this reason, and so do clients that
        resume from an earlier event, in its place.  It is for a program that feeds the
        server from elsewhere and has lost events on the way.  From any thread.
        """
        body = format_event({"reason": reason}, event="gap")
        return self._intake.publish(body, EVERYBODY, kind=_GAP)

    def finish(self, channel: str | None = None) -> str:
        """Say that nothing more will come on the channel; return the id at this place.

        A stream whose channels are all finished gets what was published before, and
        then it ends.  A client that comes back and has missed nothing is answered with
        204, and an EventSource does not reconnect after that (HTML standard, 9.2.3).
        Publishing on the channel begins it anew.  The end is known while the log holds
        it.  From any thread; raises what publish() raises.
        """
        if channel is not None:
            _check_name("channel", channel)
        return self._intake.publish(b"", channel, kind=_END)

    def stream(
        self,
        last_event_id: str | None = None,
        channels: Iterable[str] = (),
        replay: float | None = None,
        accept_encoding: str | None = None,
    ) -> AsyncIterator[bytes]:
        """A stream for another framework's response: its body, in pieces.

        Send it with stream_headers(), in the server's own event loop, after your
        framework has checked the request.  The arguments are what the request brings:
        its Last-Event-ID, its channels (none: the events without a channel), its
        replay, and its Accept-Encoding, with which the stream may be compressed.  The
        stream has everything that a connection's has, such as retained events, gaps and
        heartbeats, but `authorize`, `hosts` and `cors_origins` are not used: they are
        your framework's part.  Hooks, requests() and disconnect() get a Request that
        has only these arguments, so tell users apart by their channels.  The stream is
        cut if 64 KiB wait and nothing is taken for `write_timeout`.  It ends with
        close(), with disconnect(), or when the iterator is closed, as frameworks do
        when their client has gone.  It opens when the first bytes are taken.

        Raises ValueError for bad channels and a bad replay, RuntimeError before the
        start and in another event loop.
        """
        replay = self._site.replay if replay is None else replay
        _check_replay(replay)
        if isinstance(channels, str):
            raise ValueError("channels is a str; allowed is a sequence of them")
        names = frozenset(_check_name("channel", name) for name in channels)
        if len(names) > _MAX_CHANNELS:
            raise ValueError(f"{len(names)} channels; allowed are {_MAX_CHANNELS}")
        self._service.require_own_loop("stream()")
        path = self._site.path
        request = _request_for_stream(path, last_event_id, names, accept_encoding)
        gzip = self._site.compresses(request)
        wish = _Wish((names or _NO_CHANNEL) | _ALL, chunked=False, gzip=gzip)
        head = _Response(200, (), None)
        stream = _Stream(head, wish, request.last_event_id, replay)
        return self._read_stream(request, stream)

    async def _read_stream(
        self, request: Request, stream: _Stream
    ) -> AsyncIterator[bytes]:
        service = self._service
        await service.wait_for_start("stream()")
        if service.state != _SERVING or service.is_full:
            self._site.refused += 1
            why = self._site.come_back()
            yield _at_once(_Audience(stream.wish).encode(why, begins=True))
            return
        reader = _Reader(self._broadcaster, request)
        try:
            self._broadcaster.add(reader, stream)
            taken = await reader.take()
            while taken:
                yield taken
                taken = await reader.take()
        finally:
            reader.close()

    def stream_headers(self, accept_encoding: str | None = None) -> dict[str, str]:
        """The fields of the response whose body is stream(): with the same argument."""
        headers = {**dict(_STREAM_HEADERS), "Vary": "Accept-Encoding"}
        request = _request_for_stream(self._site.path, None, (), accept_encoding)
        if self._site.compresses(request):
            headers.update([_GZIP])
        return headers

    async def drain(self, behind: bool = False) -> None:
        """Return once all that was published is written to every live subscriber.

        With `behind`, it waits for the subscribers that are behind, too: for each of
        them up to `write_timeout`, then not again until the subscriber has caught up.
        A client that connects again is another subscriber.
        It does not wait for a subscriber that is ahead.  Written means given to the
        connection's transport.  It must be awaited in the server's own event loop.
        """
        await self._service.wait_for_start("drain()")
        await self._broadcaster.drain(behind)

    def disconnect(self, predicate: Callable[[Request], bool]) -> None:
        """End each stream for whose request the predicate returns true.

        This includes requests that `authorize` is still asked about.  It may be called
        from any thread and does not wait: the predicate is called soon, in the event
        loop.  Browsers reconnect, so `authorize` has to refuse them from then on.
        """
        _check_function("predicate", predicate)
        if self._service.state == _SERVING:
            self._service.call_soon(self._service.disconnect, predicate)

    async def serve_forever(self) -> None:
        """Start if need be, and serve until close(), a signal, or a cancellation.

        In the main thread, SIGINT (Ctrl-C) and SIGTERM close the server in order, and
        this returns; a second one ends the process.  A signal that the program handles
        or ignores is left alone, and so is SIGINT if it does so with SIGTERM.  Raises
        what broadcasting failed with, if it failed.
        """
        loop = asyncio.get_running_loop()
        service = self._service
        ends = _Termination(service.begin_closing, signal.SIGINT, loop=loop)
        try:
            await service.start()
            try:
                await asyncio.shield(service.broadcasting)
            finally:
                await self.close()
        finally:
            ends.restore()

    async def close(self) -> None:
        """Deliver what was published, end every stream, and stop listening.

        Takes at most `shutdown_timeout` seconds; what has not ended by then is cut.
        Later calls wait for the first.  May be awaited in any event loop; in another
        than the server's it raises RuntimeError if the server has not ended a few
        seconds after that time, for example because its event loop is stopped.
        """
        await self._service.close()

    def start(self) -> None:
        """Start the server in a thread of its own, for code that is not async.

        It leaves signals to the program, whose end should call stop().
        """
        if self._thread:
            raise RuntimeError("the server was started before; a server runs once")
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run_in_thread, args=(started,), name="sse_server", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            # Else it is Ctrl-C or a signal: the start goes on, or has just succeeded.
            if started.done() and started.exception():
                self._thread.join()
                self._thread = None
            raise

    def stop(self) -> None:
        """Deliver, close, and wait for the end of the thread that start() began.

        In that thread, as in a hook, it does not wait.
        """
        thread = self._thread  # a start that fails sets it to None
        if thread is None:
            raise RuntimeError("the server was not started with start()")
        self._service.end_unbegun()  # if Ctrl-C has interrupted start()
        self._service.call_soon(self._service.begin_closing)
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join()

    def requests(self) -> list[Request]:
        """The request of each open stream; from any thread.

        Its `channels` are those that were asked for.  Outside the server's event loop,
        a stream that changes its state at this moment may be missing.
        """
        return [subscriber.request() for subscriber in self._registry.all(*_STREAMING)]

    @property
    def port(self) -> int:
        """The port it listens on (or will; 0 becomes the real one at the start).

        Without a port of its own it is 0.
        """
        return self._service.port or 0

    @property
    def url(self) -> str:
        """Where the stream is; RuntimeError if the server has no port of its own."""
        if self._service.port is None:
            raise RuntimeError("the server has no port of its own")
        host = self._service.host or "localhost"
        host = f"[{host}]" if ":" in host else host
        scheme = "https" if self._service.context else "http"
        return f"{scheme}://{host}:{self.port}{self._site.path}"

    @property
    def last_event_id(self) -> str:
        """The newest event's id: a stream that resumes there continues right after.

        Put it into a page that is rendered, and have the page open
        `/sse?last_event_id=...`: it will miss nothing between the two.  Before the
        start, a history file that cannot be read raises OSError.
        """
        self._intake.catch_up()
        return self._intake.log.newest_id

    @property
    def stats(self) -> Stats:
        """Counts of this moment, such as `server.stats.live`; from any thread.

        Before the start, a history file that cannot be read raises OSError.
        In another thread each count may be of a slightly different moment.
        """
        broadcaster = self._broadcaster
        self._intake.catch_up()
        return Stats(
            live=self._registry.count(_LIVE),
            behind=self._registry.count(_READY, _FULL, _AHEAD),
            published=broadcaster.log.newest,
            events_written=broadcaster.events_written,
            bytes_written=broadcaster.bytes_written,
            gaps=broadcaster.gaps,
            dropped=broadcaster.dropped,
            refused=self._site.refused,
        )

    # In a framework.

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve as an ASGI application: see the description of the class."""
        if scope["type"] == "lifespan":
            self._is_application = True
            await _run_lifespan(self, receive, send)
        elif scope["type"] == "http":
            if self._service.state in (_NEW, _STARTING):
                # The end of this request must not end the server.
                await asyncio.shield(self._service.start())
            if self._service.state != _CLOSED:
                self._service.require_own_loop("an ASGI request")
                self._listen_for_signals()
            own_path = self._site.path if self._is_application else None
            request, is_full = _request_of(scope, own_path), self._service.is_full
            await _Call(self._service.parts, request, receive, send).serve(is_full)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            raise ValueError(f"ASGI scope {scope['type']!r}; served is http")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Run for as long as a framework runs: `FastAPI(lifespan=server.lifespan)`.

        At SIGINT and SIGTERM, all streams end at once and tell their clients when to
        come back; then the handlers that the framework's server has set run.  Until the
        end of this context, publish() goes on as if there were no clients.
        """
        await self._service.start()
        self._listen_for_signals()
        try:
            yield
        finally:
            await self.close()

    def _listen_for_signals(self) -> None:
        service = self._service
        if not service.signals and service.state == _SERVING:
            end = functools.partial(service.begin_closing, mute=False)
            service.signals = _FrameworkSignals(end)

    # Beginning and ending.

    async def __aenter__(self) -> SSEServer:
        task = asyncio.current_task()
        leave = task.cancel if task else _do_nothing
        loop = asyncio.get_running_loop()
        self._terminations.append(_Termination(leave, loop=loop))
        try:
            await self._service.start()
        except BaseException:
            self._terminations.pop().end()
            raise
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._terminations[-1].begin_end()
        try:
            await self.close()
        finally:
            self._terminations.pop().end()

    def __enter__(self) -> SSEServer:
        self._terminations.append(_Termination(sys.exit))
        try:
            self.start()
        except BaseException:
            self._terminations.pop().end()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._terminations[-1].begin_end()
        self._terminations[-1].log()
        try:
            self.stop()
        finally:
            self._terminations.pop().end()

    def _run_in_thread(self, started: concurrent.futures.Future[None]) -> None:
        async def serve() -> None:
            await self._service.start()
            started.set_result(None)
            await self.serve_forever()

        try:
            asyncio.run(serve())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            # A failure of the broadcaster was logged, and publish() says it.


def _request_for_stream(
    path: str, last_event_id: str | None, names: Iterable[str], coding: str | None
) -> Request:
    """What would have asked a server for such a stream."""
    query = urllib.parse.urlencode([("channel", name) for name in sorted(names)])
    given = ("Last-Event-ID", last_event_id), ("Accept-Encoding", coding)
    fields = _encode_fields((name, value) for name, value in given if value)
    target = path + ("?" + query if query else "")
    return Request("GET", target, path, query, (1, 1), tuple(fields), "")


async def _run_lifespan(server: SSEServer, receive: _Receive, send: _Send) -> None:
    """Answer an ASGI server that runs the lifespan of its application."""
    await receive()
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server.lifespan())
        except Exception as error:
            message = f"sse_server: {error}"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


def _check_arguments(given: dict[str, Any]) -> None:
    """Check those of SSEServer that the site does not check."""
    host, port, ssl = given["host"], given["port"], given["ssl"]
    if not (host is None or isinstance(host, str)):
        raise TypeError(f"host is {host!r}; allowed is a str or None")
    for name in ("history", "history_bytes", "retained"):
        _check_integer(name, given[name], 0)
    if port is not None:
        _check_integer("port", port, 0, 65535)
    _check_integer("max_event_bytes", given["max_event_bytes"], 1)
    if given["max_connections"] is not None:
        _check_integer("max_connections", given["max_connections"], 1)
    _check_replay(given["replay"])
    for name in ("retry", "restart_retry", "header_timeout", "body_timeout",
                 "keepalive_timeout", "write_timeout", "shutdown_timeout",
                 "heartbeat", "lifetime", "history_seconds"):  # fmt: skip
        may_be_none = name in ("heartbeat", "lifetime", "history_seconds")
        if given[name] is not None or not may_be_none:
            _check_seconds(name, given[name])
    for name in ("authorize", "id_order", "on_open", "on_close", "dumps"):
        if given[name] is not None:
            _check_function(name, given[name], may_await=name == "authorize")
    if given["compress"]:
        _need_module("compress", "zlib")
    if ssl is not None:
        if not isinstance(ssl, _need_module("ssl", "ssl").SSLContext):
            raise TypeError(f"ssl is {ssl!r}; allowed is an ssl.SSLContext or None")
        if ssl.check_hostname:  # only a client checks it
            raise ValueError("ssl is for clients; see ssl.Purpose.CLIENT_AUTH")
    for name in ("page", "history_file"):
        if not (given[name] is None or isinstance(given[name], (str, os.PathLike))):
            raise TypeError(f"{name} is {given[name]!r}; allowed is a path or None")
    if given["history_file"] is not None and given["id_order"]:
        fault = "history_file gives an order to the events of all processes"
        raise ValueError(f"{fault}; id_order cannot go with it")


def _need_module(parameter: str, module: str) -> Any:
    """The module that a parameter needs; ValueError if this Python has none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        fault = f"{parameter} needs the module {module}"
        raise ValueError(f"{fault}, which this Python does not have") from None


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _check_integer(name: str, value: int, low: int, high: float = math.inf) -> None:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        allowed = f"integers from {low}" + (f" to {high}" if high < math.inf else "")
        raise ValueError(f"{name} is {value!r}; allowed are {allowed}")


def _check_function(name: str, function: object, may_await: bool = False) -> None:
    if not callable(function):
        raise TypeError(f"{name} is {function!r}; allowed is a function")
    if inspect.iscoroutinefunction(function) and not may_await:
        raise TypeError(f"{name} is a coroutine function; allowed is a plain one")


def _check_replay(replay: float) -> None:
    number = isinstance(replay, int) and not isinstance(replay, bool)
    if replay != math.inf and not (number and replay >= 0):
        raise ValueError(f"replay is {replay!r}; allowed are integers from 0, math.inf")


def _check_seconds(name: str, value: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; allowed are seconds above 0")


async def _listen(
    host: str | None, port: int, reuse_port: bool, write_timeout: float
) -> list[socket.socket]:
    """Bind every address of the host, all of them to one port."""
    # A browser may try either (RFC 6761, 6.3), whatever the hosts file says.
    hosts = ["127.0.0.1", "::1"] if host == "localhost" else [host or None]
    loop = asyncio.get_running_loop()
    addresses: dict[tuple[int, Any], None] = {}  # each once, in order
    try:
        for name in hosts:
            for family, _, _, _, address in await loop.getaddrinfo(
                name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                addresses[family, address] = None
    except UnicodeError:
        raise OSError(f"{host!r} is not a host's name") from None
    # With port 0, what is free on the first address may be in use on the next one.
    attempts = 1 if port else 10
    while True:
        try:
            return _bind([*addresses], port, reuse_port, write_timeout)
        except OSError as error:
            attempts -= 1
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _bind(
    addresses: list[tuple[int, Any]], port: int, reuse_port: bool, write_timeout: float
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    failure = OSError("the host has no address")
    with contextlib.ExitStack() as closing:
        for number, (family, (host, _, *scope)) in enumerate(addresses * _LISTENERS):
            # The first socket of an address is bound without SO_REUSEPORT, so that the
            # kernel reports a port that is in use.
            shared = reuse_port or number >= len(addresses)
            address = host, port, *scope
            try:
                sock = socket.create_server(
                    address, family=family, backlog=_BACKLOG, reuse_port=shared
                )
            except OSError as error:
                # The machine may not have each address of a name, such as ::1.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failure = error
                continue
            closing.callback(sock.close)
            _set_socket_options(sock, write_timeout)
            if _LISTENERS > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.append(sock)
            port = sock.getsockname()[1]
        if not bound:
            raise failure
        closing.pop_all()
    return bound


def _connections_by_descriptors() -> int:
    """What the process may open, less a reserve for everything else."""
    try:
        import resource
    except ImportError:  # Windows: select() takes 512 sockets
        return 512 - _RESERVED_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, soft - _RESERVED_DESCRIPTORS)


def _set_socket_options(listening: socket.socket, write_timeout: float) -> None:
    """Send at once, and notice within a minute that a peer has vanished.

    Connections inherit the options of the socket that they were accepted from.
    """
    _set_user_timeout(listening, write_timeout)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_NOTSENT_LOWAT", _NOTSENT_BYTES),
    ):
        if hasattr(socket, name):  # where the platform has it
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# ------------------------------------------------------------------------------------
# 10. The page that a browser is given when it navigates to the stream.
# ------------------------------------------------------------------------------------

_PAGE = rb"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Event stream</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --hue: 210;
  --quiet: color-mix(in srgb, CanvasText 65%, Canvas);
  --line: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }
* { box-sizing: border-box; margin: 0; padding: 0; font: inherit; color: inherit; }
[hidden] { display: none; }
body { display: flex; flex-direction: column; gap: 8px; height: 100dvh;
  max-width: 1400px; margin: 0 auto; padding: 12px 20px; background: Canvas;
  color: CanvasText; font: 14px/1.45 system-ui, sans-serif; }
header, p { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 14px; }
h1, ol { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
h1 { font-size: 16px; overflow-wrap: anywhere; }
h1, b { font-weight: 600; }
bdi, .name, .id { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
#status { flex: 1 1 200px; flex-wrap: nowrap; min-height: 32px; line-height: 1.2; }
#state::before, .legend span::before { content: "\25cf\a0"; }
button, input { background: none; border: 0; white-space: nowrap; cursor: pointer; }
p button { text-decoration: underline; text-underline-offset: 3px; }
details, #filter { border: var(--line); border-radius: 8px; padding: 6px 12px; }
#filter { flex: 0 1 300px; cursor: text; }
#charts { display: grid; gap: 12px; flex: none; max-height: 45%; overflow-y: auto;
  align-items: start; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
summary { display: flex; cursor: pointer; }
summary::before { content: "\25b8\a0"; }
[open] summary::before { content: "\25be\a0"; }
summary b { margin-left: auto; padding-left: 12px; }
summary b, bdi + bdi { flex: none; }  /* too long a label loses its middle */
details p { row-gap: 0; font-size: 12px; justify-content: space-between; }
svg { display: block; width: 100%; height: 56px; margin: 10px 0; overflow: visible; }
path { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke; }
p, time, .id, .copy, [data-name=message] .name, [data-name=""] { color: var(--quiet); }
path, .legend span::before, #state, button:hover {
  color: color-mix(in srgb, hsl(var(--hue) 90% 50%) 75%, CanvasText); }
#status:not(.live, .finished) { --hue: 25; }
ol { flex: 1; min-height: 45vh; overflow-y: auto; overflow-anchor: none;
  border-top: var(--line); }
body:has(#first:checked) ol { display: flex; flex-direction: column-reverse; }
li:first-child { margin-bottom: auto; }  /* reversed, a short list begins at the top */
li { display: grid; grid: auto / 13ch 12ch 20ch minmax(0, 1fr) auto; flex: none;
  gap: 0 16px; padding: 5px 8px; border-bottom: var(--line); align-items: start; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; }
li:not(.open) pre { max-height: 13em; }
pre span { display: inline-block; }  /* a field of JSON stays in one line if it can */
li:not(:hover, .open) .copy:not(:focus) { opacity: 0; }
[data-name=gap] { background: color-mix(in srgb, hsl(25 90% 50%) 12%, Canvas); }
@media (max-width: 720px) {
  #filter { flex: 1 1 100%; }
  #charts { gap: 8px; grid: auto / auto-flow minmax(180px, 1fr); }
  li { grid: auto auto / auto auto minmax(0, 1fr) auto; }
  pre { grid-area: 2 / 1 / 3 / -1; }
}
</style>
<header>
  <h1 id="url"></h1>
  <p id="status"><b id="state" role="status"></b> <span id="detail"></span>
    <button id="again">Try again</button> <button id="newest">To the newest</button></p>
  <input id="filter" type="search" placeholder="Filter by name, id or text"
    autocomplete="off" spellcheck="false">
</header>
<section id="charts" aria-label="Numbers in the data"></section>
<p><span><b id="total"></b> events</span>
  <label><input id="pause" type="checkbox"> Pause</label>
  <label><input id="first" type="checkbox"> Newest first</label>
  <label><input id="utc" type="checkbox"> UTC instead of <span id="zone"></span></label>
  <button id="replay">Show earlier events</button> <button id="curl">Copy curl</button>
  <button id="save">Download</button></p>
<p id="empty"></p>
<ol id="list" aria-label="Events"></ol>
<noscript>This page needs JavaScript. The stream itself does not.</noscript>
<template id="row"><li><time><button></button></time> <span class="name"></span>
  <span class="id"></span> <pre></pre><button class="copy">Copy</button></li></template>
<template id="chart"><details open><summary><bdi></bdi><bdi></bdi><b></b></summary>
  <svg preserveAspectRatio="none" aria-hidden="true"></svg>
  <p><span></span><span></span></p><p class="legend"></p></details></template>
<script>
"use strict";
const ROWS = 500;         // events in the list; twice as many while scrolled away
const TEXT = 8000;        // characters of an event's data that are kept and read
const NAME = 256;         // characters of a name, of an id, of a field's path
const CHARTS = 12;        // numeric fields that are drawn: the first to appear
const POINTS = 240;       // values in a chart
const HUES = [210, 25, 150, 290, 340, 55, 180, 0];  // of the lines in a chart
const WORD = 32;          // characters of a text that may name a line
const NAMING = /sensor|device|host|node|room|station|symbol|^(name|id)$/i;
const PAINT_EVERY = 100;  // ms
const BACK_OFF = 30000;   // ms between attempts, unless `retry` asks for more
const SILENT = 35000;     // ms: two heartbeats at the usual 15 s are overdue
const MOMENT = 500;       // ms after its opening, a stream has begun with what it owes
const SHOWN = "li:not([hidden], [data-name=''])";
const MEANINGS = {
  204: "the server has nothing more to send.",
  401: "the server wants to know who you are. Log in, then try again.",
  403: "the server does not let you see this stream.",
  421: `the server does not go by the name ${location.hostname}.`};
const $ = (id) => document.getElementById(id);
const list = $("list"), pending = [], charts = new Map();
const address = location.href.split("#")[0], query = new URL(address).searchParams;
const asks = ["replay", "last_event_id", "lastEventId"].some((one) => query.has(one));
let total = 0, fresh = 0, gaps = 0, following = true, timer;
let state, reason, failures = 0, opened = 0, heard = 0, retry = 2000, wake;
let lastId = "", newestId = "", caughtUp = false, rest = "", fields = {};

// The stream as this server writes it, with LF alone (HTML standard, 9.2.6).
function decode(text) {
  const lines = (rest + text).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (field === "data") fields.data = (fields.data ?? "") + value + "\n";
    else if (field === "retry") retry = Math.min(Math.max(value, 250), 864e5);
    else if (line !== "") fields[field] = value;
    else {
      const {event, id, data} = fields, name = event || "message";
      [lastId, fields] = [id ?? lastId, {}];
      if (data) receive(name, lastId, data.slice(0, -1), isEarlier(name, id));
    }
  }
}
// Whether an event was published before this connection opened. One that is retained
// comes without an id. The server numbers its own ids, and the head of its answer has
// the newest. Other ids do not tell: then it is what comes in the first moment, until
// the newest or a new event has come.
function isEarlier(name, id) {
  if (name === "gap" || id === undefined) return name !== "gap";
  const [epoch] = /^[0-9a-f]{8}-/.exec(id) ?? [];
  const earlier = epoch && newestId.startsWith(epoch)
    ? Number(id.slice(9)) <= Number(newestId.slice(9))
    : !caughtUp && Date.now() - opened < MOMENT;
  caughtUp ||= !earlier || id === newestId;
  return earlier;
}

// The list, oldest first in the document. What arrives waits in `pending`, which is
// bounded, for the next painting. The view follows until it is scrolled away.
function receive(name, id, data, earlier) {
  let value;
  try { value = data.length <= TEXT ? JSON.parse(data) : undefined; } catch {}
  const at = earlier ? 0 : Date.now();
  [total, fresh, gaps] = [total + 1, fresh + !earlier, gaps + (name === "gap")];
  if (name !== "gap") eachNumber(name === "message" ? "" : name, value, at);
  add(data, name, id, at, value !== undefined);
}
function add(data, name = "", id = "", at = Date.now(), isJSON = false) {  // or a note
  // A mere slice would keep the whole long text that it was cut from in memory.
  const event = structuredClone({name: name.slice(0, NAME), id: id.slice(0, NAME),
    text: data.slice(0, TEXT), at, isJSON, size: data.length, skipped: 0});
  if (matches(event)) pending.push(event);
  if (pending.length >= ROWS)
    pending[ROWS / 5].skipped += ROWS / 5 + pending.splice(0, ROWS / 5)[0].skipped;
  paintSoon();
}
const matches = ({name, id, text}, wanted = $("filter").value.toLowerCase()) =>
  !wanted || visible(`${name} ${id} ${text}`).toLowerCase().includes(wanted);
// A terminal's colours are dropped. Characters that cannot be seen, or that reorder
// others, become their code points.
const visible = (text) => text.replace(/(\x1b|\\u001b)\[[\d;:]*[mK]/gi, "").replace(
  /[\u2028\u2029]|[^\P{C}\t\n\u200c\u200d]/gu,
  (one) => `[U+${one.codePointAt().toString(16).toUpperCase().padStart(4, "0")}]`);
const span = (text) => Object.assign(document.createElement("span"),
  {textContent: visible(text)});
const clone = (template) => $(template).content.firstElementChild.cloneNode(true);
const count = (number) => number.toLocaleString("en");
function fill(row) {
  const {event: {at, text, size, skipped, isJSON}, event} = row;
  const pre = row.querySelector("pre"), button = row.querySelector("button");
  const shift = $("utc").checked ? 0 : new Date(at).getTimezoneOffset() * 60000;
  const time = new Date(at - shift).toISOString().slice(0, -1).replace("T", " ");
  [row.dataset.name, row.hidden] = [event.name, !matches(event)];
  button.textContent = at ? time.slice(11) : "earlier";
  button.title = at ? time : "";
  for (const cell of row.querySelectorAll(".name, .id"))
    cell.textContent = cell.title = visible(event[cell.className]);
  const open = button.ariaExpanded = row.classList.contains("open");
  const parts = isJSON && !/\n/.test(text) && text.match(/("(\\.|[^"\\])*"|[^",])+,?/g);
  const exactly = (key, value, {source} = {}) =>  // as it was sent, where that is known
    typeof value === "number" ? JSON.rawJSON?.(source) ?? value : value;
  if (isJSON && open)
    pre.textContent = visible(JSON.stringify(JSON.parse(text, exactly), null, 2));
  else if (parts && parts.length < TEXT / 40) pre.replaceChildren(...parts.map(span));
  else pre.textContent = visible(text);
  if (size > TEXT) pre.prepend(`[the first ${TEXT} of ${count(size)} characters]\n`);
  if (skipped) pre.prepend(`[${count(skipped)} events before this are not shown]\n`);
  return row;
}
const paintSoon = () => {  // and not at all while the tab is hidden
  timer ??= setTimeout(requestAnimationFrame, PAINT_EVERY, paint);
};
function paint() {
  timer = undefined;
  paintState();
  const paused = $("pause").checked, filtered = $("filter").value !== "";
  if (!paused) charts.forEach(drawChart);
  if (!paused && (following || list.childElementCount < 2 * ROWS))
    list.append(...pending.splice(0).map((event) =>
      fill(Object.assign(clone("row"), {event}))));
  if (following) {
    while (list.childElementCount > ROWS) list.firstElementChild.remove();
    list.scrollTop = list.scrollHeight * ($("first").checked ? -1 : 1);
  }
  const shown = list.querySelectorAll(SHOWN).length;
  $("newest").hidden = following;
  $("total").textContent = (filtered ? count(shown) + " of " : "") + count(total);
  $("empty").hidden = shown > 0 || total > 0 && !filtered;
  $("empty").textContent = filtered ? "No event matches the filter."
    : query.has("channel") ? "No events yet."
    : "No events yet. Those of a channel need ?channel=NAME in the address.";
}
function look() {
  following = list.scrollHeight - list.clientHeight - Math.abs(list.scrollTop) < 8;
  paintSoon();
}

// The charts: the rate, then one for each numeric field, by the event's name and the
// field's path, with a line for each value of the text that names its numbers.
function eachNumber(name, value, at, path = [], words = new Map()) {
  if (Number.isFinite(value)) addPoint(name, path.join("."), value, at, words);
  if (path.length > 1 || Array.isArray(value) || !(value instanceof Object)) return;
  const inner = Object.entries(value);
  const own = inner.filter(([, one]) => typeof one === "string" && one.length <= WORD);
  words = new Map([...words, ...own.slice(0, WORD)]);
  for (const [key, one] of inner) eachNumber(name, one, at, [...path, key], words);
}
function addPoint(name, field, number, at, words = new Map()) {
  const key = `${name}.${field}`.slice(0, NAME);
  if (!charts.has(key) && charts.size <= CHARTS)
    charts.set(key, {name, field: field.slice(0, NAME), points: [],
      box: $("charts").appendChild(clone("chart"))});
  const points = charts.get(key)?.points;
  points?.push({number, at, words, gaps});
  points?.splice(0, points.length - POINTS);
}
// The field that names the numbers: one that is usually called so, or else the first
// that takes the same few values again and again.
function namingField(points) {
  const seen = new Map();
  for (const [field, word] of points.flatMap(({words}) => [...words]))
    seen.set(field, (seen.get(field) ?? new Set()).add(word));
  const few = [...seen.keys()].filter((field) => seen.get(field).size <= HUES.length);
  return few.find((field) => NAMING.test(field))
    ?? few.find((field) => points.length >= 3 * seen.get(field).size);
}
function drawChart({name, field, points, box}) {
  const [head, tail, value, svg, range, time, legend] =
    box.querySelectorAll("bdi, b, svg, svg + p span, .legend");
  // The event's name is left out where all have the same. The rate has none.
  const names = new Set([...charts.values()].map((one) => one.name));
  const label = names.size > 2 && name && field ? `${name}.${field}` : field || name;
  [box.title, head.textContent, tail.textContent] =
    /^(.*?)(.{0,9})$/su.exec(visible(label || "data"));
  const numbers = points.map(({number}) => number), naming = namingField(points);
  const low = Math.min(...numbers), high = Math.max(...numbers);
  const height = high / 2 - low / 2 || 1;  // halves, because high - low may overflow
  points.forEach((point, x) => {
    const y = 100 - (point.number / 2 - low / 2) / height * 100;
    point.place = `${x} ${y.toFixed(2)}h0`;  // h0: where it is alone, it is a dot
  });
  const lines = [...Map.groupBy(points, ({words}) => words.get(naming) ?? "")];
  svg.setAttribute("viewBox",
    `${Math.min(0, points.length - 30)} 0 ${Math.max(29, points.length - 1)} 100`);
  svg.replaceChildren();
  legend.replaceChildren();
  lines.sort(([one], [other]) => one < other ? -1 : 1).forEach(([word, its], i) => {
    const line = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    const entry = span(`${word || "other"} ${format(its.at(-1).number)}`);
    line.setAttribute("d", its.map(({place, gaps}, k) =>
      (gaps === its[k - 1]?.gaps ? "L" : "M") + place).join(""));
    for (const one of [line, entry]) one.style.setProperty("--hue", HUES[i]);
    if (lines.length > 1) legend.append(entry);
  });
  const times = points.map(({at}) => at).filter(Boolean);
  value.textContent = lines.length > 1 ? "" : format(numbers.at(-1));
  range.textContent = `${format(low)} to ${format(high)}`;
  time.textContent = times[0] ? `in ${duration(times.at(-1) - times[0])}` : "earlier";
}
function format(number) {
  const size = Math.abs(number), large = size >= 1e5;
  if (size >= 1e15 || size < 1e-3 && size > 0) return number.toExponential(2);
  return number.toLocaleString("en", {maximumSignificantDigits: large ? 4 : 6,
    notation: large ? "compact" : "standard"}).replace(/[A-Z]/, " $&");  // 3.06 M
}
const duration = (ms) => ms < 12e4 ? `${Math.round(ms / 1e3)} s`
  : ms < 72e5 ? `${Math.round(ms / 6e4)} min` : `${Math.round(ms / 36e5)} h`;

// The connection. EventSource would not do: it hides events whose names it is not told.
async function follow() {
  for (;; failures += 1) {
    enter("connecting", "");
    const [next, why] = await connect().catch(() =>
      ["reconnecting", state === "live" ? "the connection broke" : "no answer"]);
    // Who is cut before the first event goes on from the newest id of the first answer,
    // unless more may be owed to a new client: what its address asks for, or what is
    // retained, which begins to come within the first moment.
    const owed = asks || rest || fields.data || Date.now() - opened < MOMENT;
    if (state === "live" && total === 0 && !owed) lastId ||= newestId;
    if (state === "live" || next === "finished") add(why);
    const wait = Math.max(retry, Math.min(BACK_OFF, retry * 2 ** failures));
    enter(next, next === "reconnecting" ? `in ${duration(wait)}: ${why}` : why);
    await new Promise((resolve) => {
      wake = resolve;
      if (next === "reconnecting") setTimeout(resolve, wait);
    });
  }
}
async function connect() {  // until it ends; returns what comes next, and why
  // Header values are bytes: UTF-8, each byte in the place of one Latin-1 character.
  const id = String.fromCharCode(...new TextEncoder().encode(lastId));
  const headers = {Accept: "text/event-stream", ...id && {"Last-Event-ID": id}};
  const answer = await fetch(address, {headers, cache: "no-store"});
  const {status, body} = answer, type = answer.headers.get("Content-Type") || "no type";
  const why = `${status}: ${MEANINGS[status] ?? answer.statusText}`;
  if (status >= 500) return ["reconnecting", why];  // a proxy while the server restarts
  if (status !== 200) return [status === 204 ? "finished" : "stopped", why];
  if (!/^text\/event-stream\b/i.test(type)) return ["stopped", "not events: " + type];
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  if (opened) add("connected");
  newestId = answer.headers.get("Last-Event-ID") ?? "";
  [rest, fields, failures, caughtUp] = ["", {}, 0, false];
  opened = heard = Date.now();
  enter("live", "");
  for (let rested = performance.now(); ;) {
    const {value, done} = await reader.read();
    if (done) return ["reconnecting", "the stream ended"];
    heard = Date.now();
    decode(value);
    // A flood must leave time to paint and to click. Hidden tabs have slow timers.
    if (performance.now() - rested > PAINT_EVERY / 2 && !document.hidden) {
      await new Promise((resolve) => setTimeout(resolve));
      rested = performance.now();
    }
  }
}
function enter(newState, why) {
  [state, reason] = [newState, why];
  paintSoon();
}
function paintState() {
  const said = state === "live" && $("pause").checked ? "paused" : state;
  const silent = Date.now() - heard;
  if ($("state").textContent !== said) $("state").textContent = said;
  $("status").className = said;
  $("again").hidden = state === "live" || state === "connecting";
  $("detail").textContent = state !== "live" ? reason
    : silent >= SILENT ? `silent for ${duration(silent)}`
    : gaps > 0 ? `events were missed ${gaps === 1 ? "once" : gaps + " times"}` : "";
}
let then = 0;
function eachSecond() {
  const now = performance.now(), rate = Math.round(fresh * 1e4 / (now - then)) / 10;
  [fresh, then] = [0, now];
  addPoint(null, "events/s", rate, Date.now());
  document.title = (state === "live" ? `${rate}/s ` : state + " ") + location.pathname;
  paintSoon();
}

// Not by navigator.clipboard, which only https and this machine have.
function copyText(text, button) {
  document.addEventListener("copy", (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  }, {once: true});
  if (document.execCommand("copy")) button.textContent = "Copied";
}
const actions = {  // what a click does, by the id or the class of its target
  again: () => wake(), utc: () => [...list.children].forEach(fill),
  newest() { following = true; paint(); }, first: () => actions.newest(),
  replay() {
    for (const one of ["last_event_id", "lastEventId"]) query.delete(one);  // they win
    query.set("replay", "all");
    location.search = query;
  },
  curl(button) { copyText(`curl -N '${address.replaceAll("'", "%27")}'`, button); },
  copy(button) { copyText(button.parentNode.event.text, button); },
  save() {
    const rows = [...list.querySelectorAll(SHOWN)];
    const lines = rows.map(({event: {at, name, id, text}}) => JSON.stringify(
      {time: at ? new Date(at) : null, event: name, id, data: text}) + "\n");
    const href = URL.createObjectURL(new Blob(lines, {type: "application/x-ndjson"}));
    Object.assign(document.createElement("a"), {href, download: "sse.ndjson"}).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  },
};
addEventListener("click", ({target}) => {
  const act = actions[target.id || target.className], row = target.closest("li");
  if (act) act(target);
  else if (row && getSelection().isCollapsed) {
    row.classList.toggle("open");
    fill(row);
    look();
  }
  paintSoon();
});
addEventListener("online", () => state === "reconnecting" && wake());
$("filter").addEventListener("input", () => { actions.utc(); paintSoon(); });
list.addEventListener("scroll", look);
new ResizeObserver(paintSoon).observe(list);
const now = new Date(), time = now.toLocaleTimeString("en-GB", {timeZoneName: "short"});
$("zone").textContent = time.split(" ")[1];
$("zone").parentNode.hidden = now.getTimezoneOffset() === 0;
$("replay").hidden = query.has("replay");
$("url").textContent = location.pathname + location.search;
follow();
setInterval(eachSecond, 1000);
eachSecond();
</script>
</html>
"""


def _csp_hash(element: bytes) -> str:
    """The hash with which the policy allows the page's own script or style."""
    content = _PAGE.split(b"<%b>" % element)[1].split(b"</%b>" % element)[0]
    digest = hashlib.sha256(content).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_PAGE_POLICY = (
    f"default-src 'none'; script-src {_csp_hash(b'script')}; "
    f"style-src {_csp_hash(b'style')}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = (
    _HTML,
    *_FOR_SOME,
    ("Content-Security-Policy", _PAGE_POLICY),
    ("Referrer-Policy", "no-referrer"),
)


# ------------------------------------------------------------------------------------
# 11. The command line.  It publishes a clock or the lines of standard input.
# ------------------------------------------------------------------------------------


async def _publish_clock(server: SSEServer, publish: Callable[[Any], str]) -> None:
    """Publish the time and the number of open streams every second: the demo."""
    while True:
        now = datetime.datetime.now(datetime.timezone.utc)
        timestamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        clients = server.stats.live + server.stats.behind
        try:
            publish({"timestamp": timestamp, "clients": clients})
        except (_LogFileError, ValueError) as error:  # --max-event-bytes may be small
            logger.error("%s", error)
        await asyncio.sleep(1)


def _publish_lines(
    server: SSEServer,
    publish: Callable[[Any], str],
    loop: asyncio.AbstractEventLoop,
    options: argparse.Namespace,
) -> None:
    """Publish the lines of standard input; runs in a thread, as reading blocks."""

    def drain() -> None:
        drained = server.drain(behind=options.lossless)
        asyncio.run_coroutine_threadsafe(drained, loop).result()

    # Lines that exceed the history between two drains would be lost.
    most = max(1, min(options.history, _BATCH_EVENTS))
    count = size = 0
    try:
        for line in _read_lines(options.max_event_bytes):
            length = len(line or b"")
            if count == most or size + length > _BATCH_BYTES:
                drain()
                count = size = 0
            count += 1
            size += length
            _publish_line(server, publish, line)
        drain()
    except OSError as error:
        logger.error("cannot read standard input: %s; still serving", error)
    except (RuntimeError, concurrent.futures.CancelledError):
        logger.info("the server ended before the end of its input")
    else:
        logger.info("end of the input; still serving")


def _publish_line(
    server: SSEServer, publish: Callable[[Any], str], line: bytearray | None
) -> None:
    """Publish a line; None: a gap, for one that was too long.

    While the history file cannot be written, the input waits.
    """
    while True:
        try:
            if line is None:
                server.publish_gap("a line was too long")
            else:
                publish(line.decode("utf-8", "replace"))
            return
        except ValueError as error:  # U+FFFD is longer than what it replaces
            logger.error("skipped a line: %s (--max-event-bytes)", error)
            line = None
        except _LogFileError as error:
            logger.error("%s", error)
            time.sleep(1)


def _read_lines(max_bytes: int) -> Iterator[bytearray | None]:
    """Yield the lines of standard input; None for each above `max_bytes`, logged.

    A line ends with LF, CRLF or CR.  A program that shows its progress writes a CR
    before or after each state, so an empty line that ends with a CR is none.
    """
    if sys.stdin is None:
        raise OSError("it is closed")
    # Not sys.stdin.buffer: the interpreter cannot end while this thread reads from it.
    descriptor = sys.stdin.fileno()
    if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
        os.set_blocking(descriptor, True)
    mark = b"\xef\xbb\xbf"  # a byte order mark, which may begin the input
    received, line, size = b"\n", bytearray(), 0
    by_cr = False  # what was received last ends a line by a CR; a LF belongs to it
    while received:
        received = os.read(descriptor, 64 * _KIB)
        halved = by_cr and received.startswith(b"\n")
        # The end of the input ends a line as a CR does.
        for part in received[halved:].splitlines(True) if received else [b"\r"]:
            text = part.rstrip(b"\r\n")
            size += len(text)
            if size <= max_bytes:
                line += text
            by_cr = part.endswith(b"\r") and size > 0
            if text == part:
                continue
            if size > max_bytes:
                fault = "skipped a line of %d bytes; allowed: %d (--max-event-bytes)"
                logger.error(fault, size, max_bytes)
                yield None
            elif line or part != b"\r":
                yield line.removeprefix(mark)
            mark, line, size = b"", bytearray(), 0


class _ArgumentParser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sse_server: {message}; --help shows all options\n")


def _replay(text: str) -> float:
    """Convert the value of --replay."""
    if text != "all" and not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return math.inf if text == "all" else int(text)


def _argument_parser() -> argparse.ArgumentParser:
    """The parser; the parsed options have every parameter of SSEServer by its name."""
    parser = _ArgumentParser(
        prog="sse_server.py",
        usage="%(prog)s [options] [-]",
        description="Broadcast a clock or standard input as Server-Sent Events.",
        epilog="The environment variable SSE_PUBLISH_TOKEN does what --publish-token "
        "does, but other users of the machine cannot see it.",
    )
    parameters = inspect.signature(SSEServer).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    parser.set_defaults(level=logging.INFO, **defaults)
    text = "publish the lines of standard input, not a clock"
    parser.add_argument("input", nargs="?", metavar="-", help=text)
    version = f"sse_server {__version__}"
    parser.add_argument("--version", action="version", version=version)
    add = parser.add_argument_group("where it listens").add_argument
    add("--host", help="name or address (%(default)s); 0.0.0.0 is every address")
    add("--port", type=int, help="TCP port (%(default)s); 0 chooses a free one")
    add("--path", help="path of the stream (%(default)s)")
    add("--certfile", metavar="FILE", help="serve HTTPS with this certificate")
    add("--keyfile", metavar="FILE", help="the key, if it has a file of its own")
    text = "answer / with this HTML file, which is read anew each time"
    add("--page", metavar="FILE", help=text)
    add = parser.add_argument_group("what it publishes").add_argument
    add("--event", metavar="NAME", help="name of the events")
    add("--channel", metavar="NAME", help="channel of the events")
    add("--retain", action="store_true", help="give each new client the newest event")
    text = "let POST requests with this token publish, instead of a clock"
    token = os.environ.get("SSE_PUBLISH_TOKEN") or None
    add("--publish-token", metavar="TOKEN", default=token, help=text)
    add("--lossless", action="store_true", help="with -: wait for the slowest client")
    add("--compress", action="store_true", help="send gzip to clients that accept it")
    add = parser.add_argument_group("who may read it").add_argument
    text = """origin whose pages may read the stream, such as https://example.com, or *
        for every origin; may be repeated"""
    add("--cors-origin", metavar="ORIGIN", action="append", dest="cors_origins",
        default=[], help=text)  # fmt: skip
    text = """name by which the server may be addressed, such as example.com, or * for
        every name; may be repeated; default: every name, but only localhost if it
        listens on localhost"""
    add("--allow-host", metavar="NAME", action="append", dest="hosts", help=text)
    add = parser.add_argument_group("limits").add_argument
    text = "events kept for clients that reconnect (%(default)s)"
    add("--history", type=int, metavar="EVENTS", help=text)
    text = "time for which they are kept (default: any time)"
    add("--history-seconds", type=float, metavar="SECONDS", help=text)
    text = "file in which they survive a restart; servers with the same file are one"
    add("--history-file", metavar="FILE", help=text)
    text = "events that a new client gets first (%(default)s), or all"
    add("--replay", type=_replay, metavar="EVENTS", help=text)
    text = "time after which a stream ends and its client comes back (default: none)"
    add("--lifetime", type=float, metavar="SECONDS", help=text)
    text = "time that a restart takes, in which clients stay away (%(default)s)"
    add("--restart-retry", type=float, metavar="SECONDS", help=text)
    text = "time between keep-alive comments (%(default)s)"
    add("--heartbeat", type=float, metavar="SECONDS", help=text)
    text = "most data in one event (%(default)s)"
    add("--max-event-bytes", type=int, metavar="BYTES", help=text)
    text = "connections at once (default: as many as file descriptors allow)"
    add("--max-connections", type=int, metavar="NUMBER", help=text)
    group = parser.add_argument_group("what it says").add_mutually_exclusive_group()
    add = functools.partial(group.add_argument, action="store_const", dest="level")
    add("--verbose", const=logging.DEBUG, help="everything")
    add("--quiet", const=logging.WARNING, help="only what is wrong")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit status: 2 for bad options, 1 for other errors."""
    parser = _argument_parser()
    options = parser.parse_args(arguments)
    if options.lossless and not options.input:
        parser.error("--lossless goes with -, the lines of standard input")
    if options.input not in (None, "-"):
        file = f"to publish a file: tail -f {options.input} | python sse_server.py -"
        hint = f"--port {options.input}?" if options.input.isdigit() else file
        parser.error(f"{options.input!r} is no option; {hint}")
    if options.publish_token == "":
        parser.error("--publish-token is empty")
    if options.publish_token and not options.input:
        for name in ("event", "channel", "retain"):
            if getattr(options, name):
                parser.error(f"with a token, a POST says its {name}; --{name} is for -")
    if options.keyfile and not options.certfile:
        parser.error("--keyfile goes with --certfile")
    logging.basicConfig(format="%(asctime)s %(message)s", level=options.level)
    _raise_descriptor_limit()
    try:
        server = _make_server(options)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        if error.filename:
            fault = f"cannot read {error.filename}: {error.strerror}"
            parser.exit(1, f"sse_server: {fault}\n")
        files = " and ".join(filter(None, (options.certfile, options.keyfile)))
        parser.exit(1, f"sse_server: cannot use {files}: {error}\n")
    with contextlib.suppress(KeyboardInterrupt):  # if the loop cannot handle signals
        failure = asyncio.run(_run(server, options))
        if failure:
            parser.exit(1, f"sse_server: {failure}\n")
    return 0


def _make_server(options: argparse.Namespace) -> SSEServer:
    """Raises ValueError for a bad option, OSError for an unusable certificate."""
    for name in ("event", "channel"):
        if getattr(options, name) is not None:
            _check_name(name, getattr(options, name))
    if options.lossless:  # a line must be held while clients are waited for
        options.history = options.history or 1
    if options.certfile:
        ssl = _need_module("--certfile", "ssl")
        options.ssl = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        options.ssl.load_cert_chain(options.certfile, options.keyfile)
    parameters = inspect.signature(SSEServer).parameters
    return SSEServer(**{name: getattr(options, name) for name in parameters})


async def _run(server: SSEServer, options: argparse.Namespace) -> str:
    """Serve until a signal comes; return why it could not start, or ""."""
    given = {name: getattr(options, name) for name in ("event", "channel", "retain")}
    publish = functools.partial(server.publish, **given)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except _LogFileError as error:
            return str(error)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = os.strerror(errno.EADDRINUSE) if in_use else error.strerror
            hint = "; choose another --port, or 0 for a free one" if in_use else ""
            where = f"{options.host}:{options.port}"
            return f"cannot listen on {where}: {reason or error}{hint}"
        if options.input:
            feed = server, publish, asyncio.get_running_loop(), options
            threading.Thread(target=_publish_lines, args=feed, daemon=True).start()
        elif not options.publish_token:  # POST requests publish instead
            clock = asyncio.ensure_future(_publish_clock(server, publish))
            stack.callback(clock.cancel)
        if options.level <= logging.INFO:
            url = server.url.replace("//0.0.0.0:", f"//{_own_address()}:")
            query = urllib.parse.urlencode({"channel": options.channel})
            watched = f'"{url}?{query}"' if options.channel else url
            text = f"Watch it: curl -N {watched}, or open it in a browser"
            if options.publish_token and not options.input:
                text += "\nThe clock is off: events come by POST with the token"
            if options.page:
                text += f"\nThe page: {url[: -len(options.path)]}/"
            _print(f"Listening on {server.url}\n{text}")
        await server.serve_forever()
    return ""


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:  # nobody reads it, or the disk is full
        # Otherwise Python writes the text again at the exit, and the status is 120.
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _own_address() -> str:
    """The address by which other machines reach this one."""
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses the route and sends nothing
        return str(probe.getsockname()[0])
    return "localhost"


def _raise_descriptor_limit() -> None:
    """Each stream needs a descriptor, and the usual soft limit is 1024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
