"""Every way to divide a run among GPUs, the fastest that fits first: bytes, seconds and efficiency from a stated model.

    python scripts/plan.py --config configs/70b.yaml --gpus 256 --memory 80
    python scripts/plan.py --config configs/70b.yaml --gpus 256 --json eval/results/plan_70b.json
    python scripts/plan.py --published FILE.csv --json eval/results/plan_published.json

Nothing is measured, and no GPU is needed: the model is built without memory, its step is counted, and what data sheets
do not say was fitted to published runs, see mm/parallel/cost.py. The last command fits it again, to one half of the
rows of such a table, and states the error on the other half.
"""

from mm.cli import run_command
from mm.parallel.plan import PlanConfig, plan

if __name__ == "__main__":
    run_command(PlanConfig, plan)
