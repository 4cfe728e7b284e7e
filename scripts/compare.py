"""Runs side by side, each against the first, with paired tests on the same items.

python scripts/compare.py runs/progressive runs/joint runs/contrastive_only
"""

import json
import sys
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from eval.compare import ComparedRun, compare, comparison_table, results_table
from eval.embeddings import Embeddings
from mm.artifacts.results import read_result
from mm.cli import run_command
from mm.files import write_json


def main(runs: list[Path], json: Path | None = None) -> None:
    """Print runs side by side, and how each differs from the first.

    Args:
        runs: folders that hold result.json and embeddings.npz; the words in front of any option are this list.
        json: where to write the comparison.
    """
    compared = [read(folder) for folder in runs]
    differences = compare(compared)
    base = compared[0].name
    console = Console()
    console.print(results_table([run.row() for run in compared]))
    console.print(comparison_table(differences, base))
    if json:
        write_json(json, {"base": base, "differences": differences})


def read(folder: Path) -> ComparedRun:
    result = read_result(folder / "result.json")
    return ComparedRun.of(str(folder), result, Embeddings.load(folder / "embeddings.npz"))


def with_runs_named(words: list[str]) -> list[str]:
    """`a b --json c` -> `--runs=["a", "b"] --json c`: a list is one option, and nobody wants to type it as such."""
    runs = list(takewhile(lambda word: not word.startswith("-"), words))
    return [f"--runs={json.dumps(runs)}", *words[len(runs) :]] if runs else words


if __name__ == "__main__":
    run_command(main, arguments=with_runs_named(sys.argv[1:]))
