"""The exceptions that streamchar raises on purpose.

Every message says what was expected, what was given and what to do. The command line turns any
`StreamCharError` into one line and exit code 2.
"""

from __future__ import annotations


class StreamCharError(Exception):
    """Root of all expected failures."""


class ConfigError(StreamCharError):
    """A configuration value is missing, unknown or out of range."""


class InputError(StreamCharError):
    """Something the user handed in (text, picture, sound, file name) cannot be used."""


class CheckpointError(StreamCharError):
    """A checkpoint is missing, incomplete, corrupt or of another model."""


class StateError(StreamCharError):
    """A saved stream or training state does not fit what it is resumed with."""


class DataError(StreamCharError):
    """A training or evaluation data set cannot be read or does not hold what it must."""
