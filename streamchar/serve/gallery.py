"""The characters that a visitor may pick, drawn by the cartoon world."""

from __future__ import annotations

import functools
import io
from typing import Any

from streamchar.errors import InputError

SEEDS = (7, 3, 12, 18, 21, 26, 33, 40, 47, 52, 58, 64)
SIZE = 224
MAX_SEED = 1_000_000
"""Pictures are drawn for these seeds only: each costs time."""
PROMPTS = (
    "calm and friendly", "happy, waving", "excited, with open hands", "serious, pointing up",
    "shy and quiet", "sad and slow", "surprised, leaning in", "angry, shaking the head",
)  # fmt: skip


def characters() -> list[dict[str, Any]]:
    """Seed and a few words about each."""
    return [{"seed": seed, "about": about(seed)} for seed in SEEDS]


@functools.lru_cache(maxsize=512)
def about(seed: int) -> str:
    from streamchar.world.character import character

    who = character(seed)
    kind = {"human": who.age if who.age != "adult" else "grown-up"}.get(who.kind, who.kind)
    worn = "" if who.accessory == "none" else f" with {who.accessory}"
    return f"{kind} in {who.cloth} {who.clothes}{worn}"


def voices() -> list[str]:
    """Names of the voices that the model was trained with, by index."""
    from streamchar.world.splits import HELD_OUT_VOICES
    from streamchar.world.voice import VOICES

    return [voice.name for index, voice in enumerate(VOICES) if index not in HELD_OUT_VOICES]


@functools.lru_cache(maxsize=128)
def picture(seed: int) -> bytes:
    """A PNG. Raises `InputError` for a seed beyond those that are drawn."""
    if not 0 <= seed < MAX_SEED:
        raise InputError(f"pictures are drawn for the seeds 0 to {MAX_SEED - 1}, got {seed}")
    from PIL import Image

    from streamchar.world.character import character
    from streamchar.world.render import draw_frame

    pixels = draw_frame(character(seed), size=SIZE).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
