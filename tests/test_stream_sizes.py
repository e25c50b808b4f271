"""Output sizes: which are allowed, what the error says, and that a chunk of another size is a chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from streams import SAMPLER, SHORT, start, tiny_models

from streamchar import clock
from streamchar.config.presets import paper, tiny, toon
from streamchar.errors import ConfigError
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.session import decode
from streamchar.stream.sizes import allowed, check_size, nearest_sizes, resized


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((512, 512), True), ((704, 1280), True), ((1280, 704), True), ((32, 32), True), ((480, 832), True),
        ((720, 1280), False), ((736, 736), False), ((704, 1312), False), ((500, 512), False), ((0, 512), False),
        ((-512, 512), False),
    ],
)  # fmt: skip
def test_multiples_of_32_up_to_1280x720(size, fits):
    assert allowed(paper(), *size) == fits


def test_the_error_names_the_nearest_sizes():
    assert nearest_sizes(paper(), 720, 1280) == [(704, 1280), (704, 1248)]
    with pytest.raises(ConfigError, match=r"multiples of 32.*got 720x1280; nearest: 704x1280"):
        check_size(paper(), 720, 1280)
    with pytest.raises(ConfigError, match=r"multiples of 64.*got 288x256; nearest: 256x256 or 320x256"):
        check_size(toon(), 288, 256)  # its codec has twice the stride


def test_the_tokens_of_a_chunk_follow_from_the_clock():
    config = replace(paper(), height=704, width=1280)
    assert config.grid == (22, 40)
    assert config.video_tokens_per_chunk == clock.VIDEO_LATENTS_PER_CHUNK * 22 * 40


def test_a_chunk_of_another_size():
    models = resized(tiny_models(), 32, 96)
    h, w = models.config.latent_size
    still = torch.randn(1, models.config.dit.video_channels, 1, h, w)
    state = start(models, still=still)
    with torch.inference_mode():
        made, _ = generate_chunk(models, state, SAMPLER, transcript=models.tokenizer(SHORT))
    frames, samples, _, _ = decode(models, made, None)
    assert frames.shape == (clock.FRAMES_PER_CHUNK, 32, 96, 3)
    assert samples.shape == (clock.SAMPLES_PER_CHUNK,)
    assert tiny().latent_size != models.config.latent_size


def test_the_pipeline_takes_a_size(monkeypatch):
    monkeypatch.setattr("streamchar.stream.models.load", lambda *_, **__: tiny_models())
    assert StreamCharPipeline.from_pretrained(size=(32, 96)).config.latent_size == (2, 6)
    with pytest.raises(ConfigError, match="got 33x96; nearest: 32x96"):
        StreamCharPipeline.from_pretrained(size=(33, 96))
