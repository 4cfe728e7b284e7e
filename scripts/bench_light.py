"""Light models: bytes against recalls, with paired intervals, and latencies beside the run as it is.

    python scripts/bench_light.py --runs '[runs/default,runs/X]'

The first run is what the others are compared with; results of eval_coco.py in the folders of runs may stand for them,
of another set or arithmetic. `--exports` names folders of `mm-align export`, of the first run, to be timed beside it,
or of that which `--timed` names; `--json` a file of all rows. Everything that is timed is interleaved in one process;
images are JPEGs of 640×480, decoded and resized within what is timed. Memory is that of processes of their own.
"""

from mm.bench.light import LightConfig, bench_light
from mm.cli import run_command

if __name__ == "__main__":
    run_command(LightConfig, bench_light)
