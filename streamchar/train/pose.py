"""The DiT's hidden states are asked for the pose: a loss beside the flow's, for training alone.

How a head turns is a small part of a latent's variance, so the flow loss hardly asks for it, and a network of few
steps learns to draw a face before it learns to move one. The world knows every pose exactly. Linear readings of
hidden states, place by place, must give it, in units of each value's own spread: of the motion frames before the middle
block what they show, of the noisy frames after it what is to come. Nothing of this is left in the trained model.
Aligning hidden states with a known representation is what REPA does with an image encoder's features.

Shape letters: N chunks, K = 9 latent frames, L tokens, S of a frame, D width, P pose values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.data.dataset import WindowDataset
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT

LEAST = 0.02
"""Smallest spread of a pose value, in the world's units: what hardly ever moves is not blown up."""


class States(NamedTuple):
    """Hidden states of one pass."""

    noisy: Tensor
    """(N, L, D) of the noisy video tokens, after the middle block."""
    motion: Tensor | None
    """(N, L, D) of the motion frames, before it; None where there are none."""


class PoseError(NamedTuple):
    """Mean squared errors in units of each value's spread: 1 is what knowing nothing has."""

    foreseen: Tensor
    """(N, K, P) of the chunk that is being denoised."""
    seen: Tensor | None
    """(N, K, P) of the motion frames."""

    def total(self, sigma_N: Tensor) -> Tensor:
        """The loss: what is foreseen counts by the square of its noise level, for at low ones the pose is in the noisy
        latents themselves, and the network has finer things to see to."""
        foreseen = (self.foreseen.mean((1, 2)) * sigma_N.square()).mean()
        return foreseen if self.seen is None else foreseen + self.seen.mean()

    def scalars(self) -> dict[str, float]:
        """To log."""
        seen = {} if self.seen is None else {"pose_seen": float(self.seen.detach().mean())}
        return {"pose": float(self.foreseen.detach().mean()), **seen}


class PoseHead(nn.Module):
    """Hidden states -> poses, one for each latent frame: the mean of what its places say, each with its own reading (a
    turned head is another thing left and right of the nose)."""

    deviation: Tensor
    mean: Tensor

    def __init__(self, width: int, places: int, poses: int) -> None:
        super().__init__()
        self.places = places
        self.foresee, self.see = nn.Linear(places * width, poses), nn.Linear(places * width, poses)
        self.register_buffer("mean", torch.zeros(poses))
        self.register_buffer("deviation", torch.ones(poses))

    @torch.no_grad()
    def measure(self, dataset: WindowDataset) -> None:
        """Take mean and spread of every value from clips."""
        pose = dataset.batch(10**9, 48, 2).pose
        assert pose is not None
        self.mean.copy_(pose.mean((0, 1, 2)))
        self.deviation.copy_(pose.flatten(0, 2).std(0).clamp(min=LEAST))

    def forward(self, states: States, pose_NKP: Tensor, before_NKP: Tensor) -> PoseError:
        """`pose_NKP` of the chunks, `before_NKP` of those that their motion frames show."""
        seen = None if states.motion is None else self._error(self.see, states.motion, before_NKP)
        return PoseError(foreseen=self._error(self.foresee, states.noisy, pose_NKP), seen=seen)

    def _error(self, read: nn.Linear, hidden_NLD: Tensor, pose_NKP: Tensor) -> Tensor:
        normed_NLD = F.layer_norm(hidden_NLD.float(), hidden_NLD.shape[-1:])
        frames_NKF = normed_NLD.unflatten(1, (-1, self.places)).flatten(2) / self.places
        return (read(frames_NKF) - (pose_NKP - self.mean) / self.deviation).square()


class Tap:
    """Keeps what a DiT's blocks around the middle last said: forward hooks, which copies of the DiT do not have."""

    def __init__(self, dit: JointDiT) -> None:
        self.spans: dict[int, tuple[Tensor, ...]] = {}
        """By block, its output: the clean span, if there is one, and the noisy one, each (N, L, D)."""
        self.middle = len(dit.blocks) // 2
        self.before = max(0, self.middle - 1)
        for index in {self.before, self.middle}:
            dit.blocks[index].register_forward_hook(self._keeper(index, ref(dit.blocks[index])))

    def _keeper(self, index: int, own: ref[nn.Module]) -> Callable[[nn.Module, object, tuple], None]:
        def keep(module: nn.Module, _inputs: object, out: tuple) -> None:
            if module is own():  # a copied module keeps its original's hooks
                self.spans[index] = out[0]

        return keep

    def take(self, layout: Layout) -> States:
        """Of the last pass, with this layout of conditions and video; once."""
        clean, noisy = self.spans[self.before][0], self.spans[self.middle][-1]
        self.spans = {}
        motion = clean[:, layout.segment("motion")] if layout.motion else None
        return States(noisy=noisy[:, : layout.length("video")], motion=motion)
