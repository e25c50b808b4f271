"""Guidance of picture and speech apart: what it moves, when the second pass is left out, and that it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamchar.stream.chunk import generate_chunk
from streamchar.stream.session import sampler_of
from streamchar.stream.state import StreamState


@pytest.fixture(scope="module")
def pipe():
    from streamchar.stream.pipeline import StreamCharPipeline

    return StreamCharPipeline.from_pretrained("toon")


def chunk(pipe, **weights):
    state = replace(pipe.start("Hello there.", character=7, seed=1, steps=2), **weights)
    with torch.inference_mode():
        made, _ = generate_chunk(
            pipe.models, state, sampler_of(pipe.models, state), transcript=pipe.tokenizer(state.text)
        )
    return made


def test_none_means_as_the_speech(pipe):
    same, both = chunk(pipe, guidance=2.0, picture_guidance=None), chunk(pipe, guidance=2.0, picture_guidance=2.0)
    assert torch.equal(same.video, both.video) and torch.equal(same.audio, both.audio)


def test_each_has_its_own(pipe):
    """In one step the other modality is not touched: velocities are guided one by one."""
    plain, guided = (
        replace(pipe.start("Hello there.", seed=1, steps=1), guidance=2.0, picture_guidance=w) for w in (2.0, 3.0)
    )
    with torch.inference_mode():
        a, b = (
            generate_chunk(pipe.models, s, sampler_of(pipe.models, s), transcript=pipe.tokenizer(s.text))[0]
            for s in (plain, guided)
        )
    assert torch.equal(a.audio, b.audio) and not torch.allclose(a.video, b.video)


def test_speech_alone_needs_no_main_blocks(pipe, monkeypatch):
    """Where the picture is not guided, the second pass is of the speech: four forwards with it, three, two without."""
    forwards, dit = [], type(pipe.models.dit)
    plain = dit.denoise
    monkeypatch.setattr(dit, "denoise", lambda *given: forwards.append(1) or plain(*given))
    for level, expected in ((0.0, 4), (0.9, 3), (1.0, 2)):
        forwards.clear()
        chunk(pipe, guidance=2.0, picture_guidance=3.0, picture_guidance_above=level)
        assert len(forwards) == expected
    assert not torch.allclose(chunk(pipe, guidance=2.0, picture_guidance=1.0).audio, chunk(pipe, guidance=1.0).audio)


def test_one_pass_if_nothing_is_guided(pipe):
    assert chunk(pipe, guidance=1.0, picture_guidance=None).memory.blank is None
    assert chunk(pipe, guidance=1.0, picture_guidance=2.0).memory.blank is not None
    assert not pipe.start("Hello.", guidance=1.0).guided


def test_the_picture_starts_from_noise_of_its_own_deviation(pipe):
    same, calm = chunk(pipe, picture_temperature=None), chunk(pipe, picture_temperature=0.0)
    assert not torch.allclose(same.video, calm.video)
    assert torch.equal(chunk(pipe, picture_temperature=pipe.models.temperature).video, same.video)


def test_the_picture_is_guided_down_to_a_noise_level(pipe):
    """Above all levels: as without guidance of the picture. Between the two steps' levels: neither."""
    weights = {"guidance": 2.0, "picture_guidance": 3.0}
    plain = chunk(pipe, guidance=2.0, picture_guidance=1.0)
    never, first, always = (chunk(pipe, **weights, picture_guidance_above=level) for level in (1.0, 0.9, 0.0))
    assert torch.equal(never.video, plain.video)
    assert not torch.allclose(first.video, plain.video) and not torch.allclose(first.video, always.video)


def test_it_is_saved_with_the_stream(pipe, tmp_path):
    state = replace(pipe.start("Hello.", seed=1), picture_guidance=1.5)
    state.save(tmp_path / "state")
    assert StreamState.load(tmp_path / "state").weights == (1.5, state.guidance)
