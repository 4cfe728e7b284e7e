"""Training and evaluation on a set as large as MS-COCO, as a folder and as shards, beside one of a thousand images.

    python scripts/bench_scale.py --json eval/results/scale.json
    python scripts/bench_scale.py --images 20000 --captions 100000 --shards false

The set is generated: 123,287 names of 200 JPEGs, 616,767 captions. A small model trains on it until its first step, is
killed, and goes on until the next; then an untrained run is evaluated on 5,000 images and 25,010 captions, twice.
Seconds are from the command on; memory is that of all processes together.
"""

from pathlib import Path

from mm.bench.scale import ScaleConfig, Scripts, bench_scale
from mm.cli import run_command

HERE = Path(__file__).parent


def main(config: ScaleConfig) -> None:
    bench_scale(config, Scripts(HERE / "train_align.py", HERE / "eval_coco.py"))


if __name__ == "__main__":
    run_command(ScaleConfig, main)
