"""What the four training stages take on N GPUs under FSDP2: memory of each, and time of a step, both estimated.

Weights, gradients, Adam's moments and averages are counted; activations come from coefficients that a test holds
against torch's own account of what a block keeps for its backward pass. Times are counted operations over a rate
that is an assumption, printed with the plan: measure a step, then give the rate that was reached.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamchar import clock
from streamchar.bench import flops
from streamchar.bench.inventory import Inventory
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.dit.layout import Layout

GIB = 2**30
BF16, FLOAT = 2, 4
STATE = 5 * FLOAT
"""Bytes of a trained weight, all shared out: master, gradient, two moments of Adam, average."""
SPARE_GIB = 4.0
"""CUDA context, NCCL's buffers, workspaces."""
WASTE = 0.10
J, T = clock.AUDIO_LATENTS_PER_CHUNK, clock.VIDEO_LATENTS_PER_CHUNK
WINDOW = int(clock.WINDOW_SECONDS / clock.CHUNK_SECONDS)
SCORED = 3
"""Chunks that stage II scores together (paper section 4.2)."""
KEPT_WIDTHS, KEPT_FFN = 72, 4
"""Bytes that a DiT block keeps for its backward pass, a token: of each unit of width and of FFN width."""
LM_WIDTHS, LM_FFN = 22, 8
"""And a layer of the language model."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan rests on beside the counts."""

    gpus: int = 8
    memory_gib: float = 79.0
    tflops: float = 400.0
    """A GPU's sustained rate in bfloat16 with all overheads (about 40 % of an H100's peak)."""
    link_gb: float = 300.0
    """Gigabytes a second that a GPU sends within the machine."""
    follow: int = 5
    """Fake-score updates for one of the student."""
    steps: int = 4
    chunks: int = 5
    """Of a rollout; the paper does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's work, a sample."""

    name: str
    batch: int
    """Samples of a step over all GPUs: the paper's where it says."""
    updates: int
    rate: str
    trained: int
    gathered: int
    """Weights that come together for computing at once: two blocks, or all where passes differ in number."""
    frozen: int
    """Weights that every GPU holds whole, in bfloat16."""
    forward: int
    """Operations of the forward passes without gradient."""
    learned: int
    """Operations of the forward passes that a backward pass follows."""
    kept: int
    """Bytes of activations without checkpointing."""
    checkpointed: int
    """And with: blocks' inputs, and one block in full."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One stage on one GPU of the team."""

    stage: Stage
    states_gib: float
    gathered_gib: float
    frozen_gib: float
    kept_gib: float
    """Activations of one sample without checkpointing."""
    checkpointed_gib: float
    micro_batch: int
    """Samples a GPU takes at once; 0: not even one fits."""
    checkpointing: bool
    accumulate: int
    total_gib: float
    compute_s: float
    exchange_s: float
    """Weights gathered twice and gradients shared out, of every accumulated batch; overlaps with computing."""

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.exchange_s)

    @property
    def days(self) -> float:
        return self.step_s * self.stage.updates / 86_400


def dit_kept(config: DiTConfig, tokens: int) -> int:
    """Bytes that one DiT block keeps for `tokens`."""
    return tokens * (KEPT_WIDTHS * config.width + KEPT_FFN * config.ffn)


def lm_kept(config: OrchestratorConfig, tokens: int) -> int:
    """Bytes that one layer of the language model keeps for `tokens`."""
    return tokens * (LM_WIDTHS * config.width + LM_FFN * config.ffn)


def _speech(config: ModelConfig) -> tuple[int, int, int, int]:
    """The orchestrator over a 20-second window: tokens, operations, bytes kept and with checkpointing."""
    lm = config.orchestrator
    tokens = lm.max_reference + lm.max_transcript + (2 * WINDOW - 1) * J
    work = flops.lm_layers(lm, tokens, tokens) + WINDOW * flops.pointer(lm, lm.max_transcript)
    kept = lm.layers * lm_kept(lm, tokens)
    return tokens, work, kept, BF16 * lm.layers * tokens * lm.width + lm_kept(lm, tokens)


def _picture(config: ModelConfig, layout: Layout) -> tuple[int, int, int]:
    """The DiT over one layout: operations of a forward pass, bytes kept and with checkpointing."""
    dit, text = config.dit, config.prompt.max_tokens
    work = flops.dit_denoise(dit, layout, text) + flops.dit_conditions(dit, layout, text)
    kept = dit.layers * dit_kept(dit, layout.tokens)
    return work, kept, BF16 * dit.layers * layout.tokens * dit.width + dit_kept(dit, layout.tokens)


def stages(config: ModelConfig, parts: Inventory, given: Assumptions) -> tuple[Stage, ...]:
    """The four stages with the paper's batches and rates (section 5.1; distillation's batches are ours)."""
    _, lm_work, lm_keeps, lm_marks = _speech(config)
    one = Layout(grid=config.grid, ref=1, sink=T, motion=T)
    three = Layout(grid=config.grid, ref=1, sink=T, motion=T, video=SCORED * T, audio=SCORED * J)
    work, keeps, marks = _picture(config, one)
    work3, keeps3, marks3 = _picture(config, three)
    audio = flops.audio_path(config.dit, J) * WINDOW
    text = config.prompt.max_tokens
    step = flops.dit_denoise(config.dit, one, text)
    lm = config.orchestrator
    window = lm.max_reference + lm.max_transcript + clock.MAX_HISTORY_CHUNKS * J
    plan = flops.lm_plan(lm, window, lm.max_transcript)
    blocks = 2 * parts.dit_block
    lm_gathered = max(2 * parts.lm_layers // lm.layers, parts.embeddings)
    earlier = (given.steps - 1) / 2  # steps before the drawn one, without gradient
    follow, guided = given.follow, 2
    stage_1 = Stage(
        name="orchestrator",
        batch=640,
        updates=80_000,
        rate="6e-5",
        trained=parts.orchestrator + parts.audio_path,
        gathered=lm_gathered,
        frozen=0,
        forward=0,
        learned=lm_work + audio,
        kept=lm_keeps,
        checkpointed=lm_marks,
    )
    stage_2 = Stage(
        name="joint",
        batch=128,
        updates=100_000,
        rate="1e-5",
        trained=parts.orchestrator + parts.dit,
        gathered=blocks + lm_gathered,
        frozen=parts.prompt_encoder,
        forward=0,
        learned=lm_work + work,
        kept=lm_keeps + keeps,
        checkpointed=lm_marks + marks,
    )
    # a step: one update of the student (fake and guided teacher look on) and `follow` of the fake score
    looking = int((1 + follow) * earlier * step) + (1 + guided) * work + follow * step
    stage_3 = Stage(
        name="distill",
        batch=64,
        updates=600,
        rate="2e-6, fake score 4e-7",
        trained=2 * parts.dit,
        gathered=2 * blocks,
        frozen=parts.total,
        forward=looking,
        learned=(1 + follow) * work,
        kept=keeps,
        checkpointed=marks,
    )
    rolling = (1 + follow) * given.chunks * (given.steps * (step + plan) + flops.dit_motion(config.dit, one, text))
    stage_4 = Stage(
        name="rollout",
        batch=64,
        updates=400,
        rate="2e-6, fake score 4e-7",
        trained=2 * parts.dit,
        gathered=2 * parts.dit,
        frozen=parts.total,
        forward=rolling + (1 + guided) * work3,
        learned=SCORED * work + follow * work3,
        kept=max(SCORED * keeps, keeps3),
        checkpointed=max(SCORED * marks, marks3),
    )
    return stage_1, stage_2, stage_3, stage_4


def estimate(stage: Stage, given: Assumptions) -> Estimate:
    """Memory and time of one stage; checkpointing only where a sample does not fit without."""
    states = STATE * stage.trained / given.gpus
    uneven = stage.gathered >= stage.trained  # gradients then are whole, too, until a step's end
    gathered = (BF16 + (FLOAT if uneven else 0)) * stage.gathered
    fixed = states + gathered + BF16 * stage.frozen + SPARE_GIB * GIB
    room = given.memory_gib * GIB - fixed
    share = max(1, stage.batch // given.gpus)

    def most(bytes_a_sample: int) -> int:
        fitting = max(0, int(room / ((1 + WASTE) * bytes_a_sample)))
        return max((n for n in range(1, min(fitting, share) + 1) if share % n == 0), default=0)

    plain, marked = most(stage.kept), most(stage.checkpointed)
    checkpointing = plain == 0  # a third more work is worth it only if nothing fits without
    micro = marked if checkpointing else plain
    kept = stage.checkpointed if checkpointing else stage.kept
    times = share // micro if micro else share
    work = stage.forward + (4 if checkpointing else 3) * stage.learned
    exchanged = times * (2 * BF16 + FLOAT) * stage.trained * (given.gpus - 1) / given.gpus
    return Estimate(
        stage=stage, states_gib=states / GIB, gathered_gib=gathered / GIB, frozen_gib=BF16 * stage.frozen / GIB,
        kept_gib=stage.kept / GIB, checkpointed_gib=stage.checkpointed / GIB, micro_batch=micro,
        checkpointing=checkpointing, accumulate=times,
        total_gib=(fixed + (1 + WASTE) * max(micro, 1) * kept) / GIB,
        compute_s=share * work / (given.tflops * 1e12), exchange_s=exchanged / (given.link_gb * 1e9),
    )  # fmt: skip
