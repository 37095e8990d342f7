"""nginx with nchan: starts it and publishes to it over one connection kept alive.

    nchan.py CORE MODULE

nginx's one worker runs on CORE; it is the process to measure.
"""

import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path

from pace import obey

CONFIGURATION = """
load_module {module}; daemon off; pid {folder}/pid; error_log stderr error;
worker_processes 1; worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
  access_log off; tcp_nodelay on; client_body_temp_path {folder};
  keepalive_requests 100000000; nchan_message_buffer_length 1000;
  server {{
    listen 127.0.0.1:{port};
    location = /pub {{ nchan_publisher; nchan_channel_id events; }}
    location = /sse {{
      nchan_subscriber eventsource;
      nchan_channel_id events;
      nchan_subscriber_first_message newest;
    }}
  }}
}}
"""
START_SECONDS = 10


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def connect(nginx, port):
    """A connection to it as soon as it listens."""
    deadline = time.monotonic() + START_SECONDS
    while nginx.returncode is None and time.monotonic() < deadline:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
    raise SystemExit("nginx did not start")


class Publisher:
    """POSTs, pipelined, and how many of them have no answer yet."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.pending = 0
        self.all_answered = asyncio.Event()

    def publish(self, datas, channel):
        head = "POST /pub HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        requests = (f"{head}{len(data)}\r\n\r\n{data}" for data in datas)
        self.writer.write("".join(requests).encode())
        self.pending += len(datas)
        self.all_answered.clear()

    async def read_answers(self):
        while True:
            head = await self.reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 20"):
                raise SystemExit(f"nchan answered {head!r}")
            await self.reader.readexactly(int(re.search(rb"Length: (\d+)", head)[1]))
            self.pending -= 1
            if not self.pending:
                self.all_answered.set()


async def main(core, module):
    with tempfile.TemporaryDirectory(prefix="sse-bench-nginx-") as folder:
        os.chmod(folder, 0o755)  # the worker is another user
        port = free_port()
        values = {"module": module, "folder": folder, "port": port}
        values["descriptors"] = os.sysconf("SC_OPEN_MAX")
        Path(folder, "nginx.conf").write_text(CONFIGURATION.format(**values))
        nginx = await asyncio.create_subprocess_exec(
            *("nginx", "-e", "stderr", "-p", folder, "-c", f"{folder}/nginx.conf"),
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {int(core)}),
        )
        try:
            publisher = Publisher(*await connect(nginx, port))
            answers = asyncio.create_task(publisher.read_answers())
            children = Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children")
            (worker,) = children.read_text().split()
            await obey(port, publisher.publish, publisher.all_answered.wait, worker)
            answers.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                nginx.terminate()
            await nginx.wait()


asyncio.run(main(*sys.argv[1:]))
