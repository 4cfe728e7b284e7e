"""One training step of a run, taken apart: images a second, the share that is not arithmetic, open_clip beside it.

    python scripts/bench_step.py --config configs/bench.yaml
    python scripts/bench_step.py --config configs/flickr8k.yaml --data.root DIR --json rows.json
    python scripts/bench_step.py --config configs/bench.yaml --model.modalities '[image,text]'  # like open_clip

The step is the run's own (forward, all losses of the stage at `progress`, backward, clipping, AdamW, rebalancing) on
batches made beforehand; making one is timed too. Arithmetic is what runs in products, convolutions, attention and
Fourier transforms; the share of the rest is from torch's profiler. The peer is open_clip's CLIP with its own loss and
AdamW on the same images and captions; its transformers are as wide as our backbone and so deep that they have as many
parameters as each of our towers uses (encoder, active experts, heads). Interleaved, median of the repeats.
"""

from mm.bench.config import StepConfig
from mm.cli import run_command
from mm.effects import STEP


def main(config: StepConfig) -> None:
    from mm.bench.step import bench_step

    bench_step(config)


if __name__ == "__main__":
    run_command(StepConfig, main, log=True, needs=STEP)
