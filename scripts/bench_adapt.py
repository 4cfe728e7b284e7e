"""Adapted runs side by side: what each strategy trains, takes, learns and forgets; seeds of one strategy are averaged.

    python scripts/bench_adapt.py --runs '[runs/a, runs/b, runs/c]'
    python scripts/bench_adapt.py --runs '[runs/a, runs/b]' --out table.json
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from mm.command import run_command
from mm.run import write_json

MEASURES = ("trainable", "peak memory, GiB", "minutes", "domain before", "domain after", "general before",
            "general after")


def bench_adapt(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print a row for each base, set, strategy and what it adapts.

    Args:
        runs: folders that scripts/finetune.py wrote.
        out: also write the rows as JSON.
    """
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in runs:
        title, measured = read(folder)
        groups[title].append(measured)
    if not groups:
        raise ValueError("runs is empty: name folders that scripts/finetune.py wrote")
    table = Table(title="mean over seeds ± standard deviation; RSUM, or the metric named, of embeddings alone",
                  title_justify="left")
    for column in ("strategy", "seeds", *MEASURES):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for title, found in groups.items():
        table.add_row(title, str(len(found)), *(cell(name, [row[name] for row in found if name in row])
                                                for name in MEASURES))  # fmt: skip
    Console().print(table)
    if out:
        write_json(out, {"rows": dict(groups)})


def read(folder: Path) -> tuple[str, dict[str, float]]:
    """A run's row: its title, and what was measured. Raises ValueError where it is no adapted run."""
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    if "adaptation" not in result:
        raise ValueError(f"{folder} is no adapted run: expected a result.json of scripts/finetune.py in it")
    found, (stamp, *_) = result["adaptation"], result["protocol"].values()
    targets = f" on {' + '.join(found['targets'])}" if found["targets"] else ""
    parts = [found["strategy"] + targets, f"{found['selected']['metric']} of {stamp['dataset']}",
             f"from {found['run']}"]  # fmt: skip
    measured = {"trainable": found["trainable"], "peak memory, GiB": found["peak_memory_gib"],
                "minutes": found["minutes"]}
    for moment in ("before", "after"):
        measured |= {f"{part} {moment}": value for part, value in found[moment].items()}
    return ", ".join(parts), measured


def cell(name: str, values: list[float]) -> str:
    if not values:
        return "—"
    if name == "trainable":
        return f"{mean(values):,.0f}"
    digits = 2 if name.startswith("peak") else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    run_command(bench_adapt)
