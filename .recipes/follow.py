"""python follow.py URL: prints the data of each event of a stream, over restarts.

The stream is one of this server's, whose lines end with LF alone.
"""

import http.client
import sys
import time
import urllib.error
import urllib.request


def follow(url):
    """Each event as (name, data), until the server says that nothing more comes.

    An event `gap` tells that others are missing in its place.
    """
    head = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(head, timeout=10) as answer:
        last_id = answer.headers[
            "Last-Event-ID"
        ]  # so that nothing is missed from now on
    wait = 2
    while True:
        fields = {"Last-Event-ID": last_id} if last_id else {}
        request = urllib.request.Request(url, headers=fields)
        name, data = "message", []
        try:
            with urllib.request.urlopen(request, timeout=60) as stream:
                if stream.status == 204:
                    return
                for line in stream:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        data.append(value)
                    elif field == "id":
                        last_id = value
                    elif field == "retry":
                        wait = int(value) / 1000
                    elif line == b"\n" and data:
                        yield name, "\n".join(data)
                        name, data = "message", []
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except (OSError, http.client.HTTPException):
            pass  # it is away, or the connection has broken
        time.sleep(wait)


if __name__ == "__main__":
    for _, data in follow(sys.argv[1]):
        print(data, flush=True)
