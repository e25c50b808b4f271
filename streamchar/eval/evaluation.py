"""An evaluation folder being written: clips, transcripts.jsonl, metrics.json, series.json (then eval/report.py).

Layout: clips/NAME.mp4 with NAME.words.json, NAME.png (first frame) and NAME.voice.wav (reference voice) beside it;
run.json says whose folder it is, so that no other run writes into it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from streamchar.errors import InputError
from streamchar.eval.bootstrap import LEVEL, RESAMPLES, interval, mean
from streamchar.eval.cache import Cache, file_hash, place_file, write_json
from streamchar.eval.metric import Figure
from streamchar.eval.protocol import Item, Protocol, content_hash, digest
from streamchar.eval.realtime import RealTime
from streamchar.eval.sample import Sample
from streamchar.eval.suite import (
    NOT_CHOSEN,
    Clip,
    Generator,
    Metric,
    Scorer,
    Scores,
    Watch,
    make_clips,
    silent,
)  # fmt: skip

log = logging.getLogger(__name__)

SCHEMA = "streamchar-eval/1"
VOICE_TEXT = "The quick brown fox jumps over the lazy dog, and then it rests."
"""What the reference voice says where the item does not say what."""
PACKAGES = (
    "streamchar", "torch", "numpy", "scipy", "av", "diffusers", "transformers", "onnxruntime", "soxr", "jiwer",
    "whisper-normalizer", "useful-moonshine-onnx", "faster-whisper", "hibari-tts", "speechmos", "distillmos",
    "resemblyzer",
)  # fmt: skip
HOW = (
    f"Every figure is measured from the mp4 as a viewer gets it (h264, AAC). The mean is over clips, each weighing the "
    f"same; the interval is a bootstrap over clips ({LEVEL:.0%}, {RESAMPLES} resamples, seed 0). Frechet distances "
    "have none: drawing clips with replacement raises them by itself."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `eval run` is to do."""

    protocol: Protocol
    out: Path
    generator: Generator
    truth: Generator | None = None
    """Draws the reference of items of the world; None: only items with a reference file have one."""
    model: Mapping[str, Any] | None = None
    settings: Mapping[str, Any]
    """Steps, shift, ...: part of the protocol's block, and of whose folder it is."""
    command: str = ""


def environment() -> dict[str, Any]:
    """What it was measured on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__,
        "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": ", ".join(gpus) or None, "packages": packages,
    }  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def claim(out: Path, owner: Mapping[str, Any]) -> None:
    """Make the folder, or go on in it. Raises `InputError` if it holds anything else."""
    mark = out / "run.json"
    try:
        if out.is_dir() and any(out.iterdir()):
            try:
                found = dict(json.loads(mark.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                raise InputError(f"{out} is not empty and is no evaluation; give another folder with --out") from None
            if found != json.loads(json.dumps(owner)):
                differs = sorted(k for k in {*found, *owner} if found.get(k) != owner.get(k))
                raise InputError(
                    f"{out} holds another evaluation ({', '.join(differs)} differ); give another folder with --out"
                )
            return
        write_json(mark, owner)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; give another folder with --out") from None


def run(plan: Plan, metrics: Sequence[Metric], cache: Cache, watch: Watch = silent) -> dict[str, Any]:
    """Make what is missing, measure, write the folder; returns what metrics.json holds."""
    owner = {"protocol": plan.protocol.name, "model": (plan.model or {}).get("sha256"), **plan.settings}
    claim(plan.out, owner)
    about = environment()
    machine = {k: about[k] for k in ("cpu", "threads", "gpu")}
    folder = plan.out / "clips"
    items = [write_inputs(item, folder) for item in plan.protocol.items]
    clips, failed = make_clips(items, plan.generator, cache, machine=machine, watch=watch)
    samples = [place_clip(clip, folder) for clip in clips]
    scorer = Scorer([*metrics, RealTime({c.item.name: c.no_rtf for c in clips})], cache, watch)
    references, drawn = _references(plan, items, cache, machine, watch) if scorer.needs_reference else ([], "none")
    scores = scorer.score(samples, references)
    warnings = [f"{c.item.name}: {w}" for c in clips for w in c.warnings]
    warnings += [f"{name} could not be made and does not count: {why}" for name, why in failed.items()]
    warnings += _busy(clips, about["cores"])
    protocol = plan.protocol
    block = {
        "name": protocol.name, "clips": len(items), "seconds": protocol.seconds, "seed": protocol.seed,
        **plan.settings, "fast": protocol.fast, "reference": drawn, "about": protocol.about,
        "items_sha256": digest([i.fingerprint for i in items]),
        "content_sha256": content_hash((i.name, i.transcript) for i in items),
    }  # fmt: skip
    block["exact"] = _exact(block, plan.command)
    value = summary(plan.out, samples, scores, block, about, plan.model, warnings, failed=_named(items, failed))
    _write(plan.out, samples, scores, value)
    return value


def place_clip(clip: Clip, folder: Path) -> Sample:
    """The clip and its words under its name in `folder`, beside the inputs that `item` has there."""
    item, video, words = clip.item, folder / f"{clip.item.name}.mp4", folder / f"{clip.item.name}.words.json"
    place_file(clip.video, video)
    write_json(words, [list(w) for w in clip.words])
    return Sample(
        name=item.name, video=video, transcript=item.transcript, character=item.character, prompt=item.prompt or None,
        direction=item.direction, voice=item.voice, picture=item.picture, words=words, rtf=clip.rtf,
    )  # fmt: skip


def _busy(clips: Sequence[Clip], cores: int | None) -> list[str]:
    """A warning if the speed was measured beside other work."""
    load = max((c.load for c in clips if c.rtf is not None), default=0.0)
    if cores is None or load <= cores + 0.5:
        return []
    return [
        f"the real-time factor was measured on a busy machine (load {load:.1f} on {cores} cores): it can be far lower; "
        "give another --cache to generate anew when nothing else runs"
    ]


def _named(items: Sequence[Item], failed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [(i.name, i.transcript, failed[i.name]) for i in items if i.name in failed]


def _references(
    plan: Plan, items: Sequence[Item], cache: Cache, machine: Mapping[str, Any], watch: Watch
) -> tuple[list[Sample], str]:
    """The true videos of the items, and one line of what they are."""
    given = [Sample(name=i.name, video=i.reference, transcript=i.transcript) for i in items if i.reference is not None]
    drawable = [i for i in items if i.reference is None and i.character is not None]
    if plan.truth is None or not drawable:
        return given, f"{len(given)} given videos" if given else "none"
    clips, _ = make_clips(drawable, plan.truth, cache, machine=machine, watch=watch, what="reference")
    drawn = [
        Sample(name=c.item.name, video=c.video, transcript=c.item.transcript, character=c.item.character) for c in clips
    ]
    return given + drawn, (
        f"{len(given)} given videos, {len(drawn)} drawn by the world: the same items in a performance of their own"
    )


def score(
    samples: Sequence[Sample],
    out: Path,
    metrics: Sequence[Metric],
    cache: Cache,
    *,
    command: str = "",
    watch: Watch = silent,
) -> dict[str, Any]:
    """Measure videos that exist and write the folder."""
    pairs = [(s.name, s.transcript) for s in samples]
    claim(out, {"protocol": "given", "videos": digest([file_hash(s.video) for s in samples])})
    scores = Scorer([*metrics, RealTime({})], cache, watch).score(samples, _given_references(samples))
    references = sum(s.reference is not None for s in samples)
    block = {
        "name": "given", "clips": len(samples), "seconds": None, "seed": None, "steps": None, "fast": False,
        "reference": f"{references} given videos" if references else "none", "content_sha256": content_hash(pairs),
    }  # fmt: skip
    block["exact"] = _exact(block, command)
    value = summary(out, samples, scores, block, environment(), None, [])
    _write(out, samples, scores, value)
    return value


def _given_references(samples: Sequence[Sample]) -> list[Sample]:
    return [
        Sample(name=s.name, video=s.reference, transcript=s.transcript, character=s.character)
        for s in samples if s.reference is not None
    ]  # fmt: skip


def write_inputs(item: Item, folder: Path) -> Item:
    """First frame and reference voice as files beside the clip; the item then names them."""
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    picture, voice = folder / f"{item.name}.png", folder / f"{item.name}.voice.wav"
    if item.character is None:
        assert item.picture is not None  # the protocol's reader sees to it
        picture = folder / f"{item.name}{item.picture.suffix.lower()}"
        place_file(item.picture, picture)
    elif not picture.is_file():
        from streamchar.world.render import draw_frame

        frame_3HW = draw_frame(world_character(item)).reshape(3, 256, 256)
        part = picture.with_name(f".{picture.name}")
        Image.fromarray(frame_3HW.permute(1, 2, 0).numpy()).save(part)
        part.replace(picture)
    if item.voice is not None:
        voice = folder / f"{item.name}.voice{item.voice.suffix.lower()}"
        place_file(item.voice, voice)
    elif item.character is None:
        voice = None
    elif not voice.is_file():
        from streamchar.clock import AUDIO_RATE
        from streamchar.world.voice import speak

        speech = speak(item.voice_text or VOICE_TEXT, world_character(item).voice)
        part = voice.with_name(f".{voice.name}")
        soundfile.write(part, speech.samples.numpy(), AUDIO_RATE, subtype="PCM_16")
        part.replace(voice)
    return replace(item, picture=picture, voice=voice)


def world_character(item: Item):
    """The item's character as the pipeline knows it (trained voices only), with the item's voice."""
    from streamchar.world.character import character
    from streamchar.world.splits import HELD_OUT_VOICES
    from streamchar.world.voice import VOICES

    assert item.character is not None
    who = character(item.character, n_voices=len(VOICES) - len(HELD_OUT_VOICES))
    return who if item.speaker is None else replace(who, voice=item.speaker)


def summary(
    out: Path,
    samples: Sequence[Sample],
    scores: Scores,
    protocol: Mapping[str, Any],
    about: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    warnings: Sequence[str],
    *,
    failed: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """What metrics.json holds. `failed`: (name, transcript, reason) of clips that could not be made."""
    means: dict[str, float | None] = {}
    intervals: dict[str, list[float] | None] = {}
    counts: dict[str, int] = {}
    reasons: dict[str, str] = {}
    clips = []
    for sample in samples:
        found = scores.clips[sample.name]
        values = {key: found.values.get(key) for key in scores.figures}
        why = {k: found.reasons.get(k, _unmeasured(k, scores)) for k, v in values.items() if v is None}
        clips.append({
            "name": sample.name, "video": _relative(sample.video, out), "transcript": sample.transcript, **values,
            "reasons": why, "notes": found.notes,
        })  # fmt: skip
    for name, transcript, why in failed:
        empty = dict.fromkeys(scores.figures)
        reason = f"the clip could not be made: {why}"
        clips.append({
            "name": name, "video": None, "transcript": transcript, **empty, "reasons": dict.fromkeys(empty, reason),
            "notes": {},
        })  # fmt: skip
    for key in scores.figures:
        given = [c[key] for c in clips if c[key] is not None]
        if key in scores.whole.values:
            means[key], intervals[key], counts[key] = scores.whole.values[key], None, scores.counts[key]
        else:
            means[key] = mean(given) if given else None
            bounds = interval(given)
            intervals[key], counts[key] = None if bounds is None else list(bounds), len(given)
        if means[key] is None:
            per_clip = Counter(c["reasons"][key] for c in clips)
            said = scores.whole.reasons.get(key) or scores.unavailable.get(key)
            reasons[key] = said or per_clip.most_common(1)[0][0]
    return {
        "schema": SCHEMA, "name": out.resolve().name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "protocol": dict(protocol),
        "environment": dict(about), "model": None if model is None else dict(model), "mean": means,
        "interval": intervals, "count": counts, "reasons": reasons,
        "figures": {k: _figure(f, v, scores.whole.notes.get(k)) for k, (f, v) in scores.figures.items()},
        "clips": clips, "warnings": list(dict.fromkeys([*warnings, *scores.warnings])),
    }  # fmt: skip


def _unmeasured(key: str, scores: Scores) -> str:
    return scores.unavailable.get(key, NOT_CHOSEN)


def _figure(figure: Figure, measured_by: str, notes: str | None) -> dict[str, str]:
    plain = {"title": figure.title, "unit": figure.unit, "better": figure.better, "version": measured_by}
    return plain | ({"samples": notes} if notes else {})


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def _exact(block: Mapping[str, Any], command: str) -> str:
    """The protocol in words: enough to do it again."""
    lines = [f"Protocol {block['name']}: {block['clips']} clips. {block.get('about', '')}".strip()]
    if block["fast"]:
        lines.append("FAST VARIANT: fewer and shorter clips; its figures are not those of the whole protocol.")
    lines += [f"{k}: {v}" for k, v in block.items() if k not in ("name", "clips", "about", "fast", "exact")]
    lines += [HOW, f"Command: {command}"] if command else [HOW]
    return "\n".join(lines)


def write_transcripts(path: Path, samples: Sequence[Sample]) -> None:
    """One line a clip, paths relative to the file: what `eval score` reads."""
    lines = []
    for s in samples:
        files = {k: getattr(s, k) for k in ("video", "voice", "picture", "words")}
        line = {"name": s.name, "transcript": s.transcript, "character": s.character, "prompt": s.prompt}
        line |= {"direction": s.direction, "rtf": s.rtf}
        line |= {k: _relative(v, path.parent) for k, v in files.items() if v is not None}
        lines.append(json.dumps({k: v for k, v in line.items() if v is not None}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write(out: Path, samples: Sequence[Sample], scores: Scores, value: Mapping[str, Any]) -> None:
    """metrics.json last: where it is, the folder is whole."""
    write_transcripts(out / "transcripts.jsonl", samples)
    write_json(out / "series.json", {name: found.series for name, found in scores.clips.items()})
    write_json(out / "metrics.json", value)
