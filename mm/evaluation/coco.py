"""A split through a model, or a file of embeddings, under every protocol it allows: what scripts/eval_coco.py does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.coco import GroundTruth
from eval.embeddings import Embeddings, Scorer, evaluate_embeddings, evaluate_matching
from eval.protocols import Figures, Protocol
from mm.evaluation.models import EvaluatedModel, FinishedRun


@dataclass(frozen=True)
class EvaluationData:
    """What is evaluated."""

    root: str | None = None
    """Folder in COCO caption layout or of shards, for a run or an open_clip model; without it, the run's own data.
    With sugar_crepe, the folder of COCO val2017's images or of its val2017/."""
    karpathy: str | None = None
    """The official dataset_coco.json; `split` is then one of its splits."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""
    dataset: str = "coco"
    """Name of the dataset of the embeddings, for the protocol."""
    split: str = "val"
    """Split to evaluate; with embeddings, its name for the protocol."""
    ground_truth: Path | None = None
    """Folder of ECCV Caption's data files (or one that holds them in eccv_caption/): evaluates CxC and ECCV, and leaves
    their matches out of the negatives. It fits the 5,000 images of the Karpathy test split, by COCO's ids."""
    validation: str | None = None
    """Fixes the threshold and the calibration of balanced matching, evaluated if this is given: another split of the
    same data, or, with embeddings, another .npz file or run folder."""
    retriever: Path | None = None
    """.npz file or run folder with a frozen retriever's embeddings of the same items in the same order: the top 20
    images of each caption give the hard negatives."""
    retriever_name: str = ""
    """Its name for the protocol; by default the file's or the run's."""


@dataclass
class _Items:
    """Embeddings, how else their pairs are scored, and their name for a protocol."""

    embeddings: Embeddings
    joint: Mapping[str, Scorer]
    name: str


@dataclass
class _References:
    """What else the evaluation reads: loaded before a model runs for long, so that a missing file is known at once."""

    truth: GroundTruth | None
    retriever: _Items | None

    @classmethod
    def of(cls, data: EvaluationData) -> "_References":
        if data.retriever and not data.validation:
            raise ValueError(
                "data.retriever gives hard negatives of balanced matching: name data.validation too, which"
                " fixes its threshold"
            )
        return cls(
            GroundTruth.load(data.ground_truth) if data.ground_truth else None,
            _read(data.retriever) if data.retriever else None,
        )


def evaluate_file(
    path: Path, data: EvaluationData, trained_on: str, *, samples: int = 1000, seed: int = 0
) -> dict[str, Figures]:
    """Anybody's embeddings -> figures by protocol: `all`, `five`, `folds`, `cxc`, `eccv`, `matching/random/cosine` …"""
    references, items, validation = _References.of(data), _read(path), None
    if data.validation:
        validation = _read(Path(data.validation))
        if Path(data.validation).resolve() == path.resolve():
            raise ValueError("data.validation is the file that is evaluated: a threshold must come from another split")
    stated = {"dataset": data.dataset, "split": data.split, "trained_on": trained_on}
    return _figures(items, validation, references, data, stated, {"samples": samples, "seed": seed})


def evaluate_model(
    model: EvaluatedModel, data: EvaluationData, *, samples: int = 1000, seed: int = 0
) -> tuple[dict, dict[str, Figures], dict[str, np.ndarray]]:
    """A model on a split -> (result.json content, empty unless the model is a run; figures as `evaluate_file` gives;
    the arrays of the split's embeddings.npz).

    A run without images or without text has no figures beside its own result.
    """
    if data.validation == data.split:
        raise ValueError(
            f"data.validation is {data.split}, which is evaluated: a threshold must come from another split"
        )
    references, dataset, trained_on = _References.of(data), model.open(data.split), model.trained_on
    described: dict = {}
    if isinstance(model, FinishedRun):
        described, judged = model.evaluate(dataset, data.split, samples=samples, seed=seed)
        trained_on = Protocol.of_dict(described["protocol"][data.split]).trained_on
    else:
        judged = model.embed(dataset, data.split)
    if not {"image", "text"} <= judged.arrays.keys():
        if data.validation or data.ground_truth:
            raise ValueError(
                "COCO's ground truth and balanced matching are of images and captions;"
                f" the model has {', '.join(model.modalities)}"
            )
        return described, {}, judged.arrays
    validation = None
    if data.validation:
        other = model.embed(model.open(data.validation), data.validation)
        validation = _Items(Embeddings.of(other.arrays), other.joint, data.validation)
    stated = {"dataset": dataset.name.split("/")[0], "split": data.split, "trained_on": trained_on}
    items = _Items(Embeddings.of(judged.arrays), judged.joint, data.split)
    found = _figures(items, validation, references, data, stated, {"samples": samples, "seed": seed})
    skipped = sum(dataset.skipped.values())
    figures = {name: replace(f, protocol=replace(f.protocol, skipped=skipped)) for name, f in found.items()}
    return described, figures, judged.arrays


def _figures(
    items: _Items,
    validation: _Items | None,
    references: _References,
    data: EvaluationData,
    stated: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, Figures]:
    truth, retriever = references.truth, references.retriever
    found = evaluate_embeddings(items.embeddings, ground_truth=truth, **stated, **options)
    if validation is None:
        return found
    matched = evaluate_matching(
        items.embeddings,
        validation.embeddings,
        ground_truth=truth,
        validation_split=validation.name,
        joint={name: (scorer, validation.joint[name]) for name, scorer in items.joint.items()},
        retriever=retriever.embeddings if retriever else None,
        retriever_name=data.retriever_name or (retriever.name if retriever else ""),
        **stated | {"split": found["all"].protocol.split},
        **options,
    )
    return found | {f"matching/{name}": figures for name, figures in matched.items()}


def _read(path: Path) -> _Items:
    """A file is called by its stem, a run's embeddings by the run."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    name = folder.name if path.is_dir() or path.name == "embeddings.npz" else path.stem
    return _Items(Embeddings.load(path), {}, name)
