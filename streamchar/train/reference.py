"""Training of what the small video codec's decoder takes from the still (`codecs/reference.py`).

Encoder and decoder are frozen; latents stay what they are. Examples are true latents and a student's estimates of them
(`train/estimates.py`).

How the still has to be moved is not left to the pictures' differences, which lead nowhere from some pixels away: the
world knows where each part of a character was in the still (`world/displacement.py`), and the flow is asked
for that. Where latents leave open how a head is turned, the loss of distances has it turned as a whole, and not torn.

Shape letters as in `codecs/video.py`.
"""

from __future__ import annotations

import copy
import logging
import random
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from streamchar import clock
from streamchar.codecs.reference import ReferenceMixer, in_pixels
from streamchar.codecs.skin import coloured
from streamchar.codecs.video import ToonVideoCodec, in_time
from streamchar.config.model import VideoCodecConfig
from streamchar.errors import InputError
from streamchar.stream.models import load
from streamchar.train.estimates import CHEEK, EYE, MOUTH, Cut, Examples, draw_examples
from streamchar.train.video_codec import (
    ADAM_RATE,
    MOVED,
    SLOW_RATE,
    Trainer,
    VideoCodecTraining,
    carry_out,
    distance,
    reconstruction_loss,
    widened,
)

log = logging.getLogger(__name__)

ASTRAY = 0.1
"""Weight of a flow's distance from the known displacements, in pixels."""
ACTED, ROOM = 0.2, 6
"""How far a face that acts is from its still, and pixels beside that are its too."""
MORE = 1.5
"""The acting flow is made larger by no more than this."""
FAR = 6.0
"""Pixels; what acts by more, a lid that shuts, does not count for how much larger the flow is made."""
BARE, COLOUR = 1.0, 0.5
"""Weights of knowing where bare skin of arms is, and of its colour."""
BLUSH = 1.0
"""Weight of knowing where cheeks are, which take the own picture's colours."""


class ReferenceTrainer(Trainer):
    """The mixer alone."""

    deep = False
    """Whether the decoder in front of the mixer learns too."""
    along: tuple[float, float] = (0.0, 0.0)
    """Of what faces' acting was found to be and what it is, lately: their product, and the second's square."""

    @property
    def mixer(self) -> ReferenceMixer:
        assert self.codec.decoder.reference is not None
        return self.codec.decoder.reference

    def part(self) -> nn.Module:
        return self.mixer

    def ends(self) -> dict[nn.Conv2d, float]:
        acting, skin = self.mixer.acting, self.mixer.skin
        logits, flows = [self.mixer.share], [self.mixer.flow]
        if acting is not None and skin is not None:
            logits, flows = [*logits, acting.tint, skin.where, skin.colour], [*flows, acting.moves]
        return dict.fromkeys(logits, ADAM_RATE) | dict.fromkeys(flows, SLOW_RATE)

    def differentiate(self, batch: list[Cut], generator: torch.Generator) -> float:
        """The mean loss over the pieces; leaves its gradients."""
        total = 0.0
        for cut in batch:
            mixed, moved, own, *plan, skin = self.mixture(cut, generator)
            loss = (self.off(cut, mixed, moved, own) + self.astray(cut, *plan) + skin) / len(batch)
            loss.backward()
            self.follow(cut, plan[2])
            total += loss.item()
        return total

    def off(self, cut: Cut, mixed: Tensor, moved: Tensor, own: Tensor) -> Tensor:
        """The loss: how far from the picture; of a student's estimates, whose faces are smeared, how far in eyes and
        brows from the still moved there, and from `own` where a mouth or a hand is not as in the still."""
        frames = wanted = cut.frames_BCTHW.to(self.device)
        if cut.estimate:
            acting = cut.acting_BTHW.to(self.device)
            wanted = torch.where((acting == EYE)[:, None], moved.detach(), frames)
            wanted = torch.where(acts(acting, moved.detach() - frames)[:, None], own.float(), wanted)
        loss = reconstruction_loss(mixed - wanted, cut.weight_BTHW.to(self.device))
        return loss + MOVED * distance(moved - frames)

    def astray(
        self, cut: Cut, first_B2Thw: Tensor, flow_B2Thw: Tensor, acted_B2Thw: Tensor, tint_B1Thw: Tensor
    ) -> Tensor:
        """The loss of the flows: how many pixels from the known displacements, where they are known; more in a
        face. Parts, at first and put right, and acting have each their own share of them to answer for: no place may
        undo by itself what its part does. And the tint's, which is to be where cheeks are: an estimate's blush is not
        the true one, and is a blush."""
        acted, known = cut.acted_B2Thw.to(self.device), cut.known_BThw.to(self.device)
        weight = known * F.adaptive_avg_pool2d(cut.weight_BTHW.to(self.device), known.shape[-2:])
        acts = known * (acted.abs().amax(1) > 0.25)  # few places: a mean for them, and one for the rest
        total = torch.zeros((), device=self.device)
        for found, wanted, places in (
            (first_B2Thw, cut.displacement_B2Thw.to(self.device) - acted, (weight,)),
            (flow_B2Thw, cut.displacement_B2Thw.to(self.device) - acted, (weight,)),
            (acted_B2Thw, acted, (acts, known * (1 - acts))),
        ):
            found = in_pixels(found.float(), cut.picture_BCHW.shape[-1]).transpose(1, 2).flatten(0, 1)
            found = F.interpolate(found, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
            off = (found - wanted.transpose(1, 2).flatten(0, 1)).square().sum(1).add(1e-2).sqrt()
            total = total + sum((off * x.flatten(0, 1)).sum() / x.sum().clamp(min=1) for x in places)
        cheeks = F.adaptive_avg_pool2d((cut.acting_BTHW.to(self.device) == CHEEK).float(), tint_B1Thw.shape[-2:])
        return ASTRAY * total + BLUSH * F.binary_cross_entropy_with_logits(tint_B1Thw[:, 0], cheeks)

    @torch.no_grad()
    def follow(self, cut: Cut, acted_B2Thw: Tensor) -> None:
        """Update `along`."""
        wanted, found = cut.acted_B2Thw.to(self.device), in_pixels(acted_B2Thw.float(), cut.picture_BCHW.shape[-1])
        counts = cut.known_BThw.to(self.device) * (wanted.abs().amax(1) < FAR)
        found, wanted = F.adaptive_avg_pool3d(found, wanted.shape[-3:]) * counts[:, None], wanted * counts[:, None]
        now = (found * wanted).sum().item(), (wanted * wanted).sum().item()
        self.along = tuple(0.995 * old + new for old, new in zip(self.along, now, strict=True))  # type: ignore[assignment]

    @torch.no_grad()
    def expressive(self) -> ToonVideoCodec:
        """The average, its acting flow as large as what it stands for: where latents leave open what a face does, the
        mean of what it may do is less than what it does. By at most `MORE`."""
        made, (product, square) = copy.deepcopy(self.average), self.along
        mixer = made.decoder.reference
        if mixer is not None and mixer.acting is not None and square > 0:
            more = min(max(square / max(product, square / MORE), 1.0), MORE)
            for value in mixer.acting.moves.parameters():
                value[:2].mul_(more)
        return made

    def mixture(self, cut: Cut, generator: torch.Generator) -> list[Tensor]:
        """(B, 3, 1 + 4 k, H, W) the picture, the moved still, and the decoder's own picture; the second's three flows,
        (B, 2, 1 + 4 k, h, w), and its tint's logits, (B, 1, 1 + 4 k, h, w); and the loss of the hands' colour."""
        codec, latents = self.codec, cut.latents_BCKHW
        noise = self.settings.noise * torch.randn(latents.shape, generator=generator)
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.set_grad_enabled(self.deep):
                features = codec.decoder.features(codec.raw((latents + noise).to(self.device)))
                own = codec.decoder.picture(features)
            look = codec.decoder.look(codec.raw(cut.still_BC1HW.to(self.device)), cut.picture_BCHW.to(self.device))
            assert look is not None, "given a still"
            plan = self.mixer.plan(own, features[-3:], look)
            used = known_flow(cut, plan.flow + plan.acted) if cut.estimate else plan.flow + plan.acted
            miscoloured = torch.zeros((), device=self.device)
            if self.mixer.skin is not None:
                miscoloured = self.miscoloured(cut, plan.bare, look.tone)
                own = coloured(own, plan.bare.detach(), look.tone.detach())
            mixed, moved = self.mixer.mix(own, look.picture, used, plan.share, plan.tint.detach())
        parts = (mixed, moved, own, plan.first, plan.flow, plan.acted, plan.tint)
        return [*(in_time(part, latents.shape[2]) for part in parts), miscoloured]

    def miscoloured(self, cut: Cut, where_N4hw: Tensor, tone_B311: Tensor) -> Tensor:
        """The loss of where hands are, and of their colour. An estimate's hand may be elsewhere: it is asked for the
        true place all the same, and learns how sure it can be."""
        where = in_time(where_N4hw.float(), cut.latents_BCKHW.shape[2])[:, 0]
        off = (tone_B311.flatten(1) - cut.skin_B3.to(self.device)).abs().mean()
        return BARE * F.binary_cross_entropy_with_logits(where, cut.bare_BThw.to(self.device)) + COLOUR * off


def known_flow(cut: Cut, flow_N8hw: Tensor) -> Tensor:
    """The known displacements in the flow's own form and units; where there are none, the flow."""
    wanted, known = (x.to(flow_N8hw.device) for x in (cut.displacement_B2Thw, cut.known_BThw[:, None]))
    unseen = clock.VIDEO_STRIDE - 1  # frames of the first group
    grouped = [
        rearrange(torch.cat([x[:, :, :1].repeat(1, 1, unseen, 1, 1), x], 2), "b c (k f) h w -> (b k f) c h w",
                  f=clock.VIDEO_STRIDE)
        for x in (wanted / in_pixels(torch.ones(1), cut.picture_BCHW.shape[-1]).item(), known)
    ]  # fmt: skip
    flow = rearrange(flow_N8hw.float(), "n (f two) h w -> (n f) two h w", two=2)
    flow = F.interpolate(flow, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
    return rearrange(torch.lerp(flow, *grouped), "(n f) two h w -> n (f two) h w", f=clock.VIDEO_STRIDE)


def acts(acting_BTHW: Tensor, off_B3THW: Tensor) -> Tensor:
    """(B, T, H, W): whether a place is of a mouth or a hand and the still is not as the frame there, with room
    around."""
    near, side = (off_B3THW.abs().amax(1) > ACTED).float(), 2 * ROOM + 1
    for kernel, room in (((1, side), (0, ROOM)), ((side, 1), (ROOM, 0))):  # a square, in a seventh of its time
        near = F.max_pool2d(near, kernel, 1, room)
    return (near > 0) & (acting_BTHW == MOUTH)


def train_reference(
    data: Path, out: Path, minutes: float, *, config: VideoCodecConfig, resume: bool = False, clips: int = 800,
    start: Path | None = None, batch: int = 2, rate: float | None = None, seed: int = 0, device: str = "cpu",
    critic: bool = False,
) -> ToonVideoCodec:
    """Draw `clips` examples with the model in `start` (else the shipped one), unless they are there, then train for
    `minutes`; writes the codec, with its mixer, to `out`. With a `critic` the decoder too (`train/sharpen.py`)."""
    from streamchar.train.sharpen import SharpTrainer

    if config.family != "toon":
        raise InputError(f"the reference is an option of toon's codec, got a {config.family!r} one; give --preset toon")
    models = load("toon" if start is None else start, device=device)
    if not isinstance(models.video_codec, ToonVideoCodec):
        raise InputError(f"expected a model with toon's video codec, got {type(models.video_codec).__name__}")
    draw_examples(models, data, out / "examples", clips, seed=seed)
    torch.manual_seed(seed)
    rate = rate or (2e-4 if critic else 2e-3)
    settings = VideoCodecTraining(minutes=minutes, decoder_only=True, rate=rate, noise=0.05, ema=0.99, seed=seed)
    codec = widened(models.video_codec, reference=True, parts=config.parts).to(device)
    trainer = (SharpTrainer if critic else ReferenceTrainer)(codec, settings)
    if resume:
        trainer.load(out / "training")
    examples, generator = Examples(out / "examples"), torch.Generator().manual_seed(seed + trainer.step)

    def write(_: bool) -> None:
        trainer.save(out / "training")
        trainer.expressive().save(out)  # float32: the encoder stays the one that data was made with
        log.info("wrote %s at step %d", out, trainer.step)

    carry_out(trainer, examples.batches(batch, random.Random(seed + trainer.step)), generator, write)
    return trainer.expressive()
