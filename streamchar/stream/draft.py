"""An output file that appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from streamchar.errors import InputError


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def cannot_write(target: Path, error: Exception) -> InputError:
    """The error to raise when the system refuses to write `target`."""
    return InputError(f"cannot write {target}: {_reason(error)}; choose another place")


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Around the writes into `target`: a refusal of the system becomes an `InputError`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error) from error


class Draft:
    """A temporary file beside `target`: `commit` renames it, `discard` removes it.

    Made at once, so that an unwritable place shows before minutes of work, not after. As a context
    manager it commits on success and discards on any exception, Ctrl-C included.
    """

    def __init__(self, target: str | Path) -> None:
        self.target = Path(target)
        try:
            self._real = Path(os.path.realpath(self.target))  # through a link: the link stays
            self._check()
            # the ending stays: what writes the file may tell the format by it
            self.path = self._real.parent / f".streamchar-{secrets.token_hex(6)}.part{self._real.suffix}"
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise cannot_write(self.target, error) from error

    def _check(self) -> None:
        target, real = self.target, self._real
        if real.is_dir():
            raise InputError(f"cannot write {target}: it is a folder; give a file name")
        if not real.parent.is_dir():
            raise InputError(f"cannot write {target}: the folder {real.parent} does not exist; create it first")
        if real.exists() and not (real.is_file() and os.access(real, os.W_OK)):
            raise InputError(f"cannot write {target}: a read-only or special file is in the way; choose another name")

    def commit(self) -> None:
        """Give the finished file its name."""
        try:
            os.replace(self.path, self._real)
        except OSError as error:
            self.discard()
            raise cannot_write(self.target, error) from error

    def discard(self) -> None:
        """Remove the unfinished file; the target is as it was before."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()
