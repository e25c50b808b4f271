"""Snapshots of live sessions on disk: the last few of each, so that a client goes on exactly where its file ends.

Servers may share a folder: whoever restores a session owns it from then on, and who owned it before finds out when it
wants to write the next snapshot, which is before the next chunk goes out.

A file's name is made of an id that this module drew and of numbers; an id that a client sends is only looked up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import threading
import time
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
        except OSError as error:
            raise InputError(f"cannot make the snapshot folder {folder}: {error.strerror}; choose another") from error
        self._entries: dict[str, list[int]] = {}
        self._scan()
        self._expire()

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
        ages: dict[str, float] = {}
        for session in list(self._entries):
            try:
                ages[session] = self._age(session)
                if ages[session] > MAX_AGE:  # unless another server has gone on with it
                    self._scan(session)
                    ages[session] = self._age(session)
            except (OSError, LookupError):
                self._entries.pop(session, None)
        for session in sorted(ages, key=lambda name: -ages[name]):
            if ages[session] > MAX_AGE or len(self._entries) > MAX_SESSIONS:
                self.forget(session)
