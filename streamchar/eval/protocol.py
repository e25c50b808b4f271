"""Protocols: which clips are made, fixed in JSON files so that no change of code moves them.

Source: paper section 5 (a short set of 150 clips of 10 s from transcripts and first frames, a long set of 50 streams
of 5 minutes with transcripts of over 300 words). EMTD itself is not ours to ship: `short` and `long` are that shape
from held-out characters and held-out sentences of the cartoon world, and a user who has EMTD (or anything else) gives
a file of their own by path:

    {"schema": "streamchar-protocol/1", "name": "emtd-short", "seconds": 10, "about": "...", "items": [
        {"name": "clip-000", "transcript": "What is said.", "picture": "clip-000.png",
         "prompt": "how it behaves", "voice": "clip-000.wav", "reference": "clip-000.mp4", "noise_seed": 0}]}

`name`, `transcript` and one of `picture` (file) and `character` (seed of the world) are needed; paths are relative to
the file; `voice` is a sound file, or for a `character` the index of one of the world's voices, heard saying
`voice_text`; `reference` is the true video of the item.

`python -m streamchar.eval.protocol FOLDER` builds the shipped files anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from streamchar.errors import DataError, InputError
from streamchar.eval.entries import Kind, check

SCHEMA = "streamchar-protocol/1"
FOLDER = Path(__file__).parents[1] / "assets" / "protocols"
FAST = "-fast"
"""Ends the names of the variants for two cores: fewer and shorter clips, never to be compared with the whole ones."""
_KINDS: Mapping[str, Kind] = {
    "prompt": "text", "voice_text": "text", "picture": "text", "reference": "text", "seconds": "a number",
    "direction": "[mood, gesture, energy]",
}  # fmt: skip
"""Of an item's keys; the others' values are checked further."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clip to make."""

    name: str
    transcript: str
    prompt: str = ""
    noise_seed: int = 0
    character: int | None = None
    """Seed of the world's character; else `picture` shows who speaks."""
    picture: Path | None = None
    speaker: int | None = None
    """Index of the world's voice, the protocol's `voice` where that is a number."""
    voice: Path | None = None
    """A sound file with the voice to be matched; the suite writes it where the item has a speaker."""
    voice_text: str | None = None
    """What the reference voice says: another sentence than the transcript's."""
    direction: tuple[str, str, str] | None = None
    """Mood, gesture, energy that the prompt asks for (cartoon world)."""
    performance: int = 0
    """Seed of the true performance: tempo, pauses and motion of the reference video."""
    seconds: float | None = None
    """About how long the world's teacher speaks."""
    reference: Path | None = None
    """The true video, where it is a file."""

    @property
    def fingerprint(self) -> str:
        """Of all that a clip depends on; files count by what they hold, not by where they lie."""
        plain = asdict(self) | {"name": None, "reference": None, "seconds": None}
        return digest({k: file_hash(v) if isinstance(v, Path) else v for k, v in plain.items()})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A named list of items."""

    name: str
    seconds: float
    """The aimed length of a clip."""
    items: tuple[Item, ...]
    about: str = ""
    seed: int = 0

    @property
    def fast(self) -> bool:
        return self.name.endswith(FAST)

    def first(self, count: int | None) -> Protocol:
        """The first `count` clips; raises `InputError` if there are not so many."""
        if count is None:
            return self
        if not 1 <= count <= len(self.items):
            raise InputError(f"--clips must be from 1 to {len(self.items)} for the protocol {self.name}, got {count}")
        return replace(self, items=self.items[:count])

    def later(self, seed: int) -> Protocol:
        """The same items with other noise."""
        moved = tuple(replace(i, noise_seed=i.noise_seed + seed) for i in self.items)
        return replace(self, items=moved, seed=self.seed + seed)


def digest(value: Any) -> str:
    """sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                hasher.update(part)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return hasher.hexdigest()


def content_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """Of (name, transcript): evaluations of the same clips may be compared, whoever made the videos."""
    return digest(sorted(pairs))


def shipped() -> tuple[str, ...]:
    """Names of the protocols in the package."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.json")))


def load(source: str, *, fast: bool = False) -> Protocol:
    """A shipped protocol by name, or a user's by path; raises `InputError` and `DataError`."""
    if source.endswith(".json"):
        if fast:
            raise InputError("--fast goes with the shipped protocols; shorten your own file, or give --clips")
        return read(Path(source))
    name = source + FAST if fast and not source.endswith(FAST) else source
    if name not in shipped():
        raise InputError(f"unknown protocol {source!r}; one of {', '.join(shipped())}, or the path of a .json file")
    return read(FOLDER / f"{name}.json")


def read(path: Path) -> Protocol:
    """A protocol file; every fault is one `DataError` that names the item and the key."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the protocol {path}: {error}") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("items"), list):
        raise DataError(f'{path}: expected a protocol {{"schema": "{SCHEMA}", "name": ..., "items": [...]}}')
    check(value, {"name": "text", "about": "text", "seed": "a whole number"}, str(path))
    items = tuple(_item(entry, number, path) for number, entry in enumerate(value["items"], 1))
    names = [i.name for i in items]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not items:
        raise DataError(f"{path}: expected items with names of their own, got {twice[0] if twice else 'no item'}")
    name, seconds = value.get("name") or path.stem, value.get("seconds")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise DataError(f"{path}: expected seconds, the aimed length of a clip, got {seconds!r}")
    if not _NAME.fullmatch(name):
        raise DataError(f"{path}: expected a name of letters, digits, dot, dash and underscore, got {name!r}")
    return Protocol(
        name=name, seconds=float(seconds), items=items, about=value.get("about") or "", seed=value.get("seed") or 0,
    )  # fmt: skip


def _item(entry: Any, number: int, path: Path) -> Item:
    where = f"{path}, item {number}"
    if not isinstance(entry, Mapping):
        raise DataError(f'{where}: expected {{"name": ..., "transcript": ...}}, got {str(entry)[:60]}')
    known = [f.name for f in fields(Item) if f.name != "speaker"]
    for key in entry:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise DataError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    name, text = entry.get("name"), entry.get("transcript")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"{where}: expected a name of letters, digits, dot, dash and underscore, got {name!r}")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} ({name}): expected a transcript, got {text!r}")
    if (entry.get("picture") is None) == (entry.get("character") is None):
        raise DataError(f"{where} ({name}): expected one of picture (a file) and character (a seed of the world)")
    check(entry, _KINDS, f"{where} ({name})")
    values = {key: value for key, value in entry.items() if value is not None}
    for key in ("picture", "voice", "reference"):
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
            if not values[key].is_file():
                raise DataError(f"{where} ({name}): there is no file {values[key]}")
    for key in ("noise_seed", "performance", "character", "voice"):
        given = values.get(key, 0)
        if not isinstance(given, Path) and (type(given) is not int or given < 0):
            raise DataError(f"{where} ({name}): {key} must be a whole number of 0 or more, got {given!r}")
    if isinstance(values.get("voice"), int) and "character" not in values:
        raise DataError(f"{where} ({name}): a voice's number goes with a character; give a sound file with a picture")
    if isinstance(values.get("voice"), int):
        values["speaker"] = values.pop("voice")
    if "direction" in values:
        values["direction"] = tuple(values["direction"])
    return Item(**values)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What the builder aims at."""

    count: int
    low: float
    high: float
    """Seconds of speech: from low to high."""
    seed: int


SHAPES = {
    "short": _Shape(count=150, low=9.0, high=10.5, seed=41_000),
    "long": _Shape(count=50, low=295.0, high=302.0, seed=42_000),
    "short-fast": _Shape(count=24, low=4.2, high=5.2, seed=43_000),
    "long-fast": _Shape(count=4, low=61.0, high=65.0, seed=44_000),
}
GAP = 0.075
"""Mean pause between two sentences of the world, in seconds."""
ROOM = 2.2
"""Seconds that are left for a last sentence, or none: few are shorter."""
FITTING = 200
"""Sentences to choose the last one from."""


def build(name: str) -> dict[str, Any]:
    """A shipped protocol from the world: one held-out character a clip; no held-out sentence comes again before all
    have been used."""
    from streamchar.world.prompt import phrase, sample_direction
    from streamchar.world.text import sentences

    shape = SHAPES[name]
    pool: list[str] = []
    items = []
    for index in range(shape.count):
        seed = shape.seed + index
        who, direction = _pick(seed, index), sample_direction(seed)
        if len(pool) < shape.high + FITTING:  # a held-out sentence lasts 2.5 s on average
            pool = list(dict.fromkeys([*pool, *sentences(seed, 4000, held_out=True)]))
        voice_text, chosen, seconds = _choose(pool, who.voice, shape)
        items.append({
            "name": f"{name}-{index:03d}", "character": who.seed, "voice": who.voice, "voice_text": voice_text,
            "prompt": phrase(direction, seed), "direction": [direction.mood, direction.gesture, direction.energy],
            "transcript": " ".join(chosen), "noise_seed": index, "performance": seed, "seconds": round(seconds, 2),
        })  # fmt: skip
        logger.info("%s %d: %.1f s, %d words", name, index, seconds, len(items[-1]["transcript"].split()))
    aimed = {"short": 10, "long": 300, "short-fast": 5, "long-fast": 60}[name]
    about = (
        f"{shape.count} clips of about {aimed} s: held-out characters and held-out sentences of the cartoon world"
        + (", a fast variant for two cores" if name.endswith(FAST) else "")
    )
    return {"schema": SCHEMA, "name": name, "seconds": aimed, "about": about, "seed": 0, "items": items}


def _pick(seed: int, index: int) -> Any:
    """A held-out character with a trained voice whose proportions do not depend on how many voices there are."""
    from streamchar.world.character import character
    from streamchar.world.clips import pick_character

    while True:
        who = pick_character(seed, held_out=True)
        if replace(character(who.seed), voice=who.voice) == who:
            return who
        seed += 500 + index  # far from the neighbours' seeds


def _choose(pool: list[str], voice: int, shape: _Shape) -> tuple[str, list[str], float]:
    """A sentence for the reference voice, those of the transcript (all taken out of `pool`), and how long the teacher
    takes for the transcript."""
    from streamchar.world.voice import speak

    voice_text: str | None = None
    chosen: list[str] = []
    total = 0.0
    for text in list(pool):
        seconds = speak(text, voice).seconds
        if voice_text is None and 2.5 <= seconds <= 5.0:  # long enough for a speaker embedding
            voice_text = text
        elif shape.low <= total + GAP + seconds <= shape.high or total + GAP + seconds <= shape.high - ROOM:
            chosen.append(text)
            total += seconds + (GAP if len(chosen) > 1 else 0.0)
        if voice_text is not None and total >= shape.low:
            for used in (voice_text, *chosen):
                pool.remove(used)
            return voice_text, chosen, total
    raise DataError(f"{len(pool)} sentences do not make {shape.low:g} to {shape.high:g} s, got {total:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the shipped protocols.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(SHAPES))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.names:
        text = json.dumps(build(name), indent=1, ensure_ascii=False)
        (given.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
