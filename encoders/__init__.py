"""VQ-VAE encoders of image, audio and text."""

from encoders.audio import AudioConfig, AudioEncoder
from encoders.base import EncoderOutput, Features
from encoders.image import ImageConfig, ImageEncoder
from encoders.text import TextConfig, TextEncoder
from encoders.vqvae import BottleneckConfig, Encoder

__all__ = [
    "AudioConfig",
    "AudioEncoder",
    "BottleneckConfig",
    "Encoder",
    "EncoderOutput",
    "Features",
    "ImageConfig",
    "ImageEncoder",
    "TextConfig",
    "TextEncoder",
]
