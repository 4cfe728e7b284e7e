"""What may go on, who may write into a run's folder, and what happens to a run that is there."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mm.config import AlignConfig
from mm.train.identity import FILE, Identity, begin, held

HOLD = "import sys, time; from pathlib import Path; from mm.train.identity import held\n"


def identity(config: AlignConfig, samples: str = "a") -> Identity:
    return Identity.of(config, {"training samples": samples})


def test_a_run_goes_on_on_another_machine_with_another_rate(tmp_path: Path) -> None:
    config = AlignConfig()
    folder = tmp_path / "run"
    begin(folder, identity(config), config, resume=False)
    written = (folder / FILE).read_bytes()
    moved = replace(
        config,
        name="other",
        runs="elsewhere",
        data=replace(config.data, root="moved", workers=3),
        optim=replace(config.optim, learning_rate=1e-5),
        train=replace(config.train, devices="2", strategy="ddp"),
    )
    begin(folder, identity(moved), moved, resume=True)
    assert (folder / FILE).read_bytes() == written


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"train": replace(AlignConfig().train, ema=0.5)}, "train.ema="),
    ],
)
def test_another_setting_is_named_and_nothing_is_written(tmp_path: Path, change: dict, said: str) -> None:
    config = AlignConfig()
    begin(tmp_path / "run", identity(config), config, resume=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other = replace(config, **change)
    with pytest.raises(ValueError, match=said):
        begin(tmp_path / "run", identity(other), other, resume=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_other_samples_are_named(tmp_path: Path) -> None:
    config = AlignConfig()
    begin(tmp_path, identity(config), config, resume=False)
    with pytest.raises(ValueError, match="was begun with other training samples"):
        begin(tmp_path, identity(config, "b"), config, resume=True)


def test_a_run_that_is_there_is_moved_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AlignConfig()
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    caplog.set_level("INFO")
    begin(folder, identity(config), config, resume=False)
    begin(folder, identity(config), config, resume=False)
    first, second = sorted(path for path in tmp_path.iterdir() if path.name.startswith("default.2"))
    kept = sorted(path.name for path in [*first.iterdir(), *second.iterdir()])
    assert kept == ["config.yaml", FILE, "result.json"]
    assert [message.split(" held a run: it is ")[0] for message in caplog.messages] == [str(folder)] * 2
    assert json.loads((folder / FILE).read_text())["settings"]["seed"] == config.seed


def test_no_run_and_no_readable_identity_are_said(tmp_path: Path) -> None:
    config = AlignConfig()
    with pytest.raises(ValueError, match="holds no run: leave --resume out"):
        begin(tmp_path, identity(config), config, resume=True)
    (tmp_path / FILE).write_text("[1]")
    with pytest.raises(ValueError, match="cannot be read"):
        begin(tmp_path, identity(config), config, resume=True)


def test_a_second_process_is_refused_and_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"{HOLD}with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {other.pid} on"), held(folder):
            pass
        other.stdin.close()
    with held(folder):
        assert not folder.exists()


def test_of_several_processes_the_first_one_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AlignConfig()
    with held(tmp_path / "run"):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with held(tmp_path / "run"):
            begin(tmp_path / "run", identity(config), config, resume=False)
    assert not (tmp_path / "run").exists()
