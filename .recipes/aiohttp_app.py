"""python aiohttp_app.py: the stream as a response of aiohttp."""

from aiohttp import web

from sse_server import SSEServer

server = SSEServer(port=None)


async def events(request):
    response = web.StreamResponse(headers=server.stream_headers())
    await response.prepare(request)
    stream = server.stream(request.headers.get("Last-Event-ID"))
    try:
        async for piece in stream:
            await response.write(piece)
    except ConnectionResetError:
        pass  # the client has left
    finally:
        await stream.aclose()
    return response


async def order(request):
    server.publish(await request.json(), event="order")
    return web.Response(status=204)


async def start(app):
    await server.__aenter__()


async def end(app):
    await server.close()


app = web.Application()
app.add_routes([web.get("/events", events), web.post("/orders", order)])
app.on_startup.append(start)
app.on_shutdown.append(end)  # aiohttp then waits for open responses

if __name__ == "__main__":
    web.run_app(app, port=8000)
