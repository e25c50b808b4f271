"""The gallery of `docs/gallery.md` from two evaluation folders of the same protocol: a model's and the world's truth.

    streamchar eval run --model toon  --protocol short --clips 12 --out runs/gallery/toon
    streamchar eval run --model truth --protocol short --clips 12 --out runs/gallery/truth
    python scripts/gallery.py runs/gallery/toon runs/gallery/truth --out docs/gallery

Nobody chooses the clips: they are the best and the worst by the suite's own figures (word errors, then the mouth).
Writes strips (the model above the truth, the same moments), short mp4s and the page.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streamchar.eval.pages.evaluation import read_evaluation
from streamchar.eval.sample import Sample, read_samples

COLUMNS, SIDE = 10, 112
CRF = "31"
FIGURES = (
    ("wer", "word error rate", 100, "%"), ("mouth_correlation", "mouth follows speech", 1, ""),
    ("sync_ms", "mouth against speech", 1, " ms"), ("identity", "identity", 1, ""),
    ("attributes_kept", "attributes kept", 100, "%"), ("dynamic_flow", "movement (optical flow)", 1, ""),
)  # fmt: skip


def strip(sample: Sample) -> Tensor:
    """(3, SIDE, COLUMNS SIDE) uint8: moments spread evenly over the clip."""
    frames_T3HW = sample.frames()
    chosen = frames_T3HW[torch.linspace(2, len(frames_T3HW) - 3, COLUMNS).long()].float()
    small = torch.nn.functional.interpolate(chosen, (SIDE, SIDE), mode="area").round().to(torch.uint8)
    return torch.cat(list(small), dim=2)


def write_small(sample: Sample, path: Path) -> None:
    """The clip again at a coarser quality: a gallery travels with the repository."""
    with av.open(str(sample.video)) as source, av.open(str(path), "w") as target:
        pictures, sound = source.streams.video[0], source.streams.audio[0]
        video = target.add_stream("libx264", rate=Fraction(24), options={"crf": CRF, "preset": "veryslow"})
        video.width, video.height, video.pix_fmt = pictures.width, pictures.height, "yuv420p"
        audio = target.add_stream("aac", rate=48_000, layout="mono", bit_rate=48_000)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=1024)
        for frame in source.decode(pictures, sound):
            if isinstance(frame, av.VideoFrame):
                frame.pict_type = av.video.frame.PictureType.NONE
                target.mux(video.encode(frame))
            else:
                for part in resampler.resample(frame):
                    target.mux(audio.encode(part))
        for part in resampler.resample(None):
            target.mux(audio.encode(part))
        target.mux([*video.encode(None), *audio.encode(None)])


def line(clip: dict) -> str:
    """A clip's figures in words."""
    given = [(name, clip.get(key), factor, unit) for key, name, factor, unit in FIGURES]
    return ", ".join(f"{name} {value * factor:.3g}{unit}" for name, value, factor, unit in given if value is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=3, help="how many of the best, and of the worst")
    given = parser.parse_args()
    whole = json.loads((given.model / "metrics.json").read_text(encoding="utf-8"))
    clips = sorted(whole["clips"], key=lambda c: (c["wer"], -(c["mouth_correlation"] or 0.0)))
    made, true = (
        {s.name: s for s in read_samples(folder / "clips", folder / "transcripts.jsonl")}
        for folder in (given.model, given.truth)
    )
    missing = sorted(c["name"] for c in clips if c["name"] not in true)
    if missing:
        raise SystemExit(f"{given.truth}: expected the clips of {given.model}, found no {', '.join(missing)}")
    evaluation = read_evaluation(given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# Gallery", "",
        f"The {given.each} best and the {given.each} worst of the {len(clips)} clips of `streamchar eval run --model "
        f"{whole['model']['name']} --protocol {whole['protocol']['name']} --clips {len(clips)}` "
        f"({evaluation.created[:10]}), chosen by their figures alone (`scripts/gallery.py`); held-out characters and "
        "sentences. Above what the model made, below how the world itself draws and speaks the same item "
        "(another performance: gestures need not come at the same time). A click on a strip opens the video with its "
        f"sound. In the mean over all {len(clips)}: {line(whole['mean'])}.", "",
    ]  # fmt: skip
    for title, chosen in (("Best", clips[: given.each]), ("Worst", clips[-given.each :][::-1])):
        text += [f"## {title}", ""]
        for clip in chosen:
            name, sample = clip["name"], made[clip["name"]]
            picture = torch.cat([strip(sample), strip(true[name])], dim=1).permute(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(picture.numpy())).save(given.out / f"{name}.jpg", quality=80)
            write_small(sample, given.out / f"{name}.mp4")
            text += [
                f"[![{name}]({given.out.name}/{name}.jpg)]({given.out.name}/{name}.mp4)", "",
                f"> {clip['transcript']}", "", f"Prompt: *{sample.prompt}*. {line(clip).capitalize()}.", "",
            ]  # fmt: skip
    given.out.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
