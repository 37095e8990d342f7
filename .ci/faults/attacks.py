#!/usr/bin/env python3
"""What one attacker costs the innocent, and in memory.

Fifty events a second go to ten streams while a process of its own does its worst.  99 of
100 deliveries should take less than 100 ms; they take 2 to 8 ms when all is quiet.  The
attackers, the innocent and the server share the cores, so an attack also passes if no
turn of the server's event loop takes 200 ms of CPU; then "late" stands beside it.  (Ten
streams of a server that nobody attacks tell how busy the machine is: twice as much as
theirs is allowed.  An attack that fails or is late is tried again after the others, and
once more.)  The memory may grow by so many KiB for each connection of the attacker, where
that is bounded by what README.md says of it, or from before the attack until after its
end.

usage: attacks.py [--only NAME ...] [--seconds S] [--python PYTHON] [--seed N]
"""

import contextlib
import ctypes
import multiprocessing
import os
import random
import selectors
import shutil
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field

import common
from common import KIB, MIB, Client, Server, connect, tls_context, wait_until

STREAMS = 10  # of the innocent
PERIOD = 0.02  # seconds between two events
LIMIT = 0.1  # seconds; 99 of 100 deliveries should be faster
TURN = 0.2  # seconds; twice the collector's pause over 9,000 streams of 100 channels
ATTEMPTS = 3  # at each attack, until the server withstands it on a busy machine
BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /sse HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


# The ways to attack; `begin()` says that it goes on from now.


def streams(address, count, begin, query="", fields=b"", turn=None, act=None):
    """Open streams (`{}` in the query: the number of each) and read, for ever, or anew
    after `turn` seconds; or `act` on them without end instead of reading."""
    while True:
        socks = []
        for number in range(count):
            socks.append(connect(address))
            asked = query(number) if callable(query) else query.format(number)
            line = f"GET /sse?{asked} HTTP/1.1\r\nHost: localhost\r\n"
            socks[-1].sendall(line.encode() + fields + b"\r\n")
        answer = socks[0].recv(12)
        assert answer == b"HTTP/1.1 200", answer  # else nothing is attacked
        begin()
        while act:
            act(socks)
        read_on(socks, turn)
        for sock in socks:
            sock.close()


def read_on(socks, seconds=None):
    """Throw away what comes."""
    deadline = time.monotonic() + (seconds or 3600)
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                with contextlib.suppress(OSError):
                    if key.fileobj.recv(MIB):
                        continue
                selector.unregister(key.fileobj)


def send_again(address, count, begin, data):
    """Send the same on so many connections; where one ends, open another."""
    selector = selectors.DefaultSelector()

    def open_one():
        sock = connect(address)
        sock.setblocking(False)
        selector.register(sock, BOTH, memoryview(data))

    def goes_on(sock, events, rest):
        with contextlib.suppress(OSError):
            if events & selectors.EVENT_READ:
                return sock.recv(MIB)
            rest = rest[sock.send(rest[: 64 * KIB]) :]
            selector.modify(sock, BOTH if rest else selectors.EVENT_READ, rest)
            return True
        return False

    for _ in range(count):
        open_one()
    begin()
    while True:
        for key, events in selector.select():
            if not goes_on(key.fileobj, events, key.data):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                open_one()


def at_once(address, count, begin, first, last, wait=0.0):
    """Connections that have sent `first`, and all send `last` in one moment (b"": their
    end), again and again."""
    begin()
    while True:
        socks = [connect(address) for _ in range(count)]
        for sock in socks:
            sock.sendall(first)
        time.sleep(0.1 + wait)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(last) if last else sock.shutdown(socket.SHUT_WR)
        read_on(socks, 2)
        for sock in socks:
            sock.close()


def read_nothing(address, count, begin, tls=False):
    """Connections that send requests until nothing more is taken, and never read."""
    socks = [connect(address, tls=tls) for _ in range(count)]
    full = 0
    for sock in socks:
        sock.setblocking(False)
    while full < 10:  # times 30 ms in which nothing more was taken
        full += 1
        for sock in socks:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                while sock.send(GET * 1000):
                    full = 0
        time.sleep(0.03)
    begin()
    time.sleep(3600)


def pour(address, count, begin, data, pause=0.0, size=MIB):
    """One connection, as many requests as the server takes; answers are read, slowly if
    there is a pause."""
    with connect(address) as sock, contextlib.suppress(OSError):

        def read():
            while sock.recv(size):
                time.sleep(pause)

        threading.Thread(target=read, daemon=True).start()
        begin()
        while True:
            sock.sendall(data)


def in_bursts(address, count, begin, burst, firsts):
    """Connections that send one of these and leave, so many at once."""
    begin()
    for _ in range(count // burst):
        sent = [(connect(address), firsts[n % len(firsts)]) for n in range(burst)]
        for sock, first in sent:
            sock.sendall(first)
        for sock, first in sent:
            if first == CLOSE:
                read_on([sock], 5)
            sock.close()


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        tls_context().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def key_updates(address, count, begin):
    """KeyUpdate records of TLS 1.3, 250 KB from each connection at once, on streams."""
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    library.SSL_get_version.restype = ctypes.c_char_p
    floods = []
    for _ in range(count):
        sock, incoming, outgoing = connect(address), ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = tls_context().wrap_bio(incoming, outgoing)
        for step in (tls.do_handshake, lambda tls=tls: tls.write(STREAM)):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(64 * KIB))
        sock.sendall(outgoing.read())
        # PySSLSocket begins with an object's head and a reference; then comes the SSL *.
        place = id(tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        pointer = ctypes.c_void_p.from_address(place)
        assert library.SSL_get_version(pointer) == b"TLSv1.3"
        floods.append((sock, outgoing, tls, pointer))
    begin()
    while True:
        for sock, outgoing, tls, pointer in floods:
            for _ in range(10_000):
                library.SSL_key_update(pointer, 0)
                tls.do_handshake()
            sock.sendall(outgoing.read())


def one_byte_each(socks):
    for sock in socks:
        sock.send(b"x")


def sleep(socks):
    time.sleep(1)


def slow(address, count, begin, how):
    """slowhttptest's clients."""
    begin()
    url = "http://{}:{}/sse".format(*address)
    words = f"slowhttptest {{}} -c {count} -r 100 -i 1 -l 60 -u {url}"
    path = shutil.which("slowhttptest", path=os.environ["PATH"] + ":/usr/bin")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(path, words.format(how).split())


@dataclass
class Attack:
    """A way to attack, with its parameters, and what is allowed."""

    name: str
    way: object
    count: int  # connections
    kib: float  # of memory for each of them
    parameters: dict = field(default_factory=dict)
    server: dict = field(default_factory=dict)  # its options
    ticks: dict = field(default_factory=dict)  # of the innocents' events
    prepare: object = None  # a function of the server, when the innocent are there
    after: bool = False  # the memory counts when the attack has ended
    seen: str = ""  # before the server withstood it


def big_events(server):
    chance = random.Random(1)
    for _ in range(15):
        words = " ".join(f"{chance.randrange(10**6)} word" for _ in range(90_000))
        server.publish({"data": words[: 10**6], "channel": "x"})


def retained(size):
    event = {"data": "x" * size, "channel": "x", "retain": True}
    events = [{**event, "event": f"{n}"} for n in range(1000)]
    return lambda server: server.publish(*events)


def channels(form, count=100):
    return "&".join(f"channel={form}".format(n=n) for n in range(count))


def every_tenth(number):
    return "&".join(f"channel={(number + 10 * n) % 1000}" for n in range(100))


BUFFERS = 140  # KiB: what was received, a batch, the objects (see README.md)
GZIP = {"fields": b"Accept-Encoding: gzip\r\n"}
CODED, TLS, ORDERED = {"compress": True}, {"tls": True}, {"id_order": "int"}
NUMBERED = {"numbered": True}
HELLO = client_hello()
HELLOS = {"first": HELLO[:-1], "last": HELLO[-1:]}  # complete in one moment
EARLY = {"burst": 100, "firsts": [b"", HELLO[:100], HELLO]}
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
TABLE = {"data": "a table, perhaps " * 224, "channel": "x"}
NOISE = {"data": os.urandom(MIB // 2).hex(), "channel": "x"}
TO_EACH_OF_1000 = [{"data": "to you", "channel": f"{n}"} for n in range(1000)]
ATTACKS = [
    Attack("heads that cost as much as they may, asked about each second", streams, 1000,
           30, {"query": channels("%41{n}"), "fields": b"a: b\r\n" * 198},
           ticks={"disconnect": True}),
    Attack("bodies in chunks of one byte each", send_again, 200, BUFFERS,
           {"data": CHUNKED + b"1\r\na\r\n" * 200_000}),
    Attack("heads of 4,080 fields, complete in one moment", at_once, 200, BUFFERS,
           {"first": b"GET / HTTP/1.0\r\n" + b"a:\r\n" * 4080 + b"\r", "last": b"\n"}),
    Attack("heads of 199 fields, all that is allowed, without pause", send_again, 200,
           BUFFERS, {"data": (GET[:-2] + b"a: b\r\n" * 198 + b"\r\n") * 1000}),
    Attack("streams of 100 channels each, no two alike", streams, 9000, 30,
           {"query": channels("{n}-{{0}}")}),
    Attack("streams of 100 channels each, all alike but for one", streams, 9000, 30,
           {"query": "channel=own{}&" + channels("{n}", 99)}),
    Attack("streams of 100 of 1,000 channels, an event to each of them", streams, 1000,
           30, {"query": every_tenth}, ticks={"beside": TO_EACH_OF_1000}),
    Attack("streams that resume by ids of 4,000 digits, again and again", streams, 500,
           BUFFERS, {"fields": b"Last-Event-ID: %b\r\n" % (b"9" * 4000), "turn": 0.01},
           ORDERED, NUMBERED),
    Attack("streams that wait for an event to come", streams, 5000, 10,
           {"fields": b"Last-Event-ID: %b\r\n" % (b"9" * 250)}, ORDERED, NUMBERED),
    Attack("streams that ask for 500 events, again and again", streams, 1000, BUFFERS,
           {"query": "channel=x&replay=500", "turn": 1.0}, prepare=retained(100)),
    Attack("streams that are new to 1,000 retained events, again and again", streams, 500,
           BUFFERS, {"query": "channel=x", "turn": 1.0}, prepare=retained(1000)),
    Attack("streams that read nothing of 16 MB that are retained", streams, 100, BUFFERS,
           {"query": "channel=x", "act": sleep}, {"history_bytes": 64 * MIB},
           prepare=retained(16_000)),
    Attack("one connection, as many requests as are taken", pour, 1, 4 * KIB,
           {"data": GET * 4000}),
    Attack("the same, each of them refused by authorize, the answers read slowly", pour,
           1, 4 * KIB, {"data": STREAM * 4000, "pause": 0.1, "size": 10 * KIB},
           {"door": True}, prepare=lambda s: s.ask("turn_away", status=403)),
    Attack("slow heads", slow, 200, BUFFERS, {"how": "-H"}),
    Attack("slow bodies", slow, 200, BUFFERS, {"how": "-B -s 8192"}),
    Attack("connections that send requests and read nothing", read_nothing, 400, 100),
    Attack("the same over TLS", read_nothing, 400, 200, TLS, TLS,
           seen="815 to 923 KiB each"),
    Attack("POST without a token, of 1 MB", send_again, 500, BUFFERS,
           {"data": POST % MIB + b"x" * (MIB - 1)}, seen="33 MiB became 712"),
    Attack("POST without a token, of 16 MB", send_again, 40, BUFFERS,
           {"data": POST % (16 * MIB) + b"x" * (16 * MIB - 1)},
           {"max_event_bytes": 16 * MIB}, seen="33 MiB became 674"),
    Attack("gzip and replay=all of 15 events of 1 MB", streams, 10, 4 * KIB,
           {"query": "channel=x&replay=all", "turn": 1.0, **GZIP}, CODED,
           prepare=big_events, seen="p99 466 ms"),
    Attack("gzip and an event of 1 MiB that cannot be compressed", streams, 10, 3 * KIB,
           {"query": "channel=x", **GZIP}, {**CODED, "max_event_bytes": 2 * MIB},
           {"beside": [NOISE]}),
    Attack("audiences of their own with gzip, an event of 3.8 kB", streams, 900, BUFFERS,
           {"query": "channel=x&channel=own{}", **GZIP}, CODED, {"beside": [TABLE]},
           seen="p99 77 to 281 ms"),
    Attack("audiences of their own with gzip", streams, 9000, 5,
           {"query": "channel=own{}", **GZIP}, CODED),
    Attack("ClientHellos at once", at_once, 300, 440, HELLOS, TLS, seen="p99 335 ms"),
    Attack("ClientHellos at once", at_once, 1000, 440, HELLOS, TLS, seen="p99 979 ms"),
    Attack("TLS that leaves before the handshake ends", in_bursts, 3000, 4, EARLY, TLS,
           after=True, seen="55 to 95 KiB each stayed"),
    Attack("KeyUpdates of TLS, 250 KB at once from each", key_updates, 6, 900, {}, TLS,
           seen="p99 547 ms"),
    Attack("open streams of a channel that send a byte at a time", streams, 9000, 10,
           {"query": "channel=x", "act": one_byte_each}, seen="p99 0.6 to 1.8 s"),
    Attack("empty lines in pieces of 64 KiB", send_again, 200, BUFFERS,
           {"data": b"\r\n" * (4 * MIB)}, seen="p99 261 ms, 267 KiB each"),
    Attack("half-closes at once", at_once, 2000, 10, {"first": STREAM, "last": b""},
           seen="p99 190 ms with 9,000"),
    Attack("short connections", in_bursts, 10_000, 0.5,
           {"burst": 2500, "firsts": [CLOSE]}, after=True,
           seen="27 MiB stayed of 70,000 on 3.11"),
]  # fmt: skip


# The innocent, and the verdict.


class Outcome:
    """An attack, once: what the innocent of the server felt, and those of another one,
    which nobody attacks, on the same machine at the same time."""

    def __init__(self, attack, options):
        self.skipped = None  # or why
        self.delays, self.calm = [], []  # seconds
        with (
            Server(options.python, **attack.server) as server,
            Server(options.python) as another,
        ):
            self._run(attack, server, another, int(options.seconds / PERIOD))

    def _run(self, attack, server, another, events):
        tls = attack.server.get("tls", False)
        clients = [Client(server.address, tls=tls).open() for _ in range(STREAMS)]
        others = [Client(another.address).open() for _ in range(STREAMS)]
        if attack.prepare:
            attack.prepare(server)
        before = self._peak = server.rss()
        with attacking(attack, server.address) as attacker:
            if not attacker:
                self.skipped = "it did not begin"
                return
            server.ask("longest_turn")
            another.send("tick", period=PERIOD, count=events)
            server.send("tick", period=PERIOD, count=events, **attack.ticks)

            def taker(client):
                calm = client in others
                return self._taker(server, self.calm if calm else self.delays, events)

            crowd = common.Crowd(clients + others, taker)
            self.faults = crowd.run(3 * events * PERIOD + 5)
            server.answer(120)
            if attack.after:
                attacker.join(120)
                self.faults += self._what_stays(attack, server, before)
            if attacker.exitcode:
                self.faults.append("the attacker failed")
        for client in clients + others:
            client.close()
        self.each = (self._peak - before) / attack.count / KIB
        self.turn = server.ask("longest_turn")["seconds"]
        self.limit = max(LIMIT, 2 * p99(self.calm))
        self.late = p99(self.delays) >= self.limit
        fast = not self.late or self.turn < TURN
        self.good = fast and not self.faults and self.each < attack.kib

    def _what_stays(self, attack, server, before):
        """Wait until the memory is free again, without the help of the collector."""
        peak, few = self._peak - before, attack.count * attack.kib * KIB

        def is_free():
            server.ask("trim")
            self._peak = server.rss()
            return self._peak - before < few

        freed = wait_until(is_free, 10, 0.2)
        return [] if freed else [f"{peak >> 20} MiB at the most"]

    def _taker(self, server, delays, left):
        def take(event):
            nonlocal left
            if event is None:
                return f"ended, {left} missing"
            delays.append(time.monotonic() - int(event[2]) / 1e9)
            left -= 1
            if len(delays) % 25 == 0:
                self._peak = max(self._peak, server.rss())
            return None if left else ""

        return take

    def report(self, report, attack):
        times = [p99(self.delays), self.limit, p99(self.calm)]
        ms = "p99 {:.0f} ms, {:.0f} allowed, {:.0f} unattacked"
        texts = [
            ms.format(*(1000 * seconds for seconds in times)),
            f"{self.each:.1f} KiB each{' stay' * attack.after}, {attack.kib} allowed",
            f"longest turn {self.turn * 1000:.0f} ms of CPU",
            self.late and "late",
            attack.seen and f"once {attack.seen}",
            *self.faults[:3],
        ]
        name = f"{attack.count} x {attack.name}"
        report.check(name, self.good, *filter(None, texts))


def p99(delays):
    return sorted(delays)[len(delays) * 99 // 100] if delays else float("inf")


@contextlib.contextmanager
def attacking(attack, address):
    """Its process, once the attack goes on; None if it does not begin."""
    begun = multiprocessing.Event()

    def run():
        os.nice(5)  # it is another machine's computing time that it takes
        attack.way(address, attack.count, begun.set, **attack.parameters)

    attacker = multiprocessing.get_context("fork").Process(target=run)
    attacker.start()
    try:
        wait_until(lambda: begun.is_set() or attacker.exitcode is not None, 60)
        yield attacker if begun.is_set() else None
    finally:
        attacker.kill()
        attacker.join()


def main():
    options = common.arguments(__doc__, only=[""], seconds=4.0)
    common.raise_descriptor_limit()
    report = common.Report("attacks")
    asked = lambda attack: any(word in attack.name for word in options.only)
    queue = [(attack, ATTEMPTS) for attack in ATTACKS if asked(attack)]
    while queue:
        attack, attempts = queue.pop(0)
        outcome = Outcome(attack, options)
        if outcome.skipped:
            report.note(f"skipped: {attack.name}: {outcome.skipped}")
        elif attempts == 1 or (outcome.good and not outcome.late):
            outcome.report(report, attack)
        else:
            queue.append((attack, attempts - 1))
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
