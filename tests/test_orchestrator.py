"""The orchestrator: training == inference, its backbone == transformers' Qwen2, and who sees what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from streamchar.config.presets import tiny
from streamchar.errors import ConfigError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.packing import TAIL, SpeechBatch, training_mask, training_positions

CONFIG = tiny().orchestrator
CHUNKS = 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CHANNELS = CONFIG.audio_channels


def build(**changes):
    torch.manual_seed(0)
    model = Orchestrator(replace(CONFIG, **changes)).eval()
    with torch.no_grad():  # nothing zero or one: every path must show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def orchestrator():
    return build()


def speech_batch(reference=(7, 12), text=(50, 80), chunks=CHUNKS, seed=1):
    """Two streams of different text and reference lengths; what is behind them is noise, not zeros."""
    draw = torch.Generator().manual_seed(seed)
    b = len(text)
    return SpeechBatch(
        reference=torch.randn(b, max(reference), CHANNELS, generator=draw),
        reference_length=torch.tensor(reference),
        text=torch.randint(0, CONFIG.vocab_size, (b, max(text)), generator=draw),
        text_length=torch.tensor(text),
        history=torch.randn(b, chunks * TAIL, CHANNELS, generator=draw),
        noisy=torch.randn(b, chunks, TAIL, CHANNELS, generator=draw),
        sigma=torch.rand(b, chunks, generator=draw),
        cursor=torch.tensor([[0.0, 8.25, 15.5, 23.0], [3.0, 20.0, 41.7, 60.0]])[:b, :chunks],
    )


def alone(batch, i):
    """Stream i of a batch, without padding."""
    r, n = int(batch.reference_length[i]), int(batch.text_length[i])
    one = slice(i, i + 1)
    return replace(
        batch, reference=batch.reference[one, :r], reference_length=batch.reference_length[one],
        text=batch.text[one, :n], text_length=batch.text_length[one], history=batch.history[one],
        noisy=batch.noisy[one], sigma=batch.sigma[one], cursor=batch.cursor[one],
    )


def streamed(model, batch, i):
    """Stream i as inference runs it: prefix, then a plan and an extension a chunk."""
    one = alone(batch, i)
    prefix = model.prefix(one.reference if one.reference.shape[1] else None, one.text, None)
    for k in range(one.chunks):
        yield model.plan(prefix, one.noisy[:, k], one.sigma[:, k], one.cursor[:, k])
        prefix = model.extend(prefix, one.history[:, k * TAIL : (k + 1) * TAIL])


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"cursor_prior": False}, {"pointer_readout": False}, {"look_ahead": 4}, {"layers": 1}]
)
def test_cached_equals_uncached(changes):
    """Training's one pass over all chunks, padded, against a stream's prefix, plans and extensions."""
    model, batch = build(**changes), speech_batch()
    together = model(batch)
    for i in range(2):
        for k, plan in enumerate(streamed(model, batch, i)):
            at = i * CHUNKS + k
            torch.testing.assert_close(plan.c_a[0], together.c_a[at], **CLOSE)
            for name in ("position", "end", "readout"):
                got, expected = getattr(plan.progress, name)[0], getattr(together.progress, name)[at]
                torch.testing.assert_close(got, expected, **CLOSE)
            n = plan.progress.attention.shape[-1]
            got, expected = plan.progress.attention[0], together.progress.attention[at, :, :n]
            torch.testing.assert_close(got.exp(), expected.exp(), **CLOSE)


@torch.no_grad()
def test_cached_equals_uncached_without_a_reference(orchestrator):
    """A dropped reference in training is a prefix without one."""
    batch = speech_batch(reference=(0, 12))
    together = orchestrator(batch)
    for k, plan in enumerate(streamed(orchestrator, batch, 0)):
        torch.testing.assert_close(plan.c_a[0], together.c_a[k], **CLOSE)


@torch.no_grad()
def test_a_prefix_extended_equals_a_prefix_at_once(orchestrator):
    one = alone(speech_batch(), 0)
    extended = orchestrator.prefix(one.reference, one.text, None)
    for k in range(CHUNKS):
        extended = orchestrator.extend(extended, one.history[:, k * TAIL : (k + 1) * TAIL])
    at_once = orchestrator.prefix(one.reference, one.text, one.history)
    assert extended.length == at_once.length
    for got, expected in zip((*extended.keys, *extended.values), (*at_once.keys, *at_once.values), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_planning_leaves_its_prefix_alone(orchestrator):
    """A prefix is a value: steps of a chunk, and branches of a stream, share it."""
    one = alone(speech_batch(), 0)
    prefix = orchestrator.prefix(one.reference, one.text, one.history)
    before = [t.clone() for t in (*prefix.keys, *prefix.values)]
    first = orchestrator.plan(prefix, one.noisy[:, 0], one.sigma[:, 0], one.cursor[:, 0]).c_a
    orchestrator.plan(prefix, one.noisy[:, 1], one.sigma[:, 1], one.cursor[:, 1])
    orchestrator.extend(prefix, one.history[:, :TAIL])
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))
    assert torch.equal(first, orchestrator.plan(prefix, one.noisy[:, 0], one.sigma[:, 0], one.cursor[:, 0]).c_a)


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one(orchestrator):
    batch = speech_batch()
    both = orchestrator(batch)
    for i in range(2):
        single = orchestrator(alone(batch, i))
        part = slice(i * CHUNKS, (i + 1) * CHUNKS)
        torch.testing.assert_close(single.c_a, both.c_a[part], **CLOSE)
        torch.testing.assert_close(single.progress.end, both.progress.end[part], **CLOSE)


@torch.no_grad()
def test_sampling_steps_do_not_touch_the_prefix(orchestrator):
    """Keys do not depend on sigma: every step's plan equals the one of a fresh prefix."""
    one = alone(speech_batch(), 1)
    prefix = orchestrator.prefix(one.reference, one.text, one.history)
    for sigma in (1.0, 0.5, 0.0):
        level = torch.tensor([sigma])
        fresh = orchestrator.prefix(one.reference, one.text, one.history)
        got = orchestrator.plan(prefix, one.noisy[:, 0], level, one.cursor[:, 0]).c_a
        assert torch.equal(got, orchestrator.plan(fresh, one.noisy[:, 0], level, one.cursor[:, 0]).c_a)


# -- parity ---------------------------------------------------------------------------------------


def reference_qwen(model):
    """transformers' own model of the same sizes and weights; only its documented settings are used."""
    c = model.config
    qwen = Qwen2Model(
        Qwen2Config(
            vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.ffn, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, attn_implementation="eager",
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()
    qwen.load_state_dict(model.backbone.state_dict())
    return qwen


class Embeddings:
    """Everything that a model hands to its backbone, call by call."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __enter__(self):
        def keep(module, args, kwargs):
            self.calls.append(kwargs["inputs_embeds"])

        self.hook = self.model.backbone.register_forward_pre_hook(keep, with_kwargs=True)
        return self.calls

    def __exit__(self, *_):
        self.hook.remove()


@torch.no_grad()
def test_inference_equals_qwen_on_the_plain_sequence():
    """No cache, no mask, no positions on the reference side: one causal sequence (eq. 3)."""
    model = build(pointer_readout=False, look_ahead=1000)  # c_a is then the last hidden state itself
    qwen, batch = reference_qwen(model), speech_batch()
    with Embeddings(model) as calls:
        plans = list(streamed(model, batch, 1))
    prefix, tails, history = calls[0], calls[1::2], calls[2::2]
    for k, plan in enumerate(plans):
        plain = torch.cat([prefix, *history[:k], tails[k]], dim=1)
        hidden = qwen(inputs_embeds=plain).last_hidden_state
        torch.testing.assert_close(plan.c_a, hidden[:, -TAIL:], **CLOSE)


@torch.no_grad()
def test_training_equals_qwen_on_each_chunks_plain_sequence():
    model = build(pointer_readout=False, look_ahead=1000)
    qwen, batch = reference_qwen(model), speech_batch()
    with Embeddings(model) as calls:
        plan = model(batch)
    (packed,) = calls
    r, n = batch.reference.shape[1], batch.text.shape[1]
    for i in range(2):
        ref, txt = packed[i, : batch.reference_length[i]], packed[i, r : r + batch.text_length[i]]
        history, tails = packed[i, r + n :].split(CHUNKS * TAIL)
        for k in range(CHUNKS):
            plain = torch.cat([ref, txt, history[: k * TAIL], tails[k * TAIL : (k + 1) * TAIL]])
            hidden = qwen(inputs_embeds=plain[None]).last_hidden_state
            torch.testing.assert_close(plan.c_a[i * CHUNKS + k], hidden[0, -TAIL:], **CLOSE)


# -- the mask ---------------------------------------------------------------------------------------


def reach(model, batch, chunk, *, of="c_a"):
    """Which text tokens, history latents and noisy latents of stream 0 chunk `chunk` depends on."""
    history, noisy = batch.history.clone().requires_grad_(), batch.noisy.clone().requires_grad_()
    embedded = []

    def keep(module, args, output):
        output.retain_grad()
        embedded.append(output)

    hook = model.backbone.embed_tokens.register_forward_hook(keep)
    plan = model(replace(batch, history=history, noisy=noisy))
    hook.remove()
    model.zero_grad()
    value = plan.c_a if of == "c_a" else plan.progress.end
    (value[chunk] * torch.randn_like(value[chunk])).sum().backward()
    grads = (embedded[0].grad, history.grad, noisy.grad.flatten(1, 2))
    for grad in grads:  # the other stream of the batch is out of reach
        assert grad is not None and not grad[1:].any()
    return tuple(grad[0].abs().amax(-1) > 0 for grad in grads)


@pytest.mark.parametrize("of", ["c_a", "end"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_tail_sees_the_history_before_its_chunk_and_itself(orchestrator, chunk, of):
    _, history, noisy = reach(orchestrator, speech_batch(), chunk, of=of)
    before = torch.arange(CHUNKS * TAIL) < chunk * TAIL
    own = torch.arange(CHUNKS * TAIL) // TAIL == chunk
    assert torch.equal(history, before)
    assert torch.equal(noisy, own)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_tail_sees_text_up_to_the_look_ahead(chunk):
    """One layer, so that nothing comes by way of the history. The token features reach two tokens further
    by their convolution; that is as far as it goes, and inference does the same (cached == uncached)."""
    model, batch = build(layers=1, look_ahead=12), speech_batch()
    text, _, _ = reach(model, batch, chunk)
    limit = int(torch.ceil(batch.cursor[0, chunk])) + 12
    assert text[:limit].all()
    assert not text[limit + 2 :].any()


def test_the_first_tail_sees_no_text_beyond_the_look_ahead():
    """Any depth: a stream's first chunk has no history that could have read ahead."""
    model, batch = build(look_ahead=12), speech_batch()
    text, _, _ = reach(model, batch, 0)
    assert text[:12].all()
    assert not text[14:].any()


def test_padding_is_out_of_reach(orchestrator):
    batch = speech_batch()
    reference = batch.reference.clone().requires_grad_()
    plan = orchestrator(replace(batch, reference=reference))
    plan.c_a.square().sum().backward()
    assert reference.grad is not None
    for i, length in enumerate(batch.reference_length):
        assert reference.grad[i, :length].any() and not reference.grad[i, length:].any()
    text, _, _ = reach(orchestrator, batch, CHUNKS - 1)
    assert not text[int(batch.text_length[0]) :].any()


def test_the_mask_is_the_table():
    """Written out row by row for a small window: reference 1 of 2, text 2 of 3, cursors 0 and 1."""
    small = replace(
        speech_batch(reference=(1, 2), text=(2, 3), chunks=2), cursor=torch.tensor([[0.0, 0.5], [0.0, 1.0]])
    )
    mask = training_mask(small, look_ahead=1)[0, 0]
    r, n, t = 2, 3, 2 * TAIL
    seen = {row: mask[row].nonzero()[:, 0].tolist() for row in range(len(mask))}
    assert seen[0] == [0]
    assert seen[r] == [0, r] and seen[r + 1] == [0, r, r + 1]
    history = r + n
    assert seen[history + 4] == [0, r, r + 1, *range(history, history + 5)]
    first = history + t
    assert seen[first + 2] == [0, r, *range(first, first + 3)]
    second = first + TAIL
    assert seen[second] == [0, r, r + 1, *range(history, history + TAIL), second]


def test_positions_are_those_of_inference():
    batch = speech_batch()
    positions = training_positions(batch)
    r, n = batch.reference.shape[1], batch.text.shape[1]
    for i in range(2):
        ref, txt = int(batch.reference_length[i]), int(batch.text_length[i])
        assert positions[i, :ref].tolist() == list(range(ref))
        assert positions[i, r : r + txt].tolist() == list(range(ref, ref + txt))
        start = ref + txt
        history, tails = positions[i, r + n :].split(CHUNKS * TAIL)
        assert history.tolist() == list(range(start, start + CHUNKS * TAIL))
        for k in range(CHUNKS):  # behind the k chunks that were spoken before
            tail = tails[k * TAIL : (k + 1) * TAIL].tolist()
            assert tail == list(range(start + k * TAIL, start + (k + 1) * TAIL))


def test_every_parameter_learns(orchestrator):
    orchestrator.zero_grad()
    plan = orchestrator(speech_batch())
    loss = plan.c_a.square().mean() + plan.progress.end.square().mean() + plan.progress.attention.exp().square().mean()
    loss.backward()
    unused = [name for name, p in orchestrator.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    orchestrator.zero_grad()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="orchestrator width must be a multiple of 4 .*, got 30; nearest: 28 or 32"):
        replace(CONFIG, width=30)
    with pytest.raises(ConfigError, match="orchestrator heads must be a multiple of 3"):
        replace(CONFIG, kv_heads=3)
