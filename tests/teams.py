"""Several processes for tests, without torchrun's own: gloo over a file, one function on every rank."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 900


def _be_one(rank: int, size: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        function, arguments = torch.load(folder / "work", weights_only=False)
        function(*arguments)
        (folder / f"done-{rank}").touch()
        # not a barrier: the first to leave one closes its sockets while the others may still be in it
        while len(list(folder.glob("done-*"))) < size:
            time.sleep(0.02)
    except BaseException:
        (folder / f"failed-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)  # the others wait for what will not come
    os._exit(0)


def together(size: int, function: Callable[..., None], *arguments: Any, folder: Path) -> None:
    """Run `function(*arguments)` as `size` processes; the first failure ends them all."""
    import torch

    folder.mkdir(parents=True)
    torch.save((function, arguments), folder / "work")  # as arguments of a process, each tensor would cost a descriptor
    # from a server that has imported what they need: a fork of this process would keep locks its threads held
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "streamchar.train.rollout"])
    team = [context.Process(target=_be_one, args=(rank, size, folder), daemon=True) for rank in range(size)]
    for process in team:
        process.start()
    try:
        left = SECONDS
        while any(process.is_alive() for process in team):
            team[0].join(0.2) if team[0].is_alive() else team[-1].join(0.2)
            left -= 0.2
            failed = sorted(folder.glob("failed-*"))
            assert not failed, failed[0].read_text(encoding="utf-8")
            assert left > 0, f"{size} processes did not end within {SECONDS} s"
    finally:
        for process in team:
            if process.is_alive():
                process.kill()
            process.join()
    failed = sorted(folder.glob("failed-*"))
    assert not failed, failed[0].read_text(encoding="utf-8")
    assert [process.exitcode for process in team] == [0] * size
