"""Audio clips: a function of the facts, every fact audible, objects heard from left to right."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data.scenes import Scene, render_audio, scene_at
from mm.data.scenes.audio import PITCH, SLOT_SECONDS
from mm.data.scenes.scene import BACKGROUNDS, COLOURS, ROWS, SHAPES, SIZES, SPLITS, TEXTURES

RATE = 16_000
SLOT = round(SLOT_SECONDS * RATE)
scenes = st.builds(scene_at, st.integers(0, 5), st.sampled_from(sorted(SPLITS)), st.integers(0, 9999))


def heard_colours(waveform: np.ndarray, objects: int) -> list[str]:
    """The colour whose octave-free pitch is strongest in each slot. The glides stay within a tenth of the pitch."""
    heard = []
    for number in range(objects):
        slot = waveform[number * SLOT : (number + 1) * SLOT]
        spectrum = np.abs(np.fft.rfft(slot)) ** 2
        frequency = np.fft.rfftfreq(len(slot), 1 / RATE)
        power = {c: spectrum[np.abs(frequency / p - 1) < 0.11].sum() for c, p in PITCH.items()}
        heard.append(max(power, key=power.__getitem__))
    return heard


def steady(scene: Scene) -> Scene:
    """The same objects as plain small circles, whose only partial is the pitch of their colour."""
    plain = tuple(
        replace(thing, size="small", look=thing.look._replace(shape="circle", texture="solid"))
        for thing in scene.objects
    )
    return replace(scene, objects=plain)


@given(scenes)
@settings(max_examples=30)
def test_objects_are_heard_from_left_to_right(scene: Scene) -> None:
    """Colours heard slot by slot are the colours of the objects in order of x."""
    waveform = render_audio(steady(scene))
    by_place = sorted(scene.objects, key=lambda thing: thing.x)
    assert heard_colours(waveform, len(scene.objects)) == [thing.look.colour for thing in by_place]


@given(scenes)
@settings(max_examples=30)
def test_an_audio_clip_is_a_short_waveform_and_a_function_of_the_facts(scene: Scene) -> None:
    waveform = render_audio(scene)
    moved = replace(scene, objects=tuple(replace(thing, x=thing.x + 0.01) for thing in scene.objects))
    assert (render_audio(moved) == waveform).all()
    assert waveform.dtype == np.float32 and waveform.shape == (len(scene.objects) * SLOT + RATE // 5,)
    assert 0.05 < np.abs(waveform).max() <= 1 and len(waveform) <= 1.8 * RATE


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("texture", TEXTURES),
        ("size", SIZES),
        ("row", ROWS),
        ("background", BACKGROUNDS),
    ],
)
def test_every_fact_is_audible(kind: str, values: tuple[str, ...]) -> None:
    """Any two values of an attribute differ in the spectrogram (10 ms steps), by far more than 16-bit rounding."""
    scene = scene_at(0, "val", 0)
    first, *rest = scene.objects
    spectrograms = []
    for value in values:
        if kind == "background":
            changed = replace(scene, background=value)
        elif kind in ("size", "row"):
            changed = replace(scene, objects=(replace(first, **{kind: value}), *rest))  # type: ignore[arg-type]
        else:
            changed = replace(scene, objects=(replace(first, look=first.look._replace(**{kind: value})), *rest))
        frames = render_audio(changed)[: SLOT // 160 * 160].reshape(-1, 160)
        spectrograms.append(np.log(np.abs(np.fft.rfft(frames)) + 0.01))
    for i, one in enumerate(spectrograms):
        for other in spectrograms[:i]:
            assert np.abs(one - other).mean() > 0.05


def test_different_scenes_differ_in_their_audio() -> None:
    clips = {render_audio(scene_at(0, split, index)).tobytes() for split in SPLITS for index in range(100)}
    assert len(clips) == 100 * len(SPLITS)


def test_a_sample_rate_that_cannot_carry_the_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="8000 Hz cannot carry"):
        render_audio(scene_at(0, "val", 0), 8000)
    assert len(render_audio(scene_at(0, "val", 0), 48_000)) == 3 * len(render_audio(scene_at(0, "val", 0)))
