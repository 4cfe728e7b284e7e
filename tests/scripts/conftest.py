"""Scripts run in this process: importing torch anew would be most of a test's time."""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.tokenizer import Tokenizer, observed_vocabulary
from mm.artifacts.run import build_run, save_run
from mm.config import AlignConfig
from mm.data import open_split
from mm.data.scenes import write_scenes
from mm.train.task import AlignTask

SCRIPTS = Path(__file__).parents[2] / "scripts"
PATIENCE = 300  # seconds; a busy machine says nothing of the code


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


@pytest.fixture
def killed_at() -> Callable[[int, Callable[[], object]], None]:
    """killed_at(step, start) calls `start`, which trains, in a forked process that gets SIGKILL within that step."""

    def run(step: int, start: Callable[[], object]) -> None:
        def child() -> None:
            seed_step = AlignTask.seed_step

            def dying(task: AlignTask) -> None:
                seed_step(task)
                if task.global_step == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            AlignTask.seed_step = dying  # type: ignore[method-assign]
            start()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(PATIENCE)
        code = process.exitcode
        process.kill()  # what hangs would keep this process from its end
        assert code == -signal.SIGKILL

    return run


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The set of the run, and the set it is adapted to."""
    folder, sizes = tmp_path_factory.mktemp("sets"), {"train": 16, "val": 8}
    own, domain = (
        write_scenes(folder / f"{name}", seed=seed, sizes=sizes, image_size=32)
        for seed, name in enumerate(("own", "domain"))
    )
    return own, domain


@pytest.fixture
def run(tiny: AlignConfig, sets: tuple[Path, Path], tmp_path: Path) -> Path:
    """The folder of an untrained run on the first of the sets."""
    torch.manual_seed(0)
    data = replace(tiny.data, root=str(sets[0]), cache=str(tmp_path / "cache"))
    model = replace(tiny.model, modalities=("image", "text"))
    captions = (c for captions in open_split(sets[0], "train").captions for c in captions)
    vocabulary = observed_vocabulary(Tokenizer("scratch", 12), captions)
    save_run(build_run(replace(tiny, data=data, model=model), vocabulary), tmp_path / "base")
    return tmp_path / "base"
