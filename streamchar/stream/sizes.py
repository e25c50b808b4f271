"""Output sizes: any multiple of 32 pixels up to 1280x720, lying or standing.

The model's parts do not depend on the size: the DiT's positions and the codecs' convolutions go as far as the
picture does. What one chunk costs does: its tokens are `ModelConfig.video_tokens_per_chunk`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from streamchar import clock
from streamchar.config.model import ModelConfig
from streamchar.errors import ConfigError
from streamchar.stream.models import Models


def size_step(config: ModelConfig) -> int:
    """Height and width are multiples of this: 32, or what the model's codec and patches need where that is more."""
    return max(clock.SIZE_STEP, config.video.spatial_stride * config.dit.patch[1])


def allowed(config: ModelConfig, height: int, width: int) -> bool:
    """Whether the model can make pictures of this size."""
    step = size_step(config)
    fits = max(height, width) <= clock.LONG_SIDE and min(height, width) <= clock.SHORT_SIDE
    return min(height, width) >= step and height % step == 0 and width % step == 0 and fits


def nearest_sizes(config: ModelConfig, height: int, width: int, count: int = 2) -> list[tuple[int, int]]:
    """The allowed sizes (height, width) nearest to this one, the best first."""
    sides = range(size_step(config), clock.LONG_SIDE + 1, size_step(config))
    sizes = [size for size in product(sides, sides) if allowed(config, *size)]
    return sorted(sizes, key=lambda size: ((size[0] - height) ** 2 + (size[1] - width) ** 2, size))[:count]


def check_size(config: ModelConfig, height: int, width: int) -> None:
    """Raise `ConfigError` where the model cannot make pictures of this size."""
    if not allowed(config, height, width):
        near = " or ".join(f"{h}x{w}" for h, w in nearest_sizes(config, height, width))
        raise ConfigError(
            f"picture size: expected height x width in multiples of {size_step(config)}, at most "
            f"{clock.LONG_SIDE} x {clock.SHORT_SIDE} either way round, got {height}x{width}; nearest: {near}"
        )


def resized(models: Models, height: int, width: int) -> Models:
    """The same models for pictures of another size. Raises `ConfigError`."""
    check_size(models.config, height, width)
    return replace(models, config=replace(models.config, height=height, width=width))
