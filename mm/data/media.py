"""Bytes to images and waveforms and back. Every failure is one line that names the file it came from.

Kept apart from the datasets so that a folder, a shard and a generator all decode alike.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import soundfile
from PIL.Image import Image

from mm.batch import Sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")
AUDIO_EXTENSIONS = ("wav", "flac")
HEADER_BYTES = 8192
"""An audio file smaller than this may hold a header and no samples; a larger one is not opened to find out."""
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What a sample's key may be, since it names files and the members of tars."""


@dataclass(frozen=True)
class EncodedSample:
    """A sample whose image and audio are still file bytes: members maps extensions (jpg, png, wav, flac) to them."""

    key: str
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    members: dict[str, bytes] = field(default_factory=dict)


def decode_image(data: bytes, name: str) -> Image:
    """Bytes -> RGB image, fully decoded: a broken file fails here, not later.

    Raises ValueError, naming the file, for bytes that are no image.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"image {name} does not decode: {_line(error)}") from error


def encode_image(image: Image, extension: str, quality: int = 90) -> bytes:
    """Image -> JPEG (lossy, `quality` 1-95) or PNG (exact) bytes.

    Raises ValueError for another extension.
    """
    buffer = io.BytesIO()
    if extension == "png":
        image.save(buffer, "PNG")
    elif extension in ("jpg", "jpeg"):
        image.convert("RGB").save(buffer, "JPEG", quality=quality)
    else:
        raise ValueError(f"image extension {extension!r} is not one of {', '.join(IMAGE_EXTENSIONS)}")
    return buffer.getvalue()


def decode_audio(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Bytes -> (mono float32 waveform (S,) in [-1, 1], its sample rate in hertz). Channels are averaged.

    Raises ValueError, naming the file, for bytes that are no audio and for samples that are not finite.
    """
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError(f"audio {name} does not decode: {_line(error)}") from error
    if not np.isfinite(waveform).all():
        raise ValueError(f"audio {name} holds samples that are not finite numbers")
    mono = waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(axis=1)
    return mono, rate


def encode_audio(waveform: np.ndarray, sample_rate: int, extension: str = "flac") -> bytes:
    """Mono waveform (S,) in [-1, 1] at `sample_rate` hertz -> 16-bit FLAC or WAV bytes.

    Raises ValueError for another extension.
    """
    if extension not in AUDIO_EXTENSIONS:
        raise ValueError(f"audio extension {extension!r} is not one of {', '.join(AUDIO_EXTENSIONS)}")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=extension.upper(), subtype="PCM_16")
    return buffer.getvalue()


def has_samples(size: int, read: Callable[[], bytes], name: str) -> bool:
    """Whether an audio file of `size` bytes holds samples. Only a file that may be a bare header is read.

    Raises ValueError, naming the file, if it is read and is no audio.
    """
    return size >= HEADER_BYTES or _audio_frames(read(), name) > 0


def encode_sample(
    sample: Sample | EncodedSample, image_format: str = "jpg", audio_format: str = "flac", quality: int = 90
) -> EncodedSample:
    """Image and audio -> file bytes, of extension `image_format` and `audio_format`; `quality` is that of a JPEG.

    An audio clip without samples is skipped. What is encoded already passes untouched.
    """
    if isinstance(sample, EncodedSample):
        return sample
    members = {}
    if sample.image is not None:
        members[image_format] = encode_image(sample.image, image_format, quality)
    if sample.audio is not None and len(sample.audio):
        members[audio_format] = encode_audio(sample.audio, sample.sample_rate, audio_format)
    return EncodedSample(sample.key, sample.image_id, sample.captions, sample.caption_ids, members)


def decode_sample(encoded: EncodedSample, names: Mapping[str, str]) -> Sample:
    """File bytes -> image and waveform. `names` says, by extension, what an error calls that member.

    Raises ValueError for a member that does not decode.
    """
    image = None
    audio = None
    sample_rate = 0
    for extension, data in encoded.members.items():
        if extension in AUDIO_EXTENSIONS:
            audio, sample_rate = decode_audio(data, names[extension])
        else:
            image = decode_image(data, names[extension])
    return Sample(
        encoded.key, encoded.image_id, encoded.captions, encoded.caption_ids, image, audio, sample_rate=sample_rate
    )


def _audio_frames(data: bytes, name: str) -> int:
    """Length in samples, read from the header; a file without even a header has none."""
    if not data:
        return 0
    try:
        return int(soundfile.info(io.BytesIO(data)).frames)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError(f"audio {name} does not decode: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Its first line, without the memory address of the buffer that was decoded."""
    text = str(error) or type(error).__name__
    first = text.splitlines()[0]
    return re.sub(r"\s*<_io\.BytesIO[^>]*>", "", first)
