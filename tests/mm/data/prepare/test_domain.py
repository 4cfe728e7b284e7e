"""A field's rows become a folder; scripts/prepare_domain.py holds the rest by its own tests."""

from pathlib import Path

import PIL.Image
import pytest

from mm.data import open_split
from mm.data.domains.base import DomainAdapter
from mm.data.prepare.domain import write_domain


class Colours(DomainAdapter):
    """As many images as asked for, each of its own colour."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return {"image": PIL.Image.new("RGB", (4, 4), (index, 0, 0)), "text": f"colour {index}"}

    def augmented(self, index: int) -> dict:
        return {**self[index], "text": (f"colour {index}", "augmented")}


def test_only_training_is_augmented_and_a_limit_holds_for_each_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_domain(Colours(10), tmp_path, "coco", held_out=0.5, seed=0, limit=3)
    train, val = (open_split(tmp_path, split) for split in ("train", "val"))
    assert len(train) == len(val) == 3
    assert all(len(captions) == 2 for captions in train.captions) and all(len(c) == 1 for c in val.captions)
    shown = capsys.readouterr().out
    assert f"train: 3 rows, 6 captions in {tmp_path}" in shown and f"val: 3 rows, 3 captions in {tmp_path}" in shown


def test_an_adapter_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Colours is empty: a domain set needs at least one row"):
        write_domain(Colours(0), tmp_path, "coco", held_out=0.5, seed=0, limit=None)
