"""The Python client: a session over a WebSocket, as an iterator of typed events and bytes.

>>> with connect("http://127.0.0.1:8080/") as session:
...     session.start(text="Hello there.", character=7)
...     for item in session:
...         ...  # `bytes` are pieces of one MP4, everything else is an event of the protocol
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from streamchar.errors import ConfigError, InputError
from streamchar.serve.protocol import (
    ChunkSent,
    Error,
    Event,
    Interrupt,
    Message,
    ProtocolError,
    Ready,
    Restore,
    Say,
    Start,
    Stop,
    dump,
    parse_event,
)

MAX_PIECE = 64 << 20


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
        self._coming = 0
        self._ids = 0

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
                item = self._socket.recv()
            except ConnectionClosed:
                return
            if isinstance(item, bytes):
                self.frames, self._coming = self.frames + self._coming, 0
                yield item
                continue
            event = parse_event(item)
            if isinstance(event, Ready):
                self.session, self.frames = event.session, event.frames
            elif isinstance(event, ChunkSent):
                self._coming = event.count
            yield event
            if isinstance(event, Error) and event.fatal:
                raise ProtocolError(event.code, event.message, event.hint, event.legal)

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
