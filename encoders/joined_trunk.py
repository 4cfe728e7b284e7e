"""Several pretrained trunks over one image: what they see is joined place by place, channel beside channel.

Trunks trained differently miss different things (self-supervised DINOv2 and an ImageNet-22k classifier, say), and a
frozen trunk costs its features once. `timm/<a>[@pixels]+timm/<b>[@pixels]`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, layer_norm

from encoders.base import Features, Trunk
from encoders.trunks import TimmTrunk, Weights, pool_grid, square_timm_trunk
from kernels.errors import UserError


class JoinedTrunk(Trunk):
    """images (B, 3, H, W) in 0..1 -> tokens (B, 1 + g·g, ΣF): a summary, then a grid as fine as the coarsest part's.

    Each part reads the image at its own size and by its own normalisation. Its summary is the mean of its prefix
    tokens, or of its grid where it has none. Parts are layer-normed before they are joined: whose features are larger
    says nothing. `pool` averages the joined grid.
    """

    mean = (0.0,) * 3
    std = (1.0,) * 3
    prefix = 1

    def __init__(self, parts: list[TimmTrunk], pool: int = 1) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.pool = pool
        self.grid = min(grid_side(part) for part in parts)
        self.width = sum(part.width for part in parts)
        self.tokens = 1 + (self.grid // pool) ** 2

    def forward(self, image: Tensor) -> Features:
        summaries = []
        grids = []
        for part in self.parts:
            summary, grid = self.part(part, image)  # type: ignore[arg-type]
            summaries.append(summary)
            grids.append(grid)
        patches = pool_grid(torch.cat(grids, -1), self.pool)
        x = torch.cat([torch.cat(summaries, -1)[:, None], patches], 1)
        return Features(x, x.new_ones(x.shape[:2], dtype=torch.bool))

    def part(self, trunk: TimmTrunk, image: Tensor) -> tuple[Tensor, Tensor]:
        """One trunk's summary (B, F) and its grid (B, g·g, F) at the joined resolution, both layer-normed."""
        mean = image.new_tensor(trunk.mean).view(3, 1, 1)
        std = image.new_tensor(trunk.std).view(3, 1, 1)
        x = trunk((resized(image, trunk.size) - mean) / std).tokens
        patches = x[:, trunk.prefix :]
        summary = (x[:, : trunk.prefix] if trunk.prefix else patches).mean(1)
        side = round(patches.shape[1] ** 0.5)
        grid = adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), self.grid)
        grid = grid.flatten(2).transpose(1, 2)
        return layer_norm(summary, x.shape[-1:]), layer_norm(grid, x.shape[-1:])


def grid_side(trunk: TimmTrunk) -> int:
    """Tokens per side of a trunk's grid. Raises ValueError where it is not square."""
    tokens = trunk.tokens - trunk.prefix
    side = round(tokens**0.5)
    if side**2 != tokens:
        raise UserError(f"image.trunk joins square grids of tokens, but a part has {tokens} of them")
    return side


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) -> (B, 3, *size), bicubic with antialiasing; itself where it has that size."""
    return image if image.shape[-2:] == size else interpolate(image, size, mode="bicubic", antialias=True)


def build_joined_trunk(trunk: str, size: int, weights: Weights, pool: int) -> JoinedTrunk:
    """`timm/<a>[@pixels]+timm/<b>[@pixels]`; `size` is for parts that name none; weights: their files, joined by +.

    Raises ValueError on a part that is not timm's, a size that is no number, or another number of files than of parts.
    """
    specs = trunk.split("+")
    files: list[Weights] = [weights] * len(specs)
    if isinstance(weights, str):
        files = list(weights.split("+"))
    if len(files) != len(specs):
        raise UserError(f"image.trunk={trunk!r} has {len(specs)} parts: image.weights needs as many files, joined by +")
    parts = []
    for spec, file in zip(specs, files, strict=True):
        library, _, name = spec.strip().partition("/")
        name, _, pixels = name.partition("@")
        if library != "timm" or (pixels and not pixels.isdigit()):
            raise UserError(f"image.trunk={trunk!r}: each part must be timm/<name> or timm/<name>@<pixels>")
        parts.append(square_timm_trunk(name, int(pixels or size), file))
    return JoinedTrunk(parts, pool)
