"""Features of a run's frozen image trunk: as they are cached, the trunk as its library runs it, and the limit.

    python scripts/bench_features.py --config configs/flickr8k_recipe.yaml
    python scripts/bench_features.py --image.trunk timm/tiny_vit_5m_224 --image.size 224 --json rows.json

Random images of the run's size, interleaved, median of the repeats. The limit is the trunk's FLOPs, as torch counts
them, over the rate of one large product.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from encoders.image import ImageEncoder
from kernels.dispatch import bf16_autocast, has_bf16
from kernels.timing import Contest, Run
from mm.cli import run_command
from mm.config import AlignConfig
from mm.data.features import ROWS_AT_ONCE, Extractor
from mm.files import write_json

SIDE = 3000  # of the product that tells the rate


@dataclass(frozen=True)
class FeaturesConfig(AlignConfig):
    """How fast the features of a run's image trunk are made."""

    pictures: int = 64
    """Images of one pass: as many as are read at a time when they are cached."""
    repeats: int = 5
    json: str | None = None
    """Where to write what was measured."""


def bench_features(config: FeaturesConfig) -> None:
    torch.manual_seed(config.seed)
    encoder = ImageEncoder(config.image, config.model.backbone.width).eval()
    images = torch.randint(0, 256, (config.pictures, 3, config.image.size, config.image.size), dtype=torch.uint8)
    side = torch.randn(SIDE, SIDE)
    extract = Extractor(encoder, ROWS_AT_ONCE["image"])
    runs = {
        "ours": lambda: extract(images, None),
        "folded only": lambda: extract.read(images, None),
        "as it is": inferring(lambda: encoder.features(images)),
        "product": inferring(lambda: side @ side),
    }
    precision = "bfloat16" if has_bf16("cpu") else "float32"
    case = f"{config.image.trunk}, {config.pictures} images"
    rows = Contest("features", case, precision, "forward", runs).rows(config.repeats)
    rate = 2e3 * SIDE**3 / rows.pop()["milliseconds"]
    limit = 1e3 * flops(encoder, images[:1]) / rate
    rows = [row | {"milliseconds_a_picture": round(row["milliseconds"] / config.pictures, 2)} for row in rows]
    result = {
        "gflops_of_a_product": round(rate / 1e9, 1),
        "limit_milliseconds_a_picture": round(limit, 4),
        "rows": rows,
    }
    show(result)
    if config.json:
        write_json(Path(config.json), result)


def inferring(run: Run) -> Run:
    """Without gradients, in the precision in which features are cached."""

    def inferred() -> Any:
        with torch.inference_mode(), bf16_autocast("cpu"):
            return run()

    return inferred


def flops(encoder: ImageEncoder, image: Tensor) -> int:
    """Of one image (1, 3, H, W): products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.features(image)
    return counter.get_total_flops()


def show(result: dict[str, Any]) -> None:
    title = f"{result['rows'][0]['case']}; a large product runs at {result['gflops_of_a_product']:.0f} GFLOP/s"
    table = Table(title=title, title_justify="left")
    for name in ("implementation", "ms an image", "of the limit"):
        table.add_column(name, justify="left" if name == "implementation" else "right")
    limit = result["limit_milliseconds_a_picture"]
    for row in result["rows"]:
        taken = row["milliseconds_a_picture"]
        table.add_row(row["implementation"], f"{taken:.1f}", f"{100 * limit / taken:.0f} %")
    Console().print(table)


if __name__ == "__main__":
    run_command(FeaturesConfig, bench_features)
