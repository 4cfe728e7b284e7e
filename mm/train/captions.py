"""Writing the captions of a training step, each token from those before it and what it describes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from alignment.progressive import PairRows
from kernels.padding import real_rows
from mm.batch import Batch
from mm.model.causal import Condition, Whole
from mm.model.multimodal import ModelOutput
from mm.model.writer import Writer


@dataclass
class Written:
    """One term: its name, its value () in nats a token, the router's losses by name and load (layers, M, E) of its
    reading."""

    name: str
    value: Tensor
    losses: dict[str, Tensor]
    load: Tensor


register_dataclass(Written)


def write_captions(
    writer: Writer, output: ModelOutput, batch: Batch, rows: PairRows, weights: Mapping[str, float]
) -> list[Written]:
    """Write the captions of a batch beside each modality that they describe, and beside nothing.

    Args:
        writer: of the model.
        output: the model's forward of `batch`.
        batch: the samples of this rank.
        rows: of the pairs of modalities.
        weights: of the terms that are on, by name.

    Returns:
        the terms `caption/<modality>` and `continuation` that have a weight.
    """
    found = []
    ids = batch.inputs["text"]
    for (modality, other), pair in rows.items():
        name = f"caption/{modality}"
        if other == "text" and name in weights:
            condition = writer.condition_of(output.seen, [modality]).rows(pair.a)
            real = batch.masks["text"][pair.b] & pair.real[:, None]
            found.append(write_whole(writer, name, ids[pair.b], real, condition))
    if "continuation" in weights:
        real = batch.masks["text"] & batch.present["text"][:, None]
        found.append(write_whole(writer, "continuation", ids, real, None))
    return found


def write_whole(writer: Writer, name: str, ids: Tensor, real: Tensor, condition: Condition | None) -> Written:
    """Write texts of which every token is known.

    Args:
        writer: of the model.
        name: of the term.
        ids: (B, L) int64.
        real: (B, L) bool, the tokens that count.
        condition: what each is written beside, or None.
    """
    # A text's last token foretells nothing and is not read, whatever the length of the batch's longest text.
    real = real[:, 1:]
    out = writer.read(ids[:, :-1], real, Whole(real), positions(ids), condition)
    assert out.load is not None  # of a model in training
    value = next_token_loss(writer, out.x, ids[:, 1:], real)
    return Written(name, value, out.losses, out.load)


def positions(ids: Tensor) -> Tensor:
    """Of all tokens but the last of ids (B, L): (L - 1,) int64."""
    return torch.arange(ids.shape[1] - 1, device=ids.device)


def next_token_loss(writer: Writer, x: Tensor, following: Tensor, real: Tensor) -> Tensor:
    """The cross-entropy of read tokens x (B, T, D) and the ids (B, T) that follow them.

    A token that is never written, as one that training captions lack, is read, and not asked for.
    """
    labels, written = writer.labels(following)
    real = (real & written).flatten()
    x = x.flatten(0, 1)
    labels = labels.flatten()
    # Padding would cost as much as a token: a vocabulary is wide.
    if (rows := real_rows(real)) is not None:
        x, labels, real = x[rows], labels[rows], real[rows]
    return writer.cross_entropy(x, labels, real)
