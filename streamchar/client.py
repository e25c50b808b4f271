"""The Python client: a session over a WebSocket, as an iterator of typed events and bytes.

>>> from streamchar.client import Spoken, connect
>>> with connect("http://127.0.0.1:8080/") as session:
...     session.start(text="Hello there.", character=7)
...     for item in session:
...         ...  # `bytes` are pieces of one MP4, everything else is an event of the protocol

Iterating reports to the server, twice a second, where a player that began with the first piece would stand: a program
that stops reading stops reporting, and the server makes no more for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from streamchar.errors import ConfigError, InputError
from streamchar.serve.protocol import (
    ChunkSent,
    Error,
    Event,
    Idle,
    Interrupt,
    Interrupted,
    Message,
    Notice,
    Pause,
    Playhead,
    ProtocolError,
    Queued,
    Ready,
    Restore,
    Resume,
    Said,
    Say,
    Snapshot,
    Spoken,
    Start,
    Stats,
    Stop,
    Stopped,
    dump,
    parse_event,
)

__all__ = [
    "ChunkSent", "Client", "Error", "Event", "Idle", "Interrupted", "Notice", "ProtocolError", "Queued", "Ready",
    "Said", "Spoken", "Stats", "Stopped", "connect",
]  # fmt: skip

MAX_PIECE = 64 << 20
REPORT_SECONDS = 0.5
FPS = 24


def connect(address: str, *, token: str = "", timeout: float = 10.0) -> Client:
    """Open a connection to a server's link (`http://host:port/?token=...`). Raises `InputError`."""
    try:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect as open_socket
    except ImportError:
        raise ConfigError("the client needs websockets; install streamchar[serve]") from None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"expected the server's link such as http://127.0.0.1:8080/, got {address!r}")
    token = token or parse_qs(parts.query).get("token", [""])[0]
    scheme = "wss" if parts.scheme == "https" else "ws"
    query = f"?{urlencode({'token': token})}" if token else ""
    held = contextlib.ExitStack()
    try:
        opening = open_socket(
            f"{scheme}://{parts.netloc}/v1/session{query}", max_size=MAX_PIECE, open_timeout=timeout, proxy=None
        )
        socket = held.enter_context(opening)
    except (OSError, WebSocketException) as error:
        raise InputError(f"cannot connect to {parts.netloc}: {error}; is `streamchar serve` running?") from None
    return Client(socket, held)


class Client:
    """One session. Sending is possible from any thread while another one iterates."""

    def __init__(self, socket: Any, held: contextlib.ExitStack) -> None:
        self._socket, self._held = socket, held
        self.session = ""
        self.frames = 0
        """Video frames of the session that were received."""
        self.at = -1.0
        """Where the player stands, in seconds of the session, if the program plays: it then goes out as it is."""
        self._coming = 0
        self._ids = 0
        self._player, self._moved, self._reported = 0.0, 0.0, 0.0

    def start(self, **options: Any) -> None:
        """Begin; options are the fields of `protocol.Start`."""
        self.send(Start(**options))

    def say(self, text: str) -> int:
        """Append text; returns the id that comes back in `said`."""
        self._ids += 1
        self.send(Say(text=text, id=self._ids))
        return self._ids

    def interrupt(self, at: float = -1.0) -> None:
        """Stop speaking; what was spoken comes back in `interrupted`."""
        self.send(Interrupt(at=at))

    def pause(self) -> None:
        self.send(Pause())

    def resume(self) -> None:
        self.send(Resume())

    def snapshot(self) -> None:
        """Save the session now; `saved` comes back."""
        self.send(Snapshot())

    def restore(self, session: str, frames: int) -> None:
        """Go on with a session of which `frames` frames were received."""
        self.send(Restore(session=session, frames=frames))

    def stop(self) -> None:
        """End: the file's last bytes and `stopped` follow."""
        self.send(Stop())

    def send(self, message: Message) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):  # iterating tells
            self._socket.send(dump(message))

    def __iter__(self) -> Iterator[Event | bytes]:
        """Events and bytes until the connection ends. Raises `ProtocolError` for a fatal error."""
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                item = self._socket.recv(timeout=REPORT_SECONDS)
            except TimeoutError:
                if self.session:
                    self._report(self.frames / FPS)
                continue
            except ConnectionClosed:
                return
            if isinstance(item, bytes):
                end = self.frames / FPS
                self.frames, self._coming = self.frames + self._coming, 0
                self._report(end)
                yield item
                continue
            event = parse_event(item)
            if isinstance(event, Ready):
                self.session, self.frames, self._player = event.session, event.frames, event.frames / FPS
            elif isinstance(event, ChunkSent):
                self._coming = event.count
            yield event
            if isinstance(event, Error) and event.fatal:
                raise ProtocolError(event.code, event.message, event.hint, event.legal)

    def _report(self, end: float) -> None:
        """Say where the player stands: as told, or as one would that began with the first piece and waits where it
        runs dry, at the `end` of what it had."""
        now = time.monotonic()
        self._player = min(end, self._player + now - self._moved)
        self._moved = now
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.send(Playhead(at=self.at if self.at >= 0 else self._player))

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
