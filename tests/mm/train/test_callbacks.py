"""Averages, evaluations and the best state: by parameters that can be followed by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import nn

from mm.train.callbacks import KeepBest, PeriodicEvaluation, WeightAverage, restore, snapshot

ALONE = SimpleNamespace(broadcast=lambda found: found)
"""The strategy of one process."""


class Toy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.tensor([-0.0]), requires_grad=False)
        self.logged: list[dict[str, float]] = []

    def log(self, name: str, value: Any, **_: Any) -> None:  # type: ignore[override]
        self.logged.append({name: float(value)})

    def log_dict(self, values: Any, **_: Any) -> None:  # type: ignore[override]
        self.logged.append(dict(values))


@pytest.fixture
def task() -> Toy:
    return Toy()


def steps(task: Toy, callbacks: list[Any], values: list[float]) -> Any:
    """After step n the weight is values[n - 1]; -> the trainer, after fitting."""
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=len(values), is_global_zero=True, should_stop=False, strategy=ALONE
    )
    for value in values:
        trainer.global_step += 1
        task.weight.data.fill_(value)
        for callback in callbacks:
            callback.on_train_batch_end(trainer, task)
        if trainer.should_stop:
            break
    for callback in callbacks:
        if hasattr(type(callback), "on_fit_end"):
            callback.on_fit_end(trainer, task)
    return trainer


def test_the_average_begins_after_its_start_and_is_left_in_the_task(task: Toy) -> None:
    steps(task, [WeightAverage(0.5, start=1)], [100.0, 1.0, 3.0])
    assert task.weight.item() == 2.0  # (1 + 3) / 2: the first step is not in it
    assert torch.signbit(task.frozen).item()  # what does not train is not touched, to the sign of its zero


def test_an_average_goes_on_from_its_state(task: Toy) -> None:
    first = WeightAverage(0.5)
    steps(task, [first], [1.0, 3.0])
    resumed = WeightAverage(0.5)
    resumed.load_state_dict(first.state_dict())
    steps(task, [resumed], [4.0])
    assert task.weight.item() == 3.0


def test_an_evaluation_is_logged_every_so_many_steps(task: Toy) -> None:
    evaluation = PeriodicEvaluation(2, lambda: {"RSUM": task.weight.item()})
    steps(task.eval(), [evaluation], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert task.logged == [{"val/RSUM": 2.0}, {"val/RSUM": 4.0}] and task.training


def test_evaluations_that_nobody_asked_for_stay_within_their_share(
    task: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("mm.train.callbacks.time.perf_counter", lambda: now[0])
    trainer: Any = SimpleNamespace(global_step=0, max_steps=100, strategy=ALONE)

    def evaluated(seconds: float, share: float | None) -> list[int]:
        """At which steps of a run of 100 s an evaluation that takes so long is made."""
        found = []

        def score() -> dict[str, float]:
            found.append(trainer.global_step)
            now[0] += seconds
            return {"RSUM": 0.0}

        evaluation = PeriodicEvaluation(25, score, share)
        trainer.global_step = 0
        evaluation.on_train_start(trainer, task)
        for trainer.global_step in range(1, 101):
            now[0] += 1.0
            evaluation.on_train_batch_end(trainer, task)
        return found

    assert evaluated(0.1, 0.1) == [25, 50, 75]  # and not the last step, behind which a run is evaluated anyway
    assert evaluated(3.0, 0.1) == [25, 50, 75]
    assert evaluated(5.0, 0.1) == [25, 50]
    with caplog.at_level("INFO", "mm.train.callbacks"):
        assert evaluated(9.0, 0.1) == [25]
    assert caplog.messages[0].startswith("validation at step 50 skipped: it takes 9 s, training 100 s in all")
    assert evaluated(9.0, None) == [25, 50, 75, 100]


def test_the_best_state_is_kept_and_the_last_step_always_counts(task: Toy) -> None:
    best = KeepBest(2, lambda: {"RSUM": -abs(task.weight.item() - 4)}, "RSUM")
    steps(task, [best], [1.0, 3.5, 4.0, 9.0, 5.0])
    assert task.weight.item() == 3.5 and (best.step, best.value) == (2, -0.5)
    steps(task, [KeepBest(0, lambda: {"RSUM": 1.0}, "RSUM")], [1.0, 7.0])
    assert task.weight.item() == 7.0


def test_with_an_average_that_is_what_is_evaluated_and_kept(task: Toy) -> None:
    seen: list[float] = []

    def score() -> dict[str, float]:
        seen.append(task.weight.item())
        return {"RSUM": task.weight.item()}

    average = WeightAverage(0.5)
    steps(task, [average, KeepBest(1, score, "RSUM", average)], [1.0, 3.0])
    assert seen == [1.0, 2.0] and task.weight.item() == 2.0


def test_training_stops_when_nothing_gets_better(task: Toy) -> None:
    best = KeepBest(1, lambda: {"RSUM": -task.weight.item()}, "RSUM", patience=2)
    trainer = steps(task, [best], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert trainer.global_step == 3 and task.weight.item() == 1.0


def test_a_snapshot_is_a_copy_and_restores_what_it_has(task: Toy) -> None:
    before = snapshot(task)
    task.weight.data.fill_(9.0)
    assert before["weight"].item() == 0.0 and "frozen" not in before
    restore(task, {})
    assert task.weight.item() == 9.0
    restore(task, before)
    assert task.weight.item() == 0.0
