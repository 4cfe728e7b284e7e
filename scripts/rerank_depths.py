"""How deep must cross-modal attention look? One finished run evaluated at several depths of re-ranking, in one table.

    python scripts/rerank_depths.py --run runs/default
    python scripts/rerank_depths.py --run runs/flickr8k_recipe --root DIR --depths '[0, 5, 10]' --table depths.csv

The table is tidy, as scripts/ablate.py's: a depth is a variant. `seconds` are those of one evaluation, embedding
included. Depths that the table has are not evaluated again.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from mm.cli import run_command
from mm.evaluation.models import FinishedRun

RECALLS = ("image_to_text/R@1", "text_to_image/R@1")


@dataclass(frozen=True)
class RerankDepths:
    run: Path
    """Folder of a finished run."""
    root: str | None = None
    """Folder in COCO caption layout or of shards; without it, the run's own data."""
    split: str = "val"
    """Split to evaluate."""
    depths: tuple[int, ...] = (0, 2, 5, 10, 20)
    """Candidates of each query that are scored again."""
    table: Path | None = None
    """CSV file; by default <run>/rerank.csv."""


def rerank_depths(config: RerankDepths) -> None:
    """Raises ValueError naming the depth whose evaluation ends badly."""
    table = config.table or config.run / "rerank.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    done = {row["variant"] for row in csv.DictReader(table.open())} if table.is_file() else set()
    for depth in track([d for d in config.depths if str(d) not in done], "depths"):
        rows = judged(config, depth)
        new = not table.is_file()
        with table.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("study", "variant", "seed", "measure", "value")] if new else [])
            writer.writerows(("rerank", depth, 0, measure, value) for measure, value in rows.items())
    print(f"{len(config.depths)} depths: {table}")


def judged(config: RerankDepths, depth: int) -> dict[str, float]:
    """Recalls at one depth, their intervals as <measure>/low and /high, and seconds."""
    try:
        run = FinishedRun(config.run, config.root, rerank=depth)
        dataset = run.open(config.split)
        # Whoever comes first would pay for the features of frozen trunks.
        run.data.cache_features(run.task.model, {config.split: dataset})
        result, _ = run.judge(dataset, config.split)
    except ValueError as error:
        raise ValueError(f"depth {depth}: {error}") from error
    rows = {"seconds": result["seconds"]}
    for name in RECALLS:
        source = f"reranked/{name}" if depth else name
        low, high = result["intervals"][source]
        rows |= {name: result["metrics"][source], f"{name}/low": low, f"{name}/high": high}
    return rows


if __name__ == "__main__":
    run_command(RerankDepths, rerank_depths)
