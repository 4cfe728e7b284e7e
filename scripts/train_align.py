"""Train, evaluate and report one run. Without arguments: the embedded scenes, a few minutes on two CPU cores.

    python scripts/train_align.py
    python scripts/train_align.py --config configs/flickr8k.yaml --data.root ../shared/data/flickr8k
    python scripts/train_align.py --name joint --schedule.kind joint --seed 1

Writes runs/<name>/: config.yaml, metrics.csv, checkpoints/, model.safetensors + model.json, result.json,
embeddings.npz, diagnostics.npz, report.html.
"""

import time
from pathlib import Path

from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mm.adapt.task import freeze
from mm.artifacts.run import newest_checkpoint, save_weights, write_config
from mm.cli import log_training, run_command
from mm.config import AlignConfig, EvalConfig, TrainConfig
from mm.data.module import AlignData
from mm.evaluation.result import judge, show
from mm.evaluation.retrieval import evaluate_split
from mm.train.memory import keep_freed_memory
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer


def train_align(config: AlignConfig) -> None:
    check_options(config)
    started, folder = time.perf_counter(), Path(config.runs) / config.name
    write_config(config, folder)
    seed_everything(config.seed, verbose=False)
    data = AlignData(config)
    data.setup()
    if len(set(config.model.modalities) & data.train.modalities) < 2:
        raise ValueError(
            f"{data.train.name} has {', '.join(sorted(data.train.modalities))}, the model"
            f" {', '.join(config.model.modalities)}: to be aligned, two must be in both"
        )
    task = AlignTask(config, data.vocabulary)
    freeze(task, config.train.freeze)
    splits = {config.data.train: data.train} | {split: data.open(split) for split in data.evaluation_splits}
    data.cache_features(task.model, splits)
    trainer = build_trainer(config.train, folder, callbacks(config.train), config.resume)
    trainer.fit(task, data, ckpt_path=newest_checkpoint(folder) if config.resume else None, weights_only=True)
    if config.resume and trainer.global_step < config.train.steps:
        raise ValueError(
            f"{folder} has finished with {trainer.global_step} steps, of which its schedules are"
            f" fractions: a run of {config.train.steps} needs another --name and no --resume"
        )
    if trainer.is_global_zero:
        save_weights(task, folder)
        show(judge(task, data, {s: splits[s] for s in data.evaluation_splits}, folder, started))
        print(f"report: {folder / 'report.html'}")


def check_options(config: AlignConfig) -> None:
    """Raises ValueError on numbers that no run can have."""
    train = config.train
    numbers = {
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.checkpoint_every": train.checkpoint_every,
        "eval.batch_size": config.eval.batch_size,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")


def callbacks(train: TrainConfig) -> list[Callback]:
    found: list[Callback] = []
    if train.ema:
        found.append(MovingAverage(train.ema, start=train.steps // 10))
    if train.evaluate_every:
        found.append(EvaluateEvery(train.evaluate_every))
    return found


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
