"""How a model is played: the values that its `model_index.json` holds beside the components."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from streamchar.errors import ConfigError

SAMPLERS = ("euler", "renoise")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Defaults are those of a base model."""

    steps: int = 16
    """Sampling steps this model was made for."""
    guidance: float = 1.0
    picture_guidance: float | None = None
    """None: as `guidance`."""
    picture_guidance_above: float = 0.0
    """Noise level down to which the picture is guided."""
    temperature: float = 1.0
    """Deviation of the noise that sampling starts from."""
    picture_temperature: float | None = None
    """None: as `temperature`."""
    sampler: str = "euler"
    """"euler" for a base model, "renoise" for a distilled student."""
    shift: float = 5.0
    """Warp of the sampling schedule."""
    sink: bool = True
    """Whether it streams with a sink (ablation)."""
    history: bool = True
    """Whether its orchestrator hears what was said (ablation)."""


SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


def sampling_in(values: dict[str, Any]) -> Sampling:
    """What `values` say, defaults for the rest; other keys do not count. Raises `ConfigError`."""
    found = Sampling(**{name: values[name] for name in SAMPLING if name in values})
    if found.sampler not in SAMPLERS:
        raise ConfigError(f"the sampler {found.sampler!r} is unknown; known are {', '.join(SAMPLERS)}")
    return found
