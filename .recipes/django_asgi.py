"""uvicorn django_asgi:application: the stream at /sse, all else is Django's.

DJANGO_SETTINGS_MODULE names the settings.  A view publishes with `server.publish()`.
"""

from django.core.asgi import get_asgi_application

from sse_server import SSEServer

django = get_asgi_application()
server = SSEServer(port=None)


async def application(scope, receive, send):
    ours = scope["type"] == "lifespan" or scope["path"] == "/sse"
    await (server if ours else django)(scope, receive, send)
