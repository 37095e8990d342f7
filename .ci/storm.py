"""Three threads that publish at random speed and note what they published."""

import json
import random
import threading
import zlib

CHANNELS = [None, "a", "b", "c", "d"]
# Moods of a publisher: events at once, seconds between, how often the mood comes.
MOODS = [(1, 0.05, 4), (1, 0.01, 4), (5, 0.02, 3), (60, 0.4, 1), (400, 1.0, 1)]
# An event that has a name is retained.  Seldom, so that what is retained is older than
# the history, and some are published but once.
NAMES = [None] * 300 + ["one", "two", "three"]
LASTING = ["lasts", "lasts, too"]
SIZES = [20, 60, 300, 1000, 4000, 40_000]  # characters of an event, about
SIZE_WEIGHTS = [30, 30, 20, 15, 5, 0.2]
FILLER = "ab cd\nef \u00e9\u2028\U0001f600 gh\n ij"  # what may go wrong on the wire


class Storm:
    """Publishes until it is stopped; then the record's file is complete.

    A line of the record is [id, channel, name, crc of the data].
    """

    def __init__(self, server, record, seed):
        self._server = server
        self._record = open(record, "a", encoding="utf-8")  # noqa: SIM115
        self._lock = threading.Lock()  # guards the record
        self._seed = seed
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}-{t}"), t))
            for t in range(3)
        ]

    def start(self):
        for number, name in enumerate(LASTING):
            for channel in CHANNELS:
                self._publish(f"{self._seed} {channel} {number}", channel, name)
        for thread in self._threads:
            thread.start()

    def stop(self):
        """Let the threads end, then tell each channel that it was all."""
        self.abandon(last=[("end", channel) for channel in CHANNELS])

    def abandon(self, last=()):
        """Let the threads end, publish the last events, complete the record."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for data, channel in last:
            self._publish(data, channel, None)
        self._record.close()

    def _run(self, chance, thread):
        number = 0
        while not self._stopping.is_set():
            burst, pause, _ = chance.choices(MOODS, [mood[2] for mood in MOODS])[0]
            for _ in range(chance.randrange(5, 30) if burst < 60 else 1):
                for _ in range(burst):
                    number += 1
                    size = chance.choices(SIZES, SIZE_WEIGHTS)[0]
                    filler = FILLER * (size // len(FILLER))
                    channel = chance.choice(CHANNELS)
                    data = f"{self._seed} {thread} {number} {filler}"
                    self._publish(data, channel, chance.choice(NAMES))
                self._stopping.wait(pause * chance.uniform(0.5, 1.5))

    def _publish(self, data, channel, name):
        try:
            how = {"event": name, "retain": name is not None}
            id = self._server.publish(data, channel=channel, **how)
        except RuntimeError:  # the server ends in the middle of the storm
            self._stopping.set()
            return
        with self._lock:
            line = json.dumps([id, channel, name, zlib.crc32(data.encode())])
            self._record.write(line + "\n")
