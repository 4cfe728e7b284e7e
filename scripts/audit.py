"""Which protocols a published recall can come from, by its decimals.

python scripts/audit.py --value 0.36584 --direction t2i
python scripts/audit.py --json eval/results/audit.json      # the figures listed in eval/audit.py
"""

from pathlib import Path
from typing import Annotated

from rich.console import Console

from eval.audit import PUBLISHED, Direction, Published, audit_figure
from mm.cli import run_command
from mm.files import write_json


def main(
    value: str | None = None,
    direction: Direction = "t2i",
    queries: list[Annotated[int, "[1, inf)"]] | None = None,
    json: Path | None = None,
) -> None:
    """Audit one figure, or the published ones.

    Args:
        value: the figure as printed, for example 0.36584 or 36.58%; without it the published figures are audited.
        direction: i2t asks once per image, t2i once per caption.
        queries: further numbers of queries to try.
        json: where to write the verdicts.
    """
    figures = [Published(value, direction, "", "command line")] if value else PUBLISHED
    audits = [audit_figure(figure, queries or ()) for figure in figures]
    console = Console()
    for each in audits:
        console.print(each.table(), f"smallest numbers of queries that fit: {each.smallest}\n")
    if json:
        write_json(json, [each.as_json() for each in audits])


if __name__ == "__main__":
    run_command(main)
