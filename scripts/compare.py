"""Runs side by side, each against the first, with paired tests on the same items.

python scripts/compare.py runs/progressive runs/joint runs/contrastive_only

A report beside the first run, compare-<runs>.html, shows the queries on which they differ.
"""

from mm.cli import run_command
from mm.evaluation.compare import compare_runs

if __name__ == "__main__":
    run_command(compare_runs, listed="runs")
