"""Adapted runs side by side: what each strategy trains, takes, learns and forgets; seeds of one strategy are averaged.

    python scripts/bench_adapt.py --runs '[runs/a, runs/b, runs/c]'
    python scripts/bench_adapt.py --runs '[runs/a, runs/b]' --out table.json
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mm.adapt.comparison import COLUMNS, read_rows
from mm.command import run_command
from mm.run import write_json


def bench_adapt(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print a row for each base, set, strategy and what it adapts.

    Args:
        runs: folders that scripts/finetune.py or scripts/continue_pretrain.py wrote.
        out: also write the rows as JSON.
    """
    rows = read_rows(runs)
    if not rows:
        raise ValueError("runs is empty: name folders that scripts/finetune.py or continue_pretrain.py wrote")
    table = Table(title="mean over seeds ± standard deviation; RSUM, or the metric named, of embeddings alone",
                  title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for row in rows:
        table.add_row(*row.text())
    Console().print(table)
    if out:
        write_json(out, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    run_command(bench_adapt)
