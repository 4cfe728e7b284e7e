"""Terms of a domain as token sequences: which tokens of a caption belong to one.

Attention is drawn to those tokens by a bias on its logits whose strength every head learns, see
`Attention.add_term_bias`; nothing else is hidden by it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from encoders.text import Tokenizer

PADDING = -1
BASE = 0x9E3779B97F4A7C15 - 2**64  # odd, so that no token of a sequence is lost in the 64 bits of its number


class Terms(nn.Module):
    """ids (B, L) int64 -> marks (B, L) bool, True at every token of every occurrence of a term.

    Args:
        sequences: (N, M) int64, a term's token ids in each row, filled up with -1. It travels with the weights.
    """

    sequences: Tensor

    def __init__(self, sequences: Tensor) -> None:
        super().__init__()
        self.register_buffer("sequences", sequences.clone())

    def forward(self, ids: Tensor) -> Tensor:
        marks = torch.zeros_like(ids, dtype=torch.bool)
        lengths = (self.sequences != PADDING).sum(1)
        for length in lengths.unique().tolist():
            if not 0 < length <= ids.shape[1]:
                continue
            terms = numbers(self.sequences[lengths == length, :length])
            starts = torch.isin(numbers(ids.unfold(1, length, 1)), terms)
            for offset in range(length):
                marks[:, offset : offset + starts.shape[1]] |= starts
        return marks


def numbers(sequences: Tensor) -> Tensor:
    """Token ids (..., L) -> one number of 64 bits for each sequence (...): polynomial hashing, equal for equal ones."""
    found = torch.zeros_like(sequences[..., 0])
    for position in range(sequences.shape[-1]):
        found = found * BASE + sequences[..., position] + 1
    return found


def token_sequences(
    terms: Iterable[str], tokenizer: Tokenizer, vocabulary: Tensor | None
) -> tuple[Tensor, list[str], dict[str, str]]:
    """-> (sequences (N, M) for `Terms`, the terms that can be seen, and why the others cannot).

    vocabulary (V,): the token ids that a scratch trunk has met; None where the trunk knows all of the tokenizer's.
    A term counts with a space before it and without, where the tokenizer makes a difference.
    """
    known = None if vocabulary is None else set(vocabulary.tolist())
    rows, seen, skipped = dict[tuple[int, ...], None](), [], {}
    for term in dict.fromkeys(t.strip() for t in terms if t.strip()):
        sequences = {tuple(s) for s in (tokenizer.word_ids(term), tokenizer.word_ids(f"a {term}", after="a")) if s}
        if not sequences:
            skipped[term] = "the tokenizer makes nothing of it"
        elif any(tokenizer.unknown in s for s in sequences):
            skipped[term] = "the tokenizer does not know it"
        elif known is not None and not any(known.issuperset(s) for s in sequences):
            skipped[term] = "the text trunk has not met its tokens"
        elif min(map(len, sequences)) > tokenizer.max_tokens - 2:
            skipped[term] = f"it is longer than a caption, of {tokenizer.max_tokens} tokens"
        else:
            seen.append(term)
            rows.update(dict.fromkeys(sorted(sequences)))
    width = max(map(len, rows), default=1)
    return torch.tensor([[*s, *[PADDING] * (width - len(s))] for s in rows]).view(-1, width), seen, skipped
