"""One modality of a batch through its encoder, raw or from the cached features of its trunk."""

from collections.abc import Mapping

import torch
from torch import Tensor

from encoders import Encoder, EncoderOutput, Features
from kernels.collectives import Group, rows_of_ranks
from mm.batch import Batch
from mm.model.packed import Reading, Stream


def encode(
    encoder: Encoder,
    batch: Batch,
    modality: str,
    reconstruct: bool = True,
    rows: Tensor | None = None,
    draws: torch.Generator | None = None,
    coded: Tensor | None = None,
    tokens: bool = True,
) -> EncoderOutput:
    """Send one modality of a batch through its encoder; cached features replace the trunk, which then does not run.

    Args:
        encoder: of that modality.
        batch: holds the modality's raw inputs (N, …), its cached features (N, T, F), or both. Rows that are not present
            are read as zeros, whatever they hold, and no token of theirs is real.
        modality: its name.
        reconstruct: whether the losses include decoding the raw input, if the batch has it.
        rows: (N,) bool, which rows are encoded; None encodes all.
        draws: on the CPU, decides which of the raw input is decoded; None draws from torch's own.
        coded: (n,) bool, the rows whose tokens show their codes; None for all.
        tokens: whether there are tokens, codes and losses; without, the trunk's summary is all there is.

    Returns:
        EncoderOutput with tokens (n, T, D) of the n rows.
    """

    def chosen(tensors: Mapping[str, Tensor]) -> Tensor | None:
        tensor = tensors.get(modality)
        if tensor is None or rows is None:
            return tensor
        return tensor[rows]

    present = chosen(batch.present)
    assert present is not None
    mask = one_real(chosen(batch.masks), present)
    cached = zeroed(chosen(batch.features), present)
    features = None
    if cached is not None:
        assert mask is not None
        features = Features(cached.float(), mask)
    inputs = zeroed(chosen(batch.inputs), present)
    return encoder(inputs, mask, features, reconstruct, present, draws, coded, tokens)


def zeroed(x: Tensor | None, present: Tensor) -> Tensor | None:
    """x (N, …) with zeros in the rows that are not present, (N,) bool."""
    if x is None:
        return None
    return torch.where(present.view(-1, *[1] * (x.ndim - 1)), x, 0)


def one_real(mask: Tensor | None, present: Tensor) -> Tensor | None:
    """mask (N, L) in which the first input alone is real in rows that are not present: no trunk meets an empty one."""
    if mask is None:
        return None
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return torch.where(present[:, None], mask, first)


def streams_of(encoded: Mapping[str, EncoderOutput]) -> Reading:
    """Encoder outputs (N, T, D) by modality, as the streams of one reading."""
    return {m: Stream(e.tokens, e.mask, e.term_mask) for m, e in encoded.items()}


def select(encoded: EncoderOutput, rows: Tensor, group: Group = None, real: Tensor | None = None) -> EncoderOutput:
    """Some rows of an encoder's output, for the joint reading: without losses and metrics, which belong to the whole
    batch, and without the trunk's features, which are wide.

    Args:
        encoded: tokens (N, T, D).
        rows: (n,) int64; a row may occur more than once.
        group: its ranks' outputs are joined, and all of them select the same rows: row i of rank r is r · N + i.
        real: (n,) bool; no token of the other rows is. None for all.

    Returns:
        EncoderOutput with tokens (n, T, D).
    """

    def chosen(x: Tensor) -> Tensor:
        return rows_of_ranks(x, rows, group)

    term_mask = None if encoded.term_mask is None else chosen(encoded.term_mask)
    tokens = chosen(encoded.tokens)
    codes = chosen(encoded.codes)
    mask = chosen(encoded.mask)
    if real is not None:
        mask = mask & real[:, None]
    summary = chosen(encoded.summary)
    return EncoderOutput(tokens, codes, mask, summary, term_mask=term_mask)
