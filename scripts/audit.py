"""Which protocols a published recall can come from, by its decimals.

python scripts/audit.py --value 0.36584 --direction t2i
python scripts/audit.py --json eval/results/audit.json      # the figures listed in eval/audit.py
"""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from eval.audit import PUBLISHED, Published, audit, smallest_sizes
from mm.cli import run_command
from mm.files import write_json


def main(
    value: str | None = None,
    direction: Literal["i2t", "t2i"] = "t2i",
    queries: list[int] | None = None,
    json: Path | None = None,
) -> None:
    """Audit one figure, or the published ones.

    Args:
        value: the figure as printed, for example 0.36584 or 36.58%; without it the published figures are audited.
        direction: i2t asks once per image, t2i once per caption.
        queries: further numbers of queries to try.
        json: where to write the verdicts.
    """
    chosen = [Published(value, direction, "", "command line")] if value else list(PUBLISHED)
    console, rows = Console(), []
    for figure in chosen:
        fits = audit(figure.value, figure.direction, queries or ())
        smallest = smallest_sizes(figure.value)
        table = Table(title=f"{figure.value} {figure.direction} {figure.what} ({figure.source})", title_justify="left")
        for column in ("queries", "meaning", "nearest count", "verdict", "chance of fitting"):
            table.add_column(column)
        for fit in fits:
            table.add_row(f"{fit.queries:,}", fit.meaning, f"{fit.count:,}", fit.verdict, f"{fit.chance:.2g}")
        console.print(table, f"smallest numbers of queries that fit: {smallest}\n")
        rows.append(asdict(figure) | {"smallest": smallest, "fits": [asdict(f) | {"verdict": f.verdict} for f in fits]})
    if json:
        write_json(json, rows)


if __name__ == "__main__":
    run_command(main)
