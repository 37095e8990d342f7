"""What a history file costs: ``history_file.py FILE``; prints one line of JSON."""

import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

from sse_server import SSEServer


def publish_us(server):
    times = []
    for _ in range(3000):
        started = time.perf_counter()
        server.publish("x" * 100)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def main(file):
    ours = pathlib.Path(__file__).with_name("ours.py")
    command, pipe = [sys.executable, ours, "1000", file], subprocess.PIPE
    publisher, late = SSEServer(port=None, history_file=file), []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as serving:
        port = int(serving.stdout.readline().split()[1])
        time.sleep(0.5)  # until it is done with its start
        used = pathlib.Path(f"/proc/{serving.pid}/schedstat")
        before = int(used.read_text().split()[0])  # nanoseconds
        time.sleep(3)
        idle = (int(used.read_text().split()[0]) - before) / 3e9
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/sse") as stream:
            for _ in range(200):
                time.sleep(0.02)
                started = time.monotonic()
                publisher.publish("event")
                while stream.readline() != b"data: event\n":
                    pass
                late.append(time.monotonic() - started)
        serving.stdin.close()
    found = {"file_event_p99": sorted(late)[-2] * 1e3, "file_idle": idle * 100}
    found["file_publish"] = publish_us(publisher)
    found["file_times"] = found["file_publish"] / publish_us(SSEServer(port=None))
    print(json.dumps(found))


main(sys.argv[1])
