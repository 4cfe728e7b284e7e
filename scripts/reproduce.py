"""Write the results of README and docs/ from result files: what was measured, under which protocol, by which command,
on what hardware.

    python scripts/reproduce.py                                   # from eval/results/*.json
    python scripts/reproduce.py --add runs/flickr8k/result.json   # keep a run's result there first
    python scripts/reproduce.py --strip runs/default              # and draw README's picture of retrievals

Nothing in their tables is typed by hand: every figure comes from a file that train_align or eval_coco wrote.
"""

import json
from pathlib import Path

from eval.embeddings import Embeddings
from eval.pages import draw_pictures, write_pages
from eval.studies import Study
from eval.tables import gather, is_run, stored_name, without_places
from kernels.errors import UserError
from mm.artifacts.results import read_result
from mm.artifacts.upgrade import upgrade_result
from mm.cli import run_command
from mm.files import write_json


def reproduce(
    results: Path = Path("eval/results"),
    pages: list[Path] | None = None,
    add: list[Path] | None = None,
    strip: Path | None = None,
) -> None:
    """Write the blocks `<!-- NAME: written by scripts/reproduce.py -->` of the pages anew.

    Args:
        results: folder of result files; those without retrieval metrics are benchmarks.
        pages: Markdown files; README.md and all of docs/ unless they are named.
        add: result files to copy into the folder first, without the paths of this machine.
        strip: a run on the embedded scenes, whose retrievals become docs/img/retrievals.png.
    """
    for path in add or []:
        result = without_places(read_result(path))
        write_json(results / stored_name(result), result)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    runs = [upgrade_result(content) for content in found.values() if is_run(content)]
    if not runs:
        raise UserError(f"{results} holds no result of a run: add one with --add '[runs/<name>/result.json]'")
    studies = {path.stem: Study.load(path) for path in sorted((results / "ablations").glob("*.csv"))}
    places = pages or [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    if pages is None:
        draw_pictures(studies, found, Path("docs/img"))
    written = write_pages(places, gather(runs, studies, found))
    if strip is not None:
        from mm.evaluation.strip import retrieval_strip

        retrieval_strip(Embeddings.load(strip)).save("docs/img/retrievals.png", optimize=True)
    print(f"{len(runs)} results: {', '.join(written)}")


if __name__ == "__main__":
    run_command(reproduce)
