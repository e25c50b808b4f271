"""The session and the pipeline: exact counts, resumed == uninterrupted to the sample, and bad input."""

from __future__ import annotations

import itertools
import logging
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from streams import CONFIG, LONG, SHORT, paced, start, tiny_models

from streamchar import clock
from streamchar.errors import ConfigError, InputError, StateError
from streamchar.stream import session as session_module
from streamchar.stream.chunk import STALL_CHUNKS, generate_chunk
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.session import Session
from streamchar.stream.state import StreamState


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture
def pace(models):
    """`pace(8.0)`: 8 tokens a chunk from here on."""
    with ExitStack() as stack:
        yield lambda rate: stack.enter_context(paced(models, rate))


def test_a_session_has_exact_counts(models, pace):
    pace(8.0)
    session = Session(models, start(models, LONG[:40]))
    chunks = list(session)
    n = len(chunks)
    assert n == session.state.chunk > 3
    assert sum(len(c.frames) for c in chunks) == clock.frames(n) == 33 * n
    assert sum(len(c.samples) for c in chunks) == clock.samples(n) == 67_584 * n
    assert [c.index for c in chunks] == list(range(n))
    assert [c.last for c in chunks] == [False] * (n - 1) + [True]
    for c in chunks:
        assert c.frames.shape == (33, CONFIG.height, CONFIG.width, 3) and c.frames.dtype == torch.uint8
        assert c.samples.dtype == torch.float32 and c.samples.abs().max() <= 1
        assert set(c.seconds) == {"orchestrate", "denoise", "decode_video", "decode_audio"}
    assert session.spoken_words == session.total_words == 8
    assert list(session) == [], "a finished stream is over"


def test_a_session_resumed_equals_one_uninterrupted(models, pace, tmp_path):
    """Frames and samples, the audio decoder's overlap included."""
    pace(6.0)
    state = start(models, LONG[:50])
    whole = list(Session(models, state))
    chunks = []
    while not state.finished:
        session = Session(models, state)
        for chunk in itertools.islice(session, 2):
            chunks.append(chunk)
        session.state.save(tmp_path / "state")
        state = StreamState.load(tmp_path / "state")
    assert len(whole) == len(chunks) > 6
    for a, b in zip(whole, chunks, strict=True):
        assert torch.equal(a.frames, b.frames), a.index
        assert torch.equal(a.samples, b.samples), a.index
        assert a.words == b.words and a.last == b.last


def test_the_first_chunk_does_not_wait_for_the_second(models, pace, monkeypatch):
    pace(6.0)
    asked = []

    def failing(models, state, *args, **kwargs):
        asked.append(state.chunk)
        if state.chunk == 1:
            raise RuntimeError("chunk 1")
        return generate_chunk(models, state, *args, **kwargs)

    monkeypatch.setattr(session_module, "generate_chunk", failing)
    stream = iter(Session(models, start(models, LONG[:50])))
    assert next(stream).index == 0
    with pytest.raises(RuntimeError, match="chunk 1"):
        next(stream)
    assert asked == [0, 1]


def test_a_stalled_pointer_ends_the_stream_with_a_warning(models, pace, caplog):
    pace(0.1)
    session = Session(models, start(models))
    with caplog.at_level(logging.WARNING, logger="streamchar"):
        chunks = list(session)
    assert len(chunks) == STALL_CHUNKS
    assert chunks[-1].last and session.stalled
    assert "the pointer stands still" in caplog.text
    assert session.spoken_words < session.total_words


def test_a_state_of_another_model_is_refused(models):
    with pytest.raises(StateError, match="belongs to the model 'paper', this is 'tiny'"):
        Session(models, start(models, model="paper"))


def test_a_state_of_another_size_is_refused(models):
    state = start(models, SHORT)
    with pytest.raises(StateError, match="another version of the model"):
        Session(models, replace(state, still=state.still[:, :-1]))


# -- the pipeline ----------------------------------------------------------------------------------


def test_a_pipeline_streams_from_a_picture_and_a_voice(models, pace):
    pace(20.0)
    torch.manual_seed(0)
    pipe = StreamCharPipeline(models)
    picture, voice = torch.rand(3, CONFIG.height, CONFIG.width) * 2 - 1, 0.1 * torch.randn(5 * clock.AUDIO_STRIDE + 77)
    state = pipe.start(SHORT, character=picture, voice=voice, seed=2)
    assert state.voice is not None and state.voice.shape == (1, 5, 64)
    chunks = list(pipe.stream(SHORT, character=picture, voice=voice, seed=2))
    for a, b in zip(chunks, pipe.session(state), strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.samples, b.samples)
    long = pipe.start(SHORT, character=picture, voice=torch.zeros(100 * clock.AUDIO_STRIDE))
    assert long.voice is not None and long.voice.shape[1] == CONFIG.orchestrator.max_reference
    assert pipe.start(SHORT, character=picture).voice is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": " ... "}, "expected a text with at least one word"),
        ({"character": torch.zeros(3, 32, 32)}, r"expected a picture \(3, 64, 64\), got \(3, 32, 32\)"),
        ({"character": torch.zeros(4, 64, 64)}, "make it RGB"),
        ({"character": torch.zeros(64, 64)}, "make it RGB"),
        ({"voice": torch.zeros(2, 9000)}, "a voice .* of at least 2048"),
        ({"voice": torch.zeros(100)}, "a voice .* of at least 2048"),
    ],
)
def test_bad_input_is_refused(models, options, message):
    given = {"text": SHORT, "character": torch.zeros(3, 64, 64), **options}
    with pytest.raises(InputError, match=message):
        StreamCharPipeline(models).start(**given)


def test_a_pipeline_reads_files_and_refuses_what_is_none(models, tmp_path):
    pipe = StreamCharPipeline(models)
    size = (CONFIG.height, CONFIG.width)
    colours = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "who.png")
    by_path = pipe.start(SHORT, character=tmp_path / "who.png")
    pictured = torch.from_numpy(colours).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(by_path.still, pipe.start(SHORT, character=pictured).still, atol=1e-4)
    seven = pipe.start(SHORT, character=7).still
    assert torch.equal(pipe.start(SHORT, character="7").still, seven) and not torch.allclose(by_path.still, seven)
    (tmp_path / "voice.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match="not an audio file"):
        pipe.start(SHORT, character=7, voice=tmp_path / "voice.wav")
    with pytest.raises(InputError, match="got NoneType and float"):
        pipe.start(SHORT, character=None, voice=0.5)


def test_no_steps_are_refused(models):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        StreamCharPipeline(models).start(SHORT, character=torch.zeros(3, 64, 64), steps=0)
