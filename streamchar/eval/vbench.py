"""VBench and VBench-2.0, run in the user's own environment: they need old CUDA stacks that do not go with ours.

`Options.vbench` is the Python of an environment where `vbench`, `vbench2` or both are installed. For each dimension a
process of that Python is started on a folder of links to the videos, in mode `custom_input` (their own prompts are not
needed), through the packages' documented classes; what it writes, `*_eval_results.json`, is read back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamchar.errors import ConfigError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One question that a package answers."""

    package: str
    name: str
    """As the package spells it."""
    figure: Figure
    scale: float = 1.0
    """Its figure of a clip is divided by this: `imaging_quality` gives percent for a clip and a share for the mean."""


def _figure(key: str, title: str) -> Figure:
    return Figure(key=key, title=title, unit="share", better="higher")


def _human(name: str) -> Dimension:
    title = f"{name.replace('_', ' ')} (VBench-2.0)"
    return Dimension(package="vbench2", name=name, figure=_figure(name.lower(), title))


DIMENSIONS: tuple[Dimension, ...] = (
    *(
        Dimension(
            package="vbench", name=name, scale=100.0 if name == "imaging_quality" else 1.0,
            figure=_figure(f"vbench_{name}", f"VBench {name.replace('_', ' ')}"),
        )
        for name in (
            "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree",
            "aesthetic_quality", "imaging_quality",
        )
    ),
    _human("Human_Anatomy"),
    _human("Human_Identity"),
)  # fmt: skip
"""Those that take any video: the others need the benchmarks' own prompts."""

UNMEASURED = -1
"""What VBench-2.0 writes for a clip with too few frames of one face."""

PROBE = """
import importlib.metadata as m, importlib.util as u, json
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return "unknown version"
print(json.dumps({n: version(n) for n in ("vbench", "vbench2") if u.find_spec(n)}))
"""
RUNNER = """
import importlib, os, sys
package, dimension, videos, out, device = sys.argv[1:]
module = importlib.import_module(package)
home = os.path.dirname(os.path.abspath(module.__file__))
os.chdir(os.path.dirname(home))  # VBench-2.0 opens its detectors' settings relative to the folder it lies in
name, info = ("VBench2", "VBench2_full_info.json") if package == "vbench2" else ("VBench", "VBench_full_info.json")
bench = getattr(module, name)(device, os.path.join(home, info), out)
bench.evaluate(
    videos_path=videos, name=dimension, dimension_list=[dimension], mode="custom_input",
    imaging_quality_preprocessing_mode="longer",
)
"""
"""Programs of the other environment's Python: no import of ours, Python 3.8."""


def installed(python: Path, timeout: float = 120.0) -> dict[str, str]:
    """Versions of `vbench` and `vbench2` in the environment of `python`; raises `ConfigError` if it cannot be run."""
    done = _run([str(python), "-c", PROBE], timeout)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise ConfigError(
            f"expected {python} to be a Python (--vbench PYTHON), but it exited with {done.returncode}: {_last(done)}"
        ) from None


def _run(command: Sequence[str], timeout: float | None, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env={**own, **environment}
        )
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]} (--vbench PYTHON): {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} (--vbench PYTHON) did not answer within {timeout:g} s") from None


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a process said."""
    lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return lines[-1][:300]


def read_results(folder: Path, dimension: Dimension) -> dict[str, float | None]:
    """Of `{dimension}_eval_results.json`, {dimension: [mean, [{video_path, video_results}, ...]]}: by name of the
    video without ending; None where the package could not measure one. Raises `ConfigError` for another form."""
    path = folder / f"{dimension.name}_eval_results.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[dimension.name][1]
        found = {Path(entry["video_path"]).stem: float(entry["video_results"]) for entry in entries}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"expected results of {dimension.package} {dimension.name} in {path.name}, as its versions of 2024 and "
            f"2025 write them; got {type(error).__name__}: {error}"
        ) from None
    measured = {stem: value for stem, value in found.items() if value != UNMEASURED and math.isfinite(value)}
    return {stem: measured[stem] / dimension.scale if stem in measured else None for stem in found}


class VBench:
    """Subject and background consistency, smoothness, dynamics, aesthetics and imaging quality of VBench (Huang et al.
    2024); Human Anatomy and Human Identity of VBench-2.0 (Zheng et al. 2025): their code, their weights.

    Unit: shares, [0, 1], as they report them; higher is better (the dynamic degree of a clip is 0 or 1). Custom
    videos, so not the leaderboards' prompts: comparable between systems scored here, not with published tables. They
    miss speech and lip sync; subject consistency is best for a still picture; the human dimensions look for
    photographic people, and on cartoons mean little.

    A process loads its models anew: hand all clips to `prepare` before `measure`, which else starts one for its clip.
    """

    def __init__(
        self, python: Path, packages: Mapping[str, str], *, device: str = "cuda", timeout: float | None = None
    ) -> None:
        self.python, self.device, self.timeout = Path(python), device, timeout
        self.dimensions = tuple(d for d in DIMENSIONS if d.package in packages)
        self.figures = tuple(d.figure for d in self.dimensions)
        versions = ", ".join(f"{name} {packages[name]}" for name in sorted(packages))
        self.version = f"{versions}; custom_input, one dimension a run"
        self.readings: dict[Path, Reading] = {}

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Measure all clips in one process a dimension; `measure` then answers from what was found."""
        clips = {s.video: f"clip{i:05d}" for i, s in enumerate(samples) if s.video.suffix.lower() == ".mp4"}
        clips = {video: stem for video, stem in clips.items() if video not in self.readings}
        if not clips:
            return
        values: dict[str, dict[str, float | None]] = {}
        failures: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="vbench-") as top:
            videos, out = Path(top, "videos"), Path(top, "results")
            videos.mkdir()
            for video, stem in clips.items():
                (videos / f"{stem}.mp4").symlink_to(video.resolve())
            for dimension in self.dimensions:
                key = dimension.figure.key
                try:
                    values[key] = self._evaluate(dimension, videos, out)
                except ConfigError as error:
                    log.warning("%s", error)
                    failures[key] = str(error)
        for video, stem in clips.items():
            self.readings[video] = self._reading(stem, values, failures)

    def _evaluate(self, dimension: Dimension, videos: Path, out: Path) -> dict[str, float | None]:
        log.info("%s %s of %d clips", dimension.package, dimension.name, len(list(videos.iterdir())))
        places = [str(videos), str(out), self.device]
        command = [str(self.python), "-c", RUNNER, dimension.package, dimension.name, *places]
        done = _run(command, self.timeout)
        if done.returncode != 0:
            raise ConfigError(f"{dimension.package} {dimension.name} failed ({done.returncode}): {_last(done)}")
        return read_results(out, dimension)

    def _reading(
        self, stem: str, values: Mapping[str, Mapping[str, float | None]], failures: Mapping[str, str]
    ) -> Reading:
        found = {f.key: values.get(f.key, {}).get(stem) for f in self.figures}
        reasons = {}
        for key, value in found.items():
            if value is None:
                reasons[key] = failures.get(key) or "the package could not measure this clip (no face, or too short)"
        return Reading(values=found, reasons=reasons)

    def measure(self, sample: Sample) -> Reading:
        if sample.video.suffix.lower() != ".mp4":
            raise ImpossibleError(f"VBench-2.0 reads mp4 only, got {sample.video.name}; convert it")
        if sample.video not in self.readings:
            self.prepare([sample])
        return self.readings[sample.video]


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """VBench's and VBench-2.0's figures, as far as the user's environment has the packages."""
    if options.vbench is None:
        reason = (
            "no environment with VBench: make one (Python 3.10, CUDA 11.8, pip install vbench vbench2 as their pages "
            "say) and give its Python (--vbench PYTHON)"
        )
        return [Unavailable(figures=tuple(d.figure for d in DIMENSIONS), reason=reason)]
    packages = installed(options.vbench)
    found: list[ClipMetric | SetMetric | Unavailable] = [VBench(options.vbench, packages)] if packages else []
    for name in ("vbench", "vbench2"):
        if name not in packages:
            figures = tuple(d.figure for d in DIMENSIONS if d.package == name)
            reason = f"{options.vbench} has no package {name}: pip install {name}"
            found.append(Unavailable(figures=figures, reason=reason))
    return found
