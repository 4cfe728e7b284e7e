"""One evaluation as scripts/eval_coco.py is asked for it: options checked, answered, and kept on disk."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from eval.figures import Figures, figures_table, first_protocol
from eval.intervals import Bootstrap
from eval.protocols import RANDOM_WEIGHTS
from eval.report.run import write_report
from kernels.errors import UserError
from mm.artifacts.environment import commit, hardware
from mm.evaluation.baseline import stored_baseline
from mm.evaluation.coco import Evaluated, evaluate_file, evaluate_model, result_of
from mm.evaluation.config import EvalCoco
from mm.evaluation.models import EvaluatedModel, FinishedRun, OpenClipPeer
from mm.evaluation.table import show
from mm.evaluation.zero_shot import evaluate_classes, evaluate_sugar_crepe
from mm.files import write_json
from mm.hub.pull import RUNS, folder_of_run

SHOWN_BY_THE_RUN = ("all", "audio_text", "image_audio")
"""Protocols whose figures a run's own table already has."""


@dataclass(frozen=True)
class Answer:
    """What an evaluation found, and the result.json that says it."""

    evaluated: Evaluated
    result: dict[str, Any]

    def shown(self) -> dict[str, Figures]:
        """The figures that a run's own table does not have."""
        figures = self.evaluated.figures
        if not self.evaluated.described:
            return figures
        return {name: each for name, each in figures.items() if name not in SHOWN_BY_THE_RUN}


def eval_coco(request: EvalCoco) -> None:
    """Print every figure with its interval, one table per protocol; a run's own table comes first."""
    if request.run is not None:
        request = replace(request, run=str(folder_of_run(request.run, RUNS)))
    given = answer(request)
    if given.evaluated.described:
        show(given.evaluated.described)
    console = Console()
    for figures in given.shown().values():
        console.print(figures_table(figures))
    for place in keep(request, given):
        print(f"result: {place}")
        print(f"report: {place.with_suffix('.html')}")


def answer(request: EvalCoco) -> Answer:
    """Evaluate what is asked for.

    Raises:
        ValueError: on options that would not do what they say.
    """
    check_options(request)
    started = time.perf_counter()
    model = None if request.embeddings else model_of(request)
    found = _evaluate(request, model, Bootstrap(request.samples, request.seed))
    facts: dict[str, Any] = {"evaluated": evaluated_name(request)}
    if not found.described:
        device = torch.device("cpu") if model is None else model.device
        seconds = round(time.perf_counter() - started, 2)
        facts |= {"commit": commit(), "hardware": hardware(device), "seed": request.seed, "seconds": seconds}
    return Answer(found, found.joined() | facts)


def evaluated_name(request: EvalCoco) -> str:
    """What is evaluated, and whether its weights are random."""
    if request.open_clip is not None and ":" not in request.open_clip:
        return f"{request.open_clip} with {RANDOM_WEIGHTS}"
    return str(request.run or request.open_clip or request.embeddings)


def check_options(request: EvalCoco) -> None:
    """Raises ValueError on options that would not do what they say."""
    data = request.data
    path = request.embeddings
    stated = path is not None and result_of(path) is not None
    sources = [source for source in (request.run, request.open_clip, request.embeddings) if source is not None]
    benchmark = request.sugar_crepe or request.classes
    reads = data.root or data.karpathy or data.audio_root
    refused = {
        "name one of --run DIR, --open_clip MODEL and --embeddings FILE": len(sources) != 1,
        "--sugar_crepe and --classes are evaluated one at a time": request.sugar_crepe and request.classes,
        "--sugar_crepe and --classes need a model (--run or --open_clip) for their own images and captions:"
        " --embeddings were made of others": request.embeddings and benchmark,
        "--sugar_crepe needs --data.root DIR, the images of COCO val2017": request.sugar_crepe and not data.root,
        "--templates are prompts for --classes": request.templates and not request.classes,
        "--data.root, --data.karpathy and --data.audio_root are for models: --embeddings read nothing": (
            request.embeddings and reads
        ),
        "--json is the file of a result, beside which its report is written as .html: name it otherwise": (
            request.json and request.json.suffix == ".html"
        ),
        "--rerank is for a run's retrieval: nothing else is scored again": (
            request.rerank is not None and (not request.run or benchmark)
        ),
        "--precision is for a run: models of others compute as they do": request.precision and not request.run,
        "--trained_on is for models of others: a run says itself what it was trained on": (
            request.run and request.trained_on
        ),
        "--data.dataset names the set of an .npz file: a model's data have a name": data.dataset and not path,
        f"--data.dataset, --data.split and --trained_on are of an .npz file alone: beside {path} stands its result": (
            stated and (data.dataset or data.split or request.trained_on)
        ),
        "--data.karpathy and --data.audio_root belong to --data.root: without it a run reads its own data": (
            request.run and not data.root and reads
        ),
        "--data.audio_root is not read by an open_clip model": request.open_clip and data.audio_root,
        "--trained_on says what weights were trained on, but without a tag (ViT-B-32:TAG) they are random": (
            request.open_clip and ":" not in request.open_clip and request.trained_on
        ),
        "--data.retriever_name is the name of --data.retriever, which is not given": (
            data.retriever_name and not data.retriever
        ),
        "--data.split, --data.validation, --data.ground_truth and --data.retriever are of a split: --sugar_crepe and"
        " --classes have items of their own": (
            benchmark and (data.split or data.validation or data.ground_truth or data.retriever)
        ),
        "--data.karpathy and --data.audio_root are of a split: --sugar_crepe and --classes have items of their own": (
            benchmark and (data.karpathy or data.audio_root)
        ),
        "--data.root is not read with --classes, which is a folder of images or audio clips": (
            request.classes and data.root
        ),
    }
    for message, wrong in refused.items():
        if wrong:
            raise UserError(message)


def model_of(request: EvalCoco) -> EvaluatedModel:
    """The run or the open_clip model."""
    data = request.data
    if request.run is not None:
        return FinishedRun(
            Path(request.run),
            data.root,
            karpathy=data.karpathy,
            audio_root=data.audio_root,
            rerank=request.rerank,
            precision=request.precision,
        )
    assert request.open_clip is not None  # check_options
    return OpenClipPeer(request.open_clip, data.root, request.trained_on or "unstated", karpathy=data.karpathy)


def _evaluate(request: EvalCoco, model: EvaluatedModel | None, bootstrap: Bootstrap) -> Evaluated:
    if model is None:
        assert request.embeddings is not None  # check_options
        return evaluate_file(request.embeddings, request.data, request.trained_on or "unstated", bootstrap)
    return _evaluate_model(model, request, bootstrap).stating(model.pretraining)


def _evaluate_model(model: EvaluatedModel, request: EvalCoco, bootstrap: Bootstrap) -> Evaluated:
    """By SugarCrepe, by classes, or by retrieval and matching."""
    if request.sugar_crepe is not None:
        images = Path(request.data.root or "")
        return Evaluated(evaluate_sugar_crepe(model, request.sugar_crepe, images, bootstrap))
    if request.classes is not None:
        return Evaluated(evaluate_classes(model, request.classes, request.templates, bootstrap))
    return evaluate_model(model, request.data, bootstrap)


def keep(request: EvalCoco, given: Answer) -> list[Path]:
    """Write the result where it was asked for, and a run's also in its folder, with a split's embeddings beside it;
    beside each result its report.

    Returns:
        the files of results.
    """
    places = [request.json] if request.json else []
    if request.run is not None:
        name = first_protocol(given.result).name.replace("/", "-")
        if request.precision is not None:
            name += f"-{request.precision}"
        place = Path(request.run) / f"eval-{name}.json"
        places.append(place)
        if given.evaluated.arrays:
            # numpy types its keywords as bool
            np.savez(place.with_suffix(".npz"), **given.evaluated.arrays)  # type: ignore[arg-type]
    if places:
        material = given.evaluated.material()
        protocol = first_protocol(given.result)
        title = f"{evaluated_name(request)} on {protocol.name}"
    for place in places:
        write_json(place, given.result)
        report = place.with_suffix(".html")
        write_report(report, result=given.result, material=material, baseline=stored_baseline(protocol), title=title)
    return places
