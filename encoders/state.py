"""Pretrained encoders on disk: what a VQ-VAE learned, without the side that faces a backbone it never saw."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from encoders.vqvae import Encoder
from encoders.trunks import first_difference, read_weights

BACKBONE_SIDE = ("bottleneck.up.", "bottleneck.bypass.", "bottleneck.gate", "bottleneck.position")


def faces_backbone(name: str) -> bool:
    """Whether a parameter makes tokens for the backbone, and so has no part in a VQ-VAE."""
    return name.startswith(BACKBONE_SIDE)


def vqvae_state(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's state, trunk, codes and decoder, without what faces the backbone."""
    return {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items() if not faces_backbone(k)}


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """Write `vqvae_state` as safetensors."""
    save_file(vqvae_state(encoder), str(path))


def load_encoder(encoder: Encoder, path: str | Path) -> None:
    """Start `encoder` from a file of `save_encoder`; what faces the backbone keeps its values.

    Raises ValueError, naming the first difference, where the file was made with other settings.
    """
    loaded = read_weights(path)
    if differs := first_difference(loaded, vqvae_state(encoder)):
        raise ValueError(
            f"{path} does not fit this encoder: {differs}; "
            "use the settings of the run that wrote it, in config.yaml beside it"
        )
    encoder.load_state_dict(loaded, strict=False)
