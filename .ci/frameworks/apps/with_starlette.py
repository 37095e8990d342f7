from shared import server
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount


async def look_on(request, call_next):
    return await call_next(request)


app = Starlette(
    routes=[Mount("/events", server)],
    lifespan=server.lifespan,
    # These wrap send() and receive(), and run the application in tasks of their own.
    middleware=[
        Middleware(GZipMiddleware),
        Middleware(BaseHTTPMiddleware, dispatch=look_on),
    ],
)
