"""The progress-aware pointer (eq. 5): planted attention, clamping, the loss's floor, the cursor prior."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from streamchar.config.presets import tiny
from streamchar.orchestrator.packing import TAIL
from streamchar.orchestrator.pointer import CursorPrior, Pointer, Progress, Text, TextFeatures, pointer_loss

CONFIG = replace(tiny().orchestrator, width=48, pointer_width=48)
TOKENS = 40
SMOOTHING_ENTROPY = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))


@pytest.fixture
def pointer():
    """Reads the place in the transcript that a frame's state names: query and key are the first 48
    numbers of what they get, and there is no prior, no offset."""
    torch.manual_seed(0)
    model = Pointer(replace(CONFIG, cursor_prior=False))
    with torch.no_grad():
        for part in (model.query, model.key, model.offset[-1], model.confidence[-1]):
            part.weight.zero_()
            part.bias.zero_()
        model.query.weight.copy_(torch.eye(48))
        model.key.weight[:, :48] = torch.eye(48)
        model.latest.zero_()
    return model


def planted(places, length=TOKENS):
    """States that point at `places` (33,), and a text whose token n answers to place n."""
    sharp = 1000.0
    states = torch.zeros(1, TAIL, 48)
    states[0, torch.arange(TAIL), places] = sharp
    features = torch.eye(48)[:length][None]
    text = Text(
        features=features, states=torch.randn(1, length, 48), visible=torch.ones(1, length, dtype=torch.bool),
        length=torch.tensor([length]),
    )
    return states, text


def test_planted_attention_gives_its_places(pointer):
    places = torch.arange(TAIL) + 3
    states, text = planted(places)
    progress = pointer(states, text, torch.zeros(1))
    assert torch.equal(progress.attention[0].argmax(-1), places)
    torch.testing.assert_close(progress.position[0], places.float(), rtol=0, atol=1e-3)
    value = pointer.value(torch.cat([text.features, text.states], dim=-1))[0]
    torch.testing.assert_close(progress.readout[0], value[places], rtol=0, atol=1e-3)


def test_the_end_is_where_confident_frames_are(pointer):
    """Even confidence: the mean place; a late one: the last place; half a token more, as its middle is meant."""
    places = torch.arange(TAIL) + 3
    states, text = planted(places)
    even = pointer(states, text, torch.zeros(1)).end.item()
    with torch.no_grad():
        pointer.latest[-1] = 100.0
    late = pointer(states, text, torch.zeros(1)).end.item()
    assert even == pytest.approx(places.float().mean().item() + 0.5, abs=1e-3)
    assert late == pytest.approx(places[-1].item() + 0.5, abs=1e-3)


def test_the_offset_refines_the_place_by_two_tokens_at_most(pointer):
    states, text = planted(torch.full((TAIL,), 9))
    for bias, shift in ((0.0, 0.0), (0.5, 2 * math.tanh(0.5)), (50.0, 2.0), (-50.0, -2.0)):
        with torch.no_grad():
            pointer.offset[-1].bias.fill_(bias)
        assert pointer(states, text, torch.zeros(1)).position.mean().item() == pytest.approx(9 + shift, abs=1e-3)


@pytest.mark.parametrize(("place", "bias", "expected"), [(0, -50.0, 0.0), (TOKENS - 1, 50.0, TOKENS)])
def test_the_end_is_clamped_to_the_transcript(pointer, place, bias, expected):
    states, text = planted(torch.full((TAIL,), place))
    with torch.no_grad():
        pointer.offset[-1].bias.fill_(bias)
    assert pointer(states, text, torch.zeros(1)).end.item() == expected


def test_it_never_points_at_what_is_not_visible(pointer):
    states, text = planted(torch.arange(TAIL) + 5)
    seen = replace(text, visible=torch.arange(TOKENS)[None] < 20)
    attention = pointer(states, seen, torch.zeros(1)).attention.exp()
    assert (attention[..., 20:] == 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, TAIL))


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one():
    """With transcripts of different lengths, padded."""
    torch.manual_seed(0)
    pointer, features = Pointer(CONFIG).eval(), TextFeatures(CONFIG.width).eval()
    embedded, states = torch.randn(2, TOKENS, CONFIG.width), torch.randn(2, TOKENS, CONFIG.width)
    c, cursor, length = torch.randn(2, TAIL, CONFIG.width), torch.tensor([3.5, 11.0]), torch.tensor([17, TOKENS])
    valid = torch.arange(TOKENS) < length[:, None]
    both = pointer(
        c, Text(features=features(embedded, valid), states=states, visible=valid, length=length), cursor
    )
    for i, n in enumerate(length.tolist()):
        one = slice(i, i + 1)
        text = Text(
            features=features(embedded[one, :n], valid[one, :n]), states=states[one, :n], visible=valid[one, :n],
            length=length[one],
        )
        alone = pointer(c[one], text, cursor[one])
        for name in ("position", "end", "readout"):
            torch.testing.assert_close(getattr(both, name)[one], getattr(alone, name), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.attention[one, :, :n], alone.attention, rtol=1e-5, atol=1e-5)


def test_the_cursor_prior_moves_on_at_its_rates():
    prior = CursorPrior(4, 0.5)
    cursor = torch.tensor([10.0])
    weights = prior(cursor, 60).softmax(-1)[0]
    centre = (weights * torch.arange(60)).sum(-1)  # (H, J)
    frames = torch.arange(TAIL) + 0.5
    for head, rate in enumerate(torch.linspace(0.7, 1.3, 4) * 0.5):
        torch.testing.assert_close(centre[head], 10.0 - 0.5 + rate * frames, rtol=0, atol=0.02)
    ahead = prior(cursor + 7, 60).softmax(-1)[0]
    torch.testing.assert_close(ahead[..., 7:40], weights[..., :33], rtol=1e-3, atol=1e-4)


def perfect(target, end):
    """A progress that says what the smoothed target is."""
    spread = torch.full((*target.shape, TOKENS), 1e-12)
    for step, share in ((0, 0.8), (-1, 0.1), (1, 0.1)):
        spread.scatter_(-1, (target + step)[..., None], share)
    return Progress(attention=spread.log(), position=target.float(), end=end, readout=torch.zeros(*target.shape, 4))


def test_the_loss_of_a_perfect_pointer_is_the_smoothing_entropy():
    target, end = (torch.arange(TAIL) + 2)[None], torch.tensor([35.2])
    cross, distance = pointer_loss(perfect(target, end), target, end)
    assert cross.item() == pytest.approx(SMOOTHING_ENTROPY, abs=1e-4)
    assert distance.item() == 0


def test_descent_on_the_loss_reaches_the_entropy():
    logits = nn.Parameter(torch.zeros(1, TAIL, TOKENS))
    target, end = (torch.arange(TAIL) + 2)[None], torch.tensor([35.2])
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(300):
        optimizer.zero_grad()
        progress = Progress(
            attention=logits.log_softmax(-1), position=target.float(), end=end, readout=torch.zeros(1, TAIL, 4)
        )
        cross, _ = pointer_loss(progress, target, end)
        cross.backward()
        optimizer.step()
    assert cross.item() == pytest.approx(SMOOTHING_ENTROPY, abs=0.01)
    assert torch.equal(logits.argmax(-1), target)


def test_unknown_frames_do_not_count():
    target, end = (torch.arange(TAIL) + 2)[None], torch.tensor([35.2])
    progress = perfect(target, end)
    wrong = target.clone()
    wrong[:, 10:] = -1
    assert pointer_loss(progress, wrong, end)[0].item() == pytest.approx(SMOOTHING_ENTROPY, abs=1e-4)
    assert pointer_loss(progress, torch.full_like(target, -1), end)[0].item() == 0
    assert pointer_loss(progress, target.roll(5, 1), end)[0].item() > 5
    assert pointer_loss(progress, target, end - 3.0)[1].item() == pytest.approx(2.5)
