"""Scenes on disk: the same samples as webdataset shards or in COCO layout, beside the recipe they were made by."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.batch import Sample
from mm.data.coco import write_coco
from mm.data.media import pixels_of
from mm.data.scenes.audio import render_audio
from mm.data.scenes.grammar import captions
from mm.data.scenes.image import render_image
from mm.data.scenes.scene import SPLITS, capacity, scene_at
from mm.data.shard_writer import write_shards

VERSION = 1
"""Raise it when a scene, image, caption or audio changes: what an older version wrote is then written anew."""
RECIPE = "scenes.json"
IDS_OF_A_SPLIT = 1_000_000
"""A scene's id is its number in its split, plus this for each split before."""
SAMPLE_RATE = 16_000
SIZES: Mapping[str, int] = {"train": 4000, "val": 1000, "seen": 1000}
Layout = Literal["shards", "coco"]


def sample_at(seed: int, split: str, index: int, image_size: int = 64) -> Sample:
    """Scene number `index` of a split with its image, five captions and audio. Ids are unique over all splits."""
    scene = scene_at(seed, split, index)
    image_id = SPLITS[split] * IDS_OF_A_SPLIT + index
    texts = captions(scene)
    first_id = image_id * len(texts)
    return Sample(
        key=f"{split}_{index:06d}",
        image_id=image_id,
        captions=texts,
        caption_ids=tuple(range(first_id, first_id + len(texts))),
        image=pixels_of(render_image(scene, image_size)),
        audio=render_audio(scene, SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
    )


class SceneOptions(TypedDict, total=False):
    """Which scenes a folder holds, and how."""

    seed: int
    """Another seed, other scenes; 0 if not given."""
    sizes: Mapping[str, int]
    """Scenes of each split; SIZES if not given."""
    image_size: int
    """Side of the images in pixels; 64 if not given."""
    layout: Layout
    """shards (one sample = one image with its captions and audio) or coco; shards if not given."""


def ensure_scenes(root: str | Path, **options: Unpack[SceneOptions]) -> Path:
    """Return `root`, which then holds exactly these scenes; write them unless its recipe says that it already does.

    Processes that ask at the same time wait for the first one. Raises ValueError as `write_scenes` does.
    """
    root = Path(root)
    wanted = _recipe(**options)
    with _locked(root):
        if _written_recipe(root) != wanted:
            _write(root, wanted)
    return root


def write_scenes(root: str | Path, **options: Unpack[SceneOptions]) -> Path:
    """Write the scenes to `root`, replacing scenes that are there; a killed process leaves what was there before.

    Raises ValueError for an impossible recipe, or if `root` holds anything that was not written by this function.
    """
    root = Path(root)
    recipe = _recipe(**options)
    with _locked(root):
        _write(root, recipe)
    return root


def _recipe(
    seed: int = 0, sizes: Mapping[str, int] = SIZES, image_size: int = 64, layout: str = "shards"
) -> dict[str, Any]:
    """What scenes.json says of these scenes. Raises ValueError for options that are impossible."""
    if layout not in get_args(Layout):
        raise UserError(f"unknown layout {layout!r}: choose one of {', '.join(get_args(Layout))}")
    if seed < 0:
        raise UserError(f"the seed of the scenes is {seed}: it must not be negative")
    if not sizes:
        raise UserError("no split to write: give sizes such as {'train': 4000, 'val': 1000}")
    for split, size in sizes.items():
        if not 1 <= size <= capacity(split):
            raise UserError(f"split {split!r} cannot have {size} scenes: give 1 to {capacity(split)}")
    return {"version": VERSION, "seed": seed, "sizes": dict(sizes), "image_size": image_size, "layout": layout}


def _written_recipe(root: Path) -> Any:
    """What scenes.json says, None where there is none."""
    try:
        return parse_json((root / RECIPE).read_bytes(), RECIPE)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _write(root: Path, recipe: dict[str, Any]) -> None:
    """Write the scenes beside `root` and put them in its place once they are whole."""
    if root.exists() and _written_recipe(root) is None:
        holds_others = not root.is_dir() or any(root.iterdir())
        if holds_others:
            raise UserError(f"{root} exists and was not written by prepare_scenes: name another folder for the scenes")
    partial = _beside(root, "partial")
    old = _beside(root, "old")
    for left_by_a_killed_process in (partial, old):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    partial.mkdir()
    try:
        _fill(partial, recipe)
        text = json.dumps(recipe, indent=2)
        (partial / RECIPE).write_text(text + "\n")
        if root.exists():
            root.rename(old)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fill(folder: Path, recipe: dict[str, Any]) -> None:
    """Write every split of a recipe, with a bar for each."""
    write = write_shards if recipe["layout"] == "shards" else write_coco
    title = TextColumn("writing scenes: {task.description}")
    with Progress(title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        for split in recipe["sizes"]:
            write(_samples(recipe, split, progress), folder, split, image_format="png", audio_format="flac")


def _samples(recipe: dict[str, Any], split: str, progress: Progress) -> Iterator[Sample]:
    size = recipe["sizes"][split]
    task = progress.add_task(split, total=size)
    for index in range(size):
        yield sample_at(recipe["seed"], split, index, recipe["image_size"])
        progress.advance(task)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other processes from writing the same scenes meanwhile."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with _beside(root, "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _beside(root: Path, purpose: str) -> Path:
    """A hidden sibling of `root`, on the same file system, so that renaming is atomic."""
    root = root.resolve()
    return root.with_name(f".{root.name}.{purpose}")
