"""A stream's state on disk: whole, to the bit, or refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamchar.codecs.audio import DecoderState
from streamchar.errors import StateError
from streamchar.stream.state import StreamState, chunk_generator


def new(**changes):
    state = StreamState(
        model="tiny", text="héllo — “there”\n", prompt="", seed=7, steps=4, still=torch.randn(1, 8, 1, 4, 4)
    )
    return replace(state, **changes)


def running():
    """A state in mid-stream, with everything set; slices and transposes, as the stream leaves them."""
    torch.manual_seed(0)
    decoder = DecoderState(
        left=(torch.randn(1, 3, 4), torch.randn(1, 6, 4)), blocks=396, excitation=torch.randn(1, 3000)[:, :1536],
        phase=torch.rand(1, dtype=torch.float64), pitch=torch.tensor([123.4]), overlap=torch.randn(1536, 1).T,
    )
    return new(
        voice=torch.randn(1, 10, 64), chunk=3, cursor=31.4159, sink=torch.randn(1, 8, 9, 4, 4),
        motion=torch.randn(1, 8, 9, 4, 4), history=torch.randn(1, 132, 64)[:, -66:], borders=(10.1, 20.0 / 3),
        window_start=10, stalled=1, next_word=4, word_start=3.3, decoder=decoder, guidance=1.7, seed=-3,
    )


def fields(value):
    """Field by field, decoder included: what a comparison can be made on."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, DecoderState):
            yield from fields(item)
        elif isinstance(item, tuple):
            yield from ((f"{field.name}.{i}", part) for i, part in enumerate(item))
        else:
            yield field.name, item


def over():
    return replace(running(), decoder=None, word_start=None, finished=True)


@pytest.mark.parametrize("make", [new, running, over])
def test_a_round_trip_keeps_every_bit(make, tmp_path):
    state = make()
    state.save(tmp_path / "state")
    loaded = StreamState.load(tmp_path / "state")
    before, after = dict(fields(state)), dict(fields(loaded))
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        if isinstance(value, Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        else:
            assert type(value) is type(other) and value == other, name
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_saving_again_replaces_the_file(tmp_path):
    for chunk in (1, 2):
        replace(running(), chunk=chunk).save(tmp_path / "state")
    assert StreamState.load(tmp_path / "state").chunk == 2


def test_states_of_inference_mode_can_be_saved(tmp_path):
    with torch.inference_mode():
        state = new(still=torch.randn(1, 8, 1, 4, 4))
    state.save(tmp_path / "state")
    assert torch.equal(StreamState.load(tmp_path / "state").still, state.still)


def spoil(path, *, drop=(), plain=(), raw=None):
    """Rewrite a saved state without the tensors `drop` and with other plain values."""
    running().save(path)
    tensors = {k: v for k, v in load_file(path).items() if k not in drop}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["state"])
    stored.update(plain)
    save_file(tensors, path, metadata={"state": raw if raw is not None else json.dumps(stored)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ("still",)}, "does not hold a whole stream state"),
        ({"drop": ("decoder.phase",)}, "does not hold a whole stream state"),
        ({"plain": {"mood": 1}}, "does not hold a whole stream state"),
        ({"plain": {"format": "streamchar-state-0"}}, "another version; expected streamchar-state-1"),
        ({"raw": "[]"}, "is not a saved stream state"),
        ({"raw": "{"}, "is not a saved stream state"),
    ],
)
def test_a_spoiled_state_is_refused(changes, message, tmp_path):
    spoil(tmp_path / "state", **changes)
    with pytest.raises(StateError, match=message):
        StreamState.load(tmp_path / "state")


def test_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(StateError, match="is not a saved stream state"):
        StreamState.load(path)
    path.write_bytes(b"not a state")
    with pytest.raises(StateError, match="save one with --save-state"):
        StreamState.load(path)
    running().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StateError, match="is not a saved stream state"):
        StreamState.load(path)
    save_file({"still": torch.zeros(1)}, path)
    with pytest.raises(StateError, match="is not a saved stream state"):
        StreamState.load(path)


def test_seed_and_chunk_fix_the_noise():
    def draw(**changes):
        return torch.randn(100, generator=chunk_generator(new(**changes)))

    assert torch.equal(draw(), draw())
    assert torch.equal(draw(chunk=4), draw(chunk=4, text="another text", cursor=3.0))
    draws = [draw(seed=seed, chunk=chunk) for seed in (-1, 0, 1, 2**31) for chunk in (0, 1, 2)]
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)
