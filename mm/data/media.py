"""Bytes to images and waveforms and back. Every failure is one line that names the file it came from.

Kept apart from the datasets so that a folder, a shard and a generator all decode alike.
"""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import soundfile
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.io import ImageReadMode, encode_jpeg, encode_png
from torchvision.io import decode_image as torchvision_decode
from torchvision.transforms.v2 import functional as transforms

from kernels.errors import UserError
from mm.batch import Sample
from mm.data.skipped import Unreadable
from mm.readers import RATES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Of the images that are read."""
WRITTEN_IMAGES = ("jpg", "jpeg", "png")
"""Extensions of the images that are written."""
AUDIO_EXTENSIONS = ("wav", "flac", "mp3", "ogg", "oga", "opus", "aif", "aiff", "au")
"""Of the audio that is read; of two files of one name, the one whose extension comes first here."""
WRITTEN_AUDIO = ("wav", "flac")
"""Extensions of the audio that is written."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is looked for in a file's bytes. Pillow knows more, and some of it runs programs, as EPS does."""
OPAQUE_MODES = ("1", "L", "P", "RGB", "I;16")
"""Pillow's modes of a PNG without alpha that torchvision reads as RGB."""
ALPHA_MODES = ("LA", "RGBA")
"""Pillow's modes of a PNG with alpha that torchvision reads as RGB and alpha."""
WHITE = 255
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


def decode_image(data: bytes, name: str) -> Tensor:
    """Bytes -> upright RGB image (3, H, W) uint8, fully decoded: a broken file fails here, not later.

    The EXIF orientation is applied, transparency is laid over white, 16 bits become the upper eight.

    Args:
        data: content of a JPEG, PNG, WebP, GIF, BMP or TIFF file, of which the first frame is read.
        name: which the error says.

    Raises:
        ValueError: the bytes are no image, or a part of one.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            mode = _torchvision_mode(opened)
            if mode is None:
                return pixels_of(opened)
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = torchvision_decode(content, mode, apply_exif_orientation=True)
        return _opaque(transforms.to_dtype(pixels, torch.uint8, scale=True))
    except Exception as error:  # Decoders raise struct.error, RuntimeError, KeyError … of what they are fed.
        raise UserError(f"image {name} does not decode: {_line(error)}") from error


def pixels_of(image: Image) -> Tensor:
    """A Pillow image of any mode -> upright RGB (3, H, W) uint8, transparency laid over white.

    Numbers of more than eight bits are scaled from the smallest range that holds them all: 0 to 1 (of floats), to 255
    or to 65,535.

    Raises:
        ValueError: its numbers lie outside of these ranges.
    """
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode[:1] in ("I", "F"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        layers = transforms.pil_to_tensor(image.convert("RGBA"))
        return _opaque(layers)
    return transforms.pil_to_tensor(image.convert("RGB"))


def pil_image(pixels: Tensor) -> Image:
    """Pixels (3, H, W) uint8 -> Pillow image, for what takes no tensor."""
    return transforms.to_pil_image(pixels)


def encode_image(pixels: Tensor, extension: str, quality: int = 90) -> bytes:
    """Image (3, H, W) uint8 -> JPEG (lossy, `quality` 1-95) or PNG (exact) bytes.

    Raises ValueError for another extension.
    """
    pixels = pixels.contiguous()
    if extension == "png":
        encoded = encode_png(pixels)
    elif extension in ("jpg", "jpeg"):
        encoded = encode_jpeg(pixels, quality)
    else:
        raise UserError(f"image extension {extension!r} is not one of {', '.join(WRITTEN_IMAGES)}")
    return encoded.numpy().tobytes()


def decode_audio(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Bytes -> (mono float32 waveform (S,) in [-1, 1], its sample rate in hertz). Channels are averaged.

    Raises ValueError, naming the file, for bytes that are no audio and for samples that are not finite.
    """
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except Exception as error:  # As of images.
        raise UserError(f"audio {name} does not decode: {_line(error)}") from error
    lowest, highest = RATES
    if not lowest <= rate <= highest:
        raise UserError(f"audio {name} claims {rate:,} hertz, not one of {lowest:,} to {highest:,}")
    if not np.isfinite(waveform).all():
        raise UserError(f"audio {name} holds samples that are not finite numbers")
    mono = waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(axis=1)
    return mono, rate


def encode_audio(waveform: np.ndarray, sample_rate: int, extension: str = "flac") -> bytes:
    """Mono waveform (S,) in [-1, 1] at `sample_rate` hertz -> 16-bit FLAC or WAV bytes.

    Raises ValueError for another extension.
    """
    if extension not in WRITTEN_AUDIO:
        raise UserError(f"audio extension {extension!r} is not one of {', '.join(WRITTEN_AUDIO)}")
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


@dataclass(frozen=True)
class Member:
    """One file of a sample."""

    name: str
    """What messages call it."""
    modality: str
    """`image` or `audio`."""
    read: Callable[[], bytes]
    """Gives its content."""


def decode_sample(stated: EncodedSample, members: Iterable[Member], unreadable: Unreadable) -> Sample:
    """A sample with the image and the audio of its files; what does not decode is absent, and noted.

    Args:
        stated: its key, ids and captions.
        members: at most one of each modality.
        unreadable: of the split.
    """
    image = None
    audio = None
    sample_rate = 0
    for member in members:
        decode = decode_image if member.modality == "image" else decode_audio
        decoded = unreadable.attempt(member.modality, member.name, partial(_decoded, decode, member))
        if isinstance(decoded, Tensor):
            image = decoded
        elif decoded is not None:
            audio, sample_rate = decoded
    return Sample(
        stated.key, stated.image_id, stated.captions, stated.caption_ids, image, audio, sample_rate=sample_rate
    )


def member_modality(extension: str) -> str:
    """The modality of a file by its extension, without the dot: an image, if it is not audio."""
    return "audio" if extension in AUDIO_EXTENSIONS else "image"


def _decoded(decode: Callable[[bytes, str], Any], member: Member) -> Any:
    return decode(member.read(), member.name)


def _audio_frames(data: bytes, name: str) -> int:
    """Length in samples, read from the header; a file without even a header has none."""
    if not data:
        return 0
    try:
        return int(soundfile.info(io.BytesIO(data)).frames)
    except Exception as error:  # As of images.
        raise UserError(f"audio {name} does not decode: {_line(error)}") from error


def _torchvision_mode(opened: Image) -> ImageReadMode | None:
    """How torchvision reads a file of which Pillow has read the header; None where only Pillow reads all of it.

    torchvision knows no BMP and no TIFF, ignores the orientation of WebP, decodes every frame of a GIF, and loses the
    transparency of a single colour.
    """
    if opened.format in ("JPEG", "MPO"):
        return ImageReadMode.RGB
    if opened.format != "PNG" or "transparency" in opened.info:
        return None
    if opened.mode in OPAQUE_MODES:
        return ImageReadMode.RGB
    return ImageReadMode.RGB_ALPHA if opened.mode in ALPHA_MODES else None


def _opaque(pixels: Tensor) -> Tensor:
    """RGB (3, H, W) or RGB and alpha (4, H, W), uint8 -> RGB (3, H, W) uint8 over white."""
    if len(pixels) == 3:
        return pixels
    colour = pixels[:3].int()
    alpha = pixels[3:].int()
    laid = colour * alpha + WHITE * (WHITE - alpha)
    return ((laid + WHITE // 2) // WHITE).to(torch.uint8)


def _eight_bits(image: Image) -> Image:
    """An image of integers or floats -> one of mode L. Raises ValueError, see `pixels_of`."""
    numbers = np.asarray(image).astype(np.float64)
    least = numbers.min()
    most = numbers.max()
    if not (least >= 0 and most <= 65535):  # Written so that NaN is refused too.
        raise UserError(f"its numbers lie between {least:g} and {most:g}, not in 0 to 1, to 255 or to 65,535")
    if image.mode.startswith("I;16") or most > WHITE:
        numbers = numbers // 256
    elif image.mode == "F" and most <= 1:
        numbers = numbers * WHITE
    return PIL.Image.fromarray(np.round(numbers).astype(np.uint8))


def _line(error: BaseException) -> str:
    """Its first line, without the memory address of the buffer that was decoded."""
    text = str(error) or type(error).__name__
    first = text.splitlines()[0]
    return re.sub(r"\s*<_io\.BytesIO[^>]*>", "", first)
