"""A video file to be scored, with what is known about it: transcript, character, reference.

Frames and sound are read from the file when a metric asks for them, at the rate it asks for, so that ours and another
system's videos are measured alike, as a viewer gets them (after h264 and AAC).

Shape letters: T frames, H height, W width, S samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from torch import Tensor

from streamchar.errors import DataError
from streamchar.eval.entries import Kind, check

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")
_KINDS: Mapping[str, Kind] = {
    "character": "a whole number", "prompt": "text", "direction": "[mood, gesture, energy]", "voice": "text",
    "picture": "text", "words": "text", "rtf": "a number",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip. Everything but name, file and transcript may be unknown (None)."""

    name: str
    video: Path
    transcript: str
    character: int | None = None
    """Seed of the cartoon world's character."""
    prompt: str | None = None
    direction: tuple[str, str, str] | None = None
    """Mood, gesture, energy that the prompt asks for (cartoon world)."""
    voice: Path | None = None
    """Sound file with the voice to be matched."""
    picture: Path | None = None
    """Picture of the character (the reference frame)."""
    reference: Path | None = None
    """The true video of the same item: paired figures compare with it picture by picture."""
    words: Path | None = None
    """JSON list of [word, start, end] in seconds: the pointer's timings (ours) or exact ones (truth)."""
    rtf: float | None = None

    @property
    def seconds(self) -> float:
        """Length of the picture."""
        with _open(self.video) as container:
            stream = _stream(container, "video", self.video)
            if stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            return float(Fraction(container.duration or 0, av.time_base))

    @property
    def rate(self) -> Fraction:
        """Pictures a second."""
        with _open(self.video) as container:
            return _rate(_stream(container, "video", self.video))

    def frames(self, fps: Fraction | int | None = None, start: float = 0.0, stop: float | None = None) -> Tensor:
        """(T, 3, H, W) uint8 of start..stop seconds; `fps`: the nearest frame at each tick of that rate."""
        found = list(self.blocks(fps, start=start, stop=stop))
        if not found:
            raise DataError(f"{self.video}: expected pictures from {start:g} s on, found none in {self.seconds:g} s")
        return torch.cat(found)

    def blocks(
        self, fps: Fraction | int | None = None, length: int = 64, start: float = 0.0, stop: float | None = None
    ) -> Iterator[Tensor]:
        """The same in pieces of at most `length` frames: five minutes need not fit in memory."""
        held: list[np.ndarray] = []
        for frame in self._ticks(fps, start, stop):
            held.append(frame)
            if len(held) == length:
                yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)
                held = []
        if held:
            yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)

    def _ticks(self, fps: Fraction | int | None, start: float, stop: float | None) -> Iterator[np.ndarray]:
        with _open(self.video) as container:
            stream = _stream(container, "video", self.video)
            stream.thread_type = "AUTO"
            own = _rate(stream)
            rate, half = Fraction(fps or own), 1 / own / 2
            end = None if stop is None else Fraction(stop)
            tick, zero = math.ceil(Fraction(start) * rate), None
            for index, frame in enumerate(_decoded(container, stream, self.video)):
                when = frame.pts * stream.time_base if frame.pts is not None and stream.time_base else index / own
                zero = when if zero is None else zero  # edit lists: the first picture is time 0
                image: np.ndarray | None = None
                while tick / rate < when - zero + half:
                    if end is not None and tick / rate >= end:
                        return
                    image = frame.to_ndarray(format="rgb24") if image is None else image
                    yield image
                    tick += 1

    def samples(self, rate: int) -> Tensor:
        """(S,) float32 mono sound at `rate` Hz, from the first picture's time on."""
        chunks: list[np.ndarray] = []
        with _open(self.video) as container:
            stream = _stream(container, "audio", self.video)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            first: float | None = None
            for frame in _decoded(container, stream, self.video):
                if first is None:
                    first = float(frame.time or 0.0)
                chunks.extend(out.to_ndarray()[0] for out in resampler.resample(frame))
            chunks.extend(out.to_ndarray()[0] for out in resampler.resample(None))
        sound = torch.from_numpy(np.concatenate(chunks)) if chunks else torch.zeros(0)
        lead = round((first or 0.0) * rate)
        return torch.nn.functional.pad(sound, (lead, 0)) if lead > 0 else sound[-lead or None :]


def _open(path: Path):
    try:
        return av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise DataError(f"cannot read {path} as a video (mp4, webm or what else ffmpeg reads): {error}") from None


def _stream(container, kind: str, path: Path):
    streams = getattr(container.streams, kind)
    if not streams:
        raise DataError(f"{path}: expected a stream of {kind}, found none")
    return streams[0]


def _rate(stream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 24)


def _decoded(container, stream, path: Path):
    try:
        yield from container.decode(stream)
    except FFmpegError as error:
        raise DataError(f"{path}: damaged after some frames ({error})") from None


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos of a folder by name without ending."""
    if not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES}


def read_samples(folder: Path, transcripts: Path, reference: Path | None = None) -> list[Sample]:
    """Videos of `folder` named in `transcripts`, JSON lines of {"name", "transcript", ...fields of Sample}.

    Paths in it are relative to the file. Videos without a line, and lines without a video, are errors.
    """
    lines: dict[str, dict] = {}
    try:
        text = transcripts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read transcripts {transcripts}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{transcripts}, line {number}"
        try:
            entry = json.loads(line)
            name = str(entry["name"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{where}: expected {{"name": ..., "transcript": ...}}, got {line[:80]!r}') from None
        check(entry, {"transcript": "text"}, where, needed=True)
        check(entry, _KINDS, where)
        if name in lines:
            raise DataError(f"{where}: expected one line a clip, {name} has been before")
        lines[name] = entry | {"name": name}
    videos = videos_in(folder)
    if not videos:
        raise DataError(f"expected videos ({', '.join(VIDEO_SUFFIXES)}) in {folder}, found none")
    missing, extra = sorted(set(lines) - set(videos)), sorted(set(videos) - set(lines))
    if missing or extra:
        raise DataError(
            f"{transcripts} and {folder} do not match: {len(missing)} names without a video {missing[:3]}, "
            f"{len(extra)} videos without a transcript {extra[:3]}"
        )
    truths = videos_in(reference) if reference is not None else {}
    known = set(Sample.__dataclass_fields__)
    samples = []
    for name, entry in lines.items():
        fields = {k: v for k, v in entry.items() if k in known and k not in ("video", "reference") and v is not None}
        for key in ("voice", "picture", "words"):
            if key in fields:
                fields[key] = transcripts.parent / fields[key]
        if "direction" in fields:
            fields["direction"] = tuple(fields["direction"])
        samples.append(Sample(**fields, video=videos[name], reference=truths.get(name)))
    return samples
