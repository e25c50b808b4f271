"""The picture half of the cartoon world: shapes, characters, prompts, mouth, motion, pixels."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from streamchar.codecs.motion import move
from streamchar.errors import DataError, InputError
from streamchar.types import Phoneme, Speech, Word
from streamchar.world import face, prompt, splits
from streamchar.world.character import VOICES, character
from streamchar.world.displacement import bare_arms, displacement
from streamchar.world.gesture import Arms
from streamchar.world.limbs import skin_tones
from streamchar.world.motion import neutral, plan
from streamchar.world.portrait import head_of
from streamchar.world.prompt import Direction, parse, phrase, sample_direction
from streamchar.world.render import (
    draw_frame,
    eye_boxes,
    hand_boxes,
    measure_opening,
    mouth_box,
    render,
)
from streamchar.world.shapes import coverage, ellipse, inside_implicit
from streamchar.world.viseme import mouth_track

HELD_OUT_FIRST = [3, 13, 23, 33, 36]
SENTENCE = "mˈAbi wˌi ʃˈʊd ɡˌO hˈOm . fˈIv bˈɪɡ pˈAntɪŋz , ðə mˈun"


def speech_of(phonemes: str, each: float = 0.085) -> Speech:
    """A fake utterance: every phoneme lasts `each` seconds, punctuation 0.4 s."""
    marks, words, t = [], [], 0.0
    for word in phonemes.split():
        start, stress = t, ""
        for symbol in word:
            if symbol in "ˈˌ":
                stress = symbol
                continue
            long = 0.4 if symbol in ".," else each
            owner = -1 if symbol in ".," else len(words)
            marks.append(Phoneme(symbol=stress + symbol, start=t, end=t + long, word=owner))
            stress, t = "", t + long
        if word not in ".,":
            words.append(Word(text=word, start=start, end=t))
    samples = torch.zeros(int(t * 49_152))
    for p in marks:
        if p.symbol not in (".", ","):
            a, b = int(p.start * 49_152), int(p.end * 49_152)
            samples[a:b] = 0.2 * torch.sin(torch.arange(b - a) * 0.02)
    pitch = 150 + 40 * torch.sin(torch.arange(int(t * 96)) / 30)
    return Speech(samples=samples, text=phonemes, phonemes=tuple(marks), words=tuple(words), pitch=pitch)


@pytest.fixture(scope="module")
def speech() -> Speech:
    return speech_of(SENTENCE)


# ---- shapes -----------------------------------------------------------------------------------


def test_coverage_gives_the_area_of_a_disc_and_of_a_rectangle():
    disc = coverage(torch.tensor(ellipse(20.3, 19.7, 12.0, 12.0, n=256), dtype=torch.float64), 40, 40)
    assert disc.sum().item() == pytest.approx(math.pi * 144, rel=2e-3)
    square = torch.tensor([[3.25, 4.0], [9.75, 4.0], [9.75, 8.0], [3.25, 8.0]], dtype=torch.float64)
    for points in (square, square.flip(0)):  # either winding
        mask = coverage(points, 12, 12)
        assert mask.sum().item() == pytest.approx(26.0)
        assert mask[5, 3].item() == pytest.approx(0.75)


def test_coverage_is_clipped_at_the_border_not_wrapped():
    points = torch.tensor([[-5.0, -5.0], [4.0, -5.0], [4.0, 20.0], [-5.0, 20.0]], dtype=torch.float64)
    mask = coverage(points, 10, 10)
    assert torch.equal(mask[:, :4], torch.ones(10, 4)) and mask[:, 4:].sum() == 0


def test_implicit_coverage_does_not_depend_on_the_functions_scale():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    value = ((x - 15.6) ** 2 + (y - 16.1) ** 2 - 81.0)[None]
    assert torch.allclose(inside_implicit(value), inside_implicit(value * 7.0), atol=1e-3)
    assert inside_implicit(value).sum().item() == pytest.approx(math.pi * 81, rel=0.02)


# ---- characters and splits ----------------------------------------------------------------------


def test_a_seed_is_a_character_for_good():
    assert character(12) == character(12)
    assert len({tuple(character(s).attributes().items()) for s in range(60)}) >= 59
    assert all(isinstance(v, str) for v in character(3).attributes().values())


def test_training_never_hears_a_held_out_voice():
    people = [character(s) for s in range(600)]
    assert {p.voice for p in people} <= set(range(len(VOICES)))
    assert not any(p.voice in splits.HELD_OUT_VOICES for p in people if not splits.is_held_out_character(p.seed))
    assert any(p.voice in splits.HELD_OUT_VOICES for p in people if splits.is_held_out_character(p.seed))
    with pytest.raises(InputError, match="n_voices=0"):
        character(1, n_voices=0)


def test_a_tenth_is_held_out_and_stays_so():
    held = [s for s in range(2000) if splits.is_held_out_character(s)]
    assert 150 < len(held) < 250
    assert held[:5] == HELD_OUT_FIRST  # the split may never move: trained weights depend on it
    assert splits.is_held_out_sentence("Hello, there!") == splits.is_held_out_sentence("hello there")
    share = sum(splits.is_held_out_sentence(f"sentence number {i}") for i in range(2000))
    assert 150 < share < 250


def test_the_voice_table_fits_the_voices():
    from streamchar.world import voice

    assert len(VOICES) == len(voice.VOICES)
    assert {voice.VOICES[v].name for v in splits.HELD_OUT_VOICES} == {"tenor", "sprite"}


# ---- prompts ------------------------------------------------------------------------------------


def test_every_phrase_is_read_back():
    for seed, (mood, gesture, energy) in enumerate(itertools.product(prompt.MOODS, prompt.GESTURES, prompt.ENERGIES)):
        direction = Direction(mood=mood, gesture=gesture, energy=energy)
        for variant in range(8):
            text = phrase(direction, 100 * seed + variant)
            assert parse(text) == (direction, []), text


def test_free_prompts_negation_and_unknown_words():
    direction, unknown = parse("A joyful pirate, waving wildly!")
    assert direction == Direction(mood="happy", gesture="waving", energy="high") and unknown == ["pirate"]
    assert parse("not sad, no waving")[0] == Direction()
    assert parse("she shakes her head angrily")[0] == Direction(mood="angry", gesture="shaking head")
    assert "pirate" not in prompt.known_words() and "waving" in prompt.known_words()
    assert len({phrase(Direction(), s) for s in range(60)}) > 30
    assert sample_direction(5) == sample_direction(5)
    with pytest.raises(InputError, match="mood must be one of"):
        Direction(mood="hapy")


# ---- mouth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.011, 0.25, 0.333])
def test_bilabials_close_the_lips_whatever_the_frame_grid(offset):
    speech = speech_of("ɑmɑ ɑbɑ ɑpɑ", each=0.06)
    track = mouth_track(speech, 40, offset=offset)
    for p in speech.phonemes:
        if p.symbol in "mbp":
            frame = round((0.5 * (p.start + p.end) + offset) * 24)
            assert track.opening[frame - 1 : frame + 2].min() == 0.0
            assert track.press[frame - 1 : frame + 2].max() == 1.0


def test_vowels_differ_in_opening_width_and_rounding():
    shapes = {v: mouth_track(speech_of(v * 4, each=0.12), 12) for v in "ɑiu"}
    middle = {v: (t.opening[5], t.width[5], t.round[5]) for v, t in shapes.items()}
    assert middle["ɑ"][0] > 0.9 and middle["i"][0] < 0.5
    assert middle["i"][1] > 0.7 and middle["u"][1] < -0.6
    assert middle["u"][2] > 0.8 and middle["ɑ"][2] < 0.2


def test_the_mouth_anticipates_and_rests():
    track = mouth_track(speech_of("ɑɑɑ"), 48, offset=1.0)
    assert track.opening[:18].max() < 0.02 and track.opening[-12:].max() < 0.02
    assert track.opening[23] > 0.05  # 40 ms before the sound
    rounding = mouth_track(speech_of("stu"), 24, offset=0.5).round
    assert rounding[round((0.5 + 0.17) * 24) - 1] > 0.2  # t already rounds for u


def test_later_starts_shift_the_track():
    speech = speech_of("fˈIv bˈɪɡ")
    early, late = mouth_track(speech, 40).opening, mouth_track(speech, 43, offset=3 / 24).opening
    assert torch.allclose(early, late[3:], atol=1e-5)


def test_unknown_phonemes_are_refused():
    with pytest.raises(DataError, match="no mouth shape"):
        mouth_track(speech_of("ɑʘɑ"), 5)


# ---- motion -------------------------------------------------------------------------------------


def test_motion_is_finite_deterministic_and_continuous(speech):
    direction = Direction(mood="excited", gesture="waving", energy="high")
    a, b = (plan(speech, direction, 3, 240, offset=0.5) for _ in range(2))
    assert len(a) == 240 and torch.equal(a.yaw, b.yaw) and torch.equal(a.arms.x, b.arms.x)
    for name, step in (("head_x", 3.0), ("head_y", 3.0), ("roll", 0.05), ("yaw", 0.35), ("body_y", 1.5)):
        values = getattr(a, name)
        assert values.isfinite().all() and values.diff().abs().max() < step, name


def test_silence_is_alive():
    silent = Speech(samples=torch.zeros(0), text="", phonemes=(), words=(), pitch=torch.zeros(0))
    track = plan(silent, Direction(), 1, 240)
    assert track.opening.max() == 0
    assert track.blink.max() == 1 and track.body_y.std() > 0.3 and track.head_x.std() > 0.2


def test_blinks_come_at_natural_intervals(speech):
    blink = plan(speech, Direction(), 5, 24 * 60).blink
    starts = ((blink[1:] > 0.9) & (blink[:-1] <= 0.9)).sum().item()
    assert 9 <= starts <= 40


def test_the_direction_changes_motion_and_face(speech):
    def of(**what):
        return plan(speech, Direction(**what), 2, 160, offset=0.2)

    assert of(mood="happy").smile.mean() > 0.5 > -0.3 > of(mood="sad").smile.mean()
    assert of(mood="angry").brow_tilt.mean() < -0.5 < 0.5 < of(mood="sad").brow_tilt.mean()
    assert of(energy="high").head_y.diff().abs().mean() > 1.3 * of(energy="low").head_y.diff().abs().mean()
    assert of(gesture="waving").arms.y.min() < 200 and of(gesture="still").arms.y.min() > 300
    assert of(gesture="nodding").pitch.std() > 1.5 * of().pitch.std()
    assert of(gesture="shaking head").yaw.std() > 1.5 * of().yaw.std()
    assert of(gesture="leaning").zoom.max() > 1.05
    with pytest.raises(InputError, match="n_frames=0"):
        plan(speech, Direction(), 1, 0)


# ---- pixels -------------------------------------------------------------------------------------


def test_a_frame_is_the_same_in_whatever_range_it_is_drawn(speech):
    who = character(8)
    track = plan(speech, Direction(mood="happy", gesture="open hands", energy="high"), 4, 40)
    whole = render(who, track, size=64)
    assert whole.shape == (40, 3, 64, 64) and whole.dtype == torch.uint8
    assert torch.equal(whole, render(who, track, size=64))
    part = render(who, track, size=64, start=13, stop=29)
    assert (part.int() - whole[13:29].int()).abs().max() <= 2
    for start, stop in ((5, 5), (-1, 4), (0, 41)):
        with pytest.raises(InputError, match="start"):
            render(who, track, start=start, stop=stop)
    with pytest.raises(InputError, match="size"):
        render(who, track, size=33)


def test_every_kind_draws_and_differs():
    pictures = torch.stack([draw_frame(character(s), size=64).float() for s in range(12)])
    apart = torch.cdist(pictures.flatten(1), pictures.flatten(1)) / (3 * 64 * 64) ** 0.5
    assert apart[~torch.eye(12, dtype=torch.bool)].min() > 12


def test_boxes_lie_on_the_face():
    who, track = character(4), neutral(2)
    mouth, eyes = mouth_box(who, track), eye_boxes(who, track)
    assert mouth.shape == (2, 4) and eyes.shape == (2, 2, 4)
    assert (mouth[:, 2:] > mouth[:, :2]).all() and mouth.min() > 0 and mouth.max() < 256
    assert (eyes[:, :, 3] < mouth[:, None, 3]).all() and (eyes[:, 0, 0] < eyes[:, 1, 0]).all()
    assert torch.allclose(mouth_box(who, track, size=128) * 2, mouth)


def test_hand_boxes_hold_the_hands_and_are_empty_without(speech):
    """What is drawn otherwise with the arms down, above the shoulders: hands and cuffs."""
    for seed, gesture in ((4, "waving"), (314, "open hands")):
        who = character(seed)
        track = plan(speech, Direction(mood="happy", gesture=gesture, energy="high"), seed, 40, offset=0.2)
        down = replace(track, arms=Arms.down(len(track)))
        other = (render(who, track).int() - render(who, down).int()).abs().sum(1) > 60
        boxes = hand_boxes(who, track).round().int()
        assert boxes.shape == (40, 2, 4) and (hand_boxes(who, down)[..., 3] == hand_boxes(who, down)[..., 1]).all()
        seen = 0
        for frame, both in zip(other, boxes, strict=True):
            for x0, y0, x1, y1 in both.tolist():
                if (x1 - x0) * (y1 - y0) > 1500:
                    seen += 1
                    assert frame[y0:y1, x0:x1].float().mean() > 0.25, (seed, gesture)
        assert seen > 10
        assert torch.allclose(hand_boxes(who, track, size=128) * 2, hand_boxes(who, track))


def test_the_still_moved_by_its_displacement_is_the_frame(speech):
    """Where it is known: head and body, the arm in front left out. Mouths that speak and lids are not the still's."""
    for number, asked in ((101, Direction(gesture="shaking head")), (103, Direction(gesture="waving"))):
        who = character(number)
        track = plan(speech, asked, number, 48).slice(8, 40)
        frames, still = render(who, track, 128).float(), draw_frame(who, 128).float()
        moved, _, known = displacement(who, track, 128)
        assert moved.shape == (32, 2, 32, 32) and known.shape == (32, 32, 32)
        assert 0.15 < float(known.float().mean()) < 0.7
        shown = known.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(frames)
        rest = still.expand_as(frames)
        off, before = (float((x - frames)[shown].abs().mean()) for x in (move(rest, moved), rest))
        assert off < 0.6 * before, (number, off, before)


def test_a_lid_that_comes_down_is_the_skin_above_it(speech):
    """Half shut and all but shut: around the eyes the still, moved, is nearer to the frame than with its eyes open."""
    for number in (103, 300, 302):
        who = character(number)
        track = plan(speech, Direction(mood="calm", gesture="still"), number, 48).slice(8, 40)
        still = draw_frame(who, 256).float().expand(32, -1, -1, -1)
        flows = {}
        for shut in (0.0, 0.5, 0.9):
            blinking = replace(track, blink=torch.full((32,), shut))
            flows[shut] = displacement(who, blinking, 256)[0]
            frames = render(who, blinking).float()
            offs = [0.0, 0.0]
            for t, eyes in enumerate(eye_boxes(who, track)):
                for x0, y0, x1, y1 in eyes.round().int().tolist():
                    for i, field in enumerate((flows[shut], flows[0.0])):
                        made = move(still[t : t + 1], field[t : t + 1])[0]
                        offs[i] += float((made - frames[t])[:, y0:y1, x0:x1].abs().mean())
            assert shut == 0 or offs[0] < 0.75 * offs[1], (number, shut, offs)


def test_bare_arms_are_where_their_colour_is_drawn(speech):
    """Cells that are said to be skin have its colour in the frame, the others have not; an arm at rest shows none."""
    for number in (101, 103, 107):
        who = character(number)
        track = plan(speech, Direction(gesture="waving"), number, 48).slice(8, 40)
        bare, tone = bare_arms(who, track), torch.tensor(skin_tones(who)[0])
        assert bare.shape == (32, 64, 64) and float(bare.min()) >= 0 and float(bare.max()) <= 1
        cells = F.avg_pool2d(render(who, track).float() / 255, 4).movedim(1, -1)
        inside = cells[bare > 0.98]
        assert len(inside) > 100 and float((inside - tone).abs().mean()) < 0.03
        assert float((cells[bare < 0.02] - tone).abs().mean()) > 0.1
        still = plan(speech, Direction(gesture="still"), number, 48).slice(8, 40)
        assert float(bare_arms(who, still).sum((1, 2)).mean()) < 0.2 * float(bare.sum((1, 2)).mean())


def test_brows_and_eyes_are_moved_as_themselves(speech):
    """Around the eyes the moved still has the frame's brows, lids and gaze, which an angry face has elsewhere; and a
    brow's field folds nothing."""
    for number in (103, 300, 302):  # no fringe
        who = character(number)
        track = plan(speech, Direction(mood="angry", gesture="still"), number, 48).slice(8, 40)
        track = replace(track, blink=torch.zeros(32), gaze_x=torch.full((32,), 0.7))
        frames, still = render(who, track).float(), draw_frame(who, 256).float().expand(32, -1, -1, -1)
        found, acted, _ = displacement(who, track, 256)
        assert 5 < float(acted.abs().amax()) < 20 and float(acted.abs().mean()) < 0.3
        for upper in (True, False):
            offs = [0.0, 0.0]
            for t, eyes in enumerate(eye_boxes(who, track)):
                for x0, y0, x1, y1 in eyes.round().int().tolist():
                    place = (t, slice(None), slice(2 * y0 - y1, y0) if upper else slice(y0, y1), slice(x0, x1))
                    for i, field in enumerate((found, found - acted)):
                        offs[i] += float((move(still, field)[place] - frames[place]).abs().mean())
            assert offs[0] < (0.75 if upper else 0.9) * offs[1], (number, upper, offs)
    head, rest = head_of(who), neutral()
    y, x = torch.meshgrid(torch.arange(-60.0, 20.0), torch.arange(-60.0, 60.0), indexing="ij")
    for lifted, tilt in ((-1.2, 0.0), (1.4, 0.0), (0.0, -1.0), (0.0, 1.0), (-0.5, -1.0)):
        there = replace(track, brow_raise=torch.full((32,), lifted), brow_tilt=torch.full((32,), tilt)).slice(0, 1)
        down, near = face.brow_moved(who, head, there, rest, 1, x[None], y[None])
        assert float(near.min()) == 0 < 1 == float(near.max()) and float((y - down).diff(dim=1).min()) > 0


def test_the_opening_is_measured_from_pixels(speech):
    truth, seen, soft = [], [], []
    for i, seed in enumerate((300, 302, 314, 322)):  # a cat, a blue, a deep brown and a brown face
        who = character(seed)
        mood = ("happy", "excited", "sad", "calm")[i]
        track = plan(speech, Direction(mood=mood), i, 48, offset=0.2)
        frames, boxes = render(who, track), mouth_box(who, track)
        small = torch.nn.functional.avg_pool2d(frames.float() / 255, 2)
        truth.append(track.opening)
        seen.append(measure_opening(frames, boxes))
        soft.append(measure_opening(torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear"), boxes))
        assert torch.corrcoef(torch.stack([truth[-1], seen[-1]]))[0, 1] > 0.9, seed
    pooled = torch.corrcoef(torch.stack([torch.cat(truth), torch.cat(seen), torch.cat(soft)]))[0]
    assert pooled[1] > 0.92 and pooled[2] > 0.85
