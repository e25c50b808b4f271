"""A DiT or an orchestrator seen through something: the same parameters, other ways through them.

A view shares the plain module's parameters, blocks and configuration, and hands every call on; subclasses change
what happens around it. So it can stand in `Models`, and what is saved is the plain module.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from streamchar.codecs.component import save_component
from streamchar.dit.cache import ConditionCache, Conditions
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT, Velocity
from streamchar.orchestrator.lm import Orchestrator, Plan, Prefix


class OrchestratorView(Orchestrator):
    """The same for the orchestrator."""

    def __init__(self, plain: Orchestrator) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)
        self._seen = (plain,)

    @property
    def plain(self) -> Orchestrator:
        """What is looked at, perhaps through another view."""
        return self._seen[0]

    def plan(self, prefix: Prefix, noisy_1JC: Tensor, sigma_1: Tensor, cursor_1: Tensor) -> Plan:
        """As `Orchestrator.plan`."""
        return self.plain.plan(prefix, noisy_1JC, sigma_1, cursor_1)

    def save(self, folder: Path | str) -> None:
        """The plain module's weights: a view is no part of a checkpoint."""
        module = self.plain
        while isinstance(module, OrchestratorView):
            module = module.plain
        save_component(module, module.config, Path(folder))


class DiTView(JointDiT):
    """The plain view."""

    def __init__(self, plain: JointDiT) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)  # the same parameters and blocks, not copies
        self._seen = (plain,)  # a tuple: its parameters are here already

    @property
    def plain(self) -> JointDiT:
        """What is looked at, perhaps through another view."""
        return self._seen[0]

    def encode_conditions(
        self, layout: Layout, conditions: Conditions, previous: ConditionCache | None = None
    ) -> ConditionCache:
        """As `JointDiT.encode_conditions`."""
        return self.plain.encode_conditions(layout, conditions, previous)

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
        return self.plain.denoise(x_v, x_a, c_a, sigma, layout, cache)

    def save(self, folder: Path | str) -> None:
        """The plain module's weights: a view is no part of a checkpoint."""
        module = self.plain
        while isinstance(module, DiTView):
            module = module.plain
        save_component(module, module.config, Path(folder))
