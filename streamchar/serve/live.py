"""One live session: its place in the protocol, its clock, its words and its one continuous file."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamchar import clock
from streamchar.serve.actor import LISTEN_FRAMES, Actor
from streamchar.serve.gather import MOST_AHEAD, chunks_to_gather, is_slow, wait_seconds
from streamchar.serve.machine import Machine
from streamchar.serve.outbox import Outbox
from streamchar.serve.pace import Pace
from streamchar.serve.protocol import ChunkSent, Event, Idle, Interrupted, Notice, Ready, Said, Say, Spoken, Start
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk

SPEECH_LEAD = 1.5
"""Seconds before the player below which the next chunk is made; at most one chunk more is ever ahead."""
LISTEN_LEAD = 0.6
TIGHT = 0.5
"""Whoever plays and has less than this left comes before everybody else."""
SOON = 2.0
"""Seconds within which a first chunk is waited for without a picture: listening that is sent before it delays it."""
LATE = 0.3
SAMPLES_PER_FRAME = clock.SAMPLES_PER_CHUNK // clock.FRAMES_PER_CHUNK
HEARD = 400
"""Words whose times are kept to tell, at an interrupt, which were heard."""


class Pipe:
    """Where the muxer writes; emptied after each piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def drain(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a snapshot holds beside the actor's own state."""

    session: str
    frames: int = 0
    words: tuple[str, ...] = ()
    base: int = 0
    """Index of the turn's first word."""
    spoken: int = 0
    turn: int = 0
    said: tuple[str, ...] = ()
    """Texts of the turn."""
    offset: int = 0
    """Frames of listening before the last chunk of speech: word times are moved by it."""
    began: int = -1
    """Frame at which the last chunk of speech began."""


class Live:
    """State of one session. `lock` guards bookkeeping and is never held for long; `acting` guards the actor."""

    def __init__(
        self, start: Start, outbox: Outbox, *, record: Record | None = None, once: bool = False, address: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        record = record or Record(session=secrets.token_hex(16))
        self.id, self.start, self.outbox, self.once, self.address = record.session, start, outbox, once, address
        self.lock, self.acting = threading.RLock(), threading.RLock()
        self.machine = Machine()
        self.actor: Actor | None = None
        self.resumed = record.frames > 0 or record.spoken > 0 or record.words != ()
        self.frames, self.first = record.frames, record.frames
        self.words, self.base, self.spoken = list(record.words), record.base, record.spoken
        self.turn, self.said = record.turn, list(record.said)
        self.pace = Pace(now, first=record.frames)
        self.pending = 0
        """Texts that the device has not taken yet."""
        self.seat = 0
        """Place in the order in which sessions were let in; 0 is not yet."""
        self.in_flight = 0
        """Chunks that are being made, wait or are being decoded."""
        self.held: deque[Any] = deque()
        """Those of them that wait to be decoded."""
        self.slow, self.gathering, self.goal = False, False, 1
        """Whether the device is slower than playback; whether speech is kept back until `goal` chunks are made."""
        self.hushing = False
        """It was interrupted, and the device has not heard of it yet: its actor still has the old text."""
        self.epoch = 0
        """Takes of an older epoch were interrupted."""
        self.begun = False
        """The turn's first chunk is out."""
        self.stopping: str | None = None
        self.early: list[Say] = []
        """Texts that came while it waited."""
        self.muxer: Muxer | None = None
        self.pieces = 0
        self.asked_at = now()
        self.due_at = 0.0
        """When its first chunk should be there, if that is soon."""
        self.first_frame = 0.0
        self.stats_at = now()
        self._pipe, self._now = Pipe(), now
        self._offset, self._began = record.offset, record.began
        self._heard: deque[Spoken] = deque(maxlen=HEARD)

    # -- what may be done with it now ---------------------------------------------------------------

    @property
    def playing(self) -> bool:
        return (
            self.actor is not None and self.stopping is None and not self.machine.paused and self.outbox.room
            and self.machine.phase in ("listening", "speaking")
        )

    def wants_speech(self) -> bool:
        """Whether the device should make its next chunk."""
        with self.lock:
            if not self.playing or self.machine.phase != "speaking" or self.hushing:
                return False
            assert self.actor is not None
            if self.gathering:  # one more than is waited for: the device is not to rest meanwhile
                return not self.actor.finished and self.in_flight <= self.goal
            ahead = self.lead() + self.in_flight * float(clock.CHUNK_SECONDS)
            limit = MOST_AHEAD if self.slow and not self.once else SPEECH_LEAD + self.pace.extra
            return not self.actor.finished and self.in_flight - len(self.held) < 2 and ahead < limit

    def expect(self, seconds: float) -> None:
        """A session that begins with a text has its first chunk in so many seconds."""
        with self.lock:
            fresh = not self.pieces and not self.gathering and self.machine.phase == "speaking"
            self.due_at = self._now() + seconds + LATE if fresh and 0 < seconds < SOON else 0.0

    def unsettled(self) -> bool:
        """Whether whoever came now would take from it: it is about to run dry, or has nothing to play yet."""
        with self.lock:
            if not self.playing or self.once or self.slow or self.gathering:
                return False
            return not self.pieces or self.lead() < TIGHT

    def rank(self, coming: float = 0.0) -> tuple[int, float]:
        """Who is served first, with `coming` seconds on their way to the player: those who are about to run dry, and
        of them the first to be let in, so that too many do not pull each other under; then whoever is least ahead,
        newcomers among them; downloads last."""
        with self.lock:
            if self.once:
                return (2, self.seat)
            ahead = self.lead() + coming
            if not self.pieces:
                return (1, TIGHT)
            return (0, self.seat) if ahead < TIGHT else (1, ahead)

    def wants_listening(self, cushion: float = 0.0) -> bool:
        """Whether a silent piece is due: nothing to say, or the first word is still being made. `cushion`: seconds
        that a busy server gives ahead beyond the usual."""
        with self.lock:
            quiet = self.machine.phase == "listening" or not self.begun or self.gathering
            if not self.pieces and self._now() < self.due_at:
                return False
            lead = LISTEN_LEAD + max(cushion, self.pace.extra)
            return self.playing and quiet and not self.once and self.lead() < lead

    def lead(self) -> float:
        """Seconds ahead of the player; a download is never ahead of anybody."""
        return 0.0 if self.once else self.pace.lead()

    def settled(self, now: float) -> bool:
        """Whether all was said just now: the character listens from here on."""
        with self.lock:
            actor = self.actor
            if actor is None or self.pending or self.in_flight or not actor.finished:
                return False
            if self.machine.phase != "speaking":
                return False
            self.machine, self.begun, self.asked_at = self.machine.spoken(), False, now
            self.gathering = False
            if not self.once:
                self.outbox.put(Idle(frames=self.frames))
            return True

    # -- a model that is slower than playback --------------------------------------------------------

    def gather(self, factor: float) -> None:
        """Keep speech back until enough of it is made to go on without a stall; tells a person if that takes long."""
        with self.lock:
            self.slow = is_slow(factor)
            fresh, self.gathering = not self.gathering, self.slow and not self.once
            if not self.gathering:
                return
            self.goal = chunks_to_gather(len(self.words) - self.spoken, factor)
            wait = wait_seconds(self.goal, factor)
            if fresh and self.goal > 1:
                about = (
                    f"on this machine the model is slower than playback (it makes {factor:.2f} s a second): it gets "
                    f"ahead for about {wait:.0f} s before it speaks"
                )
                self.outbox.put(Notice(code="slow-model", message=about, wait=round(wait, 1)))

    def gathered(self) -> bool:
        """Whether what was waited for is made."""
        with self.lock:
            if not self.gathering or self.actor is None or self.machine.paused:
                return False
            complete = self.actor.finished and not self.pending and self.in_flight == len(self.held)
            return len(self.held) >= self.goal or complete

    def ran_dry(self) -> bool:
        """Whether speech that a slow device makes is about to be played to its end."""
        with self.lock:
            speaking = self.playing and self.machine.phase == "speaking" and self.begun and not self.once
            if not speaking or not self.slow or self.gathering or self.held or not self.pieces:
                return False  # (what is made again after a loss lies where it lay: nothing may come before it)
            assert self.actor is not None
            return not self.actor.finished and self.lead() < LISTEN_LEAD

    def drop_held(self) -> None:
        """Forget what is not decoded; it was neither heard nor saved."""
        with self.lock:
            self.in_flight -= len(self.held)
            self.held.clear()
            self.gathering = False

    # -- words ---------------------------------------------------------------------------------------

    def took(self, words: tuple[str, ...], id: int) -> Said:
        """The actor now has `words` in its turn; those that are new get their indices."""
        with self.lock:
            known = len(self.words) - self.base
            fresh = words[known:]
            self.words += fresh
            return Said(id=id, first=len(self.words) - len(fresh), words=fresh)

    def cut(self, at: float) -> Interrupted:
        """Stop speaking: what the player has heard by `at` counts as spoken, the rest is dropped."""
        with self.lock:
            position = at if at >= 0 else self.pace.position()
            out = [word for word in self._heard if word.end > position + 1e-6]
            spoken = min((word.index for word in out), default=self.spoken)
            heard = [word.text for word in self._heard if word.index < spoken]
            dropped = len(self.words) - spoken
            self.spoken = self.base = len(self.words)  # indices are never used twice
            self.epoch += 1
            self.turn += 1
            self.said, self.pending, self.begun = [], 0, False
            self.drop_held()
            self.hushing = True
            self._heard.clear()
            self.pace.skip()  # the player jumps to where listening begins: that is due now
            return Interrupted(spoken=spoken, dropped=dropped, text=" ".join(heard[-40:]))

    # -- pieces --------------------------------------------------------------------------------------

    def speech(self, chunk: Chunk, epoch: int) -> tuple[list[Event], bytes] | None:
        """Events and bytes of a chunk of speech; None if it was interrupted."""
        with self.lock:
            if epoch != self.epoch:
                return None
            place = self.frames
            offset, before = place - clock.frames(chunk.index), self._offset
            self._offset, self._began = offset, place
            events: list[Event] = []
            own = float(clock.CHUNK_SECONDS) * chunk.index
            for word in chunk.words:
                moved = before if word.start < own else offset
                start = word.start + moved / clock.VIDEO_FPS
                heard = Spoken(
                    index=self.spoken, text=word.text, start=round(start, 4),
                    end=round(word.end + offset / clock.VIDEO_FPS, 4),
                )
                self.spoken += 1
                self._heard.append(heard)
                events.append(heard)
        seconds = {name: round(value, 4) for name, value in chunk.seconds.items()}
        events.append(
            ChunkSent(index=self.pieces, kind="speech", frames=place, count=clock.FRAMES_PER_CHUNK, seconds=seconds)
        )
        return events, self._mux(chunk.frames, chunk.samples)

    def listening(self, frames_THWC: Tensor) -> tuple[list[Event], bytes]:
        """Events and bytes of a silent piece."""
        silence = frames_THWC.new_zeros(LISTEN_FRAMES * SAMPLES_PER_FRAME).float()
        event = ChunkSent(index=self.pieces, kind="listening", frames=self.frames, count=LISTEN_FRAMES)
        return [event], self._mux(frames_THWC, silence)

    def _mux(self, frames_THWC: Tensor, samples_S: Tensor) -> bytes:
        if self.muxer is None:
            self.muxer = Muxer(self._pipe)  # pyright: ignore[reportArgumentType]
        self.muxer.add(frames_THWC, samples_S)
        return self._pipe.drain()

    def deliver(self, events: list[Event], data: bytes, frames: int, epoch: int | None = None) -> None:
        """Hand a piece over. One that is in the file must go out; if its `epoch` is over, its words are not told."""
        with self.lock:
            for event in events:
                if epoch in (None, self.epoch) or not isinstance(event, Spoken):
                    self.outbox.put(event)
            self.outbox.put(data)
            self.frames += frames
            self.pieces += 1
            self.pace.deliver(frames)

    def finish_file(self) -> bytes:
        """The file's last bytes."""
        if self.muxer is None:
            return b""
        muxer, self.muxer = self.muxer, None
        muxer.close()
        return self._pipe.drain()

    def drop_file(self) -> None:
        """Let go of the encoders; nobody reads any more."""
        if self.muxer is not None:
            self.muxer.abort()
            self.muxer = None

    # -- snapshots -----------------------------------------------------------------------------------

    def record(self, frames: int | None = None) -> Record:
        with self.lock:
            return Record(
                session=self.id, frames=self.frames if frames is None else frames, words=tuple(self.words),
                base=self.base, spoken=self.spoken, turn=self.turn, said=tuple(self.said), offset=self._offset,
                began=self._began,
            )

    def ready(self, width: int, height: int) -> Ready:
        with self.lock:
            return Ready(
                session=self.id, width=width, height=height, resumed=self.resumed, frames=self.first,
                words=tuple(self.words), spoken=self.spoken,
            )
