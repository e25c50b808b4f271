"""What the pieces of a folder were made with, in a JSON file beside them: a later call cannot mix others in unseen."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamchar.errors import DataError, InputError

log = logging.getLogger(__name__)

NAME = "recipe.json"
"""Beside shards."""


def read_origin(path: Path) -> dict[str, Any] | None:
    """What a recipe file says; None where there is none. Raises `DataError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable ({error}); delete it if you know what its folder holds") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected one JSON object, got a {type(value).__name__}; delete it")
    return value


def settle(path: Path, origin: Mapping[str, Any], *, begun: bool, known: Mapping[str, Any] | None = None) -> None:
    """Hold a folder to one recipe: the first call writes `path`, all others must be of the same. Raises `InputError`.

    `begun`: whether there are pieces; without any there is nothing to mix. Pieces without a recipe are older than
    recipes: of `origin` only what they tell themselves, `known`, can be compared, and no more is claimed of them.
    """
    if begun:
        found = read_origin(path)
        if found is None:
            log.warning("%s holds data without a recipe: not all of it can be compared with this call", path.parent)
        for key, value in ((known or {}) if found is None else origin).items():
            stored = value if found is None else found.get(key)
            if stored != origin.get(key):
                raise InputError(
                    f"{path.parent} holds data with {key} = {_short(stored)}, this call has {_short(origin.get(key))}: "
                    "give the same options, or another folder"
                )
        return
    part = path.with_suffix(f".{os.getpid()}.part")  # two machines may begin the same folder
    part.write_text(json.dumps(dict(origin), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def encoders(folders: Iterable[Path]) -> dict[str, str]:
    """What latents of these folders together were encoded with, where recipes say so. Raises `DataError`."""
    found: dict[str, str] = {}
    for folder in folders:
        origin = read_origin(folder / NAME) or {}
        for key in ("audio_codec", "video_codec"):
            value = origin.get(key)
            if value is not None and found.setdefault(key, value) != value:
                raise DataError(
                    f"the shards in {folder} are of another {key} than the run's other data; encode both with one"
                )
    return found


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:16]
