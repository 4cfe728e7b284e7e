"""Captions that a run writes of a split, scored against those of people and beside the nearest training captions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from encoders.pretraining import pretraining
from eval.captions import CaptionScores, score_captions
from eval.intervals import Bootstrap
from eval.report.exhibits import AttentionMap
from eval.report.written import JUDGE, WrittenCaption, judged, write_captions_report
from eval.retrieval import top_k
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.config import trunks_of
from mm.data.dataset import CaptionDataset
from mm.evaluation.describer import Describer
from mm.evaluation.embed import SplitEmbeddings
from mm.evaluation.exhibits import Shower, examples_of
from mm.evaluation.kept import embeddings_of
from mm.evaluation.models import FinishedRun
from mm.files import write_json
from mm.hub.pull import RUNS, folder_of_run
from mm.infer.decoding import Decoding
from mm.infer.embedder import Embedder
from mm.model.writer import Writer
from mm.progress import followed

ROWS = 128
"""Samples that are read at a time."""
SHOWN = 4
"""Captions of each kind in the report."""
LOOKED = 2
"""Best and worst captions of which it shows where words looked."""


@dataclass(frozen=True)
class EvalCaptions:
    """Which run writes of what, and how."""

    run: str
    """Folder of a finished run that was trained with model.generate=true, or hf://org/name[@revision]."""
    root: str | None = None
    """Folder in COCO caption layout or of shards; without it, the run's own data."""
    split: str = "val"
    """Split that is described."""
    beside: Literal["image", "audio"] = "image"
    """What is described."""
    decoding: Decoding = field(default_factory=Decoding)
    """How tokens are chosen."""
    nearest: bool = True
    """Score the nearest training captions too, which needs the run's training set."""
    samples: Annotated[int, "[1, inf)"] = 1000
    """Bootstrap samples of the intervals."""
    json: Path | None = None
    """Where to write the result; by default <run>/captions-<dataset>-<split>.json. Its report is written beside it, and
    the captions, as COCO's server takes them, as <stem>-written.json."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Described:
    """A split with the captions that were written of it.

    Args:
        run: that wrote them.
        dataset: the split.
        embeddings: of the split.
        ids: of the I images, or of those that the sounds belong to.
        written: their captions.
        nearest: training captions, none where they were not asked for.
    """

    run: FinishedRun
    dataset: CaptionDataset
    embeddings: SplitEmbeddings
    ids: list[int]
    written: list[str]
    nearest: list[str]

    @cached_property
    def references(self) -> dict[int, Sequence[str]]:
        """The captions of people, by image."""
        position = dict(zip(self.dataset.image_ids, range(len(self.dataset)), strict=True))
        return {image: self.dataset.captions[position[image]] for image in self.ids}


def eval_captions(config: EvalCaptions) -> Path:
    """Write captions of a split, score them, print a table, and write result, captions and report.

    Returns:
        the file of the result.

    Raises:
        ValueError: the run does not write or read that modality, the split lacks it, or what scores captions is
            missing.
    """
    started = time.perf_counter()
    folder = folder_of_run(config.run, RUNS)
    run = FinishedRun(folder, config.root)
    described = describe_split(run, config)
    scores = {"written": scored(described, described.written)}
    if described.nearest:
        scores["nearest"] = scored(described, described.nearest)
    result = result_of(config, described, scores)
    result["seconds"] = round(time.perf_counter() - started, 1)
    path = config.json or folder / f"captions-{described.dataset.name.replace('/', '-')}.json"
    write_json(path, result)
    rows = [{"image_id": i, "caption": text} for i, text in zip(described.ids, described.written, strict=True)]
    write_json(path.with_name(f"{path.stem}-written.json"), rows)
    shown, looks = shown_captions(config, described, scores["written"])
    report = write_captions_report(path.with_suffix(".html"), result, shown, looks)
    show(result)
    print(f"result: {path}")
    print(f"report: {report}")
    return path


def describe_split(run: FinishedRun, config: EvalCaptions) -> Described:
    """Write a caption of each sample that has what is described, and references.

    Args:
        run: that writes.
        config: the split, and how.

    Raises:
        ValueError: see `eval_captions`.
    """
    Writer(run.run.model)  # Whoever does not write is told so before anything is read.
    if config.beside not in run.modalities:
        raise UserError(f"{config.run} does not read {config.beside}: it reads {', '.join(run.modalities)}")
    dataset = run.open(config.split)
    run.data.cache_features(run.run.model.encoders, {config.split: dataset})
    embeddings = embeddings_of(run.run, run.data, dataset, config.split)
    if config.beside not in embeddings.parts:
        raise UserError(f"{dataset.name} has no {config.beside} to describe")
    ids = embeddings.parts[config.beside].ids
    captioned = {i for i, texts in zip(dataset.image_ids, dataset.captions, strict=True) if any(map(str.strip, texts))}
    rows = torch.tensor([row for row, image in enumerate(ids.tolist()) if image in captioned])
    nearest = nearest_captions(run, embeddings.parts[config.beside].vectors[rows]) if config.nearest else []
    describer = Describer(run.run, run.data.tokenizer, embeddings.parts)
    written: list[str] = []
    for chunk in followed(rows.split(ROWS), f"captions of {dataset.name}", len(rows), ROWS):
        written += describer.write(config.beside, chunk, config.decoding)
    return Described(run, dataset, embeddings, ids[rows].tolist(), written, nearest)


def nearest_captions(run: FinishedRun, vectors: Tensor) -> list[str]:
    """The caption of the run's training set that lies nearest to each of some vectors (I, E).

    Raises:
        ValueError: the training set cannot be read.
    """
    data = run.training_data()
    try:
        dataset = data.open(run.trained.train)
    except OSError as error:
        raise UserError(f"the training captions cannot be read ({error}); --nearest false goes without") from error
    data.cache_features(run.run.model.encoders, {run.trained.train: dataset})
    embeddings = embeddings_of(run.run, data, dataset, run.trained.train)
    captions = examples_of(dataset, {"text": embeddings.parts["text"].ids.numpy()}).captions
    _, places = top_k(vectors.numpy(), embeddings.parts["text"].vectors.numpy(), 1)
    return [captions[place] for place in places[:, 0].tolist()]


def scored(described: Described, captions: Sequence[str]) -> CaptionScores:
    """Score a caption of each described sample."""
    return score_captions(dict(zip(described.ids, captions, strict=True)), described.references)


def result_of(config: EvalCaptions, described: Described, scores: Mapping[str, CaptionScores]) -> dict[str, Any]:
    """What was measured, without how long it took."""
    run = described.run
    bootstrap = Bootstrap(config.samples)
    embedder = Embedder(run.run)
    part = described.embeddings.parts[config.beside]
    place = {image: row for row, image in enumerate(part.ids.tolist())}
    vectors = part.vectors[[place[image] for image in described.ids]]
    references = [described.references[image][0] for image in described.ids]
    texts = {"written": described.written, "nearest": described.nearest, "references": references}
    similarity = {}
    for name, captions in texts.items():
        if captions:
            cosines = (embedder.encode_text([text or " " for text in captions]).cpu() * vectors).sum(1)
            similarity[name] = round(float(cosines.mean()), 4)
    dataset, _, split = described.dataset.name.partition("/")
    return {
        "evaluated": config.run,
        "dataset": dataset,
        "split": split,
        "beside": config.beside,
        "images": len(described.ids),
        "references": sum(len(texts) for texts in described.references.values()),
        "decoding": asdict(config.decoding),
        "trained_on": run.training_set,
        "pretraining": pretraining(trunks_of(run.run.config)),
        "scores": {name: _rounded(each.values) for name, each in scores.items()},
        "intervals": {name: _rounded(each.intervals(bootstrap)) for name, each in scores.items()},
        "gains": _rounded(scores["written"].gains(scores["nearest"])) if "nearest" in scores else {},
        "similarity": similarity,
        "commit": commit(),
        "hardware": hardware(run.device),
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, or tuples of them, by name, to three digits."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[name] = [round(each, 3) for each in value] if isinstance(value, tuple) else round(value, 3)
    return found


def shown_captions(
    config: EvalCaptions, described: Described, scores: CaptionScores
) -> tuple[list[WrittenCaption], list[AttentionMap]]:
    """What a person looks at: the best, usual and worst captions by CIDEr, and where words of some looked."""
    run = described.run
    shower = Shower(run.run, run.data, described.dataset, described.embeddings)
    describer = Describer(run.run, run.data.tokenizer, described.embeddings.parts)
    row_of = {image: row for row, image in enumerate(described.embeddings.parts[config.beside].ids.tolist())}
    order = np.argsort(-scores.each[JUDGE], kind="stable").tolist()
    middle = max(0, len(order) // 2 - SHOWN // 2)
    chosen = {"best": order[:SHOWN], "usual": order[middle : middle + SHOWN], "worst": order[-SHOWN:][::-1]}
    shown = []
    looks = []
    taken: set[int] = set()
    for kind, places in chosen.items():
        for number, place in enumerate(place for place in places if place not in taken):
            taken.add(place)
            image = described.ids[place]
            seen = shower.as_read(image) if config.beside == "image" else None
            heard = shower.clip(image) if config.beside == "audio" else None
            nearest = described.nearest[place] if described.nearest else ""
            score = float(scores.each[JUDGE][place])
            texts = described.references[image]
            shown.append(WrittenCaption(kind, image, described.written[place], nearest, texts, score, seen, heard))
            if seen is not None and kind != "usual" and number < LOOKED and shower.grid_side():
                look = describer.look(row_of[image], described.written[place], seen, shower.grid_side())
                looks += [] if look is None else [look]
    return shown, looks


def show(result: Mapping[str, Any]) -> None:
    """Print the scores and what to think of them."""
    table = Table(title=f"{result['dataset']}/{result['split']}: {result['images']:,} captions, ×100")
    table.add_column("measure")
    for name in result["scores"]:
        table.add_column("written" if name == "written" else f"{name} training caption", justify="right")
    for measure in result["scores"]["written"]:
        cells = []
        for name, values in result["scores"].items():
            interval = result["intervals"][name].get(measure)
            between = f" [dim]({interval[0]:.1f}-{interval[1]:.1f})[/dim]" if interval else ""
            cells.append(f"{values[measure]:.1f}{between}")
        table.add_row(measure, *cells)
    console = Console()
    console.print(table)
    sentences, _ = judged(result)
    console.print(" ".join(sentences), highlight=False)
