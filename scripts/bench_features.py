"""Features of a run's frozen image trunk: as they are cached, the trunk as its library runs it, and the limit.

    python scripts/bench_features.py --config configs/flickr8k_recipe.yaml
    python scripts/bench_features.py --image.trunk timm/tiny_vit_5m_224 --image.size 224 --json rows.json

Random images of the run's size, interleaved, median of the repeats. The limit is the trunk's FLOPs, as torch counts
them, over the rate of one large product.
"""

from mm.bench.config import FeaturesConfig
from mm.cli import run_command
from mm.effects import FEATURES


def main(config: FeaturesConfig) -> None:
    from mm.bench.features import bench_features

    bench_features(config)


if __name__ == "__main__":
    run_command(FeaturesConfig, main, needs=FEATURES)
