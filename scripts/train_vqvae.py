"""Pretrain the VQ-VAE of one modality: by default on the embedded scenes, which are generated on the first run.

    python scripts/train_vqvae.py --modality image
    python scripts/train_vqvae.py --modality audio --bottleneck.quantizer.kind fsq --name fsq
    python scripts/train_align.py --encoder_weights '{image: runs/vqvae_image/model.safetensors}'

Writes runs/<name>/: config.yaml, metrics.csv, checkpoints/, model.safetensors + model.json, result.json and
reconstructions.png (inputs above, reconstructions below; for text also .txt).
"""

from mm.cli import run_command
from mm.effects import VQVAE
from mm.train.vqvae_config import VQVAEConfig


def main(config: VQVAEConfig) -> None:
    from mm.train.vqvae import train_vqvae

    train_vqvae(config)


if __name__ == "__main__":
    run_command(VQVAEConfig, main, log=True, needs=VQVAE)
