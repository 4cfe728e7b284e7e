"""Write a field's data as a folder that every other script reads: captioned images, split into train and val.

python scripts/prepare_domain.py --adapter ChemistryLoader --adapter.smiles_path FILE.smi --out data/molecules
python scripts/prepare_domain.py --adapter TableLoader --adapter.table_path FILE.csv --out data/products
PYTHONPATH=. python scripts/prepare_domain.py --adapter my_module.MyAdapter --out data/mine --layout shards
"""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from mm.batch import Sample
from mm.cli import run_command
from mm.data import DomainAdapter
from mm.data.coco import write_coco
from mm.data.domains.chemistry import ChemistryLoader
from mm.data.domains.table import TableLoader
from mm.data.scenes import Layout
from mm.data.shard_writer import write_shards

SHOWN = 10
ADAPTERS = (ChemistryLoader, TableLoader)
console = Console(soft_wrap=True, highlight=False)


def prepare_domain(
    adapter: DomainAdapter,
    out: Path,
    layout: Layout = "coco",
    held_out: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> None:
    """Write `train` and `val` of a domain set.

    Args:
        adapter: a subclass of mm.data.DomainAdapter by its name, its own options below it.
        out: the folder to write.
        layout: coco (annotations/, images/, audio/) or shards.
        held_out: share of the rows that become `val`; molecules are held out by whole scaffolds.
        seed: another seed, another split.
        limit: at most this many rows of each split.
    """
    if not len(adapter):
        raise ValueError(f"{adapter.name} is empty: a domain set needs at least one row")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie between 0 and 1")
    if adapter.skipped_lines:
        more = [f"… and {len(adapter.skipped_lines) - SHOWN} more"] if len(adapter.skipped_lines) > SHOWN else []
        lines = [f"{len(adapter.skipped_lines)} rows skipped:", *adapter.skipped_lines[:SHOWN], *more]
        console.print("\n  ".join(lines), markup=False)
    for split, rows in adapter.splits(held_out, seed).items():
        dataset = adapter.dataset(split, rows[:limit], augment=split == "train")

        def samples(dataset=dataset, split=split) -> Iterator[Sample]:  # type: ignore[no-untyped-def]  # bound in the loop
            for index in track(range(len(dataset)), f"writing {split}", console=console):
                yield dataset[index]

        write = write_coco if layout == "coco" else write_shards
        write(samples(), out, split, image_format="png")
        captions = sum(map(len, dataset.captions))
        console.print(f"{split}: {len(dataset)} rows, {captions} captions in {out}", markup=False)


if __name__ == "__main__":
    run_command(prepare_domain)
