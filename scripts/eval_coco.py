"""Judge a run, an open_clip model, or anybody's embeddings, under every COCO protocol they allow.

    python scripts/eval_coco.py --run runs/flickr8k --data.root DIR --data.split val
    python scripts/eval_coco.py --open_clip ViT-B-32:laion2b_s34b_b79k --data.root DIR --data.split val
    python scripts/eval_coco.py --embeddings runs/align/embeddings.npz --json result.json
    python scripts/eval_coco.py --embeddings clip.npz --data.ground_truth path/to/coco_benchmarks --trained_on zero-shot

A run is judged with and without re-ranking through its cross-modal attention; the other two by their vectors.
The file holds image (N, D), text (M, D), image_ids (N,), caption_image_ids (M,), and may hold caption_ids (M,), audio
(A, D), audio_image_ids (A,). With --data.ground_truth (ECCV Caption's files) CxC and ECCV are judged too; with
--data.validation a second file fixes the threshold of the matching accuracy, with --data.retriever a frozen retriever's
file of the same items chooses its hard negatives.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console

from eval.coco import GroundTruth
from eval.embeddings import Embeddings, judge_embeddings, judge_matching
from eval.protocols import figures_table
from mm.data import open_split
from mm.judge import embed_with_open_clip, judge_run
from mm.results import show


@dataclass(frozen=True)
class JudgedData:
    """What the embeddings are of."""

    root: str | None = None
    """Folder in COCO caption layout or of shards, for a run or an open_clip model; without it, the run's own data."""
    karpathy: str | None = None
    """The official dataset_coco.json; `split` is then one of its splits."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""
    dataset: str = "coco"
    """Name of the dataset of the embeddings, for the stamp."""
    split: str = "val"
    """Split to judge; with embeddings, its name for the stamp."""
    ground_truth: Path | None = None
    """Folder of ECCV Caption's data files (or one that holds them in eccv_caption/)."""
    validation: Path | None = None
    """Embeddings of a validation split: fixes the threshold and the calibration of the matching accuracy."""
    retriever: Path | None = None
    """Embeddings of the same items by a frozen retriever: its top 20 give the hard negatives."""
    retriever_name: str = ""
    """Its name, for the stamp."""


def eval_coco(run: Path | None = None, open_clip: str | None = None, embeddings: Path | None = None,
              data: JudgedData = JudgedData(), rerank: int | None = None, trained_on: str = "unstated",
              samples: int = 1000, seed: int = 0, json: Path | None = None) -> None:
    """Print every figure with its interval, one table per protocol. Exactly one of run, open_clip and embeddings is
    judged.

    Args:
        run: folder of a finished run.
        open_clip: `<model>[:<tag or file>]`.
        embeddings: an .npz file.
        rerank: candidates of each query that a run scores again jointly; without it, as many as the run says.
        data: what the embeddings are of.
        trained_on: `zero-shot` or `trained on <dataset>`, for the stamp.
        samples: bootstrap samples of the intervals.
        seed: seed of the bootstrap and of the negatives.
        json: where to write the result.
    """
    if sum(source is not None for source in (run, open_clip, embeddings)) != 1:
        raise ValueError("name one of --run DIR, --open_clip MODEL and --embeddings FILE")
    if run is not None:
        judge_and_show_run(run, data, rerank, json)
    elif open_clip is not None:
        if data.root is None:
            raise ValueError("--open_clip needs --data.root DIR, the pictures and captions to judge it on")
        dataset = open_split(data.root, data.split, karpathy=data.karpathy, audio_root=data.audio_root)
        found = Embeddings.of(embed_with_open_clip(open_clip, dataset))
        judge_and_show(found, replace(data, dataset=dataset.name.split("/")[0]), trained_on, samples, seed, json)
    elif embeddings is not None:
        judge_and_show(Embeddings.load(embeddings), data, trained_on, samples, seed, json)


def judge_and_show_run(run: Path, data: JudgedData, rerank: int | None, path: Path | None) -> None:
    """A run's weights unchanged; the result also goes to <run>/eval-<dataset>-<split>.json, its vectors beside it."""
    result, arrays = judge_run(
        run, data.root, data.split, karpathy=data.karpathy, audio_root=data.audio_root, rerank=rerank
    )
    show(result)
    target = run / f"eval-{result['protocol'][data.split]['dataset'].replace('/', '-')}.json"
    np.savez(target.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]  # numpy types its keywords as bool
    for written in (target, path):
        if written:
            write(written, result)
    print(f"result: {target}")


def judge_and_show(found: Embeddings, data: JudgedData, trained_on: str, samples: int, seed: int,
                   path: Path | None) -> None:
    console, started = Console(), time.perf_counter()
    truth = GroundTruth.load(data.ground_truth) if data.ground_truth else None
    figures = judge_embeddings(found, ground_truth=truth, dataset=data.dataset, split=data.split, trained_on=trained_on,
                               samples=samples, seed=seed)
    results = {name: figure.as_result() for name, figure in figures.items()}
    for figure in figures.values():
        console.print(figures_table(figure))
    if data.validation:
        retriever = Embeddings.load(data.retriever) if data.retriever else None
        judged = judge_matching(found, Embeddings.load(data.validation), retriever=retriever, seed=seed,
                                retriever_name=data.retriever_name, ground_truth=truth)
        for name, result in judged.items():
            results[f"matching/{name}"] = asdict(result)
            console.print(f"matching, {result.negatives} negatives, {result.pairs:,} matches and as many non-matches:"
                          f" accuracy {result.accuracy:.2f} %"
                          f" [{result.accuracy_interval[0]:.2f}, {result.accuracy_interval[1]:.2f}],"
                          f" AUC {result.auc:.2f}, forced choice {result.forced_choice:.2f} %,"
                          f" calibration error {result.calibration_error:.2f} %, threshold {result.threshold:.4f}"
                          " fixed on the validation split")
    if path:
        write(path, results["all"] | {"seed": seed, "seconds": round(time.perf_counter() - started, 2),
                                      "protocols": results})


def write(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        auto_cli(eval_coco, as_positional=False, allow_abbrev=False)
    except (ValueError, FileNotFoundError) as error:
        print(f"eval_coco: {error}", file=sys.stderr)
        sys.exit(2)
