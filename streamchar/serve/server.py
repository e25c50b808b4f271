"""uvicorn around the application: logs, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from pathlib import Path

import uvicorn

from streamchar.errors import InputError
from streamchar.serve.app import build
from streamchar.serve.guard import Guard
from streamchar.serve.uploads import MAX_BYTES
from streamchar.serve.worker import Worker

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
MESSAGE_BYTES = 2 * (MAX_BYTES * 4 // 3) + (1 << 20)
"""A start with a picture and a recording."""


class Server(uvicorn.Server):
    """On SIGTERM every session is saved and told so before its connection is closed."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.drain()
        limit = time.monotonic() + DRAIN_SECONDS
        while self._worker.sessions and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # the last events are on their way
        await super().shutdown(sockets)


def make(worker: Worker, guard: Guard, port: int) -> Server:
    config = uvicorn.Config(
        build(worker, guard), host=guard.host, port=port, log_config=None, access_log=False, server_header=False,
        ws_max_size=MESSAGE_BYTES, ws_max_queue=8, ws_ping_interval=5.0, ws_ping_timeout=20.0,
        ws_per_message_deflate=False,  # nearly all that goes out is H.264 and AAC
        timeout_graceful_shutdown=3, lifespan="off", loop="asyncio", http="h11",
    )  # fmt: skip
    return Server(config, worker)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is one clear error before anything is loaded. Port 0: any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen(256)  # who comes before the first accept waits
    except OSError as error:
        bound.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return bound


def link(guard: Guard, port: int) -> str:
    """What a person opens."""
    host = f"[{guard.host}]" if ":" in guard.host else guard.host
    host = {"0.0.0.0": "localhost", "[::]": "localhost"}.get(host, host)
    return f"http://{host}:{port}/" + (f"?token={guard.token}" if guard.token else "")


def snapshot_folder() -> Path:
    """Where snapshots go unless told otherwise: it outlives the process."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "streamchar" / "live"


class JsonLines(logging.Formatter):
    """One JSON object a line; what a log line was given as `fields` becomes keys of it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
