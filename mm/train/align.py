"""A run from its settings to its report: train, evaluate, save."""

from pathlib import Path

import numpy as np
import torch
from lightning import Callback, seed_everything
from torch import Tensor

from encoders.state import weights_digest
from kernels.collectives import world
from kernels.errors import UserError
from mm.artifacts.environment import is_main_process
from mm.artifacts.phases import Phases
from mm.artifacts.run import build_run, save_run
from mm.artifacts.seen import save_seen
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.collection import Collection
from mm.data.dataset import CaptionDataset, presence
from mm.data.module import AlignData
from mm.device import choose_device
from mm.evaluation.result import evaluate_run
from mm.evaluation.retrieval import first_stage_metrics
from mm.evaluation.table import show
from mm.parallel.layout import ParallelConfig, is_layout
from mm.train.callbacks import PeriodicEvaluation, WeightAverage
from mm.train.following import require_logger
from mm.train.freeze import freeze, require_fitting
from mm.train.identity import Identity, begin, held, samples_digest
from mm.train.layouts import empty_run, is_filled_later, meshes_of, require_layout, whole_run
from mm.train.memory import keep_freed_memory
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, device_count, fit

SHARE = 0.1
"""Of the time of training, that evaluations along the way may take where nobody asked for them."""


def train_align(config: AlignConfig) -> None:
    """Train, evaluate and save a run into <runs>/<name>/.

    Args:
        config: all settings of the run.

    Raises:
        ValueError: the settings do not fit the data, another process holds the run, or it was begun otherwise.
        FloatingPointError: a loss or gradient is not finite.
    """
    device = choose_device(config.train.accelerator)
    if is_layout(config.train.strategy):
        layout = ParallelConfig.of_word(config.train.strategy)
        require_layout(config, layout, device_count(config.train, device))
    require_logger(config.train.logger)
    keep_freed_memory()
    folder = Path(config.runs) / config.name
    with held(folder):
        _train_align(config, device, folder)


def _train_align(config: AlignConfig, device: torch.device, folder: Path) -> None:
    phases = Phases()
    seed_everything(config.seed, verbose=False)
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    require_two_modalities(data, data.train)
    later = is_filled_later(config)
    whole = is_main_process() or not later
    vocabulary = observed_tokens(config, data)
    run = build_run(config, vocabulary) if whole else empty_run(config, vocabulary)
    task = AlignTask(run)
    if not later:
        task.to(device)
    require_fitting(task, config.optim.rates, "optim.rates")
    freeze(task, config.train.freeze)
    evaluated = {split: data.open(split) for split in data.evaluation_splits}
    for dataset in evaluated.values():
        require_two_modalities(data, dataset)
    data.cache_features(run.model.encoders, {config.data.train: data.train, **evaluated})
    if whole:
        digests = {"initial weights": weights_digest(task), "training samples": samples_digest(data.train)}
        begin(folder, Identity.of(config, digests), config, config.resume)
    if is_main_process():
        save_seen([Collection.of(config.data, [data.train, *evaluated.values()])], folder)
    trainer = build_trainer(config.train, device, folder, callbacks(config, task, data), config.resume)
    phases.end("preparation")
    fit(trainer, task, data, folder, config.resume)
    phases.end("training")
    meshes = meshes_of(trainer)
    if meshes is not None:
        run = whole_run(task, meshes)
    if trainer.is_global_zero:
        save_run(run.to(device), folder)
        phases.end("saving")
        result = evaluate_run(run, data, evaluated, folder, phases)
        show(result)
        print(f"report: {folder / 'report.html'}")


def observed_tokens(config: AlignConfig, data: AlignData) -> Tensor | None:
    """The tokens (V,) of the training captions that `build_run` takes, where the run needs them."""
    if config.model.generate and data.vocabulary is None:
        # A trunk's whole table holds several times as many tokens as captions do, and a step pays for each.
        return data.observed_vocabulary()
    return data.vocabulary


def require_two_modalities(data: AlignData, dataset: CaptionDataset) -> None:
    """Check that a split has something to align.

    Args:
        data: whose encoders read it.
        dataset: the split.

    Raises:
        ValueError: no sample has two of the modalities that the model reads.
    """
    counts = np.zeros(len(dataset), dtype=np.int64)
    for modality in data.encoders:
        source = data.readers[modality].source if modality in data.readers else modality
        if source in dataset.modalities:
            counts += np.array(presence(dataset, source))
    if (counts < 2).all():
        in_data = ", ".join(sorted(dataset.modalities))
        in_model = ", ".join(data.encoders)
        raise UserError(
            f"{dataset.name} has {in_data}, the model {in_model}: to be aligned, two must be in both, and in one sample"
        )


def callbacks(config: AlignConfig, task: AlignTask, data: AlignData) -> list[Callback]:
    """What `train.ema` and `train.evaluate_every` ask for.

    Returns:
        an average of the weights, and a first-stage retrieval on the validation split every so many steps.
    """
    found: list[Callback] = []
    train = config.train
    if train.ema:
        found.append(WeightAverage(train.ema, start=train.steps // 10))
    if train.evaluation_steps:
        split = config.data.val

        def score() -> dict[str, float]:
            dataset = data.open(split)
            return first_stage_metrics(task.run, data, dataset, split, world())

        share = SHARE if train.evaluate_every == "auto" else None
        found.append(PeriodicEvaluation(train.evaluation_steps, score, share))
    return found
