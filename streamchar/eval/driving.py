"""Our audio for audio-driven systems (paper section 5.1): they are driven by the very sound that is scored with ours.

A folder with NAME.wav, NAME.png (first frame) and transcripts.jsonl. Such a system makes NAME.mp4 of each pair, with
that sound in it; `streamchar eval score VIDEOS --transcripts transcripts.jsonl` measures it on the same clips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from streamchar.errors import DataError, InputError
from streamchar.eval.cache import place_file
from streamchar.eval.evaluation import write_transcripts
from streamchar.eval.sample import Sample, read_samples

RATE = 48_000


def export_audio(run: Path, out: Path) -> int:
    """Write the folder from an evaluation folder of ours; returns the number of clips.

    Raises `DataError` if `run` is no folder of `eval run`, `InputError` if `out` is not empty.
    """
    import soundfile

    if not (run / "transcripts.jsonl").is_file() or not (run / "clips").is_dir():
        raise DataError(f"expected the folder of an `eval run` (clips, transcripts.jsonl), got {run}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; give another folder with --out")
    samples = read_samples(run / "clips", run / "transcripts.jsonl")
    missing = [s.name for s in samples if s.picture is None]
    if missing:
        raise DataError(f"{run}: {missing[0]} has no first frame to animate; make the clips with `eval run`")
    out.mkdir(parents=True, exist_ok=True)
    exported: list[Sample] = []
    for sample in samples:
        soundfile.write(out / f"{sample.name}.wav", sample.samples(RATE).numpy(), RATE, subtype="PCM_16")
        places = {}
        for kind, tail in (("picture", ""), ("voice", ".voice"), ("words", ".words")):
            path = getattr(sample, kind)
            if path is not None:
                places[kind] = out / f"{sample.name}{tail}{path.suffix}"
                place_file(path, places[kind])
        exported.append(replace(sample, video=out / f"{sample.name}.mp4", rtf=None, **places))
    write_transcripts(out / "transcripts.jsonl", exported)
    return len(exported)
