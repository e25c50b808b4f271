"""Running VBench in another environment: a Python whose packages answer as the real ones do."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from streamchar.errors import ConfigError
from streamchar.eval.metric import Options, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.vbench import DIMENSIONS, VBench, installed, metrics, read_results

PACKAGE = """
import json, os
class {cls}:
    def __init__(self, device, full_info_dir, output_path):
        assert os.path.basename(full_info_dir) == "{cls}_full_info.json"
        self.device, self.output_path = device, output_path
        os.makedirs(output_path, exist_ok=True)
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        assert mode == "custom_input" and len(dimension_list) == 1, mode
        assert os.path.isdir({cls!r}.lower()), "paths of the package are relative to where it lies"
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(dimension_list[0] + " " + self.device + chr(10))
        if dimension_list[0] == "aesthetic_quality":
            raise RuntimeError("CUDA out of memory")
        found = []
        for file in sorted(os.listdir(videos_path), reverse=True):
            path = os.path.join(videos_path, file)
            size = os.path.getsize(path)
            value = dict(imaging_quality=50.0 + size, dynamic_degree=size > 2).get(dimension_list[0], size / 10)
            if dimension_list[0] == "Human_Identity" and size == 1:
                value = -1
            found.append(dict(video_path=path, video_results=value))
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as out:
            json.dump({{dimension_list[0]: [0.5, found]}}, out)
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that has `vbench` and `vbench2`."""
    site = tmp_path / "site"
    for name, cls in (("vbench", "VBench"), ("vbench2", "VBench2")):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(PACKAGE.format(cls=cls))
        (site / f"{name}-0.1.5.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.5\n"
        (site / f"{name}-0.1.5.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def clip(folder: Path, name: str, size: int) -> Sample:
    path = folder / name
    path.write_bytes(b"x" * size)
    return Sample(name=path.stem, video=path, transcript="x")


def test_results_are_merged_by_clip(python: Path, tmp_path: Path) -> None:
    (metric,) = metrics(Options(vbench=python))
    assert isinstance(metric, VBench)
    assert metric.version == "vbench 0.1.5, vbench2 0.1.5; custom_input, one dimension a run"
    assert [f.key for f in metric.figures] == [d.figure.key for d in DIMENSIONS]
    one, three = clip(tmp_path, "a-0.mp4", 1), clip(tmp_path, "b.mp4", 3)
    metric.prepare([one, three])
    first, second = metric.measure(one), metric.measure(three)
    assert first.values["vbench_subject_consistency"] == pytest.approx(0.1)
    assert second.values["vbench_subject_consistency"] == pytest.approx(0.3)
    assert second.values["vbench_imaging_quality"] == pytest.approx(0.53)
    assert (first.values["vbench_dynamic_degree"], second.values["vbench_dynamic_degree"]) == (0.0, 1.0)
    assert second.values["human_identity"] == second.values["human_anatomy"] == pytest.approx(0.3)
    assert first.values["human_identity"] is None and "could not measure" in first.reasons["human_identity"]
    assert first.values["vbench_aesthetic_quality"] is None
    assert "out of memory" in first.reasons["vbench_aesthetic_quality"]
    assert set(first.values) == {f.key for f in metric.figures}
    runs = (tmp_path / "log").read_text().splitlines()
    assert runs == [f"{d.name} cuda" for d in DIMENSIONS]  # one process a dimension, whatever the number of clips


def test_one_package_missing(python: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "vbench2" / "__init__.py").unlink()
    (tmp_path / "site" / "vbench2").rmdir()
    there, missing = metrics(Options(vbench=python))
    assert isinstance(there, VBench) and "human_anatomy" not in {f.key for f in there.figures}
    assert isinstance(missing, Unavailable) and "pip install vbench2" in missing.reason
    assert {f.key for f in missing.figures} == {"human_anatomy", "human_identity"}


def test_no_environment(tmp_path: Path) -> None:
    (missing,) = metrics(Options())
    assert isinstance(missing, Unavailable) and "--vbench PYTHON" in missing.reason
    assert len(missing.figures) == len(DIMENSIONS)
    with pytest.raises(ConfigError, match="cannot run"):
        installed(tmp_path / "nothing")
    talker = tmp_path / "talker"
    talker.write_text("#!/bin/sh\necho no python here >&2\nexit 3\n")
    talker.chmod(0o755)
    with pytest.raises(ConfigError, match="exited with 3: no python here"):
        installed(talker)


def test_another_form_of_results(tmp_path: Path) -> None:
    dimension = DIMENSIONS[0]
    path = tmp_path / f"{dimension.name}_eval_results.json"
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_results(tmp_path, dimension)
    path.write_text(json.dumps({dimension.name: 0.4}))
    with pytest.raises(ConfigError, match="expected results of vbench"):
        read_results(tmp_path, dimension)
    path.write_text(
        json.dumps({dimension.name: [float("nan"), [{"video_path": "a.mp4", "video_results": float("nan")}]]})
    )
    assert read_results(tmp_path, dimension) == {"a": None}
