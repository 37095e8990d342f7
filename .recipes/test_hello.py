"""A test of a program that publishes: a free port, and a client that reads on."""

import unittest
import urllib.request

from sse_server import SSEServer


class HelloTest(unittest.TestCase):
    def test_hello_is_published(self):
        with SSEServer(port=0) as server:
            server.publish("hello")
            url = server.url + "?replay=all"
            with urllib.request.urlopen(url, timeout=5) as stream:
                self.assertIn(b"data: hello\n", stream)  # reads until it comes
