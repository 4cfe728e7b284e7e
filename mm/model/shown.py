"""What a training step shows the backbone of its encoders' output: a part of the tokens, the codes of a part of the
rows. Draws are over the global batch, in the same state on every rank."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from alignment import Merge, fork
from encoders import EncoderOutput, Features
from kernels.collectives import rank_and_size, step_group
from kernels.draws import uniform


def own_uniform(shape: tuple[int, ...], draws: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of this rank's rows, as one process draws them for the rows of all ranks.

    Args:
        shape: (N, ...), the same on every rank.
        draws: in the same state on every rank; None draws from torch's own of the CPU.
        device: of the result.
    """
    rows, *rest = shape
    rank, ranks = rank_and_size(step_group())
    return uniform((ranks * rows, *rest), draws, device)[rank * rows : (rank + 1) * rows]


def rows_with_codes(rows: int, share: Tensor, draws: torch.Generator | None) -> Tensor:
    """Draw the rows whose codes the backbone sees.

    Args:
        rows: N.
        share: (), of all rows, in [0, 1].
        draws: see `own_uniform`.

    Returns:
        (N,) bool.
    """
    return own_uniform((rows,), draws, share.device) < share


def some_tokens(encoded: EncoderOutput, share: float, draws: torch.Generator | None, prefix: int = 0) -> EncoderOutput:
    """Draw a share of each row's real tokens and leave out the others, which then cost nothing (FLIP, Li et al. 2023).

    Losses, metrics and the trunk's summary stay those of all tokens; features are those of the same tokens.

    Args:
        encoded: tokens (N, T, D).
        share: of the real tokens of a row, rounded up; with 1, and with 0, of which there are none, nothing is drawn.
        draws: see `own_uniform`.
        prefix: how many of the first tokens (CLS) stay.

    Returns:
        EncoderOutput with tokens (N, ⌈share·T⌉, D), in an order of their own: real ones first.
    """
    if share in (0, 1):
        return encoded
    mask = encoded.mask
    length = mask.shape[1]
    chance = own_uniform(tuple(mask.shape), draws, mask.device)
    place = torch.arange(length, device=mask.device)
    chance = torch.where(place < prefix, place - length, chance).masked_fill(~mask, 2.0)
    most = math.ceil(share * length)
    kept = chance.argsort(1)[:, :most]
    count = (share * mask.sum(1, keepdim=True)).ceil()
    real = torch.arange(most, device=mask.device) < count

    def chosen(x: Tensor) -> Tensor:
        index = kept.view(*kept.shape, *[1] * (x.ndim - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    term_mask = None if encoded.term_mask is None else chosen(encoded.term_mask)
    tokens = chosen(encoded.tokens)
    codes = torch.where(real[..., None], chosen(encoded.codes), -1)
    features = None if encoded.features is None else Features(chosen(encoded.features.tokens), real)
    return replace(encoded, tokens=tokens, codes=codes, mask=real, term_mask=term_mask, features=features)


def forked(encoded: EncoderOutput, merge: Merge) -> tuple[EncoderOutput, EncoderOutput]:
    """An encoder's output for the reading that embeds, and for the one that matches, see `alignment.fork`."""
    if merge == "sum":
        return encoded, encoded
    tokens = fork(encoded.tokens, merge)
    summary = fork(encoded.summary, merge)
    first, second = (replace(encoded, tokens=x, summary=y) for x, y in zip(tokens, summary, strict=True))
    return first, second
