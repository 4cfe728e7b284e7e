"""Captions spoken by an installed synthesizer, so that captioned photographs become a tri-modal set."""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from kernels.errors import UserError
from kernels.parsing import parse_json
from kernels.ranges import check_ranges
from mm.data.coco import CocoFolder
from mm.data.media import encode_audio
from mm.data.prepare.synthesizers import Synthesizer
from mm.files import write_json
from mm.readers import resample


@dataclass(frozen=True)
class SpeechPreparation:
    """Write one audio per image, `audio/<image's stem>.flac`; started again, it goes on where it stopped."""

    root: Path
    """the folder in COCO caption layout."""
    out: Path | None = None
    """folder for the audio clips, root itself if not given; it gets the annotations and links to images."""
    splits: Sequence[str] = ("train", "val")
    """names as in `captions_<split>.json`, or Karpathy's with `karpathy`."""
    karpathy: Path | None = None
    """the official dataset_coco.json."""
    synthesizer: str = "espeak-ng"
    """espeak-ng."""
    command: str | None = None
    """any other program, such as "flite -o {output} -t {text}"; {voice} too, and without {text} it is piped."""
    caption: Annotated[int, "[0, inf)"] = 0
    """which of an image's captions is spoken, counted from 0."""
    sample_rate: Annotated[int, "[1, inf)"] = 16000
    """hertz."""
    workers: Annotated[int | None, "[1, inf)"] = None
    """synthesizer processes at a time; one per processor if not given."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Spoken:
    """What a split came to."""

    rendered: int
    """Audio clips rendered now."""
    kept: int
    """Audio clips kept from an earlier run."""
    failed: list[str]
    """A line for each caption that could not be spoken."""


def voice_of(image_id: int, voices: tuple[str, ...]) -> str:
    """The voice that speaks for an image: the same always, neighbours differing (Knuth's multiplicative hash)."""
    product = image_id * 2654435761 % 2**32
    return voices[(product >> 12) % len(voices)]


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
    """Write `<folder>/audio/<image's stem>.flac`, one caption (`caption` modulo how many there are) per image.

    Audio clips that are already there are kept. `advance` is called with the number of images dealt with.

    Raises ValueError for audio clips of other settings, which are never mixed, and if no caption could be spoken.
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
    waiting = _waiting(dataset, audio)
    kept = len(dataset) - len(waiting)
    advance(kept)

    def speak(index: int) -> str | None:
        """Write one clip; returns why it cannot be spoken."""
        captions = dataset.captions[index]
        text = captions[caption % len(captions)]
        image_id = dataset.image_ids[index]
        voice = voice_of(image_id, synthesizer.voices)
        try:
            waveform, rate = _spoken(synthesizer, text, voice)
        except UserError as error:
            return f"image {image_id}: {error}"
        clip = encode_audio(resample(waveform, rate, sample_rate), sample_rate, "flac")
        _write(_clip_path(dataset, audio, index), clip)
        return None

    failed = []
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)  # each thread waits for a synthesizer process
    try:
        for trouble in pool.map(speak, waiting):
            advance(1)
            if trouble is not None:
                failed.append(trouble)
    finally:
        pool.shutdown(cancel_futures=True)
    if failed and len(failed) == len(dataset):
        raise UserError(f"none of {len(failed)} captions could be spoken: {failed[0]}")
    return Spoken(len(waiting) - len(failed), kept, failed)


def link_images(root: Path, folder: Path) -> None:
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


def _claim(path: Path, settings: dict[str, object]) -> None:
    """Note the settings beside the clips. Raises ValueError if the clips there were made with others."""
    before = parse_json(path.read_bytes(), str(path)) if path.is_file() else settings
    if before != settings:
        keys = [key for key in settings if before.get(key) != settings[key]]
        changed = ", ".join(keys)
        raise UserError(f"{path.parent} holds speech of another {changed}; choose another --out or delete that folder")
    write_json(path, settings)


def _clip_path(dataset: CocoFolder, audio: Path, index: int) -> Path:
    return audio / f"{dataset.files[index].stem}.flac"


def _waiting(dataset: CocoFolder, audio: Path) -> list[int]:
    """The positions of the images that have no clip yet."""
    there = {path.name for path in audio.iterdir()}
    waiting = []
    for index in range(len(dataset)):
        if _clip_path(dataset, audio, index).name not in there:
            waiting.append(index)
    return waiting


def _spoken(synthesizer: Synthesizer, text: str, voice: str) -> tuple[np.ndarray, int]:
    """(waveform (S,), its sample rate in hertz) of a text. Raises ValueError if it cannot be spoken."""
    waveform, rate = synthesizer(text, voice)
    if not len(waveform):
        raise UserError(f"{synthesizer.name} has no audio for {text!r}")
    return waveform, rate


def _write(path: Path, data: bytes) -> None:
    """Atomic: a killed process leaves no half file of that name."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
