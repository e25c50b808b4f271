"""The published sizes, key by key: files with full-size headers and holes for weights cost no disk and no memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from bases import Bases, qwen_model, qwen_tokenizer, wan_transformer
from diffusers import AutoencoderOobleck
from transformers import UMT5Config, UMT5EncoderModel

from streamchar.cli.convert import show
from streamchar.codecs.wan import wan_vae
from streamchar.config.presets import paper
from streamchar.convert.conversion import Request, plan
from streamchar.convert.table import NEW, REPLICATED, USED, ZERO, Plan
from streamchar.stream.shards import Entry, header, plan_shards, write_index
from streamchar.stream.stand_in import byte_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.skipif(os.name != "posix", reason="needs files with holes"),
]


def write_holes(module: torch.nn.Module, folder: Path, stem: str, dtype: torch.dtype, skip: tuple[str, ...] = ()):
    """The module's checkpoint, with every byte of its weights a hole."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items() if name not in skip}
    entries = [Entry(name=name, shape=shape, dtype=dtype) for name, shape in shapes.items()]
    shards = plan_shards(entries, stem)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.write(header(shard.entries))
            file.truncate(shard.bytes)
    write_index(folder, shards, stem)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    root, config = tmp_path_factory.mktemp("full"), paper()
    bases = Bases(video=root / "wan", lm=root / "qwen", audio_vae=root / "audio")
    with torch.device("meta"):
        transformer, language, vae = wan_transformer(config.dit), qwen_model(config.orchestrator), wan_vae(config.video)
        audio, heads = AutoencoderOobleck(), config.prompt.heads
        text = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.prompt.vocab_size, d_model=config.prompt.width, d_kv=64, d_ff=config.prompt.ffn,
                num_layers=config.prompt.layers, num_heads=heads,
            )
        )  # fmt: skip
    stem = "diffusion_pytorch_model"
    for module, folder in ((transformer, "transformer"), (vae, "vae")):
        module.save_config(bases.video / folder)
        write_holes(module, bases.video / folder, stem, torch.float32)
    audio.save_config(bases.audio_vae)
    write_holes(audio, bases.audio_vae, stem, torch.float32)
    text.config.save_pretrained(bases.video / "text_encoder")
    write_holes(text, bases.video / "text_encoder", "model", torch.bfloat16, ("encoder.embed_tokens.weight",))
    byte_tokenizer(ends=True).save_pretrained(bases.video / "tokenizer")
    language.config.save_pretrained(bases.lm)
    write_holes(language, bases.lm, "model", torch.bfloat16, ("lm_head.weight",))
    qwen_tokenizer().save_pretrained(bases.lm)
    return bases


@pytest.fixture(scope="module")
def made(bases: Bases) -> Plan:
    return plan(Request(**bases.options()))


def parameters(made: Plan, component: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for part in made.parts:
        for row in part.rows if part.component == component else ():
            sums[row.how] = sums.get(row.how, 0) + row.parameters
    return sums


def test_the_published_checkpoints_become_the_paper_preset(made: Plan) -> None:
    expected = paper()
    assert made.config.dit == expected.dit
    assert made.config.orchestrator == expected.orchestrator
    assert made.config.video == expected.video and made.config.prompt == expected.prompt
    assert made.config.audio == expected.audio


def test_parameters_by_what_becomes_of_them(made: Plan) -> None:
    config = paper().dit
    dit = parameters(made, "dit")
    assert dit[USED] == 4_999_787_712
    assert dit[REPLICATED] == config.layers * (2 * config.width * config.ffn + config.width + config.ffn)
    assert dit[ZERO] == 2 + config.width * 48 + 48 and dit[NEW] > 0
    assert parameters(made, "orchestrator") == {USED: 3_085_938_688, NEW: 44_625_463}
    assert parameters(made, "prompt_encoder") == {USED: 5_680_910_336}
    assert parameters(made, "video_codec") == {USED: 704_688_668}
    assert any("44100" in note for note in made.notes) and any("stereo" in note for note in made.notes)


def test_the_table_of_a_dry_run(made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show(made, keys=False)
    lines = capsys.readouterr().out.splitlines()
    ffn = next(line for line in lines if "blocks.*.audio_ffn.up.weight <- blocks.*.ffn.net.0.proj.weight" in line)
    assert ffn.split()[:4] == ["dit", "replicated", "30", "1,321,205,760"]
    assert lines[-1].split() == ["total", f"{made.bytes() / 1e9:.3f}", "GB"] and 36e9 < made.bytes() < 38e9
