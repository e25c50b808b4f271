"""Checkpoints cut into pieces and put together again (scripts/gpu/pieces.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from streamchar.train.checkpoint import load_checkpoint, save_checkpoint
from streamchar.train.loop import Schedule, run

PATH = Path(__file__).parents[1] / "scripts" / "gpu" / "pieces.py"


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pieces", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PIECE", 20_000)
    return module


def net() -> nn.Module:
    """One trained layer of some size, one frozen, and a buffer."""
    torch.manual_seed(0)
    model = nn.Module()
    model.dit = nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 64).requires_grad_(False))
    model.register_buffer("deviation", torch.rand(5))
    return model


def trained(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """A checkpoint after three steps of Adam."""
    model = net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model.dit(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    average = {n: p.detach() + 0.001 for n, p in model.named_parameters() if p.requires_grad}
    save_checkpoint(folder / "checkpoint", model, [optimizer], average, {"objective": "test", "step": 3})
    (folder / "dit").mkdir()
    (folder / "dit" / "config.json").write_text('{"class": "Sequential"}')
    return model, average


@pytest.mark.parametrize("level", ["exact", "half", "lean", "warm", "bytes"])
def test_what_comes_back(level: str, tmp_path: Path, pieces: ModuleType) -> None:
    model, average = trained(tmp_path / "run")
    pieces.main(["split", str(tmp_path / "run"), str(tmp_path / "out"), "--level", level])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["level"] == level and manifest["step"] == 3
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["manifest.json", *(piece["name"] for piece in manifest["pieces"])]
    assert all((tmp_path / "out" / name).stat().st_size <= 20_000 for name in files)
    pieces.main(["join", str(tmp_path / "out"), str(tmp_path / "back")])
    again = net()
    optimizer = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], 1e-3)
    restored, facts = load_checkpoint(tmp_path / "back" / "checkpoint", again, [optimizer], {"objective": "test"})
    assert facts["step"] == 3
    tolerance = {"exact": 0.0, "half": 1e-3, "lean": 2e-3, "warm": 2e-3, "bytes": 5e-3}[level]
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert two.dtype == torch.float32, name
        assert (one - two).abs().max() <= tolerance, name
    assert torch.equal(model.get_buffer("deviation"), again.get_buffer("deviation"))
    for name, value in average.items():
        assert (restored[name] - value).abs().max() <= tolerance, name
    assert bool(optimizer.state) == (level in ("exact", "half", "lean"))
    export = load_file(tmp_path / "back" / "dit" / "model.safetensors")
    assert set(export) == {name.removeprefix("dit.") for name in model.state_dict() if name.startswith("dit.")}
    assert (export["0.weight"] - average["dit.0.weight"]).abs().max() <= tolerance


def test_the_first_level_that_fits(tmp_path: Path, pieces: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run")
    values = 64 * 80 + 80
    for budget, level in ((21 * values, "exact"), (11 * values, "half"), (9 * values, "lean"), (4.5 * values, "warm")):
        pieces.main(["split", str(tmp_path / "run"), str(tmp_path / level), "--mib", str(budget / 2**20)])
        assert json.loads((tmp_path / level / "manifest.json").read_text())["level"] == level
    with pytest.raises(SystemExit, match="do not fit"):
        pieces.main(["split", str(tmp_path / "run"), str(tmp_path / "none"), "--mib", "0.001"])


def test_damage_is_found_and_nothing_overwritten(tmp_path: Path, pieces: ModuleType) -> None:
    trained(tmp_path / "run")
    pieces.main(["split", str(tmp_path / "run"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is there already"):
        pieces.main(["join", str(tmp_path / "out"), str(tmp_path / "run")])
    first = tmp_path / "out" / "piece-0"
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match="damaged"):
        pieces.main(["join", str(tmp_path / "out"), str(tmp_path / "back")])
    assert not (tmp_path / "back" / "checkpoint").exists()
    with pytest.raises(SystemExit, match="expected a training checkpoint"):
        pieces.main(["split", str(tmp_path / "nowhere"), str(tmp_path / "out")])


def test_stage_one_leaves_the_main_blocks_behind(tmp_path: Path, pieces: ModuleType) -> None:
    from streamchar.config.presets import tiny
    from streamchar.train.orchestrator import SpeechModel

    pieces.PIECE, pieces.SMALL = 1 << 20, 64
    torch.manual_seed(5)
    model = SpeechModel(tiny())
    model.dit.blocks.requires_grad_(False)
    average = {n: p.detach() + 1 for n, p in model.named_parameters() if p.requires_grad}
    facts = {"objective": "orchestrator", "preset": "tiny", "seed": 5, "step": 1}
    optimizers = [torch.optim.AdamW(model.parameters())]
    save_checkpoint(tmp_path / "run" / "checkpoint", model, optimizers, average, facts)
    sizes = {}
    for level in ("half", "warm"):
        pieces.main(["split", str(tmp_path / "run"), str(tmp_path / level), "--level", level])
        manifest = json.loads((tmp_path / level / "manifest.json").read_text())
        sizes[level] = manifest["bytes"]
        pieces.main(["join", str(tmp_path / level), str(tmp_path / f"back-{level}")])
        again = SpeechModel(tiny())
        again.load_state_dict(load_file(tmp_path / f"back-{level}" / "checkpoint" / "model.safetensors"))
        for name, value in model.state_dict().items():
            expected = average.get(name, value) if level == "warm" else value
            assert (again.state_dict()[name] - expected).abs().max() <= 2e-3, (level, name)
    small = sum(2 * p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes["warm"] < 1.2 * small


class Constant:
    """An objective whose rate can be read off: the loss has a gradient of one everywhere."""

    name, samples_per_step = "constant", 1

    def __init__(self) -> None:
        self.model = nn.Linear(4, 1, bias=False)
        nn.init.ones_(self.model.weight)
        self.seen: list[float] = []

    def rate_factor(self, name: str) -> float:
        return 1.0

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        self.seen.append(float(self.model.weight.detach()[0, 0]))
        return self.model.weight.sum(), {}

    def validate(self, step: int) -> dict[str, float]:
        return {}


def test_without_moments_the_rate_warms_up_again(tmp_path: Path, pieces: ModuleType) -> None:
    def go(steps: int, folder: Path, resume: bool) -> list[float]:
        objective = Constant()
        schedule = Schedule(minutes=5, rate=0.1, warmup=10, weight_decay=0.0, max_steps=steps)
        run(objective, schedule, folder, resume=resume, export=lambda _: None)
        return [a - b for a, b in zip(objective.seen, objective.seen[1:], strict=False)]

    go(20, tmp_path / "run", False)
    for level in ("exact", "warm"):
        pieces.main(["split", str(tmp_path / "run"), str(tmp_path / level), "--level", level])
        pieces.main(["join", str(tmp_path / level), str(tmp_path / f"back-{level}")])
    whole = go(24, tmp_path / "back-exact", True)
    assert whole == pytest.approx([0.1] * 3, rel=1e-3)
    warm = go(24, tmp_path / "back-warm", True)
    assert warm == pytest.approx([0.01, 0.02, 0.03], rel=1e-3)
