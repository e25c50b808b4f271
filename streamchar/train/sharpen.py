"""The video decoder sharpened, with a critic of pictures, where a student's latents leave open what to draw.

A hand that moves has no still to be taken from (`codecs/reference.py`), and a student of few steps gives its latents as
a mean of many hands: the picture nearest to all of them is a pale cloud. A critic that knows drawn frames from decoded
ones asks for one of them instead. Decoder and mixer learn on the examples of `train/estimates.py`; encoder and latents
stay what they are.

Shape letters as in `codecs/video.py`; M crops of S x S pixels.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from streamchar.codecs.video import ToonVideoCodec
from streamchar.train.estimates import Cut
from streamchar.train.reference import ReferenceTrainer
from streamchar.train.video_codec import Trainer, VideoCodecTraining

SIDE = 64
"""Pixels of a crop that the critic looks at."""
CROPS = 6
"""Of each piece."""
STRIDE = 16
WEIGHT = 0.6
"""Of the critic's gradient, in units of the reconstruction's, on the crops."""
ALONE = 60
"""Steps in which only the critic learns."""
CRITIC_RATE = 3e-4


class PictureCritic(nn.Module):
    """Patch discriminator: which patches of a crop are drawn, which decoded."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, crops_M3SS: Tensor) -> Tensor:
        """(M, 1, S / 8, S / 8) scores: above 0 is drawn."""
        return self.net(crops_M3SS)


class SharpTrainer(ReferenceTrainer):
    """Decoder and mixer, beside a critic."""

    deep = True

    def __init__(self, codec: ToonVideoCodec, settings: VideoCodecTraining) -> None:
        super().__init__(codec, settings)
        self.before = deepcopy(self.average)
        """Whose mouths and lids are kept where latents are estimates, as when the mixer was trained."""
        self.critic = PictureCritic().to(self.device)
        self.judge = torch.optim.AdamW(self.critic.parameters(), CRITIC_RATE, betas=(0.5, 0.9), weight_decay=0.0)

    def part(self) -> nn.Module:
        return self.codec.decoder

    def ends(self) -> dict[nn.Conv2d, float]:
        return Trainer.ends(self) | super().ends()

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "critic": self.critic, "before": self.before}

    def differentiate(self, batch: list[Cut], generator: torch.Generator) -> float:
        """The mean loss over the pieces, without the critic's; leaves its gradients and teaches the critic."""
        total = 0.0
        for cut in batch:
            mixed, moved, own, *plan, skin = self.mixture(cut, generator)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                if cut.estimate:
                    own = self.before.synthesise(self.before.raw(cut.latents_BCKHW.to(self.device)))
            # gradients at the pictures, so that the two losses can be weighed there without a pass each
            given = mixed.detach().requires_grad_(), moved.detach().requires_grad_()
            loss = self.off(cut, *given, own.detach()) / len(batch)
            grads = torch.autograd.grad(loss, given)
            wrong = self._critic_step(cut, given[0], grads[0], generator)
            astray = (self.astray(cut, *plan) + skin) / len(batch)
            self.follow(cut, plan[2])
            torch.autograd.backward((mixed, moved, astray), (grads[0] + wrong, grads[1], None))
            total += loss.item() + astray.item()
        return total

    def _critic_step(self, cut: Cut, mixed: Tensor, grad: Tensor, generator: torch.Generator) -> Tensor:
        """One update of the critic (hinge) on crops of the piece, then its gradient at the decoded picture."""
        frames = cut.frames_BCTHW.to(self.device)
        places = busy_places(frames[0], cut.picture_BCHW[0].to(self.device), CROPS, generator)
        real, fake = crops(frames[0], places), crops(mixed[0], places)
        with torch.enable_grad():
            wrong = F.relu(1 - self.critic(real)).mean() + F.relu(1 + self.critic(fake.detach())).mean()
        self.judge.zero_grad(set_to_none=True)
        wrong.backward()
        self.judge.step()
        if self.step < ALONE:
            return torch.zeros_like(grad)
        (asked,) = torch.autograd.grad(-self.critic(fake).mean(), mixed)
        size, own = asked.norm(), crops(grad[0], places).norm()
        return asked * (WEIGHT * own / size.clamp(min=1e-12))


def busy_places(
    frames_3THW: Tensor, picture_3HW: Tensor, count: int, generator: torch.Generator
) -> list[tuple[int, int, int]]:
    """(frame, top, left) of crops, drawn by how much of what they show is not as in the still: hands, mouths, turned
    heads."""
    off_THW = (frames_3THW - picture_3HW[:, None]).abs().mean(0)
    share = F.avg_pool2d(off_THW[:, None], SIDE, STRIDE)[:, 0].cpu() + 1e-4
    _, rows, columns = share.shape
    found = torch.multinomial(share.flatten().square(), count, replacement=True, generator=generator).tolist()
    return [(i // (rows * columns), i // columns % rows * STRIDE, i % columns * STRIDE) for i in found]


def crops(frames_3THW: Tensor, places: list[tuple[int, int, int]]) -> Tensor:
    """(M, 3, S, S)."""
    return torch.stack([frames_3THW[:, t, y : y + SIDE, x : x + SIDE] for t, y, x in places])
