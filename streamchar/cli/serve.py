"""`streamchar serve`: a page where the character speaks while one types."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamchar.errors import ConfigError, InputError

if TYPE_CHECKING:
    from streamchar.serve.cluster import Plan

NEEDED = ("fastapi", "uvicorn", "websockets")


def serve(
    model: Annotated[str, typer.Option(metavar="toon|DIR|HUB_ID", help="Which model.")] = "toon",
    host: Annotated[str, typer.Option(help="Address; one that others reach needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8080,
    max_sessions: Annotated[int, typer.Option(help="At most so many at once, however fast the model is.")] = 8,
    per_address: Annotated[int, typer.Option(help="At most so many sessions of one address.")] = 4,
    token: Annotated[str, typer.Option(envvar="STREAMCHAR_TOKEN", help="Secret that the link carries.")] = "",
    steps: Annotated[int | None, typer.Option(help="Sampling steps a chunk.  [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="1 is none, twice as fast.  [default: the model's]")] = None,
    mock: Annotated[bool, typer.Option("--mock", help="Test pictures and tones instead of a model.")] = False,
    mock_speed: Annotated[float, typer.Option(help="With --mock: times real time.")] = 4.0,
    snapshots: Annotated[Path | None, typer.Option(help="Folder for snapshots.  [default: the user's cache]")] = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Several engines, on one machine or many.")] = False,
    replicas: Annotated[int, typer.Option(help="With --ray: engines at least.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="With --ray: engines at most.  [default: 4]")] = None,
    cpus: Annotated[float, typer.Option(help="With --ray: CPUs of one engine.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="With --ray: GPUs of one engine.")] = 0.0,
) -> None:
    """Serve a page on which a character speaks what one types, live."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}; install streamchar[serve]")
    if not 0 <= port < 65536:
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    if max_sessions < 1 or per_address < 1:
        raise InputError(f"--max-sessions and --per-address must be at least 1, got {max_sessions} and {per_address}")
    from streamchar.serve import server
    from streamchar.serve.cluster import Plan
    from streamchar.serve.floor import Limits
    from streamchar.serve.guard import Guard
    from streamchar.serve.studios import Choice

    plan = Plan(
        guard=Guard(host=host, token=token), snapshots=(snapshots or server.snapshot_folder()).absolute(),
        choice=Choice(model=model, steps=steps, guidance=guidance, mock=mock, speed=mock_speed),
        limits=Limits(sessions=max_sessions, per_address=per_address, reports=ray),
        smallest=replicas, largest=max(4, replicas) if max_replicas is None else max_replicas, cpus=cpus, gpus=gpus,
    )  # fmt: skip
    _log(json_logs)
    (_serve_cluster if ray else _serve_here)(plan, port)


def _serve_here(plan: Plan, port: int) -> None:
    """One engine in this process."""
    from streamchar.serve import server
    from streamchar.serve.vault import Vault
    from streamchar.serve.worker import Worker

    bound = server.listen(plan.guard.host, port)
    vault = Vault(plan.snapshots)
    worker = Worker(plan.choice.open(), vault, limits=plan.limits)
    worker.start()
    live = server.make(worker, plan.guard, port)
    print(f"streamchar is at {server.link(plan.guard, bound.getsockname()[1])} (Ctrl-C ends it)", flush=True)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)  # uvicorn takes them over, and hands them back after a clean end
    try:
        live.run(sockets=[bound])
    finally:
        worker.close()
    if worker.floor.failure:
        raise ConfigError(f"the engine has stopped: {worker.floor.failure}")


def _serve_cluster(plan: Plan, port: int) -> None:
    """Engines of Ray Serve; this process waits, and drains them at its end."""
    from streamchar.serve import server
    from streamchar.serve.cluster import Cluster

    with server.listen(plan.guard.host, port) as bound:  # free, or one clear error; Ray takes it after us
        chosen = bound.getsockname()[1]
    cluster = Cluster(plan, chosen)
    over = threading.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: over.set())
    print(f"streamchar is at {server.link(plan.guard, chosen)} (Ray Serve; Ctrl-C ends it)", flush=True)
    try:
        over.wait()
    finally:
        cluster.close()


def _log(as_json: bool) -> None:
    from streamchar.serve.server import JsonLines

    logging.getLogger("streamchar").setLevel(logging.INFO if as_json else logging.WARNING)
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
