"""Adapted runs side by side: what each strategy trains, takes, learns and forgets; seeds of one strategy are averaged.

    python scripts/bench_adapt.py --runs '[runs/a, runs/b, runs/c]'
    python scripts/bench_adapt.py --runs '[runs/a, runs/b]' --out table.json
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mm.adapt.comparison import MEASURES, cells, read_adapted
from mm.command import run_command
from mm.run import write_json


def bench_adapt(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print a row for each base, set, strategy and what it adapts.

    Args:
        runs: folders that scripts/finetune.py or scripts/continue_pretrain.py wrote.
        out: also write the rows as JSON.
    """
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in runs:
        title, measured = read_adapted(folder)
        groups[title].append(measured)
    if not groups:
        raise ValueError("runs is empty: name folders that scripts/finetune.py or continue_pretrain.py wrote")
    table = Table(title="mean over seeds ± standard deviation; RSUM, or the metric named, of embeddings alone",
                  title_justify="left")
    for column in ("strategy", "seeds", *MEASURES):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for title, found in groups.items():
        table.add_row(title, str(len(found)), *cells(found))
    Console().print(table)
    if out:
        write_json(out, {"rows": dict(groups)})


if __name__ == "__main__":
    run_command(bench_adapt)
