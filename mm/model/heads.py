"""What stands on the backbone: pooling, projection onto the embedding, and the match head."""

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Tokens (B, T, D), mask (B, T) -> (B, D): the mean plus what one learned query attends to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        score = self.score(x).float().masked_fill(~mask[..., None], -1e4)
        weight = score.softmax(1).to(x.dtype)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return (weight * x).sum(1) + mean


class Projection(nn.Module):
    """Pooled vectors (N, D) -> (N, E): centred, scaled, and projected; a `hidden` width adds a small network.

    Untrained pooled vectors share one large direction and differ in a small remainder. Centred and scaled, the
    remainder is what the contrastive loss sees from the first step on, instead of after a plateau at ln(batch size).
    """

    def __init__(self, width: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.center = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, embedding)
        self.net: nn.Sequential | None = None
        if hidden:
            drop = nn.Dropout(dropout)
            self.net = nn.Sequential(drop, nn.Linear(width, hidden), nn.GELU(), drop, nn.Linear(hidden, embedding))

    def zero_initialise(self) -> None:
        """The projection starts at zero, and learns what to add to another."""
        last = [self.linear]
        if self.net is not None:
            last.append(self.net[-1])  # type: ignore[arg-type]  # a Linear
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, use_running_stats: bool = False) -> Tensor:
        """`use_running_stats` centres by the running statistics and leaves them: hard pairs must not move them."""
        center = self.center
        if use_running_stats:
            x = nn.functional.batch_norm(x, center.running_mean, center.running_var, eps=center.eps)
        else:
            x = center(x)
        y = self.linear(x)
        return y if self.net is None else y + self.net(x)


class MatchHead(nn.Module):
    """Unit vectors (N, E) of both sides -> logits (N,): a scaled cosine, and what a small network adds to it.

    It starts undecided at a cosine of a half. Matching comes in when hard negatives lie there and above: were they
    called pairs with confidence, its first steps would undo what the contrastive terms have reached.
    """

    def __init__(self, embedding: int, hidden: int, scale: float = 5.0) -> None:
        super().__init__()
        # One element, not none: FSDP2 cannot shard a parameter without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([scale]).log())
        self.bias = nn.Parameter(torch.tensor([-scale / 2]))
        self.net = nn.Sequential(nn.Linear(3 * embedding, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        cosine = self.log_scale.exp() * (x * y).sum(-1) + self.bias
        # Entries of about one, whatever the width.
        entry = x.shape[-1] ** 0.5
        x = x * entry
        y = y * entry
        joint = torch.cat([x, y, x * y], -1)
        return cosine + self.net(joint).squeeze(-1).float()
