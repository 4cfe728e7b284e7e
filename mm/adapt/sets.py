"""The sets between which a run is adapted, and its scores on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels.errors import UserError
from mm.adapt.config import AdaptConfig
from mm.artifacts.run import Run, load_run
from mm.artifacts.seen import load_seen
from mm.config import AlignConfig, EvalConfig, encoders_of, plan_of
from mm.data.collection import Collection
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.retrieval import evaluate_split


@dataclass(frozen=True)
class EvaluationSet:
    """A split that a run is evaluated on again and again, by one metric of its embeddings."""

    data: AlignData
    dataset: CaptionDataset
    split: str
    metric: str

    def metrics(self, run: Run) -> dict[str, float]:
        """Retrieval by embeddings alone, without re-ranking."""
        evaluation = evaluate_split(run, self.data, self.dataset, self.split, EvalConfig(rerank=0))
        return evaluation.metrics()

    def score(self, run: Run) -> float:
        """The metric. Raises ValueError, naming what is measured, where it is not."""
        metrics = self.metrics(run)
        if self.metric not in metrics:
            measured = ", ".join(metrics)
            raise UserError(f"metric={self.metric!r} is not measured on {self.dataset.name}: choose from {measured}")
        return metrics[self.metric]


def base_run(config: AdaptConfig, device: torch.device) -> Run:
    """The run that is adapted, in the precision of its adaptation: it is compared with what becomes of it.

    Args:
        config: names the run.
        device: where it goes.

    Raises:
        ValueError: the folder holds no run that this code can load.
    """
    run = load_run(config.run).to(device)
    train = replace(run.config.train, precision=config.train.precision)
    return replace(run, config=replace(run.config, train=train))


def data_of(config: AlignConfig) -> AlignData:
    """What a run of these settings reads; nothing is opened yet."""
    return AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)


def domain_set(run: Run, data: AlignData, metric: str) -> EvaluationSet:
    """The validation split of the domain, by `metric`.

    Features of the run's frozen trunks are cached, those of the training split too; `data` have been set up.
    """
    config = data.config
    validation = data.open(config.val)
    data.cache_features(run.model.encoders, {config.train: data.train, config.val: validation})
    return EvaluationSet(data, validation, config.val, metric)


def own_set(run: Run, data: AlignData) -> EvaluationSet:
    """The split on which the run was evaluated, by RSUM; `data` are of the run's own settings.

    Raises ValueError where it has gone.
    """
    split = data.config.val
    try:
        dataset = data.open(split)
    except OSError as error:
        raise UserError(f"the run's own set cannot be read ({error}); finetune.py --general false skips it") from error
    data.cache_features(run.model.encoders, {split: dataset})
    return EvaluationSet(data, dataset, split, "RSUM")


def seen_by(config: AdaptConfig, run: Run, adapted: AlignConfig, domain: EvaluationSet) -> list[Collection]:
    """Every set that an adapted run has been trained on: its base's, then the domain's.

    Args:
        config: names the base.
        run: the base.
        adapted: settings of the adapted run.
        domain: whose data have been set up.
    """
    datasets = [domain.data.train, domain.dataset]
    return [*load_seen(Path(config.run), run.config.data), Collection.of(adapted.data, datasets)]


def scores(sets: Mapping[str, EvaluationSet], run: Run) -> dict[str, float]:
    """A run's score on each set. Raises ValueError as `EvaluationSet.score` does."""
    return {name: evaluated.score(run) for name, evaluated in sets.items()}


def scores_after(sets: Mapping[str, EvaluationSet], run: Run, result: Mapping[str, dict]) -> dict[str, float]:
    """The scores of the adapted run, that of the domain from its result.json."""
    after = {"domain": result["metrics"][sets["domain"].metric]}
    if "general" in sets:
        after["general"] = sets["general"].score(run)
    return after


def show_scores(sets: Mapping[str, EvaluationSet], before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Print what was gained and what was forgotten."""
    for name, value in after.items():
        metric = sets[name].metric
        print(f"{name} {metric}: {before[name]:.1f} → {value:.1f}")
