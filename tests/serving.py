"""What the tests of serving share: a worker on the mock, and a client that reads its outbox."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamchar.serve.floor import Limits, Opening
from streamchar.serve.live import Live
from streamchar.serve.mock import MockStudio
from streamchar.serve.outbox import Outbox
from streamchar.serve.protocol import Event, Message, Start, parse_event
from streamchar.serve.vault import Vault
from streamchar.serve.worker import Worker

TEXT = "one two three four five six seven eight nine ten eleven twelve "


def worker(
    folder: Path, *, speed: float = 200.0, start: bool = True, now: Callable[[], float] = time.monotonic, **limits: Any
) -> Worker:
    allowed = Limits(**{"per_address": 500, **limits})
    made = Worker(MockStudio(speed=speed, size=32), Vault(folder), limits=allowed, now=now)
    if start:
        made.start()
        until(made.floor.ready.is_set)
    return made


def until(true: Callable[[], Any], seconds: float = 120.0) -> float:
    """Wait for it; the patience is for machines that are busy with something else. Returns the seconds it took,
    without those in which threads of ours were ready and no CPU was free."""
    began, delayed = time.monotonic(), cpu_delay()
    while not true():
        assert time.monotonic() < began + seconds, "waited too long"
        time.sleep(0.005)
    return max(0.0, time.monotonic() - began - (cpu_delay() - delayed))


def cpu_delay() -> float:
    """Seconds that this process's threads have waited for a CPU; 0 where the system does not tell."""
    total = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that ends meanwhile
            total += int(thread.read_text().split()[1])
    return total / 1e9


class Seat:
    """A client without a network."""

    def __init__(self, engine: Worker, start: Start | None = None, opening: Opening | None = None, **options) -> None:
        self.engine = engine
        self.live = Live(start or Start(text=TEXT), Outbox(), **options)
        self.events: list[Event] = []
        self.bytes = b""
        self.frames = 0
        engine.open(self.live, opening)

    def read(self) -> None:
        while (item := self.live.outbox.take()) is not None:
            if isinstance(item, bytes):
                self.bytes += item
            else:
                self.events.append(parse_event(item))
                if self.events[-1].type == "chunk":
                    self.frames += self.events[-1].count

    def of(self, kind: str) -> list[Any]:
        self.read()
        return [event for event in self.events if event.type == kind]

    def wait(self, kind: str, count: int = 1) -> Any:
        until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    def send(self, message: Message) -> None:
        self.engine.submit(self.live, message)
