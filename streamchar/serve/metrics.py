"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.375, 2.0, 3.0, 5.0, 10.0)


def waited_seconds() -> float:
    """Seconds that this process's threads were ready to run and no CPU was free; 0 where the system does not tell."""
    nanoseconds = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that ends meanwhile
            nanoseconds += int(thread.read_text().split()[1])
    return nanoseconds / 1e9


def process_gauges() -> dict[str, float]:
    """What a leak would show in. Called on the event loop."""
    process = psutil.Process(os.getpid())
    with process.oneshot():
        files = process.num_fds() if hasattr(process, "num_fds") else 0
        times = process.cpu_times()
        return {
            "tasks": len(asyncio.all_tasks()), "threads": process.num_threads(), "open_files": files,
            "resident_bytes": process.memory_info().rss, "cpu_seconds": times.user + times.system,
            "cpu_wait_seconds": waited_seconds(),
        }  # fmt: skip


class Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int = 1) -> None:
        with self._lock:
            self.value += amount


class Histogram:
    """Observations by upper bound, in seconds."""

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self._lock = threading.Lock()
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._sum, self._number = 0.0, 0

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._sum += seconds
            self._number += 1
            for index, bound in enumerate(self._bounds):
                self._counts[index] += seconds <= bound  # cumulative, as the format wants them

    def lines(self, name: str) -> list[str]:
        with self._lock:
            buckets = [f'{name}_bucket{{le="{b}"}} {n}' for b, n in zip(self._bounds, self._counts, strict=True)]
            return [*buckets, f'{name}_bucket{{le="+Inf"}} {self._number}', f"{name}_sum {self._sum:.6f}",
                    f"{name}_count {self._number}"]  # fmt: skip


class Metrics:
    """All figures of one server that are not of the moment."""

    def __init__(self) -> None:
        self.chunk = Histogram()
        self.first_frame = Histogram()
        self.opened = Counter()
        self.refused = Counter()
        self.failed = Counter()

    def text(self, gauges: Mapping[str, float]) -> str:
        """The page of `/metrics`; `gauges` are the figures of the moment."""
        lines: list[str] = []
        for name, (kind, about) in _ABOUT.items():
            full = f"streamchar_{name}"
            lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}"]
            if kind == "histogram":
                source = self.chunk if name == "chunk_seconds" else self.first_frame
                lines += source.lines(full)
            elif kind == "counter":
                lines.append(f"{full} {getattr(self, name.split('_')[1]).value}")
            else:
                lines.append(f"{full} {gauges.get(name, 0):.10g}")
        return "\n".join(lines) + "\n"


_ABOUT = {
    "sessions": ("gauge", "Sessions that play."),
    "queue_depth": ("gauge", "Sessions that wait for room."),
    "capacity": ("gauge", "Sessions that the measured speed carries."),
    "parked": ("gauge", "Sessions whose client takes nothing."),
    "outbox_pieces": ("gauge", "Pieces that wait to be sent, of all sessions."),
    "tasks": ("gauge", "Tasks of the event loop."),
    "threads": ("gauge", "Threads of the process."),
    "open_files": ("gauge", "Open files and sockets of the process."),
    "resident_bytes": ("gauge", "Memory of the process."),
    "cpu_seconds": ("gauge", "CPU time of the process so far."),
    "cpu_wait_seconds": ("gauge", "Time in which its present threads were ready and no CPU was free."),
    "busy": ("gauge", "Share of its time that the busier of the engine's threads works."),
    "realtime_factor": ("gauge", "Playing time over computing time; above 1 keeps up."),
    "sessions_opened_total": ("counter", "Sessions asked for since the start."),
    "sessions_refused_total": ("counter", "Connections refused: token, origin, limits."),
    "sessions_failed_total": ("counter", "Sessions that ended by a fault of the server."),
    "chunk_seconds": ("histogram", "Computing time of a chunk of speech, both threads together."),
    "first_frame_seconds": ("histogram", "From a text to its first chunk."),
}
