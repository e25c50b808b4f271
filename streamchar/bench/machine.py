"""The machine a measurement was made on, and the most that its matrix units give."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Any

import torch
from torch import Tensor

SIDES = {"cuda": 8192, "cpu": 1024}
REPEATS = 7
PACKAGES = ("diffusers", "transformers", "torchao")
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,driver_version"


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge the figures; what cannot be found out is left out."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "niceness": os.nice(0),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_state": _gpu_state(device),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _gpu_state(device: torch.device) -> dict[str, str]:
    """Clocks, power limit and temperature from the driver's own tool, where it is installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    index = str(device.index or 0)
    command = [tool, f"--query-gpu={CLOCKS}", "--format=csv,noheader", f"--id={index}"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CLOCKS.split(","), (value.strip() for value in out.split(",")), strict=False))


def matmul_ceiling(
    device: torch.device, dtype: torch.dtype, side: int | None = None, now: Callable[[], float] = time.perf_counter
) -> float:
    """TFLOP/s of a large square matrix product of this type here and now: the best of a few."""
    side = side or SIDES.get(device.type, SIDES["cpu"])
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=draw).to(device, dtype) for _ in range(2))
    a @ b  # the first chooses its kernel
    return 2 * side**3 / min(_spent(a, b, now) for _ in range(REPEATS)) / 1e12


def _spent(a: Tensor, b: Tensor, now: Callable[[], float]) -> float:
    if a.device.type != "cuda":
        began = now()
        a @ b
        return now() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    a @ b
    ended.record()
    torch.cuda.synchronize(a.device)
    return began.elapsed_time(ended) / 1000


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float:
    """Peak of allocated GPU memory since `reset_peak`, or the process's largest resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


def times_of(
    call: Callable[[], None], device: torch.device, repeats: int, now: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of `repeats` calls, each waited for."""
    spent = []
    for _ in range(repeats):
        began = now()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(now() - began)
    return spent


def settled(seconds: list[float]) -> float:
    """The median."""
    return median(seconds)
