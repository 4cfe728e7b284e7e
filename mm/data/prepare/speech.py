"""Captions spoken by an installed synthesizer, so that captioned photographs become a tri-modal set."""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mm.data.coco import CocoFolder
from mm.data.media import decode_audio, encode_audio, resample
from mm.files import write_json


class Synthesizer(Protocol):
    """Text -> (mono waveform (S,) float32 in [-1, 1], its sample rate in hertz), spoken by one of `voices`.

    ValueError if a text cannot be spoken; FileNotFoundError, naming the remedy, if the program is not installed.
    """

    @property
    def name(self) -> str: ...

    @property
    def voices(self) -> tuple[str, ...]: ...

    def __call__(self, text: str, voice: str) -> tuple[np.ndarray, int]: ...


@dataclass(frozen=True)
class CommandSynthesizer:
    """Any program that writes an audio file. In its arguments {voice} and {output} are replaced, and {text}, or else
    the text is its standard input. No shell is involved."""

    name: str
    command: tuple[str, ...]
    voices: tuple[str, ...] = ("",)
    remedy: str = "install it or name another program with --command"

    def __call__(self, text: str, voice: str) -> tuple[np.ndarray, int]:
        if not self.command or shutil.which(self.command[0]) is None:
            raise FileNotFoundError(f"speech synthesizer {self.name!r} is not installed; {self.remedy}")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "speech.wav"
            places = {"{voice}": voice, "{output}": str(output), "{text}": text}
            arguments = [_filled(argument, places) for argument in self.command]
            piped = None if any("{text}" in argument for argument in self.command) else text.encode()
            try:
                done = subprocess.run(arguments, input=piped, capture_output=True, timeout=60, check=False)
            except subprocess.TimeoutExpired as error:
                raise ValueError(f"{self.name} did not finish {text!r} within a minute") from error
            if done.returncode or not output.is_file():
                reason = done.stderr.decode(errors="replace").strip().splitlines()[:1] or ["no output"]
                raise ValueError(f"{self.name} cannot speak {text!r} (exit code {done.returncode}): {reason[0]}")
            return decode_audio(output.read_bytes(), f"of {self.name} for {text!r}")


def espeak_ng() -> Synthesizer:
    """https://github.com/espeak-ng/espeak-ng: formant synthesis, about a hundred captions a second on one core."""
    # "en-gb" is an alias, for which espeak-ng silently ignores the +variant; these three are voice names of their own.
    accents, speakers = ("en-us", "en-gb-x-rp", "en-gb-scotland"), ("", "+f2", "+f4", "+m3", "+m5", "+m7")
    return CommandSynthesizer(
        "espeak-ng",
        ("espeak-ng", "-v", "{voice}", "-w", "{output}", "--stdin"),
        tuple(accent + speaker for accent in accents for speaker in speakers),
        "install it (Debian, Ubuntu: apt-get install espeak-ng; macOS: brew install espeak-ng) or name another "
        "program with --command",
    )


SYNTHESIZERS: dict[str, Callable[[], Synthesizer]] = {"espeak-ng": espeak_ng}


def build_synthesizer(name: str, command: str | None = None) -> Synthesizer:
    """A synthesizer by name, or any program by a command line such as "flite -o {output} -t {text}"."""
    if command is not None:
        if "{output}" not in command:
            raise ValueError(f"the command {command!r} must say {{output}} where it writes its audio file")
        return CommandSynthesizer(shlex.split(command)[0], tuple(shlex.split(command)))
    if name not in SYNTHESIZERS:
        raise ValueError(f"synthesizer {name!r} is not one of {', '.join(SYNTHESIZERS)}; or use --command")
    return SYNTHESIZERS[name]()


@dataclass(frozen=True)
class Spoken:
    """What a split came to: audio clips rendered now, kept from an earlier run, and a line per caption that failed."""

    rendered: int
    kept: int
    failed: list[str]


def voice_of(image_id: int, voices: tuple[str, ...]) -> str:
    """The voice that speaks for an image: the same always, neighbours differing (Knuth's multiplicative hash)."""
    return voices[(image_id * 2654435761 % 2**32 >> 12) % len(voices)]


def speak_split(
    dataset: CocoFolder,
    folder: str | Path,
    synthesizer: Synthesizer,
    *,
    caption: int = 0,
    sample_rate: int = 16000,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Spoken:
    """Write `<folder>/audio/<picture's stem>.flac`, one caption (`caption` modulo how many there are) per image.

    Audio clips that are already there are kept; audio clips of other settings are a ValueError, never mixed.
    """
    audio = Path(folder) / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    settings = {
        "synthesizer": synthesizer.name,
        "voices": list(synthesizer.voices),
        "caption": caption,
        "sample_rate": sample_rate,
    }
    _claim(audio / "speech.json", settings)
    there = {path.name for path in audio.iterdir()}
    waiting = [i for i in range(len(dataset)) if f"{dataset.files[i].stem}.flac" not in there]
    kept = len(dataset) - len(waiting)
    advance(kept)

    def speak(index: int) -> str | None:
        captions = dataset.captions[index]
        text = captions[caption % len(captions)]
        try:
            waveform, rate = synthesizer(text, voice_of(dataset.image_ids[index], synthesizer.voices))
            if not len(waveform):
                raise ValueError(f"{synthesizer.name} has no audio for {text!r}")
        except ValueError as error:
            return f"image {dataset.image_ids[index]}: {error}"
        path = audio / f"{dataset.files[index].stem}.flac"
        part = path.with_name(path.name + ".part")
        part.write_bytes(encode_audio(resample(waveform, rate, sample_rate), sample_rate, "flac"))
        part.replace(path)
        return None

    failed = []
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)  # each thread waits for a synthesizer process
    try:
        for trouble in pool.map(speak, waiting):
            advance(1)
            failed += [trouble] if trouble else []
    finally:
        pool.shutdown(cancel_futures=True)
    if waiting and len(failed) == len(waiting):
        raise ValueError(f"none of {len(failed)} captions could be spoken: {failed[0]}")
    return Spoken(len(waiting) - len(failed), kept, failed)


def mirror_pictures(root: Path, folder: Path) -> None:
    """Make `folder` a COCO layout of its own around its audio clips: annotations copied, image folders linked to."""
    if root.resolve() == folder.resolve():
        return
    for source in root.iterdir():
        target = folder / source.name
        if folder.resolve().is_relative_to(source.resolve()):
            continue
        if source.name == "annotations":
            shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        elif source.is_dir() and source.name != "audio" and not target.exists():
            target.symlink_to(source.resolve(), target_is_directory=True)


def _filled(argument: str, places: dict[str, str]) -> str:
    # A caption may itself contain "{voice}": each argument takes one replacement pass over its own template only.
    for place, value in places.items():
        if place in argument:
            before, _, after = argument.partition(place)
            return before + value + _filled(after, places)
    return argument


def _claim(path: Path, settings: dict[str, object]) -> None:
    if path.is_file() and (before := json.loads(path.read_text())) != settings:
        changed = ", ".join(key for key in settings if before.get(key) != settings[key])
        raise ValueError(f"{path.parent} holds speech of another {changed}; choose another --out or delete that folder")
    write_json(path, settings)
