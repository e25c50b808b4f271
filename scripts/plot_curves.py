"""Training curves as one picture: python scripts/plot_curves.py RUN [RUN ...] --out curves.png

Reads the TensorBoard scalars that `streamchar train` writes to RUN/scalars.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def scalars(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every scalar of a run: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "scalars"), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        found[tag] = ([p.step for p in points], [p.value for p in points])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(given.runs), 3, figsize=(15, 4 * len(given.runs)), squeeze=False)
    for row, run in zip(axes, given.runs, strict=True):
        data = scalars(run)
        held_out = [t for t in data if t.startswith("held_out/") and "within" not in t and "end" not in t]
        losses = [t for t in data if t.startswith("train/")]
        groups = (
            ("training", [t for t in losses if not any(w in t for w in ("norm", "samples", "within"))]),
            (
                "held out: right and shuffled conditions",
                [t for t in held_out if "wrong" in t or t.endswith(("_0.8", "_0.9", "_1.0"))],
            ),
            ("pointer within one token", [t for t in data if "within" in t]),
        )
        for axis, (title, tags) in zip(row, groups, strict=True):
            for tag in sorted(tags):
                axis.plot(*data[tag], label=tag.split("/", 1)[1], linestyle="--" if "wrong" in tag else "-")
            axis.set_title(f"{run.name}: {title}")
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(given.out, dpi=80)


if __name__ == "__main__":
    main()
