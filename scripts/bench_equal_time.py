"""How many steps of each variant of a study take the time of one of them.

    python scripts/bench_equal_time.py configs/ablations/progress.yaml contrastive_only
    python scripts/bench_equal_time.py configs/ablations/progress.yaml contrastive_only --json rows.json

A step of every part of every variant's run, between the stages that its schedule has, all interleaved in one process on
the same batches: ratios hold where milliseconds do not. On a CPU these are the processor's: what else runs there does
not count. A study at equal time has these steps, fixed beforehand.
"""

from pathlib import Path
from typing import Annotated, Any

from mm.cli import run_command


def bench_equal_time(
    study: Path,
    reference: str,
    repeats: Annotated[int, "[1, inf)"] = 7,
    settings: dict[str, Any] | None = None,
    json: Path | None = None,
) -> None:
    """Time a step of every variant, and print how many take the time of one of them.

    Args:
        study: YAML file of a study whose variants differ in schedule, losses and steps alone.
        reference: the variant whose time the others are given.
        repeats: steps of each part of each variant that are timed.
        settings: added to those of every variant.
        json: where to write what was measured.
    """
    from mm.bench.equal_time import bench_equal_time

    bench_equal_time(study, reference, repeats, settings, json)


if __name__ == "__main__":
    run_command(bench_equal_time, positional=True)
