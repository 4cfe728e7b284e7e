"""Behaviour: any program can speak, and what is wrong with one is a line that names the remedy."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mm.data.prepare.synthesizers import CommandSynthesizer, build_synthesizer

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_any_command_can_speak(tmp_path):
    """The text goes in as one argument or as standard input, whatever it contains; no shell reads it."""
    script = tmp_path / "speak.py"
    script.write_text(
        "import sys, wave\n"
        "text = sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()\n"
        "with wave.open(sys.argv[1], 'wb') as file:\n"
        "    file.setparams((1, 2, 8000, 0, 'NONE', ''))\n"
        "    file.writeframes(b''.join(ord(c).to_bytes(2, 'little') for c in text))\n"
    )
    text = "a 'quoted' $(caption); {output} {voice}"
    for tail in ("{text}", ""):
        waveform, rate = build_synthesizer("", f"{sys.executable} -S {script} {{output}} {tail}")(text, "")
        assert rate == 8000 and "".join(chr(round(sample * 32768)) for sample in waveform) == text


def test_what_is_wrong_with_a_synthesizer_is_one_line():
    with pytest.raises(FileNotFoundError, match="'no-such-program' is not installed; install it"):
        CommandSynthesizer("no-such-program", ("no-such-program",))("text", "")
    with pytest.raises(ValueError, match=r"must say \{output\}"):
        build_synthesizer("", "flite -t {text}")
    with pytest.raises(ValueError, match="'parrot' is not one of espeak-ng"):
        build_synthesizer("parrot")
    failing = CommandSynthesizer("python", (sys.executable, "-c", "raise SystemExit('no voice')", "{output}"))
    with pytest.raises(ValueError, match=r"cannot speak 'hello' \(exit code 1\): no voice"):
        failing("hello", "")


@needs_espeak
def test_espeak_speaks_with_different_voices():
    speaker = build_synthesizer("espeak-ng")
    first, rate = speaker("A dog runs over the grass.", speaker.voices[0])
    assert 0.5 < len(first) / rate < 6 and 0.05 < np.abs(first).max() <= 1
    longer, _ = speaker("A dog runs over the grass and then it jumps into the water.", speaker.voices[0])
    assert len(longer) > 1.4 * len(first)
    other, _ = speaker("A dog runs over the grass.", speaker.voices[-1])
    assert len(other) != len(first) or not np.array_equal(other, first)
    assert not Path("speech.wav").exists()


@needs_espeak
def test_every_espeak_voice_exists():
    speaker = build_synthesizer("espeak-ng")
    spoken = {speaker("dog", voice)[0].tobytes() for voice in speaker.voices}
    assert len(spoken) == len(speaker.voices)
