"""Adapted runs side by side: what each strategy trains, takes, learns and forgets; seeds of one strategy are averaged.

python scripts/bench_adapt.py --runs '[runs/a, runs/b, runs/c]'
python scripts/bench_adapt.py --runs '[runs/a, runs/b]' --out table.json
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from eval.adapted import adapted_rows, adapted_table
from kernels.errors import UserError
from mm.artifacts.results import read_result
from mm.cli import run_command
from mm.files import write_json


def bench_adapt(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print a table for each base and set, a row for each strategy and what it adapts.

    Args:
        runs: folders that scripts/finetune.py or scripts/continue_pretrain.py wrote.
        out: also write the rows as JSON.
    """
    if not runs:
        raise UserError("runs is empty: name folders that scripts/finetune.py or continue_pretrain.py wrote")
    rows = adapted_rows({str(folder): read_result(folder / "result.json") for folder in runs})
    console = Console()
    for group in dict.fromkeys(row.group for row in rows):
        console.print(adapted_table(rows, group))
    console.print(
        "Before → after, of embeddings alone; mean ± standard deviation over the seeds. general: RSUM of the"
        " base's own set."
    )
    if out:
        write_json(out, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    run_command(bench_adapt)
