"""Heads on the backbone: pooling, projection onto the embedding, and the match head."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from encoders import Encoder
from encoders.batch_norm import JointBatchNorm, counted_rows


class AttentionPool(nn.Module):
    """Pool tokens (B, T, D) with mask (B, T) into (B, D): their mean plus what one learned query attends to.

    Args:
        width: D, of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool the real tokens.

        Args:
            x: tokens (B, T, D).
            mask: (B, T) bool, True where a token is real.

        Returns:
            (B, D).
        """
        # A softmax does not see the bias: its gradient would be rounding alone, which AdamW makes steps of full size.
        score = nn.functional.linear(x, self.score.weight) + 0 * self.score.bias
        score = score.squeeze(-1).float().masked_fill(~mask, -1e4)
        count = mask.sum(1, keepdim=True).clamp(min=1)
        weight = score.softmax(1) + mask / count
        with torch.autocast(x.device.type, enabled=False):
            return torch.bmm(weight[:, None].to(x.dtype), x).squeeze(1)


class Center(JointBatchNorm, nn.BatchNorm1d):
    """Centre and scale pooled vectors (N, D) by the statistics of the global batch, without parameters.

    Args:
        width: D, of a pooled vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def by_running_stats(self, x: Tensor) -> Tensor:
        """Normalise x (N, D) by the running statistics, and leave them."""
        assert self.running_mean is not None and self.running_var is not None
        # Copies, because a later forward of the same step moves the statistics that this one's backward reads.
        return nn.functional.batch_norm(x, self.running_mean.clone(), self.running_var.clone(), eps=self.eps)


class LinearAndNet(nn.Module):
    """Project vectors (..., D) onto (..., E) linearly; optionally add what a small network makes of them.

    Args:
        width: D.
        embedding: E.
        hidden: hidden width of the network that is added; 0 for none.
        dropout: before and inside of that network.
    """

    def __init__(self, width: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, embedding)
        self.net: nn.Sequential | None = None
        if hidden:
            drop = nn.Dropout(dropout)
            self.net = nn.Sequential(drop, nn.Linear(width, hidden), nn.GELU(), drop, nn.Linear(hidden, embedding))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        y = self.linear(x)
        if self.net is None:
            return y
        return y + self.net(x)


class Projection(LinearAndNet):
    """Project pooled vectors (N, D) onto the embedding (N, E): centre, scale, multiply; optionally add a small network.

    Untrained pooled vectors share one large direction and differ in a small remainder. Centred and scaled, the
    remainder is what the contrastive loss sees from the first step on, instead of after a plateau at ln(batch size).

    Args:
        width: D, of a pooled vector.
        embedding: E, of the retrieval embedding.
        hidden: hidden width of the network that is added to the linear projection; 0 for none.
        dropout: before and inside of that network.
    """

    def __init__(self, width: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__(width, embedding, hidden, dropout)
        self.center = Center(width)

    def zero_initialise(self) -> None:
        """Make the output zero, so that the projection learns what to add to another one."""
        zero_initialise(self.linear)
        if self.net is not None:
            zero_initialise(self.net[-1])  # type: ignore[arg-type]  # a Linear

    def forward(self, x: Tensor, use_running_stats: bool = False, present: Tensor | None = None) -> Tensor:
        """Project pooled vectors.

        Args:
            x: pooled vectors (N, D).
            present: (N,) bool, the rows that count in the batch's statistics; None for all.
            use_running_stats: centre by the running statistics and leave them unchanged: hard pairs must not move them.

        Returns:
            (N, E), not normalised.
        """
        if use_running_stats:
            x = self.center.by_running_stats(x)
        else:
            with counted_rows(self.center, present):
                x = self.center(x)
        return super().forward(x)


def zero_initialise(layer: nn.Linear) -> None:
    """Make the output zero, so that the layer learns what to add to another one."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def direct_projections(encoders: Mapping[str, Encoder], head: tuple[int, int, float]) -> dict[str, Projection]:
    """A projection of each encoder's summary onto the embedding.

    Args:
        encoders: by modality.
        head: embedding width, hidden width and dropout of each projection.
    """
    return {m: Projection(encoder.bottleneck.summary_width, *head) for m, encoder in encoders.items()}


def token_projections(
    encoders: Mapping[str, Encoder], width: int, head: tuple[int, int, float]
) -> tuple[dict[str, nn.Linear], dict[str, LinearAndNet]]:
    """What projects tokens for late interaction: the backbone's, and those of each encoder's trunk.

    Args:
        encoders: by modality.
        width: of the backbone.
        head: width, hidden width and dropout of the projections of trunks' tokens; with a hidden width of 0 there are
            none, with some the backbone's begin at zero.
    """
    of_backbone = {m: nn.Linear(width, head[0]) for m in encoders}
    if not head[1]:
        return of_backbone, {}
    for layer in of_backbone.values():
        zero_initialise(layer)
    return of_backbone, {m: LinearAndNet(encoder.bottleneck.held_width, *head) for m, encoder in encoders.items()}


class MatchHead(nn.Module):
    """Score pairs of unit vectors (N, E) -> logits (N,): a scaled cosine, and what a small network adds to it.

    The network adds from zero: where nothing trains it, pairs are ordered by their cosine.

    The logit starts at zero for a cosine of a half. Matching is trained on hard negatives, whose cosines lie there and
    above: a head that called them pairs with confidence would undo in its first steps what the contrastive terms have
    reached.

    Args:
        embedding: E, of the retrieval embedding.
        hidden: hidden width of the network.
        scale: initial factor of the cosine.
    """

    def __init__(self, embedding: int, hidden: int, scale: float = 5.0) -> None:
        super().__init__()
        # Both parameters have one element and one dimension: FSDP2 cannot shard a parameter without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([scale]).log())
        self.bias = nn.Parameter(torch.tensor([-scale / 2]))
        self.net = nn.Sequential(nn.Linear(3 * embedding, hidden), nn.GELU(), nn.Linear(hidden, 1))
        zero_initialise(self.net[-1])  # type: ignore[arg-type]  # a Linear

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-odds that x[i] and y[i] are a pair.

        Args:
            x: unit vectors (N, E) of one side.
            y: unit vectors (N, E) of the other side.

        Returns:
            logits (N,).
        """
        cosine = self.log_scale.exp() * (x * y).sum(-1) + self.bias
        # Scaled by √E, the entries of a unit vector are about one at any width.
        entry = x.shape[-1] ** 0.5
        x = x * entry
        y = y * entry
        joint = torch.cat([x, y, x * y], -1)
        correction = self.net(joint).squeeze(-1).float()
        return cosine + correction
