"""Kill a run at random steps and resume it; watch the memory of thousands of steps; train on what is partly absent;
read a thousand damaged files.

    python scripts/soak.py
    python scripts/soak.py --kills 3 --steps 100 --memory_steps 500 --json soak.json
    python scripts/soak.py --kills 0 --memory_steps 0 --presence false --corrupt 1000

A run is killed (SIGKILL) `kills` times, each time at a step drawn at random and a random moment within it, and resumed
with one worker process and with none in turn. Its weights must then equal those of the same run that nobody killed, to
the bit. A second run of `memory_steps` is watched: the resident memory of its process at every tenth of it. Then every
set of modalities, frozen or not, with a third of something absent, in folders and shards, on one process and two,
trains two steps, is evaluated and writes a report. Last, `corrupt` files of every kind that is read are damaged: each
must be refused in one line, or counted, or read as it was.
"""

from pathlib import Path

from mm.bench.config import SoakConfig
from mm.cli import run_command

SCRIPT = Path(__file__).with_name("train_align.py")


def soak(config: SoakConfig) -> None:
    """Run the parts that are asked for.

    Raises:
        ValueError: a resumed run's weights differ, a run ends by itself with an error or a wrong protocol, or a damaged
            file is neither refused nor counted.
    """
    from mm.bench.soak import Plan, Starter, run_soak

    start = Starter(SCRIPT, config.config, config.runs)
    plan = Plan(config.kills, config.steps, config.memory_steps, config.seed, config.presence, config.corrupt)
    run_soak(start, plan, config.json)


if __name__ == "__main__":
    run_command(SoakConfig, soak)
