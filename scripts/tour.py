"""The README's picture: characters of the world, and film strips that the model made of two of them.

    python scripts/tour.py --model toon --out docs/images/tour.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.world.character import character
from streamchar.world.render import draw_frame

SIDE, COLUMNS = 128, 10
CAST = ((12, "a happy person waves"), (7, "a surprised person"))
TEXT = "A quiet voice can fill a room if everyone is listening."


def small(frames_T3HW: Tensor) -> Tensor:
    """(T, 3, SIDE, SIDE) uint8."""
    resized = torch.nn.functional.interpolate(frames_T3HW.float(), size=(SIDE, SIDE), mode="area")
    return resized.round().to(torch.uint8)


def row(frames_T3HW: Tensor) -> Tensor:
    """Frames side by side: (3, SIDE, T SIDE)."""
    return torch.cat(list(small(frames_T3HW)), dim=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toon")
    parser.add_argument("--steps", type=int, help="else the model's own")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    pipe = StreamCharPipeline.from_pretrained(given.model)
    rows = [row(torch.stack([draw_frame(character(seed)).reshape(3, 256, 256) for seed in range(COLUMNS)]))]
    for seed, prompt in CAST:
        chunks = list(pipe.stream(TEXT, character=seed, prompt=prompt, steps=given.steps))
        frames = torch.cat([c.frames for c in chunks]).permute(0, 3, 1, 2)
        rows.append(row(frames[torch.linspace(8, frames.shape[0] - 12, COLUMNS).long()]))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(given.out)


if __name__ == "__main__":
    main()
