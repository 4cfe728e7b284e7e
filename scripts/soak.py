"""Kill a run at random steps and resume it; watch the memory of thousands of steps; train on what is partly absent.

    python scripts/soak.py
    python scripts/soak.py --kills 3 --steps 100 --memory_steps 500 --json soak.json

A run is killed (SIGKILL) `kills` times, each time at a step drawn at random and a random moment within it, and resumed
with one worker process and with none in turn. Its weights must then equal those of the same run that nobody killed, to
the bit. A second run of `memory_steps` is watched: the resident memory of its process at every tenth of it. Then every
set of modalities, frozen or not, with a third of something absent, in folders and shards, on one process and two,
trains two steps, is evaluated and writes a report.
"""

from pathlib import Path
from typing import Annotated

from mm.cli import run_command

ROOT = Path(__file__).parents[1]


def soak(
    config: Path = ROOT / "configs/soak.yaml",
    runs: Path = Path("runs/soak"),
    kills: Annotated[int, "[0, inf)"] = 10,
    steps: Annotated[int, "[1, inf)"] = 400,
    memory_steps: Annotated[int, "[0, inf)"] = 5000,
    seed: Annotated[int, "[0, inf)"] = 0,
    presence: bool = True,
    json: Path | None = None,
) -> None:
    """Raises ValueError when a resumed run's weights differ, or a run ends by itself with an error or a wrong protocol.

    Args:
        config: settings of the runs.
        runs: folder they are written to; must not hold runs of these names.
        kills: how many times the run is killed; 0 skips this part.
        steps: its steps.
        memory_steps: steps of the run whose memory is watched; 0 skips it.
        seed: of the moments at which it is killed.
        presence: whether every combination of modalities, frozen trunks, absent parts, layouts and processes is run.
        json: where to write what was found.
    """
    from mm.bench.soak import Plan, Starter, run_soak

    start = Starter(ROOT / "scripts/train_align.py", config, runs)
    run_soak(start, Plan(kills, steps, memory_steps, seed, presence), json)


if __name__ == "__main__":
    run_command(soak)
