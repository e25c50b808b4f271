"""What chunks are conditioned on when a whole batch of them is denoised: the form of stages 1 and 2.

Shapes: P chunks, B windows of n chunks, L text states, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamchar.dit.cache import Conditions
from streamchar.dit.model import JointDiT
from streamchar.flow.sampler import Latents
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.packing import SpeechBatch


@dataclass(frozen=True, kw_only=True)
class Context:
    """What P chunks are conditioned on, packed as in stages 1 and 2."""

    speech: SpeechBatch
    """B windows; what it holds as `noisy` and `sigma` of the P chunks is replaced."""
    conditions: Conditions
    empty: Tensor
    """(1, L, D) states of the empty prompt."""
    picks: Tensor
    """(P,) which of the windows' B n chunks these are."""
    group: Tensor
    """(P,) the sequence that a chunk is a part of: one noise level and one divisor."""

    def blank(self) -> Context:
        """The same without transcript, voice and prompt: what a session's guidance compares with."""
        b = self.speech
        speech = replace(
            b, text=torch.zeros_like(b.text[:, :1]), text_length=torch.ones_like(b.text_length),
            reference_length=torch.zeros_like(b.reference_length), cursor=torch.zeros_like(b.cursor),
        )
        text = self.empty.expand_as(self.conditions.text)
        return replace(self, speech=speech, conditions=replace(self.conditions, text=text))

    def plan(self, orchestrator: Orchestrator, x_a: Tensor, sigma: Tensor) -> Tensor:
        """c_a of the P chunks."""
        windows = self.speech.noisy.shape[:2]
        noisy = self.speech.noisy.flatten(0, 1).index_copy(0, self.picks, x_a.to(self.speech.noisy.dtype))
        level = self.speech.sigma.flatten().index_copy(0, self.picks, sigma)
        batch = replace(self.speech, noisy=noisy.unflatten(0, windows), sigma=level.unflatten(0, windows))
        return orchestrator(batch).c_a[self.picks]

    def velocities(self, dit: JointDiT, c_a: Tensor, x: Latents, sigma: Tensor) -> Latents:
        """Both modalities' v, float32."""
        layout = dit.layout(self.conditions, x[0], x[1])
        v = dit(x[0], x[1], c_a, sigma, layout, self.conditions)
        assert v.video is not None and v.audio is not None
        return v.video.float(), v.audio.float()
