"""A study of configs/ablations, run from a notebook."""

import subprocess
import sys
from pathlib import Path

from eval.studies import ROOT, Study


def run_again(name: str, steps: int, runs: Path = ROOT / "runs" / "notebooks") -> Study:
    """The study anew with one seed and few steps, by scripts/ablate.py; what has been run is not run again.

    Args:
        name: of the study, without .yaml.
        steps: optimizer steps of each run.
        runs: folder for the runs and the table.

    Raises:
        CalledProcessError: where a run fails; its output is shown.
    """
    table = runs / f"{name}-{steps}.csv"
    study = ["scripts/ablate.py", f"configs/ablations/{name}.yaml", "--seeds", "[0]"]
    settings = ["--settings", f"{{train.steps: {steps}}}"]
    places = ["--runs", str(runs / f"{steps}"), "--table", str(table)]
    subprocess.run([sys.executable, *study, *settings, *places], cwd=ROOT, check=True)
    return Study.load(table)
