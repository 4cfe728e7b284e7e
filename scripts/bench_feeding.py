"""Images a second of the loader that a run trains from, by one process and by several, beside the limit.

    python scripts/bench_feeding.py --image.size 224 --train.batch_size 256
    python scripts/bench_feeding.py --config configs/flickr8k.yaml --data.root DIR --json rows.json

Without data.root a set of JPEGs of COCO's size (640 x 480) is generated. The limit is what a core decodes from memory
and resizes, and does nothing else, times the cores at work; the loader also reads files, tokenizes and stacks.
"""

from mm.bench.config import FeedingConfig
from mm.cli import run_command
from mm.effects import FEEDING


def main(config: FeedingConfig) -> None:
    from mm.bench.feeding import bench_feeding

    bench_feeding(config)


if __name__ == "__main__":
    run_command(FeedingConfig, main, needs=FEEDING)
