"""Two processes train as one with twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from streamchar.train.loop import Schedule, generator, run

STEPS, NO_LIMIT = 12, 1e9


class Regression:
    """A linear map from noise; each batch is a function of its number."""

    name = "regression"
    samples_per_step = 8

    def __init__(self, batches_a_step: int) -> None:
        torch.manual_seed(0)
        self.batches_a_step = batches_a_step
        self.model = nn.ModuleDict({"map": nn.Linear(5, 5), "layers": nn.ModuleList([nn.Linear(5, 5)])})

    def rate_factor(self, name: str) -> float:
        return 1.0

    def _one(self, number: int) -> torch.Tensor:
        x = torch.randn(8, 5, generator=generator(0, number))
        y = self.model["map"](x)
        if number % 2:  # a part that only every second batch uses
            y = self.model["layers"][0](y)
        return (y - x.flip(1)).square().mean()

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        numbers = range(step * self.batches_a_step, (step + 1) * self.batches_a_step)
        total = sum(self._one(number) for number in numbers) / self.batches_a_step
        return total, {}

    def validate(self, step: int) -> dict[str, float]:
        return {}


def train(out: Path, batches_a_step: int) -> None:
    schedule = Schedule(minutes=NO_LIMIT, rate=0.01, warmup=1, max_steps=STEPS)
    run(Regression(batches_a_step), schedule, out, resume=False, export=lambda folder: None)


def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    train(tmp_path / "one", batches_a_step=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
        str(tmp_path / "two"),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("model", "average"):
        one, two = (load_file(tmp_path / run / "checkpoint" / f"{name}.safetensors") for run in ("one", "two"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=2e-4)


if __name__ == "__main__":
    train(Path(sys.argv[1]), batches_a_step=1)
