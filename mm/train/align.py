"""A run from its settings to its report: train, evaluate, save."""

import time
from pathlib import Path

from lightning import Callback, seed_everything

from mm.artifacts.run import build_run, save_run, write_config
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.module import AlignData
from mm.evaluation.result import evaluate_run, show
from mm.evaluation.retrieval import first_stage_metrics
from mm.train.callbacks import PeriodicEvaluation, WeightAverage
from mm.train.freeze import freeze, require_fitting
from mm.train.memory import keep_freed_memory
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, fit


def train_align(config: AlignConfig) -> None:
    """Train, evaluate and save a run into <runs>/<name>/.

    Args:
        config: all settings of the run.

    Raises:
        ValueError: the settings do not fit the data, or a finished run is resumed.
        FloatingPointError: a loss or gradient is not finite.
    """
    keep_freed_memory()
    started = time.perf_counter()
    folder = Path(config.runs) / config.name
    write_config(config, folder)
    seed_everything(config.seed, verbose=False)
    data = AlignData(config.data, encoders_of(config), plan_of(config))
    data.setup()
    require_two_modalities(config, data)
    run = build_run(config, data.vocabulary)
    task = AlignTask(run)
    require_fitting(task, config.optim.rates, "optim.rates")
    freeze(task, config.train.freeze)
    evaluated = {split: data.open(split) for split in data.evaluation_splits}
    data.cache_features(run.model.encoders, {config.data.train: data.train, **evaluated})
    trainer = build_trainer(config.train, folder, callbacks(config, task, data), config.resume)
    fit(trainer, task, data, folder, config.resume)
    if config.resume:
        require_all_steps(folder, trainer.global_step, config.train.steps)
    if trainer.is_global_zero:
        save_run(run, folder)
        result = evaluate_run(run, data, evaluated, folder, started)
        show(result)
        print(f"report: {folder / 'report.html'}")


def require_all_steps(folder: Path, done: int, asked: int) -> None:
    """Refuse to extend a finished run, whose schedules are fractions of its own length.

    Args:
        folder: of the run, named in the message.
        done: steps that it has trained.
        asked: steps that were asked for.

    Raises:
        ValueError: fewer steps are done than were asked for.
    """
    if done < asked:
        raise ValueError(
            f"{folder} has finished with {done} steps, of which its schedules are fractions: a run of {asked} needs"
            " another --name and no --resume"
        )


def require_two_modalities(config: AlignConfig, data: AlignData) -> None:
    """Check that there is something to align.

    Raises:
        ValueError: the training split and the model have fewer than two modalities in common.
    """
    split = data.train.modalities
    common = set(data.encoders) & split
    for modality in data.encoders:
        reader = data.readers.get(modality)
        if reader is not None and reader.source in split:
            common.add(modality)
    if len(common) < 2:
        in_data = ", ".join(sorted(split))
        in_model = ", ".join(config.model.modalities)
        raise ValueError(f"{data.train.name} has {in_data}, the model {in_model}: to be aligned, two must be in both")


def callbacks(config: AlignConfig, task: AlignTask, data: AlignData) -> list[Callback]:
    """What `train.ema` and `train.evaluate_every` ask for.

    Returns:
        an average of the weights, and a first-stage retrieval on the validation split every so many steps.
    """
    found: list[Callback] = []
    train = config.train
    if train.ema:
        found.append(WeightAverage(train.ema, start=train.steps // 10))
    if train.evaluate_every:
        split = config.data.val

        def score() -> dict[str, float]:
            dataset = data.open(split)
            return first_stage_metrics(task.run, data, dataset, split)

        found.append(PeriodicEvaluation(train.evaluate_every, score))
    return found
