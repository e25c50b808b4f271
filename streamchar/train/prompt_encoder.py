"""Pre-training of the small prompt encoder (`codecs/text.py`) on the world's prompts.

Two tasks on the encoded tokens: read the `Direction` (mood, gesture, energy) from their mean with linear heads, and
guess masked words. Prompts are the world's phrases and freer ones made of the words that `world.prompt.parse` knows,
so that what a user types lands near what the DiT was trained with. Afterwards the encoder is frozen.

Shape letters: B batch, L tokens, D width, V words.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.codecs.text import MASK, SPECIAL, UNKNOWN, T5PromptEncoder, word_tokenizer
from streamchar.config.model import PromptEncoderConfig
from streamchar.config.presets import toon
from streamchar.world.prompt import (
    ENERGIES,
    ENERGY_WORDS,
    GESTURE_WORDS,
    GESTURES,
    MOOD_WORDS,
    MOODS,
    Direction,
    known_words,
    parse,
    phrase,
    sample_direction,
)

log = logging.getLogger(__name__)

FIELDS: dict[str, tuple[str, ...]] = {"mood": tuple(MOODS), "gesture": tuple(GESTURES), "energy": tuple(ENERGIES)}
HELD_OUT_SHARE = 10  # one prompt seed in this many is never trained on
_FRAMES = (
    "{}", "a {} person", "{} please", "the character is {}", "she looks {}", "he seems {} while talking", "{} voice",
    "make it {}", "a cartoon character who is {}", "someone {} speaking to the camera",
)  # fmt: skip
_SPOKEN = {"mood": MOODS, "gesture": GESTURES, "energy": ENERGIES}
_FURTHER = {"mood": MOOD_WORDS, "gesture": GESTURE_WORDS, "energy": ENERGY_WORDS}


def free_prompt(seed: int) -> str:
    """A loose prompt: up to three of the words that `parse` knows, in any order, in a simple frame."""
    draw = random.Random(f"streamchar/free-prompt/{int(seed)}")
    parts = []
    for field in draw.sample(list(FIELDS), draw.choice((0, 1, 1, 2, 2, 3))):
        value = draw.choice(FIELDS[field])
        parts.append(draw.choice((*_SPOKEN[field][value], *_FURTHER[field][value])))
    text = draw.choice((", ", " and ", " ")).join(parts)
    return draw.choice(_FRAMES).format(text) if parts and draw.random() < 0.7 else text


def labelled_prompt(seed: int) -> tuple[str, Direction]:
    """Prompt number `seed` and what it asks for; every third is a free one, read by `parse`."""
    if seed % 3:
        direction = sample_direction(seed)
        return phrase(direction, seed), direction
    text = free_prompt(seed)
    return text, parse(text)[0]


def is_held_out_prompt(seed: int) -> bool:
    """Whether prompt `seed` is kept for evaluation."""
    return random.Random(f"streamchar/prompt-split/{int(seed)}").randrange(HELD_OUT_SHARE) == 0


class Heads(nn.Module):
    """Linear read-outs that exist in training only: one a field, and one over the words."""

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__()
        self.fields = nn.ModuleDict({name: nn.Linear(config.width, len(values)) for name, values in FIELDS.items()})
        self.words = nn.Linear(config.width, config.vocab_size)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """Logits of every field from the tokens' mean."""
        mean_BD = states_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        return {name: head(mean_BD) for name, head in self.fields.items()}


def _labels(directions: list[Direction]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([values.index(getattr(d, name)) for d in directions]) for name, values in FIELDS.items()
    }


def _disturbed(ids_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids with 12 % of the words masked and 2 % unknown, and which ones were masked."""
    draw_BL = torch.rand(ids_BL.shape, generator=generator)
    word_BL = ids_BL >= len(SPECIAL)
    masked_BL = word_BL & (draw_BL < 0.12)
    ids_BL = ids_BL.masked_fill(masked_BL, SPECIAL.index(MASK))
    return ids_BL.masked_fill(word_BL & (draw_BL > 0.98), SPECIAL.index(UNKNOWN)), masked_BL


def train_prompt_encoder(
    out: Path,
    minutes: float = 2.0,
    *,
    steps: int = 3000,
    batch: int = 96,
    rate: float = 2e-3,
    config: PromptEncoderConfig | None = None,
    seed: int = 0,
) -> tuple[T5PromptEncoder, dict[str, float]]:
    """Train for `steps` or `minutes`, whichever ends first; write the encoder to `out`.

    Returns it with the held-out accuracy of each field (see `accuracy`).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = T5PromptEncoder(config or toon().prompt, word_tokenizer(known_words()))
    encoder.train()
    heads = Heads(encoder.config)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    begun, number = time.monotonic(), 0
    for step in range(steps):
        spent = (time.monotonic() - begun) / (60 * minutes)
        if spent >= 1:
            break
        progress = max(step / steps, spent)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        pairs = []
        while len(pairs) < batch:
            number += 1
            if not is_held_out_prompt(number):
                pairs.append(labelled_prompt(number))
        ids_BL, mask_BL = encoder.tokenize([text for text, _ in pairs])
        noisy_BL, masked_BL = _disturbed(ids_BL, generator)
        states_BLD = encoder.states(noisy_BL, mask_BL)
        guesses = heads(states_BLD, mask_BL)
        labels = _labels([direction for _, direction in pairs])
        loss = sum((F.cross_entropy(guesses[name], labels[name]) for name in FIELDS), torch.zeros(()))
        loss = loss + 0.5 * F.cross_entropy(heads.words(states_BLD[masked_BL]), ids_BL[masked_BL])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 100 == 0:
            log.info("step=%d loss=%.4f", step, loss.item())
    encoder.eval().requires_grad_(False)
    encoder.save(out)
    scores = accuracy(encoder, heads)
    log.info("held-out accuracy %s", scores)
    return encoder, scores


@torch.no_grad()
def accuracy(encoder: T5PromptEncoder, heads: Heads, count: int = 600) -> dict[str, float]:
    """Share of held-out prompts whose field is read correctly: `mood`, `free mood`, and so on."""
    scores: dict[str, float] = {}
    kinds: tuple[tuple[str, Callable[[int], bool]], ...] = (("", lambda n: n % 3 != 0), ("free ", lambda n: n % 3 == 0))
    for prefix, kind in kinds:
        numbers = [n for n in range(10 * count * 4) if kind(n) and is_held_out_prompt(n)][:count]
        pairs = [labelled_prompt(n) for n in numbers]
        ids_BL, mask_BL = encoder.tokenize([text for text, _ in pairs])
        guesses = heads(encoder.states(ids_BL, mask_BL), mask_BL)
        for name, label in _labels([direction for _, direction in pairs]).items():
            scores[prefix + name] = (guesses[name].argmax(1) == label).float().mean().item()
    return scores
