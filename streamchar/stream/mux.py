"""Chunks to a playable file or byte stream: one muxer and one clock for a whole stream (design section 8).

How samples are counted: `Muxer.samples` is what the encoder was given, 66,000 a chunk at 48,000 Hz. In
an mp4 the audio track lasts exactly that: AAC's 1,024 priming samples lie before time 0 (edit list) and
the last packet's duration is cut. A decoder that ignores that duration returns up to 1,023 samples of
silence more, whole AAC frames. In webm (Opus) and wav, decoding gives exactly the count.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import soundfile
from av.error import FFmpegError
from torch import Tensor

from streamchar.clock import FRAMES_PER_CHUNK, SAMPLES_PER_CHUNK
from streamchar.errors import InputError, StateError
from streamchar.stream.containers import MP4, WEBM, MovieSink, WavSink
from streamchar.stream.draft import Draft, cannot_write
from streamchar.types import Chunk

logger = logging.getLogger(__name__)

Sink = MovieSink | WavSink
_REFUSALS = (OSError, FFmpegError, soundfile.SoundFileError)

_FILES: dict[str, Callable[[Path], Sink]] = {
    ".mp4": lambda path: MovieSink(path, MP4),
    ".webm": lambda path: MovieSink(path, WEBM),
    ".wav": WavSink,
}
_STREAMS = {"mp4": MP4, "webm": WEBM}


def check_suffix(target: str | Path) -> None:
    """Raise `InputError` unless `target` ends in .mp4, .webm or .wav."""
    suffix = Path(target).suffix.lower()
    if suffix not in _FILES:
        got = f"{suffix!r}" if suffix else "no ending"
        raise InputError(f"output name must end in {', '.join(_FILES)}, got {got} in {str(target)!r}")


class Muxer:
    """Writes a stream's chunks, in order, into one file or one writable object.

    A path is written under a temporary name beside it and renamed by `close`; leaving the context by an
    exception removes it. A writable object (`fragment` "mp4" or "webm") gets a fragmented container that
    plays while it grows: the tail of a chunk, a quarter of a second at most, goes out with the next one.

    Timestamps count from the first chunk written, whatever its index: a resumed stream's new part is a
    file of its own that starts at 0.
    """

    def __init__(self, target: str | Path | IO[bytes], *, fragment: str = "mp4") -> None:
        self._draft: Draft | None = None
        self._first: int | None = None
        self._warned = False
        self.chunks = 0
        if isinstance(target, str | Path):
            check_suffix(target)
            self._draft = Draft(target)
            try:
                self._sink: Sink = _FILES[Path(target).suffix.lower()](self._draft.path)
            except _REFUSALS as error:
                self._draft.discard()
                raise cannot_write(Path(target), error) from error
        elif fragment in _STREAMS:
            self._sink = MovieSink(target, _STREAMS[fragment])
        else:
            raise InputError(f"a byte stream can be one of: {', '.join(_STREAMS)}; got {fragment!r}")

    @property
    def frames(self) -> int:
        """Video frames written."""
        return self._sink.frames

    @property
    def samples(self) -> int:
        """Audio samples handed to the encoder, at `rate`; complete after `close`."""
        return self._sink.samples

    @property
    def rate(self) -> int:
        """Samples per second in the target: 48,000, or 49,152 in a wav file."""
        return self._sink.rate

    def write(self, chunk: Chunk) -> None:
        """Add the next chunk. Raises `StateError` if it is not the one that follows."""
        self._first = chunk.index if self._first is None else self._first
        if chunk.index != self._first + self.chunks:
            raise StateError(f"expected chunk {self._first + self.chunks} of the stream, got chunk {chunk.index}")
        if (len(chunk.frames), len(chunk.samples)) != (FRAMES_PER_CHUNK, SAMPLES_PER_CHUNK):
            raise StateError(
                f"a chunk has {FRAMES_PER_CHUNK} frames and {SAMPLES_PER_CHUNK} samples, "
                f"got {len(chunk.frames)} and {len(chunk.samples)}"
            )
        self.add(chunk.frames, chunk.samples)
        self.chunks += 1

    def add(self, frames_THWC: Tensor, samples_S: Tensor) -> None:
        """Frames (T, H, W, 3) uint8 and samples (S,) at 49,152 Hz of any length, such as a clip's."""
        peak = float(samples_S.abs().max()) if samples_S.numel() else 0.0
        if peak > 1 and not self._warned:
            logger.warning("sound exceeds full scale (peak %.2f) and is clipped", peak)
            self._warned = True
        with self._refusals():
            self._sink.add(frames_THWC, samples_S)

    def close(self) -> None:
        """Finish the target and give it its name. Raises `InputError` if nothing was written."""
        if not self.frames:
            self.abort()
            raise InputError("nothing to write: the stream has no chunk")
        with self._refusals():
            self._sink.close()
        if self._draft:
            self._draft.commit()

    def abort(self) -> None:
        """Drop everything written to a path; a byte stream just ends."""
        with contextlib.suppress(Exception):
            self._sink.abort()
        if self._draft:
            self._draft.discard()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """A full disk or a vanished folder becomes an `InputError`; a byte stream's own errors pass."""
        try:
            yield
        except _REFUSALS as error:
            self.abort()
            if self._draft is None:
                raise
            raise cannot_write(self._draft.target, error) from error

    def __enter__(self) -> Muxer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
