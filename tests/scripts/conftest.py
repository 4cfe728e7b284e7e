"""Scripts run in this process: importing torch anew would be most of a test's time."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """script("eval_coco.py", *words) as a user runs it."""

    def run(name: str, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, words)])
        monkeypatch.setenv("COLUMNS", "160")
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


@pytest.fixture
def refused(script: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused("eval_coco.py", *words) -> the one line with which the script ends, exit code 2."""

    def run(name: str, *words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            script(name, *words)
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and line.startswith(f"{name.removesuffix('.py')}: ")
        return line

    return run
