"""Images: the right colours and patterns at the right places, at any size."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data.scenes import Scene, render_image, scene_at
from mm.data.scenes.image import BACKGROUND_RGB, COLOUR_RGB
from mm.data.scenes.scene import LOOKS, RADIUS, SIZES, SPLITS, SceneObject

scenes = st.builds(scene_at, st.integers(0, 5), st.sampled_from(sorted(SPLITS)), st.integers(0, 9999))


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(render_image(scene, size)).astype(int)


def around(image: np.ndarray, thing: SceneObject, reach: float) -> np.ndarray:
    """The square of pixels around an object, (N, 3)."""
    size, r = len(image), RADIUS[thing.size] * reach
    low = lambda v: max(0, round((v - r) * size))  # noqa: E731
    return image[low(thing.y) : low(thing.y + 2 * r), low(thing.x) : low(thing.x + 2 * r)].reshape(-1, 3)


def near(found: np.ndarray, rgb: tuple[int, ...]) -> int:
    return int((np.abs(found - rgb).max(axis=1) <= 40).sum())


@given(scenes, st.sampled_from([48, 64, 97]))
@settings(max_examples=40)
def test_each_object_shows_its_own_colour_most_where_it_stands(scene: Scene, size: int) -> None:
    image = pixels(scene, size)
    for thing in scene.objects:
        shown = {colour: near(around(image, thing, 1.0), rgb) for colour, rgb in COLOUR_RGB.items()}
        assert max(shown, key=shown.__getitem__) == thing.look.colour


@given(scenes)
@settings(max_examples=40)
def test_everything_else_is_background(scene: Scene) -> None:
    image = pixels(scene)
    x = (np.arange(64) + 0.5) / 64
    free = np.ones((64, 64), bool)
    for thing in scene.objects:
        free &= np.maximum(np.abs(x[None, :] - thing.x), np.abs(x[:, None] - thing.y)) > RADIUS[thing.size] + 1 / 64
    assert (np.abs(image[free] - BACKGROUND_RGB[scene.background]) <= 1).all()


def test_every_look_and_size_is_a_different_image_at_64_pixels() -> None:
    """Different by far more than rounding: at least eight pixels change clearly."""
    scene = scene_at(0, "val", 0)
    first = replace(scene.objects[0], x=0.5, y=0.5)
    alone = [replace(scene, objects=(replace(first, look=look, size=size),)) for look in LOOKS for size in SIZES]
    shown = np.stack([pixels(one)[20:44, 20:44].reshape(-1, 3) for one in alone])
    for i in range(0, len(shown), 7):
        changed = (np.abs(shown - shown[i]).max(axis=2) > 60).sum(axis=1)
        changed[i] = 99
        assert changed.min() >= 8


def test_a_larger_image_shows_the_same_scene() -> None:
    scene = scene_at(0, "val", 3)
    large = pixels(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(large - pixels(scene, 64)).mean() < 1


def test_an_image_too_small_to_show_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="8 pixels is too small"):
        render_image(scene_at(0, "val", 0), 8)
