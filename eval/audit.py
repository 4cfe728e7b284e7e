"""Which protocol can a published number come from? R@k counts queries, and decimals tell counts apart.

0.36584 is 9,146 / 25,000, and no count over 25,010 rounds to it. Text to image asks once per caption, image to text
once per image. Few decimals fit everything and say nothing; each verdict states the chance that a wrong size fits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import numpy as np
from rich.table import Table

from kernels.errors import UserError

Direction = Literal["i2t", "t2i"]
FLOAT32 = 1.2e-7
"""Figures with more than seven decimals were printed from float32 means and are only that exact."""
SLACK = 1e-9

QUERIES: dict[str, dict[int, str]] = {
    "t2i": {
        25_010: "5K, all captions of the Karpathy test split",
        25_000: "5K, five captions an image (or 1K folds)",
        25_014: "val2017, all captions",
        5_000: "5K with one caption per image, or a single 1K sample with five",
        1_000: "1K with one caption per image",
    },
    "i2t": {5_000: "5K (or the mean of five 1K folds)", 1_000: "a single 1K sample"},
}


@dataclass(frozen=True)
class Fit:
    """Can the figure be a count over `queries`?"""

    queries: int
    meaning: str
    fits: bool
    count: int
    """The nearest."""
    chance: float
    """That a random figure of so many decimals would fit as well."""

    @property
    def verdict(self) -> str:
        if not self.fits:
            return "ruled out"
        return "fits" if self.chance < 0.5 else "fits, as nearly everything would"


@dataclass(frozen=True)
class Published:
    """A figure as printed, and where."""

    value: str
    direction: Direction
    what: str
    source: str


PUBLISHED = (
    Published("0.36584", "t2i", "COCO 5K text to image R@1, the example of this project's brief", "project brief"),
    Published(
        "0.5411835312843323",
        "t2i",
        "InternVL-C, mscoco_captions image_retrieval_recall@1",
        "OpenGVLab/InternVL, clip_benchmark/README.md",
    ),
    Published(
        "0.7059999704360962",
        "i2t",
        "InternVL-C, mscoco_captions text_retrieval_recall@1",
        "OpenGVLab/InternVL, clip_benchmark/README.md",
    ),
    Published(
        "0.6885090470314026",
        "t2i",
        "InternVL-C, COCO-CN image_retrieval_recall@1",
        "OpenGVLab/InternVL, clip_benchmark/README.md",
    ),
    Published(
        "0.8575999736785889",
        "t2i",
        "ViT-B-16 laion400m_e32, Flickr8k image_retrieval_recall@5",
        "LAION-AI/CLIP_benchmark issue 48",
    ),
    Published(
        "0.9419999718666077",
        "i2t",
        "ViT-B-16 laion400m_e32, Flickr8k text_retrieval_recall@5",
        "LAION-AI/CLIP_benchmark issue 48",
    ),
    Published("28.42%", "t2i", "CLIP ViT-B/32, COCO with the first caption only, R@1", "openai/CLIP issue 115"),
    Published(
        "0.3044",
        "t2i",
        "ViT-B-32 openai, MSCOCO image retrieval R@1",
        "mlfoundations/open_clip docs/openclip_retrieval_results.csv",
    ),
    Published("37.8%", "t2i", "CLIP ViT-L/14@336px, COCO R@1", "Radford et al. 2021, table 13"),
    Published("92.3%", "t2i", "the claim this project checks: matching accuracy on MS-COCO", "project brief"),
)


@dataclass(frozen=True)
class Audit:
    """A figure and the sizes that it fits."""

    figure: Published
    fits: list[Fit]
    smallest: list[int]
    """The smallest numbers of queries that the figure fits at all."""

    def as_json(self) -> dict[str, Any]:
        fits = [asdict(fit) | {"verdict": fit.verdict} for fit in self.fits]
        return asdict(self.figure) | {"smallest": self.smallest, "fits": fits}

    def table(self) -> Table:
        """A line for each number of queries."""
        figure = self.figure
        title = f"{figure.value} {figure.direction} {figure.what} ({figure.source})"
        table = Table(title=title, title_justify="left")
        for column in ("queries", "meaning", "nearest count", "verdict", "chance of fitting"):
            table.add_column(column)
        for fit in self.fits:
            table.add_row(f"{fit.queries:,}", fit.meaning, f"{fit.count:,}", fit.verdict, f"{fit.chance:.2g}")
        return table


def audit_figure(figure: Published, queries: Sequence[int] = ()) -> Audit:
    """`audit` and `smallest_sizes` of a figure."""
    fits = audit(figure.value, figure.direction, queries)
    return Audit(figure, fits, smallest_sizes(figure.value))


def audit(value: str, direction: Direction, queries: Sequence[int] = ()) -> list[Fit]:
    """Evaluate one figure against the known numbers of queries of a direction and any further ones.

    Args:
        value: text, as printed, because its decimals count: `0.36584`, `36.584%` or `36.584` (above 1 is percent).
        direction: `i2t` asks once per image, `t2i` once per caption.
        queries: further numbers of queries.

    Raises:
        ValueError: on anything else.
    """
    if direction not in QUERIES:
        raise UserError(f"direction is i2t (one query per image) or t2i (one per caption), not {direction!r}")
    share, half = parse(value)
    sizes = dict(QUERIES[direction])
    for size in queries:
        sizes.setdefault(size, "asked for")
    fits = []
    for size, meaning in sizes.items():
        count = round(share * size)
        near = abs(count / size - share) <= half * (1 + SLACK)
        fits.append(Fit(size, meaning, near, count, min(1.0, 2 * half * size)))
    return fits


def smallest_sizes(value: str, limit: int = 40_000, show: int = 5) -> list[int]:
    """The smallest numbers of queries that the figure fits at all."""
    share, half = parse(value)
    sizes = np.arange(1, limit + 1)
    nearest = np.round(share * sizes) / sizes
    near = np.abs(nearest - share) <= half * (1 + SLACK)
    return sizes[near][:show].tolist()


def parse(value: str) -> tuple[float, float]:
    """(share in 0 .. 1, half of its last decimal place)."""
    text = value.strip()
    try:
        number = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        raise UserError(f"{value!r} is not a number such as 0.36584 or 36.58%") from None
    percent = text.endswith("%") or number > 1
    places = -int(number.as_tuple().exponent)
    share = number
    if percent:
        share = number / 100
        places += 2
    if not 0 <= share <= 1:
        raise UserError(f"{value!r} is not a share between 0 and 1 or a percentage")
    return float(share), max(0.5 * 10.0**-places, FLOAT32)
