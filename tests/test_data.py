"""Shards and windows: what is written is read, and a window holds what a stream would know."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import tiny
from streamchar.data import prepare as preparing
from streamchar.data.dataset import WindowDataset, collate, cut_window, progress_at, steps
from streamchar.data.prepare import Recipe, prepare
from streamchar.data.shards import ClipRecord, Shard, shard_paths, write_shard
from streamchar.errors import ConfigError, DataError, InputError
from streamchar.train import raw

J = 33
CHUNK = 1.375


def clip(chunks=4, seed=0, *, video=False, reference=20):
    """Random latents; tokens spread over the clip, the end token last."""
    draw = torch.Generator().manual_seed(seed)
    count = 12 * chunks
    starts = torch.rand(count, generator=draw).sort().values * (chunks * CHUNK - 0.2)
    starts[0] = 0
    return ClipRecord(
        audio=torch.randn(chunks * J, 64, generator=draw), reference=torch.randn(reference, 64, generator=draw),
        tokens=torch.randint(0, 72, (count,), generator=draw).to(torch.int16), token_start=starts,
        text=f"clip “{seed}”", voice="heart", seed=seed, prompt="happy" if video else "",
        direction=("happy", "nodding", "high") if video else ("", "", ""),
        video=torch.randn(chunks, 8, 9, 2, 2, generator=draw) if video else None,
        still=torch.randn(8, 1, 2, 2, generator=draw) if video else None,
        pose=torch.randn(chunks, 9, 5, generator=draw).half() if video else None,
    )


def shards(folder, counts=((4, 3), (12,)), **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, chunks in enumerate(counts):
        clips = [clip(n, 10 * i + k, **options) for k, n in enumerate(chunks)]
        write_shard(folder / f"shard-{i:05d}.safetensors", clips)
    return folder


@pytest.mark.parametrize("video", [False, True])
def test_a_shard_gives_back_its_clips(tmp_path, video):
    clips = [replace(clip(n, n, video=video, reference=n), short=n == 7) for n in (3, 7, 1)]
    write_shard(tmp_path / "shard-00000.safetensors", clips)
    shard = Shard(tmp_path / "shard-00000.safetensors")
    assert len(shard) == 3 and shard.has_video == video
    for i, given in enumerate(clips):
        for field in fields(ClipRecord):
            expected, got = getattr(given, field.name), getattr(shard[i], field.name)
            if isinstance(expected, torch.Tensor):
                exact = field.name in ("tokens", "token_start")
                torch.testing.assert_close(got, expected if exact else expected.half(), rtol=0, atol=0)
            else:
                assert got == expected, field.name
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_a_corrupt_shard_is_refused(tmp_path):
    path = shards(tmp_path) / "shard-00000.safetensors"
    whole = path.read_bytes()
    for spoiled in (whole[: len(whole) // 2], whole[:5], b"", b"x" * 200):
        path.write_bytes(spoiled)
        with pytest.raises(DataError, match="not a readable shard .*; delete it and prepare it again"):
            Shard(path)
    save_file({"audio": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not a readable shard"):
        Shard(path)
    path.unlink()
    with pytest.raises(DataError, match="not a readable shard"):
        Shard(path)


@pytest.mark.parametrize("name", ["tokens", "reference_offset"])
def test_a_shard_without_one_of_its_arrays_is_refused(tmp_path, name):
    path = shards(tmp_path) / "shard-00000.safetensors"
    shard = Shard(path)
    tensors = {k: v for k, v in load_file(path).items() if k != name}
    save_file(tensors, path, metadata={"clips": json.dumps(shard.clips)})
    with pytest.raises(DataError, match=f"expected {name.removesuffix('_offset')} of 2 clips"):
        Shard(path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match="found none; run `streamchar world --shards"):
        shard_paths(tmp_path)


def test_hours_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="hours must be above 0, got 0"):
        Recipe(folder=tmp_path, hours=0, audio_codec=tmp_path)
    with pytest.raises(ConfigError, match="clips with pictures: expected a video codec, got none"):
        Recipe(folder=tmp_path, hours=1, audio_codec=tmp_path, short=True)
    assert Recipe(folder=tmp_path, hours=0.01, audio_codec=tmp_path).shards == 1
    assert Recipe(folder=tmp_path, hours=2, audio_codec=tmp_path).shards == 12


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Shards of random latents for `prepare`, and codecs: `other` has other weights, `trained` another decoder."""

    def shard(recipe, index):
        seed = (recipe.seed * preparing.SHARDS + index) * preparing.SEEDS
        path = recipe.folder / f"shard-{index:05d}.safetensors"
        write_shard(path, [clip(1, seed, video=recipe.video_codec is not None)])
        return path

    monkeypatch.setattr(preparing, "prepare_shard", shard)
    torch.manual_seed(0)
    codec = ToonAudioCodec(tiny().audio)
    codec.save(tmp_path / "codec")
    codec.decoder.load_state_dict({k: v + 1 for k, v in codec.decoder.state_dict().items()})
    codec.save(tmp_path / "trained")
    ToonAudioCodec(tiny().audio).save(tmp_path / "other")
    ToonVideoCodec(tiny().video).save(tmp_path / "video")
    return Recipe(folder=tmp_path / "data", hours=0.2, audio_codec=tmp_path / "codec", seed=3)


def test_shards_of_two_recipes_do_not_mix(tmp_path, made):
    assert len(prepare(made)) == 1
    more = replace(made, hours=0.5, shard_seconds=900.0, audio_codec=tmp_path / "trained")
    assert len(prepare(more)) == 2, "its latents are the same, and numbers of its own has a shard of any length"
    for change, reason in (
        ({"seed": 4}, "seed = 3, this call has 4"),
        ({"held_out": True}, "held_out = False, this call has True"),
        ({"audio_codec": tmp_path / "other"}, "audio_codec = "),
        ({"video_codec": tmp_path / "video", "short": True}, "speech_only = True, this call has False"),
    ):
        with pytest.raises(InputError, match=f"data holds data with {reason}.*or another folder"):
            prepare(replace(made, **change))
    for path in shard_paths(made.folder):
        path.unlink()
    assert prepare(replace(made, seed=4)), "nothing is there to be mixed with"
    (made.folder / "recipe.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="recipe.json is not readable"):
        prepare(made)


def test_a_folder_from_before_recipes_goes_on_with_what_its_shards_tell(made, caplog):
    prepare(made)
    (made.folder / "recipe.json").unlink()
    with pytest.raises(InputError, match="seed = 3, this call has 4"):
        prepare(replace(made, seed=4))
    prepare(made)
    assert "without a recipe" in caplog.text and not (made.folder / "recipe.json").exists(), "its codec is unknown"


def test_raw_clips_of_both_halves_do_not_mix(tmp_path, monkeypatch):
    def write(make, pieces, workers):
        (tmp_path / "frames-0000.npy").touch()

    monkeypatch.setattr(raw, "_all", write)
    raw.raw_clips(tmp_path, 8)
    raw.raw_clips(tmp_path, 8, seed=5)
    with pytest.raises(InputError, match="held_out = False, this call has True"):
        raw.raw_clips(tmp_path, 8, held_out=True)


# -- windows -----------------------------------------------------------------------------------------


def test_progress_counts_tokens_and_their_parts():
    starts = np.array([0.0, 0.5, 1.0, 3.0])
    times = np.array([0.0, 0.25, 0.5, 2.0, 2.999999, 3.0, 99.0])
    np.testing.assert_allclose(progress_at(starts, times), [0, 0.5, 1, 2.5, 3, 3.5, 3.5], atol=1e-5)


def hand_made():
    """Six tokens over three chunks of 1.375 s: borders at 1.375, 2.75 and 4.125 s."""
    return replace(
        clip(3), tokens=torch.arange(40, 46, dtype=torch.int16),
        token_start=torch.tensor([0.0, 0.5, 1.0, 1.25, 2.0, 2.75]),
    )


def test_a_window_by_hand():
    cut = cut_window(hand_made(), first=1, chunks=1, ahead=1)
    # token 3 runs from 1.25 to 2.0: at the border of 1.375 a sixth of it is spoken
    torch.testing.assert_close(cut["cursor"], torch.tensor([1 / 6, 2.5]))
    assert cut["text"].tolist() == [43, 44, 45]
    # latent j's centre is (33 + j + 0.5) / 24 s: token 4 begins at 2.0 s, which is latent 15; the end at 2.75 s
    assert cut["frame_token"].tolist() == [[0] * 15 + [1] * 18]
    torch.testing.assert_close(cut["audio"], hand_made().audio[J : 2 * J][None], rtol=0, atol=0)


def test_a_window_from_the_start_to_the_end():
    cut = cut_window(hand_made(), first=0, chunks=3, ahead=0)
    torch.testing.assert_close(cut["cursor"], torch.tensor([0, 3 + 1 / 6, 5.5, 5.5]))
    assert cut["text"].tolist() == list(range(40, 46))
    frames = cut["frame_token"].flatten().tolist()
    assert [frames.count(token) for token in range(6)] == [12, 12, 6, 18, 18, 33]
    assert frames == sorted(frames)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_window_holds_its_look_ahead_and_no_more(ahead):
    cut = cut_window(hand_made(), first=0, chunks=1, ahead=ahead)
    assert cut["text"].tolist() == list(range(40, 40 + 4 + ahead))


def test_targets_agree_with_cursors():
    """Every frame's token lies between the cursors of its chunk, for any window."""
    for seed in range(5):
        whole = clip(6, seed)
        for first, chunks in ((0, 2), (3, 2), (5, 1), (0, 6)):
            cut = cut_window(whole, first, chunks, 10)
            low, high = cut["cursor"][:-1].floor()[:, None], cut["cursor"][1:].ceil()[:, None]
            assert (cut["frame_token"] >= low).all() and (cut["frame_token"] <= high).all()
            assert 0 <= cut["cursor"][0] < 1
            assert cut["frame_token"].max() < len(cut["text"])


def dataset(folder, **options):
    return WindowDataset(folder, **{"look_ahead": 16, "max_reference": 24, **options})


def same(a, b):
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


def test_resumed_batches_are_equal(tmp_path):
    """Batch number `step` is a function of seed and step, not of what was drawn before."""
    shards(tmp_path)
    one, other = dataset(tmp_path, seed=3), dataset(tmp_path, seed=3)
    drawn = [one.batch(step, 4, 2) for step in range(5)]
    for step in (4, 2, 0):
        same(drawn[step], other.batch(step, 4, 2))
    assert not torch.equal(drawn[0].audio, drawn[1].audio)
    assert not torch.equal(drawn[0].audio, dataset(tmp_path, seed=4).batch(0, 4, 2).audio)
    for step, batch in itertools.islice(steps(one, 3, 4, (2,)), 2):
        same(batch, drawn[step])


def test_longer_windows_make_smaller_batches(tmp_path):
    shards(tmp_path)
    batches = itertools.islice(steps(dataset(tmp_path), 0, 6, (2, 12)), 3)
    shapes = [tuple(batch.audio.shape[:2]) for _, batch in batches]
    assert shapes == [(6, 2), (1, 12), (6, 2)]


def test_a_batch_is_its_windows_padded(tmp_path):
    shards(tmp_path, video=True)
    data = dataset(tmp_path)
    given = [data.shards[path][i] for path, i, _ in data.index]
    cuts = [(given[0], 1, cut_window(given[0], 1, 2, 5)), (given[2], 4, cut_window(given[2], 4, 2, 30))]
    batch = collate(cuts, max_reference=24)
    for i, (record, first, cut) in enumerate(cuts):
        length = int(batch.text_length[i])
        assert torch.equal(batch.text[i, :length], cut["text"]) and not batch.text[i, length:].any()
        assert torch.equal(batch.frame_token[i], cut["frame_token"]) and torch.equal(batch.cursor[i], cut["cursor"])
        heard = int(batch.reference_length[i])
        assert torch.equal(batch.reference[i, :heard], record.reference.float())
        assert not batch.reference[i, heard:].any()
        assert torch.equal(batch.video[i], record.video[first : first + 2].float())
        assert torch.equal(batch.previous[i], record.video[first - 1].float())
        assert torch.equal(batch.pose[i], record.pose[first : first + 2].float())
        assert torch.equal(batch.previous_pose[i], record.pose[first - 1].float())
        assert torch.equal(batch.sink[i], record.video[0].float())
        assert torch.equal(batch.still[i], record.still.float())
    assert batch.first.tolist() == [1, 4] and batch.has_previous.tolist() == [True, True]
    assert len(batch.text[0]) == max(len(cut["text"]) for _, _, cut in cuts)
    assert batch.prompts == ("happy", "happy") and batch.size == 2


def test_a_reference_is_cut_to_what_the_model_takes(tmp_path):
    shards(tmp_path, reference=60)
    batch = dataset(tmp_path).batch(0, 3, 2)
    assert batch.reference.shape[1] == 24 and (batch.reference_length == 24).all()


def test_where_windows_begin(tmp_path):
    shards(tmp_path, video=True)
    data = dataset(tmp_path)
    start, later, either = (data.batch(0, 64, 2, first=first) for first in ("start", "later", "any"))
    assert not start.first.any() and not start.has_previous.any() and not start.previous.any()
    assert (later.first >= 1).all() and later.has_previous.all()
    assert 0.2 < (either.first == 0).float().mean() < 0.7
    whole = data.batch(0, 4, 12)
    assert not whole.first.any(), "a window as long as its clip has one place"


def test_too_long_windows_are_refused(tmp_path):
    shards(tmp_path)
    with pytest.raises(DataError, match="expected clips of at least 13 chunks"):
        dataset(tmp_path).batch(0, 2, 13)
    with pytest.raises(DataError, match="expected clips of at least 12 chunks"):
        dataset(tmp_path).batch(0, 2, 12, first="later")


def test_speech_and_video_shards_do_not_mix(tmp_path):
    shards(tmp_path, counts=((4, 4),), video=True)
    write_shard(tmp_path / "shard-00001.safetensors", [clip(4, 50)])
    with pytest.raises(DataError, match="have speech alone; keep the two kinds of shards in two folders"):
        dataset(tmp_path).batch(0, 40, 2)


def test_new_shards_are_taken_in(tmp_path):
    shards(tmp_path, counts=((4, 3),))
    data = dataset(tmp_path)
    assert data.hours == pytest.approx(7 * CHUNK / 3600)
    shards(tmp_path, counts=((4, 3), (12,)))
    data.refresh()
    data.refresh()
    assert data.hours == pytest.approx(19 * CHUNK / 3600)
