"""A benchmark's figures as a page: what ran where, then the tables."""

from __future__ import annotations

from typing import Any

NAMES = {
    "conditions": "condition cache (DiT, motion)",
    "history": "orchestrator, history",
    "plan": "orchestrator, tail, all steps",
    "denoise": "DiT, all steps",
    "prompt": "prompt encoder",
    "generate": "LLM + DiT",
    "decode_video": "decode video",
    "decode_audio": "decode audio",
    "chunk": "whole chunk, nothing overlapped",
}


def markdown(result: dict[str, Any], title: str, note: str = "") -> str:
    """The page; `note` is what a reader must know of the circumstances."""
    parts = [f"# {title}", *([note] if note else []), _setting(result), _stages(result), _summary(result)]
    parts += [_caches(result["caches"])] if "caches" in result else []
    parts += [_against(result["against"])] if "against" in result else []
    return "\n\n".join(parts) + "\n"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [_row(*head), _row("---", *["---:"] * (len(head) - 1))]
    return "\n".join([*lines, *(_row(*row) for row in rows)])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _setting(result: dict[str, Any]) -> str:
    trial, where = result["trial"], dict(result["environment"])
    what = trial["model"] or f"{trial['preset']}, random weights"
    height, width = trial["size"]
    layers = f", at most {trial['layers']} layers a transformer" if trial["layers"] else ""
    speed = trial["speed"]
    means = "none" if speed is None else ", ".join(k if v is True else f"{k}={v}" for k, v in speed.items() if v)
    packages = ", ".join(f"{name} {version}" for name, version in where.pop("packages").items())
    again = trial["forwards"]["again"]
    guided = "" if not again else (
        f" with guidance {trial['guidance']} of the speech, {trial['picture_guidance']} of the picture above sigma "
        f"{trial['picture_guidance_above']} ({trial['forwards']['whole']} forwards, {trial['forwards']['speech']} more "
        "of the speech alone)"
    )  # fmt: skip
    beside = "" if result["rtf"]["overlapped"] is None else f"; then {trial['overlapped']} as played"
    gpu = where.pop("gpu_state", {})
    lines = [
        f"- Model: {what}{layers}; {height}x{width}, {trial['steps']} steps{guided}, "
        f"{trial['dtype']}, on {trial['device']}",
        f"- Speed options: {means or 'none'}",
        f"- Chunks: {trial['chunks']} of {trial['chunk_s']} s, each finished before the next began{beside}. Left out: "
        f"a stream of {trial['warm_up']} chunks before (warm-up), and each stream's first two chunks",
        "- Cursor: " + ("moved at the mean rate of speech" if trial["paced_by_clock"] else "the model's own pointer"),
        "- Times: " + ("the process's own, not the clock's" if trial["own_time"] else "by the clock"),
        "- Machine: " + ", ".join(f"{name} {value}" for name, value in where.items()),
        f"- Packages: {packages or 'none of interest'}",
    ]
    if gpu:
        lines.append("- GPU: " + ", ".join(f"{name} {value}" for name, value in gpu.items()))
    return "\n".join(lines)


def _stages(result: dict[str, Any]) -> str:
    rows = []
    for stage, name in NAMES.items():
        if stage not in result["stages"]:
            continue
        spread, rate = result["stages"][stage], result["flops"].get(stage)
        counted = (
            ("", "", "")
            if rate is None
            else (f"{rate['tflop']:.4g}", f"{rate['tflops']:.3g}", f"{100 * rate['of_ceiling']:.0f} %")
        )
        rows.append((name, *(_milliseconds(spread[key]) for key in ("median", "p95", "p99")), *counted))
    head = ("stage, ms a chunk", "median", "p95", "p99", "TFLOP", "TFLOP/s", "of the ceiling")
    ceiling = f"{result['matmul_tflops']:.4g} TFLOP/s"
    return _table(head, rows) + f"\n\nCeiling: {ceiling}, a large square matrix product of the DiT's type, same run."


def _summary(result: dict[str, Any]) -> str:
    rtf, steady, memory = result["rtf"], result["steady"], result["memory_mib"]
    some = steady["early_late_chunks"]
    overlapped = "not measured" if rtf["overlapped"] is None else f"{rtf['overlapped']:.3f}"
    rows = [
        ("real-time factor, nothing overlapped (median chunk)", f"{rtf['alone']:.3f}"),
        ("real-time factor as played (decoding beside the next chunk)", overlapped),
        ("first chunk, warm model, s", f"{result['first_chunk_s']:.3f}"),
        ("first chunk, cold model (kernels chosen, compiled), s", f"{result['cold_first_chunk_s']:.3f}"),
        ("before it: picture, voice encoded, s", f"{result['start_s']:.3f}"),
        ("loading, s", f"{result['load_s']:.2f}"),
        (f"memory peak ({memory['kind']}), MiB", f"{memory['peak']:.0f}"),
        (f"chunk {steady['chunks']} over chunk 2, time", f"{steady['last_over_second']:.3f}"),
        (f"last {some} chunks over chunks 2 to {some + 1}, median time", f"{steady['late_over_early']:.3f}"),
        (f"memory after chunk {steady['chunks']} less after chunk 2, MiB",
         f"{steady['memory_last_mib'] - steady['memory_second_mib']:.0f}"),
    ]  # fmt: skip
    return _table(("figure", "value"), rows)


def _caches(caches: dict[str, Any]) -> str:
    rows = [
        (name, *(_milliseconds(part[key]) for key in ("cached_s", "uncached_s")),
         f"{part['ratio']:.2f}", f"{part['counted_ratio']:.2f}")
        for name, part in caches.items()
    ]  # fmt: skip
    head = ("caches, ms a chunk", "with", "without", "ratio measured", "ratio counted")
    return _table(head, rows)


def _against(against: dict[str, Any]) -> str:
    rows = []
    for name, job in against["jobs"].items():
        ratio = None if against["ratio"] is None else against["ratio"][name]
        shown = "" if ratio is None else f"{ratio:.2f}"
        rows.append((f"diffusers, {name}", job["video_tokens"], _milliseconds(job["median_s"]), shown))
    ours = against["ours_s"]
    text = f"{against['passes']} passes each."
    if ours is not None:
        text += f" Ours, conditions and all steps of the DiT: {_milliseconds(ours)} ms"
        speech = against["speech_passes"]
        text += f", {speech} passes more of the speech alone among them." if speech else "."
    head = (f"{against['class']}, ms a chunk", "video tokens a step", "median", "times ours")
    return _table(head, rows) + "\n\n" + text
