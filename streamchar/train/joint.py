"""Stage 2: all of it - flow loss on both modalities and the pointer's, with exact motion, sink and
reference from the clip, each dropped at some rate and noised, so that the model survives its own output.

Every batch is uniform in which conditions it has (a draw of the step), so that no attention mask is
ever built. Between two steps on clips stands one on speech alone, where there is more data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from streamchar.codecs.component import fingerprint, save_component
from streamchar.codecs.text import T5PromptEncoder
from streamchar.config.model import ModelConfig
from streamchar.data.dataset import WindowDataset, Windows
from streamchar.dit.cache import Conditions
from streamchar.dit.model import JointDiT
from streamchar.errors import ConfigError
from streamchar.flow.path import interpolate, velocity
from streamchar.orchestrator.lm import Plan
from streamchar.orchestrator.packing import SpeechBatch
from streamchar.orchestrator.tokenizer import tokenizer
from streamchar.stream.models import Models
from streamchar.train.checkpoint import FROZEN
from streamchar.train.loop import Schedule, generator, run
from streamchar.train.orchestrator import (
    SHOWN_EVERY,
    SPEAKING_STEPS,
    SpeechModel,
    SpeechObjective,
    SpeechTerms,
    begins_with,
    compile_speech,
    corrupt,
    pointer_terms,
    start_from,
    wrong_text,
)
from streamchar.train.parallel import Scale
from streamchar.train.pose import PoseError, PoseHead, Tap
from streamchar.train.streams import Codecs, Gallery, codecs_for

log = logging.getLogger(__name__)

MOUTH = (0.605, 0.5)
"""Centre of the mouth in the world's portraits, as shares of height and width (60 characters: +-0.005)."""
MOUTH_RADIUS = 0.09


@dataclass(frozen=True, kw_only=True)
class VideoTerms:
    """Rates and weights of the picture side."""

    weight: float = 1.0
    first_chunk: float = 0.4
    """Share of steps on streams' first chunks, which have neither motion nor sink."""
    drop_sink: float = 0.1
    drop_motion: float = 0.1
    drop_reference: float = 0.05
    drop_prompt: float = 0.1
    condition_noise: float = 0.15
    """Largest noise level mixed into motion and sink."""
    begin: float = 0.25
    """As `SpeechTerms.begin`: there a step decides what is done, and has only the prompt to go by."""
    focus: float = 5.0
    """Extra weight of the loss where mouths are drawn: few latents, and the ones that must follow the speech."""
    pose: float = 0.5
    """Weight of the pose's loss, where clips know their pose (`train/pose.py`); 0: none."""
    freeze_speech: bool = False
    """Train the main blocks alone: stage 1 may go on elsewhere meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The DiT's side of a batch: B n chunks."""

    noisy: Tensor
    """(B n, Cv, 9, h, w) at the speech batch's sigma."""
    target: Tensor
    conditions: Conditions

    def to(self, device: torch.device | str) -> Scene:
        """The same on another device."""
        c = self.conditions
        moved = {n: getattr(c, n).to(device) for n in ("text", "ref", "sink", "motion") if getattr(c, n) is not None}
        return Scene(
            noisy=self.noisy.to(device), target=self.target.to(device), conditions=replace(c, **moved)
        )


def chunk_conditions(windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Clean still, sink and motion of each chunk: three of (B n, Cv, T, h, w). Motion of a window's
    first chunk is the chunk before the window."""
    video, previous, sink, still = windows.video, windows.previous, windows.sink, windows.still
    assert video is not None and previous is not None and sink is not None and still is not None
    n = video.shape[1]
    motion = torch.cat([previous[:, None], video[:, :-1]], dim=1)
    return still.repeat_interleave(n, 0), sink.repeat_interleave(n, 0), motion.flatten(0, 1)


def mouth_focus(size: tuple[int, int], extra: float) -> Tensor:
    """(h, w) weights of mean 1: a bump where the world draws mouths."""
    h, w = size
    y = ((torch.arange(h) + 0.5) / h - MOUTH[0])[:, None]
    x = (torch.arange(w) + 0.5) / w - MOUTH[1]
    weights = 1 + extra * torch.exp(-0.5 * (y.square() + x.square()) / MOUTH_RADIUS**2)
    return weights / weights.mean()


class JointObjective:
    """Flow on video and audio plus the pointer."""

    name = "joint"
    parts, uneven = 1, False

    def __init__(
        self, config: ModelConfig, data: Path, prompt_encoder: T5PromptEncoder, *, batch: int, terms: VideoTerms,
        start: Path | None = None, speech: Path | None = None, seed: int = 0, device: str = "cpu",
    ) -> None:
        if terms.freeze_speech and speech is not None:
            raise ConfigError(
                "training: expected either a frozen speech side or steps on speech alone, got both; "
                "leave out --speech or --freeze-speech"
            )
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.config, self.terms, self.seed, self.batch, self.chunks = config, terms, seed, batch, 2
        self.speech_terms = SpeechTerms(begin=terms.begin)
        if speech is None:
            self.speech, self.model = None, SpeechModel(config)
            compile_speech(self.model)
        else:
            self.speech = SpeechObjective(
                config, speech, batch=batch, terms=self.speech_terms, seed=seed, device=device
            )
            self.model = self.speech.model
        self.model.dit.blocks.requires_grad_(True)
        # the main blocks are not compiled: every mix of conditions is another graph, and matrix products
        # and attention, not elementwise work, are 83 % of their time
        if terms.freeze_speech:
            for name, p in self.model.named_parameters():
                p.requires_grad_(not self._speech_side(name))
        self.prompt_encoder = prompt_encoder.eval().requires_grad_(False)
        limits = {"look_ahead": config.orchestrator.look_ahead, "max_reference": config.orchestrator.max_reference}
        self.data = WindowDataset(data, **limits, seed=seed + 1)
        held_out = data / "held_out"
        self.held_out = WindowDataset(held_out, **limits) if held_out.is_dir() else self.data
        if start is not None:
            start_from(self.model, start)
        self._measure_deviation()
        self.taps: WeakKeyDictionary[JointDiT, Tap] = WeakKeyDictionary()
        self.posed = terms.pose > 0 and self._add_pose_head()
        self.model.to(self.device)
        self.focus = mouth_focus(config.latent_size, terms.focus).to(self.device)
        self.samples_per_step = batch * self.chunks
        self.gallery: Gallery | None = None
        self.codecs: Codecs | None = None

    @torch.no_grad()
    def _measure_deviation(self) -> None:
        clips = self.data.batch(10**9, 24, 1)
        assert clips.video is not None
        assert clips.still is not None
        video = clips.video.flatten(0, 1)
        skip = self.model.dit.head.velocity
        skip.deviation.copy_(video.std(dim=(0, 2, 3, 4)))
        skip.residual.copy_((video - clips.still).std(dim=(0, 2, 3, 4)))

    def _add_pose_head(self) -> bool:
        """Ask hidden states for poses, if all clips have theirs."""
        sizes = {s.tensors["pose"].shape[-1] if "pose" in s.tensors else None for s in self.data.shards.values()}
        size = next(iter(sizes))
        if len(sizes) > 1 or size is None:
            log.warning("%s: not all clips know their pose (older versions made some): no pose loss", self.data.folder)
            return False
        _, patch_h, patch_w = self.config.dit.patch
        height, width = self.config.latent_size
        head = PoseHead(self.config.dit.width, (height // patch_h) * (width // patch_w), size)
        head.measure(self.data)
        self.model.add_module("pose", head)
        return True

    def pose_error(self, windows: Windows, scene: Scene) -> PoseError | None:
        """Of the pass just made; None where the batch knows no poses."""
        tap = self.taps.get(self.model.dit)
        if tap is None:
            return None
        states = tap.take(self.model.dit.layout(scene.conditions, scene.noisy, None))
        if windows.pose is None or windows.previous_pose is None:
            return None
        before = torch.cat([windows.previous_pose[:, None], windows.pose[:, :-1]], 1)
        return self.model.get_submodule("pose")(states, windows.pose.flatten(0, 1), before.flatten(0, 1))

    @staticmethod
    def _speech_side(name: str) -> bool:
        """What stage 1 trains; the two bridges to the main blocks are not part of it."""
        bridge = name.startswith(("dit.audio.to_main.", "dit.audio.from_main."))
        return name.startswith(("orchestrator.", "dit.audio.")) and not bridge

    def rate_factor(self, name: str) -> float:
        """Stage 1 has trained the speech side already: it moves more slowly."""
        return 0.5 if self._speech_side(name) and self.speech is not None else 1.0

    def windows(self, step: int, draw: torch.Generator) -> Windows:
        first = float(torch.rand((), generator=draw)) < self.terms.first_chunk
        if first:
            return self.data.batch(step, self.batch * self.chunks, 1, first="start")
        return self.data.batch(step, self.batch, self.chunks, first="later")

    def scene(self, windows: Windows, batch: SpeechBatch, draw: torch.Generator, terms: VideoTerms) -> Scene:
        """Noise, and conditions as the step has them."""
        still, sink, motion = chunk_conditions(windows)
        assert windows.video is not None and windows.first is not None
        video = windows.video.flatten(0, 1)
        noise = torch.randn(video.shape, generator=draw)
        sigma = batch.sigma.flatten()
        lost = torch.rand(3, generator=draw)
        alone = bool((windows.first == 0).all()) and windows.video.shape[1] == 1
        keep_prompt = torch.rand(len(windows.prompts), generator=draw) >= terms.drop_prompt
        prompts = [p if keep else "" for p, keep in zip(windows.prompts, keep_prompt.tolist(), strict=True)]
        text = self.prompt_encoder.encode(prompts).repeat_interleave(windows.video.shape[1], 0)

        def noised(clean: Tensor) -> Tensor:
            level = torch.rand(clean.shape[0], generator=draw) * terms.condition_noise
            return interpolate(clean, torch.randn(clean.shape, generator=draw), level)

        conditions = Conditions(
            text=text,
            ref=None if not alone and lost[0] < terms.drop_reference else still,
            sink=None if alone or lost[1] < terms.drop_sink else noised(sink),
            motion=None if alone or lost[2] < terms.drop_motion else noised(motion),
        )
        return Scene(noisy=interpolate(video, noise, sigma), target=velocity(video, noise), conditions=conditions)

    def flow(self, batch: SpeechBatch, scene: Scene) -> tuple[Plan, Tensor, Tensor]:
        """The plan and both velocities."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.terms.freeze_speech):
            plan = self.model.orchestrator(batch)
        dit, x_a = self.model.dit, batch.noisy.flatten(0, 1)
        if self.posed and dit not in self.taps:  # sharded, validation has a model of its own
            self.taps[dit] = Tap(dit)
        layout = dit.layout(scene.conditions, scene.noisy, x_a)
        v = dit(scene.noisy, x_a, plan.c_a, batch.sigma.flatten(), layout, scene.conditions)
        assert v.video is not None and v.audio is not None
        return plan, v.video.float(), v.audio.float()

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        if self.speech is not None and number // self.parts % 2:
            total, scalars = self.speech.loss(number)
            return total, {f"speech_{k}": v for k, v in scalars.items()}
        draw = generator(self.seed, number)
        windows = self.windows(number, draw)
        batch, target_a = corrupt(windows, self.speech_terms, draw)
        scene = self.scene(windows, batch, draw, self.terms).to(self.device)
        windows, batch, target_a = windows.to(self.device), batch.to(self.device), target_a.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            plan, v_v, v_a = self.flow(batch, scene)
        error = (v_v - scene.target).square()
        flow_v, weighted = error.mean(), (error * self.focus).mean()
        flow_a = (v_a - target_a.flatten(0, 1)).square().mean()
        cross, distance, scalars = pointer_terms(plan, windows, batch)
        total = self.terms.weight * weighted + flow_a
        total = total + self.speech_terms.pointer * cross + self.speech_terms.end * distance
        pose = self.pose_error(windows, scene)
        if pose is not None:
            total = total + self.terms.pose * pose.total(batch.sigma.flatten())
            scalars |= pose.scalars()
        return total, {"video": float(flow_v.detach()), "audio": float(flow_a.detach()), **scalars}

    def show(self, step: int) -> None:
        """Film strips and spectrograms of streams as a session plays them, by uncompiled copies of the networks: what
        the compiler knows of training's shapes stays as it is."""
        if self.gallery is None or self.codecs is None or not self.gallery.due():
            return
        prompt_encoder = self.prompt_encoder
        self.gallery.show(
            Models(
                name=self.config.name, config=self.config, orchestrator=deepcopy(self.model.orchestrator).eval(),
                dit=deepcopy(self.model.dit).eval(), video_codec=self.codecs.video.to(self.device),
                audio_codec=self.codecs.audio.to(self.device), prompt_encoder=prompt_encoder,
                tokenizer=tokenizer(self.config.tokenizer), steps=SPEAKING_STEPS,
            ),
            step,
        )

    @staticmethod
    def _cases(
        batch: SpeechBatch, scene: Scene, shuffled: tuple[str, ...]
    ) -> Iterator[tuple[str, SpeechBatch, Scene]]:
        """The batch as it is, then with each of `shuffled`, a condition, given to the next window."""
        c = scene.conditions
        yield "", batch, scene
        for name in shuffled:
            if name == "text":
                yield "_wrong_text", wrong_text(batch), scene
                continue
            part = "text" if name == "prompt" else name  # the DiT's only text is the prompt
            moved = {part: getattr(c, part).roll(batch.chunks, 0)}
            yield f"_wrong_{name}", batch, replace(scene, conditions=replace(c, **moved))

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Both losses by sigma, and what each condition is worth: the loss with it shuffled. Streams' first chunks
        apart, at sigma 1: what the prompt asks for begins there."""
        quiet = VideoTerms(drop_sink=0, drop_motion=0, drop_reference=0, drop_prompt=0, condition_noise=0)
        calm = SpeechTerms(drop_reference=0, drop_text=0, history_noise=0, cursor_noise=0)
        later = self.held_out.batch(10**8, 12, 2, first="later")
        start = self.held_out.batch(10**8, 24, 1, first="start")
        figures: dict[str, float] = {}
        every = ("text", "prompt", "ref", "sink", "motion")
        for windows, kind, sigma, shuffled in (
            (later, "", 0.5, ()), (later, "", 0.9, every), (later, "", 1.0, ()), (start, "start_", 1.0, ("prompt",)),
        ):  # fmt: skip
            assert windows.video is not None
            draw = generator(7, round(sigma * 100))
            batch, _ = corrupt(windows, calm, draw)
            noise = torch.randn(windows.audio.shape, generator=draw)
            level = torch.full(batch.sigma.shape, sigma)
            batch = replace(batch, sigma=level, noisy=interpolate(windows.audio, noise, level))
            scene = self.scene(windows, batch, draw, quiet).to(self.device)
            target_a = velocity(windows.audio, noise).flatten(0, 1).to(self.device)
            batch = batch.to(self.device)
            for name, speech, picture in self._cases(batch, scene, shuffled):
                plan, v_v, v_a = self.flow(speech, picture)
                error = (v_v - scene.target).square()
                figures[f"{kind}video_{sigma}{name}"] = float(error.mean())
                figures[f"{kind}mouth_{sigma}{name}"] = float(error[..., self.focus > 0.5 * self.focus.max()].mean())
                figures[f"{kind}audio_{sigma}{name}"] = float((v_a - target_a).square().mean())
                pose = self.pose_error(windows.to(self.device), picture)
                if pose is not None:
                    figures |= {f"{kind}{key}_{sigma}{name}": value for key, value in pose.scalars().items()}
                if not name:
                    within = pointer_terms(plan, windows.to(self.device), batch)[2]["within_1"]
                    figures[f"{kind}within_1_{sigma}"] = within
        self.show(step)
        return figures


def train_joint(
    data: Path, out: Path, minutes: float, *, config: ModelConfig, resume: bool = False, batch: int = 6,
    rate: float = 1e-3, cooldown: float = 0.0, seed: int = 0, start: Path | None = None, speech: Path | None = None,
    prompt_encoder: Path | None = None, device: str = "cpu", freeze_speech: bool = False,
    warmup: int = 200, scale: Scale | None = None, codecs: Path | None = None,
) -> None:
    """Train stage 2 for `minutes` from stage 1's export in `start`; writes components and a checkpoint.

    `speech`: shards of speech alone to mix in; `prompt_encoder`: the frozen text encoder's folder (the
    shipped one by default); `codecs`: their folder, to see and hear samples (the shipped ones where they fit)."""
    from importlib import resources

    folder = prompt_encoder or Path(str(resources.files("streamchar") / "assets" / "toon" / "prompt_encoder"))
    objective = JointObjective(
        config, data, T5PromptEncoder.load(folder), batch=batch, terms=VideoTerms(freeze_speech=freeze_speech),
        start=begins_with(start, resume), speech=speech, seed=seed, device=device,
    )

    held_out = objective.held_out
    clips = [held_out.shards[path][clip] for path, clip, _ in held_out.index[:2]]
    objective.codecs, objective.gallery = codecs_for(config, codecs), Gallery(out, clips, every=SHOWN_EVERY)

    def export(target: Path) -> None:
        save_component(objective.model.orchestrator, config.orchestrator, target / "orchestrator")
        save_component(objective.model.dit, config.dit, target / "dit")

    schedule = Schedule(minutes=minutes, rate=rate, cooldown=cooldown, warmup=warmup)
    frozen = {"prompt_encoder": fingerprint(objective.prompt_encoder)}
    facts: dict[str, object] = {"preset": config.name, "seed": seed, "batch": batch, FROZEN: frozen}
    data_of = {"data": objective.data}
    if objective.speech is not None:
        data_of["speech"] = objective.speech.data
    run(objective, schedule, out, resume=resume, export=export, facts=facts, scale=scale, data=data_of)
