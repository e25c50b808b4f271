"""What does a toon audio codec leave of speech? Unseen voices and sentences once through it.

    python scripts/measure_speech_codec.py CODEC... --moonshine DIR --speaker wespeaker-resnet34.onnx --out figures.json

Every sentence is spoken by a voice of its own, drawn from the range that training draws from, by a seed that training
does not use; a decoder that wants to know whose voice it is hears another sentence of it. Of the teacher's sound and of
each codec's reconstruction: word error rate, likeness of the speaker to the teacher's own sound (cosine), and
DistillMOS where the package is installed. A codec is a folder of one; `toon` is the shipped one.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from streamchar import clock
from streamchar.codecs.audio import ToonAudioCodec
from streamchar.errors import ConfigError
from streamchar.eval.recognisers import Moonshine
from streamchar.eval.speech import to_recogniser, word_errors
from streamchar.eval.voice import DistillMos, SpeakerEncoder, WeSpeaker
from streamchar.stream.models import resolve
from streamchar.world.text import sentences
from streamchar.world.voice import random_voice, speak

SEED = 7_012_026
REFERENCE = "The old clock in the hall struck nine, and nobody moved until the door was shut."
REFERENCE_SECONDS = 2


def said(count: int) -> list[tuple[str, Tensor, Tensor]]:
    """Held-out sentences with their teacher's sound (S,), whole latents long, and a reference of its voice."""
    draw, found = random.Random(SEED), []
    for text in sentences(SEED, count, held_out=True):
        voice = random_voice(draw)
        sounds = [speak(words, voice).samples for words in (text, REFERENCE)]
        mine, reference = (x[: x.shape[0] // clock.AUDIO_STRIDE * clock.AUDIO_STRIDE] for x in sounds)
        found.append((text, mine, reference[: REFERENCE_SECONDS * clock.AUDIO_RATE]))
    return found


@torch.inference_mode()
def coded(codec: ToonAudioCodec, samples_S: Tensor, reference_S: Tensor, noise: float, seed: int) -> Tensor:
    """(S,) once through the codec, its latents disturbed by `noise` (a sampler's are not exact)."""
    latents, state = codec.encode(samples_S[None]), codec.begin(codec.encode(reference_S[None]))
    generator = torch.Generator().manual_seed(seed)
    return codec.decode(latents + noise * torch.randn(latents.shape, generator=generator), state)[0].flatten().float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="+", help="folders, or toon")
    parser.add_argument("--moonshine", type=Path, required=True)
    parser.add_argument("--speaker", type=Path, required=True, help="WeSpeaker's ONNX")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--noise", type=float, default=0.0, help="deviation of what is added to the latents")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    recogniser, encoder = Moonshine(given.moonshine), WeSpeaker(given.speaker)
    try:
        mos: DistillMos | None = DistillMos()
    except ConfigError as error:
        print(error)
        mos = None
    spoken = said(given.count)
    truth = [samples for _, samples, _ in spoken]
    own = [place(encoder, samples) for samples in truth]
    found = {"teacher": judged(recogniser, mos, spoken, truth)}
    print("teacher", json.dumps(found["teacher"]), flush=True)
    for name in given.codecs:
        codec = ToonAudioCodec.load(resolve("toon") / "audio_codec" if name == "toon" else Path(name))
        made = [coded(codec, *sounds, given.noise, index) for index, (_, *sounds) in enumerate(spoken)]
        likeness = [float(place(encoder, sound) @ mine) for sound, mine in zip(made, own, strict=True)]
        found[name] = {**judged(recogniser, mos, spoken, made), "likeness": sum(likeness) / len(likeness)}
        print(name, json.dumps(found[name]), flush=True)
    given.out.write_text(json.dumps({"sentences": given.count, "noise": given.noise, **found}, indent=1) + "\n")


def place(encoder: SpeakerEncoder, samples_S: Tensor) -> Tensor:
    """The speaker's embedding."""
    return encoder(torch.as_tensor(to_recogniser(samples_S)))


def judged(
    recogniser: Moonshine, mos: DistillMos | None, spoken: list[tuple[str, Tensor, Tensor]], sounds: list[Tensor]
) -> dict[str, float]:
    """Word error rate, and the mean opinion where there is a judge."""
    heard = [to_recogniser(samples) for samples in sounds]
    found = {"wer": word_errors([text for text, _, _ in spoken], [recogniser(sound) for sound in heard]).wer}
    if mos is not None:
        scores = [score for sound in heard for score in mos.windows(torch.as_tensor(sound))]
        found["distillmos"] = sum(scores) / len(scores)
    return found


if __name__ == "__main__":
    main()
