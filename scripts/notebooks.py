"""Execute the notebooks of eval/notebooks and leave copies with their output, plots included.

python scripts/notebooks.py
python scripts/notebooks.py --only '[schedule]' --out elsewhere
MM_STEPS=0 python scripts/notebooks.py    # stored results only, nothing is trained
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.progress import track

from kernels.errors import UserError
from mm.cli import run_command

NOTEBOOKS = Path(__file__).parents[1] / "eval" / "notebooks"


def notebooks(only: list[str] | None = None, out: Path = Path("runs/notebooks")) -> None:
    """Raises ValueError naming a notebook that fails, with its last line.

    Args:
        only: names of notebooks; all without it.
        out: folder for the executed copies.
    """
    there = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    if unknown := set(only or ()) - there.keys():
        raise UserError(f"there is no notebook {sorted(unknown)[0]!r}: choose from {', '.join(there)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in track(only or list(there), "notebooks"):
        book = nbformat.read(there[name], as_version=4)
        try:
            # Cells that train take minutes; the kernel finds the packages where the notebooks' repository is.
            NotebookClient(book, timeout=None, resources={"metadata": {"path": str(NOTEBOOKS.parents[1])}}).execute()
        except CellExecutionError as error:
            raise UserError(
                f"{there[name]}: {error.ename}: {error.evalue} (as far as it came: {out / name}.ipynb)"
            ) from error
        finally:
            nbformat.write(book, out / f"{name}.ipynb")
    print(f"{len(only or there)} notebooks executed: {out}")


if __name__ == "__main__":
    run_command(notebooks)
