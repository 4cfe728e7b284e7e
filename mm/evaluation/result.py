"""What a finished run leaves behind: result.json, embeddings.npz, diagnostics.npz,
and the table a person reads first."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from rich.console import Console
from rich.table import Table

from eval.diagnostics import code_utilization, expert_utilization
from eval.intervals import mean_intervals
from eval.report import write_report
from eval.retrieval import RetrievalResult
from mm.artifacts.environment import commit, hardware
from mm.artifacts.run import Run
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.embed import SplitEmbeddings
from mm.evaluation.retrieval import Evaluation, evaluate_split
from mm.files import write_json
from mm.modalities import MODALITIES
from mm.model.multimodal import count_parameters


def evaluate_run(task: Run, data: AlignData, splits: dict[str, CaptionDataset], folder: Path, started: float) -> dict:
    """Evaluate the splits and write everything but the weights into `folder`; -> result.json.

    The first split is the one that counts: it alone is re-ranked. `started`: the run's first `time.perf_counter()`.
    """
    trained = time.perf_counter()
    first = next(iter(splits))
    settings = {s: task.config.eval if s == first else replace(task.config.eval, rerank=0) for s in splits}
    evaluations = {s: evaluate_split(task, data, d, s, settings[s]) for s, d in splits.items()}
    result = describe(task, evaluations, splits, data.train.name)
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["seconds_evaluation"] = round(time.perf_counter() - trained, 1)
    # A later run finds the features of frozen trunks on disk: what they took the first time belongs to the cost all
    # the same.
    result["seconds_features"] = round(data.features.seconds, 1)
    embeddings = evaluations[first].embeddings
    arrays: dict[str, Any] = {**embeddings.arrays()}
    np.savez(folder / "embeddings.npz", **arrays)
    load = embeddings.load
    assert load is not None
    diagnostics: dict[str, Any] = {f"code_counts/{m}": c for m, c in embeddings.code_counts.items() if c.size}
    diagnostics |= {f"expert_load/{m}": load[:, list(MODALITIES).index(m)] for m in embeddings.parts}
    np.savez(folder / "diagnostics.npz", **diagnostics)
    write_json(folder / "result.json", result)
    report(result, embeddings, splits[first], folder)
    return result


def report(result: dict, embeddings: SplitEmbeddings, dataset: CaptionDataset, folder: Path) -> None:
    """report.html of the split that counts."""
    position = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    diagnostics = np.load(folder / "diagnostics.npz")
    counts: dict[str, Any] = {"code_counts": {}, "expert_load": {}}
    for name in diagnostics.files:
        kind, modality = name.split("/")
        counts[kind][modality] = diagnostics[name]

    def thumbnail(image_id: int) -> Image:
        picture = dataset[position[image_id]].image
        assert picture is not None
        return picture

    write_report(
        folder / "report.html",
        result=result,
        history=folder / "metrics.csv",
        embeddings=embeddings.arrays(),
        captions=[c for captions in dataset.captions for c in captions],
        thumbnail=thumbnail,
        **counts,
    )


def describe(
    task: Run,
    evaluations: dict[str, Evaluation],
    splits: dict[str, CaptionDataset],
    trained_on: str,
    *,
    zero_shot: bool = False,
    samples: int = 1000,
    seed: int = 0,
) -> dict:
    """The content of result.json. Metrics of further splits carry the split's name in front.

    zero_shot: the splits are of another collection than `trained_on`. samples, seed: of the intervals' bootstrap.
    """
    total, active = count_parameters(task.model)
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for number, (split, evaluation) in enumerate(evaluations.items()):
        prefix = f"{split}/" if number else ""
        metrics |= {f"{prefix}{k}": round(v, 3) for k, v in evaluation.metrics().items()}
        for kind, results in (("", evaluation.results), ("reranked/", evaluation.reranked)):
            for direction, found in results.items():
                intervals |= recall_intervals(found, f"{prefix}{kind}{direction}/", samples, seed)
    first = next(iter(evaluations))
    metrics |= chance(evaluations[first]) | utilization(evaluations[first])
    return {
        "metrics": metrics,
        "intervals": intervals,
        "protocol": {
            s: protocol(splits[s], s, trained_on, zero_shot, task.config.eval.rerank if e.reranked else 0)
            for s, e in evaluations.items()
        },
        "config": asdict(task.config),
        "commit": commit(),
        "seed": task.config.seed,
        "hardware": hardware(),
        "parameters_total": total,
        "parameters_active": active,
    }


def recall_intervals(found: RetrievalResult, prefix: str, samples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over images of every R@k, in percent."""
    values = {f"{prefix}R@{k}": 100 * found.hits[:, i] for i, k in enumerate(found.ks)}
    return mean_intervals(values, found.query_ids, samples=samples, seed=seed)


def protocol(dataset: CaptionDataset, split: str, trained_on: str, zero_shot: bool, rerank_depth: int) -> dict:
    """What the numbers mean."""
    captions = [len(c) for c in dataset.captions]
    return {
        "dataset": dataset.name,
        "split": split,
        "images": len(dataset),
        "captions": sum(captions),
        "captions_per_image": round(sum(captions) / len(captions), 2),
        "recall": "any-hit",
        "rerank_depth": rerank_depth,
        "zero_shot": zero_shot,
        "trained_on": trained_on,
        "skipped": dataset.skipped,
    }


def chance(evaluation: Evaluation) -> dict[str, float]:
    """R@1 in percent of a random ranking, for each direction: matches over gallery, averaged over queries."""
    parts = evaluation.embeddings.parts
    found = {}
    for direction in evaluation.results:
        a, b = direction.split("_to_")
        shared = np.isin(parts[b].ids.numpy(), parts[a].ids.numpy()).sum()
        _, counts = np.unique(parts[b].ids.numpy(), return_counts=True)
        found[f"chance/{direction}/R@1"] = round(100 * float(counts.mean() / shared), 4)
    return found


def utilization(evaluation: Evaluation) -> dict[str, float]:
    """Codes and experts that the split used in percent, and the perplexity of the codes, by modality
    (mean over quantizers or layers)."""
    found, load = {}, evaluation.embeddings.load
    assert load is not None
    codes = {m: c for m, c in evaluation.embeddings.code_counts.items() if c.size}
    experts = {m: load[:, list(MODALITIES).index(m)] for m in evaluation.embeddings.parts}
    for kind, uses in (("codes", code_utilization(codes)), ("experts", expert_utilization(experts))):
        for m, layers in uses.items():
            found[f"{kind}/{m}/used"] = round(float(np.mean([u.used for u in layers])), 2)
            found[f"{kind}/{m}/perplexity"] = round(float(np.mean([u.perplexity for u in layers])), 2)
    return found


def show(result: dict) -> None:
    """Print the retrieval table of a result.json."""
    console = Console()
    metrics = result["metrics"]
    for number, (split, stamp) in enumerate(result["protocol"].items()):
        prefix = f"{split}/" if number else ""
        table = Table(
            title=f"{stamp['dataset']}: {stamp['images']:,} images, {stamp['captions']:,} captions, any-hit recall in %"
        )
        depth = stamp["rerank_depth"]
        for column in (
            "direction",
            "R@1",
            "R@5",
            "R@10",
            *([f"R@1, best {depth} re-ranked"] if depth else []),
            "chance R@1",
        ):
            table.add_column(column, justify="left" if column == "direction" else "right")
        for direction in (k.split("/")[1] for k in metrics if k.startswith("chance/")):
            recalls = [f"{metrics[f'{prefix}{direction}/R@{k}']:.1f}" for k in (1, 5, 10)]
            again = metrics.get(f"{prefix}reranked/{direction}/R@1")
            low, high = result["intervals"][f"{prefix}{direction}/R@1"]
            recalls[0] += f" [dim]({low:.1f}-{high:.1f})[/dim]"
            table.add_row(
                direction.replace("_to_", " → "),
                *recalls,
                *(["—" if again is None else f"{again:.1f}"] if depth else []),
                f"{metrics[f'chance/{direction}/R@1']:.2f}",
            )
        console.print(table)
    total, active = result["parameters_total"], result["parameters_active"]
    console.print(
        f"{total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active per token · "
        f"{result['seconds']:.0f} s on {result['hardware']}"
    )
