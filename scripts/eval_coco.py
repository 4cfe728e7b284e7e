"""Evaluate a run, an open_clip model, or anybody's embeddings, under every COCO protocol they allow.

    python scripts/eval_coco.py --run runs/flickr8k --data.root DIR --data.split val
    python scripts/eval_coco.py --open_clip ViT-B-32:laion2b_s34b_b79k --data.root DIR --data.split val
    python scripts/eval_coco.py --embeddings clip.npz --data.ground_truth path/to/coco_benchmarks --trained_on zero-shot
    python scripts/eval_coco.py --run DIR --data.split test --data.validation val --data.retriever clip.npz   # matching
    python scripts/eval_coco.py --run DIR --sugar_crepe path/to/sugar_crepe --data.root COCO    # with its val2017
    python scripts/eval_coco.py --run DIR --classes FOLDER    # zero-shot: FOLDER/<class name>/<image or audio>

An .npz file holds image (N, D), text (M, D), image_ids (N,), caption_image_ids (M,), and may hold caption_ids (M,),
audio (A, D), audio_image_ids (A,). With --data.ground_truth (ECCV Caption's files) CxC and ECCV are evaluated too. With
--data.validation, which fixes its threshold, balanced matching is evaluated: accuracy, AUC, pairwise forced choice and
calibration error, with random negatives and, with --data.retriever, hard ones; a run by its cosine and by the logits of
its match head. A run's retrieval is evaluated with and without re-ranking through its cross-modal attention.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eval.protocols import Figures, figures_table
from mm.artifacts.environment import commit, hardware
from mm.cli import run_command
from mm.evaluation.coco import EvaluationData, evaluate_file, evaluate_model
from mm.evaluation.models import EvaluatedModel, FinishedRun, OpenClipPeer
from mm.evaluation.result import show
from mm.evaluation.zero_shot import evaluate_classes, evaluate_sugar_crepe
from mm.files import write_json

SHOWN_BY_THE_RUN = ("all", "audio_text", "image_audio")


@dataclass(frozen=True)
class EvalCoco:
    """Evaluate a run, an open_clip model or embeddings: by retrieval and matching, or sugar_crepe, or classes."""

    run: Path | None = None
    """Folder of a finished run; what it scores is also written to <run>/eval-<dataset>.json."""
    open_clip: str | None = None
    """`<model>[:<tag or file>]`."""
    embeddings: Path | None = None
    """An .npz file, or the folder of a run that holds embeddings.npz."""
    sugar_crepe: Path | None = None
    """Folder of SugarCrepe's seven files; the images are looked for in data.root."""
    classes: Path | None = None
    """Folder with one folder of images, or of audio clips, for each class: zero-shot classification."""
    templates: list[str] | None = None
    """Prompts of the classes, such as '["a photo of a {}."]'; by default three for images and three for audio clips."""
    data: EvaluationData = field(default_factory=EvaluationData)
    rerank: int | None = None
    """Candidates of each query that a run scores again jointly; without it, as many as the run says."""
    trained_on: str | None = None
    """`zero-shot` or `trained on <dataset>`, for the protocol; a run says it itself."""
    samples: int = 1000
    """Bootstrap samples of the intervals."""
    seed: int = 0
    """Seed of the bootstrap and of the negatives."""
    json: Path | None = None
    """Where to write the result."""


def eval_coco(config: EvalCoco) -> None:
    """Print every figure with its interval, one table per protocol."""
    check_options(config)
    started = time.perf_counter()
    options: dict[str, Any] = {"samples": config.samples, "seed": config.seed}
    described: dict = {}
    arrays: dict[str, np.ndarray] = {}
    if config.embeddings is not None:
        figures = evaluate_file(config.embeddings, config.data, config.trained_on or "unstated", **options)
    elif config.sugar_crepe is not None:
        figures = evaluate_sugar_crepe(model_of(config), config.sugar_crepe, Path(config.data.root or ""), **options)
    elif config.classes is not None:
        figures = evaluate_classes(model_of(config), config.classes, config.templates, **options)
    else:
        described, figures, arrays = evaluate_model(model_of(config), config.data, **options)
    show_figures(described, figures)
    protocols = {name: figure.as_result() for name, figure in figures.items()}
    result = described or next(iter(protocols.values())) | {
        "commit": commit(),
        "hardware": hardware(),
        "seed": config.seed,
        "seconds": round(time.perf_counter() - started, 2),
    }
    judged = str(config.run or config.open_clip or config.embeddings)
    keep(result | {"judged": judged, "protocols": protocols}, arrays, config)


def check_options(c: EvalCoco) -> None:
    """Raises ValueError on options that would not do what they say."""
    reads = c.data.root or c.data.karpathy or c.data.audio_root
    refused = {
        "name one of --run DIR, --open_clip MODEL and --embeddings FILE": sum(
            source is not None for source in (c.run, c.open_clip, c.embeddings)
        )
        != 1,
        "--sugar_crepe and --classes are evaluated one at a time": c.sugar_crepe and c.classes,
        "--sugar_crepe and --classes need a model (--run or --open_clip) for their own images and captions:"
        " --embeddings were made of others": c.embeddings and (c.sugar_crepe or c.classes),
        "--sugar_crepe needs --data.root DIR, the images of COCO val2017": c.sugar_crepe and not c.data.root,
        "--templates are prompts for --classes": c.templates and not c.classes,
        "--data.root, --data.karpathy and --data.audio_root are for models: --embeddings read nothing": c.embeddings
        and reads,
        "--rerank is for a run's retrieval: nothing else is scored again": c.rerank is not None
        and (not c.run or c.sugar_crepe or c.classes),
        "--trained_on is for models of others: a run says itself what it was trained on": c.run and c.trained_on,
    }
    for message, wrong in refused.items():
        if wrong:
            raise ValueError(message)


def model_of(config: EvalCoco) -> EvaluatedModel:
    data = config.data
    if config.run is not None:
        return FinishedRun(
            config.run, data.root, karpathy=data.karpathy, audio_root=data.audio_root, rerank=config.rerank
        )
    assert config.open_clip is not None  # check_options
    return OpenClipPeer(config.open_clip, data.root, config.trained_on or "unstated", karpathy=data.karpathy)


def show_figures(described: dict, figures: dict[str, Figures]) -> None:
    """A table per protocol; a run's own table comes first and has what three of them would repeat."""
    if described:
        show(described)
    for name, figure in figures.items():
        if not (described and name in SHOWN_BY_THE_RUN):
            Console().print(figures_table(figure))


def keep(result: dict, arrays: dict[str, np.ndarray], config: EvalCoco) -> None:
    """The result where it was asked for, and a run's also in its folder, with the embeddings of a split beside it."""
    places = [config.json] if config.json else []
    if config.run is not None:
        stamp = next(iter(result["protocol"].values())) if arrays else result["protocol"]
        name = stamp["dataset"] if arrays else f"{stamp['dataset']}/{stamp['split']}"
        places.append(config.run / f"eval-{name.replace('/', '-')}.json")
        if arrays:
            np.savez(places[-1].with_suffix(".npz"), **arrays)  # type: ignore[arg-type]  # numpy types its keywords as bool
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, result)
        print(f"result: {place}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(EvalCoco, eval_coco)
