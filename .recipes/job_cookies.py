"""The progress of a job, for the browser alone that has the signed cookie of the job.

The page of the job is rendered elsewhere.  It sets the cookie `job` to signed(job), and
opens the stream with `new EventSource(url, { withCredentials: true })`.
"""

import hashlib
import hmac
from http.cookies import SimpleCookie

from sse_server import SSEServer

KEY = b"a secret of your own"


def signed(job):
    """Return the value of the cookie `job` for the page of this job."""
    return f"{job}.{hmac.new(KEY, job.encode(), hashlib.sha256).hexdigest()}"


def authorize(request):
    cookie = SimpleCookie(request.header("cookie") or "").get("job")
    job = cookie.value.partition(".")[0] if cookie else ""
    if not cookie or not hmac.compare_digest(cookie.value, signed(job)):
        return False
    return [f"job-{job}"]


def report(job, percent):
    data = {"percent": percent}
    server.publish(data, event="progress", channel=f"job-{job}", retain=True)


server = SSEServer(authorize=authorize, cors_origins=["https://example.com"])
