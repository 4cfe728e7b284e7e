"""What a user got wrong is one line and exit code 2; what we got wrong keeps its traceback."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from eval.fingerprint import FingerprintError
from kernels.errors import DivergedError, MissingError, UserError
from mm import cli
from mm.cli import Program, run_command
from mm.files import InUseError


@dataclass(frozen=True)
class Inner:
    steps: int = 1
    """How far."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError("steps must not be negative")


@dataclass(frozen=True)
class Settings:
    name: str = "x"
    rerank: int | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def stopped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """stopped(then, *words) -> the line on stderr of a script called there/work.py."""
    monkeypatch.setattr("sys.argv", ["there/work.py"])

    def run(then: Callable[[Settings], None], *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run_command(Settings, then, arguments=words)
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        return line

    return run


def fails(error: Exception) -> Callable[[Settings], None]:
    def then(settings: Settings) -> None:
        raise error

    return then


def test_settings_are_built_and_passed_on() -> None:
    found: list[Settings] = []
    run_command(Settings, found.append, arguments=["--name", "y", "--inner.steps", "3"])
    assert found == [Settings("y", None, Inner(3))]


def test_a_function_is_called_with_its_options() -> None:
    found: list[tuple] = []

    def work(value: int, names: list[str] | None = None) -> None:
        found.append((value, names))

    run_command(work, arguments=["--value", "2", "--names", "[a, b]"])
    assert found == [(2, ["a", "b"])]


@pytest.mark.parametrize(
    "words, named",
    [
        (["--nmae", "y"], "--nmae"),
        (["--inner.steeps", "1"], "inner.steeps"),
        (["--inner.steps", "many"], "inner.steps"),
        (["--rerank", "many"], "rerank"),
        (["--name"], "--name"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--inner", "{stepz: 3}"], "stepz"),
    ],
)
def test_an_option_nobody_knows_is_one_line_that_names_it_and_where_help_is(
    stopped: Callable[..., str], words: list[str], named: str
) -> None:
    line = stopped(lambda settings: None, *words)
    assert line.startswith("work: ") and line.endswith("`python there/work.py --help` lists the options")
    assert named in line


@pytest.mark.parametrize("words", [["--config", "mine"], ["--config=mine"]])
def test_a_preset_is_found_by_its_name(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("name: preset")
    monkeypatch.setattr(cli, "CONFIGS", tmp_path)
    found: list[Settings] = []
    run_command(Settings, found.append, arguments=words)
    assert found == [Settings("preset")]


def test_a_file_goes_before_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("name: file")
    (tmp_path / "mine.yaml").write_text("name: preset")
    monkeypatch.setattr(cli, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)
    found: list[Settings] = []
    run_command(Settings, found.append, arguments=["--config", "mine"])
    assert found == [Settings("file")]


def test_an_unknown_preset_is_one_line_with_the_nearest(stopped: Callable[..., str]) -> None:
    line = stopped(lambda settings: None, "--config", "flikr8k")
    assert line == "work: --config flikr8k: no such file or preset; did you mean flickr8k?"


def test_the_words_in_front_are_a_list() -> None:
    found: list[tuple] = []

    def work(names: list[str], value: int = 0) -> None:
        found.append((names, value))

    run_command(work, arguments=["a", "b c", "--value", "2"], listed="names")
    run_command(work, arguments=["--names", "[a]"], listed="names")
    assert found == [(["a", "b c"], 2), (["a"], 0)]


def test_a_program_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(Settings, arguments=["--nmae", "y"], program=Program("tool work", "tool work", "What it does."))
    line = capsys.readouterr().err
    assert line.startswith("tool work: ") and line.endswith("`tool work --help` lists the options\n")


def test_a_config_file_with_an_unknown_key_is_one_line(stopped: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text("inner: {stpes: 3}")
    assert "stpes" in stopped(lambda settings: None, "--config", str(tmp_path / "typo.yaml"))


def test_a_value_that_the_dataclass_refuses_is_its_own_line(stopped: Callable[..., str]) -> None:
    assert stopped(lambda settings: None, "--inner.steps", "-1") == "work: steps must not be negative"


@pytest.mark.parametrize("kind", [UserError, MissingError, DivergedError, InUseError, FingerprintError])
def test_what_a_user_can_cause_is_one_line(stopped: Callable[..., str], kind: type[Exception]) -> None:
    assert stopped(fails(kind("bad\nvalue"))) == "work: bad value"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "there.json"),
        PermissionError(errno.EACCES, "not allowed", "there.json"),
        OSError(errno.ENOSPC, "No space left"),
    ],
)
def test_what_the_disk_refuses_is_one_line(stopped: Callable[..., str], error: OSError) -> None:
    assert stopped(fails(error)) == f"work: {error}"


class Broken(Dataset):
    """A dataset whose every sample is a user's fault, or ours."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise self.error


def test_an_error_in_a_loader_s_worker_is_one_line_too(stopped: Callable[..., str]) -> None:
    def then(settings: Settings) -> None:
        next(iter(DataLoader(Broken(UserError("a.jpg: it does\nnot decode")), num_workers=1)))

    assert stopped(then) == "work: a.jpg: it does not decode"


def test_a_bug_in_a_loader_s_worker_keeps_its_traceback() -> None:
    def then(settings: Settings) -> None:
        next(iter(DataLoader(Broken(ValueError("bug")), num_workers=1)))

    with pytest.raises(ValueError, match="Original Traceback"):
        run_command(Settings, then, arguments=[])


def test_help_has_what_stands_below_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(Settings, arguments=["--help"])
    assert ended.value.code == 0 and "How far. (type: int, default: 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [KeyError("bug"), ValueError("all keys need to be the same shape"), OSError("bug"), FloatingPointError("x")],
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(Settings, fails(error), arguments=[])
