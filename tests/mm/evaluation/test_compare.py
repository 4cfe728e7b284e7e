"""The data behind a comparison: captions by their ids, or a reason why there are none."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from eval.embeddings import Embeddings
from eval.protocols import Protocol
from kernels.errors import UserError
from mm.data import open_split
from mm.data.config import DataConfig
from mm.evaluation.compare import default_report, examples_for


def evaluated(scenes: Path, **changes: object) -> tuple[Embeddings, dict]:
    """Vectors of three captions of one scene and two of another, the last first."""
    dataset = open_split(scenes, "val")
    asked = np.array([*dataset.caption_ids[2][:3], *dataset.caption_ids[0][:2]])[::-1].copy()
    owner = np.array([dataset.image_ids[2]] * 3 + [dataset.image_ids[0]] * 2)[::-1].copy()
    arrays = {
        "image": np.eye(9),
        "text": np.eye(9)[:5],
        "image_ids": np.array(dataset.image_ids),
        "caption_image_ids": owner,
        "caption_ids": asked,
    }
    protocol = asdict(Protocol("scenes", "val", 9, 5, "2-3"))
    config = {"data": asdict(replace(DataConfig(), root=str(scenes)))}
    return Embeddings.of(arrays | changes), {"protocol": {"val": protocol}, "config": config}  # type: ignore[arg-type]


def test_captions_are_found_by_their_ids(scenes: Path) -> None:
    embeddings, result = evaluated(scenes)
    dataset = open_split(scenes, "val")
    examples = examples_for(embeddings, result)
    assert list(examples.captions) == [*dataset.captions[0][1::-1], *dataset.captions[2][2::-1]]
    assert examples.thumbnail(dataset.image_ids[0]) is not None


@pytest.mark.parametrize(
    "changes, word",
    [({"caption_ids": np.arange(-5, 0)}, "other captions"), ({"image_ids": np.arange(9) + 7}, "other images")],
)
def test_other_data_is_no_data(scenes: Path, changes: dict, word: str) -> None:
    if "image_ids" in changes:
        changes = changes | {"caption_image_ids": np.arange(5) + 7}
    embeddings, result = evaluated(scenes, **changes)
    with pytest.raises(UserError, match=word):
        examples_for(embeddings, result)


def test_data_that_is_gone_is_a_reason(scenes: Path, tmp_path: Path) -> None:
    embeddings, result = evaluated(scenes)
    result["config"]["data"]["root"] = str(tmp_path / "gone")
    with pytest.raises(UserError, match="gone"):
        examples_for(embeddings, result)
    with pytest.raises(UserError, match="settings"):
        examples_for(embeddings, {"protocol": result["protocol"]})


def test_a_report_lies_beside_the_first_run_under_the_names_of_three() -> None:
    runs = [Path("/r") / name for name in "abcde"]
    assert default_report(runs[:2]) == Path("/r/compare-a-b.html")
    assert default_report(runs) == Path("/r/compare-a-b-c-2-more.html")
