"""A domain's terms, to whose tokens a run's attention is drawn."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from encoders.tokenizer import Tokenizer
from kernels.errors import UserError
from mm.config import AlignConfig
from mm.model.attention import Attention
from mm.model.multimodal import MultimodalModel
from mm.model.term_bias import token_sequences

logger = logging.getLogger(__name__)


def read_terms(path: str) -> list[str]:
    """The terms of a file, one in each line."""
    return Path(path).read_text().splitlines()


def add_term_bias(model: MultimodalModel, tokenizer: Tokenizer | None, terms: Iterable[str]) -> dict[str, object]:
    """Draw the model's attention to the terms that its tokenizer and trunk can see.

    A scratch trunk sees the tokens that it has met in training, a pretrained one all of its tokenizer's.

    Returns:
        `seen`: those terms. `skipped`: the others, with why.

    Raises:
        ValueError: where it can see none.
    """
    if tokenizer is None or "text" not in model.modalities:
        raise UserError(f"--terms: the run does not read text, it has {', '.join(model.modalities)}")
    trunk = model.encoders["text"].trunk
    vocabulary = getattr(trunk, "vocabulary", None)
    sequences, seen, skipped = token_sequences(terms, tokenizer, vocabulary)
    for term, reason in skipped.items():
        logger.warning("term %r is skipped: %s", term, reason)
    if not seen:
        examples = [f" ({term!r}: {reason})" for term, reason in skipped.items()]
        example = "".join(examples[:1])
        raise UserError(f"--terms: none of {len(skipped)} terms can be seen{example}")
    model.add_term_bias(sequences)
    print(f"terms: attention is drawn to {len(seen)}, {len(skipped)} skipped")
    return {"seen": seen, "skipped": skipped}


def term_biases(model: MultimodalModel) -> dict[str, list[float]]:
    """What each head adds to the logits of terms' tokens, by attention."""
    biases = {}
    for name, module in model.backbone.named_modules():
        if isinstance(module, Attention) and module.term_bias is not None:
            biases[name] = module.bounded_term_bias().tolist()
    return biases


def without_term_rates(config: AlignConfig) -> AlignConfig:
    """Settings of a run to which no terms are given: rates of term biases would fit no parameter."""
    rates = {}
    for pattern, rate in config.optim.rates.items():
        if not pattern.endswith("term_bias"):
            rates[pattern] = rate
    optim = replace(config.optim, rates=rates)
    return replace(config, optim=optim)
