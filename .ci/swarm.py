"""Clients that misbehave, hundreds in one process, and what they have seen.

Each keeps a transcript: ("start",) where it connects without a Last-Event-ID,
("event", id, crc of the data) and ("gap", id, reason).  The id is that of the client
then, so that an event without one shows the one before.  `verify` compares the
transcript with the record of what was published.
"""

import bisect
import collections
import contextlib
import json
import random
import selectors
import socket
import time
import zlib

from common import KIB, Client, reset

CHANNEL_SETS = [(), ("a",), ("a", "b"), ("a", "b", "c", "d")]
# What a client does next: how often, and for how many seconds (from, to).
MOODS = {
    "read": (50, 1.0, 5.0),
    "slow": (15, 1.0, 5.0),
    "stall": (15, 0.5, 5.0),
    "reset": (7, 0.0, 1.5),
    "close": (7, 0.0, 1.5),
    "half-close": (6, 5.0, 5.0),
}
SLOW_BYTES = 3000  # each tick
TICK = 0.05  # seconds
AWAY = ("reset", "close", "wait")


class Chaotic:
    """One client: a mood, a connection or none, and its transcript."""

    def __init__(self, swarm, number, channels, chance):
        self.channels = channels
        self.transcript = []
        self.counts = collections.Counter()
        self.seen = 0  # events
        self.ends_seen = 0  # of its channels: the last event of the storm
        self.connection = None
        self._swarm, self._chance = swarm, chance
        self._small = number % 3 > 0  # a small receive buffer stalls soon
        self._last_id = ""
        self._patient = True  # has read all the time on this connection
        self._mood, self._until = "wait", 0.0

    @property
    def finished(self):
        return self.ends_seen >= max(1, len(self.channels))

    def tick(self, now, calm):
        """Do what is due; `calm`: only come back and read."""
        if calm and self._mood in ("slow", "stall"):
            self._until = now
        if now >= self._until:
            if self._mood in AWAY:
                self._connect(now)
            elif not calm:
                self._change_mood(now)
            elif self._mood != "half-close":
                self._read_on()
        if self._mood == "slow":
            self.receive(SLOW_BYTES)

    def _read_on(self):
        self._mood = "read"
        self._swarm.watch(self, True)

    def _change_mood(self, now):
        weights = [weight for weight, _, _ in MOODS.values()]
        self._mood = self._chance.choices(list(MOODS), weights)[0]
        _, low, high = MOODS[self._mood]
        self._until = now + self._chance.uniform(low, high)
        self.counts[self._mood] += 1
        self._patient = self._patient and self._mood not in ("slow", "stall")
        self._swarm.watch(self, self._mood in ("read", "half-close"))
        if self._mood == "half-close":
            with contextlib.suppress(OSError):  # the server was faster
                self.connection.socket.shutdown(socket.SHUT_WR)
        elif self._mood in AWAY:
            if self._mood == "reset":
                reset(self.connection.socket)
            self._disconnect()

    def _connect(self, now):
        self._mood = "wait"
        self._until = now + self._chance.uniform(0.05, 0.5)
        version = self._chance.choice(["1.1", "1.1", "1.0"])
        asked = {"version": version, "channels": self.channels}
        asked.update(last_id=self._last_id, by_query=self._chance.random() < 0.3)
        asked.update(gzip=self._chance.random() < 0.5)
        try:
            self.connection = Client(self._swarm.address, 5, self._small, **asked)
        except OSError:
            self.counts["refused"] += 1
            return
        self.connection.socket.setblocking(False)
        self.counts[f"HTTP/{version}"] += 1
        if not self._last_id:
            self.transcript.append(("start",))
        self._patient = True
        self._read_on()
        self._until = now + self._chance.uniform(0.2, 3)

    def _disconnect(self):
        self._swarm.watch(self, False)
        self.connection.close()
        self.connection = None
        if self._mood not in AWAY:
            self._mood = "wait"
            self._until = time.monotonic() + self._chance.uniform(0, 0.5)

    def receive(self, size=256 * KIB):
        stream = self.connection.stream
        opened = stream.opened
        try:
            for event in self.connection.receive(size):
                self._take(*event)
            self._last_id = stream.decoder.last_id
            gzip = stream.opened and not opened and stream.inflater
            self.counts["compressed"] += bool(gzip)
        except BlockingIOError:
            pass
        except EOFError:
            if self._mood == "half-close" and self._patient:
                self.counts[f"half-closed, {'ended' if stream.ended else 'cut'}"] += 1
            self._disconnect()
        except OSError:
            self.counts["reset by the server"] += 1
            self._disconnect()

    def _take(self, name_id, name, data):
        if name == "gap":
            self.transcript.append(("gap", name_id, json.loads(data)["reason"]))
            return
        self.transcript.append(("event", name_id, zlib.crc32(data)))
        self.seen += 1
        self.ends_seen += data == b"end"


class Swarm:
    """Runs the clients in one selector loop until told that the storm is over."""

    def __init__(self, address, count, seed, seen, channel_sets=CHANNEL_SETS):
        self.address = address
        self._seen = seen  # shared with who waits for enough
        self._selector = selectors.DefaultSelector()
        self._watched = set()
        self.clients = []
        for number in range(count):
            channels = channel_sets[number % len(channel_sets)]
            chance = random.Random(f"{seed}-{number}")
            self.clients.append(Chaotic(self, number, channels, chance))

    def watch(self, client, wanted):
        if wanted and client not in self._watched:
            self._watched.add(client)
            sock = client.connection.socket
            self._selector.register(sock, selectors.EVENT_READ, client)
        elif not wanted and client in self._watched:
            self._watched.remove(client)
            self._selector.unregister(client.connection.socket)

    def run(self, is_calm, patience=60):
        """Until `is_calm()`, then until each has seen the end, or gave up waiting."""
        due = time.monotonic()
        give_up = None
        while True:
            for key, _ in self._selector.select(max(0, due - time.monotonic())):
                if key.data in self._watched:
                    key.data.receive()
            now = time.monotonic()
            if now < due:
                continue
            due = now + TICK
            calm = is_calm()
            for client in self.clients:
                client.tick(now, calm)
            self._seen.value = sum(client.seen for client in self.clients)
            if calm:
                give_up = give_up or now + patience
                finished = all(client.finished for client in self.clients)
                if finished or now > give_up:
                    break
        for client in self.clients:
            if client.connection:
                client.connection.close()


class Record:
    """What was published, by epoch and number, from the storms' files."""

    def __init__(self, paths):
        self._events = {}  # (epoch, number): (channel, crc)
        self.retained = {}  # crc: (place, channel, name)
        for path in paths:
            for id, channel, name, crc in lines_of(path):
                place = parse_id(id)
                self._events[place] = (channel, crc)
                if name:
                    self.retained[crc] = (place, channel, name)
        # In the order of the servers.
        self._epochs = list(dict.fromkeys(epoch for epoch, _ in self._events))
        self._by_channel = collections.defaultdict(list)
        for (epoch, number), (channel, _) in sorted(self._events.items()):
            self._by_channel[epoch, channel].append(number)

    def __len__(self):
        return len(self._events)

    def get(self, place):
        return self._events.get(place, (None, None))

    def between(self, channels, epoch, low, high):
        """How many events of the channels there are after low and before high."""
        lists = [self._by_channel[epoch, channel] for channel in channels]
        count = lambda it: bisect.bisect_left(it, high) - bisect.bisect_right(it, low)
        return sum(max(0, count(numbers)) for numbers in lists)

    def state(self, channels):
        """What is retained in the end: the crc of the newest by channel and name."""
        in_order = sorted(self.retained.items(), key=lambda item: item[1][0])
        return {
            (channel, name): crc
            for crc, (place, channel, name) in in_order
            if channel in channels and place[0] == self._epochs[-1]
        }

    def after(self, channels, place):
        """How many events of the channels follow, to the end of the last epoch."""
        if place is None or place[0] != self._epochs[-1]:
            return float("inf")
        return self.between(channels, *place, float("inf"))

    def later(self, epoch, other):
        epochs = self._epochs
        known = epoch in epochs and other in epochs
        return known and epochs.index(epoch) > epochs.index(other)


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def parse_id(name):
    epoch, _, number = name.rpartition("-")
    return epoch, int(number)


def verified(swarm, records):
    """What the clients did and saw, counted, and what is wrong in it."""
    record = Record(records)
    counts, wrong = collections.Counter(published=len(record)), []
    for client in swarm.clients:
        counts.update(client.counts)
        counts.update(item[0] for item in client.transcript)
        faults = verify(client.transcript, client.channels, record)
        wrong += [f"{client.channels} {fault}" for fault in faults]
    return counts, wrong


def verify(transcript, channels, record):
    """What is wrong in a transcript: in order, none twice, each hole announced once,
    and in the end the state is the publisher's."""
    channels = channels or (None,)
    place = None  # of what the client was given last
    gap = None  # one that has no id: what is retained follows, and says where it ends
    state = {}
    wrong = []
    for kind, *rest in transcript:
        if kind == "start":
            place, gap, state = None, None, {}
            continue
        before, place = place, parse_id(rest[0]) if rest[0] else None
        fault = None
        if kind == "gap":
            state = {}
            gap = rest[1] if place == before else None
            if not gap:
                fault = _gap_fault(before, place, rest[1], channels, record)
        else:
            crc = rest[1]
            ends = before is None and record.get(place)[1] != crc
            if place == before or gap or ends:
                fault = _state_fault(before, place, crc, gap, channels, record)
                gap = gap if place == before else None
            else:
                fault = _event_fault(before, place, crc, channels, record)
            found = record.retained.get(crc)
            if found:
                state[found[1:]] = crc
        if fault:
            wrong.append(f"{fault}: {kind} {rest} after {before}")
    missing = record.after(channels, place)
    if missing:
        wrong.append(f"{missing} events missing at the end, after {place}")
    expected = record.state(channels)
    different = {k for k in {*expected, *state} if expected.get(k) != state.get(k)}
    if different:
        wrong.append(f"the state is another one in {different}")
    return wrong


def _state_fault(before, place, crc, gap, channels, record):
    """Of a retained event that was sent ahead of the others, after `gap` if that is set.

    The last one has the id of the client's place from then on.
    """
    found = record.retained.get(crc)
    if not found:
        return "not retained, and without an id of its own"
    if found[1] not in channels:
        return f"retained in channel {found[1]}, which was not asked for"
    if place == before:
        return None if gap or before is None else "a retained event, and no gap before"
    if found[0] > place:
        return "newer than the place that it leads to"
    return _gap_fault(before, place, gap, channels, record) if gap else None


def _gap_fault(before, place, reason, channels, record):
    if before is None:  # from where is not known
        return None if reason == "history" else "gap without a Last-Event-ID"
    if before[0] != place[0]:
        good = reason == "unknown id" and record.later(place[0], before[0])
        return None if good else "gap between epochs in the wrong order"
    hole = record.between(channels, place[0], before[1], place[1] + 1)
    return None if hole else "gap without a hole"


def _event_fault(before, place, crc, channels, record):
    channel, published = record.get(place)
    if crc != published:
        return "data differ, or never published"
    if channel not in channels:
        return f"channel {channel} was not asked for"
    if before and before[0] != place[0]:
        return "another epoch without a gap"
    if before and before[1] >= place[1]:
        return "twice or out of order"
    hole = before and record.between(channels, place[0], before[1], place[1])
    return "a hole that was not announced" if hole else None
