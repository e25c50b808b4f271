"""A tokenizer that needs no file: every byte of UTF-8 is a token.

It stands in for Qwen's and umT5's where their folders were not given: models with random weights, and tests. What it
makes of a text is about four times as long as what they make of it.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
BYTES = 256


def byte_tokenizer(*, ends: bool) -> PreTrainedTokenizerFast:
    """259 tokens: `<pad>`, `</s>`, `<unk>` and 256 bytes. `ends`: every text is closed by `</s>`, as umT5's are."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(letters) == BYTES
    inner = Tokenizer(BPE({mark: i for i, mark in enumerate([PAD, END, UNKNOWN, *letters])}, [], unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if ends:
        inner.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="right"
    )
