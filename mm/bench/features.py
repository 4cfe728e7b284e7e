"""How fast the features of a frozen image trunk are made, and how fast they could be."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from encoders.image import ImageEncoder
from kernels.timing import Contest, Run
from mm.bench.config import FeaturesConfig
from mm.data.features import Extractor
from mm.device import Precision, autocast, choose_device, precision_name
from mm.files import write_json
from mm.modalities import MODALITIES

SIDE = 3000
"""Of the square product that tells the rate of arithmetic."""


def bench_features(config: FeaturesConfig) -> None:
    """Measure, print a table, and write it to `config.json`."""
    result = measure_features(config, choose_device(config.train.accelerator))
    show(result)
    if config.json:
        write_json(Path(config.json), result)


def measure_features(config: FeaturesConfig, device: torch.device) -> dict[str, Any]:
    """The rows of a contest, of which `milliseconds_an_image` are beside the limit's."""
    precision = config.train.precision
    torch.manual_seed(config.seed)
    size = config.image.size
    encoder = ImageEncoder(config.image, config.bottleneck, config.model.backbone.width).eval().to(device)
    images = torch.randint(0, 256, (config.images, 3, size, size), dtype=torch.uint8)
    case = f"{config.image.trunk}, {config.images} images"
    dtype = precision_name(precision, device)
    runs = implementations(encoder, images, precision, device)
    contest = Contest("features", case, dtype, "forward", runs, device=device)
    rows = contest.rows(config.repeats)
    milliseconds_of_product = rows.pop()["milliseconds"]
    rate = 2e3 * SIDE**3 / milliseconds_of_product
    limit = 1e3 * flops(encoder, images[:1].to(device)) / rate
    for row in rows:
        row["milliseconds_an_image"] = round(row["milliseconds"] / config.images, 2)
    return {
        "gflops_of_a_product": round(rate / 1e9, 1),
        "limit_milliseconds_an_image": round(limit, 4),
        "rows": rows,
    }


def implementations(
    encoder: ImageEncoder, images: Tensor, precision: Precision, device: torch.device
) -> dict[str, Run]:
    """What is timed on images (N, 3, H, W) uint8, which lie in the memory of the CPU.

    ours: as features are cached. folded only: its batch norms folded, but all rows at a time. as it is: the trunk as
    its library runs it. product: one large product, whose rate is the machine's.
    """
    side = torch.randn(SIDE, SIDE, device=device)
    extract = Extractor(encoder, MODALITIES["image"].rows_at_once, precision)

    def inferring(run: Run) -> Run:
        """Without gradients, in the precision in which features are cached."""

        def inferred() -> Any:
            with torch.inference_mode(), autocast(precision, device):
                return run()

        return inferred

    return {
        "ours": lambda: extract(images, None),
        "folded only": lambda: extract.read(images, None),
        "as it is": inferring(lambda: encoder.features(images.to(device))),
        "product": inferring(lambda: side @ side),
    }


def flops(encoder: ImageEncoder, image: Tensor) -> int:
    """Of one image (1, 3, H, W): products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.features(image)
    return counter.get_total_flops()


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    case = result["rows"][0]["case"]
    rate = result["gflops_of_a_product"]
    title = f"{case}; a large product runs at {rate:.0f} GFLOP/s"
    table = Table(title=title, title_justify="left")
    table.add_column("implementation")
    table.add_column("ms an image", justify="right")
    table.add_column("of the limit", justify="right")
    limit = result["limit_milliseconds_an_image"]
    for row in result["rows"]:
        taken = row["milliseconds_an_image"]
        percent = 100 * limit / taken
        table.add_row(row["implementation"], f"{taken:.1f}", f"{percent:.0f} %")
    Console().print(table)
