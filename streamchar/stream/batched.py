"""Several streams in one denoising step.

Each stream runs THE chunk step (`generate_chunk`) in a thread of its own, with models whose `plan` and `denoise`
wait for one another: when all streams have asked, the last one runs one batch for all. So streams may have other
transcripts, cursors, windows, samplers, guidance, and chunk numbers; what one has and another lacks is padded and
hidden by masks. The pass of the speech alone (`denoise_audio`), short, is each stream's own. Streams leave when their
chunk is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamchar.dit.cache import ConditionCache, stacked
from streamchar.dit.layout import CONDITIONS, Layout
from streamchar.dit.model import JointDiT, Velocity
from streamchar.errors import ConfigError
from streamchar.flow.sampler import Sampler
from streamchar.orchestrator.lm import Orchestrator, Plan, Prefix, Prefixes, aligned
from streamchar.stream.chunk import ChunkLatents, generate_chunk
from streamchar.stream.memory import Memory
from streamchar.stream.models import Models
from streamchar.stream.state import StreamState
from streamchar.stream.views import DiTView, OrchestratorView
from streamchar.types import Transcript


@dataclass(frozen=True, kw_only=True)
class TailRequest:
    """A call of `plan`."""

    prefix: Prefix
    inputs: tuple[Tensor, Tensor, Tensor]
    """Noisy audio, sigma, cursor; one row each."""


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """A call of `denoise`."""

    layout: Layout
    cache: ConditionCache
    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    """x_v, x_a, c_a, sigma; one row each."""


class Meeting:
    """Where threads wait for one another: the last one to ask answers for all, in one go."""

    def __init__(self, members: int, answer: Callable[[list[Any]], list[Any]]) -> None:
        self._answer, self._present = answer, members
        self._turn = threading.Condition()
        self._asked: dict[int, Any] = {}
        self._answers: dict[int, Any] = {}
        self._failure: BaseException | None = None
        self.rounds: list[int] = []
        """How many asked in each round."""

    def ask(self, member: int, request: Any) -> Any:
        """The answer to one's request, once everyone present has asked."""
        with self._turn:
            self._asked[member] = request
            self._go_on()
            self._turn.wait_for(lambda: member in self._answers or self._failure is not None)
            if member not in self._answers:
                raise RuntimeError("another stream of this step failed") from self._failure
            return self._answers.pop(member)

    def leave(self) -> None:
        """No longer wait for the caller."""
        with self._turn:
            self._present -= 1
            self._go_on()

    def _go_on(self) -> None:
        if not self._asked or len(self._asked) < self._present or self._failure is not None:
            return
        members = sorted(self._asked)
        requests = [self._asked.pop(member) for member in members]
        self.rounds.append(len(members))
        try:
            self._answers.update(zip(members, self._answer(requests), strict=True))
        except BaseException as error:  # the others wait for it
            self._failure = error
            self._turn.notify_all()
            raise
        self._turn.notify_all()


class _JoinedOrchestrator(OrchestratorView):
    def __init__(self, plain: Orchestrator, meeting: Meeting, member: int) -> None:
        super().__init__(plain)
        self._meeting, self._member = meeting, member

    def plan(self, prefix: Prefix, noisy_1JC: Tensor, sigma_1: Tensor, cursor_1: Tensor) -> Plan:
        request = TailRequest(prefix=prefix, inputs=(noisy_1JC, sigma_1, cursor_1))
        return self._meeting.ask(self._member, request)


class _JoinedDiT(DiTView):
    def __init__(self, plain: JointDiT, meeting: Meeting, member: int) -> None:
        super().__init__(plain)
        self._meeting, self._member = meeting, member

    def denoise(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        cache: ConditionCache,
    ) -> Velocity:
        assert x_v is not None and x_a is not None and c_a is not None  # a chunk has both
        request = StepRequest(layout=layout, cache=cache, inputs=(x_v, x_a, c_a, sigma))
        return self._meeting.ask(self._member, request)


class _Batch:
    """Answers the requests of one round. Stacked keys are kept while the same streams ask: one chunk long."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._prefixes: dict[tuple[int, ...], tuple[list[Prefix], Prefixes]] = {}
        self._caches: dict[tuple[int, ...], tuple[list[ConditionCache], ConditionCache]] = {}

    def __call__(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        for kind, run in ((TailRequest, self._plans), (StepRequest, self._denoise)):
            places = [i for i, request in enumerate(requests) if isinstance(request, kind)]
            if places:
                for place, answer in zip(places, run([requests[i] for i in places]), strict=True):
                    answers[place] = answer
        return answers

    def _plans(self, requests: list[TailRequest]) -> list[Plan]:
        orchestrator = self._models.orchestrator
        if len(requests) == 1:
            return [orchestrator.plan(requests[0].prefix, *requests[0].inputs)]
        key = tuple(id(request.prefix) for request in requests)
        if key not in self._prefixes:
            prefixes = [request.prefix for request in requests]
            self._prefixes[key] = (prefixes, aligned(prefixes))  # held, so that an id stays theirs
        inputs = [torch.cat(parts) for parts in zip(*(request.inputs for request in requests), strict=True)]
        plan = orchestrator.plans(self._prefixes[key][1], *inputs)
        return [_row(plan, i, request.prefix.text.features.shape[1]) for i, request in enumerate(requests)]

    def _denoise(self, requests: list[StepRequest]) -> list[Velocity]:
        dit = self._models.dit
        if len(requests) == 1:
            request = requests[0]
            return [dit.denoise(*request.inputs, request.layout, request.cache)]
        key = tuple(id(request.cache) for request in requests)
        if key not in self._caches:
            caches = [request.cache for request in requests]
            self._caches[key] = (caches, stacked(caches))
        cache = self._caches[key][1]
        layout = replace(requests[0].layout, **{name: getattr(cache.layout, name) for name in CONDITIONS})
        inputs = [torch.cat(parts) for parts in zip(*(request.inputs for request in requests), strict=True)]
        velocity = dit.denoise(*inputs, layout, cache)
        assert velocity.video is not None and velocity.audio is not None
        return [
            Velocity(video=velocity.video[i : i + 1], audio=velocity.audio[i : i + 1]) for i in range(len(requests))
        ]


def _row(plan: Plan, index: int, tokens: int) -> Plan:
    """One stream's plan, without the padding of its transcript."""
    rows = slice(index, index + 1)
    progress = plan.progress
    return Plan(
        c_a=plan.c_a[rows],
        progress=replace(
            progress, attention=progress.attention[rows, :, :tokens], position=progress.position[rows],
            end=progress.end[rows], readout=progress.readout[rows],
        ),
    )  # fmt: skip


def generate_chunks(
    models: Models,
    states: Sequence[StreamState],
    samplers: Sequence[Sampler],
    *,
    transcripts: Sequence[Transcript],
    memories: Sequence[Memory | None] | None = None,
) -> list[tuple[ChunkLatents, StreamState]]:
    """`generate_chunk` for several streams at once; equal to one by one up to the order of additions.

    Everything is per stream: `samplers`, `transcripts` and `memories` (None: none) are as long as `states`.
    """
    held = [None] * len(states) if memories is None else memories
    if not states or not len(states) == len(samplers) == len(transcripts) == len(held):
        raise ConfigError(
            "expected one sampler, transcript and memory for each of at least one state, got "
            f"{len(states)} states, {len(samplers)} samplers, {len(transcripts)} transcripts, {len(held)} memories"
        )
    meeting = Meeting(len(states), _Batch(models))
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device = models.device
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run(member: int) -> tuple[ChunkLatents, StreamState]:
        joined = replace(
            models,
            orchestrator=_JoinedOrchestrator(models.orchestrator, meeting, member),
            dit=_JoinedDiT(models.dit, meeting, member),
        )
        with (  # modes and streams belong to threads: the caller's are taken along, for the last answers too
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients and not inference),
            nullcontext() if stream is None else torch.cuda.stream(stream),
        ):
            try:
                return generate_chunk(
                    joined, states[member], samplers[member], transcript=transcripts[member], memory=held[member]
                )
            finally:
                meeting.leave()

    with ThreadPoolExecutor(len(states), thread_name_prefix="stream") as pool:
        jobs = [pool.submit(run, member) for member in range(len(states))]
    failures = [error for job in jobs if (error := job.exception()) is not None]
    own = [error for error in failures if not (isinstance(error, RuntimeError) and error.__cause__ is not None)]
    if failures:
        raise (own or failures)[0]
    return [job.result() for job in jobs]
