"""Bytes to images and waveforms and back. Every failure is one line that names the file it came from.

Kept apart from the datasets so that a folder, a shard and a generator all decode alike.
"""

import io
import re
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import soundfile
import torch
import torchaudio.functional
from PIL.Image import Image

from mm.batch import Sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")
AUDIO_EXTENSIONS = ("wav", "flac")
# A audio file smaller than this may hold a header and no samples; larger ones are not opened to find out.
SUSPICIOUSLY_SMALL = 8192


@dataclass(frozen=True)
class EncodedSample:
    """A sample whose image and audio are still file bytes: members maps extensions (jpg, png, wav, flac) to them."""

    key: str
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    members: dict[str, bytes] = field(default_factory=dict)


def decode_image(data: bytes, name: str) -> Image:
    """Bytes -> RGB image, fully decoded (a broken file fails here, not later). ValueError names the file."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"image {name} does not decode: {_line(error)}") from error


def encode_image(image: Image, extension: str, quality: int = 90) -> bytes:
    """Image -> JPEG (lossy, `quality` 1-95) or PNG (exact) bytes."""
    buffer = io.BytesIO()
    if extension == "png":
        image.save(buffer, "PNG")
    elif extension in ("jpg", "jpeg"):
        image.convert("RGB").save(buffer, "JPEG", quality=quality)
    else:
        raise ValueError(f"image extension {extension!r} is not one of {', '.join(IMAGE_EXTENSIONS)}")
    return buffer.getvalue()


def decode_audio(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Bytes -> (mono float32 waveform (S,) in [-1, 1], its sample rate in hertz). Channels are averaged."""
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError(f"audio {name} does not decode: {_line(error)}") from error
    if not np.isfinite(waveform).all():
        raise ValueError(f"audio {name} holds samples that are not finite numbers")
    return waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(axis=1), rate


def encode_audio(waveform: np.ndarray, sample_rate: int, extension: str = "flac") -> bytes:
    """Mono waveform (S,) in [-1, 1] -> 16-bit FLAC or WAV bytes."""
    if extension not in AUDIO_EXTENSIONS:
        raise ValueError(f"audio extension {extension!r} is not one of {', '.join(AUDIO_EXTENSIONS)}")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=extension.upper(), subtype="PCM_16")
    return buffer.getvalue()


def audio_frames(data: bytes, name: str) -> int:
    """Length in samples, read from the header; a file without even a header has none."""
    if not data:
        return 0
    try:
        return int(soundfile.info(io.BytesIO(data)).frames)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError(f"audio {name} does not decode: {_line(error)}") from error


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """(S,) at `rate` -> (S · target / rate,) at `target` hertz, band-limited (torchaudio's windowed sinc)."""
    if rate == target:
        return waveform
    if rate <= 0:
        raise ValueError(f"a waveform needs its sample rate, got {rate}")
    return torchaudio.functional.resample(torch.from_numpy(np.ascontiguousarray(waveform)), rate, target).numpy()


def encode_sample(
    sample: Sample | EncodedSample, image_format: str = "jpg", audio_format: str = "flac", quality: int = 90
) -> EncodedSample:
    """Images and audio clips -> file bytes. An audio clip without samples is skipped. Encoded ones pass untouched."""
    if isinstance(sample, EncodedSample):
        return sample
    members = {}
    if sample.image is not None:
        members[image_format] = encode_image(sample.image, image_format, quality)
    if sample.audio is not None and len(sample.audio):
        members[audio_format] = encode_audio(sample.audio, sample.sample_rate, audio_format)
    return EncodedSample(sample.key, sample.image_id, sample.captions, sample.caption_ids, members)


def _line(error: BaseException) -> str:
    """Its first line, without the memory address of the buffer that was decoded."""
    return re.sub(r"\s*<_io\.BytesIO[^>]*>", "", (str(error) or type(error).__name__).splitlines()[0])
