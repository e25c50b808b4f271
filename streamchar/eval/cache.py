"""What was made or measured once: generated clips, readings and features, by the hash of all they depend on.

A killed run leaves whole entries only: each is written beside its place and renamed. Code counts as part of what an
entry depends on, without its comments and docstrings: an edit never lets a stale figure through.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamchar.errors import InputError
from streamchar.eval.metric import Reading
from streamchar.eval.protocol import digest, file_hash
from streamchar.eval.sample import Sample

CLIP, ABOUT = "clip.mp4", "about.json"
PACKAGE = Path(__file__).resolve().parents[1]


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/streamchar/eval`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "streamchar" / "eval"


@lru_cache(maxsize=256)
def code_hash(file: Path) -> str:
    """Of a Python file's code: comments, docstrings and layout do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # pyright: ignore[reportAttributeAccessIssue]
    return digest(ast.dump(tree))


def _imports(file: Path) -> Iterator[Path]:
    """Files of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top, _, rest = name.partition(".")
            path = PACKAGE.joinpath(*rest.split("."))
            if top == PACKAGE.name and rest and path.with_suffix(".py").is_file():
                yield path.with_suffix(".py")


@lru_cache(maxsize=64)
def source_hash(file: Path) -> str:
    """Of the code of a file and of all of this package's code that it reaches by imports."""
    found, ahead = set[Path](), [file.resolve()]
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            ahead.extend(_imports(path))
    return digest(sorted(code_hash(path) for path in found))


def weights_hash(*folders: Path) -> str:
    """Of a model's folder, and of that whose components it shares: configurations and weights."""
    kept = (".json", ".safetensors")
    files = [(f, f.relative_to(folder)) for folder in folders for f in sorted(folder.rglob("*")) if f.suffix in kept]
    return digest([[name.as_posix(), file_hash(f)] for f, name in files])


def fingerprint(sample: Sample) -> str:
    """Of all that a metric may read: the video and what belongs to it. Its name, place and speed do not count."""
    plain = asdict(sample) | {"name": None, "rtf": None}
    return digest({k: file_hash(v) if isinstance(v, Path) else v for k, v in plain.items()})


class Cache:
    """A folder of clips, readings and features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the cache {folder}: {error.strerror}; choose one with --cache") from None

    def _place(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / key

    def clip(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """A generated video and what was noted about it."""
        place = self._place("clips", key)
        about = _read_json(place / ABOUT)
        return (place / CLIP, about) if about is not None and (place / CLIP).is_file() else None

    @contextmanager
    def new_clip(self, key: str) -> Iterator[Path]:
        """A folder to write a clip and its notes into; it gets its name when the block ends well."""
        place = self._place("clips", key)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{key[:12]}.", dir=place.parent))
        try:
            yield part
            if place.exists():  # not whole, or another process was faster
                shutil.rmtree(place)
            os.replace(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def reading(self, key: str) -> Reading | None:
        value = _read_json(self._place("readings", key).with_suffix(".json"))
        try:
            return None if value is None else Reading(**value)
        except TypeError:
            return None

    def keep_reading(self, key: str, reading: Reading) -> None:
        plain = {name: _plain(getattr(reading, name)) for name in ("values", "reasons", "series", "notes")}
        write_json(self._place("readings", key).with_suffix(".json"), plain)

    def features(self, key: str) -> Tensor | None:
        place = self._place("features", key).with_suffix(".safetensors")
        try:
            return load_file(place)["features"] if place.is_file() else None
        except (SafetensorError, KeyError):
            return None

    def keep_features(self, key: str, features: Tensor) -> None:
        place = self._place("features", key).with_suffix(".safetensors")
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{os.getpid()}")
        save_file({"features": features.detach().cpu().contiguous()}, part)
        part.replace(place)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if not isinstance(v, int | float | str | None) else v for k, v in values.items()}


def _read_json(path: Path) -> dict[str, Any] | None:
    """None if it is missing or damaged: it is made again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all; a number that is none (NaN) is our own fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def place_file(source: Path, target: Path) -> None:
    """A copy, not a link: who edits a result must not edit the cache."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.{target.name}")
    shutil.copyfile(source, part)
    part.replace(target)
