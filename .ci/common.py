"""What the checks, in folders of their own, share: a report, waiting, the server under
test in a process of its own, and clients that decode its streams.

The stream is decoded as the HTML standard (9.2.5, 9.2.6) and RFC 9112 (7.1) say; nothing
here uses the module that is checked.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import select
import selectors
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

CI = pathlib.Path(__file__).resolve().parent
MODULE = CI.parent / "sse_server.py"
KIB, MIB = 1024, 1024 * 1024
PATIENCE = 30.0  # seconds that anything awaited may take on a busy machine
IN_PRIVATE_NETWORK = "SSE_SCALE_IN_PRIVATE_NETWORK"
CPUCLOCK_SCHED = 2  # the kind of clock, in nanoseconds


class Failure(Exception):
    """A check's finding, in words."""


def expect(condition, problem):
    if not condition:
        raise Failure(problem)


class Report:
    """Prints PASS or FAIL for each case, and the closing line."""

    def __init__(self, part):
        self.part, self._start = part, time.monotonic()
        self._counts = collections.Counter()

    def check(self, name, good, *notes):
        """One case, whose outcome is known."""
        verdict = "PASS" if good else "FAIL"
        self._counts[verdict] += 1
        suffix = f" ({'; '.join(notes)})" if any(notes) else ""
        print(f"{verdict} {self.part}: {name}{suffix}", flush=True)

    @contextlib.contextmanager
    def case(self, name):
        """Passes when its block ends, fails with what the block raised.

        What the block appends to the list that it gets is printed behind the name.
        """
        notes = []
        try:
            yield notes
        except Exception as problem:
            self.check(name, False, f"{type(problem).__name__}: {problem}", *notes)
            if not isinstance(problem, Failure):
                traceback.print_exc()
        else:
            self.check(name, True, *notes)

    def faultless(self, name, faults, *notes):
        """A case that passes where nothing was wrong; the first faults are printed."""
        for fault in faults[:5]:
            self.note(fault)
        self.check(name, not faults, f"{len(faults)} wrong", *notes)

    def note(self, text):
        print(f"     {text}", flush=True)

    def close(self):
        """The closing line, and the exit status."""
        passed, failed = self._counts["PASS"], self._counts["FAIL"]
        seconds = f"{time.monotonic() - self._start:.0f} s"
        print(f"{self.part}: {passed} passed, {failed} failed in {seconds}", flush=True)
        return 0 if passed and not failed else 1


def arguments(text, **defaults):
    """The command line of a check: --seed, --python, and --NAME for each default."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name, value in {"python": sys.executable, **defaults}.items():
        several = isinstance(value, list)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=type(value[0] if several else value),
            nargs="+" if several else None,
            default=value,
        )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return options


def run_checks(part, text, *checks, **defaults):
    """The checks of a file, or those that --only names; the exit status."""
    by_name = {check.__name__: check for check in checks}
    options = arguments(text, only=[*by_name], **defaults)
    report = Report(part)
    for name in options.only:
        try:
            by_name[name](report, options)
        except Exception as error:
            report.check(name, False, repr(error))
            traceback.print_exc()
    return report.close()


# Waiting for what can be observed.


def wait_until(condition, seconds, period=0.02):
    """Whether the condition came true in time; if so, what it returned."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()):
        if time.monotonic() > deadline:
            return False
        time.sleep(period)
    return holds


def until(condition, what, within=30.0):
    """Wait until the condition holds, and return what it returned; else fail.

    what: the words, or a function that finds them, for the failure.
    """
    holds = wait_until(condition, within)
    if not holds:
        _fail(what, within)
    return holds


async def until_async(condition, what, within=15.0):
    """As until(), in an event loop."""
    deadline = time.monotonic() + within
    while True:
        if holds := condition():
            return holds
        if time.monotonic() > deadline:
            _fail(what, within)
        await asyncio.sleep(0.01)


def _fail(what, within):
    raise Failure(f"not within {within:g} s: {what() if callable(what) else what}")


# Processes.


def free_port():
    """A port below the range that outgoing connections take theirs from: a server that
    is stopped finds it free when it starts again."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def process_cpu(pid):
    """The seconds that a process has computed, by its clock; see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def raise_descriptor_limit():
    """As LimitNOFILE= does for a service; programs started from here inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def enter_private_network():
    """Start again in an empty network, where the usual ports are free for us.

    The recipes then run as they stand, with the ports that they name.
    """
    if IN_PRIVATE_NETWORK in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    enter = ["unshare", "--net"]
    if os.geteuid() != 0:
        enter += ["--user", "--map-current-user", "--keep-caps"]
    if subprocess.run([*enter, "true"], check=False).returncode:
        sys.exit("FAIL: no network of its own here; needs root or user namespaces")
    os.environ[IN_PRIVATE_NETWORK] = "1"
    os.execvp(enter[0], [*enter, sys.executable, *sys.argv])


def version_of(python):
    """The version of a Python, for the report."""
    command = [python, "-c", "import sys; print(sys.version.split()[0])"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def words_of(command):
    """A command, as words or as text; `python` is this one, without a buffer."""
    words = command.split() if isinstance(command, str) else [*map(str, command)]
    return [sys.executable, "-u", *words[1:]] if words[0] == "python" else words


def run(command, *more, **options):
    """A program that ends by itself, and what it said."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, **options}
    return subprocess.run([*words_of(command), *more], check=False, **options)


def listening(port):
    """The sockets that listen on a port, as descriptors are linked to them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":
                found.add(f"socket:[{fields[9]}]")
    return found


class Program:
    """A process of ours whose output is kept, and goes into a failure's text; with a
    port, it has started when it listens."""

    def __init__(self, command, folder=None, *, port=None, env=None, **options):
        self.command, self.port = words_of(command), port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this
        kept = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        environment = {**os.environ, **(env or {})}
        self._how = {"cwd": folder, "env": environment, **kept, **options}
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, **self._how)
        if self.port:
            until(self._has_started, f"{self.command[:3]} listens on {self.port}")

    def _has_started(self):
        if self.process.poll() is not None:
            raise Failure(f"{self.command[:3]} ended: {self.output()[-1500:]}")
        return self.listens()

    def listens(self):
        """Whether this very process listens: another one may on the same port."""
        descriptors = pathlib.Path(f"/proc/{self.pid}/fd").iterdir()
        with contextlib.suppress(FileNotFoundError):  # one that was closed meanwhile
            return bool({os.readlink(d) for d in descriptors} & listening(self.port))
        return False

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return os.pread(self._log.fileno(), 2**24, 0).decode("utf-8", "replace")

    def hear(self, seconds):
        """The next line that it says to us, where that is a pipe."""
        said = self.process.stdout
        line = select.select([said], [], [], seconds)[0] and said.readline()
        if not line:
            raise Failure(f"{self.command[:3]} says nothing: {self.output()[-1000:]}")
        return line

    def rss(self):
        """The bytes of memory that it has resident."""
        pages = int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def stop(self, number=signal.SIGTERM):
        """As a service manager does; the exit status.  By force if it is too late."""
        if self.process.poll() is None:
            self.signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.command[:3]} did not end at {number!r}") from None

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As the kernel does when memory is short: no farewell."""
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
        self.stop()


class Server(Program):
    """server.py in a process of its own, on 127.0.0.1: starts it, asks it, ends it."""

    def __init__(self, python=sys.executable, **options):
        options.setdefault("host", "127.0.0.1")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        super().__init__([python, CI / "server.py", json.dumps(options)], **pipes)
        self.port = self.answer(30)["port"]
        self.address = (options["host"], self.port)
        self.url = f"http://127.0.0.1:{self.port}/sse"

    def send(self, do, **parameters):
        """Give a command without waiting for what it answers."""
        print(json.dumps({"do": do, **parameters}), file=self.process.stdin, flush=True)

    def ask(self, do, timeout=60, **parameters):
        self.send(do, **parameters)
        return self.answer(timeout)

    def answer(self, timeout=60):
        """The answer to what was sent."""
        return json.loads(self.hear(timeout))

    def publish(self, *events):
        """Publish events (each a dict, or just the data); returns their ids."""
        events = [e if isinstance(e, dict) else {"data": e} for e in events]
        return self.ask("publish", events=events)["ids"]

    def streams(self):
        """How many are open."""
        stats = self.ask("stats")
        return stats["live"] + stats["behind"]

    def compressed(self):
        """How many of them are."""
        return self.ask("compressed")["streams"]

    def __exit__(self, *_):
        with self.process:  # which closes its pipes
            self.kill()


class Child:
    """A function in a process that is forked for it."""

    def __init__(self, function, *parameters):
        self._here, there = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        run = lambda: there.send(function(*parameters))
        self.process = context.Process(target=run)
        self.process.start()
        there.close()

    def result(self, timeout=120):
        """What the function returned."""
        expect(self._here.poll(timeout), "a process of clients has no result")
        result = self._here.recv()
        self.process.join()
        return result


# Clients.


class Decoder:
    """Decodes an event stream: `feed` gives (last id, event's name, data) each.

    It refuses what the standard allows and this server does not send: lines that end
    with CR, and unknown fields.
    """

    def __init__(self, last_id=""):
        self.last_id = self._id = last_id  # of the last event that was dispatched
        self.retry = None  # milliseconds
        self.comments = 0
        self._rest, self._name, self._data = b"", "", []

    def feed(self, received):
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            if line.endswith(b"\r"):
                raise ValueError(f"a line with a CR: {line[:80]!r}")
            if line:
                self._field(line)
                continue
            self.last_id = self._id
            if self._data:
                name = self._name or "message"
                events.append((self._id, name, b"\n".join(self._data)))
            self._name, self._data = "", []
        return events

    def _field(self, line):
        name, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            self._data.append(value)
        elif name == b"id":
            self._id = value.decode()
        elif name == b"event":
            self._name = value.decode()
        elif name == b"retry":
            self.retry = int(value)
        elif not name:
            self.comments += 1
        else:
            raise ValueError(f"an unknown field: {line[:80]!r}")


class Dechunker:
    """Takes the chunks off."""

    def __init__(self):
        self.ended = False  # the last chunk has come
        self._rest = bytearray()

    def feed(self, received):
        """The chunks that are complete."""
        self._rest += received
        while not self.ended and (end := self._rest.find(b"\r\n")) >= 0:
            size = int(self._rest[:end], 16)
            whole = end + 2 + size + 2
            if len(self._rest) < whole:
                break
            if self._rest[whole - 2 : whole] != b"\r\n":
                raise ValueError("a chunk is longer than its size")
            yield bytes(self._rest[end + 2 : whole - 2])
            del self._rest[:whole]
            self.ended = not size


class Stream:
    """What a client has received on one connection: head, chunks, events."""

    def __init__(self, version="1.1", last_id=""):
        self.decoder = Decoder(last_id)
        self.opened = False  # the head has come
        self.inflater = None  # where the stream is compressed
        self._version = version
        self._dechunker = Dechunker() if version == "1.1" else None
        self._head = b""

    @property
    def ended(self):
        """Whether the body was ended as its framing demands, or has no framing."""
        return self._dechunker is None or self._dechunker.ended

    def feed(self, received):
        if not self.opened:
            head, end, received = (self._head + received).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return []
            self._check(head)
            self.opened = True
        if self._dechunker is None:
            return self.decoder.feed(received)
        events = []
        for chunk in self._dechunker.feed(received):
            text = self.inflater.decompress(chunk) if self.inflater else chunk
            if chunk and not text.endswith(b"\n"):
                raise ValueError("a chunk ends within a line, or cannot be decoded yet")
            events += self.decoder.feed(text)
        return events

    def _check(self, head):
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise ValueError(f"not a stream: {head!r}")
        head = head.lower()
        if b"\r\ncontent-length:" in head:
            self._dechunker = None  # it is to come back: the server ends, or is full
            return
        chunked = b"\r\ntransfer-encoding: chunked" in head
        if chunked != (self._version == "1.1"):
            raise ValueError(f"wrong framing for HTTP/{self._version}: {head!r}")
        if b"\r\ncontent-encoding: gzip" in head:
            self.inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)


def request(version="1.1", channels=(), last_id="", target="/sse", **how):
    """The bytes of a request for a stream; how: `by_query`, `gzip`."""
    query = [f"channel={channel}" for channel in channels]
    fields = ["Host: localhost", "Accept: text/event-stream"]
    fields += ["Accept-Encoding: gzip"] * how.get("gzip", False)
    if last_id and how.get("by_query"):
        query.append(f"last_event_id={last_id}")
    elif last_id:
        fields.append(f"Last-Event-ID: {last_id}")
    target += "?" + "&".join(query) if query else ""
    return "\r\n".join([f"GET {target} HTTP/{version}", *fields, "", ""]).encode()


def connect(address, small=False, tls=False, timeout=30, source=""):
    """A socket; `small`: with a receive buffer that is soon full.

    The loopback's segments of 64 KiB would never fit into that, and the peer's kernel
    would send by its timer alone; with Ethernet's they do.
    """
    sock = socket.socket()
    sock.settimeout(timeout)
    if small:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)
    if source:
        sock.bind((source, 0))
    sock.connect(address)
    return tls_context().wrap_socket(sock) if tls else sock


def tls_context():
    """A client's, which trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def reset(sock):
    """Close with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Client:
    """One connection with a stream on it, which blocks until it is in a crowd."""

    def __init__(self, address, timeout=30, small=False, tls=False, source="", **asked):
        self.socket = connect(address, small, tls, timeout, source)
        self.socket.sendall(request(**asked))
        self.stream = Stream(asked.get("version", "1.1"), asked.get("last_id", ""))
        self.received = 0  # bytes
        self._events = []

    def open(self):
        """Wait until the stream is open; return the client itself."""
        while not self.stream.opened:
            self._events += self.receive()
        return self

    def next(self):
        """The next event; EOFError at the end of the stream."""
        while not self._events:
            self._events += self.receive()
        return self._events.pop(0)

    def rest(self):
        """All events until the connection ends."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self._events += self.receive()
        return self.taken()

    def taken(self):
        """The events that were received and not asked for yet."""
        events, self._events = self._events, []
        return events

    def receive(self, size=256 * KIB):
        """The events of what is received at once; EOFError at the end."""
        received = self.socket.recv(size)
        if not received:
            raise EOFError("the stream ended")
        self.received += len(received)
        return self.stream.feed(received)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Crowd:
    """Many clients in one loop, each with a function that takes its events.

    The function gets (id, name, data), or None at the end, and returns None to go on,
    "" if all has come, or what is wrong.  One with a rate reads so many bytes a second.
    """

    def __init__(self, clients, taker, rates=None):
        self._selector = selectors.DefaultSelector()
        self._resting = []  # those with a rate that have read their share
        self.faults = []
        for number, client in enumerate(clients):
            client.take = taker(client)
            client.rate, client.due = rates and rates[number], time.monotonic()
            client.socket.setblocking(False)
            self._go_on(client, self._take(client, client.taken()))

    def run(self, seconds, all_must_end=True):
        """Until all are done or the time is over; what was wrong."""
        deadline = time.monotonic() + seconds
        while self._selector.get_map() or self._resting:
            now = time.monotonic()
            if now > deadline:
                break
            for client in [one for one in self._resting if one.due <= now]:
                self._resting.remove(client)
                self._go_on(client, None)
            for key, _ in self._selector.select(0.02 if self._resting else 0.2):
                client, outcome = key.data, self._read(key.data)
                if outcome is None and not client.rate:
                    continue
                self._selector.unregister(client.socket)
                if outcome is None:
                    client.due += 0.1  # so that it catches up where this was late
                    self._resting.append(client)
                self.faults += [outcome] * bool(outcome)
        left = len(self._selector.get_map()) + len(self._resting)
        return self.faults + ["not all has come"] * left * all_must_end

    def _go_on(self, client, outcome):
        if outcome is None:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        else:
            self.faults += [outcome] * bool(outcome)

    def _read(self, client):
        try:
            events = client.receive(int(client.rate / 10) if client.rate else 256 * KIB)
            while isinstance(client.socket, ssl.SSLSocket) and client.socket.pending():
                events += client.receive()
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except EOFError:
            return client.take(None) or ""
        except (OSError, ValueError) as error:
            return repr(error)
        return self._take(client, events)

    def _take(self, client, events):
        outcomes = map(client.take, events)
        return next((outcome for outcome in outcomes if outcome is not None), None)


class Cutting:
    """A relay of streams: in the middle of an event's data it resets those connections
    of which `is_due(number, events)` says so."""

    def __init__(self, port, is_due):
        self._port, self._is_due = port, is_due
        self.connections = self.cuts = 0

    async def __call__(self, reader, writer):
        self.connections += 1
        number, events, upstream, due = self.connections, 0, None, False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            source, upstream = await asyncio.open_connection("127.0.0.1", self._port)
            upstream.write(await reader.readuntil(b"\r\n\r\n"))
            while not due and (data := await source.read(65536)):
                events += data.count(b"data: ")
                if due := b"data: " in data and self._is_due(number, events):
                    self.cuts += 1
                    data = data[: data.rindex(b"data: ") + 8]
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        if upstream:
            upstream.transport.abort()


class Order:
    """Takes numbered events: none twice, each hole announced by one gap.

    last: the number that ends it.
    """

    def __init__(self, last=None):
        self.events = self.gaps = 0
        self.number = None  # of the last event
        self._last = last
        self._lost = False  # a gap was announced right before

    def __call__(self, event):
        if event is None:
            return f"the stream ended after {self.number}"
        if event[1] == "gap":
            self.gaps += 1
            twice, self._lost = self._lost, True
            return f"two gaps after {self.number}" if twice else None
        before, self.number = self.number, int(event[2].split(b" ")[0])
        follows = before is None or self.number == before + 1
        if not follows and not (self._lost and self.number > before):
            return f"{self.number} after {before}"
        self._lost = False
        self.events += 1
        return "" if self.number == self._last else None
