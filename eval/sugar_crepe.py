"""SugarCrepe (Hsieh et al. 2023): does a caption score higher with its image than the same caption with one edit?

Seven kinds of edit (an attribute or object added, replaced or swapped, a relation replaced) over images of COCO
val2017. A forced choice: chance is 50 %. The published figure is the mean over the seven files, not over the items.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.figures import Figures, QueryValues, mean_figures
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap
from eval.matching import forced_choice
from eval.protocols import Protocol
from kernels.errors import MissingError, UserError
from kernels.parsing import parse_json

SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
FIELDS = ("filename", "caption", "negative_caption")
Items = Mapping[str, Sequence[Mapping[str, str]]]
"""Split -> items with the `FIELDS`."""
Score = Callable[[list[str], list[str]], np.ndarray]
"""File names (P,) and captions (P,) -> scores (P,) of a model."""


def sugar_crepe_items(folder: Path | str) -> dict[str, list[dict[str, str]]]:
    """Split -> items with `filename`, `caption`, `negative_caption`.

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: on a file that is something else.
    """
    found = {}
    for split in SUGAR_CREPE:
        path = Path(folder) / f"{split}.json"
        if not path.is_file():
            raise MissingError(f"{path}: SugarCrepe has seven files; this one is missing")
        found[split] = _read(path)
    return found


def _read(path: Path) -> list[dict[str, str]]:
    items = []
    try:
        for row in parse_json(path.read_bytes(), "it").values():
            items.append({name: str(row[name]) for name in FIELDS})
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a SugarCrepe file: {type(error).__name__} {error}") from None
    return items


def sugar_crepe(
    items: Items,
    score: Score,
    *,
    scored_by: str = "cosine",
    trained_on: str = "unstated",
    skipped: Mapping[str, int] | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Figures:
    """Accuracy in percent of every split that has items, and their `mean` where all seven have; ties count one half.

    Args:
        items: the items whose image is there.
        score: of the model.
        scored_by: its name, for the protocol.
        trained_on: as the protocol's.
        skipped: items without an image, for the protocol.
        bootstrap: over images.

    Raises:
        ValueError: when there is no item.
    """
    asked = {split: rows for split, rows in items.items() if rows}
    if not asked:
        raise UserError("no item of SugarCrepe has its image: its images are those of COCO val2017")
    number = _numbers_of_images(asked)
    groups = []
    for split, rows in asked.items():
        names = [row["filename"] for row in rows]
        true = score(names, [row["caption"] for row in rows])
        edited = score(names, [row["negative_caption"] for row in rows])
        right = forced_choice(np.asarray(true), np.asarray(edited))
        image = np.array([number[name] for name in names])
        groups.append(QueryValues(image, {split: 100 * right}))
    protocol = Protocol(
        "sugar_crepe",
        "val2017",
        images=len(number),
        captions=2 * sum(len(rows) for rows in asked.values()),
        captions_per_image="2 an item",
        recall="none",
        trained_on=trained_on,
        skipped=skipped or {},
        task=f"forced choice between a caption and its edit, by {scored_by}",
    )
    found = mean_figures(protocol, groups, {"mean": SUGAR_CREPE}, bootstrap)
    if "mean" in found.metrics:  # so far the sum over the seven
        count = len(SUGAR_CREPE)
        low, high = found.intervals["mean"]
        found.metrics["mean"] /= count
        found.intervals["mean"] = (low / count, high / count)
    return found


def _numbers_of_images(items: Items) -> dict[str, int]:
    """File name -> its number in the alphabet of all."""
    names: set[str] = set()
    for rows in items.values():
        names.update(row["filename"] for row in rows)
    return {name: at for at, name in enumerate(sorted(names))}
