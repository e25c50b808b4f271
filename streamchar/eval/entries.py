"""What people wrote as JSON (protocols, transcripts, answers): a wrong type is one line with the file and the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from streamchar.errors import DataError

Kind = Literal["text", "a number", "a whole number", "[mood, gesture, energy]", "a list of texts", "an object"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


FITS: Mapping[Kind, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "a number": _number,
    "a whole number": lambda value: _number(value) and isinstance(value, int),
    "[mood, gesture, energy]": lambda value: _texts(value) and len(value) == 3,
    "a list of texts": _texts,
    "an object": lambda value: isinstance(value, Mapping),
}


def check(entry: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, *, needed: bool = False) -> None:
    """Raise `DataError` where a value is not what its key holds; null is as good as none, which only `needed`
    forbids."""
    for key, kind in kinds.items():
        value = entry.get(key)
        if value is None and not needed:
            continue
        if not FITS[kind](value):
            got = "none" if value is None else repr(value)[:60]
            raise DataError(f"{where}: {key} must be {kind}, got {got}")
