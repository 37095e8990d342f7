from litestar import Litestar, asgi
from shared import server

app = Litestar([asgi("/events")(server)], lifespan=[server.lifespan])
