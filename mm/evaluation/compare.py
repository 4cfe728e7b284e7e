"""Finished runs side by side, each against the first."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.compare import ComparedRun, compare, comparison_table, results_table
from eval.embeddings import Embeddings
from eval.figures import first_protocol
from eval.light import LightRow, light_rows, light_table
from eval.report.cards import Examples
from eval.report.comparison import write_comparison
from kernels.errors import UserError
from mm.artifacts.results import read_result
from mm.artifacts.run import WEIGHTS
from mm.data import open_split
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset
from mm.evaluation.exhibits import examples_of
from mm.evaluation.light import milliseconds_of
from mm.files import write_json

NAMED = 3
"""Runs that the name of a report holds."""


def compare_runs(runs: list[Path], json: Path | None = None, report: Path | None = None, speed: bool = False) -> None:
    """Print runs side by side, how each differs from the first, and what each takes; write a report of the queries on
    which they differ.

    Args:
        runs: folders that hold result.json and embeddings.npz; the words in front of any option are this list.
        json: where to write the comparison.
        report: where to write the report; by default compare-<runs>.html beside the first run.
        speed: load the runs and time them, interleaved, one image and one caption at a time on one core.
    """
    results = [read_result(folder / "result.json") for folder in runs]
    compared = []
    for folder, result in zip(runs, results, strict=True):
        compared.append(ComparedRun.of(str(folder), result, Embeddings.load(folder / "embeddings.npz")))
    differences = compare(compared)
    base = compared[0].name
    console = Console()
    console.print(results_table([run.row() for run in compared]))
    console.print(comparison_table(differences, base))
    light = weighed(runs, compared, speed)
    if light:
        console.print(light_table(light))
    if json:
        rows = [row.as_json() for row in light]
        write_json(json, {"base": base, "differences": differences, "light": rows})
    path = report or default_report(runs)
    try:
        examples, absent = examples_for(compared[0].embeddings, results[0]), ""
    except UserError as error:
        examples, absent = None, str(error)
    write_comparison(path, compared, differences, examples, absent)
    print(f"report: {path}")


def weighed(folders: list[Path], compared: list[ComparedRun], speed: bool) -> list[LightRow]:
    """What runs take beside what they lose; nothing where one of the folders holds no weights, as an adapter's.

    Args:
        folders: of the runs.
        compared: the same.
        speed: whether they are timed.
    """
    files = [folder / WEIGHTS for folder in folders]
    if not all(file.is_file() for file in files):
        return []
    times: list[dict[str, float]] = milliseconds_of(folders) if speed else [{} for _ in folders]
    return light_rows(compared, [file.stat().st_size for file in files], times)


def default_report(runs: list[Path]) -> Path:
    """compare-<a>-<b>.html beside the first run."""
    names = [folder.resolve().name for folder in runs]
    more = [f"{len(names) - NAMED}-more"] if len(names) > NAMED else []
    return runs[0].resolve().parent / f"compare-{'-'.join([*names[:NAMED], *more])}.html"


def examples_for(embeddings: Embeddings, result: Mapping[str, Any]) -> Examples:
    """Captions and images of embeddings, from the data that a run was evaluated on.

    Args:
        embeddings: of images and captions that have partners.
        result: of the run.

    Raises:
        UserError: the data is not there any more, or is other data.
    """
    dataset = data_of(result)
    captions: dict[int, str] = {}
    for several, ids in zip(dataset.captions, dataset.caption_ids, strict=True):
        captions |= dict(zip(ids, several, strict=True))
    asked = embeddings.caption_ids
    if asked is None or not set(asked.tolist()) <= captions.keys():
        raise UserError(f"{dataset.name} holds other captions than were evaluated")
    if not set(embeddings.image_ids.tolist()) <= set(dataset.image_ids):
        raise UserError(f"{dataset.name} holds other images than were evaluated")
    found = examples_of(dataset, embeddings.arrays())
    return replace(found, captions=[captions[each] for each in asked.tolist()])


def data_of(result: Mapping[str, Any]) -> CaptionDataset:
    """The split that a result is of; the embedded scenes are read where they lie, and not made again.

    Raises:
        UserError: it is not there.
    """
    if "config" not in result:
        raise UserError("a result without settings does not say where its data is")
    read = result["config"]["data"]
    config = DataConfig(root=read["root"], cache=read["cache"])
    return open_split(
        config.folder,
        first_protocol(result).split,
        karpathy=read.get("karpathy"),
        audio_root=read.get("audio_root"),
    )
