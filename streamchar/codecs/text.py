"""The frozen text encoders of the DiT's cross-attention: a small T5 of our own and an adapter over umT5.

Both return hidden states up to `max_tokens`, zero after each prompt's end, as Wan's pipeline hands them to its DiT.
A prompt with more tokens than that is cut, with a warning in the log.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from streamchar.codecs.component import read_config, read_weights, save_component
from streamchar.config.model import PromptEncoderConfig
from streamchar.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

PAD, UNKNOWN, END, MASK = "<pad>", "<unk>", "</s>", "<mask>"
SPECIAL = (PAD, UNKNOWN, END, MASK)
TOKENIZER_NAME = "tokenizer.json"
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer over `words` (lower-cased), commas and full stops; anything else is `<unk>`.

    Every prompt ends with `</s>`, so that the empty prompt has a token too.
    """
    vocabulary = [*SPECIAL, ",", ".", ";", *sorted({word.lower() for word in words})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(dict.fromkeys(vocabulary))}, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    words_kept_whole = Regex(r"[a-z0-9]+(?:['’-][a-z0-9]+)*")
    tokenizer.pre_tokenizer = Sequence([Split(words_kept_whole, "isolated"), Split(Regex(r"\s+"), "removed")])
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, SPECIAL.index(END))])
    return tokenizer


class T5PromptEncoder(nn.Module):
    """A small T5 encoder with its own word-level tokenizer; implements `types.PromptEncoder`."""

    def __init__(self, config: PromptEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.family != "t5" or config.width % config.heads:
            raise ConfigError(
                f'T5PromptEncoder needs family "t5" and a width that its heads divide, got {config.family!r}, '
                f"{config.width} and {config.heads}"
            )
        if tokenizer.get_vocab_size() > config.vocab_size:
            raise ConfigError(
                f"prompt vocab_size is {config.vocab_size}, but the tokenizer has {tokenizer.get_vocab_size()} words"
            )
        self.config, self.tokenizer = config, tokenizer
        self.width, self.max_tokens = config.width, config.max_tokens
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=config.vocab_size, d_model=config.width, d_kv=config.width // config.heads,
                d_ff=config.ffn, num_layers=config.layers, num_heads=config.heads, dropout_rate=0.0,
                feed_forward_proj="gated-gelu", pad_token_id=SPECIAL.index(PAD), eos_token_id=SPECIAL.index(END),
                relative_attention_num_buckets=16, relative_attention_max_distance=32,
            )
        )

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """-> ids and mask, both (B, max_tokens); padded with `<pad>`, cut (with a warning) if too long."""
        ids = torch.full((len(prompts), self.max_tokens), SPECIAL.index(PAD), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(self.tokenizer.encode_batch(list(prompts))):
            tokens = encoding.ids
            if len(tokens) > self.max_tokens:
                _warn_cut(prompts[row], len(tokens), self.max_tokens)
                tokens = [*tokens[: self.max_tokens - 1], SPECIAL.index(END)]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        device = self.t5.shared.weight.device
        return ids.to(device), mask.to(device)

    def states(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Hidden states (B, L, D), zero where the mask is; differentiable, for training."""
        states_BLD = self.t5(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return states_BLD * mask_BL.unsqueeze(-1).to(states_BLD.dtype)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """-> (B, max_tokens, width), zero after each prompt's end."""
        return self.states(*self.tokenize(prompts))

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and tokenizer.json."""
        save_component(self, self.config, Path(folder), dtype)
        self.tokenizer.save(str(Path(folder) / TOKENIZER_NAME))

    @classmethod
    def load(cls, folder: Path | str) -> T5PromptEncoder:
        """Read a folder written by `save`, in float32, frozen."""
        config = read_config(PromptEncoderConfig, Path(folder), cls.__name__)
        path = Path(folder) / TOKENIZER_NAME
        if not path.is_file():
            raise CheckpointError(f"expected a tokenizer at {path}, found none; the component folder is incomplete")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{path} is damaged ({error}); save or download the checkpoint again") from None
        encoder = cls(config, tokenizer)
        read_weights(encoder, Path(folder))
        return encoder.eval().requires_grad_(False)


def umt5_encoder(config: PromptEncoderConfig) -> UMT5EncoderModel:
    """An untrained umT5 encoder of this size."""
    if config.family != "umt5" or config.width % config.heads:
        raise ConfigError(
            f'a umT5 encoder needs family "umt5" and a width that its heads divide, got {config.family!r}, '
            f"{config.width} and {config.heads}"
        )
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size, d_model=config.width, d_kv=config.width // config.heads, d_ff=config.ffn,
            num_layers=config.layers, num_heads=config.heads, dropout_rate=0.0,
        )
    )  # fmt: skip


class UMT5PromptEncoder(nn.Module):
    """transformers' `UMT5EncoderModel` (Wan's umT5-XXL) behind the same protocol."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 512) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.width: int = model.config.d_model
        self.max_tokens = max_tokens

    @property
    def config(self) -> PromptEncoderConfig:
        """What our configuration says of this encoder."""
        own = self.model.config
        return PromptEncoderConfig(
            family="umt5", width=own.d_model, layers=own.num_layers, heads=own.num_heads, ffn=own.d_ff,
            vocab_size=own.vocab_size, max_tokens=self.max_tokens,
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """-> (B, max_tokens, width), zero after each prompt's end."""
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        for prompt in cleaned:
            if (count := len(self.tokenizer(prompt).input_ids)) > self.max_tokens:
                _warn_cut(prompt, count, self.max_tokens)
        batch = self.tokenizer(
            cleaned, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        states_BLD = self.model(batch.input_ids, batch.attention_mask).last_hidden_state
        return states_BLD * batch.attention_mask.unsqueeze(-1).to(states_BLD.dtype)

    def save(self, folder: Path | str) -> None:
        """Write a transformers folder with the tokenizer beside the weights."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path | str, max_tokens: int = 512) -> UMT5PromptEncoder:
        """Read a folder written by `save`."""
        return cls.from_pretrained(str(folder), subfolder="", tokenizer_subfolder="", max_tokens=max_tokens)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        subfolder: str = "text_encoder",
        tokenizer_subfolder: str = "tokenizer",
        dtype: torch.dtype = torch.float32,
        max_tokens: int = 512,
    ) -> UMT5PromptEncoder:
        """From a folder or hub id in Wan's layout (`Wan-AI/Wan2.2-TI2V-5B-Diffusers`)."""
        try:
            model = UMT5EncoderModel.from_pretrained(source, subfolder=subfolder, dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=tokenizer_subfolder)
        except LOAD_ERRORS as error:
            raise CheckpointError(f"cannot read a umT5 encoder from {source} ({subfolder}): {error}") from error
        return cls(model, tokenizer, max_tokens)

    @classmethod
    def from_module(
        cls, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 512
    ) -> UMT5PromptEncoder:
        """Around a model that is already built."""
        return cls(model, tokenizer, max_tokens)


def clean_prompt(text: str) -> str:
    """HTML entities resolved and white space collapsed, as Wan's weights saw their prompts.

    Where ftfy is installed it mends broken characters first and makes curly quotes straight; diffusers' Wan
    pipeline does the same under the same condition."""
    try:
        import ftfy
    except ImportError:
        pass
    else:
        text = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def _warn_cut(prompt: str, tokens: int, limit: int) -> None:
    log.warning("prompt cut to %d of its %d tokens: %r", limit, tokens, prompt[:80])
