"""One WebSocket: messages in, events and the file's pieces out."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from streamchar.serve.floor import Opening
from streamchar.serve.guard import Bucket
from streamchar.serve.live import Live
from streamchar.serve.outbox import Outbox
from streamchar.serve.protocol import ProtocolError, Restore, Start, dump, parse_message
from streamchar.serve.worker import Worker

log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 64 << 10
"""Of a message that carries no upload."""
FIRST_SECONDS = 20.0
"""Within which the first message has to come."""
MAX_BAD = 20
"""Refused messages after which the connection ends."""
POLICY, RESTART = 1008, 1012


async def converse(socket: WebSocket, worker: Worker) -> None:
    """Serve an accepted WebSocket until either side is done."""
    bucket = Bucket(worker.floor.limits.rate)
    live = await _begin(socket, worker, bucket)
    if live is None:
        return
    writer = asyncio.create_task(_write(socket, live.outbox))
    reader = asyncio.create_task(_read(socket, worker, live, bucket))
    try:
        await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.gone(live)
        for task in (reader, writer):
            task.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)
        await _close(socket, RESTART if worker.floor.draining else 1000)


async def _begin(socket: WebSocket, worker: Worker, bucket: Bucket) -> Live | None:
    """The session that the first message asks for; what cannot be one is said and may be tried again."""
    address = socket.client.host if socket.client else ""
    for _ in range(MAX_BAD):
        try:
            text = await asyncio.wait_for(_receive(socket), FIRST_SECONDS)
        except (asyncio.TimeoutError, WebSocketDisconnect):
            break
        try:
            bucket.take()
            message = parse_message(text)
            if isinstance(message, Start):
                live = Live(message, Outbox(), address=address)
                await asyncio.to_thread(worker.open, live)
                return live
            if isinstance(message, Restore):
                worker.take_over(message.session)
                start, record, path, later = await asyncio.to_thread(
                    worker.floor.vault.find, message.session, message.frames
                )
                live = Live(start, Outbox(), record=record, address=address)
                await asyncio.to_thread(worker.open, live, Opening(path=path, later=tuple(later)))
                return live
            legal = ("start", "restore")
            raise ProtocolError("illegal", f"{message.type} comes after start", "begin with start", legal)
        except ProtocolError as error:
            await socket.send_text(dump(error.event()))
    await _close(socket, POLICY)
    return None


async def _receive(socket: WebSocket) -> str:
    got = await socket.receive()
    if got["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(got.get("code", 1000))
    text = got.get("text")
    return text if text is not None else "\x00"  # binary is no message: it fails as one


async def _read(socket: WebSocket, worker: Worker, live: Live, bucket: Bucket) -> None:
    bad = 0
    while bad < MAX_BAD:
        try:
            text = await _receive(socket)
        except (WebSocketDisconnect, RuntimeError):
            return
        try:
            bucket.take()
            if len(text) > MAX_TEXT_BYTES:
                raise ProtocolError("too-large", f"a message may have {MAX_TEXT_BYTES >> 10} KiB", "send less at once")
            worker.submit(live, parse_message(text))
        except ProtocolError as error:
            bad += error.code in ("bad-message", "rate")
            live.outbox.put(error.event())


async def _write(socket: WebSocket, outbox: Outbox) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        while True:
            item = await outbox.get()
            if item is None:
                return
            await (socket.send_text(item) if isinstance(item, str) else socket.send_bytes(item))


async def _close(socket: WebSocket, code: int) -> None:
    if socket.application_state != WebSocketState.DISCONNECTED:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(socket.close(code), 2.0)
