"""The real model behind the studio's interface, tiny: growing text, turns, and saved == uninterrupted."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image
from streams import CONFIG, paced, tiny_models

from streamchar.errors import InputError
from streamchar.serve.actor import LISTEN_FRAMES
from streamchar.serve.model import ModelStudio
from streamchar.serve.protocol import Start
from streamchar.stream.pipeline import StreamCharPipeline


def start() -> Start:
    file = io.BytesIO()
    Image.effect_mandelbrot((80, 80), (-2, -1.5, 1, 1.5), 30).convert("RGB").save(file, "PNG")
    return Start(picture=base64.b64encode(file.getvalue()).decode(), seed=4)


@pytest.fixture(scope="module")
def studio():
    models = tiny_models()
    with paced(models, 6.0):
        yield ModelStudio(StreamCharPipeline(models))


def play(actor):
    chunks = []
    while not actor.finished:
        chunks.append(actor.finish(actor.generate()))
    return chunks


def spoken(chunks):
    return [word.text for chunk in chunks for word in chunk.words]


def test_text_that_comes_later_is_spoken_once(studio):
    actor = studio.open(start())
    assert actor.finished and actor.words == ()
    actor.say("hello there")
    ahead = actor.generate()  # the device is a chunk ahead of what is decoded
    actor.say("my friend")
    words = actor.words
    chunks = [actor.finish(ahead), *play(actor)]
    assert spoken(chunks) == list(words) and len(words) == 4
    actor.say("and more")  # after all was spoken
    assert actor.words[:4] == words or actor.words[3].rstrip(".") == words[3]
    assert spoken(play(actor)) == list(actor.words[4:]) == ["and", "more"]
    with pytest.raises(InputError, match="cannot speak|nothing in the text"):
        actor.say("\u4f60\u597d")


def test_a_saved_actor_goes_on_to_the_bit(studio, tmp_path):
    actor = studio.open(start())
    actor.say("hello there my friend")
    first = actor.finish(actor.generate())
    actor.say("how are you")
    actor.save(tmp_path / "state")
    whole = play(actor)
    again = play(studio.load(start(), tmp_path / "state"))
    assert len(whole) == len(again) > 2 and first.index == 0
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.samples, b.samples) and a.words == b.words


def test_an_interrupted_actor_begins_a_turn(studio, tmp_path):
    actor = studio.open(start())
    actor.say("hello there my friend how are you")
    actor.finish(actor.generate())
    actor.generate()  # on its way, and dropped
    actor.hush()
    assert actor.finished and actor.words == ()
    actor.save(tmp_path / "state")
    silent = studio.load(start(), tmp_path / "state")
    assert silent.finished and silent.words == ()
    actor.say("good bye")
    silent.say("good bye")
    chunks, others = play(actor), play(silent)
    assert spoken(chunks) == spoken(others) == ["good", "bye"] and chunks[0].index == 1
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(chunks, others, strict=True))


def test_listening_begins_where_speech_ended(studio):
    actor = studio.open(start())
    actor.say("hello")
    last = play(actor)[-1].frames[-1]
    pieces = torch.cat([actor.listen(33), actor.listen(33 + LISTEN_FRAMES)])
    assert pieces.shape == (2 * LISTEN_FRAMES, CONFIG.height, CONFIG.width, 3)
    steps = (pieces[1:].float() - pieces[:-1].float()).abs().mean((1, 2, 3))
    assert (pieces[0].float() - last.float()).abs().mean() < 1.0, "no cut"
    assert steps.mean() > 0 and steps.max() < 4.0, "it moves, slightly"
