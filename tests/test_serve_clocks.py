"""The file that a session becomes, read by its own boxes: short fragments, and clocks that agree to the sample.

STREAMCHAR_LONG=1 pytest tests/test_serve_clocks.py makes an hour of stream time: a minute or two of one core.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import pytest
import torch
from serving import Seat, until, worker

from streamchar.serve.actor import Actor
from streamchar.serve.floor import Limits
from streamchar.serve.mock import MockStudio
from streamchar.serve.protocol import Say, Start, Stop
from streamchar.serve.vault import Vault
from streamchar.serve.worker import Worker
from streamchar.types import Chunk


def boxes(data: bytes):
    """Name and body of each box of an MP4."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


def duration(traf: dict[bytes, bytes]) -> int:
    """Of one track's part of a fragment, in its time scale."""
    tfhd, trun = traf[b"tfhd"], traf[b"trun"]
    flags, at = int.from_bytes(tfhd[1:4], "big"), 8
    at += 8 * bool(flags & 1) + 4 * bool(flags & 2)
    default = int.from_bytes(tfhd[at : at + 4], "big") if flags & 8 else 0
    flags, count, at = int.from_bytes(trun[1:4], "big"), int.from_bytes(trun[4:8], "big"), 8
    at += 4 * bool(flags & 1) + 4 * bool(flags & 4)
    fields = [bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800)]
    if not fields[0]:
        return default * count
    step = 4 * sum(fields)
    return sum(int.from_bytes(trun[at + i * step : at + i * step + 4], "big") for i in range(count))


@dataclass
class Track:
    """What the boxes of a file say of one of its tracks."""

    scale: int
    skipped: int
    """Of its beginning, not played: the edit list's."""
    samples: int = 0
    length: int = 0


class Tally:
    """Reads a growing MP4 box by box and forgets it: an hour's file is not kept."""

    def __init__(self) -> None:
        self.tracks: dict[int, Track] = {}
        self.fragments, self.left = 0, b""

    def read(self, data: bytes) -> None:
        self.left += data
        at = 0
        while at + 8 <= len(self.left):
            size = int.from_bytes(self.left[at : at + 4], "big")
            if at + size > len(self.left):
                break
            name, body = self.left[at + 4 : at + 8], self.left[at + 8 : at + size]
            if name == b"moov":
                for trak in (b for n, b in boxes(body) if n == b"trak"):
                    self._open(dict(boxes(trak)))
            elif name == b"moof":
                self.fragments += 1
                for traf in (dict(boxes(b)) for n, b in boxes(body) if n == b"traf"):
                    self._count(traf)
            at += size
        self.left = self.left[at:]

    def _open(self, trak: dict[bytes, bytes]) -> None:
        scale = int.from_bytes(dict(boxes(trak[b"mdia"]))[b"mdhd"][12:16], "big")
        elst = dict(boxes(trak.get(b"edts", b""))).get(b"elst", bytes(16))
        self.tracks[int.from_bytes(trak[b"tkhd"][12:16], "big")] = Track(scale, int.from_bytes(elst[12:16], "big"))

    def _count(self, traf: dict[bytes, bytes]) -> None:
        track, tfdt = self.tracks[int.from_bytes(traf[b"tfhd"][4:8], "big")], traf[b"tfdt"]
        begins = int.from_bytes(tfdt[4 : 12 if tfdt[0] else 8], "big")
        assert begins == track.length, "a fragment begins where the one before ended"
        track.samples += int.from_bytes(traf[b"trun"][4:8], "big")
        track.length += duration(traf)


def test_fragments_last_a_quarter_of_a_second_at_most(tmp_path):
    """Read off the boxes: a fragment's samples times their duration, in the track's time scale."""
    engine = worker(tmp_path)
    seat = Seat(engine, Start(text="one two three"))
    until(lambda: len([e for e in seat.of("chunk") if e.kind == "listening"]) > 3 and seat.of("idle"))
    seat.send(Stop())
    seat.wait("stopped")
    engine.close()
    data, scales, longest, fragments = seat.bytes, {}, 0.0, 0
    for name, body in boxes(data):
        if name == b"moov":
            for trak in (b for n, b in boxes(body) if n == b"trak"):
                inner = dict(boxes(trak))
                track = int.from_bytes(inner[b"tkhd"][12:16], "big")
                scales[track] = int.from_bytes(dict(boxes(inner[b"mdia"]))[b"mdhd"][12:16], "big")
        elif name == b"moof":
            fragments += 1
            for traf in (b for n, b in boxes(body) if n == b"traf"):
                inner = dict(boxes(traf))
                longest = max(longest, duration(inner) / scales[int.from_bytes(inner[b"tfhd"][4:8], "big")])
    assert fragments >= seat.frames / 24 / 0.25 - 1
    assert 0.1 < longest <= 0.25 + 1 / 24, "the muxer cuts at the frame that reaches a quarter"


class Hushed(MockStudio):
    """A mock whose words have no tone: AAC takes five times as long for one as for silence, and counts both alike."""

    def open(self, start: Start) -> Actor:
        actor = super().open(start)
        speak = actor.finish
        actor.finish = lambda take: silent(speak(take))  # type: ignore[method-assign]
        return actor


def silent(chunk: Chunk) -> Chunk:
    return replace(chunk, samples=torch.zeros_like(chunk.samples))


@pytest.mark.timeout(7200)
def test_clocks_are_exact_in_a_long_stream(tmp_path):
    """Audio and video of the file differ by 0 samples, by what its own boxes say; an hour with STREAMCHAR_LONG=1,
    else half a minute. Every frame and sample goes through the muxer, and every byte that leaves is read."""
    seconds = 3600 if os.environ.get("STREAMCHAR_LONG") else 30
    engine = Worker(Hushed(speed=1000, size=16), Vault(tmp_path), limits=Limits(unsaid=10**6))
    engine.start()
    words = seconds * 24 // 11 + 1  # a word of four letters lasts 11 frames
    parts = [" ".join(["word"] * min(800, words - first)) for first in range(0, words, 800)]
    seat, tally = Seat(engine, Start(text=parts[0]), once=True), Tally()
    for part in parts[1:]:
        seat.send(Say(text=part))

    def over() -> bool:
        time.sleep(0.02)
        seat.read()
        tally.read(seat.bytes)
        seat.bytes = b""
        return bool(seat.events) and seat.events[-1].type == "stopped"

    until(over, 7000)
    engine.close()
    frames = seat.events[-1].frames
    assert frames == seat.frames and frames >= 24 * seconds and not tally.left
    assert tally.fragments >= frames / 24 / 0.26
    video, audio = (tally.tracks[each] for each in sorted(tally.tracks))
    assert video.samples == frames and video.length * 24 == frames * video.scale and not video.skipped
    assert audio.scale == 48_000 and audio.skipped == 1024, "the encoder's priming lies before time 0"
    assert audio.length - audio.skipped == frames * 2000, "0 samples apart"
    spoken = seat.of("spoken")
    assert [word.index for word in spoken] == list(range(len(spoken))) and len(spoken) == words
