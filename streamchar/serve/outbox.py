"""What waits to be sent to one client. Bounded: the engine stops producing before it is full."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from streamchar.serve.protocol import Event, dump

MAX_PIECES = 4
"""Binary pieces that may wait; the engine makes no more until one has gone."""
MAX_ITEMS = 2000
"""Events and pieces together. Only a client that never reads gets here; it is dropped."""


class Outbox:
    """Filled by the engine's threads, emptied by one coroutine (or by `take`, without an event loop)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._items: deque[str | bytes] = deque()
        self._lock = threading.Lock()
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._moved = clock()
        self.pieces = 0
        self.closed = False
        self.overrun = False

    @property
    def room(self) -> bool:
        return self.pieces < MAX_PIECES

    @property
    def stuck(self) -> float:
        """Seconds since anything left the full box; 0 while there is room."""
        return 0.0 if self.room else self._clock() - self._moved

    def put(self, item: Event | bytes) -> None:
        """Queue an event or a piece of the file; after `close` it is forgotten."""
        with self._lock:
            if self.closed or self.overrun:
                return
            if len(self._items) >= MAX_ITEMS:
                self.overrun = True
                return
            self._items.append(item if isinstance(item, bytes) else dump(item))
            if isinstance(item, bytes):
                self.pieces += 1
                if self.pieces == MAX_PIECES:  # full from now on
                    self._moved = self._clock()
        self._ring()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self._ring()

    def take(self) -> str | bytes | None:
        """The next item, or None."""
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            self.pieces -= isinstance(item, bytes)
            self._moved = self._clock()
            return item

    async def get(self) -> str | bytes | None:
        """Wait for the next item; None at the end."""
        if self._wake is None:
            self._wake, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while True:
            self._wake.clear()
            item = self.take()
            if item is not None:
                return item
            if self.closed or self.overrun:
                return None
            await self._wake.wait()

    def _ring(self) -> None:
        if self._loop is not None and self._wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self._loop.call_soon_threadsafe(self._wake.set)
