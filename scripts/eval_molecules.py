"""Molecules that a run writes: valid, unique and novel ones, and such as were asked for, beside a 5-gram model's.

    python scripts/eval_molecules.py --run runs/molecules
    python scripts/eval_molecules.py --run runs/molecules --decoding.temperature 0.8 --json molecules.json

The run was trained with loss.continuation on what prepare_domain.py wrote with adapter.joined=true. Molecules are
written freely, and of the rings and functional groups of a split's, whose scaffolds were held out. It needs RDKit (pip
install 'mm-align[adapt]').
"""

from mm.cli import run_command
from mm.evaluation.molecules import EvalMolecules, eval_molecules

if __name__ == "__main__":
    run_command(EvalMolecules, eval_molecules, log=True)
