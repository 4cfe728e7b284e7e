"""A run is followed while it trains: figures in its loggers, a line in its log."""

import csv
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mm import progress
from mm.artifacts.run import write_config
from mm.config import AlignConfig, TrainConfig
from mm.data.module import AlignData
from mm.train import memory
from mm.train.following import require_logger
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, fit


@pytest.fixture
def trained(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData], tiny_task: Any, tmp_path: Path
) -> Callable[[str], Path]:
    """trained(logger) -> the folder of a run of two steps."""

    def train(logger: str) -> Path:
        config = on_scenes(train={"steps": 2, "logger": logger, "evaluate_every": 0})
        data = open_data(config)
        task: AlignTask = tiny_task(data=config.data, text=config.text, train=config.train)
        folder = tmp_path / "run"
        write_config(config, folder)
        trainer = build_trainer(config.train, torch.device("cpu"), folder, (), resume=False)
        fit(trainer, task, data, folder, resume=False)
        return folder

    return train


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_speed_memory_and_stage_are_logged_and_a_line_is_said(
    trained: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "LOGGED_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "mm.progress"):
        (row,) = rows(trained("csv"))
    assert float(row["images_per_second"]) > 0 and 0.05 < float(row["memory_gb"]) < 100 and float(row["stage"]) == 2
    said = [line for line in caplog.messages if line.startswith("training: steps: ")]
    assert said[-1].startswith("training: steps: 2 of 2, ") and ", 0:00 left, loss " in said[-1]
    assert f"loss {float(row['train/total']):.4g}, stage 2" in said[-1]
    assert "Epoch" not in capsys.readouterr().out


def test_tensorboard_has_what_metrics_csv_has(
    trained: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(memory, "STATM", tmp_path / "nothing")  # a system that does not say what a process holds
    folder = trained("tensorboard")
    (row,) = rows(folder)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("train/total", "images_per_second", "stage"):
        assert events.Scalars(name)[-1].value == pytest.approx(float(row[name]), rel=1e-5)
    assert "memory_gb" not in row


def test_wandb_offline_writes_into_the_run(trained: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = trained("wandb")
    assert len(rows(folder)) == 1
    (written,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"images_per_second" in content and b"train/total" in content and b"batch_size" in content


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_refused_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"^{name} is not installed: pip install 'mm-align\[{name}\]'$"):
        require_logger(name)  # type: ignore[arg-type]  # one of the names
    require_logger("csv")


@pytest.mark.parametrize("steps, every", [(99, 0), (100, 25), (400, 100), (30_001, 7500)])
def test_a_run_is_evaluated_every_quarter_unless_it_is_short(steps: int, every: int) -> None:
    assert TrainConfig(steps=steps).evaluation_steps == every
    assert replace(TrainConfig(steps=steps), evaluate_every=0).evaluation_steps == 0
    assert replace(TrainConfig(steps=steps), evaluate_every=7).evaluation_steps == 7
