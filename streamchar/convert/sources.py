"""Where the weights come from: local folders or hub ids, in diffusers', transformers' or Wan's own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamchar.errors import CheckpointError

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def fetch(source: str, option: str) -> Path:
    """A folder, or a hub id that is fetched (what the hub's cache has is not fetched again)."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{option}: expected a folder, got the file {source}; give the folder that it is in")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"{option}: there is no folder {source}; give a folder or a hub id owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{option}: {source} is no folder and cannot be fetched from the hub: {why}") from None


def folder_of(root: Path, names: tuple[str, ...], option: str) -> Path:
    """The first of `root`'s folders that exists and has a config.json; "" is `root` itself."""
    for name in names:
        if (root / name / "config.json").is_file():
            return root / name
    places = " or ".join(str(root / name) for name in names)
    raise CheckpointError(f"{option}: expected config.json in {places}, found none; give the folder that has it")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file ({error}); fetch it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one JSON object, got a {type(values).__name__}; fetch it again")
    return values


def tokenizer_files(root: Path, names: tuple[str, ...], option: str) -> tuple[Path, ...]:
    """Files of the tokenizer in the first of `root`'s folders that has one."""
    for name in names:
        found = tuple(root / name / file for file in TOKENIZER_FILES if (root / name / file).is_file())
        if any(path.name in ("tokenizer.json", "vocab.json", "spiece.model") for path in found):
            return found
    places = " or ".join(str(root / name) for name in names)
    raise CheckpointError(f"{option}: expected a tokenizer (tokenizer.json) in {places}, found none; add its files")
