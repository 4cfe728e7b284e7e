"""Train, evaluate and report one run. Without arguments: the embedded scenes, a few minutes on two CPU cores.

    python scripts/train_align.py
    python scripts/train_align.py --config configs/flickr8k.yaml --data.root DIR
    python scripts/train_align.py --name joint --schedule.kind joint --seed 1

Writes runs/<name>/: config.yaml, identity.json, metrics.csv, checkpoints/, model.safetensors + model.json, result.json,
embeddings.npz, diagnostics.npz, report.html.
"""

from mm.cli import run_command
from mm.config import AlignConfig
from mm.effects import ALIGN


def main(config: AlignConfig) -> None:
    from mm.train.align import train_align

    train_align(config)


if __name__ == "__main__":
    run_command(AlignConfig, main, log=True, needs=ALIGN)
