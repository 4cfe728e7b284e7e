"""How the next token is chosen of its logits: the likeliest, or drawn.

Letters: B sequences, V tokens.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kernels.errors import UserError
from kernels.ranges import check_ranges


@dataclass(frozen=True)
class Decoding:
    """How text is written."""

    max_tokens: Annotated[int, "[1, inf)"] = 32
    """Tokens of a text at most, those of its prefix not counted."""
    temperature: Annotated[float, "[0, inf)"] = 0.0
    """0 takes the likeliest token; above it tokens are drawn, the higher the more evenly."""
    top_k: Annotated[int, "[0, inf)"] = 0
    """Draw among so many of the likeliest; 0 for all."""
    top_p: Annotated[float, "(0, 1]"] = 1.0
    """Draw among the likeliest that together have this probability (Holtzman et al. 2020)."""
    beams: Annotated[int, "[1, inf)"] = 1
    """Texts that are continued side by side, of which the likeliest by token is returned."""
    stop: str | None = None
    """A token at which a text ends, beside the end token."""
    seed: Annotated[int, "[0, inf)"] = 0
    """Of what is drawn: a text depends on it and on the text's place in the list, not on what is written beside it."""

    def __post_init__(self) -> None:
        check_ranges(self, "decoding")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise UserError("top_k and top_p have no effect without temperature: the likeliest token is taken")
        if self.temperature and self.beams > 1:
            raise UserError(f"beams={self.beams} and temperature={self.temperature}: beams are searched, not drawn")


def drawn_by(decoding: Decoding, number: int) -> torch.Generator:
    """What decides the draws of a text, by its place in the list."""
    return torch.Generator().manual_seed(decoding.seed * 1_000_003 + number)


def check_finite(logits: Tensor, when: str) -> None:
    """Raises ValueError where logits are NaN or infinite; `when` says which token they are of."""
    if not torch.isfinite(logits).all():
        raise UserError(f"the logits of {when} are not finite: the weights are damaged, or diverged in training")


def choose(logits: Tensor, decoding: Decoding, draws: list[torch.Generator]) -> list[int]:
    """The next token of each sequence.

    Args:
        logits: (B, V) float32; -inf where a token is never written.
        decoding: how.
        draws: B of them, one for each sequence.

    Returns:
        B numbers in 0..V-1.
    """
    if not decoding.temperature:
        return logits.argmax(1).tolist()
    probabilities = kept(logits / decoding.temperature, decoding).softmax(1).cpu()
    found = []
    for row, generator in zip(probabilities, draws, strict=True):
        found.append(int(torch.multinomial(row, 1, generator=generator)))
    return found


def kept(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits (B, V) with -inf at the tokens that top_k and top_p leave out; the likeliest always stays."""
    if 0 < decoding.top_k < logits.shape[1]:
        least = logits.topk(decoding.top_k, 1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = logits.sort(1, descending=True)
        probability = ordered.softmax(1)
        before = probability.cumsum(1) - probability
        ordered = ordered.masked_fill(before >= decoding.top_p, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(1, order, ordered)
    return logits
