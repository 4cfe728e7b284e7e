"""`mm-align search`: a folder of images indexed, and searched by text, image or sound."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from kernels.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from mm.infer.base import BaseEmbedder
    from mm.infer.index import Hit, Index


def search(
    query: str,
    index: Path | None = None,
    by: Literal["text", "image", "audio"] = "text",
    k: Annotated[int, "[1, inf)"] = 10,
    images: Path | None = None,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """Print the images of a folder that are nearest to a query.

    Args:
        query: what is searched for; with `by`, the path of an image or of an audio file.
        index: folder of the index, which is written there if `images` are given.
        by: what the query is.
        k: how many images to find.
        images: folder of images to index first; of an index that is there only files that changed are read again.
        model: a finished run, hf://org/name, open_clip/<model>:<tag or file> or timm/<model>; without it, the model of
            the index.
        device: auto is the GPU where there is one; or a device as torch names it.
    """
    from rich.console import Console

    if index is None:
        raise UserError("name the folder of the index: --index DIR")
    opened = open_index(index, images, model, device)
    if by != "text" and not Path(query).is_file():
        raise UserError(f"{query}: no such {by} file")
    hits = opened.search(k=k, **{by: query})
    Console().print(hits_table(hits, query, opened))


def open_index(folder: Path, images: Path | None, model: str | None, device: str) -> "Index":
    """Read an index, after building it or bringing it up to date where a folder of images is given.

    Args:
        folder: of the index.
        images: to be indexed, or None.
        model: names the model; None for the index's own.
        device: of the model.

    Raises:
        ValueError: there is no index and nothing to build one of, or the model is not that of the index.
    """
    from mm.infer.index import FILE, Index
    from mm.infer.loading import load

    there = (folder / FILE).is_file()
    if not there and (images is None or model is None):
        raise UserError(f"{folder} holds no index: give --images FOLDER and --model RUN to build one")
    loaded = None if model is None else load(model, device)
    known = Index.load(folder, loaded, device) if there else None
    if images is None:
        assert known is not None
        return known
    if known is not None:
        loaded = known.model
    assert loaded is not None
    return index_images(folder, images, loaded, known)


def index_images(folder: Path, images: Path, model: "BaseEmbedder", known: "Index | None") -> "Index":
    """Build an index of a folder of images and write it.

    Args:
        folder: where it is written.
        images: to be indexed.
        model: that makes vectors.
        known: the index that is there, of which only files that changed are read again.
    """
    from mm.infer.index import Index

    built = Index.build(model, images, known)
    built.save(folder)
    return built


def hits_table(hits: "list[Hit]", query: str, index: "Index") -> "Table":
    """Ranks, scores and paths; paths are folded where a line is too short for them."""
    from rich.table import Table
    from rich.text import Text

    skipped = f", {len(index.skipped):,} skipped" if index.skipped else ""
    # Text is printed as it is: brackets in a name are no markup.
    table = Table(title=Text(f"{query}, in {len(index):,} images of {index.root}{skipped}"), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("image", overflow="fold")
    for rank, hit in enumerate(hits, start=1):
        table.add_row(str(rank), f"{hit.score:.3f}", Text(str(hit.path)))
    return table
