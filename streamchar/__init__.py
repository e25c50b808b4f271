"""streamchar: text in, a talking character out. See `StreamCharPipeline`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamchar.stream.pipeline import StreamCharPipeline

__version__ = "0.1.0"
__all__ = ["StreamCharPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch only when the pipeline is asked for: `streamchar --help` stays quick."""
    if name == "StreamCharPipeline":
        from streamchar.stream.pipeline import StreamCharPipeline

        return StreamCharPipeline
    raise AttributeError(f"module 'streamchar' has no attribute {name!r}")
