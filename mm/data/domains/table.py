"""A CSV file with a column of image files and columns of text: the commonest domain set there is."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.errors import UserError
from mm.data.domains.base import DomainAdapter


class TableLoader(DomainAdapter):
    """Rows of a CSV file with a header.

    Args:
        table_path: the file.
        image: its column of image files.
        text: its columns of captions; an empty cell is no caption.
        audio: its column of audio files, if it has one.
        folder: where the files lie; by default beside the table. What a cell names must lie inside it.

    Raises:
        ValueError: the file is no CSV in UTF-8, or lacks one of the columns.
    """

    def __init__(
        self,
        table_path: str | Path,
        image: str = "image",
        text: Sequence[str] = ("text",),
        audio: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        path = Path(table_path)
        self.title = path.stem
        self.folder = path.parent if folder is None else Path(folder)
        self.image = image
        self.text = tuple(text)
        self.audio = audio
        self.rows, header = _read_table(path)
        columns = [image, *self.text]
        if audio:
            columns.append(audio)
        for column in columns:
            if column not in header:
                known = ", ".join(header) or "none"
                raise UserError(f"{path} has no column {column!r}; its columns are {known}")

    @property
    def name(self) -> str:
        return self.title

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        captions = [(row[column] or "").strip() for column in self.text]
        fields: dict[str, Any] = {"text": tuple(caption for caption in captions if caption)}
        for field, column in (("image", self.image), ("audio", self.audio)):
            if column and row[column]:
                fields[field] = self.inside(row[column], index)
        return fields

    def inside(self, name: str, index: int) -> Path:
        """A file of the folder. ValueError on a name that leads out of it: names are data, not paths."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{self.name}, row {index}: {name!r} lies outside of {self.folder}: set its `folder`")
        return path


def _read_table(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """(rows by column, columns) of a CSV file. Raises ValueError if it is none in UTF-8."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return rows, columns
