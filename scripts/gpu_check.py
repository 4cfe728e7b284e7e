"""Everything that is claimed of a GPU, measured on the one that is here, in at most four minutes; what fails is named.

    python scripts/gpu_check.py
    python scripts/gpu_check.py --parts '[kernels,step]' --json rows.json
    python scripts/gpu_check.py --accelerator cpu --tiny true --json rows.json    # does it run at all

Parity of the kernels, their table with peers and limits, experts beside dense layers, memory with checkpointing, a
step at three batches with host waits and launches, evaluation, and a whole run. It needs no network: a package that is
missing costs its rows. scripts/reproduce.py shows the JSON; what each part does is said in mm/bench/gpu_parts.py. The
exit status is 1 where a part failed or was out of time.
"""

import sys
from pathlib import Path

from eval.gpu import gpu_lines
from mm.bench.config import GpuConfig
from mm.cli import run_command

SCRIPT = Path(__file__).with_name("train_align.py")


def main(config: GpuConfig) -> None:
    from mm.bench.gpu import failures, gpu_check

    result = gpu_check(config, SCRIPT)
    for what, measured in gpu_lines(result):
        print(f"{what}: {measured}")
    failed = failures(result)
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(GpuConfig, main)
