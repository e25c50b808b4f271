"""Measure a toon model against the marks of its issue: speech, mouth, codecs. Writes one JSON file.

    python scripts/measure_toon.py --model toon --moonshine DIR --sentences FILE --out figures.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from streamchar import clock
from streamchar.eval.mouth import envelope, mouth_sync, openings
from streamchar.eval.speech import Moonshine, to_recogniser, word_errors
from streamchar.stream.decoding import pictures
from streamchar.stream.pipeline import VOICE_SENTENCE, StreamCharPipeline
from streamchar.world.clips import Clip, make_clip, pick_character
from streamchar.world.motion import MotionTrack
from streamchar.world.render import draw_frame, mouth_box
from streamchar.world.voice import speak


def speech_and_mouth(
    pipe: StreamCharPipeline, recogniser: Moonshine, sentences: list[str], steps: int, skip: int = 0
) -> dict:
    """Each sentence by another held-out character in its own voice."""
    made, taught, syncs, truth, spoken = [], [], [], [], 0
    began = time.perf_counter()
    seconds = 0.0
    for index, text in enumerate(sentences, skip):
        who = pick_character(10_000 + index, held_out=True)
        state = pipe.start(text, character=who.seed, seed=index, steps=steps)
        session = pipe.session(state)
        chunks = list(session)
        frames = torch.cat([c.frames for c in chunks]).permute(0, 3, 1, 2)
        samples = torch.cat([c.samples for c in chunks])
        seconds += len(chunks) * float(clock.CHUNK_SECONDS)
        spoken += session.spoken_words
        made.append(recogniser(to_recogniser(samples)))
        taught.append(recogniser(to_recogniser(speak(text, who.voice).samples)))
        syncs.append(mouth_sync(openings(frames, who), envelope(samples)))
        clip = make_clip(index, text, who=who)
        truth.append(mouth_sync(openings(clip.frames(), who), envelope(clip.speech.samples)))
        sync = f"{syncs[-1].correlation:.2f} @ {syncs[-1].offset_frames:+d}"
        print(f"{index:3d} {sync} | {text} | {made[-1]}", flush=True)
    model, teacher = word_errors(sentences, made), word_errors(sentences, taught)
    return {
        "recogniser": recogniser.name, "sentences": len(sentences), "steps": steps,
        "wer": model.wer, "wer_teacher": teacher.wer, "wer_clips": model.clips, "hypotheses": model.hypotheses,
        "mouth": _summary(syncs), "mouth_truth": _summary(truth),
        "mouth_clips": [[s.correlation, s.offset_frames] for s in syncs],
        "rtf": (time.perf_counter() - began) / seconds,
    }


def _summary(syncs: list) -> dict:
    r = torch.tensor([s.correlation for s in syncs])
    offsets = torch.tensor([float(s.offset_frames) for s in syncs])
    return {
        "correlation_mean": float(r.mean()), "correlation_median": float(r.median()),
        "offset_median": float(offsets.median()), "offset_within_2": float((offsets.abs() <= 2).float().mean()),
    }


@torch.no_grad()
def codecs(pipe: StreamCharPipeline, recogniser: Moonshine, clips: int) -> dict:
    """Reconstructions of held-out clips."""
    whole, mouth = ([], []), ([], [])  # as a stream decodes, with its still; and latents alone
    references, original, rebuilt, spent = [], [], [], []
    for index in range(clips):
        clip = make_clip(50_000 + index, held_out=True, limit=6)
        frames = clip.frames(0, clock.FRAMES_PER_CHUNK)
        x = frames.float().div(127.5).sub(1).transpose(0, 1)[None]
        codec = pipe.models.video_codec
        latents = codec.encode(x)
        picture = draw_frame(clip.character, x.shape[-1])[None]
        still = codec.encode(picture.float().div(127.5).sub(1)[:, :, None])
        began = time.perf_counter()
        y = pictures(codec, latents, still, picture).clamp(-1, 1)
        spent.append(time.perf_counter() - began)
        for place, made in ((0, y), (1, pictures(codec, latents).clamp(-1, 1))):
            whole[place].append(_psnr(x, made))
            mouth[place].append(_mouth_psnr(clip, x, made))
        samples = clip.speech.samples
        audio = pipe.models.audio_codec
        voice = audio.begin(audio.encode(reference_of(clip)[None]))
        sound, _ = audio.decode(audio.encode(samples[None]), voice)
        references.append(clip.speech.text)
        original.append(recogniser(to_recogniser(samples)))
        rebuilt.append(recogniser(to_recogniser(sound[0])))
    return {
        "clips": clips, "video_psnr": sum(whole[0]) / clips, "video_psnr_mouth": sum(mouth[0]) / clips,
        "video_psnr_latents_alone": sum(whole[1]) / clips, "video_psnr_mouth_latents_alone": sum(mouth[1]) / clips,
        "video_decode_ratio": sorted(spent)[clips // 2] / float(clock.CHUNK_SECONDS),
        "audio_wer": word_errors(references, rebuilt).wer, "audio_wer_original": word_errors(references, original).wer,
    }


def reference_of(clip: Clip) -> Tensor:
    """(S,) what a stream of the character takes its voice from."""
    samples = speak(VOICE_SENTENCE, clip.character.voice).samples
    return samples[: samples.shape[0] // clock.AUDIO_STRIDE * clock.AUDIO_STRIDE]


def _psnr(x: Tensor, y: Tensor) -> float:
    """Decibels, peak 2 (values in [-1, 1])."""
    return float(10 * torch.log10(4 / (x - y).square().mean()))


def _mouth_psnr(clip: Clip, x: Tensor, y: Tensor) -> float:
    track: MotionTrack = clip.track.slice(0, clock.FRAMES_PER_CHUNK)
    error = []
    for t, (x0, y0, x1, y1) in enumerate(mouth_box(clip.character, track).round().int().tolist()):
        error.append((x - y)[0, :, t, y0:y1, x0:x1].square().mean())
    return float(10 * torch.log10(4 / torch.stack(error).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toon")
    parser.add_argument("--moonshine", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="sentences: two processes can share the work")
    parser.add_argument("--steps", type=int, help="else the model's own")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    pipe, recogniser = StreamCharPipeline.from_pretrained(given.model), Moonshine(given.moonshine)
    lines = [line.strip() for line in given.sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    figures = {"model": pipe.models.name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if given.clips:
        figures["codecs"] = codecs(pipe, recogniser, given.clips)
        print(json.dumps(figures["codecs"]), flush=True)
    if given.count:
        figures["speech"] = speech_and_mouth(
            pipe, recogniser, lines[given.skip : given.skip + given.count], given.steps, given.skip
        )
    given.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print({k: v for k, v in figures.get("speech", {}).items() if k not in ("wer_clips", "hypotheses")})


if __name__ == "__main__":
    main()
