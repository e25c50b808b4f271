"""Steps recorded once and replayed: a CUDA graph of the denoising step and of the orchestrator's tail.

A graph reads and writes fixed addresses. So a `Tape` owns static buffers for a step's inputs; a call copies the
new values in (per step: latents, c_a, sigma, cursor; per chunk: the cached keys), replays, and hands out copies of
the outputs. What records is handed in: `CudaRecorder` on a GPU, `run_plainly` anywhere else, which runs the same
code on the same buffers every time - that is how the CPU's tests go through all of it.

The `Graphed...` classes share the plain module's parameters. With gradients switched on they do what the plain ones do.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamchar import clock
from streamchar.dit.cache import ConditionCache
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT, Velocity
from streamchar.orchestrator.lm import Orchestrator, Plan, Prefix, aligned
from streamchar.orchestrator.packing import TAIL
from streamchar.orchestrator.pointer import Progress
from streamchar.stream.views import DiTView, OrchestratorView

Outputs = tuple[Tensor, ...]
Recorder = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
WARM_UPS = 3
"""Runs before a recording: libraries choose their kernels and take their workspaces."""
SLOTS = 2
"""Tapes of one shape: a guided stream alternates between two sets of cached keys."""
SHAPES = 4
"""Shapes kept: chunk 1 and the chunks after it, and as much again for a second picture size."""


def run_plainly(step: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """The recorder that records nothing."""
    return step


_RECORDING = threading.Lock()
"""One recording at a time: the decoder's may begin while another thread records the next chunk's step."""


class CudaRecorder:
    """Records on a GPU. All its graphs share one memory pool, as they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Outputs]) -> Callable[[], Outputs]:
        with _RECORDING:
            beside, here = torch.cuda.Stream(), torch.cuda.current_stream()
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(WARM_UPS):
                    step()
            here.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # a stream of its own and thread_local: another thread may be decoding, and allocating, meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=beside, capture_error_mode="thread_local"):
                outputs = step()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a frozen value, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in _parts(value) for tensor in tensors_in(part)]


def with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The same value around other tensors, in the order of `tensors_in`."""
    rest = iter(tensors)

    def rebuilt(part: Any) -> Any:
        if isinstance(part, Tensor):
            return next(rest)
        if isinstance(part, tuple):
            return tuple(rebuilt(inner) for inner in part)
        if isinstance(part, dict):
            return {name: rebuilt(inner) for name, inner in part.items()}
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{f.name: rebuilt(getattr(part, f.name)) for f in fields(part)})
        return part

    return rebuilt(value)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in fields(value)]
    return []


class Tape:
    """One step of one shape: `step(inputs, held)` on buffers of its own.

    `held` is what stays for several calls (cached keys): copied only when another value is handed in.
    """

    def __init__(
        self, step: Callable[[Sequence[Tensor], Any], Outputs], inputs: Sequence[Tensor], held: Any, record: Recorder
    ) -> None:
        with torch.inference_mode(False), torch.no_grad():  # buffers that any mode may write to
            self._inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
            self._held = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors_in(held)]
        value = with_tensors(held, self._held)
        self._run = record(lambda: step(self._inputs, value))

    def __call__(self, inputs: Sequence[Tensor], held: Any | None) -> Outputs:
        """Run with new values; `held` None: as before."""
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if held is not None:
            for buffer, tensor in zip(self._held, tensors_in(held), strict=True):
                buffer.copy_(tensor, non_blocking=True)
        return tuple(output.clone() for output in self._run())


class Tapes:
    """The tapes of one step function, by shape and by whose cached keys they hold."""

    def __init__(self, step: Callable[[Sequence[Tensor], Any], Outputs], record: Recorder) -> None:
        self._step, self._record = step, record
        self._slots: dict[Hashable, list[tuple[Tape, weakref.ref[Any]]]] = {}
        self._lock = threading.Lock()
        self.recorded = 0

    def __call__(
        self, key: Hashable, inputs: Sequence[Tensor], source: Any, held: Callable[[], Any] | None = None
    ) -> Outputs:
        """Run the step. `source` is the value whose tensors are held; `held()` derives them from it if they are not
        the same. One call at a time: buffers are shared."""
        with self._lock:
            slots = self._slots.pop(key, [])
            self._slots[key] = slots  # latest used last
            found = next((i for i, (_, owner) in enumerate(slots) if owner() is source), None)
            value = None if found is not None else (source if held is None else held())
            if found is None and len(slots) == SLOTS:
                found = next((i for i, (_, owner) in enumerate(slots) if owner() is None), 0)
            if found is None:
                tape = Tape(self._step, inputs, value, self._record)
                self.recorded += 1
                value = None
            else:
                tape, _ = slots.pop(found)
            slots.append((tape, weakref.ref(source)))
            for old in list(self._slots)[:-SHAPES]:
                del self._slots[old]
            return tape(inputs, value)


def _form(tensors: Sequence[Tensor]) -> Hashable:
    return tuple((tuple(tensor.shape), tensor.dtype, str(tensor.device)) for tensor in tensors)


class GraphedDiT(DiTView):
    """A DiT whose `denoise` is replayed."""

    def __init__(self, plain: JointDiT, record: Recorder) -> None:
        super().__init__(plain)
        self._tapes: dict[Layout, Tapes] = {}
        self._record = record

    def denoise(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        cache: ConditionCache,
    ) -> Velocity:
        """As `JointDiT.denoise`."""
        if torch.is_grad_enabled() or x_v is None or x_a is None or c_a is None or not layout.same_conditions(
            cache.layout
        ):  # fmt: skip
            return super().denoise(x_v, x_a, c_a, sigma, layout, cache)
        inputs = (x_v, x_a, c_a, sigma)
        if layout not in self._tapes:
            while len(self._tapes) >= SHAPES:
                del self._tapes[next(iter(self._tapes))]
            self._tapes[layout] = Tapes(lambda now, held: self._step(layout, now, held), self._record)
        key = (_form(inputs), _form(tensors_in(cache)[:2]), tuple(cache.presence), cache.layout == layout)
        video, audio = self._tapes[layout](key, inputs, cache)
        return Velocity(video=video, audio=audio)

    def _step(self, layout: Layout, inputs: Sequence[Tensor], cache: ConditionCache) -> Outputs:
        x_v, x_a, c_a, sigma = inputs
        velocity = self.plain.denoise(x_v, x_a, c_a, sigma, layout, cache)
        assert velocity.video is not None and velocity.audio is not None
        return velocity.video, velocity.audio


class GraphedOrchestrator(OrchestratorView):
    """An orchestrator whose tail is replayed, behind a prefix padded to the longest that a window allows."""

    def __init__(self, plain: Orchestrator, record: Recorder) -> None:
        super().__init__(plain)
        self._tapes = Tapes(self._step, record)
        limits = self.config
        longest = limits.max_reference + limits.max_transcript + TAIL * (clock.MAX_HISTORY_CHUNKS + 1)
        self.capacity = -(-longest // 64) * 64

    def plan(self, prefix: Prefix, noisy_1JC: Tensor, sigma_1: Tensor, cursor_1: Tensor) -> Plan:
        """As `Orchestrator.plan`."""
        count = prefix.text.features.shape[1]
        if torch.is_grad_enabled() or prefix.length > self.capacity or count > self.config.max_transcript:
            return super().plan(prefix, noisy_1JC, sigma_1, cursor_1)
        inputs = (noisy_1JC, sigma_1, cursor_1)
        c_a, attention, position, end, readout = self._tapes(
            _form((*inputs, prefix.keys[0][:, :, :0])), inputs, prefix,
            lambda: aligned([prefix], self.capacity, self.config.max_transcript),
        )  # fmt: skip
        return Plan(
            c_a=c_a,
            progress=Progress(attention=attention[:, :, :count], position=position, end=end, readout=readout),
        )

    def _step(self, inputs: Sequence[Tensor], held: Any) -> Outputs:
        plan = self.plain.plans(held, *inputs)
        progress = plan.progress
        return plan.c_a, progress.attention, progress.position, progress.end, progress.readout
