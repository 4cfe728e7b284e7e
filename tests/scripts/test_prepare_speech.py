"""The command from end to end, in this process, with a program of its own for a voice."""

import runpy
import sys
from pathlib import Path

import PIL.Image
import pytest

from mm.batch import Sample
from mm.data import open_split
from mm.data.coco import write_coco

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_speech.py"


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        """(exit code, standard output, standard error)"""
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def root(tmp_path):
    samples = [Sample(f"p{i}", i, (f"caption {i}",), (i,), PIL.Image.new("RGB", (8, 8))) for i in range(3)]
    write_coco(samples, tmp_path / "coco", "train")
    return tmp_path / "coco"


@pytest.fixture
def voice(tmp_path):
    script = tmp_path / "speak.py"
    script.write_text(
        "import sys, wave\n"
        "with wave.open(sys.argv[1], 'wb') as file:\n"
        "    file.setparams((1, 2, 8000, 0, 'NONE', ''))\n"
        "    file.writeframes(b'\\1\\2' * 400)\n"
    )
    return f"{sys.executable} -S {script} {{output}}"


def test_photographs_become_a_set_of_three_modalities(run, root, voice, tmp_path):
    arguments = ["--root", root, "--out", tmp_path / "out", "--splits", "[train]", "--command", voice]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "train: 3 captions spoken" in out
    dataset = open_split(tmp_path / "out", "train")
    assert dataset.modalities == {"image", "audio", "text"} and all(dataset.has_audio)
    assert dataset[0].sample_rate == 16000 and len(dataset[0].audio) == 800
    assert "3 kept from an earlier run" in run(*arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--command", "no-such-program {output}"], "'no-such-program' is not installed"),
        (["--synthesizer", "parrot"], "'parrot' is not one of"),
        (["--splits", "[test]"], "the splits there are train"),
        (["--captoin", "1"], "--captoin"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, root, tmp_path, arguments, message):
    code, _, err = run("--root", root, "--out", tmp_path / "out", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
