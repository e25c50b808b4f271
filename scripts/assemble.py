"""Trained components to a model folder, as the package ships it.

    python scripts/assemble.py --speech runs/toon/joint --codecs runs/toon --out streamchar/assets/toon

`--speech` holds orchestrator/ and dit/ (what `streamchar train joint`, `distill` and `rollout` write); `--codecs`
holds audio_codec/, video_codec/ and prompt_encoder/, or those are given one by one. A student's sampler, steps, shift,
sink and history are carried over; --base puts its speech half-way to the model before it; --steps, --guidance and
--temperature change what is said of the model.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from streamchar.config.presets import preset
from streamchar.train.assemble import Parts, assemble, sampling_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--codecs", type=Path, default=Path("streamchar/assets/toon"))
    parser.add_argument("--audio-codec", type=Path)
    parser.add_argument("--video-codec", type=Path)
    parser.add_argument("--prompt-encoder", type=Path)
    parser.add_argument("--preset", default="toon")
    parser.add_argument("--name", help="the preset's when not given")
    parser.add_argument("--steps", type=int, help="else as trained; 16 for a base model")
    parser.add_argument("--guidance", type=float, help="else as trained; 1 for a base model")
    parser.add_argument("--picture-guidance", type=float, help="of the picture alone; else as --guidance")
    parser.add_argument(
        "--picture-guidance-above", type=float, help="noise level down to which the picture is guided; else 0"
    )
    parser.add_argument("--temperature", type=float, help="deviation of the starting noise; else as trained, or 1")
    parser.add_argument("--picture-temperature", type=float, help="of the picture alone; else as --temperature")
    parser.add_argument("--base", type=Path, help="of a student: the model that it was made from")
    parser.add_argument("--speech-share", type=float, default=0.5, help="of the way from the base's speech: 0 to 1")
    parser.add_argument("--moved", type=Path, nargs=2, metavar=("OLD", "NEW"), help="bases: NEW's student, from OLD's")
    parser.add_argument("--shares", help="a shipped model: components that it has to the bit are not written again")
    parser.add_argument("--full", action="store_true", help="float32 weights instead of int8")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    parts = Parts(
        orchestrator=given.speech / "orchestrator",
        dit=given.speech / "dit",
        video_codec=given.video_codec or given.codecs / "video_codec",
        audio_codec=given.audio_codec or given.codecs / "audio_codec",
        prompt_encoder=given.prompt_encoder or given.codecs / "prompt_encoder",
    )
    names = ("steps", "guidance", "picture_guidance", "picture_guidance_above", "temperature", "picture_temperature")
    asked = {name: getattr(given, name) for name in names}
    sampling = dataclasses.replace(
        sampling_of(given.speech), **{name: value for name, value in asked.items() if value is not None}
    )
    assemble(
        parts, preset(given.preset), given.out, name=given.name or given.preset, small=not given.full,
        sampling=sampling, shares=given.shares, base=given.base, speech_share=given.speech_share,
        moved=None if given.moved is None else tuple(given.moved),
    )
    total = sum(path.stat().st_size for path in given.out.rglob("*.safetensors"))
    print(f"{given.out}: {total / 2**20:.1f} MiB of weights")


if __name__ == "__main__":
    main()
