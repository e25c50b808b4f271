"""What `say` measures: chunk times, memory, and the progress bar with its real-time factor."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streamchar.clock import CHUNK_SECONDS
from streamchar.types import Chunk

_DECODING = ("decode_video", "decode_audio")


def rss_mib() -> float:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def peak_rss_mib() -> float:
    """The most resident memory this process ever had."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Meter:
    """Times a stream from its construction on, and shows how it goes.

    The real-time factor is wall time over playback time: below 1 is faster than playback.
    """

    def __init__(self, console: Console) -> None:
        self._start = self._last = time.perf_counter()
        self._chunks: list[float] = []
        self._memory: list[float] = []
        self._stages: dict[str, list[float]] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} words"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("speaking", total=None, state="", start=True)

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._progress.stop()

    def watch(self, session: Any, limit: int | None = None) -> Iterator[Chunk]:
        """The session's chunks, at most `limit`, each one counted when the next is asked for: what was done with it
        (encoding) belongs to its time."""
        chunks: Iterable[Chunk] = islice(session, limit)
        for chunk in chunks:
            if not self._chunks:
                self._first = time.perf_counter() - self._start
            yield chunk
            self._count(chunk)
            playback = len(self._chunks) * float(CHUNK_SECONDS)
            self._progress.update(
                self._task,
                completed=session.spoken_words,
                total=max(1, session.total_words),
                state=f"{playback:.1f} s, real-time factor {self.rtf:.2f}",
            )

    def _count(self, chunk: Chunk) -> None:
        now = time.perf_counter()
        self._chunks.append(now - self._last)
        self._last = now
        self._memory.append(rss_mib())
        for stage, seconds in chunk.seconds.items():
            self._stages.setdefault(stage, []).append(seconds)

    @property
    def rtf(self) -> float:
        """Wall time over playback time so far."""
        return (self._last - self._start) / (len(self._chunks) * float(CHUNK_SECONDS))

    def report(self) -> dict[str, Any]:
        """Figures for `--json`; seconds, MiB and ratios."""
        stages = {stage: round(statistics.median(values), 4) for stage, values in self._stages.items()}
        decoding = sum(stages.get(stage, 0.0) for stage in _DECODING)
        return {
            "rtf": round(self.rtf, 4),
            "first_chunk_s": round(self._first, 3),
            "peak_rss_mib": round(peak_rss_mib(), 1),
            "decode_ratio": round(decoding / float(CHUNK_SECONDS), 4),
            "stage_s": stages,
            "chunk_s": [round(seconds, 4) for seconds in self._chunks],
            "rss_mib_chunks": [round(mib, 1) for mib in self._memory],
        }
