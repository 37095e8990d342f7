from fastapi import FastAPI
from shared import server

app = FastAPI(lifespan=server.lifespan)
app.add_route("/events", server)
