"""SugarCrepe (Hsieh et al. 2023): does a caption score higher with its picture than the same caption with one edit?

Seven kinds of edit (an attribute or object added, replaced or swapped, a relation replaced) over pictures of COCO
val2017. A forced choice: chance is 50 %. The published figure is the mean over the seven files, not over the items.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.matching import forced_choice
from eval.protocols import Figures, Protocol, mean_figures

SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
FIELDS = ("filename", "caption", "negative_caption")
Items = Mapping[str, Sequence[Mapping[str, str]]]
Score = Callable[[list[str], list[str]], np.ndarray]
"""File names (P,) and captions (P,) -> scores (P,) of a model."""


def sugar_crepe_items(folder: Path | str) -> dict[str, list[dict[str, str]]]:
    """Split -> items with `filename`, `caption`, `negative_caption`.

    Raises FileNotFoundError that names the missing file, ValueError on a file that is something else.
    """
    found = {}
    for split in SUGAR_CREPE:
        path = Path(folder) / f"{split}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: SugarCrepe has seven files; this one is missing")
        try:
            rows = json.loads(path.read_text()).values()
            found[split] = [{name: str(row[name]) for name in FIELDS} for row in rows]
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a SugarCrepe file: {type(error).__name__} {error}") from None
    return found


def sugar_crepe(
    items: Items,
    score: Score,
    *,
    scored_by: str = "cosine",
    trained_on: str = "unstated",
    skipped: int = 0,
    samples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Accuracy in percent of every split that has items, and their `mean` where all seven have; ties count one half.

    skipped: items left out because their picture is missing. Raises ValueError when no item is left.
    """
    asked = {split: rows for split, rows in items.items() if rows}
    if not asked:
        raise ValueError("no item of SugarCrepe has its picture: its pictures are those of COCO val2017")
    number = {name: at for at, name in enumerate(sorted({row["filename"] for rows in asked.values() for row in rows}))}
    values, images = {}, {}
    for split, rows in asked.items():
        names = [row["filename"] for row in rows]
        true, edited = (score(names, [row[text] for row in rows]) for text in ("caption", "negative_caption"))
        values[split] = 100 * forced_choice(np.asarray(true), np.asarray(edited))
        images[split] = np.array([number[name] for name in names])
    protocol = Protocol(
        "sugar_crepe",
        "val2017",
        images=len(number),
        captions=2 * sum(map(len, asked.values())),
        captions_per_image="2 an item",
        recall="none",
        trained_on=trained_on,
        skipped=skipped,
        task=f"forced choice between a caption and its edit, by {scored_by}",
    )
    whole = len(asked) == len(SUGAR_CREPE)
    found = mean_figures(
        protocol, values, images, total=("mean", SUGAR_CREPE) if whole else None, samples=samples, seed=seed
    )
    if whole:
        (low, high), splits = found.intervals["mean"], len(SUGAR_CREPE)  # so far of the sum
        found.metrics["mean"], found.intervals["mean"] = found.metrics["mean"] / splits, (low / splits, high / splits)
    return found
