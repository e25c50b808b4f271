"""The session protocol, version 1: typed messages and events, and how they look as JSON.

A message comes from a client, an event goes to it; both are one JSON object with a `type`. Pictures and sound
travel beside them, as binary pieces of one fragmented MP4. `docs/protocol.md` is written from this file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from streamchar.errors import StreamCharError

VERSION = 1
MIME = 'video/mp4; codecs="avc1.640028,mp4a.40.2"'
MAX_NUMBER = 2**53
"""Whole numbers beyond it are not exact in a browser."""

Code = Literal[
    "bad-message", "unsupported-version", "illegal", "bad-input", "too-long", "too-large", "busy", "rate",
    "forbidden", "unknown-session", "slow-client", "idle-timeout", "shutting-down", "internal",
]  # fmt: skip


class ProtocolError(StreamCharError):
    """A refused message: a code for programs, a sentence for people, and what to do."""

    def __init__(self, code: Code, message: str, hint: str = "", legal: tuple[str, ...] = ()) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code: Code = code
        self.message, self.hint, self.legal = message, hint, legal

    def event(self, fatal: bool = False) -> Error:
        return Error(code=self.code, message=self.message, hint=self.hint, legal=self.legal, fatal=fatal)


# ---- messages: client to server -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Start:
    """Begin a session."""

    type: ClassVar[str] = "start"
    protocol: int = VERSION
    character: int = 7
    """A seed of the cartoon world; ignored where a picture is given."""
    picture: str = ""
    """Base64 of a PNG, JPEG or WebP file."""
    prompt: str = ""
    voice: int = -1
    """Index into the world's voices; -1 is the character's own."""
    recording: str = ""
    """Base64 of a sound file to take the voice from."""
    seed: int = 0
    text: str = ""
    """Said at once; may be empty: the character then listens."""


@dataclass(frozen=True, kw_only=True)
class Say:
    """Append text to what is being spoken."""

    type: ClassVar[str] = "say"
    text: str
    id: int = 0
    """Comes back in `said`."""


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """Stop speaking; what was not spoken yet is forgotten."""

    type: ClassVar[str] = "interrupt"
    at: float = -1.0
    """The player's position in seconds; -1 lets the server estimate it."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Produce nothing until `resume`."""

    type: ClassVar[str] = "pause"


@dataclass(frozen=True, kw_only=True)
class Resume:
    type: ClassVar[str] = "resume"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Save the session now."""

    type: ClassVar[str] = "snapshot"


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Go on with a session after its connection, or the server, was lost."""

    type: ClassVar[str] = "restore"
    session: str
    protocol: int = VERSION
    frames: int = 0
    """Video frames of the session that the client holds."""


@dataclass(frozen=True, kw_only=True)
class Playhead:
    """Where the player stands, about twice a second: production keeps a fixed lead before it."""

    type: ClassVar[str] = "playhead"
    at: float


@dataclass(frozen=True, kw_only=True)
class Stop:
    """End the session; the file is finished and its last bytes follow."""

    type: ClassVar[str] = "stop"


Message = Start | Say | Interrupt | Pause | Resume | Snapshot | Restore | Playhead | Stop
MESSAGES: dict[str, type] = {kind.type: kind for kind in typing.get_args(Message)}


# ---- events: server to client -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The session exists. The next binary piece begins a new MP4 whose time 0 is `frames` of the session."""

    type: ClassVar[str] = "ready"
    protocol: int = VERSION
    session: str
    width: int
    height: int
    fps: int = 24
    mime: str = MIME
    resumed: bool = False
    frames: int = 0
    words: tuple[str, ...] = ()
    """All words so far (of a resumed session)."""
    spoken: int = 0
    """Words of them whose end was spoken."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """No room yet: `place` 1 is next."""

    type: ClassVar[str] = "queued"
    session: str
    place: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """Text was taken: its words have the indices `first`, `first` + 1, ... of the session."""

    type: ClassVar[str] = "said"
    id: int = 0
    first: int
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A word and when it is heard, in seconds of the session; it comes before its chunk's bytes."""

    type: ClassVar[str] = "spoken"
    index: int
    text: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class ChunkSent:
    """The binary piece that follows."""

    type: ClassVar[str] = "chunk"
    index: int
    kind: Literal["speech", "listening"]
    frames: int
    """Video frames before this piece."""
    count: int
    """Video frames in it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    type: ClassVar[str] = "stats"
    factor: float
    """Real-time factor of the device: playing time over computing time; above 1 is fast enough."""
    lead: float
    """Seconds produced ahead of the player."""
    first_frame: float
    """Seconds from the text to its first piece."""
    sessions: int
    capacity: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What a person should know; nothing is wrong with the session."""

    type: ClassVar[str] = "notice"
    code: Literal["slow-model"]
    message: str
    wait: float = 0.0
    """Seconds of listening, about, before speech goes on."""


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Everything is said: the character listens."""

    type: ClassVar[str] = "idle"
    frames: int


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """`spoken` words of the session were heard; `dropped` are forgotten."""

    type: ClassVar[str] = "interrupted"
    spoken: int
    dropped: int
    text: str
    """The last words heard, for a transcript."""


@dataclass(frozen=True, kw_only=True)
class Paused:
    type: ClassVar[str] = "paused"


@dataclass(frozen=True, kw_only=True)
class Resumed:
    type: ClassVar[str] = "resumed"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Answer to `snapshot`."""

    type: ClassVar[str] = "saved"
    session: str
    frames: int


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The session is over; with reason `restart` it can be restored."""

    type: ClassVar[str] = "stopped"
    reason: Literal["asked", "finished", "restart"]
    session: str = ""
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class Error:
    type: ClassVar[str] = "error"
    code: Code
    message: str
    hint: str = ""
    legal: tuple[str, ...] = ()
    """Messages that would be accepted now."""
    fatal: bool = False
    """Whether the connection ends."""


Event = (
    Ready | Queued | Said | Spoken | ChunkSent | Stats | Notice | Idle | Interrupted | Paused | Resumed | Saved
    | Stopped | Error
)
EVENTS: dict[str, type] = {kind.type: kind for kind in typing.get_args(Event)}


# ---- JSON ---------------------------------------------------------------------------------------


def dump(value: Message | Event) -> str:
    """One line of JSON."""
    return json.dumps({"type": value.type, **dataclasses.asdict(value)}, separators=(",", ":"))


def parse_message(text: str | bytes) -> Message:
    """JSON to a message. Raises `ProtocolError` that says what is wrong with it."""
    message = _parse(text, MESSAGES)
    if isinstance(message, Start | Restore) and message.protocol != VERSION:
        raise ProtocolError(
            "unsupported-version", f"this server speaks protocol {VERSION}, got {message.protocol}", "reload the page"
        )
    return message


def parse_event(text: str | bytes) -> Event:
    """JSON to an event (the Python client)."""
    return _parse(text, EVENTS)


def _parse(text: str | bytes, known: dict[str, type]) -> Any:
    try:
        given = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad-message", f"not JSON: {error}"[:200], "send one JSON object a message") from None
    if not isinstance(given, dict):
        raise ProtocolError("bad-message", f"expected a JSON object, got {type(given).__name__}", 'send {"type": ...}')
    kind = given.pop("type", None)
    if not isinstance(kind, str) or kind not in known:
        raise ProtocolError("bad-message", f"unknown message type {_brief(kind)}", _near(kind, known))
    wanted = _fields(known[kind])
    for name in given:
        if name not in wanted:
            raise ProtocolError("bad-message", f"{kind} has no field {_brief(name)}", _near(name, wanted))
    values = {name: _value(f"{kind}.{name}", value, wanted[name]) for name, value in given.items()}
    missing = [f.name for f in dataclasses.fields(known[kind]) if _required(f) and f.name not in values]
    if missing:
        raise ProtocolError("bad-message", f"{kind} needs {', '.join(missing)}", "add it")
    return known[kind](**values)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


_T = TypeVar("_T")


def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def _value(name: str, value: Any, wanted: Any) -> Any:
    """`value` as the field's type, or an error that names both."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        fits = isinstance(value, str) and value in inner
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(name, item, inner[0]) for item in value)
        fits = False
    elif origin is dict:
        if isinstance(value, dict):
            return {str(key): _value(name, item, inner[1]) for key, item in value.items()}
        fits = False
    elif wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fits = fits and abs(value) <= MAX_NUMBER
    elif wanted is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    else:
        fits = isinstance(value, wanted)
    if not fits:
        expected = wanted.__name__ if isinstance(wanted, type) and not isinstance(wanted, types.GenericAlias) else "one"
        raise ProtocolError("bad-message", f"{name} must be a JSON {_JSON.get(expected, 'value')}, got {_brief(value)}")
    return float(value) if wanted is float else value


_JSON = {"int": "whole number within 2**53", "float": "number", "str": "string", "bool": "boolean"}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _near(name: Any, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name)[:40], list(known), 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
