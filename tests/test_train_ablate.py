"""The ablations: what is trained and shared, what is not done twice, intervals and verdicts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from streamchar.cli.main import main
from streamchar.cli.train import suite_of
from streamchar.errors import InputError
from streamchar.stream.models import load
from streamchar.train import ablate as ablation
from streamchar.train.ablate import ARMS, BASE, FULL, Ablation, Arm, Budget, ablate, summary, table
from streamchar.train.parallel import Scale
from tests.distillation import CONFIG, clip, loaded_teacher, made_folders, plain_run  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("plain")


# -- figures -----------------------------------------------------------------------------------------


def metrics(path, **figures):
    """An evaluation's metrics.json of these figures by clip."""
    count = len(next(iter(figures.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = [{"name": f"c{i}", "wer": None} | {k: v[i] for k, v in figures.items()} for i in range(count)]
    path.write_text(json.dumps({"clips": clips}))
    return path


def rows(tmp_path, **by_arm):
    """Rows whose drift is a list of seeds' lists of clips."""
    return {
        name: {
            "title": name,
            "paper": {"quality_drift": 0.0304} if name == "no-sink" else {},
            "updates": [[2, 2]],
            "runs": [
                {"long": metrics(tmp_path / name / str(i) / "metrics.json", quality_drift=s)}
                for i, s in enumerate(seeds)
            ],
        }
        for name, seeds in by_arm.items()
    }


def test_intervals_hold_the_mean_and_know_of_seeds():
    seeds = [[1.0, 1.2, 0.8], [2.0, 2.2, 1.8], [3.0, 3.1, 2.9]]
    found = summary(seeds, seeds)
    assert found["mean"] == pytest.approx(2.0) and found["by_seed"] == pytest.approx([1, 2, 3])
    low, high = found["interval"]
    assert 1.0 <= low < 1.6 and 2.4 < high <= 3.0, "the seeds differ more than the clips"
    narrow = summary([[2.0, 2.2, 1.8]] * 3, seeds)["interval"]
    assert narrow[1] - narrow[0] < 0.4
    assert summary([[5.0]], [[5.0]])["interval"] is None, "one clip of one seed says nothing of others"
    assert summary([[], []], seeds) is None
    assert found["ratio"] == pytest.approx(1.0) and found["ratio_interval"][0] < 1 < found["ratio_interval"][1]


@pytest.mark.parametrize(
    ("drift", "verdict"),
    [([[4.0, 4.4], [4.2, 4.1]], "holds"), ([[1.0, 1.1], [1.2, 1.0]], "does not hold"),
     ([[1.0, 1.0], [6.0, 6.0]], "cannot be told")],
)  # fmt: skip
def test_verdicts(tmp_path, drift, verdict):
    made = rows(tmp_path, **{BASE: [[1.0, 1.0]], FULL: [[1.0, 1.1], [1.0, 0.9]], "no-sink": drift})
    value = table(made, Budget(updates=2, minutes=1.0, seeds=2))
    (claim,) = value["claims"]
    assert (claim["figure"], claim["verdict"]) == ("quality_drift", verdict)
    page = ablation.markdown(value)
    (line,) = [line for line in page.splitlines() if line.startswith("| no-sink |")]
    assert "(0.0304)" in line and " x" in line and "2+2" in line
    assert verdict in page and "2 updates" in page


# -- the whole of it ---------------------------------------------------------------------------------


@pytest.fixture
def teacher_folder(folders, tmp_path):
    """The tiny teacher, to be played in one step."""
    folder = tmp_path / "teacher"
    shutil.copytree(folders / "teacher", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "steps": 1, "guidance": 1.0}))
    return folder


def plan_of(folders, teacher_folder, out, **changes):
    values = {
        "data": folders / "video",
        "out": out,
        "teacher": teacher_folder,
        "config": CONFIG,
        "chunks": 2,
        "grow": 1,
        "options": {"batch": 1, "follow": 1},
        "budget": Budget(updates=1, minutes=60.0, seeds=1),
        **changes,
    }
    return Ablation(**values)


def protocol(folder):
    """One picture, two words."""
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 120, 90)).save(folder / "face.png")
    item = {"name": "one", "transcript": "hi there", "picture": "face.png", "seconds": 0.4}
    path = folder / "mini.json"
    path.write_text(json.dumps({"schema": "streamchar-protocol/1", "name": "mini", "seconds": 0.4, "items": [item]}))
    return path


def test_arms_are_trained_measured_and_not_again(folders, teacher_folder, tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"clips": None, "fast": False, "metrics": "dynamic", "recogniser_folder": None, "device": "cpu"}
    evaluate = suite_of(str(protocol(tmp_path)), **options)
    plan = plan_of(folders, teacher_folder, tmp_path / "out")
    arms = [arm for arm in ARMS if arm.name in ("no-sink", "no-stage-1")]
    value = ablate(plan, evaluate, arms=arms)
    assert list(value["rows"]) == [BASE, "no-sink", "no-stage-1"] and value["protocols"] == ["mini"]
    assert [value["rows"][arm.name]["updates"] for arm in arms] == [[[1, 1]], [[1]]]
    assert [p.name for p in (plan.out / "stage-1").iterdir()] == ["no-sink-seed0"]
    students = {arm.name: load(plan.out / arm.name / "seed0") for arm in arms}
    assert {name: m.sink for name, m in students.items()} == {"no-sink": False, "no-stage-1": True}
    assert {m.sampler for m in students.values()} == {"renoise"}
    weights = [m.dit.patch_embedding.weight for m in students.values()]
    assert not torch.equal(weights[0], weights[1])
    measured = plan.out / "measured" / "no-sink" / "seed0" / "mini"
    assert (measured / "clips" / "one.mp4").is_file()
    (reading,) = json.loads((measured / "metrics.json").read_text())["clips"]
    figure = value["rows"]["no-sink"]["figures"]["mini"]["dynamic"]
    assert (figure and figure["mean"]) == reading["dynamic"]
    page = (plan.out / "ablation.md").read_text()
    assert "| no sink chunk | 1+1 |" in page

    def never(*args, **kwargs):
        raise AssertionError("trained or measured twice")

    for name in ("train_distill", "train_rollout"):
        monkeypatch.setattr(ablation, name, never)
    monkeypatch.setattr("streamchar.cli.generator.ModelGenerator.__init__", never)
    assert ablate(plan, evaluate, arms=arms) == value
    with pytest.raises(InputError, match="holds another ablation .grow differ"):
        ablate(plan_of(folders, teacher_folder, tmp_path / "out", grow=3), evaluate)


def test_a_stopped_training_is_resumed(folders, teacher_folder, tmp_path, monkeypatch):
    plan = plan_of(folders, teacher_folder, tmp_path / "out")
    calls = []
    real = ablation.train_distill

    def stops(*args, **kwargs):
        calls.append(kwargs["resume"])
        real(*args, **kwargs)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "train_distill", stops)
    monkeypatch.setattr(ablation, "train_rollout", real_nothing := lambda *args, **kwargs: None)
    with pytest.raises(KeyboardInterrupt):
        plan.train(ARMS[0], 0)
    assert callable(real_nothing) and not (plan.out / "stage-1" / "plain-seed0" / "done.json").exists()
    assert plan._go_on(stops, plan.out / "stage-1" / "plain-seed0", seed=0) == 1
    assert calls == [False, True]


def test_what_the_arms_change():
    """Every arm differs from the whole recipe in one thing, in the stages that know of it."""
    told = {arm.name: {**(arm.first or {"none": 1}), **arm.second} for arm in ARMS if arm.name != FULL}
    assert all(told.values()) and len({json.dumps(v, sort_keys=True) for v in told.values()}) == 5
    assert ARMS[0] == Arm(name=FULL, title=ARMS[0].title, paper=ARMS[0].paper)
    assert ARMS[0].paper["quality_drift"] * 4 < next(a for a in ARMS if a.name == "no-sink").paper["quality_drift"]


@pytest.mark.parametrize("changes", [{"updates": 0}, {"seeds": 0}, {"minutes": 0.0}])
def test_a_budget_of_nothing_is_refused(changes):
    with pytest.raises(InputError, match="must be at least 1"):
        Budget(**{"updates": 1, "minutes": 1.0, "seeds": 1, **changes})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [("", "ablate needs --teacher and --updates"), ("--updates 3", "ablate needs --teacher"),
     ("--updates 0", "--updates must be at least 1"), ("--updates 3 --seeds 0", "--seeds must be at least 1"),
     ("--updates 3 --teacher . --protocols dance", "unknown protocol 'dance'"),
     ("--updates 3 --teacher . --metrics beauty", "unknown 'beauty'"), ("--no-sink", "does not take --no-sink")],
)  # fmt: skip
def test_the_command_line_says_what_is_wrong(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = f"train ablate --data . --out run --minutes 1 --preset tiny {arguments}"
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_scale_goes_where_it_is_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {}

    def stand_in(data, out, minutes, *, config, resume=False, scale=None):
        given["scale"] = scale

    monkeypatch.setattr("streamchar.train.distill.train_distill", stand_in)
    command = "train distill --data . --out run --minutes 1 --preset tiny --shard --bf16 --accumulate 4"
    assert main(command.split()) == 0
    assert given["scale"] == Scale(shard=True, bf16=True, accumulate=4)
    assert main([*command.replace("distill", "ablate").split()]) == 2
    assert "ablate does not take --shard" in capsys.readouterr().err
    assert main(command.replace("--shard", "").split()) == 2
    assert "without shard; add --shard" in capsys.readouterr().err
