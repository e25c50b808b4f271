"""The same engine many times: a deployment of Ray Serve, one replica for each device.

A session belongs to the replica that its WebSocket reached, for as long as the connection lives. Replicas share one
folder of snapshots: a client that comes back goes on wherever it lands, and whoever had the session before is fenced
off (`vault.py`). Replicas are added and removed by what their admission says, not by counting requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamchar.errors import ConfigError, InputError
from streamchar.serve.floor import Limits
from streamchar.serve.guard import Guard, is_loopback
from streamchar.serve.studios import Choice

NAME = "streamchar"
OCCUPANCY = 0.8
"""Share of the places that may be taken before a replica is added: a new one takes a while to warm up."""
WARM_SECONDS = 600.0
DRAIN_SECONDS = 20.0
SPARE_REQUESTS = 32
"""Requests a replica takes beyond its sessions: pages, pictures, figures."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every replica is built from."""

    guard: Guard
    snapshots: Path
    choice: Choice = field(default_factory=Choice)
    limits: Limits = field(default_factory=Limits)
    smallest: int = 1
    largest: int = 4
    cpus: float = 1.0
    gpus: float = 0.0
    """Of each replica."""

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise InputError(
                f"--replicas must be from 1 on and not above --max-replicas, got {self.smallest} and {self.largest}"
            )
        if self.cpus <= 0 or self.gpus < 0:
            raise InputError(f"a replica needs more than 0 CPUs and not less than 0 GPUs, got {self.cpus}, {self.gpus}")


class Replica:
    """One engine behind the application."""

    def __init__(self, plan: Plan) -> None:
        from streamchar.serve.vault import Vault
        from streamchar.serve.worker import Worker

        self.plan = plan
        self.worker = Worker(plan.choice.open(), Vault(plan.snapshots), limits=plan.limits)
        self.worker.start()
        limit = time.monotonic() + WARM_SECONDS
        while not self.worker.ready:  # only a warm one is given visitors
            if self.worker.floor.failure or time.monotonic() > limit:
                raise RuntimeError(f"the engine did not start: {self.worker.floor.failure or 'it took too long'}")
            time.sleep(0.02)

    def __serve_build_asgi_app__(self) -> Any:
        from streamchar.serve.app import build

        return build(self.worker, self.plan.guard)

    async def figures(self) -> dict[str, float]:
        """What admission says, and the process."""
        return {**self.worker.gauges(), "pid": float(os.getpid())}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        gauges = self.worker.gauges()
        return {name: float(gauges[name]) for name in ("sessions", "queue_depth", "capacity")}

    async def check_health(self) -> None:
        if self.worker.floor.failure:
            raise RuntimeError(self.worker.floor.failure)

    async def drain(self) -> int:
        """End every session behind a whole chunk, saved; returns how many are left."""
        self.worker.drain()
        limit = time.monotonic() + DRAIN_SECONDS
        while self.worker.sessions and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)  # the last events are on their way
        return self.worker.sessions

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never built
            self.worker.close()


def wanted(people: float, capacity: float) -> int:
    """Replicas for so many sessions that play or wait, where each carries `capacity`."""
    return max(1, math.ceil(people / (OCCUPANCY * max(1.0, capacity)) - 1e-9))


def replicas_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """The autoscaling policy: reads what `record_autoscaling_stats` reported."""
    reported = context.aggregated_metrics or {}
    people = sum(sum(reported.get(name, {}).values()) for name in ("sessions", "queue_depth"))
    capacities = list(reported.get("capacity", {}).values())
    if not capacities:  # nobody has reported yet
        return context.target_num_replicas, {}
    return wanted(people, sum(capacities) / len(capacities)), {}


PATIENCE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 60.0,
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": 30.0,
}
"""Seconds, unless the user says otherwise: Ray gives a new proxy 5 to start and ends it then, which on cores that load
a model at the same time is no failure but a beginning without end."""


class Cluster:
    """A running deployment; `close` ends it. Raises `ConfigError` where Ray is missing or does not start."""

    def __init__(self, plan: Plan, port: int) -> None:
        for name, seconds in PATIENCE.items():
            os.environ.setdefault(name, str(seconds))  # Ray's processes take them over when it starts them
        try:
            import ray
            from ray import serve
        except ImportError:
            raise ConfigError("--ray needs Ray Serve; install streamchar[cluster]") from None
        self._ray, self._serve = ray, serve
        address = os.environ.get("RAY_ADDRESS", "local")  # not named: one of its own, never one that happens to run
        own = {} if address != "local" else {"num_cpus": max(os.cpu_count() or 1, math.ceil(plan.largest * plan.cpus))}
        try:
            ray.init(
                address=address, namespace=NAME, include_dashboard=None if address != "local" else False,
                configure_logging=False, log_to_driver=False, **own,
            )  # fmt: skip
            place = "HeadOnly" if is_loopback(plan.guard.host) else "EveryNode"
            serve.start(proxy_location=place, http_options={"host": plan.guard.host, "port": port})
            self._handle = serve.run(self._application(plan), name=NAME, route_prefix="/")
        except Exception as error:
            self.close()
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ConfigError(f"Ray Serve did not start: {reason}; check it, or serve without --ray") from error

    def _application(self, plan: Plan) -> Any:
        serve = self._serve
        scaling = {
            "min_replicas": plan.smallest, "initial_replicas": plan.smallest, "max_replicas": plan.largest,
            "upscale_delay_s": 2.0, "downscale_delay_s": 300.0, "metrics_interval_s": 1.0, "look_back_period_s": 3.0,
            "policy": {"policy_function": f"{__name__}:{replicas_wanted.__name__}"},
        }  # fmt: skip
        room = plan.limits.sessions + plan.limits.queue + SPARE_REQUESTS
        deployment = serve.deployment(
            serve.ingress()(Replica),
            name="engine",
            autoscaling_config=scaling,
            max_ongoing_requests=room,
            graceful_shutdown_timeout_s=600.0,  # a replica that is taken away lets its visitors finish
            ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        )
        return deployment.bind(plan)

    def everyone(self, method: str) -> list[Any]:
        """Call a method of every replica."""
        return list(self._handle.broadcast(method).results())

    def close(self) -> None:
        """Drain every replica and end them."""
        if not self._ray.is_initialized():  # asking anything of Serve would start Ray
            return
        with contextlib.suppress(Exception):  # there may be none any more
            left = sum(self.everyone("drain"))
            if left:
                log.warning("%d sessions did not end in time; their last snapshots stay", left)
        for end in (self._serve.shutdown, self._ray.shutdown):
            with contextlib.suppress(Exception):
                end()
