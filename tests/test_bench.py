"""The benchmark: what it times is what ran, it leaves the model as it was, and its figures are true to it."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import torch

from streamchar import clock
from streamchar.bench import rival
from streamchar.bench.machine import matmul_ceiling
from streamchar.bench.stream import Measured, begin, play
from streamchar.bench.timing import STAGES, Spread, Stopwatch, watched
from streamchar.bench.trial import Trial, read_size, read_speed, steadiness
from streamchar.cli.main import main
from streamchar.config.presets import tiny
from streamchar.errors import InputError
from streamchar.stream.models import random_models
from streamchar.stream.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    return random_models(tiny())


def test_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 4.0, 5.0])
    assert (spread.median, spread.longest, spread.count) == (3.0, 5.0, 5)
    assert spread.p95 == pytest.approx(4.8) and spread.p99 == pytest.approx(4.96)


def test_stopwatch_sums_a_chunks_laps() -> None:
    watch = Stopwatch(device=CPU)
    for turn, naps in ((0, 1), (1, 2)):
        watch.turn = turn
        for _ in range(naps):
            with watch.lap("nap"):
                time.sleep(0.01)
    spent = watch.seconds()["nap"]
    assert set(spent) == {0, 1} and spent[1] > 0.019 and spent[0] > 0.009


def test_a_measured_stream_is_the_stream_itself(models) -> None:
    """Timed or not, alone or overlapped, the same chunks come out as from a plain session."""
    state = begin(models, chunks=3, steps=2)
    plain = []
    session = Session(models, state)
    for chunk in session:
        plain.append(chunk)
        if len(plain) == 2 or chunk.last:
            break
    watch = Stopwatch(device=CPU)
    with watched(models, watch):
        timed = list(Measured(models, state, limit=2, paced=False, alone=True, watch=watch))
    beside = list(Measured(models, state, limit=2, paced=False, alone=False))
    assert len(timed) == len(beside) == 2
    for a, b in zip(timed, beside, strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.samples, b.samples)
    assert torch.equal(plain[0].frames, timed[0].frames) and torch.equal(plain[0].samples, timed[0].samples)
    seconds = watch.seconds()
    assert {"plan", "denoise", "generate", "history", "decode_video", "decode_audio"} <= set(seconds)
    inside = sum(seconds[name].get(1, 0.0) for name in ("conditions", "history", "plan", "denoise"))
    assert inside <= seconds["generate"][1]


def test_watching_leaves_no_trace(models) -> None:
    before = {component: dict(vars(getattr(models, component))) for component, _ in sum(STAGES.values(), ())}
    with pytest.raises(RuntimeError), watched(models, Stopwatch(device=CPU)):
        raise RuntimeError
    after = {component: dict(vars(getattr(models, component))) for component in before}
    assert {k: set(v) for k, v in before.items()} == {k: set(v) for k, v in after.items()}


def test_a_paced_stream_goes_on_and_its_window_slides(models) -> None:
    limit = 8
    played = play(Measured(models, begin(models, chunks=limit, steps=1), limit=limit, paced=True, alone=True))
    assert len(played.intervals) == limit and set(played.prefixes) == set(range(limit))
    keys = [played.prefixes[chunk][0] for chunk in range(limit)]
    assert keys[1] == keys[0] + clock.AUDIO_LATENTS_PER_CHUNK  # the history grows by a chunk
    assert keys[-1] == keys[-2] < keys[0] + (limit - 1) * clock.AUDIO_LATENTS_PER_CHUNK  # and is cut: a window
    figures = steadiness(played)
    assert figures["chunks"] == limit and figures["late_over_early"] > 0


def test_ceiling_is_a_rate() -> None:
    ticks = itertools.count()
    found = matmul_ceiling(CPU, torch.float32, side=128, now=lambda: float(next(ticks)))
    assert found == pytest.approx(2 * 128**3 / 1e12), "each product took one second of this clock"


def test_rival_has_our_widths_and_tokens() -> None:
    pytest.importorskip("diffusers")
    config = tiny()
    found = rival.race(config, device=CPU, dtype=torch.float32, passes=1, repeats=1, compiled=False)
    grid = config.grid[0] * config.grid[1]
    assert found["jobs"]["noisy plain"]["video_tokens"] == 9 * grid
    assert found["jobs"]["sequence plain"]["video_tokens"] == 28 * grid
    assert rival.ratios(found, 1.0)["noisy plain"] == found["jobs"]["noisy plain"]["median_s"]


def test_command(tmp_path, capsys) -> None:
    file, page = tmp_path / "f.json", tmp_path / "f.md"
    arguments = ["bench", "--preset", "tiny", "--random-weights", "--chunks", "4", "--overlapped", "2", "--warm-up",
                 "1", "--steps", "1", "--size", "32x64", "--layers", "1", "--caches", "--own-time", "--json", str(file),
                 "--markdown", str(page)]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads(file.read_text())
    assert result["trial"]["size"] == [32, 64] and result["trial"]["steps"] == 1
    assert result["stages"]["chunk"]["count"] == 2
    parts = sum(result["stages"][name]["median"] for name in ("generate", "decode_video", "decode_audio"))
    assert parts < 1.5 * result["stages"]["chunk"]["longest"] and result["rtf"]["overlapped"] is None
    assert result["rtf"]["alone"] == pytest.approx(result["stages"]["chunk"]["median"] / 1.375)
    assert result["flops"]["denoise"]["tflops"] > 0 and result["caches"]["dit"]["counted_ratio"] > 1
    assert result["environment"]["torch"] == torch.__version__
    assert page.read_text() == capsys.readouterr().out and "DiT, all steps" in page.read_text()


@pytest.mark.parametrize(("arguments", "said"), [
    (["--chunks", "1"], "at least 4"),
    (["--size", "100x100"], "multiple of"),
    (["--size", "big"], "HEIGHTxWIDTH"),
    (["--size", "4096x4096"], "up to 704x1280"),
    (["--speed", "warp"], "does not know"),
    (["--against", "nothing"], "diffusers"),
    (["--device", "cuda:9"], "cannot be used"),
    (["--device", "meta"], "one of cuda, cpu"),
    (["--dtype", "float8"], "float32"),
    (["--device", "meta", "--own-time"], "for --device cpu"),
    (["--preset", "huge"], "unknown preset"),
    (["--model", "toon", "--random-weights"], "exclude"),
    (["--model", "toon", "--layers", "1"], "--random-weights"),
    (["--preset", "tiny", "--json", f"{__file__}/below.json"], "test_bench.py"),
])  # fmt: skip
def test_bad_input(arguments, said, capsys) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_options() -> None:
    assert read_size("704x1280") == (704, 1280) and read_size("1280x704") == (1280, 704)
    speed = read_speed("compile,cuda-graphs,tiny-decoder=a.safetensors,no-fuse-qkv")
    assert speed.compile and speed.cuda_graphs and speed.tiny_decoder == "a.safetensors" and not speed.fuse_qkv
    assert not speed.fp8
    for wrong in ("tiny-decoder", "compile=3", "no-warp"):
        with pytest.raises(InputError):
            read_speed(wrong)
    with pytest.raises(InputError):
        Trial(chunks=10, warm_up=0).check()
