"""Write README's results from result files: what was measured, under which protocol, by which command, on what
hardware.

    python scripts/reproduce.py                                   # from eval/results/*.json
    python scripts/reproduce.py --add runs/flickr8k/result.json   # keep a run's result there first

Nothing in the table is typed by hand: every figure comes from a file that train_align or eval_coco wrote.
"""

import json
from pathlib import Path

from eval.studies import Study
from eval.tables import between_markers, gather, is_run, readme_tables, stored_name, without_places
from kernels.errors import UserError
from mm.artifacts.results import read_result
from mm.artifacts.upgrade import upgrade_result
from mm.cli import run_command
from mm.files import write_json


def reproduce(
    results: Path = Path("eval/results"), readme: Path = Path("README.md"), add: list[Path] | None = None
) -> None:
    """Regenerate the results between the markers of the README.

    Args:
        results: folder of result files; those without retrieval metrics (benchmarks) are passed over.
        readme: file with the markers.
        add: result files to copy into the folder first, without the paths of this machine.
    """
    for path in add or []:
        result = without_places(read_result(path))
        write_json(results / stored_name(result), result)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    runs = [upgrade_result(content) for content in found.values() if is_run(content)]
    if not runs:
        raise UserError(f"{results} holds no result of a run: add one with --add '[runs/<name>/result.json]'")
    studies = {path.stem: Study.load(path) for path in sorted((results / "ablations").glob("*.csv"))}
    tables = readme_tables(gather(runs, studies, found))
    readme.write_text(between_markers(readme.read_text(), tables))
    print(f"{readme}: {len(runs)} results")


if __name__ == "__main__":
    run_command(reproduce)
