"""`mm-align list`: what there is to name, each in a line."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from mm.cli import presets

Row = tuple[str, str]
"""A name, and what there is to say of it."""
SHARD = re.compile(r"(.+)-\d+\.tar")
ANNOTATIONS = "captions_*.json"
LONGEST = 40
"""Names of a library's models that are printed; there are thousands."""


def show_list(
    what: Literal["configs", "trunks", "runs", "datasets"],
    like: str = "*",
    runs: Path = Path("runs"),
    data: Path = Path("data"),
) -> None:
    """Print what there is to name.

    Args:
        what: configs are for --config, trunks for --image.trunk and --text.trunk, runs for --run, datasets for
            --data.root.
        like: only names of this pattern, such as 'vit_small*'; of trunks, the names of their libraries' models.
        runs: the folder of runs.
        data: the folder of datasets.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = {
        "configs": lambda: config_rows(),
        "trunks": lambda: trunk_rows(like),
        "runs": lambda: run_rows(runs),
        "datasets": lambda: dataset_rows(data),
    }
    table = Table(box=None, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, about in rows[what]():
        if what == "trunks" or fnmatch(name, like):
            table.add_row(Text(name), Text(about))
    if table.row_count:
        Console().print(table)
    else:
        print(f"no {what} like {like!r}" if like != "*" else f"no {what} here")


def config_rows() -> Iterator[Row]:
    """Presets by name, with the first sentence of their files."""
    for path in presets():
        header = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        words = " ".join(line.removeprefix("#").strip() for line in header)
        yield path.stem, words.partition(". ")[0]


def trunk_rows(like: str) -> Iterator[Row]:
    """Kinds of trunks; with a pattern, the pretrained models of that name."""
    if like == "*":
        yield "scratch", "image, audio, text: trained from nothing"
        yield "timm/<name>", "image, audio: see --like 'vit_small*'"
        yield "open_clip/<name>[:tag]", "image, text: see --like 'ViT-B-32*'"
        yield "hf/<hub name or folder>", "text: a transformers encoder"
        yield "hf/package:<package>/<folder>", "text: one that lies in an installed package"
        return
    named = [(f"timm/{name}", "image, audio") for name in _timm_names() if fnmatch(name, like)]
    named += [(f"open_clip/{name}", "image, text") for name in _open_clip_names() if fnmatch(name, like)]
    yield from named[:LONGEST]
    if len(named) > LONGEST:
        yield "…", f"{len(named) - LONGEST:,} more: a longer pattern has fewer"


def run_rows(folder: Path) -> Iterator[Row]:
    """Runs by folder: on what each was evaluated and how, or how far it is."""
    from mm.artifacts.results import read_result

    for run in sorted(folder.iterdir() if folder.is_dir() else []):
        if (run / "result.json").is_file():
            try:
                yield str(run), _evaluated(read_result(run / "result.json"))
            except (ValueError, KeyError) as error:
                yield str(run), f"its result.json cannot be read: {error}"
        elif (run / "config.yaml").is_file():
            yield str(run), "begun, not finished"


def _evaluated(result: dict[str, Any]) -> str:
    """One line of a run's result."""
    from eval.figures import first_protocol

    metrics = result["metrics"]
    if "RSUM" not in metrics:
        return "no image-text retrieval"
    protocol = first_protocol(result)
    return f"RSUM {metrics['RSUM']:.1f} on {protocol.name}, {protocol.images:,} images, {protocol.trained_on}"


def dataset_rows(folder: Path) -> Iterator[Row]:
    """The embedded data, and the sets in a folder, with their splits."""
    yield "(no --data.root)", "scenes: generated images, captions and audio; splits train, val, seen"
    for root in sorted(folder.iterdir() if folder.is_dir() else []):
        shards = {found[1] for path in root.glob("*.tar") if (found := SHARD.fullmatch(path.name))}
        annotated = [path.stem.removeprefix("captions_") for path in (root / "annotations").glob(ANNOTATIONS)]
        if shards:
            yield str(root), f"shards; splits {', '.join(sorted(shards))}"
        if annotated:
            yield str(root), f"COCO captions; splits {', '.join(sorted(annotated))}"


def _timm_names() -> list[str]:
    import timm

    return timm.list_models(pretrained=True)


def _open_clip_names() -> list[str]:
    import open_clip

    return [f"{name}:{tag}" for name, tag in open_clip.list_pretrained()]
