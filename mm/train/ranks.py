"""What makes the ranks of a run one: batches of one shape, and an end of all where one ends."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException
from torch.nn.functional import pad

from kernels.collectives import all_ranks, largest_over_ranks, world
from kernels.errors import UserError
from mm.artifacts.environment import is_main_process
from mm.batch import Batch

LOST = re.compile(r"closed by peer|reset by peer|broken pipe|timed out|timeout|connection refused", re.IGNORECASE)
"""What torch.distributed says of a rank that does not answer."""
USERS = re.compile(r"^(?:kernels\.errors\.\w+|mm\.files\.InUseError|FileNotFoundError|PermissionError): (.+)")
"""The last line of a traceback whose error is the user's."""


def same_lengths(batch: Batch) -> Batch:
    """Pad every modality to the longest row of all ranks, as the rows of one process are; padding changes no result.

    Args:
        batch: of this rank, with the modalities that the other ranks' have.

    Returns:
        the same batch where there is one rank.
    """
    group = world()
    if group is None or not batch.masks:
        return batch
    names = sorted(batch.masks)
    own = torch.tensor([batch.masks[m].shape[1] for m in names], device=batch.ids.device)
    longest = largest_over_ranks(own, group).tolist()
    return padded_to(batch, dict(zip(names, longest, strict=True)))


def padded_to(batch: Batch, lengths: Mapping[str, int]) -> Batch:
    """The same batch with rows of these lengths, by modality; padding changes no result."""
    padded = replace(batch, inputs=dict(batch.inputs), features=dict(batch.features), masks=dict(batch.masks))
    for m, length in lengths.items():
        shape = batch.masks[m].shape
        for tensors in (padded.inputs, padded.features, padded.masks):
            # Raw inputs beside cached features may have no such dimension.
            if m in tensors and tensors[m].shape[:2] == shape:
                tensors[m] = lengthened(tensors[m], length)
    return padded


def lengthened(x: Tensor, length: int) -> Tensor:
    """x (N, L, …) -> (N, length, …), zeros (False) beyond L."""
    behind = [0, 0] * (x.ndim - 2) + [0, length - x.shape[1]]
    return pad(x, behind)


@contextmanager
def one_end() -> Iterator[None]:
    """Training in which all ranks end where one does, each in one line or none.

    What is not finite is so on every rank, since a loss is that of the global batch: the first rank says it. A rank
    that ends alone says why; its connections close, and the others say that they have lost it.

    Raises:
        ValueError: another rank has ended or does not answer, or a forked one had an error that a user can cause.
    """
    try:
        yield
    except FloatingPointError as error:
        if is_main_process():
            raise
        raise SystemExit(2) from error
    except ProcessRaisedException as error:
        said = USERS.match(str(error).strip().splitlines()[-1])
        if said is None:
            raise
        raise UserError(said[1]) from error
    except RuntimeError as error:
        if all_ranks() is None or LOST.search(str(error)) is None:
            raise
        raise UserError(
            "another process of this run has ended, or does not answer: see what it said; --resume true goes on from"
            " the newest checkpoint"
        ) from error
