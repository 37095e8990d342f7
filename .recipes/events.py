"""Publishes by POST to a server that runs elsewhere; its token is in SSE_PUBLISH_TOKEN.

events.publish("hello", event="greeting")
"""

import os
import urllib.error
import urllib.parse
import urllib.request

URL = "http://localhost:8080/sse"


def publish(data, **parameters):
    """Publish a text, and return the event's id; raises OSError if that failed.

    event=, channel=, id= and retain=1 are as in server.publish().
    """
    bearer = {"Authorization": "Bearer " + os.environ["SSE_PUBLISH_TOKEN"]}
    url = URL + "?" + urllib.parse.urlencode(parameters)
    request = urllib.request.Request(url, data.encode(), bearer)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:  # the answer says what was wrong
        raise OSError(f"{error.code}: {error.read().decode().strip()}") from None
