"""Run a study: every variant with every seed, resumable run by run, and one tidy table of what was measured.

    python scripts/ablate.py configs/ablations/schedule.yaml
    python scripts/ablate.py configs/ablations/schedule.yaml --seeds '[0]' --settings '{train.steps: 20}'

A study is a YAML: `config` (a file of configs/, or none for the embedded run), `settings` of every run, `seeds`, and
`variants`, a name and its settings each; a setting of `*.` is one of every modality. A run with a result.json is not
run again, one that was interrupted goes on from its newest checkpoint. The table (study, variant, seed, measure, value)
is written anew after every run.
"""

from pathlib import Path
from typing import Annotated, Any

from mm.cli import run_command

TRAIN = Path(__file__).parent / "train_align.py"


def ablate(
    study: Path,
    seeds: list[Annotated[int, "[0, 4294967295]"]] | None = None,
    settings: dict[str, Any] | None = None,
    runs: Path = Path("runs/ablations"),
    table: Path | None = None,
) -> None:
    """Run what of a study has not been run, and write its table.

    Args:
        study: YAML file of the study.
        seeds: instead of the study's own.
        settings: added to those of every run.
        runs: folder for the runs; a study has its own folder in it.
        table: CSV file to write; by default <runs>/<study>.csv.
    """
    from mm.study import read_study, run_study

    planned = read_study(study, seeds, settings)
    table = table or runs / f"{study.stem}.csv"
    run_study(planned, study.stem, TRAIN, runs / study.stem, table)
    print(f"{len(planned)} runs: {table}")


if __name__ == "__main__":
    run_command(ablate, positional=True)
