"""The image of a scene. A shape is an inequality in the object's own coordinates, sampled 4 × 4 times per pixel."""

from collections.abc import Callable

import numpy as np
from PIL import Image

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
BACKGROUND_RGB = {"black": (12, 12, 16), "white": (245, 245, 245), "gray": (128, 128, 128), "brown": (100, 66, 40)}
LIGHT, DARK = (235, 235, 235), (0, 0, 0)
MARK_TONE = {colour: LIGHT if colour in ("red", "green", "blue", "purple") else DARK for colour in COLOUR_RGB}
MARK_RGB = {
    colour: tuple(0.75 * tone + 0.25 * own for tone, own in zip(MARK_TONE[colour], COLOUR_RGB[colour], strict=True))
    for colour in COLOUR_RGB
}
"""A texture's second tone: a pale or dark shade of the colour, so that it shows on the colour and on any background."""

SAMPLES = 4
Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def render_image(scene: Scene, size: int = 64) -> Image.Image:
    """An RGB image of `size` × `size` pixels."""
    if size < 16:
        raise ValueError(f"an image of {size} pixels is too small to show a scene: take 16 or more")
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[scene.background]
    for thing in scene.objects:
        _paint(canvas, thing)
    return Image.fromarray((canvas + 0.5).astype(np.uint8))


def _paint(canvas: np.ndarray, thing: SceneObject) -> None:
    """Blend one object into canvas (S, S, 3), touching only the pixels around it."""
    size, reach = len(canvas), RADIUS[thing.size] * 1.05
    top, bottom = max(0, int((thing.y - reach) * size)), min(size, int((thing.y + reach) * size) + 1)
    left, right = max(0, int((thing.x - reach) * size)), min(size, int((thing.x + reach) * size) + 1)
    y = (np.arange(top * SAMPLES, bottom * SAMPLES, dtype=np.float32)[:, None] + 0.5) / (SAMPLES * size) - thing.y
    x = (np.arange(left * SAMPLES, right * SAMPLES, dtype=np.float32)[None, :] + 0.5) / (SAMPLES * size) - thing.x
    inside = SHAPE_INSIDE[thing.look.shape](x / RADIUS[thing.size], -y / RADIUS[thing.size])
    whole = _coverage(inside)
    term_mask = _coverage(inside & TEXTURE_MARKS[thing.look.texture](x, y))
    patch = canvas[top:bottom, left:right]
    patch *= 1 - whole
    patch += (whole - term_mask) * np.array(COLOUR_RGB[thing.look.colour], np.float32)
    patch += term_mask * np.array(MARK_RGB[thing.look.colour], np.float32)


def _coverage(inside: np.ndarray) -> np.ndarray:
    """(H·4, W·4) bool -> (H, W, 1): the share of each pixel that is inside."""
    height, width = inside.shape
    blocks = inside.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]


def _star(x: np.ndarray, y: np.ndarray, inner: float = 0.42) -> np.ndarray:
    """Five points: fold the plane into one half of a point, whose edge is a straight line from tip to notch."""
    half = np.float32(np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(x, y) + half, 2 * half) - half)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    notch = (inner * np.cos(half), inner * np.sin(half))
    return (along - 1) * notch[1] - across * (notch[0] - 1) <= 0


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 1.2 * y + 0.12
    level = x * x + y * y - 1
    return level * level * level - x * x * y * y * y <= 0


SHAPE_INSIDE: dict[str, Inside] = {
    "circle": lambda x, y: x * x + y * y <= 0.9,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.82,
    "triangle": lambda x, y: (np.abs(x) <= 0.55 * (1 - y)) & (y >= -0.8),
    "star": _star,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) <= 0.34) & (np.maximum(np.abs(x), np.abs(y)) <= 0.98),
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) <= 0.26,
    "moon": lambda x, y: (x * x + y * y <= 1) & ((x - 0.55) ** 2 + (y - 0.1) ** 2 > 0.5),
}

TEXTURE_MARKS: dict[str, Inside] = {
    "solid": lambda x, y: np.zeros(np.broadcast(x, y).shape, bool),
    "striped": lambda x, y: np.mod(y + 0 * x, 0.08) < 0.036,
    "dotted": lambda x, y: np.hypot(np.mod(x, 0.07) - 0.035, np.mod(y, 0.07) - 0.035) < 0.022,
    "checked": lambda x, y: (np.mod(x, 0.1) < 0.05) ^ (np.mod(y, 0.1) < 0.05),
}
