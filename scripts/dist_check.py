"""Every way to divide a run, on processes of this machine: beside one process, with the bytes that each holds; its
checkpoints read under every other; and what a run leaves that loses a rank.

    python scripts/dist_check.py
    python scripts/dist_check.py --parts '[layouts]' --json eval/results/layouts.json
    python scripts/dist_check.py --parts '[checkpoints,kills]' --json eval/results/layouts_recovery.json

Processes talk over gloo on CPUs: that they compute what one does is what is shown here, not how fast GPUs would be.
Gradients and values are relative to the largest entry of each tensor, weights after three steps of AdamW absolute.
"""

from mm.bench.dist import DistConfig, dist_check
from mm.cli import run_command

if __name__ == "__main__":
    run_command(DistConfig, dist_check)
