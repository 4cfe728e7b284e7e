"""Whatever its format and mode, a file is read as a person sees it: upright, over white, in eight bits."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from mm.data.media import WRITTEN_IMAGES, decode_image, encode_image, pixels_of

TURNED = 6
"""EXIF: the stored image is to be turned by a quarter, clockwise."""


def picture(height: int = 12, width: int = 20) -> np.ndarray:
    """Smooth pixels (H, W, 3) uint8, other ones in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (y * 255 / (height - 1), x * 255 / (width - 1), (x + y) * 255 / (height + width - 2))
    return np.stack(planes, 2).astype(np.uint8)


def file_of(image: PIL.Image.Image, file_format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def seen(data: bytes) -> np.ndarray:
    """What is read of a file, (H, W, 3) int."""
    pixels = decode_image(data, "x")
    assert pixels.dtype == torch.uint8 and len(pixels) == 3
    return pixels.permute(1, 2, 0).numpy().astype(int)


def over_white(image: PIL.Image.Image) -> np.ndarray:
    """Pillow's own composition (H, W, 3) int."""
    layers = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(layers)
    return np.array(white.convert("RGB")).astype(int)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pixels_of_every_format_are_pillow_s(file_format: str) -> None:
    data = file_of(PIL.Image.fromarray(picture()), file_format)
    expected = np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.array_equal(seen(data), expected)


HELD = {"JPEG": ("L", "CMYK"), "PNG": ("1", "L", "P", "LA", "RGBA"), "TIFF": ("1", "L", "P", "CMYK", "LA", "RGBA")}
"""Modes that a format holds."""


@pytest.mark.parametrize(("file_format", "mode"), [(name, mode) for name, modes in HELD.items() for mode in modes])
def test_pixels_of_every_mode_are_pillow_s(file_format: str, mode: str) -> None:
    image = PIL.Image.fromarray(picture()).convert(mode)
    data = file_of(image, file_format)
    expected = over_white(PIL.Image.open(io.BytesIO(data)))
    assert np.array_equal(seen(data), expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_that_was_stored_on_its_side_is_read_upright(file_format: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = TURNED
    whole = PIL.Image.fromarray(picture())
    lying = seen(file_of(whole, file_format))
    assert np.array_equal(seen(file_of(whole, file_format, exif=exif)), np.rot90(lying, -1))
    opened = PIL.Image.open(io.BytesIO(file_of(whole, "PNG", exif=exif)))
    assert pixels_of(opened).shape == (3, 20, 12)  # a Pillow image that a user opened, too


def transparent(mode: str) -> PIL.Image.Image:
    """Black; its left half is not there."""
    layers = np.zeros((6, 8, 4), np.uint8)
    layers[:, 4:, 3] = 255
    return PIL.Image.fromarray(layers).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(mode: str, file_format: str) -> None:
    if mode == "PA":
        found = pixels_of(transparent("RGBA").convert("PA")).permute(1, 2, 0).numpy()
    else:
        found = seen(file_of(transparent(mode), file_format, **({"lossless": True} if file_format == "WEBP" else {})))
    assert (found[:, :4] == 255).all() and (found[:, 4:] == 0).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_single_transparent_colour_is_white(mode: str) -> None:
    image = PIL.Image.fromarray(picture()).convert(mode)
    colour = image.getpixel((3, 2))
    data = file_of(image, "PNG", transparency=colour)
    assert np.array_equal(seen(data), over_white(PIL.Image.open(io.BytesIO(data))))
    assert (seen(data)[2, 3] == 255).all()


def test_half_transparent_lies_over_white() -> None:
    layers = np.full((2, 2, 4), 100, np.uint8)
    layers[..., 3] = 51  # a fifth
    assert (seen(file_of(PIL.Image.fromarray(layers), "PNG")) == 224).all()  # 100/5 + 255·4/5


def deep_png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits, which Pillow cannot write in colour; pixels (H, W, C) or (H, W) uint16."""
    rows = [b"\0" + row.astype(">u2").tobytes() for row in pixels]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_sixteen_bits_become_the_upper_eight(channels: int, colour_type: int) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    pixels = np.repeat(levels[..., None], channels, 2)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    found = seen(deep_png(pixels, colour_type))
    assert found[0, :, 0].tolist() == found[0, :, 2].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 200.0]], np.float32), [0, 100, 200]),
        (np.array([[0.0, 512.0, 65535.0]], np.float32), [0, 2, 255]),
        (np.array([[0, 512, 65535]], np.uint16), [0, 2, 255]),
        (np.array([[0, 2, 5]], np.uint16), [0, 0, 0]),  # two bytes a pixel, whatever they hold
        (np.array([[0, 512, 65535]], np.int32), [0, 2, 255]),
    ],
)
def test_a_tiff_of_numbers_is_scaled_from_the_range_that_holds_them(numbers: np.ndarray, expected: list[int]) -> None:
    found = seen(file_of(PIL.Image.fromarray(numbers), "TIFF"))
    assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize("wrong", [-1.0, 1e6, np.nan, np.inf])
def test_numbers_that_are_no_brightness_are_refused(wrong: float) -> None:
    data = file_of(PIL.Image.fromarray(np.array([[0.0, wrong]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"image x does not decode: its numbers lie between"):
        decode_image(data, "x")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_part_of_a_file_is_named_in_one_line(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = file_of(PIL.Image.fromarray(noise), file_format)
    for size in (0, 1, 20, len(data) // 2):
        with pytest.raises(ValueError, match=r"^image of a bird does not decode: [^\n]+$") as caught:
            decode_image(data[:size], "of a bird")
        assert "0x" not in str(caught.value)


def test_only_images_are_looked_for() -> None:
    """Pillow would start Ghostscript for this one."""
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="image x does not decode: cannot identify"):
        decode_image(data, "x")


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(PIL.Image.fromarray(picture()), "PNG")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb"):
        decode_image(data, "x")


def test_the_first_frame_of_several_is_read() -> None:
    frames = [PIL.Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert seen(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("extension", WRITTEN_IMAGES)
def test_what_is_encoded_is_read_again(extension: str) -> None:
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)
    again = decode_image(encode_image(pixels, extension, quality=95), "x")
    allowed = 0 if extension == "png" else 12
    assert (again.int() - pixels.int()).abs().max() <= allowed
    with pytest.raises(ValueError, match="'webp' is not one of jpg, jpeg, png"):
        encode_image(pixels, "webp")
