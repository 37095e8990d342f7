"""An asgi.py, and the least settings that go with it."""

from django.conf import settings
from django.core.asgi import get_asgi_application
from shared import server

settings.configure(ROOT_URLCONF="with_django", ALLOWED_HOSTS=["*"], SECRET_KEY="x")
urlpatterns = []
pages = get_asgi_application()


async def app(scope, receive, send):
    is_stream = scope["type"] == "http" and scope["path"] == "/events"
    await (server if is_stream else pages)(scope, receive, send)
