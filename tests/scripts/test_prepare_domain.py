"""prepare_domain as a user runs it: a field's data becomes a folder that the other scripts read."""

from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from mm.data import open_split

TABLE = ("--adapter", "TableLoader", "--adapter.table_path")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["image,text"]
    for i in range(10):
        PIL.Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,number {i}")
    path = tmp_path / "numbers.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("layout", ["coco", "shards"])
def test_a_table_becomes_two_splits(script: Callable[..., None], table: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    script("prepare_domain.py", *TABLE, table, "--out", out, "--layout", layout, "--held_out", 0.3)
    train, val = (open_split(out, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 3) and not set(train.captions) & set(val.captions)
    assert val.captions[0] == (f"number {val[0].image[0, 0, 0]}",)


def test_molecules_are_written_with_what_was_skipped_listed(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    (tmp_path / "few.smi").write_text("c1ccccc1\nC1CCCCC1\nCCO\nC1CC\nc1ccccc1O\n")
    arguments = ["--adapter", "ChemistryLoader", "--adapter.smiles_path", tmp_path / "few.smi", "--adapter.size", 32]
    script("prepare_domain.py", *arguments, "--out", tmp_path / "out", "--held_out", 0.3)
    assert "1 rows skipped:\n  few.smi line 4: 'C1CC' is no SMILES" in capsys.readouterr().out
    train, val = (open_split(tmp_path / "out", split) for split in ("train", "val"))
    assert len(train) + len(val) == 4 and all(len(c) == 1 for c in val.captions)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--held_out", 2), "held_out=2.0: it must be in (0, 1)"),
        (("--adapter.text", "[title]"), "has no column 'title'; its columns are image, text"),
    ],
)
def test_a_mistake_is_one_line(
    refused: Callable[..., str], table: Path, tmp_path: Path, words: tuple, message: str
) -> None:
    assert message in refused("prepare_domain.py", *TABLE, table, "--out", tmp_path / "out", *words)
