"""Several processes of watchers.py as one, and publishers of what they check."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import redis
from harness import HERE, PATIENCE, expect, until


class Fleet:
    """The clients of several processes; their states are added up."""

    def __init__(self, processes, clients, total, ports):
        self.clients = processes * clients
        self._states = [{} for _ in range(processes)]
        self.processes = []
        self._readers = []
        for number in range(processes):
            options = [ports[number], clients, total]
            process = subprocess.Popen(
                [sys.executable, HERE / "watchers.py", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self.processes.append(process)
            reader = threading.Thread(target=self._read, args=(number, process))
            reader.start()
            self._readers.append(reader)

    def _read(self, number, process):
        for line in process.stdout:
            self._states[number] = json.loads(line)

    def count(self, name):
        expect(all(p.poll() is None for p in self.processes), "a watchers.py ended")
        return sum(state.get(name, 0) for state in self._states)

    def all(self, name, within=PATIENCE):
        until(
            lambda: self.count(name) == self.clients,
            lambda: f"{name} {self.count(name)} of {self.clients}",
            within,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.stdin.close()
        for process, reader in zip(self.processes, self._readers):
            process.wait()
            reader.join()
            process.stdout.close()


class Publisher(threading.Thread):
    """Publishes the numbers to `total`, at a rate, through outages.

    After an error `newest` says which is the last that need not be published again.
    """

    failures = ()  # the errors that outages make

    def __init__(self, total, rate):
        super().__init__()
        self.total, self._rate = total, rate
        self._stopped = threading.Event()
        self.number = self.errors = 0

    def run(self):
        start = time.monotonic()
        while self.number < self.total and not self._stopped.is_set():
            due = start + self.number / self._rate
            self._stopped.wait(max(0, due - time.monotonic()))
            try:
                self.publish(self.number + 1)
                self.number += 1
            except self.failures:
                self.errors += 1
                self._stopped.wait(0.1)
                self.number = self.newest()

    def reached(self, share):
        """Wait until this share of the events is published."""
        number = share * self.total
        within = self.total / self._rate + PATIENCE
        until(lambda: self.number >= number, f"event {number:g}", within)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self.join()


class Adding(Publisher):
    """Adds them to a stream of Redis.  An XADD whose answer was lost may or may not have
    happened, so after an error it looks at the end of the stream."""

    failures = redis.RedisError

    def __init__(self, total, rate):
        super().__init__(total, rate)
        how = {"decode_responses": True, "retry": None, "socket_timeout": PATIENCE}
        self._client = redis.Redis(**how)
        # Number 1, from which on every client has an id to come back with.
        self.publish(1)
        self.number = 1

    def publish(self, number):
        self._client.xadd("events", {"data": number})

    def newest(self):
        with contextlib.suppress(redis.RedisError):
            newest = self._client.xrevrange("events", count=1)
            return int(newest[0][1]["data"])
        return self.number
