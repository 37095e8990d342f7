"""python presence.py: tells every page who is online.

A stream that opens gets the list once (the event `online`).  After it, all streams get
each coming and going (the event `presence`): what a change costs does not grow with the
number of users.  Try it:

    curl -N -b user=ann http://localhost:8080/sse
"""

import asyncio
import collections
from http.cookies import SimpleCookie

from sse_server import EVERYBODY, HTTPError, SSEServer

online = collections.Counter()  # how many streams each user has open


def user_of(request):
    """Return the user, or None.  Put here what your logins need."""
    cookie = SimpleCookie(request.header("cookie") or "").get("user")
    return cookie and cookie.value


def authorize(request):
    user = user_of(request)
    if not user:
        raise HTTPError(204)  # an EventSource then stops for good
    return [None, f"user-{user}"]  # the common events, and those for this user


def opened(request):
    user = user_of(request)
    online[user] += 1
    if online[user] == 1:
        tell_all(user, True)
    server.publish([*online], event="online", channel=f"user-{user}")


def closed(request):
    user = user_of(request)
    online[user] -= 1
    if not online[user]:
        del online[user]
        tell_all(user, False)


def tell_all(user, here):
    change = {"user": user, "here": here}
    server.publish(change, event="presence", channel=EVERYBODY)


server = SSEServer(authorize=authorize, on_open=opened, on_close=closed)

if __name__ == "__main__":
    asyncio.run(server.serve_forever())
