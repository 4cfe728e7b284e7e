"""VQ-VAE encoders of image, audio and text. A new modality is a class here and a line in ENCODERS."""

from encoders.audio import AudioConfig, AudioEncoder
from encoders.base import Encoder, EncoderOutput, Features
from encoders.image import ImageConfig, ImageEncoder
from encoders.text import TextConfig, TextEncoder

ENCODERS: dict[str, type[Encoder]] = {"image": ImageEncoder, "audio": AudioEncoder, "text": TextEncoder}

__all__ = [
    "ENCODERS",
    "AudioConfig",
    "AudioEncoder",
    "Encoder",
    "EncoderOutput",
    "Features",
    "ImageConfig",
    "ImageEncoder",
    "TextConfig",
    "TextEncoder",
]
