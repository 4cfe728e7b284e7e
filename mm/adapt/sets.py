"""What fine-tuning and continued pre-training share: the two sets, their scores, and the state that is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from alignment import ScheduleConfig
from mm.adapt.planner import memory_in_use
from mm.adapt.task import moving, snapshot
from mm.batch import CaptionDataset
from mm.config import AlignConfig, EvalConfig, TrainConfig
from mm.data.module import AlignData
from mm.evaluation.retrieval import evaluate_split
from mm.train.optim import OptimConfig
from mm.train.task import AlignTask


@dataclass(frozen=True)
class DomainData:
    """The set a run is adapted to."""

    root: str
    """Folder in COCO caption layout or of shards; scripts/prepare_domain.py writes one."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split that selects the checkpoint and is reported."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""
    views: int | None = None
    """Of a frozen image trunk: the plain image and views-1 augmented ones; by default as many as the run had."""


def domain_config(
    own: AlignConfig,
    data: DomainData,
    *,
    runs: str,
    seed: int,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    train: TrainConfig,
) -> AlignConfig:
    """A run's own settings, reading the domain's set and training as asked for; on one device."""
    read = replace(
        own.data,
        root=data.root,
        train=data.train,
        val=data.val,
        karpathy=None,
        audio_root=data.audio_root,
        views=own.data.views if data.views is None else data.views,
    )
    return replace(
        own,
        runs=runs,
        seed=seed,
        data=read,
        optim=optim,
        schedule=schedule,
        train=replace(train, devices=1, strategy="auto"),
    )


@dataclass(frozen=True)
class EvaluationSet:
    """A split that a task is evaluated on again and again, by one metric of its embeddings."""

    data: AlignData
    dataset: CaptionDataset
    split: str
    metric: str

    def score(self, task: AlignTask) -> float:
        """Raises ValueError, naming what is measured, where the metric is not."""
        found = evaluate_split(task.model, task.loss, self.data, self.dataset, self.split, EvalConfig(rerank=0))
        metrics = found.metrics()
        if self.metric not in metrics:
            raise ValueError(
                f"metric={self.metric!r} is not measured on {self.dataset.name}: choose from {', '.join(metrics)}"
            )
        return metrics[self.metric]


def own_set(run: AlignTask, data: AlignData) -> EvaluationSet:
    """The split on which the run was evaluated, by RSUM; `data` are of the run's own settings.

    Raises ValueError where it has gone.
    """
    split = data.config.data.val
    try:
        dataset = data.open(split)
    except OSError as error:
        raise ValueError(
            f"the run's own set cannot be read ({error}); finetune.py --general false leaves it out"
        ) from error
    data.cache_features(run.model, {split: dataset})
    return EvaluationSet(data, dataset, split, "RSUM")


class KeepBest(Callback):
    """Evaluates every `train.evaluate_every` steps, keeps the best state seen, leaves it in the task; with `train.ema`
    of averaged weights. Its own state is in the checkpoints.

    patience: evaluations without a better state after which training stops; 0 for none.
    """

    def __init__(self, judge: Callable[[], float], train: TrainConfig, patience: int) -> None:
        self.judge, self.every, self.patience = judge, train.evaluate_every, patience
        self.average = get_ema_multi_avg_fn(train.ema) if train.ema else None
        self.averaged: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.value, self.step, self.stale = float("-inf"), 0, 0

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: object) -> None:
        step = trainer.global_step
        if self.average:
            now = moving(task)
            self.averaged = self.averaged or {name: p.clone() for name, p in now.items()}
            self.average([self.averaged[n] for n in now], list(now.values()), step)  # type: ignore[arg-type]
        if step < trainer.max_steps and (not self.every or step % self.every):
            return
        newest = snapshot(task)
        restore(task, newest | self.averaged)
        value = self.judge()
        task.log("val/selected", value)
        self.stale += 1
        if value > self.value:
            self.value, self.step, self.stale, self.kept = value, step, 0, snapshot(task)
        restore(task, newest)
        task.train()
        if self.patience and self.stale >= self.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, task: LightningModule) -> None:
        restore(task, self.kept)

    def state_dict(self) -> dict[str, object]:
        return {
            "averaged": self.averaged,
            "kept": self.kept,
            "value": self.value,
            "step": self.step,
            "stale": self.stale,
        }

    def load_state_dict(self, state: dict) -> None:
        self.averaged, self.kept = state["averaged"], state["kept"]
        self.value, self.step, self.stale = state["value"], state["step"], state["stale"]


class PeakMemory(Callback):
    """The most memory in use after any backward, in bytes."""

    bytes = 0

    def on_after_backward(self, trainer: Trainer, task: LightningModule) -> None:
        self.bytes = max(self.bytes, memory_in_use())

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: object) -> None:
        self.bytes = max(self.bytes, memory_in_use())


def restore(task: LightningModule, state: dict[str, Tensor]) -> None:
    for name, tensor in (*moving(task).items(), *task.named_buffers()):
        tensor.copy_(state[name])
