"""Fast equals plain: fused projections, replayed steps, caches, and how often each thing is computed."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from dataclasses import replace
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from streams import LONG, SAMPLER, SHORT, equal, paced, play, start, tiny_models
from torch import nn

from streamchar.dit.block import Block
from streamchar.errors import ConfigError
from streamchar.nn.attention import Attention
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.graphs import SLOTS, run_plainly, tensors_in
from streamchar.stream.session import Session
from streamchar.stream.speed import Speed, _quantise, speed_up, uncached

CLOSE = 1e-5
BFLOAT16 = 3e-2
PLAIN = Speed(fuse_qkv=False)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def away(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for (a, after_a), (b, after_b) in zip(one, other, strict=True):
        assert max(away(a.video, b.video), away(a.audio, b.audio)) < CLOSE, a.index
        assert abs(after_a.cursor - after_b.cursor) < 1e-3
        assert [w.text for w in a.words] == [w.text for w in b.words]


# -- one matrix for three --------------------------------------------------------------------------


def test_fused_projections_are_the_same_and_stay_parameters():
    torch.manual_seed(0)
    plain = Attention(24, 2, 1e-6)
    fused = copy.deepcopy(plain)
    fused.fuse()
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        (query, keys), (query_f, keys_f) = (a.queries_keys_values(x) for a in (plain, fused))
        alone = fused.keys_values(x)
    assert max(away(query_f, query), away(keys_f.key, keys.key), away(keys_f.value, keys.value)) < CLOSE
    assert max(away(alone.key, keys.key), away(alone.value, keys.value)) < CLOSE
    assert list(fused.state_dict()) == list(plain.state_dict())
    with torch.no_grad():  # a change of a parameter is a change of the matrix
        fused.to_k.weight.mul_(2)
        assert away(fused.queries_keys_values(x)[1].value, keys.value) < CLOSE
        fused.to_v.weight.zero_()
        fused.to_v.bias.zero_()
        assert not fused.queries_keys_values(x)[1].value.any()
    moved = copy.deepcopy(fused).double()
    fused.double()
    with torch.no_grad():
        fused.to_q.weight.add_(1)
        assert not torch.equal(fused.queries_keys_values(x.double())[0], moved.queries_keys_values(x.double())[0])
    fused.queries_keys_values(x.double())[0].sum().backward()
    assert fused.to_q.weight.grad is not None and fused.to_q.weight.grad.any()


def test_merged_projections_are_the_same():
    torch.manual_seed(0)
    plain = Attention(24, 2, 1e-6)
    merged = copy.deepcopy(plain)
    merged.merge()
    x = torch.randn(1, 5, 24)
    query, keys = plain.queries_keys_values(x)
    query_m, keys_m = merged.queries_keys_values(x)
    assert max(away(query_m, query), away(keys_m.key, keys.key), away(merged.keys_values(x).value, keys.value)) < CLOSE


# -- the stream through speed_up -------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_replayed_streams_equal_plain_ones(models, guidance):
    """Buffers, padding and slots of the graphs, on the CPU, with the recorder that records nothing."""
    fast = speed_up(copy.deepcopy(models), Speed(cuda_graphs=True, channels_last_decode=True), record=run_plainly)
    state = start(models, guidance=guidance)
    with paced(models, 6.0), paced(fast, 6.0):
        plain, replayed = list(play(models, state, 3)), list(play(fast, state, 3))
    same(replayed, plain)
    assert fast.orchestrator._tapes.recorded == SLOTS  # three chunks' keys, guided or not
    expected = models.video_codec.decode(plain[0][0].video)
    for _ in range(2):
        assert (fast.video_codec.decode(plain[0][0].video) - expected).abs().max() < CLOSE


def test_streams_taking_turns_do_not_read_each_others_keys(models):
    fast = speed_up(copy.deepcopy(models), Speed(cuda_graphs=True), record=run_plainly)
    states = [start(models, seed=1), start(models, LONG[:40], seed=2), start(models, seed=3, prompt="sad")]
    memories = [None] * 3
    with torch.inference_mode():
        for _ in range(2):
            for i, state in enumerate(states):
                transcript = models.tokenizer(state.text)
                plain = generate_chunk(models, state, SAMPLER, transcript=transcript, memory=memories[i])
                made = generate_chunk(fast, state, SAMPLER, transcript=transcript, memory=memories[i])
                same([made], [plain])
                states[i], memories[i] = plain[1], plain[0].memory


def test_speed_keeps_gradients_and_checkpoints(models, tmp_path):
    fast = speed_up(copy.deepcopy(models), Speed(cuda_graphs=True), record=run_plainly)
    state = start(models)
    with torch.enable_grad():
        made, _ = generate_chunk(fast, state, SAMPLER, transcript=models.tokenizer(SHORT))
        made.video.square().mean().backward()
    assert all(p.grad is not None for p in fast.dit.blocks[0].attn1.parameters())
    for name in ("dit", "orchestrator"):
        plain, sped = getattr(models, name), getattr(fast, name)
        assert equal(tuple(sped.state_dict().values()), tuple(plain.state_dict().values()))
        sped.save(tmp_path / name)
        assert f'"class": "{type(plain).__name__}"' in (tmp_path / name / "config.json").read_text()


def test_in_bfloat16_fast_is_as_near_to_float32_as_plain(models):
    """Rounding to 8 bits happens at the same places: what is added in another order is added in float32."""
    plain, state = copy.deepcopy(models), start(models)
    for part in (plain.dit, plain.orchestrator):
        part.to(torch.bfloat16)
    fast = speed_up(copy.deepcopy(plain), Speed(cuda_graphs=True), record=run_plainly)
    with paced(models, 6.0), paced(plain, 6.0), paced(fast, 6.0):
        exact, rounded, sped = (list(play(each, state, 2))[-1][0].video for each in (models, plain, fast))
    assert 0 < away(rounded, exact) < BFLOAT16
    assert away(sped, rounded) < BFLOAT16


def test_a_session_plays_fast_models(models):
    fast = speed_up(copy.deepcopy(models), Speed())
    state = start(models, SHORT[:9])
    for a, b in zip(Session(models, state), Session(fast, state), strict=True):
        assert (a.frames.int() - b.frames.int()).abs().max() <= 1
        assert (a.samples - b.samples).abs().max() < 1e-3
        assert a.words == b.words


def test_without_caches_the_stream_is_the_same(models):
    state = start(models)
    with paced(models, 6.0):
        same(play(uncached(models), state, 3), play(models, state, 3))


def test_compiled_blocks_share_one_code_and_few_graphs(models, monkeypatch):
    """Traced for real, run without code generation, which takes minutes here: one whole graph for each form of call,
    whatever the number of blocks and of chunks."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Block, "compile", lambda self, **how: nn.Module.compile(self, backend=keep, **how))
    fast = speed_up(copy.deepcopy(models), Speed(compile=True))
    state = start(models)
    with paced(models, 6.0), paced(fast, 6.0):
        plain = list(play(models, state, 3))
        same(play(fast, state, 3), plain)
        forms = len(graphs)
        same(play(fast, state, 3), plain)
    assert 0 < forms <= 8, "torch gives up after 8 forms of one function"
    assert len(graphs) == forms


# -- what is computed how often --------------------------------------------------------------------


def test_each_condition_is_computed_once(models):
    """Prompt, reference and sink once a stream, motion once a chunk, noisy tokens once a step; and a chunk of a long
    stream does what chunk 3 does."""
    per_frame = models.config.grid[0] * models.config.grid[1]
    tokens, texts, encoded = Counter(), Counter(), Counter()

    def count_block(_, args):
        for x, span in zip(args[0], args[1].spans, strict=True):
            tokens["clean" if span.clean else "noisy", x.shape[1]] += 1

    hooks = [
        models.dit.blocks[0].register_forward_pre_hook(count_block),
        models.dit.blocks[0].attn2.to_k.register_forward_pre_hook(lambda *_: texts.update(["keys"])),
    ]
    encode = models.prompt_encoder.encode
    with (
        patch.object(models.prompt_encoder, "encode", lambda prompts: encoded.update(prompts) or encode(prompts)),
        paced(models, 5.0),
    ):
        state, chunks, sizes, prefixes = start(models, LONG), 14, [], []
        for made, _ in play(models, state, chunks):
            sizes.append(sum(tensor.numel() for tensor in tensors_in(made.memory.anchor)))
            prefixes.append(made.memory.prefix.length)
    for hook in hooks:
        hook.remove()
    assert encoded == {"happy": 1} and texts == {"keys": 1}
    steps, noisy = SAMPLER.schedule.steps, 9 * per_frame + 33
    assert tokens == {
        ("clean", per_frame): 1, ("clean", 9 * per_frame): 1 + (chunks - 1), ("noisy", noisy): steps * chunks,
    }  # fmt: skip
    assert len(set(sizes[1:])) == 1  # the anchor stays as large as it is from chunk 2 on
    assert max(prefixes) == prefixes[9 + 1]  # and the orchestrator's window never outgrows its first full one


# -- errors ----------------------------------------------------------------------------------------


def test_what_is_not_there_is_said_so(models, monkeypatch):
    with pytest.raises(ConfigError, match="cuda_graphs needs a model on a CUDA device"):
        speed_up(models, replace(PLAIN, cuda_graphs=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torchao, which is not installed"):
        speed_up(models, replace(PLAIN, fp8=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="compute capability 8.9 or above"):
        speed_up(models, replace(PLAIN, fp8=True))


def test_fp8_takes_the_large_matrices_and_nothing_else(models, monkeypatch):
    """With a stand-in for torchao, which would need a GPU: which layers it is handed, and that the stream goes on."""
    taken = []
    stand_in = ModuleType("torchao.quantization")
    stand_in.Float8DynamicActivationFloat8WeightConfig = lambda granularity: granularity
    stand_in.PerRow = lambda: "rows"
    stand_in.quantize_ = lambda layers, config: taken.append((list(layers), config))
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", stand_in)
    fast = copy.deepcopy(models)
    _quantise(fast.dit)
    ((layers, config),) = taken
    assert config == "rows" and len(layers) == 8 * len(fast.dit.blocks)
    in_blocks = {p for block in fast.dit.blocks for name, p in block.named_parameters() if p.ndim == 2}
    skipped = in_blocks - {layer.weight for layer in layers}
    assert len(skipped) == 2 * len(fast.dit.blocks)  # keys and values of the text: once a stream
    same(play(fast, start(models), 1), play(models, start(models), 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_wait_a_chunk_on_a_gpu():
    models = tiny_models()
    for part in models.components().values():
        part.to("cuda")
    fast = speed_up(models, Speed(cuda_graphs=True))
    state = start(models)
    state = replace(state, still=state.still.cuda(), voice=state.voice.cuda())
    transcript = models.tokenizer(state.text)
    with torch.inference_mode():
        for _ in range(3):
            made, state = generate_chunk(fast, state, SAMPLER, transcript=transcript)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchroniz") as waits:
                generate_chunk(fast, state, SAMPLER, transcript=transcript, memory=made.memory)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
