"""Snapshots of live sessions on disk: the last few of each, so that a client goes on exactly where its file ends.

Servers may share a folder: whoever restores a session owns it from then on, and who owned it before finds out when it
wants to write the next snapshot, which is before the next chunk goes out.

A file's name is made of an id that this module drew and of numbers; an id that a client sends is only looked up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from streamchar import clock
from streamchar.errors import InputError, StateError
from streamchar.serve.actor import Actor
from streamchar.serve.live import Record
from streamchar.serve.protocol import ProtocolError, Start

log = logging.getLogger(__name__)

KEEP = 8
"""Snapshots of a session: more chunks than can be on their way to a client."""
MAX_SESSIONS = 256
MAX_AGE = 3600.0
"""Seconds since anybody last had the session open."""
YOUNG = 300.0
"""What is younger is not forgotten to make room: it may be played, here or elsewhere."""
MAX_LISTENING = int(MAX_AGE) * clock.VIDEO_FPS
"""Frames that a client may hold beyond a snapshot."""
Which = Literal["surplus", "others", "later"]
_ID = re.compile(r"[0-9a-f]{32}")


class TakenError(StateError):
    """Another server plays the session now."""


class Vault:
    """Snapshots under one folder of our own. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.RLock()
        self._owner = secrets.token_hex(16)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._shut()
        except OSError as error:
            raise InputError(
                f"cannot make the snapshot folder {folder} for its user alone: {error.strerror}; choose another"
            ) from error
        self._entries: dict[str, list[int]] = {}
        self._expire()

    def _shut(self) -> None:
        """Nobody else may read what people typed, nor the ids that give access to it. Only a folder of our own is
        shut. Raises `InputError`."""
        if os.name != "posix" or not self._folder.stat().st_mode & 0o077:
            return
        if not all(_ID.fullmatch(path.name.partition(".")[0]) for path in self._folder.iterdir()):
            raise InputError(
                f"others can read the snapshot folder {self._folder}, and it holds other things than snapshots; give a "
                "folder of its own, which is then made for its user alone"
            )
        self._folder.chmod(0o700)

    def _scan(self, session: str = "*") -> None:
        """Read from the folder what is kept, of all sessions or of one (whose id was checked)."""
        found: dict[str, list[int]] = {} if session == "*" else {session: []}
        for path in self._folder.glob(f"{session}.*.json"):
            name, _, frames = path.stem.partition(".")
            if _ID.fullmatch(name) and frames.isdigit():
                found.setdefault(name, []).append(int(frames))
        for name, kept in found.items():
            kept.sort()
            self._entries[name] = kept
            if not kept:
                del self._entries[name]

    def save(self, start: Start, record: Record, actor: Actor, *, forget: Which = "surplus") -> None:
        """Write a snapshot and forget, of the others, those beyond `KEEP`; or all (after an interrupt none is true any
        more); or the later ones (a client that was restored goes on from here). Raises `TakenError`."""
        with self._lock:
            self._save(start, record, actor, forget)

    def _save(self, start: Start, record: Record, actor: Actor, forget: Which) -> None:
        if not self._entries.get(record.session):
            self._expire()
        kept = self._entries.setdefault(record.session, [])
        opening = self._folder / f"{record.session}.start"
        if not kept:
            opening.write_text(json.dumps(asdict(start)), encoding="utf-8")
            self._claim(record.session)
        elif self._claim_of(record.session) != self._owner:
            raise TakenError("this session goes on with another server; close this window")
        actor.save(self._path(record.session, record.frames, "state"))
        entry = self._path(record.session, record.frames, "json")
        part = entry.with_suffix(".part")
        part.write_text(json.dumps(asdict(record)), encoding="utf-8")
        part.replace(entry)  # it exists only when it is whole
        if record.frames not in kept:
            kept.append(record.frames)
            kept.sort()
        if forget == "later":
            surplus = [f for f in kept if f > record.frames]
        else:
            surplus = [f for f in kept if f != record.frames] if forget == "others" else kept[:-KEEP]
        for frames in surplus:
            kept.remove(frames)
            self._remove(record.session, frames)

    def find(self, session: str, frames: int) -> tuple[Start, Record, Path, list[str]]:
        """What the client needs to go on after `frames`: the session's start, the record, the actor's state, and
        texts that were said later. Raises `ProtocolError` "unknown-session"."""
        with self._lock:
            return self._find(session, frames)

    def _find(self, session: str, frames: int) -> tuple[Start, Record, Path, list[str]]:
        if _ID.fullmatch(session):
            self._scan(session)
        kept = self._entries.get(session, [])
        unknown = ProtocolError("unknown-session", "this session is not known (any more)", "start a new one")
        if not kept:
            raise unknown
        chosen = max((f for f in kept if f <= frames), default=kept[0])
        try:
            start = Start(**json.loads((self._folder / f"{session}.start").read_text(encoding="utf-8")))
            record, latest = self._read(session, chosen), self._read(session, kept[-1])
            place = self._place(session, chosen, frames)
            self._claim(session)
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("a snapshot cannot be read: %s", error)
            raise unknown from None
        record = replace(record, frames=place)
        later = list(latest.said[len(record.said) :]) if latest.turn == record.turn else list(latest.said)
        return start, record, self._path(session, chosen, "state"), later

    def _place(self, session: str, chosen: int, frames: int) -> int:
        """Where the new file begins: where the client's ends, unless that is within a chunk of speech; then where
        that chunk began, for it is made again."""
        after = [f for f in self._entries[session] if f > chosen]
        began = self._read(session, after[0]).began if after else -1
        if chosen <= began < frames:
            return began
        return max(chosen, min(frames, chosen + MAX_LISTENING))

    def forget(self, session: str) -> None:
        """The session is over for good."""
        with self._lock:
            for frames in self._entries.pop(session, []):
                self._remove(session, frames)
            for ending in ("start", "owner"):
                with contextlib.suppress(OSError):
                    (self._folder / f"{session}.{ending}").unlink()

    def expire(self, playing: Collection[str] = ()) -> None:
        """Forget what nobody has had open for `MAX_AGE`, whichever server wrote it; `playing` are open now."""
        with self._lock:
            for session in playing:
                if kept := self._entries.get(session):
                    with contextlib.suppress(OSError):
                        os.utime(self._path(session, kept[-1], "json"))
            self._expire()

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, session: str, frames: int) -> Record:
        plain = json.loads(self._path(session, frames, "json").read_text(encoding="utf-8"))
        for name in ("words", "said"):
            plain[name] = tuple(plain[name])
        return Record(**plain)

    def _claim(self, session: str) -> None:
        part = self._folder / f"{session}.{self._owner}.part"
        part.write_text(self._owner, encoding="utf-8")
        part.replace(self._folder / f"{session}.owner")

    def _claim_of(self, session: str) -> str:
        """Who owns a session; nobody does if the folder was emptied."""
        try:
            return (self._folder / f"{session}.owner").read_text(encoding="utf-8")
        except OSError:
            return ""

    def _age(self, session: str) -> float:
        """Seconds since the newest snapshot."""
        return time.time() - self._path(session, self._entries[session][-1], "json").stat().st_mtime

    def _path(self, session: str, frames: int, ending: str) -> Path:
        if not _ID.fullmatch(session):
            raise StateError("a session's id must be 32 hex digits")
        return self._folder / f"{session}.{frames:012d}.{ending}"

    def _remove(self, session: str, frames: int) -> None:
        for ending in ("json", "state"):
            with contextlib.suppress(OSError):
                self._path(session, frames, ending).unlink()

    def _expire(self) -> None:
        self._scan()
        ages: dict[str, float] = {}
        for session in list(self._entries):
            try:
                ages[session] = self._age(session)
            except OSError:
                self._entries.pop(session)
        for session in sorted(ages, key=lambda name: -ages[name]):
            limit = YOUNG if len(self._entries) > MAX_SESSIONS else MAX_AGE
            if ages[session] > limit:
                self.forget(session)
        for path in self._folder.iterdir():  # of sessions that were cut off before their first snapshot was whole
            name = path.name.partition(".")[0]
            if _ID.fullmatch(name) and name not in self._entries:
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > MAX_AGE:
                        path.unlink()
