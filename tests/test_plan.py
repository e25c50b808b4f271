"""Plans: counts against built models, estimates against torch's own account, and what must hold of any plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from streamchar.bench.footprint import CARDS, CHOICES, Options, footprint, stream_bytes
from streamchar.bench.inventory import count, inventory
from streamchar.bench.scale import Assumptions, dit_kept, estimate, lm_kept, stages
from streamchar.cli.main import main
from streamchar.config.presets import paper, tiny
from streamchar.dit.cache import Conditions
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT
from streamchar.orchestrator.lm import Orchestrator
from streamchar.stream.models import fresh


@pytest.fixture(scope="module")
def paper_parts():
    return inventory(paper())


def test_counts_are_those_of_the_built_model() -> None:
    parts, built = inventory(tiny()), fresh(tiny())
    assert parts.orchestrator == count(built.orchestrator) and parts.dit == count(built.dit)
    assert parts.dit_block * tiny().dit.layers < parts.dit
    for name in ("video_codec", "audio_codec", "prompt_encoder"):
        assert getattr(parts, name) == count(built.components()[name]), name


def test_the_paper_preset_has_its_components_sizes(paper_parts) -> None:
    assert 3.0e9 < paper_parts.orchestrator < 3.2e9  # Qwen2.5-3B and what is new
    assert 7.4e9 < paper_parts.dit < 8.0e9  # Wan's five billion and a second expert of 2.6
    assert 5.6e9 < paper_parts.prompt_encoder < 5.8e9  # umT5-XXL's encoder
    assert paper_parts.dit_linears > 0.9 * paper_parts.dit_block * paper().dit.layers


def test_options_save_memory_and_larger_pictures_cost_it(paper_parts) -> None:
    config = paper()
    needs = {options.name: footprint(config, paper_parts, options) for options in CHOICES}
    plain, offloaded = needs["bf16"], needs["bf16, text encoder offloaded"]
    assert plain.total - offloaded.total > 10e9  # umT5-XXL in bfloat16
    assert needs["fp8"].weights < plain.weights - 6e9
    assert needs["bf16"].streams(CARDS["24 GB"]) == 0 < needs["bf16"].streams(CARDS["141 GB"])
    large = replace(config, height=704, width=1280)
    assert footprint(large, paper_parts, Options(name="x")).total > plain.total


def test_a_streams_caches_are_counted_to_the_byte() -> None:
    config = replace(tiny(), prompt=replace(tiny().prompt, max_tokens=8))
    dit = JointDiT(config.dit).to(torch.bfloat16).eval()
    latents = torch.randn(1, config.dit.video_channels, 9, *config.latent_size)
    text = torch.randn(1, 8, config.dit.text_width)
    still, whole = (Layout(grid=config.grid, ref=1, sink=9, motion=n) for n in (0, 9))
    with torch.no_grad():
        anchor = dit.encode_conditions(still, Conditions(text=text, ref=latents[:, :, :1], sink=latents))
        cache = dit.encode_conditions(
            whole, Conditions(text=text, ref=latents[:, :, :1], sink=latents, motion=latents), previous=anchor
        )

    def nbytes(*found) -> int:
        return sum(pair.key.nbytes + pair.value.nbytes for pair in found if pair is not None)

    held = sum(nbytes(layer.self_attention) for layer in (*anchor.layers, *cache.layers))
    held += sum(nbytes(layer.text) for layer in cache.layers)
    lm = config.orchestrator
    prefix = 4 * 2 * lm.kv_heads * lm.head_width * lm.layers * (lm.max_reference + lm.max_transcript + 11 * 33)
    state = 4 * 19 * config.dit.video_channels * config.latent_size[0] * config.latent_size[1]
    assert stream_bytes(config) == held + prefix + state


def kept_by(function, weights) -> int:
    """Bytes of what `function` keeps for its backward pass, each storage once, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in weights}
    seen: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = function()
    assert kept is not None
    return sum(seen.values())


def test_kept_activations_of_a_dit_block() -> None:
    config = replace(tiny().dit, width=192, heads=2, ffn=896, layers=1)
    per_layers = []
    for layers in (1, 3):
        model = JointDiT(replace(config, layers=layers)).to(torch.bfloat16)
        video, audio = torch.randn(1, 8, 9, 8, 8).bfloat16(), torch.randn(1, 33, 64).bfloat16()
        conditions = Conditions(text=torch.randn(1, 4, config.text_width), ref=video[:, :, :1], sink=video)
        layout = Layout(grid=(4, 4), ref=1, sink=9)
        c_a = torch.randn(1, 33, config.condition_width).bfloat16()
        per_layers.append(kept_by(
            lambda m=model, v=video, a=audio, c=c_a, at=layout, of=conditions: m(v, a, c, torch.ones(1), at, of),
            model.parameters(),
        ))  # fmt: skip
    measured = (per_layers[1] - per_layers[0]) / 2
    assert 0.9 < dit_kept(config, layout.tokens) / measured < 1.1, measured / layout.tokens


def test_kept_activations_of_a_language_models_layer() -> None:
    config = replace(tiny().orchestrator, width=128, ffn=688, heads=4, kv_heads=1)
    per_layers = []
    for layers in (1, 3):
        backbone = Orchestrator(replace(config, layers=layers)).backbone.to(torch.bfloat16)
        x = torch.randn(1, 200, config.width).bfloat16().requires_grad_()
        per_layers.append(kept_by(lambda m=backbone, x=x: m(inputs_embeds=x, use_cache=False), backbone.parameters()))
    measured = (per_layers[1] - per_layers[0]) / 2
    assert 0.9 < lm_kept(config, 200) / measured < 1.1, measured / 200


def test_training_plan(paper_parts) -> None:
    config = paper()
    eight = [estimate(s, Assumptions(gpus=8)) for s in stages(config, paper_parts, Assumptions(gpus=8))]
    more = [estimate(s, Assumptions(gpus=64)) for s in stages(config, paper_parts, Assumptions(gpus=64))]
    assert [one.stage.name for one in eight] == ["orchestrator", "joint", "distill", "rollout"]
    for few, many in zip(eight, more, strict=True):
        assert many.states_gib == pytest.approx(few.states_gib / 8)
        assert few.checkpointed_gib < few.kept_gib / 3
        assert few.micro_batch * few.accumulate == few.stage.batch // 8 or few.micro_batch == 0
        assert few.micro_batch == 0 or few.total_gib <= 79
    assert eight[1].stage.trained > 10e9  # the whole model is trained in stage 2


@pytest.mark.parametrize(
    "arguments", [["info", "--model", "paper-tiny", "--plan"], ["train", "plan", "--preset", "paper-tiny"]]
)
def test_commands(arguments, capsys) -> None:
    assert main(arguments) == 0
    assert "paper-tiny" in capsys.readouterr().out


def test_json_and_bad_input(capsys) -> None:
    assert main(["info", "--model", "tiny", "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == inventory(tiny()).total and len(plan["plans"]) == len(CHOICES)
    assert main(["train", "plan", "--preset", "tiny", "--gpus", "0"]) == 2
    assert "--gpus must be above 0" in capsys.readouterr().err
    assert main(["info", "--model", "nowhere", "--plan"]) == 2
    assert "one of" in capsys.readouterr().err
