"""The command from end to end, in this process, with a program of its own for a voice."""

import sys

import pytest
import torch

from mm.batch import Sample
from mm.data import open_split
from mm.data.coco import write_coco


@pytest.fixture
def root(tmp_path):
    samples = [Sample(f"p{i}", i, (f"caption {i}",), (i,), torch.zeros(3, 8, 8, dtype=torch.uint8)) for i in range(3)]
    write_coco(samples, tmp_path / "coco", "train")
    return tmp_path / "coco"


@pytest.fixture
def voice(tmp_path):
    program = tmp_path / "speak.py"
    program.write_text(
        "import sys, wave\n"
        "with wave.open(sys.argv[1], 'wb') as file:\n"
        "    file.setparams((1, 2, 8000, 0, 'NONE', ''))\n"
        "    file.writeframes(b'\\1\\2' * 400)\n"
    )
    return f"{sys.executable} -S {program} {{output}}"


def test_photographs_become_a_set_of_three_modalities(script, capsys, root, voice, tmp_path):
    arguments = ["--root", root, "--out", tmp_path / "out", "--splits", "[train]", "--command", voice]
    script("prepare_speech.py", *arguments)
    assert "train: 3 captions spoken" in capsys.readouterr().out
    dataset = open_split(tmp_path / "out", "train")
    assert dataset.modalities == {"image", "audio", "text"} and all(dataset.has_audio)
    assert dataset[0].sample_rate == 16000 and len(dataset[0].audio) == 800
    script("prepare_speech.py", *arguments)
    assert "3 kept from an earlier run" in capsys.readouterr().out


def test_a_run_with_nothing_left_but_what_cannot_be_spoken_still_makes_the_set(script, capsys, root, voice, tmp_path):
    """The clip of one image is empty whenever it is asked for; the first run was stopped before it linked images."""
    (tmp_path / "out").mkdir()
    arguments = ["--root", root, "--out", tmp_path / "out", "--splits", "[train]", "--command", voice]
    script("prepare_speech.py", *arguments)
    (tmp_path / "out" / "images").unlink()
    (tmp_path / "out" / "audio" / "p1.flac").unlink()
    silent = f"{sys.executable} -c pass {{output}} {{text}}"
    (tmp_path / "out" / "audio" / "speech.json").unlink()
    script("prepare_speech.py", *arguments[:-1], silent)
    assert "1 captions have no speech; going on without them" in capsys.readouterr().out
    assert open_split(tmp_path / "out", "train").has_audio == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--command", "no-such-program {output}"], "'no-such-program' is not installed"),
        (["--synthesizer", "parrot"], "'parrot' is not one of"),
        (["--splits", "[test]"], "the splits there are train"),
        (["--captoin", "1"], "--captoin"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(refused, root, tmp_path, arguments, message):
    assert message in refused("prepare_speech.py", "--root", root, "--out", tmp_path / "out", *arguments)
