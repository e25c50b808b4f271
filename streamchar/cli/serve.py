"""`streamchar serve`: a page where the character speaks while one types."""

from __future__ import annotations

import importlib.util
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from streamchar.errors import ConfigError, InputError

NEEDED = ("fastapi", "uvicorn", "websockets")


def serve(
    model: Annotated[str, typer.Option(metavar="toon|DIR|HUB_ID", help="Which model.")] = "toon",
    host: Annotated[str, typer.Option(help="Address; one that others reach needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8080,
    max_sessions: Annotated[int, typer.Option(help="At most so many at once, however fast the model is.")] = 8,
    per_address: Annotated[int, typer.Option(help="At most so many sessions of one address.")] = 4,
    token: Annotated[str, typer.Option(envvar="STREAMCHAR_TOKEN", help="Secret that the link carries.")] = "",
    mock: Annotated[bool, typer.Option("--mock", help="Test pictures and tones instead of a model.")] = False,
    mock_speed: Annotated[float, typer.Option(help="With --mock: times real time.")] = 4.0,
    snapshots: Annotated[Path | None, typer.Option(help="Folder for snapshots.  [default: the user's cache]")] = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines.")] = False,
) -> None:
    """Serve a page on which a character speaks what one types, live."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}; install streamchar[serve]")
    if not 0 <= port < 65536:
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    if max_sessions < 1 or per_address < 1:
        raise InputError(f"--max-sessions and --per-address must be at least 1, got {max_sessions} and {per_address}")
    if not 0.1 <= mock_speed <= 1000:
        raise InputError(f"--mock-speed must be from 0.1 to 1000, got {mock_speed}")
    from streamchar.serve import server
    from streamchar.serve.floor import Limits
    from streamchar.serve.guard import Guard
    from streamchar.serve.vault import Vault
    from streamchar.serve.worker import Worker

    _log(json_logs)
    guard = Guard(host=host, token=token)
    bound = server.listen(host, port)
    vault = Vault(snapshots or server.snapshot_folder())
    limits = Limits(sessions=max_sessions, per_address=per_address)
    worker = Worker(_studio(model, mock, mock_speed), vault, limits=limits)
    worker.start()
    live = server.make(worker, guard, port)
    print(f"streamchar is at {server.link(guard, bound.getsockname()[1])} (Ctrl-C ends it)", flush=True)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)  # uvicorn takes them over, and hands them back after a clean end
    try:
        live.run(sockets=[bound])
    finally:
        worker.close()
    if worker.floor.failure:
        raise ConfigError(f"the engine has stopped: {worker.floor.failure}")


def _studio(model: str, mock: bool, speed: float):
    if mock:
        from streamchar.serve.mock import MockStudio

        return MockStudio(speed=speed)
    from streamchar.serve.model import ModelStudio
    from streamchar.stream.pipeline import StreamCharPipeline

    return ModelStudio(StreamCharPipeline.from_pretrained(model))


def _log(as_json: bool) -> None:
    from streamchar.serve.server import JsonLines

    logging.getLogger("streamchar").setLevel(logging.INFO if as_json else logging.WARNING)
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
