"""Finished runs side by side, each against the first."""

from pathlib import Path

from rich.console import Console

from eval.compare import ComparedRun, compare, comparison_table, results_table
from eval.embeddings import Embeddings
from mm.artifacts.results import read_result
from mm.files import write_json


def compare_runs(runs: list[Path], json: Path | None = None) -> None:
    """Print runs side by side, and how each differs from the first.

    Args:
        runs: folders that hold result.json and embeddings.npz; the words in front of any option are this list.
        json: where to write the comparison.
    """
    compared = [_read(folder) for folder in runs]
    differences = compare(compared)
    base = compared[0].name
    console = Console()
    console.print(results_table([run.row() for run in compared]))
    console.print(comparison_table(differences, base))
    if json:
        write_json(json, {"base": base, "differences": differences})


def _read(folder: Path) -> ComparedRun:
    result = read_result(folder / "result.json")
    return ComparedRun.of(str(folder), result, Embeddings.load(folder / "embeddings.npz"))
