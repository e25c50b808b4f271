"""Trained components to a model folder, as the package ships it.

    python scripts/assemble.py --speech runs/toon/joint --codecs runs/toon --out streamchar/assets/toon

`--speech` holds orchestrator/ and dit/ (what `streamchar train joint` writes); `--codecs` holds
audio_codec/, video_codec/ and prompt_encoder/, or those are given one by one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from streamchar.config.presets import preset
from streamchar.train.assemble import Parts, assemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--codecs", type=Path, default=Path("streamchar/assets/toon"))
    parser.add_argument("--audio-codec", type=Path)
    parser.add_argument("--video-codec", type=Path)
    parser.add_argument("--prompt-encoder", type=Path)
    parser.add_argument("--preset", default="toon")
    parser.add_argument("--name", help="the preset's when not given")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=1.0, help="deviation of the starting noise")
    parser.add_argument("--full", action="store_true", help="float32 weights instead of int8 and bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    parts = Parts(
        orchestrator=given.speech / "orchestrator",
        dit=given.speech / "dit",
        video_codec=given.video_codec or given.codecs / "video_codec",
        audio_codec=given.audio_codec or given.codecs / "audio_codec",
        prompt_encoder=given.prompt_encoder or given.codecs / "prompt_encoder",
    )
    assemble(
        parts, preset(given.preset), given.out, name=given.name or given.preset, steps=given.steps,
        guidance=given.guidance, temperature=given.temperature, small=not given.full,
    )
    total = sum(path.stat().st_size for path in given.out.rglob("*.safetensors"))
    print(f"{given.out}: {total / 2**20:.1f} MiB of weights")


if __name__ == "__main__":
    main()
