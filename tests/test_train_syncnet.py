"""Training of the cartoon world's SyncNet: its data, its loss, and that it learns to tell when."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamchar import clock
from streamchar.errors import ConfigError, DataError
from streamchar.eval.sample import Sample
from streamchar.eval.syncnet import ToonSyncNetConfig, load_toon, mfcc
from streamchar.stream.mux import Muxer
from streamchar.train.syncnet import (
    CHUNKS,
    DRAWN,
    PICTURES,
    SyncClips,
    SyncTraining,
    contrast,
    damaged,
    main,
    read_clips,
    roughened,
    through_h264,
    ticks,
    train_syncnet,
    validate,
)
from streamchar.types import Chunk

SMALL = ToonSyncNetConfig(picture=(4, 4, 8, 8), sound=(12, 12, 16), hidden=24, width=16)


def invented(count: int, seed: int) -> SyncClips:
    """Grey pictures as bright as their sound is loud; loudness wanders at random."""
    draw = np.random.default_rng(seed)
    wander = draw.standard_normal((count, PICTURES + 8)).cumsum(1)
    level = wander[:, 4:-4] - np.stack([wander[:, i : i + PICTURES] for i in range(9)]).mean(0)
    level = level / level.std()
    pictures = np.broadcast_to(np.clip(128 + 40 * level, 0, 255)[:, :, None, None, None], (count, PICTURES, 3, *DRAWN))
    sounds = 0.1 * draw.standard_normal((count, 3, 13, 4 * PICTURES - 1))
    sounds[:, :, 0] += np.repeat(level, 4, 1)[:, None, :-1]
    return SyncClips(pictures.astype(np.uint8), sounds.astype(np.float32))


def test_the_loss_wants_each_window_with_its_own_sound() -> None:
    vectors = torch.eye(12).view(2, 6, 12)
    scale = torch.tensor(20.0)
    assert float(contrast(vectors, vectors, scale)) < 1e-6
    assert float(contrast(vectors, vectors.roll(1, 1), scale)) == pytest.approx(20 + math.log(1 + 11 * math.exp(-20)))
    alike = torch.ones(2, 6, 12) / math.sqrt(12)
    assert float(contrast(alike, alike, scale)) == pytest.approx(math.log(12), abs=1e-4)


def test_it_learns_when() -> None:
    training = SyncTraining(steps=60, batch=4, pictures=36, rate=5e-3)
    model = train_syncnet(invented(12, 0), training, SMALL)
    untaught = train_syncnet(invented(1, 0), replace(training, steps=1, batch=1), SMALL)
    found, before = (validate(m, invented(8, 1)) for m in (model, untaught))
    assert found["within_1"] >= 0.8 and found["sync_c"] > 3 * before["sync_c"]
    assert found["sync_c_other"] < 0.5 * found["sync_c"]


def test_the_same_seed_gives_the_same_weights() -> None:
    training = SyncTraining(steps=3, batch=2, pictures=8)
    one, two = (train_syncnet(invented(4, 0), training, SMALL).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    other = train_syncnet(invented(4, 0), replace(training, seed=1), SMALL).state_dict()
    assert not torch.equal(one["picture.0.weight"], other["picture.0.weight"])
    with pytest.raises(ConfigError, match="5 to 68"):
        SyncTraining(pictures=69)


def test_pictures_are_taken_as_a_sample_takes_them(tmp_path: Path) -> None:
    with Muxer(tmp_path / "count.mp4") as muxer:
        for k in range(CHUNKS):
            level = (torch.arange(33 * k, 33 * k + 33) * 3 + 20)[:, None, None, None]
            frames = level.expand(33, 64, 64, 3).to(torch.uint8).contiguous()
            muxer.write(
                Chunk(index=k, frames=frames, samples=torch.zeros(clock.SAMPLES_PER_CHUNK), last=k == CHUNKS - 1)
            )
    seen = Sample(name="count", video=tmp_path / "count.mp4", transcript="x").frames(25)
    assert ((seen.float().mean((1, 2, 3)) - 20) / 3).round().int().tolist()[:PICTURES] == ticks()


def test_h264_keeps_order_and_loses_detail() -> None:
    x = torch.zeros(6, 3, *DRAWN, dtype=torch.uint8)
    x += (torch.arange(6) * 30 + 40)[:, None, None, None].to(torch.uint8)
    x[:, :, 10:30, 20:50] = 200
    errors = [(through_h264(x, crf).float() - x.float()).abs().mean() for crf in (12, 40)]
    assert errors[0] < 3 and errors[0] < errors[1] < 20


def test_damaged_pictures_and_sounds_stay_recognisable() -> None:
    wide = torch.full((2, 5, 3, *DRAWN), 30, dtype=torch.uint8)
    wide[:, :, :, 20:44, 30:50] = 220
    out = roughened(wide, torch.Generator().manual_seed(0))
    assert out.shape == (2, 5, 3, 48, 64) and float(out.min()) >= 0 and float(out.max()) <= 1
    assert torch.equal(out, roughened(wide, torch.Generator().manual_seed(0)))
    assert not torch.allclose(out[0], out[1], atol=0.02)
    assert float((out[0, 0] - out[0, 4]).abs().mean()) < 0.1  # one way for all of a clip's pictures
    draw = np.random.default_rng(0)
    sound = np.sin(np.arange(16_000) * 0.2).astype(np.float32) * np.repeat([0.05, 0.5] * 4, 2000).astype(np.float32)
    heard = damaged(sound, draw)
    energy, clean = mfcc(torch.from_numpy(heard))[0], mfcc(torch.from_numpy(sound))[0]
    assert heard.shape == sound.shape and float(torch.corrcoef(torch.stack([energy, clean]))[0, 1]) > 0.9


def test_drawn_trained_and_read_back(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--clips", "1", "--held-out", "1", "--steps", "1"])
    clips = read_clips(tmp_path / "data" / "train")
    assert clips.pictures_BT3HW.shape == (1, PICTURES, 3, *DRAWN) and clips.pictures_BT3HW.std() > 10
    assert clips.sounds_BVCM.shape == (1, 3, 13, 4 * PICTURES - 1) and bool(np.isfinite(clips.sounds_BVCM).all())
    assert "sha256" in load_toon(tmp_path).version
    with pytest.raises(DataError, match="drawn again"):
        read_clips(tmp_path)
