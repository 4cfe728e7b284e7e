"""Write a field's data as a folder that every other script reads: captioned images, split into train and val.

python scripts/prepare_domain.py --adapter ChemistryLoader --adapter.smiles_path FILE.smi --out data/molecules
python scripts/prepare_domain.py --adapter TableLoader --adapter.table_path FILE.csv --out data/products
PYTHONPATH=. python scripts/prepare_domain.py --adapter my_module.MyAdapter --out data/mine --layout shards
"""

from pathlib import Path
from typing import Annotated

from mm.cli import run_command
from mm.data.domains.base import DomainAdapter
from mm.data.domains.chemistry import ChemistryLoader
from mm.data.domains.table import TableLoader
from mm.data.prepare.domain import write_domain
from mm.data.scenes import Layout

ADAPTERS = (ChemistryLoader, TableLoader)
"""What --adapter finds by its bare name, because it is imported here."""


def prepare_domain(
    adapter: DomainAdapter,
    out: Path,
    layout: Layout = "coco",
    held_out: Annotated[float, "(0, 1)"] = 0.2,
    seed: Annotated[int, "[0, inf)"] = 0,
    limit: Annotated[int | None, "[1, inf)"] = None,
) -> None:
    """Write `train` and `val` of a domain set.

    Args:
        adapter: a subclass of mm.DomainAdapter by its name, its own options below it.
        out: the folder to write.
        layout: coco (annotations/, images/, audio/) or shards.
        held_out: share of the rows that become `val`; molecules are held out by whole scaffolds.
        seed: another seed, another split.
        limit: at most this many rows of each split.
    """
    write_domain(adapter, out, layout, held_out=held_out, seed=seed, limit=limit)


if __name__ == "__main__":
    run_command(prepare_domain)
