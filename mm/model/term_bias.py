"""Terms of a domain as token sequences: which tokens of a caption belong to one.

A bias on the attention logits of those tokens, whose strength every head learns, draws attention to them, see
`Attention.add_term_bias`; the bias is bounded, so that the other tokens stay visible.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from encoders.tokenizer import Tokenizer

PADDING = -1
"""Fills up a row of token ids."""
BASE = 0x9E3779B97F4A7C15 - 2**64
"""Base of the polynomial hash, modulo 2^64: it is odd, so that every token of a sequence changes the hash."""


class Terms(nn.Module):
    """Mark the tokens of terms: ids (B, L) int64 -> marks (B, L) bool.

    Args:
        sequences: (N, M) int64, a term's token ids in each row, filled up with -1. A buffer, stored with the weights.
    """

    sequences: Tensor

    def __init__(self, sequences: Tensor) -> None:
        super().__init__()
        self.register_buffer("sequences", sequences.clone())
        self.lengths: list[int] = []
        self._hash()

    def forward(self, ids: Tensor) -> Tensor:
        """Find all occurrences of all terms, those of one length at a time.

        Args:
            ids: token ids (B, L) int64 of captions.

        Returns:
            (B, L) bool, True at every token of every occurrence of a term.
        """
        marks = torch.zeros_like(ids, dtype=torch.bool)
        for length in self.lengths:
            if length > ids.shape[1]:
                continue
            windows = sequence_hashes(ids.unfold(1, length, 1))
            starts = torch.isin(windows, self.get_buffer(hashes_name(length)))
            for offset in range(length):
                marks[:, offset : offset + starts.shape[1]] |= starts
        return marks

    def _hash(self) -> None:
        """Hash the terms of each length, once: a step that asked for the lengths would wait for its device."""
        lengths = (self.sequences != PADDING).sum(1)
        self.lengths = [length for length in lengths.unique().tolist() if length]
        for length in self.lengths:
            terms = sequence_hashes(self.sequences[lengths == length, :length])
            self.register_buffer(hashes_name(length), terms, persistent=False)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._hash()


def hashes_name(length: int) -> str:
    """The buffer that holds the hashes of the terms of a length."""
    return f"hashes_{length}"


def sequence_hashes(sequences: Tensor) -> Tensor:
    """Polynomial hashes modulo 2^64, equal for equal sequences.

    Args:
        sequences: token ids (..., L) int64.

    Returns:
        (...) int64.
    """
    hashes = torch.zeros_like(sequences[..., 0])
    for position in range(sequences.shape[-1]):
        hashes = hashes * BASE + sequences[..., position] + 1
    return hashes


def token_sequences(
    terms: Iterable[str], tokenizer: Tokenizer, vocabulary: Tensor | None
) -> tuple[Tensor, list[str], dict[str, str]]:
    """Tokenize terms, and sort out those that no caption can show to the model.

    Args:
        terms: words or phrases; blank and repeated ones are dropped.
        tokenizer: of the text encoder. A term counts with a space before it and without, where that differs.
        vocabulary: (V,) token ids that a scratch trunk has met; None where the trunk knows all of the tokenizer's.

    Returns:
        sequences (N, M) int64 for `Terms`, the terms that can be seen, and why each other one cannot.
    """
    known = None if vocabulary is None else set(vocabulary.tolist())
    rows: dict[tuple[int, ...], None] = {}
    seen: list[str] = []
    skipped: dict[str, str] = {}
    stripped = [term.strip() for term in terms]
    for term in dict.fromkeys(stripped):
        if not term:
            continue
        sequences = term_spellings(term, tokenizer)
        reason = unseen_reason(sequences, tokenizer, known)
        if reason is None:
            seen.append(term)
            for sequence in sorted(sequences):
                rows[sequence] = None
        else:
            skipped[term] = reason
    width = max(map(len, rows), default=1)
    padded = []
    for row in rows:
        filling = [PADDING] * (width - len(row))
        padded.append([*row, *filling])
    return torch.tensor(padded).view(-1, width), seen, skipped


def term_spellings(term: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Token ids of a term at the start of a caption and behind a space, where the tokenizer makes any."""
    at_start = tuple(tokenizer.word_ids(term))
    behind_space = tuple(tokenizer.word_ids(f"a {term}", after="a"))
    return {ids for ids in (at_start, behind_space) if ids}


def unseen_reason(sequences: set[tuple[int, ...]], tokenizer: Tokenizer, known: set[int] | None) -> str | None:
    """Why the model never sees a term of these token sequences; None where it can.

    Args:
        sequences: token ids of the term's spellings.
        tokenizer: of the text encoder.
        known: token ids that a scratch trunk has met; None for all.
    """
    if not sequences:
        return "the tokenizer makes nothing of it"
    if any(tokenizer.unknown in sequence for sequence in sequences):
        return "the tokenizer does not know it"
    if known is not None and not any(known.issuperset(sequence) for sequence in sequences):
        return "the text trunk has not met its tokens"
    if min(map(len, sequences)) > tokenizer.max_tokens - 2:
        return f"it is longer than a caption, of {tokenizer.max_tokens} tokens"
    return None
