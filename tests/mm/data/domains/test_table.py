"""A CSV file and its folder of images as a domain set."""

from pathlib import Path

import PIL.Image
import pytest

from mm.data.domains.table import TableLoader


@pytest.fixture
def table(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "mug.png")
    path = tmp_path / "products.csv"
    path.write_text('image,title,note\nmug.png,"A mug, blue",\nmug.png,A mug,holds a pint\n')
    return path


def test_rows_have_their_image_and_a_caption_for_each_filled_cell(table: Path) -> None:
    dataset = TableLoader(table, text=("title", "note")).dataset()
    assert dataset.name == "products/all" and dataset.captions == [("A mug, blue",), ("A mug", "holds a pint")]
    assert dataset[0].image.shape == (3, 4, 4)


def test_an_absent_column_is_named_beside_those_there_are(table: Path) -> None:
    with pytest.raises(ValueError, match=r"products\.csv has no column 'text'; its columns are image, title, note"):
        TableLoader(table)


def test_an_absent_image_names_its_row(table: Path) -> None:
    table.write_text("image,text\nmug.png,a mug\ncup.png,a cup\n")
    with pytest.raises(ValueError, match=r"products/all, row 1: image \S*cup\.png is not on disk"):
        TableLoader(table).dataset()


@pytest.mark.parametrize("name", ["../mug.png", "/etc/passwd", "images/../../mug.png"])
def test_a_table_names_no_file_outside_of_its_folder(table: Path, name: str) -> None:
    table.write_text(f"image,text\n{name},a mug\n")
    with pytest.raises(ValueError, match=r"products, row 0: '.*' lies outside of"):
        TableLoader(table).dataset()
