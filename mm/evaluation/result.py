"""What a finished run leaves behind: result.json, embeddings.npz, diagnostics.npz and its report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.pretraining import pretraining
from eval.diagnostics import Utilization, code_utilization, expert_utilization
from eval.figures import Figures, first_protocol, join_figures
from eval.intervals import Bootstrap, Interval, mean_intervals, paired_test
from eval.protocols import Protocol, Stated
from eval.report.history import read_history
from eval.report.run import write_report
from eval.retrieval import RetrievalResult
from mm.artifacts.environment import commit, hardware
from mm.artifacts.phases import Phases
from mm.artifacts.run import Run
from mm.artifacts.seen import load_seen, trained_on
from mm.config import trunks_of
from mm.data.collection import seen_images, trained_words
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.baseline import stored_baseline
from mm.evaluation.embed import SplitEmbeddings
from mm.evaluation.exhibits import diagnostics_of, material_of
from mm.evaluation.retrieval import Evaluation, evaluate_split
from mm.files import write_json
from mm.modalities import MODALITIES, noun
from mm.model.size import count_parameters


def evaluate_run(
    run: Run, data: AlignData, splits: dict[str, CaptionDataset], folder: Path, phases: Phases
) -> dict[str, Any]:
    """Evaluate the splits and write everything but the weights into `folder`.

    Args:
        run: that was trained.
        data: which reads the splits.
        splits: by name. The first is the one that counts: it alone is re-ranked.
        folder: of the run.
        phases: of the run so far.

    Returns:
        the content of result.json.
    """
    evaluations = {}
    settings = run.config.eval
    for split, dataset in splits.items():
        evaluations[split] = evaluate_split(run, data, dataset, split, settings)
        settings = replace(settings, rerank=0)
    names = trained_on(load_seen(folder, run.config.data))
    words = {}
    for split, dataset in splits.items():
        words[split] = trained_words(names, seen_images(dataset, [data.train]), zero_shot=False)
    result = describe(run, evaluations, splits, words)
    phases.end("evaluation")
    result["seconds"] = phases.total
    # A later run finds the features of frozen trunks on disk: what they took the first time belongs to the cost all
    # the same.
    result["seconds_features"] = round(data.features.seconds, 1)
    first = next(iter(splits))
    save_arrays(folder, evaluations[first].embeddings)
    write_report(
        folder / "report.html",
        result=result,
        material=material_of(run, data, splits[first], evaluations[first].embeddings),
        history=read_history(folder / "metrics.csv"),
        baseline=stored_baseline(first_protocol(result)),
    )
    phases.end("report")
    result["seconds_by_phase"] = phases.seconds
    write_json(folder / "result.json", result)
    return result


def save_arrays(folder: Path, embeddings: SplitEmbeddings) -> None:
    """embeddings.npz and diagnostics.npz of the split that counts."""
    # numpy types its keywords as bool
    np.savez(folder / "embeddings.npz", **embeddings.arrays())  # type: ignore[arg-type]
    np.savez(folder / "diagnostics.npz", **diagnostics_of(embeddings).arrays())  # type: ignore[arg-type]


def describe(
    run: Run,
    evaluations: Mapping[str, Evaluation],
    splits: Mapping[str, CaptionDataset],
    trained_on: Mapping[str, str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of result.json; how long it took is the caller's.

    Args:
        run: that was evaluated.
        evaluations: of each split; utilization and chance are stated of the first.
        splits: the same, as datasets.
        trained_on: of each split, the protocol's words.
        samples: of the intervals' bootstrap.
        seed: of the intervals' bootstrap.
    """
    bootstrap = Bootstrap(samples, seed)
    figures = {}
    for split, evaluation in evaluations.items():
        depth = run.config.eval.rerank if evaluation.reranked else 0
        stated = stated_of(splits[split], split, trained_on[split], evaluation.embeddings.arrays())
        protocol = split_protocol(evaluation, stated, depth)
        protocol = replace(protocol, pretraining=pretraining(trunks_of(run.config)))
        figures[split] = evaluation_figures(evaluation, protocol, bootstrap)
    first = next(iter(evaluations))
    figures[first].metrics.update(chance(evaluations[first]))
    figures[first].metrics.update(utilization(evaluations[first]))
    total, active = count_parameters(run.model)
    return {
        **join_figures(figures),
        "config": asdict(run.config),
        "commit": commit(),
        "seed": run.config.seed,
        "hardware": hardware(run.device),
        "parameters_total": total,
        "parameters_active": active,
    }


def stated_of(dataset: CaptionDataset, split: str, words: str, arrays: Mapping[str, np.ndarray]) -> Stated:
    """What a protocol says of a split beside its galleries: its samples, what they have, and those left out.

    Args:
        dataset: the split.
        split: its name.
        words: the protocol's of the training, such as `trained on scenes/train`.
        arrays: of the split's embeddings.npz. A sample has what was embedded of it.
    """
    ids = np.array(dataset.image_ids)
    has = {m: np.isin(ids, arrays[row.ids]) for m, row in MODALITIES.items() if m in arrays}
    present = {m: int(there.sum()) for m, there in has.items()}
    skipped = Counter(dataset.skipped)
    alone = np.sum(list(has.values()), axis=0) < 2
    for position in np.flatnonzero(alone):
        lacks = [noun(m) for m, there in has.items() if not there[position]]
        skipped[f"sample without {' and '.join(lacks)}"] += 1
    return Stated(dataset.name.partition("/")[0], split, words, dict(skipped), len(dataset), present)


def split_protocol(evaluation: Evaluation, stated: Stated, rerank_depth: int = 0) -> Protocol:
    """What the numbers of a split mean: sizes are those of the galleries that were searched.

    Args:
        evaluation: of the split.
        stated: what it does not know of the split.
        rerank_depth: candidates of each query that are scored again; 0 for none.
    """
    results = evaluation.results
    gallery = {}
    for direction in results:
        a, b = direction.split("_to_")
        gallery[direction] = len(results[f"{b}_to_{a}"].query_ids)
    nothing = np.zeros(0, dtype=np.int64)
    images = results["image_to_text"].query_ids if "image_to_text" in results else nothing
    captions = results["text_to_image"].query_ids if "text_to_image" in results else nothing
    return Protocol.of_ids(images, captions, stated, rerank_depth=rerank_depth, gallery=gallery)


def evaluation_figures(evaluation: Evaluation, protocol: Protocol, bootstrap: Bootstrap) -> Figures:
    """Metrics of every direction, with and without re-ranking, and intervals of their recalls. What re-ranking gains,
    `reranked/<direction>/gain@<k>`, has a paired one: of the same queries, drawn by their images.

    Args:
        evaluation: of a split.
        protocol: what its numbers mean.
        bootstrap: of the intervals.
    """
    metrics = {name: round(value, 3) for name, value in evaluation.metrics().items()}
    intervals: dict[str, Interval] = {}
    for direction, found in evaluation.results.items():
        intervals |= recall_intervals(found, f"{direction}/", bootstrap)
    for direction, found in evaluation.reranked.items():
        intervals |= recall_intervals(found, f"reranked/{direction}/", bootstrap)
        first = evaluation.results[direction]
        for at, k in enumerate(found.ks):
            gain = paired_test(
                100 * first.hits[:, at],
                100 * found.hits[:, at],
                found.query_ids,
                samples=bootstrap.samples,
                seed=bootstrap.seed,
            )
            metrics[f"reranked/{direction}/gain@{k}"] = round(gain.difference, 3)
            intervals[f"reranked/{direction}/gain@{k}"] = (gain.low, gain.high)
    return Figures(protocol, metrics, intervals)


def recall_intervals(found: RetrievalResult, prefix: str, bootstrap: Bootstrap) -> dict[str, Interval]:
    """95 % bootstrap intervals over images of every R@k, in percent.

    Args:
        found: of a direction.
        prefix: of the names.
        bootstrap: over images.
    """
    values = {}
    for at, k in enumerate(found.ks):
        values[f"{prefix}R@{k}"] = 100 * found.hits[:, at]
    return mean_intervals(values, found.query_ids, bootstrap)


def chance(evaluation: Evaluation) -> dict[str, float]:
    """R@1 of a random ranking: matches over gallery, averaged over queries.

    Returns:
        `chance/<direction>/R@1`, in percent.
    """
    found = {}
    for direction, result in evaluation.results.items():
        asking, asked = direction.split("_to_")
        gallery = evaluation.results[f"{asked}_to_{asking}"].query_ids
        ids, matches = np.unique(gallery, return_counts=True)
        of_query = matches[np.searchsorted(ids, result.query_ids)]
        percent = 100 * float(of_query.mean() / len(gallery))
        found[f"chance/{direction}/R@1"] = round(percent, 4)
    return found


def utilization(evaluation: Evaluation) -> dict[str, float]:
    """Codes and experts that the split used.

    Returns:
        `codes/<modality>/used` in percent, `codes/<modality>/perplexity`, and the same of experts; means over
        quantizers or layers.
    """
    diagnostics = diagnostics_of(evaluation.embeddings)
    codes = code_utilization(diagnostics.code_counts)
    experts = expert_utilization(diagnostics.expert_load)
    return _mean_utilization("codes", codes) | _mean_utilization("experts", experts)


def _mean_utilization(kind: str, found: Mapping[str, list[Utilization]]) -> dict[str, float]:
    means = {}
    for modality, layers in found.items():
        used = float(np.mean([layer.used for layer in layers]))
        perplexity = float(np.mean([layer.perplexity for layer in layers]))
        means[f"{kind}/{modality}/used"] = round(used, 2)
        means[f"{kind}/{modality}/perplexity"] = round(perplexity, 2)
    return means
