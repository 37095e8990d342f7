#!/usr/bin/env python3
"""The unit tests of connections, on another event loop or with eager tasks.

usage: tests.py uvloop|eager|asyncio
"""

import asyncio
import pathlib
import sys
import time
import unittest
from concurrent import futures

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import test_sse_server as tests

CLASSES = """Answer Authorize BroadcastOverTLS Broadcast Channel Compression
ConnectionOverTLS Connection DepartureOverTLS Departure DisconnectOverTLS Disconnect
EndingOverTLS Ending Failure Finish Full Iterator Lifetime Permission Post Presence
RequestsModel Resume Seam SlowClientOverTLS SlowClient StreamOverTLS Stream
SubscriberModel TLS Thread"""
LEFT_OUT_OF_UVLOOP = {
    # uvloop decides itself how much it reads
    "ConnectionTest": "test_a_client_is_read_by_32_kib_at_a_time",
    # a sweep writes to sockets only past asyncio's own transports
    "FailureTest": "test_who_leaves_during_a_sweep_is_not_written_to",
}


def use_uvloop():
    import uvloop

    class Loop(uvloop.Loop):
        """Its timers go by time.monotonic(), which the tests put forward."""

        def __init__(self):
            super().__init__()
            # The tests know the threads of asyncio's own executor by their names.
            self.set_default_executor(futures.ThreadPoolExecutor(None, "asyncio"))

        def time(self):
            return time.monotonic()

        def call_at(self, when, callback, *arguments, context=None):
            if when <= self.time():  # uvloop gives a handle that has no time, too
                return self.call_soon(callback, *arguments, context=context)
            timer = asyncio.TimerHandle(when, callback, arguments, self, context)
            self._look_at(timer)
            return timer

        def call_later(self, delay, callback, *arguments, context=None):
            when = self.time() + delay
            return self.call_at(when, callback, *arguments, context=context)

        def _look_at(self, timer):
            left = timer.when() - self.time()
            if timer.cancelled():
                return
            if left <= 0:
                self.call_soon(lambda: timer.cancelled() or timer._run())
            else:
                super().call_later(min(left, 0.002), self._look_at, timer)

        def _timer_handle_cancelled(self, timer):
            pass

    class Policy(uvloop.EventLoopPolicy):
        def _loop_factory(self):
            return Loop()

    asyncio.set_event_loop_policy(Policy())
    set_up = tests.ServerTestCase.asyncSetUp

    async def set_up_after_listening(case):
        """libuv opens a descriptor of its own when it listens for the first time."""
        listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        listener.close()
        await listener.wait_closed()
        await set_up(case)

    async def pass_time(case, seconds):
        for _ in range(20):
            case.passed += seconds / 20
            await asyncio.sleep(0.005)

    tests.ServerTestCase.asyncSetUp = set_up_after_listening
    tests.ServerTestCase.pass_time = pass_time


def use_eager_tasks():
    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            loop = super().new_event_loop()
            loop.set_task_factory(asyncio.eager_task_factory)
            return loop

    asyncio.set_event_loop_policy(Policy())


def main(kind):
    if kind == "uvloop":
        use_uvloop()
        for name, test in LEFT_OUT_OF_UVLOOP.items():
            print(f"left out: {name}.{test}")
            case = getattr(tests, name)
            getattr(case, test)  # or its name is another one by now
            setattr(case, test, None)
    elif kind == "eager":
        use_eager_tasks()
    names = [f"test_sse_server.{name}Test" for name in CLASSES.split()]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())


if __name__ == "__main__":
    main(sys.argv[1])
