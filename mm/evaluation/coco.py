"""A split through a model, or a file of embeddings, under every protocol it allows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.coco import PROTOCOLS, evaluate_embeddings
from eval.embeddings import Embeddings, ScoredItems
from eval.figures import Figures, first_protocol, join_figures, split_figures
from eval.ground_truth import GroundTruth
from eval.intervals import Bootstrap
from eval.matching import evaluate_matching
from eval.protocols import Stated
from eval.report.exhibits import Material
from kernels.errors import UserError
from kernels.timing import CPU
from mm.artifacts.results import read_result
from mm.evaluation.config import EvaluationData
from mm.evaluation.models import EvaluatedModel, EvaluatedSplit, FinishedRun
from mm.evaluation.result import stated_of

ANOTHER_SPLIT = "a threshold must come from another split"


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    figures: dict[str, Figures]
    """By protocol: `all`, `five`, `folds`, `cxc`, `eccv`, `matching/random/cosine` …"""
    described: dict[str, Any] = field(default_factory=dict)
    """A run's own result of the split, re-ranked too, as the content of a result.json; empty for all others."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the split's embeddings.npz."""
    material: Callable[[], Material] = Material
    """Makes what a report shows beside the figures."""

    def stating(self, pretraining: str) -> "Evaluated":
        """The same, each protocol with what the model's trunks had seen."""
        figures = {}
        for name, each in self.figures.items():
            figures[name] = replace(each, protocol=replace(each.protocol, pretraining=pretraining))
        return replace(self, figures=figures)

    def joined(self) -> dict[str, Any]:
        """The content of a result.json: a run's own evaluation first, then the other protocols."""
        own = split_figures(self.described) if self.described else {}
        return self.described | join_figures(own | self.figures)


@dataclass(frozen=True)
class _References:
    """What else the evaluation reads: loaded before a model runs for long, so that a missing file is known at once."""

    truth: GroundTruth | None
    retriever: ScoredItems | None

    @classmethod
    def of(cls, data: EvaluationData) -> "_References":
        if data.retriever and not data.validation:
            raise UserError(
                "data.retriever gives hard negatives of balanced matching: name data.validation too, which"
                " fixes its threshold"
            )
        truth = GroundTruth.load(data.ground_truth) if data.ground_truth else None
        retriever = _read(data.retriever) if data.retriever else None
        if retriever and data.retriever_name:
            retriever = replace(retriever, name=data.retriever_name)
        return cls(truth, retriever)


def evaluate_file(path: Path, data: EvaluationData, trained_on: str, bootstrap: Bootstrap) -> Evaluated:
    """Anybody's embeddings.

    Args:
        path: an .npz file, or the folder of a run that holds embeddings.npz.
        data: of which `dataset` and `split` are names for the protocol.
        trained_on: as the protocol's.
        bootstrap: of the intervals; its seed is also that of the negatives.
    """
    references = _References.of(data)
    items = _read(path)
    validation = None
    if data.validation:
        if Path(data.validation).resolve() == path.resolve():
            raise UserError(f"data.validation is the file that is evaluated: {ANOTHER_SPLIT}")
        validation = _read(Path(data.validation))
    stated = stated_beside(path, items.embeddings)
    if stated is None:
        dataset, split = data.dataset or "unstated", data.split or "unstated"
        stated = Stated(dataset, split, trained_on, items.embeddings.alone())
    figures = _figures(items, validation, references, stated, bootstrap)
    return Evaluated(figures, material=lambda: Material(items.embeddings.arrays()))


def result_of(path: Path) -> Path | None:
    """The result that says what embeddings are of: a run's beside its embeddings.npz, or that of its evaluation."""
    if path.is_dir():
        beside = path / "result.json"
    elif path.name == "embeddings.npz":
        beside = path.with_name("result.json")
    elif path.name.startswith("eval-"):
        beside = path.with_suffix(".json")
    else:
        return None
    return beside if beside.is_file() else None


def stated_beside(path: Path, embeddings: Embeddings) -> Stated | None:
    """What the result beside a file of embeddings states of them; None where there is none.

    Raises UserError where the result is of other embeddings.
    """
    beside = result_of(path)
    if beside is None:
        return None
    protocol = first_protocol(read_result(beside))
    sizes = (len(embeddings.image), len(embeddings.text))
    if sizes != (protocol.images, protocol.captions):
        raise UserError(
            f"{beside} is of {protocol.images:,} images and {protocol.captions:,} captions, {path} of {sizes[0]:,} and"
            f" {sizes[1]:,}: move it away, and name the set by --data.dataset and --data.split"
        )
    return Stated(
        protocol.dataset, protocol.split, protocol.trained_on, protocol.skipped, protocol.samples, protocol.present
    )


def evaluate_model(model: EvaluatedModel, data: EvaluationData, bootstrap: Bootstrap) -> Evaluated:
    """A model on a split. A run without images or without text has no figures beside its own result.

    Args:
        model: which opens the split.
        data: names the split.
        bootstrap: of the intervals; its seed is also that of the negatives.
    """
    split = data.split or "val"
    if data.validation == split:
        raise UserError(f"data.validation is {split}, which is evaluated: {ANOTHER_SPLIT}")
    if isinstance(model, FinishedRun) and split in PROTOCOLS:
        raise UserError(f"a split called {split} would be taken for the protocol of that name: rename it")
    references = _References.of(data)
    dataset = model.open(split)
    described: dict[str, Any] = {}
    trained_on = model.trained_on
    if isinstance(model, FinishedRun):
        described, found = model.evaluate(dataset, split, samples=bootstrap.samples, seed=bootstrap.seed)
        trained_on = split_figures(described)[split].protocol.trained_on
    else:
        found = model.embed(dataset, split)
    if not {"image", "text"} <= found.arrays.keys():
        if data.validation or data.ground_truth:
            raise UserError(
                "COCO's ground truth and balanced matching are of images and captions;"
                f" the model has {', '.join(model.modalities)}"
            )
        return Evaluated({}, described, found.arrays, partial(model.material, dataset, found))
    validation = None
    if data.validation:
        other = model.embed(model.open(data.validation), data.validation)
        validation = _scored(other, data.validation)
    stated = stated_of(dataset, split, trained_on, found.arrays)
    figures = _figures(_scored(found, split), validation, references, stated, bootstrap, model.device)
    return Evaluated(figures, described, found.arrays, partial(model.material, dataset, found))


def _figures(
    items: ScoredItems,
    validation: ScoredItems | None,
    references: _References,
    stated: Stated,
    bootstrap: Bootstrap,
    device: torch.device = CPU,
) -> dict[str, Figures]:
    """Retrieval under every protocol, and balanced matching where there is a validation split."""
    truth = references.truth
    found = evaluate_embeddings(items.embeddings, stated, ground_truth=truth, bootstrap=bootstrap, device=device)
    if validation is None:
        return found
    stated = replace(stated, split=found["all"].protocol.split)
    matched = evaluate_matching(
        items, validation, stated, retriever=references.retriever, ground_truth=truth, bootstrap=bootstrap
    )
    for name, figures in matched.items():
        found[f"matching/{name}"] = figures
    return found


def _scored(split: EvaluatedSplit, name: str) -> ScoredItems:
    return ScoredItems(Embeddings.of(split.arrays), name, split.joint)


def _read(path: Path) -> ScoredItems:
    """A file is called by its stem, a run's embeddings by the run."""
    embeddings = Embeddings.load(path)
    if path.is_dir():
        return ScoredItems(embeddings, path.resolve().name)
    of_a_run = path.name == "embeddings.npz"
    return ScoredItems(embeddings, path.resolve().parent.name if of_a_run else path.stem)
