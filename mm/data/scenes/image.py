"""The image of a scene. A shape is an inequality in the object's own coordinates, sampled 4 × 4 times per pixel."""

from collections.abc import Callable

import numpy as np
from PIL.Image import Image, fromarray

from kernels.errors import UserError
from mm.data.scenes.scene import RADIUS, Scene, SceneObject

COLOUR_RGB = {
    "red": (225, 35, 35),
    "orange": (255, 135, 0),
    "yellow": (252, 225, 40),
    "green": (30, 160, 55),
    "cyan": (50, 215, 225),
    "blue": (35, 65, 225),
    "purple": (135, 40, 175),
    "pink": (255, 135, 195),
}
BACKGROUND_RGB = {
    "black": (12, 12, 16),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "brown": (100, 66, 40),
}
LIGHT = (235, 235, 235)
DARK = (0, 0, 0)
LIGHT_MARKED = ("red", "green", "blue", "purple")
SAMPLES = 4
"""Samples of a pixel along either side."""
STAR_NOTCH = 0.42
"""How far a star's notches lie from its centre, its points being 1 from it."""

Array = np.ndarray
Inside = Callable[[Array, Array], Array]
"""(1, W) x and (H, 1) y of the samples, float32 from the object's centre -> (H, W) bool."""


def render_image(scene: Scene, size: int = 64) -> Image:
    """An RGB image of `size` × `size` pixels. Raises ValueError below 16."""
    if size < 16:
        raise UserError(f"an image of {size} pixels is too small to show a scene: take 16 or more")
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[scene.background]
    for thing in scene.objects:
        _paint(canvas, thing)
    rounded = (canvas + 0.5).astype(np.uint8)
    return fromarray(rounded)


def _paint(canvas: Array, thing: SceneObject) -> None:
    """Blend one object into canvas (S, S, 3), touching only the pixels around it."""
    size = len(canvas)
    radius = RADIUS[thing.size]
    rows = _pixels(thing.y, radius, size)
    columns = _pixels(thing.x, radius, size)
    y = _offsets(rows, thing.y, size)[:, None]
    x = _offsets(columns, thing.x, size)[None, :]
    colour, shape, texture = thing.look
    is_inside = SHAPE_INSIDE[shape]
    inside = is_inside(x / radius, -y / radius)
    is_marked = TEXTURE_MARKS[texture]
    marks = is_marked(x, y)
    whole = _coverage(inside)
    marked = _coverage(inside & marks)
    patch = canvas[rows, columns]
    patch *= 1 - whole
    patch += (whole - marked) * np.array(COLOUR_RGB[colour], np.float32)
    patch += marked * np.array(MARK_RGB[colour], np.float32)


def _pixels(centre: float, radius: float, size: int) -> slice:
    """The pixels that an object may touch, along one side of the image; `centre`, `radius` in fractions of the side."""
    reach = radius * 1.05
    first = int((centre - reach) * size)
    last = int((centre + reach) * size)
    return slice(max(0, first), min(size, last + 1))


def _offsets(pixels: slice, centre: float, size: int) -> Array:
    """(N·4,) the samples' distance from the object's centre, in fractions of the image's side."""
    first = pixels.start * SAMPLES
    end = pixels.stop * SAMPLES
    numbers = np.arange(first, end, dtype=np.float32)
    return (numbers + 0.5) / (SAMPLES * size) - centre


def _coverage(inside: Array) -> Array:
    """(H·4, W·4) bool -> (H, W, 1): the share of each pixel that is inside."""
    height, width = inside.shape
    blocks = inside.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES)
    shares = blocks.mean(axis=(1, 3), dtype=np.float32)
    return shares[..., None]


def _mark(colour: str) -> tuple[float, ...]:
    """A texture's second tone: a pale or dark shade, so that it shows on the colour and on any background."""
    tones = LIGHT if colour in LIGHT_MARKED else DARK
    shade = []
    for tone, own in zip(tones, COLOUR_RGB[colour], strict=True):
        mixed = 0.75 * tone + 0.25 * own
        shade.append(mixed)
    return tuple(shade)


def _circle(x: Array, y: Array) -> Array:
    """A disc of nearly the whole radius."""
    return x * x + y * y <= 0.9


def _square(x: Array, y: Array) -> Array:
    """A square that stands on a side."""
    farther = np.maximum(np.abs(x), np.abs(y))
    return farther <= 0.82


def _triangle(x: Array, y: Array) -> Array:
    """An isosceles triangle with its tip at the top."""
    sides = np.abs(x) <= 0.55 * (1 - y)
    base = y >= -0.8
    return sides & base


def _star(x: Array, y: Array) -> Array:
    """Five points: fold the plane into one half of a point, whose edge is a straight line from tip to notch."""
    half = np.float32(np.pi / 5)
    angle = np.arctan2(x, y)
    turned = np.mod(angle + half, 2 * half)
    angle = np.abs(turned - half)
    distance = np.hypot(x, y)
    along = distance * np.cos(angle)
    across = distance * np.sin(angle)
    notch_along = STAR_NOTCH * np.cos(half)
    notch_across = STAR_NOTCH * np.sin(half)
    beyond = (along - 1) * notch_across - across * (notch_along - 1)
    return beyond <= 0


def _cross(x: Array, y: Array) -> Array:
    """Two bars of equal length."""
    beside = np.abs(x)
    above = np.abs(y)
    nearer = np.minimum(beside, above)
    farther = np.maximum(beside, above)
    return (nearer <= 0.34) & (farther <= 0.98)


def _heart(x: Array, y: Array) -> Array:
    """The sextic (x² + y² - 1)³ = x² y³."""
    x = 1.2 * x
    y = 1.2 * y + 0.12
    level = x * x + y * y - 1
    cubed = level * level * level
    return cubed - x * x * y * y * y <= 0


def _ring(x: Array, y: Array) -> Array:
    """A disc with a hole of half its radius."""
    distance = np.hypot(x, y)
    return np.abs(distance - 0.74) <= 0.26


def _moon(x: Array, y: Array) -> Array:
    """A disc without another that is set off to the right."""
    disc = x * x + y * y <= 1
    from_other = (x - 0.55) ** 2 + (y - 0.1) ** 2
    return disc & (from_other > 0.5)


def _solid(x: Array, y: Array) -> Array:
    """No marks at all."""
    shape = np.broadcast(x, y).shape
    return np.zeros(shape, bool)


def _striped(x: Array, y: Array) -> Array:
    """Level stripes."""
    return np.mod(y + 0 * x, 0.08) < 0.036


def _dotted(x: Array, y: Array) -> Array:
    """A square lattice of dots."""
    across = np.mod(x, 0.07) - 0.035
    up = np.mod(y, 0.07) - 0.035
    return np.hypot(across, up) < 0.022


def _checked(x: Array, y: Array) -> Array:
    """A chessboard."""
    columns = np.mod(x, 0.1) < 0.05
    rows = np.mod(y, 0.1) < 0.05
    return columns ^ rows


MARK_RGB = {colour: _mark(colour) for colour in COLOUR_RGB}
SHAPE_INSIDE: dict[str, Inside] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
}
"""x and y are in radii of the object, y upwards."""
TEXTURE_MARKS: dict[str, Inside] = {
    "solid": _solid,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
}
"""x and y are in fractions of the image's side, y downwards."""
