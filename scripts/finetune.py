"""Adapt a finished run to another set: LoRA, QLoRA or all weights, with what it forgets of its own set beside.

    python scripts/finetune.py --run runs/flickr8k --data.root data/molecules
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --strategy full --train.freeze '[encoders.*]'
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --lora.targets '[w_in,w_out]' --seed 1

Writes runs/<name>/: a run like any other (its result.json has `adaptation`), adapter/ and coverage.txt.
"""

from mm.adapt.config import FinetuneConfig
from mm.cli import run_command
from mm.effects import FINETUNE


def main(config: FinetuneConfig) -> None:
    from mm.adapt.finetune import finetune

    finetune(config)


if __name__ == "__main__":
    run_command(FinetuneConfig, main, log=True, needs=FINETUNE)
