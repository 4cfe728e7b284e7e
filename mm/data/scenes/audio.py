"""The audio of a scene: one slot per object from left to right over the background's noise, then the noise alone.

Colour is pitch, shape is timbre (which partials), texture is rhythm, size is loudness and a note an octave below,
the row is a glide (top rises, bottom falls), the background is the spectrum of the noise. Every fact is audible.
"""

from functools import lru_cache

import numpy as np

from mm.data.scenes.scene import BACKGROUNDS, COLOURS, Scene, SceneObject

SLOT_SECONDS = 0.4
TAIL_SECONDS = 0.2
PITCH = {colour: 250.0 * 1.25**step for step, colour in enumerate(COLOURS)}
"""Hertz at the middle of the slot."""
PARTIALS = {
    "circle": {1.0: 1.0},
    "square": {1.0: 1.0, 3.0: 0.7, 5.0: 0.5},
    "triangle": {1.0: 1.0, 4.0: 0.7},
    "star": {1.0: 1.0, 2.0: 0.6, 3.0: 0.6, 4.0: 0.6, 5.0: 0.6, 6.0: 0.6},
    "cross": {1.0: 1.0, 5.0: 0.7, 6.0: 0.7},
    "heart": {1.0: 1.0, 2.0: 0.8},
    "ring": {1.0: 1.0, 2.76: 0.7, 5.4: 0.5},
    "moon": {1.0: 1.0, 1.5: 0.7},
}
"""Multiple of the pitch -> amplitude. The pitch itself is always the strongest."""
GLIDE = {"top": 0.1, "middle": 0.0, "bottom": -0.1}
"""How far the pitch has moved at the end of the slot, relative to the middle; it starts as far on the other side."""
RHYTHM = {"solid": (0.4, 1.0, 1.0), "striped": (0.1, 0.5, 0.0), "dotted": (0.04, 0.5, 0.0), "checked": (0.2, 0.5, 0.25)}
"""Period in seconds, share of it that is loud, and the level of the rest."""
LOUDNESS = {"small": 0.2, "large": 0.6}
NOISE_BAND = {"black": (60, 160), "white": (4500, 7800), "gray": (160, 7800), "brown": (1700, 2600)}
"""Hertz from, hertz to."""
NOISE_LEVEL = 0.012


def render_audio(scene: Scene, sample_rate: int = 16_000) -> np.ndarray:
    """(S,) float32 in [-1, 1], S = (0.4 · objects + 0.2) · sample_rate. Raises ValueError below 16 kHz."""
    if sample_rate < 16_000:
        raise ValueError(
            f"{sample_rate} Hz cannot carry audio clips of up to 8 kHz, as scenes have: take 16000 or more"
        )
    notes = [_note(thing, sample_rate) for thing in scene.objects]
    tail = np.zeros(round(TAIL_SECONDS * sample_rate), np.float32)
    sound = np.concatenate([*notes, tail])
    sound += _noise(scene.background, sample_rate)[: len(sound)]
    return sound


def _note(thing: SceneObject, sample_rate: int) -> np.ndarray:
    colour, shape, texture = thing.look
    tone = _tone(PITCH[colour], shape, GLIDE[thing.row], sample_rate)
    if thing.size == "large":
        tone = 0.8 * tone + 0.2 * _tone(PITCH[colour] / 2, "circle", GLIDE[thing.row], sample_rate)
    return LOUDNESS[thing.size] * _rhythm(texture, sample_rate) * tone


@lru_cache(maxsize=256)
def _tone(pitch: float, shape: str, glide: float, sample_rate: int) -> np.ndarray:
    """(slot,) a steady tone that glides, at most 1 in amplitude."""
    time = np.arange(round(SLOT_SECONDS * sample_rate)) / sample_rate
    phase = 2 * np.pi * pitch * (time + glide * time * (time / SLOT_SECONDS - 1))
    wave = np.sum([amplitude * np.sin(multiple * phase) for multiple, amplitude in PARTIALS[shape].items()], axis=0)
    return np.asarray(wave / np.abs(wave).max(), np.float32)


@lru_cache(maxsize=16)
def _rhythm(texture: str, sample_rate: int) -> np.ndarray:
    """(slot,) amplitude over time, its steps rounded over 5 ms so that they do not click, silent at both ends."""
    samples = round(SLOT_SECONDS * sample_rate)
    period, loud, rest = RHYTHM[texture]
    time = np.arange(samples) / sample_rate
    level = np.where(np.mod(time, period) < loud * period - 1e-9, 1.0, rest)
    soft = max(1, round(0.005 * sample_rate))
    level[:soft] = level[-soft:] = 0
    return np.convolve(level, np.hanning(soft + 2)[1:-1] / np.hanning(soft + 2).sum(), mode="same").astype(np.float32)


@lru_cache(maxsize=16)
def _noise(background: str, sample_rate: int) -> np.ndarray:
    """(longest scene,) noise in one band of frequencies, the same for every scene with that background."""
    samples = round((4 * SLOT_SECONDS + TAIL_SECONDS) * sample_rate)
    words = np.random.SeedSequence((BACKGROUNDS.index(background), sample_rate)).generate_state(samples)
    spectrum = np.fft.rfft(words / 2**31 - 1)
    frequency = np.fft.rfftfreq(samples, 1 / sample_rate)
    low, high = NOISE_BAND[background]
    spectrum[(frequency < low) | (frequency > high)] = 0
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(NOISE_LEVEL * noise / noise.std(), np.float32)
