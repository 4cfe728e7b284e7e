"""Times every kernel against its definition, its limit and every installed peer: python scripts/bench_kernels.py
--json rows.json

One process, the same inputs, implementations interleaved, median of the repeats; see kernels/bench.py. A peer that is
not installed is named and skipped.
"""

from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from kernels.bench import Op, contest_table, run_contests
from mm.cli import run_command
from mm.files import write_json


def main(
    json: Path | None = None,
    only: Op | None = None,
    repeats: Annotated[int, "[1, inf)"] = 9,
    largest: Annotated[int, "[0, inf)"] = 32768,
) -> None:
    """Benchmarks the kernels on this machine.

    Args:
        json: where to write the rows.
        only: the one operation to run.
        repeats: rounds per contest; implementations slower than a second take part in three.
        largest: batch of the contrastive case that is run once for its memory; 0 skips it.
    """
    rows: list[dict[str, Any]] = []
    for contest in run_contests(only, repeats, largest):
        rows += contest
        Console().print(contest_table(contest))
        if json is not None:
            write_json(json, rows)


if __name__ == "__main__":
    run_command(main)
