"""Does the voice follow its reference? Speech by voices that no training clip has, matched with all their references.

    python scripts/measure_voice.py --model toon --speaker wespeaker-resnet34.onnx --out voices.json

Every voice says other sentences than its reference does. Counted is how often the reference of its own voice is the
nearest one to what was said, by a network for speakers: for the teacher itself, for the teacher through the model's
audio codec (what the model could reach at best), and for the model.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from streamchar import clock
from streamchar.eval.speech import to_recogniser
from streamchar.eval.voice import Resemblyzer, SpeakerEncoder, WeSpeaker
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.world.splits import HELD_OUT_VOICES
from streamchar.world.voice import VOICES, Voice, random_voice, speak

REFERENCE = "The old clock in the hall struck nine, and nobody moved until the door was shut."
SENTENCES = (
    "We planted an apple tree for each of the children in the village.",
    "A quiet voice can fill a room if everyone is listening.",
)
CHARACTER = 7


def cast(count: int) -> list[Voice]:
    """The held-out voices, then drawn ones of a seed that training does not use."""
    draw = random.Random("streamchar/held-out-voices")
    named = [VOICES[i] for i in sorted(HELD_OUT_VOICES)]
    return (named + [random_voice(draw) for _ in range(count)])[:count]


def matched(spoken_VSE: Tensor, references_VE: Tensor) -> dict[str, float]:
    """Share of the sayings whose own reference is nearest; likeness to it, and to the others."""
    likeness_VSV = spoken_VSE @ references_VE.T
    voices = len(references_VE)
    own = torch.eye(voices, dtype=torch.bool)[:, None].expand_as(likeness_VSV)
    nearest = likeness_VSV.argmax(2) == torch.arange(voices)[:, None]
    return {
        "nearest": float(nearest.float().mean()), "own": float(likeness_VSV[own].mean()),
        "others": float(likeness_VSV[~own].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toon")
    parser.add_argument("--speaker", type=Path, help="WeSpeaker's ONNX; else Resemblyzer")
    parser.add_argument("--voices", type=int, default=12)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    encoder: SpeakerEncoder = Resemblyzer() if given.speaker is None else WeSpeaker(given.speaker)
    pipe = StreamCharPipeline.from_pretrained(given.model)
    codec = pipe.models.audio_codec

    def place(samples_S: Tensor) -> Tensor:
        return encoder(torch.as_tensor(to_recogniser(samples_S)))

    @torch.inference_mode()
    def coded(samples_S: Tensor, voice_1RC: Tensor | None) -> Tensor:
        whole = samples_S[: samples_S.shape[0] // clock.AUDIO_STRIDE * clock.AUDIO_STRIDE]
        return codec.decode(codec.encode(whole[None]), codec.begin(voice_1RC))[0].flatten().float()

    references, sayings = [], {"teacher": [], "codec": [], "model": []}
    for number, voice in enumerate(cast(given.voices)):
        reference = speak(REFERENCE, voice).samples
        references.append(place(reference))
        said: dict[str, list[Tensor]] = {kind: [] for kind in sayings}
        for text in SENTENCES:
            taught = speak(text, voice).samples
            state = pipe.start(text, character=CHARACTER, voice=reference, seed=number, steps=given.steps)
            made = torch.cat([chunk.samples for chunk in pipe.session(state)])
            for kind, sound in (("teacher", taught), ("codec", coded(taught, state.voice)), ("model", made)):
                said[kind].append(place(sound))
        for kind, points in said.items():
            sayings[kind].append(torch.stack(points))
        likeness = (f"{kind} {float((points[-1] @ references[-1]).mean()):.2f}" for kind, points in sayings.items())
        print(number, voice, *likeness, flush=True)
    found = {kind: matched(torch.stack(points), torch.stack(references)) for kind, points in sayings.items()}
    given.out.write_text(json.dumps({"speaker": encoder.name, "voices": given.voices, **found}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
