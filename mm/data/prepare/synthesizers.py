"""Programs that speak: any that writes an audio file, espeak-ng by name."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kernels.errors import MissingError, UserError
from mm.data.media import decode_audio

TIMEOUT = 60
"""Seconds that a program may take for one text."""


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
    """Any program that writes an audio file.

    In its arguments {voice} and {output} are replaced, and {text}, or else the text is its standard input. No shell is
    involved.
    """

    name: str
    command: tuple[str, ...]
    voices: tuple[str, ...] = ("",)
    remedy: str = "install it or name another program with --command"

    def __call__(self, text: str, voice: str) -> tuple[np.ndarray, int]:
        if not self.command or shutil.which(self.command[0]) is None:
            raise MissingError(f"speech synthesizer {self.name!r} is not installed; {self.remedy}")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "speech.wav"
            places = {"{voice}": voice, "{output}": str(output), "{text}": text}
            self._run(text, places, output)
            return decode_audio(output.read_bytes(), f"of {self.name} for {text!r}")

    def _run(self, text: str, places: Mapping[str, str], output: Path) -> None:
        """Run the program. Raises ValueError if it takes too long, fails, or writes no output."""
        arguments = [_filled(argument, places) for argument in self.command]
        takes_text = any("{text}" in argument for argument in self.command)
        piped = None if takes_text else text.encode()
        try:
            done = subprocess.run(arguments, input=piped, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{self.name} did not finish {text!r} within a minute") from error
        if done.returncode or not output.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[0] if lines else "no output"
            raise UserError(f"{self.name} cannot speak {text!r} (exit code {done.returncode}): {reason}")


def espeak_ng() -> Synthesizer:
    """https://github.com/espeak-ng/espeak-ng: formant synthesis, about a hundred captions a second on one core."""
    # "en-gb" is an alias, for which espeak-ng silently ignores the +variant; these three are voice names of their own.
    accents = ("en-us", "en-gb-x-rp", "en-gb-scotland")
    speakers = ("", "+f2", "+f4", "+m3", "+m5", "+m7")
    voices = []
    for accent in accents:
        voices += [accent + speaker for speaker in speakers]
    return CommandSynthesizer(
        "espeak-ng",
        ("espeak-ng", "-v", "{voice}", "-w", "{output}", "--stdin"),
        tuple(voices),
        "install it (Debian, Ubuntu: apt-get install espeak-ng; macOS: brew install espeak-ng) or name another "
        "program with --command",
    )


SYNTHESIZERS: dict[str, Callable[[], Synthesizer]] = {"espeak-ng": espeak_ng}


def build_synthesizer(name: str, command: str | None = None) -> Synthesizer:
    """A synthesizer by name, or any program by a command line such as "flite -o {output} -t {text}".

    Raises ValueError for an unknown name, and for a command without {output}.
    """
    if command is not None:
        if "{output}" not in command:
            raise UserError(f"the command {command!r} must say {{output}} where it writes its audio file")
        words = shlex.split(command)
        return CommandSynthesizer(words[0], tuple(words))
    if name not in SYNTHESIZERS:
        raise UserError(f"synthesizer {name!r} is not one of {', '.join(SYNTHESIZERS)}; or use --command")
    return SYNTHESIZERS[name]()


def _filled(argument: str, places: Mapping[str, str]) -> str:
    """An argument with its places filled in one pass: a caption may itself contain "{voice}"."""
    for place, value in places.items():
        if place in argument:
            before, _, after = argument.partition(place)
            return before + value + _filled(after, places)
    return argument
