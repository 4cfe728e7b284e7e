"""Train, evaluate and report one run. Without arguments: the embedded scenes, a few minutes on two CPU cores.

    python scripts/train_align.py
    python scripts/train_align.py --config configs/flickr8k.yaml --data.root ../shared/data/flickr8k
    python scripts/train_align.py --name joint --schedule.kind joint --seed 1

Writes runs/<name>/: config.yaml, metrics.csv, checkpoints/, model.safetensors + model.json, result.json,
embeddings.npz, diagnostics.npz, report.html.
"""

import csv
import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mm.adapt.task import freeze
from mm.checkpoint import SyncedCheckpointIO, regular_checkpoints
from mm.command import log_training, run_command
from mm.config import AlignConfig, EvalConfig
from mm.data.module import AlignData, trainer_precision
from mm.evaluate import evaluate_split
from mm.memory import keep_freed_memory
from mm.results import judge, show
from mm.run import newest_checkpoint, save_weights, write_config
from mm.task import AlignTask


def train_align(config: AlignConfig) -> None:
    check_options(config)
    started, folder = time.perf_counter(), Path(config.runs) / config.name
    write_config(config, folder)
    seed_everything(config.seed, verbose=False)
    data = AlignData(config)
    data.setup()
    if len(set(config.model.modalities) & data.train.modalities) < 2:
        raise ValueError(f"{data.train.name} has {', '.join(sorted(data.train.modalities))}, the model"
                         f" {', '.join(config.model.modalities)}: to be aligned, two must be in both")
    task = AlignTask(config, data.vocabulary)
    freeze(task, config.train.freeze)
    splits = {config.data.train: data.train} | {split: data.open(split) for split in data.evaluation_splits}
    data.cache_features(task.model, splits)
    trainer = build_trainer(config, folder)
    trainer.fit(task, data, ckpt_path=newest_checkpoint(folder) if config.resume else None, weights_only=True)
    if config.resume and trainer.global_step < config.train.steps:
        raise ValueError(f"{folder} has finished with {trainer.global_step} steps, of which its schedules are"
                         f" fractions: a run of {config.train.steps} needs another --name and no --resume")
    if trainer.is_global_zero:
        save_weights(task, folder)
        show(judge(task, data, {s: splits[s] for s in data.evaluation_splits}, folder, started))
        print(f"report: {folder / 'report.html'}")


def check_options(config: AlignConfig) -> None:
    """Raises ValueError on numbers that no run can have."""
    train = config.train
    numbers = {"train.steps": train.steps, "train.batch_size": train.batch_size,
               "train.checkpoint_every": train.checkpoint_every, "eval.batch_size": config.eval.batch_size}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")


def build_trainer(config: AlignConfig, folder: Path) -> Trainer:
    """Raises ValueError on an accelerator or strategy that this machine does not have."""
    train = config.train
    callbacks: list[Callback] = [
        RichProgressBar(),
        regular_checkpoints(folder, train.checkpoint_every),
    ]
    if train.ema:
        callbacks.append(MovingAverage(train.ema, start=train.steps // 10))
    if train.evaluate_every:
        callbacks.append(EvaluateEvery(train.evaluate_every))
    if config.resume:
        callbacks.append(KeepHistory(folder / "metrics.csv"))
    every = min(10, train.steps)
    try:
        return Trainer(
            max_steps=train.steps,
            max_epochs=1,
            accelerator=train.accelerator,
            devices=train.devices,
            strategy=train.strategy,
            precision=trainer_precision(train.precision),
            use_distributed_sampler=False,
            logger=CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=every),
            log_every_n_steps=every,
            callbacks=callbacks,
            plugins=[SyncedCheckpointIO()],
            num_sanity_val_steps=0,
            sync_batchnorm=True,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"train.accelerator, train.devices or train.strategy: {error}") from error


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights from step `start` on; buffers are the newest.

    Lightning's own computes decay·a + (1 - decay)·b, which moves even a weight that does not change, by rounding: a
    frozen trunk would be another trunk after training, and its cached features would be computed again.
    """

    def __init__(self, decay: float, start: int) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.start = start

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.start


class KeepHistory(Callback):
    """Of a resumed run's metrics, what was logged before the checkpoint: the logger alone would start the file anew."""

    def __init__(self, path: Path) -> None:
        self.rows = list(csv.DictReader(path.open())) if path.is_file() else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self.rows = self.rows, []
        for row in rows if trainer.logger else ():
            step = int(row.pop("step"))
            if step < trainer.global_step:
                trainer.logger.log_metrics({k: float(v) for k, v in row.items() if v}, step)  # type: ignore[union-attr]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed in its evaluation has no step left, and training does not start."""
        self.on_train_start(trainer, pl_module)


class EvaluateEvery(Callback):
    """First-stage retrieval on the validation split every so many steps, logged as val/…"""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_index) -> None:  # type: ignore[no-untyped-def]  # Lightning's hook
        if trainer.global_step % self.steps or not trainer.is_global_zero:
            return
        data, split = trainer.datamodule, task.config.data.val
        found = evaluate_split(task.model, task.loss, data, data.open(split), split, EvalConfig(rerank=0)).metrics()
        task.model.train()
        task.log_dict({f"val/{k}": v for k, v in found.items() if "R@" in k or k == "RSUM"}, rank_zero_only=True)


if __name__ == "__main__":
    log_training()
    keep_freed_memory()
    run_command(AlignConfig, train_align)
