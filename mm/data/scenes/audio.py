"""The audio of a scene: one slot per object from left to right over the background's noise, then the noise alone.

Colour is pitch, shape is timbre (which partials), texture is rhythm, size is loudness and a note an octave below,
the row is a glide (top rises, bottom falls), the background is the spectrum of the noise. Every fact is audible.
"""

from functools import lru_cache

import numpy as np

from kernels.errors import UserError
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
RHYTHM = {
    "solid": (0.4, 1.0, 1.0),
    "striped": (0.1, 0.5, 0.0),
    "dotted": (0.04, 0.5, 0.0),
    "checked": (0.2, 0.5, 0.25),
}
"""Period in seconds, share of it that is loud, and the level of the rest."""
LOUDNESS = {"small": 0.2, "large": 0.6}
NOISE_BAND = {
    "black": (60, 160),
    "white": (4500, 7800),
    "gray": (160, 7800),
    "brown": (1700, 2600),
}
"""Hertz from, hertz to."""
NOISE_LEVEL = 0.012


def render_audio(scene: Scene, sample_rate: int = 16_000) -> np.ndarray:
    """The waveform (S,) float32 in [-1, 1], S = (0.4 · objects + 0.2) · sample_rate, at `sample_rate` hertz.

    Raises ValueError below 16 kHz.
    """
    if sample_rate < 16_000:
        raise UserError(f"{sample_rate} Hz cannot carry audio of up to 8 kHz, as scenes have: take 16000 or more")
    parts = [_note(thing, sample_rate) for thing in scene.objects]
    silence = round(TAIL_SECONDS * sample_rate)
    parts.append(np.zeros(silence, np.float32))
    waveform = np.concatenate(parts)
    noise = _noise(scene.background, sample_rate)
    waveform += noise[: len(waveform)]
    return waveform


def _note(thing: SceneObject, sample_rate: int) -> np.ndarray:
    """(slot,) what is heard of one object, without the noise."""
    pitch = PITCH[thing.look.colour]
    glide = GLIDE[thing.row]
    tone = _tone(pitch, thing.look.shape, glide, sample_rate)
    if thing.size == "large":
        below = _tone(pitch / 2, "circle", glide, sample_rate)
        tone = 0.8 * tone + 0.2 * below
    rhythm = _rhythm(thing.look.texture, sample_rate)
    return LOUDNESS[thing.size] * rhythm * tone


@lru_cache(maxsize=256)
def _tone(pitch: float, shape: str, glide: float, sample_rate: int) -> np.ndarray:
    """(slot,) a steady tone that glides, at most 1 in amplitude."""
    samples = round(SLOT_SECONDS * sample_rate)
    time = np.arange(samples) / sample_rate
    bent = time + glide * time * (time / SLOT_SECONDS - 1)
    phase = 2 * np.pi * pitch * bent
    partials = []
    for multiple, amplitude in PARTIALS[shape].items():
        partial = amplitude * np.sin(multiple * phase)
        partials.append(partial)
    wave = np.sum(partials, axis=0)
    loudest = np.abs(wave).max()
    return np.asarray(wave / loudest, np.float32)


@lru_cache(maxsize=16)
def _rhythm(texture: str, sample_rate: int) -> np.ndarray:
    """(slot,) amplitude over time, its steps rounded over 5 ms so that they do not click, silent at both ends."""
    samples = round(SLOT_SECONDS * sample_rate)
    period, loud, rest = RHYTHM[texture]
    time = np.arange(samples) / sample_rate
    in_period = np.mod(time, period)
    level = np.where(in_period < loud * period - 1e-9, 1.0, rest)
    soft = max(1, round(0.005 * sample_rate))
    level[:soft] = 0
    level[-soft:] = 0
    window = np.hanning(soft + 2)
    window = window[1:-1] / window.sum()
    smooth = np.convolve(level, window, mode="same")
    return smooth.astype(np.float32)


@lru_cache(maxsize=16)
def _noise(background: str, sample_rate: int) -> np.ndarray:
    """(longest scene,) noise in one band of frequencies, the same for every scene with that background."""
    seconds = 4 * SLOT_SECONDS + TAIL_SECONDS
    samples = round(seconds * sample_rate)
    key = (BACKGROUNDS.index(background), sample_rate)
    words = np.random.SeedSequence(key).generate_state(samples)
    white = words / 2**31 - 1
    spectrum = np.fft.rfft(white)
    frequency = np.fft.rfftfreq(samples, 1 / sample_rate)
    low, high = NOISE_BAND[background]
    outside = (frequency < low) | (frequency > high)
    spectrum[outside] = 0
    noise = np.fft.irfft(spectrum, samples)
    noise = NOISE_LEVEL * noise / noise.std()
    return np.asarray(noise, np.float32)
