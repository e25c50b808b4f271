"""The web application: a thin skin over the worker. No work of the device is done in here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse

from streamchar.errors import InputError
from streamchar.serve import gallery
from streamchar.serve.conversation import converse
from streamchar.serve.guard import Guard
from streamchar.serve.live import Live
from streamchar.serve.metrics import CONTENT_TYPE, process_gauges
from streamchar.serve.outbox import Outbox
from streamchar.serve.protocol import VERSION, Error, ProtocolError, Start, dump, parse_event
from streamchar.serve.worker import Worker

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGES = {"": ("index.html", "text/html"), "style.css": ("style.css", "text/css")}
SCRIPTS = ("app.js", "player.js", "session.js")
PAGES |= {name: (name, "text/javascript") for name in SCRIPTS}
_STATUS = {"forbidden": 403, "busy": 503, "shutting-down": 503, "too-long": 413, "too-large": 413, "rate": 429}


class Protected:
    """Puts `HEADERS` on every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self._app(scope, receive, sending)


def build(worker: Worker, guard: Guard) -> FastAPI:
    """The application of one worker."""
    app = FastAPI(title="streamchar", docs_url=None, redoc_url=None, openapi_url=None)
    web = Path(str(resources.files("streamchar") / "assets" / "web"))

    app.add_middleware(Protected)
    drawing = asyncio.Semaphore(1)

    @app.exception_handler(ProtocolError)
    async def _refused(request: Request, error: ProtocolError) -> Response:
        status = _STATUS.get(error.code, 400)
        headers = {"Retry-After": "10"} if status == 503 else {}
        return Response(dump(error.event()), status, headers, "application/json")

    def let_in(request: Request) -> None:
        try:
            guard.check(request.headers, request.query_params.get("token", ""))
        except ProtocolError:
            worker.floor.metrics.refused.add()
            raise

    for address, (file, kind) in PAGES.items():
        _page(app, f"/{address}", web / file, kind)
    _operations(app, worker, let_in)

    @app.get("/v1/about")
    async def about(request: Request) -> Any:
        let_in(request)
        studio = worker.floor.studio
        return {
            "protocol": VERSION, "model": studio.name, "width": studio.width, "height": studio.height,
            "pictures": studio.pictures, "prompts": gallery.PROMPTS, "voices": gallery.voices(),
            "characters": await asyncio.to_thread(gallery.characters), "text": worker.floor.limits.text,
        }  # fmt: skip

    @app.get("/v1/characters/{seed}.png")
    async def picture(request: Request, seed: int) -> Response:
        let_in(request)
        try:
            async with drawing:
                if worker.floor.draining:
                    raise ProtocolError("shutting-down", "the server is being restarted", "try again in a few seconds")
                data = await asyncio.to_thread(gallery.picture, seed)
        except InputError as error:
            raise ProtocolError("bad-input", str(error)) from None
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})

    @app.get("/v1/speech.mp4")
    async def speech(request: Request, text: str, character: int = 7, prompt: str = "", seed: int = 0) -> Response:
        let_in(request)
        return await _speech(request, worker, Start(text=text, character=character, prompt=prompt, seed=seed))

    @app.websocket("/v1/session")
    async def session(socket: WebSocket) -> None:
        try:
            guard.check(socket.headers, socket.query_params.get("token", ""))
        except ProtocolError:
            worker.floor.metrics.refused.add()
            await socket.close(1008)  # before accept: the handshake fails with 403
            return
        await socket.accept()
        await converse(socket, worker)

    return app


def _page(app: FastAPI, address: str, file: Path, kind: str) -> None:
    """A page needs no token: it holds nothing, and asks for everything with the token of its own address."""

    @app.get(address)
    async def page() -> Response:
        return FileResponse(file, media_type=kind, headers={"Cache-Control": "no-cache"})


def _operations(app: FastAPI, worker: Worker, let_in: Any) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        failure = worker.floor.failure
        return PlainTextResponse(failure or "ok", 500 if failure else 200)

    @app.get("/readyz")
    async def readyz() -> Response:
        state = "draining" if worker.floor.draining else "ready" if worker.ready else "not ready"
        return JSONResponse({"state": state}, 200 if worker.ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        let_in(request)
        return Response(worker.floor.metrics.text({**worker.gauges(), **process_gauges()}), media_type=CONTENT_TYPE)


async def _speech(request: Request, worker: Worker, start: Start) -> Response:
    """The whole take as a download that begins with its first chunk."""
    if not start.text.strip():
        raise ProtocolError("bad-input", "the text is empty", "give at least one word")
    if not worker.room():
        raise ProtocolError("busy", "all places are taken", "try again in a few seconds")
    address = request.client.host if request.client else ""
    live = Live(start, Outbox(), once=True, address=address)
    await asyncio.to_thread(worker.open, live)
    try:
        first = await _next_piece(live.outbox)
    except BaseException:
        worker.gone(live)
        raise
    if first is None:
        raise ProtocolError("internal", "the speech ended before it began", "try again")
    return StreamingResponse(_pieces(worker, live, first), media_type="video/mp4")


async def _pieces(worker: Worker, live: Live, first: bytes) -> AsyncIterator[bytes]:
    piece: bytes | None = first
    try:
        while piece is not None:
            yield piece
            with contextlib.suppress(ProtocolError):  # too late to say it: the file ends
                piece = await _next_piece(live.outbox)
                continue
            piece = None
    finally:
        worker.gone(live)


async def _next_piece(outbox: Outbox) -> bytes | None:
    """The next bytes; an error among the events is raised."""
    while True:
        item = await outbox.get()
        if item is None or isinstance(item, bytes):
            return item
        event = parse_event(item)
        if isinstance(event, Error):
            raise ProtocolError(event.code, event.message, event.hint)
