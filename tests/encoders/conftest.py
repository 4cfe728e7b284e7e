"""Tokenizers small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "on", "red", "mat"]


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., Any]:
    """write_tokenizer(folder, **options of transformers) writes a tokenizer of nine words that ends each caption."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    def write(folder: Path, pad_token: str = "<pad>", **options: Any) -> Any:
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        written = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token=pad_token,
            eos_token="</s>",
            sep_token="</s>",
            unk_token="<unk>",
            model_input_names=["input_ids", "attention_mask"],
            **options,
        )
        written.save_pretrained(folder)
        return written

    return write
