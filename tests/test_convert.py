"""`streamchar convert` on small checkpoints saved by the real classes: every key, every value, every interruption."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bases import CONFIG, Bases, make_bases, write_original
from safetensors.torch import load_file, save_file

from streamchar.cli.main import main
from streamchar.convert.conversion import Request, orchestrator, plan
from streamchar.convert.table import IGNORED, NEW, REPLICATED, USED, ZERO, Plan
from streamchar.convert.writer import carry_out
from streamchar.dit.wan import from_original, rename
from streamchar.errors import CheckpointError, ConfigError, StreamCharError
from streamchar.stream.shards import WeightFolder

SHARD = 150_000


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("bases"))


def request(bases: Bases, **changes) -> Request:
    return Request(**{**bases.options(), "height": 64, "width": 64, "max_bytes": SHARD, **changes})


@pytest.fixture(scope="module")
def made(bases: Bases) -> Plan:
    return plan(request(bases))


@pytest.fixture(scope="module")
def folder(made: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "out"
    assert not any(step.kept for step in carry_out(made, out))
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_every_key_is_accounted_for_once(made: Plan) -> None:
    for part in made.parts:
        taken = [row.source for row in part.rows if row.source is not None and row.how in (USED, IGNORED)]
        assert sorted(taken) == sorted(part.weights.entries), part.component
        names = [row.name for row in part.rows if row.name is not None]
        assert len(names) == len(set(names))
        assert all(row.reason for row in part.rows if row.how == IGNORED)
    dit = {row.name: row for part in made.parts if part.component == "dit" for row in part.rows}
    assert {row.how for row in dit.values()} == {USED, REPLICATED, ZERO, NEW}
    assert dit["blocks.1.audio_ffn.up.weight"].source == "blocks.1.ffn.net.0.proj.weight"
    assert {name for name, row in dit.items() if row.how == NEW and not name.startswith("audio.")} == {
        "head.velocity.deviation", "head.velocity.residual",
    }  # fmt: skip


def test_values_are_the_sources(bases: Bases, made: Plan, folder: Path) -> None:
    source, ours = tensors(bases.video / "transformer"), tensors(folder / "dit")
    for key, value in source.items():
        name = rename(key)
        flat = value.flatten(1) if key == "patch_embedding.weight" else value
        assert torch.equal(ours[name], flat.bfloat16())
        if ".ffn." in name:
            assert torch.equal(ours[name.replace(".ffn.", ".audio_ffn.")], flat.bfloat16())
    assert not ours["head.velocity.gain"].any() and ours["head.velocity.deviation"].dtype == torch.float32
    source, ours = tensors(bases.lm), tensors(folder / "orchestrator")
    assert all(torch.equal(ours["backbone." + k.removeprefix("model.")], v.bfloat16()) for k, v in source.items())
    assert ours["audio_in.weight"].std() > 0
    for component, theirs in (("video_codec", bases.video / "vae"), ("audio_codec", bases.audio_vae / "vae")):
        source, ours = tensors(theirs), tensors(folder / component)
        assert source.keys() == ours.keys() and all(torch.equal(source[k], ours[k]) for k in source)
        assert all(value.dtype == torch.float32 for value in ours.values())


def test_files_are_shards_within_the_limit(made: Plan, folder: Path) -> None:
    files = sorted((folder / "dit").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((folder / "dit" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {file.name for file in files}
    for part in made.parts:
        for shard in part.shards(SHARD):
            assert (folder / part.component / shard.file).stat().st_size == shard.bytes
            assert len(shard.entries) == 1 or sum(entry.bytes for entry in shard.entries) <= SHARD
    assert not list(folder.rglob("*.part"))


def test_wan_own_names_give_the_same_model(bases: Bases, folder: Path, tmp_path: Path) -> None:
    write_original(bases.video / "transformer", tmp_path / "original")
    given = request(bases, video=str(tmp_path / "original"), text=str(bases.video), video_vae=str(bases.video / "vae"))
    for _ in carry_out(plan(given), tmp_path / "out"):
        pass
    one, other = tensors(folder / "dit"), tensors(tmp_path / "out" / "dit")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(CheckpointError, match="text_encoder in diffusers' layout; give one with --text"):
        plan(request(bases, video=str(tmp_path / "original"), video_vae=str(bases.video)))
    assert from_original("blocks.3.cross_attn.k_img.weight") is None


def killed_after(made: Plan, out: Path, files: int) -> None:
    """Carry the plan out in a process that dies without a word."""

    def work() -> None:
        for count, _ in enumerate(carry_out(made, out), 1):
            if count == files:
                os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
def test_killed_and_run_again(made: Plan, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_after(made, out, 3)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len(done) == 3 and not (out / "model_index.json").exists()
    (out / "dit").mkdir(exist_ok=True)
    (out / "dit" / "model-00001-of-00009.safetensors.part").write_bytes(b"half a shard")
    steps = list(carry_out(made, out))
    assert [step.kept for step in steps[:4]] == [True, True, True, False]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    for component in ("orchestrator", "dit", "prompt_encoder"):
        one, other = tensors(folder / component), tensors(out / component)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert all(step.kept for step in carry_out(made, out))
    with pytest.raises(CheckpointError, match="other sources or options"):
        list(carry_out(replace(made, max_bytes=SHARD + 1), out))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        list(carry_out(made, tmp_path / "full"))


def test_at_most_one_weight_of_a_source_is_held(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live bytes of what was read never exceed the largest weight: far below 1.5 of a shard of many."""
    alive: dict[int, int] = {}
    most, read = 0, WeightFolder.read

    def watched(self: WeightFolder, name: str) -> torch.Tensor:
        nonlocal most
        value = read(self, name).clone()
        alive[id(value)] = value.nbytes
        weakref.finalize(value, alive.pop, id(value))
        most = max(most, sum(alive.values()))
        return value

    monkeypatch.setattr(WeightFolder, "read", watched)
    for _ in carry_out(replace(made, max_bytes=400_000), tmp_path / "out"):
        pass
    largest = max(entry.bytes for part in made.parts for entry in part.weights.entries.values())
    shard = max(shard.bytes for part in made.parts for shard in part.shards(400_000))
    assert 0 < most <= 2 * largest and most < 1.5 * shard


def test_the_command(bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sources = ["--video", str(bases.video), "--lm", str(bases.lm), "--audio-vae", str(bases.audio_vae)]
    command = ["convert", *sources, "-o", str(out), "--height", "64", "--width", "64"]
    assert main([*command, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "blocks.*.audio_ffn.up.weight <- blocks.*.ffn.net.0.proj.weight" in table and "total" in table
    assert not out.exists()
    assert main([*command, "--json", "--dry-run"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert sum(row["how"] == REPLICATED for row in rows) == 4 * CONFIG.dit.layers
    assert main([*command, "--dtype", "int8"]) == 2
    assert main(["convert", *sources[:4], "--audio-vae", str(tmp_path / "no"), "-o", str(out), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "--audio-vae: there is no folder" in error and "Traceback" not in error


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def refused(bases: Bases, **changes) -> str:
    with pytest.raises(StreamCharError) as caught:
        if "lm" in changes:  # the other sources need not be looked at each time
            orchestrator(Path(changes["lm"]), CONFIG.audio.latent_channels, request(bases))
        else:
            plan(request(bases, **changes))
    return str(caught.value)


def test_bad_sources_are_refused(bases: Bases, tmp_path: Path) -> None:
    lm = copy_of(bases.lm, tmp_path / "lm")
    shard = sorted(lm.glob("*.safetensors"))[0]
    whole = load_file(shard)
    name = next(iter(whole))
    save_file({**whole, name: whole[name][..., :-1].contiguous()}, shard)
    assert "has shape" in refused(bases, lm=str(lm))
    save_file({**whole, "model.surprise.weight": torch.zeros(2)}, shard)
    assert "model.surprise.weight has no place in the orchestrator" in refused(bases, lm=str(lm))
    save_file({k: v for k, v in whole.items() if k != name}, shard)
    assert "lacks 1 weights of the orchestrator" in refused(bases, lm=str(lm))
    shard.write_bytes(shard.read_bytes()[:-5])
    assert "not a complete safetensors file" in refused(bases, lm=str(lm))
    shard.unlink()
    assert "1 are missing" in refused(bases, lm=str(lm))
    for path in lm.glob("*.safetensors*"):
        path.unlink()
    (lm / "pytorch_model.bin").write_bytes(b"")
    assert "pickles" in refused(bases, lm=str(lm))
    assert "expected qwen2" in refused(bases, lm=str(bases.video / "text_encoder"))
    assert "expected AutoencoderOobleck" in refused(bases, audio_vae=str(bases.video / "vae"))
    assert "expected config.json" in refused(bases, lm=str(tmp_path))
    assert "got the file" in refused(bases, video=str(bases.lm / "config.json"))
    with pytest.raises(ConfigError, match="multiple of 32"):
        plan(request(bases, height=80))


def test_what_is_known_to_be_useless_is_ignored_with_a_reason(bases: Bases, tmp_path: Path) -> None:
    lm = copy_of(bases.lm, tmp_path / "lm")
    index = json.loads((lm / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = lm / next(iter(index["weight_map"].values()))
    save_file({**load_file(shard), "lm_head.weight": torch.zeros(320, 32)}, shard)
    rows = orchestrator(lm, CONFIG.audio.latent_channels, request(bases))[0].rows
    assert [(row.source, "logits" in row.reason) for row in rows if row.how == IGNORED] == [("lm_head.weight", True)]
