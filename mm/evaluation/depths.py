"""How deep must cross-modal attention look? A finished run evaluated at several depths of re-ranking, in one table.

The table is tidy, as scripts/ablate.py's: a depth is a variant. `seconds` are those of one evaluation, embedding
included.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from rich.progress import track

from eval.studies import COLUMNS
from kernels.errors import UserError
from mm.evaluation.config import RerankDepths
from mm.evaluation.models import FinishedRun
from mm.hub.pull import RUNS, folder_of_run

RECALLS = ("image_to_text/R@1", "text_to_image/R@1")


def rerank_depths(config: RerankDepths) -> Path:
    """Evaluate the depths that the table does not have, and add them to it.

    Returns:
        the table.

    Raises:
        ValueError: naming the depth whose evaluation ends badly.
    """
    folder = folder_of_run(config.run, RUNS)
    table = config.table or folder / "rerank.csv"
    done = _depths_of(table)
    missing = [depth for depth in config.depths if str(depth) not in done]
    for depth in track(missing, "depths"):
        _append(table, depth, evaluate_depth(folder, config, depth))
    return table


def evaluate_depth(folder: Path, config: RerankDepths, depth: int) -> dict[str, float]:
    """A run's recalls at one depth, their intervals as <measure>/low and /high, and seconds."""
    try:
        run = FinishedRun(folder, config.root, rerank=depth)
        dataset = run.open(config.split)
        # Whoever comes first would pay for the features of frozen trunks.
        run.data.cache_features(run.run.model.encoders, {config.split: dataset})
        result, _ = run.evaluate(dataset, config.split)
    except UserError as error:
        raise UserError(f"depth {depth}: {error}") from error
    measures = {"seconds": result["seconds"]}
    for name in RECALLS:
        source = f"reranked/{name}" if depth else name
        low, high = result["intervals"][source]
        measures[name] = result["metrics"][source]
        measures[f"{name}/low"] = low
        measures[f"{name}/high"] = high
    return measures


def _depths_of(table: Path) -> set[str]:
    """The depths that a table has."""
    if not table.is_file():
        return set()
    with table.open(newline="") as file:
        return {row["variant"] for row in csv.DictReader(file)}


def _append(table: Path, depth: int, measures: Mapping[str, float]) -> None:
    """Rows of one depth; the first also writes the names of the columns."""
    table.parent.mkdir(parents=True, exist_ok=True)
    new = not table.is_file()
    with table.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for measure, value in measures.items():
            writer.writerow(("rerank", depth, 0, measure, value))
