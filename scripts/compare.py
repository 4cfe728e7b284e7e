"""Runs side by side, each against the first, with paired tests on the same items.

python scripts/compare.py runs/progressive runs/joint runs/contrastive_only
"""

import json
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.embeddings import Embeddings
from eval.intervals import mean_intervals, paired_test
from eval.protocols import Protocol, Row, results_table
from eval.retrieval import retrieval_both
from mm.cli import run_command
from mm.files import write_json

DIRECTIONS = ("image_to_text", "text_to_image")


def main(runs: list[Path], json: Path | None = None) -> None:
    """Print runs side by side, and how each differs from the first.

    Args:
        runs: folders that hold result.json and embeddings.npz; the words in front of any option are this list.
        json: where to write the comparison.
    """
    if len(runs) < 2:
        raise ValueError("comparing needs at least two runs")
    loaded = {str(run): load(run) for run in runs}
    rows = []
    for name, (protocol, found) in loaded.items():
        values = per_query(found)
        metrics = {key: float(value.mean()) for key, (value, _) in values.items()}
        intervals = {key: mean_intervals({key: value}, image)[key] for key, (value, image) in values.items()}
        rows.append(Row(name, protocol, metrics, intervals))
    console = Console()
    console.print(results_table(rows))
    comparison = compare(loaded)
    console.print(comparison_table(comparison, rows[0].name))
    if json:
        write_json(json, {"base": rows[0].name, "differences": comparison})


def load(run: Path) -> tuple[Protocol, Embeddings]:
    path = run / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a run holds result.json and embeddings.npz; is this a finished run?")
    try:
        stamp = json.loads(path.read_text())["protocol"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run's result: {type(error).__name__} {error}") from None
    if stamp and all(isinstance(value, dict) for value in stamp.values()):
        stamp = next(iter(stamp.values()))  # one protocol per split: the first is the one the embeddings are of
    # The figures here are made anew from the embeddings alone, so they are not re-ranked whatever the run's own were.
    return Protocol.of_dict(stamp | {"rerank_depth": 0}), Embeddings.load(run / "embeddings.npz")


def per_query(found: Embeddings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """R@k of each query in percent, with its image."""
    both = retrieval_both(found.image, found.text, found.image_ids, found.caption_image_ids)
    images = (found.image_ids, found.caption_image_ids)
    return {
        f"{name}/R@{k}": (100 * result.hits[:, i], image)
        for name, result, image in zip(DIRECTIONS, both, images, strict=True)
        for i, k in enumerate(result.ks)
    }


def compare(runs: dict[str, tuple[Protocol, Embeddings]]) -> list[dict]:
    (_, first), *others = runs.items()
    base, found = per_query(first[1]), []
    for name, (_, run) in others:
        for ids in ("image_ids", "caption_image_ids"):
            if not np.array_equal(getattr(run, ids), getattr(first[1], ids)):
                raise ValueError(f"{name} was evaluated on other items than the first run ({ids} differ)")
        for key, (values, image) in per_query(run).items():
            test = paired_test(base[key][0], values, image)
            found.append(
                {
                    "run": name,
                    "measure": key,
                    "difference": test.difference,
                    "low": test.low,
                    "high": test.high,
                    "p": test.p,
                }
            )
    return found


def comparison_table(comparison: list[dict], base: str) -> Table:
    table = Table(
        title=f"Difference to {base}, in points (paired over images; p by sign-flip permutation)", title_justify="left"
    )
    for column in ("run", "measure", "difference", "95 % interval", "p"):
        table.add_column(column, justify="left" if column in ("run", "measure") else "right")
    for row in comparison:
        table.add_row(
            row["run"],
            row["measure"],
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} .. {row['high']:+.2f}",
            f"{row['p']:.4f}" + (" *" if row["p"] < 0.05 else ""),
        )
    return table


def with_runs_named(words: list[str]) -> list[str]:
    """`a b --json c` -> `--runs=["a", "b"] --json c`: a list is one option, and nobody wants to type it as such."""
    runs = list(takewhile(lambda word: not word.startswith("-"), words))
    return [f"--runs={json.dumps(runs)}", *words[len(runs) :]] if runs else words


if __name__ == "__main__":
    run_command(main, arguments=with_runs_named(sys.argv[1:]))
