"""Pictures and recordings that come over the wire: size first, then decoded by the same checked readers as files.

Nothing of a user ever becomes a path: the bytes go into an unnamed place of our own.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from streamchar import clock
from streamchar.errors import InputError
from streamchar.serve.protocol import ProtocolError
from streamchar.stream.inputs import read_image, read_voice

MAX_BYTES = 8 << 20
MAX_VOICE_SECONDS = float(8 * clock.CHUNK_SECONDS)

_T = TypeVar("_T")


def picture_of(encoded: str, height: int, width: int) -> Tensor:
    """Base64 of an image file -> (3, H, W) in [-1, 1]."""
    return _read(encoded, "picture", lambda path: read_image(path, height, width)[:, 0])


def voice_of(encoded: str) -> Tensor:
    """Base64 of a sound file -> (S,) at 49,152 Hz."""
    return _read(encoded, "recording", lambda path: read_voice(path, max_seconds=MAX_VOICE_SECONDS))


def check_upload(encoded: str, what: str) -> None:
    """Raise `ProtocolError` if the base64 text stands for more than `MAX_BYTES`."""
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise ProtocolError(
            "too-large", f"the {what} may have at most {MAX_BYTES >> 20} MiB, got {len(encoded) * 3 / 4 / 2**20:.1f}",
            "send a smaller file",
        )


def _read(encoded: str, what: str, reader: Callable[[Path], _T]) -> _T:
    check_upload(encoded, what)
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"the {what} is not base64; encode the file's bytes") from None
    with tempfile.TemporaryDirectory(prefix="streamchar-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return reader(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "that was sent")) from None
