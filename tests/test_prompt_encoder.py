"""The toon prompt encoder: protocol, tokens, component folder, pre-training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamchar.codecs.text import SPECIAL, T5PromptEncoder, word_tokenizer
from streamchar.config.presets import tiny, toon
from streamchar.errors import CheckpointError, ConfigError
from streamchar.train.prompt_encoder import FIELDS, is_held_out_prompt, labelled_prompt, train_prompt_encoder
from streamchar.types import PromptEncoder
from streamchar.world.prompt import known_words


@pytest.fixture
def encoder() -> T5PromptEncoder:
    torch.manual_seed(0)
    return T5PromptEncoder(tiny().prompt, word_tokenizer(known_words())).eval()


def test_protocol_and_zeros_past_the_end(encoder: T5PromptEncoder) -> None:
    assert isinstance(encoder, PromptEncoder)
    out = encoder.encode(["a happy person", ""])
    assert out.shape == (2, encoder.max_tokens, encoder.width)
    assert (out[0, :4].abs().sum(1) > 0).all() and (out[0, 4:] == 0).all()
    assert (out[1, 0] != 0).any() and (out[1, 1:] == 0).all()  # the empty prompt is its end token


def test_batch_of_two_is_two_of_one(encoder: T5PromptEncoder) -> None:
    prompts = ["a sad speaker who waves", "lively"]
    both = encoder.encode(prompts)
    torch.testing.assert_close(both, torch.cat([encoder.encode([p]) for p in prompts]), atol=1e-5, rtol=1e-5)


def test_words_case_and_marks(encoder: T5PromptEncoder) -> None:
    unknown = SPECIAL.index("<unk>")
    ids, mask = encoder.tokenize(["A Happy, person;", "a zzyzx person"])
    assert mask.sum(1).tolist() == [6, 4]
    assert unknown not in ids[0].tolist() and ids[1, 1] == unknown
    assert torch.equal(encoder.encode(["a happy person"]), encoder.encode(["A  HAPPY person"]))


def test_the_world_says_nothing_unknown() -> None:
    encoder = T5PromptEncoder(toon().prompt, word_tokenizer(known_words()))
    texts = [labelled_prompt(seed)[0] for seed in range(400)]
    ids, mask = encoder.tokenize(texts)
    assert (ids == SPECIAL.index("<unk>")).sum() == 0
    assert mask.sum(1).max() < encoder.max_tokens


def test_long_prompts_are_cut_with_a_warning(encoder: T5PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    ids, mask = encoder.tokenize(["happy " * 20])
    assert mask.all() and ids[0, -1] == SPECIAL.index("</s>")
    assert "prompt cut to 8 of its 21 tokens" in caplog.text


def test_save_and_load(encoder: T5PromptEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = T5PromptEncoder.load(tmp_path)
    assert loaded.config == encoder.config
    assert torch.equal(loaded.encode(["calm and happy"]), encoder.encode(["calm and happy"]))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json is damaged"):
        T5PromptEncoder.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="expected a tokenizer"):
        T5PromptEncoder.load(tmp_path)


def test_vocabulary_must_fit() -> None:
    words = [f"word{i}" for i in range(2000)]
    with pytest.raises(ConfigError, match="vocab_size is 1024"):
        T5PromptEncoder(tiny().prompt, word_tokenizer(words))


def test_training_reads_directions(tmp_path: Path) -> None:
    chance = {name: 1 / len(values) for name, values in FIELDS.items()}
    encoder, scores = train_prompt_encoder(tmp_path, 5.0, steps=60, batch=48, rate=1e-2, config=toon().prompt)
    assert scores["mood"] > 3 * chance["mood"] and scores["energy"] > 1.5 * chance["energy"]
    assert torch.equal(T5PromptEncoder.load(tmp_path).encode(["happy"]), encoder.encode(["happy"]))


def test_held_out_prompts_are_a_tenth() -> None:
    share = sum(is_held_out_prompt(seed) for seed in range(2000)) / 2000
    assert 0.07 < share < 0.13
