"""`mm-align`: one word in front of what the scripts do."""

import inspect
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mm.commands import COMMANDS, main, named
from mm.config import AlignConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*words) -> the one line on stderr with which the command ends, exit code 2."""

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        return line

    return run


def test_help_is_fast_readable_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, time\nfrom mm.commands import main\nmain(['--help'])\n"
        "print(time.process_time(), 'torch' in sys.modules, 'jsonargparse' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    seconds, torch, jsonargparse = last.split()
    assert float(seconds) < 1 and (torch, jsonargparse) == ("False", "False")
    assert max(map(len, lines)) <= 80
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.about.split()] for line in lines)


def test_without_a_command_all_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "mm-align COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("typed, meant", [("serach", "search"), ("trian", "train"), ("evaluate", "eval"), ("zzz", "")])
def test_an_unknown_command_is_one_line_with_the_nearest(refused: Callable[..., str], typed: str, meant: str) -> None:
    line = refused(typed)
    assert line.startswith(f"mm-align: no command {typed!r}; ")
    assert f"did you mean {meant}?" in line if meant else "there are train, eval, search" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_names_is_there_and_takes_what_it_is_handed(name: str) -> None:
    command = COMMANDS[name]
    settings = named(command.takes)
    if command.then:
        (parameter,) = inspect.signature(named(command.then)).parameters.values()
        assert parameter.annotation is settings
    else:
        assert inspect.isfunction(settings)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_begins_with_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert printed.startswith(f"usage: mm-align {name} ") and f"mm-align {name} {COMMANDS[name].example}" in printed


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "--nmae", "x"], "--nmae"),
        (["train", "--config", "flikr8k"], "no such file or preset; did you mean flickr8k?"),
        (["search", "a red bus"], "index"),
        (["compare", "runs/nowhere"], "runs/nowhere/result.json: no such file"),
        (["eval"], "name one of --run"),
        (["list", "nothing"], "configs"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_of_the_command(
    refused: Callable[..., str], words: list[str], said: str
) -> None:
    line = refused(*words)
    assert line.startswith(f"mm-align {words[0]}: ") and said in line


def test_a_command_hands_its_options_to_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[AlignConfig] = []
    monkeypatch.setattr("mm.train.align.train_align", handed.append)
    main(["train", "--config", "soak", "--name", "mine"])
    (config,) = handed
    assert (config.name, config.model.embedding) == ("mine", 32)


def test_the_words_in_front_of_compare_are_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[Path]] = []

    def compare_runs(runs: list[Path], json: Path | None = None) -> None:
        handed.append(runs)

    monkeypatch.setattr("mm.evaluation.compare.compare_runs", compare_runs)
    main(["compare", "runs/a", "runs/b"])
    assert handed == [[Path("runs/a"), Path("runs/b")]]


def test_the_console_script_and_the_presets_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert named(project["project"]["scripts"]["mm-align"]) is main
    packaged = project["tool"]["setuptools"]
    assert "configs" in packaged["packages"]["find"]["include"]
    assert packaged["package-data"]["configs"] == ["*.yaml"]
