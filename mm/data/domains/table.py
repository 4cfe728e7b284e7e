"""A CSV file with a column of image files and columns of text: the commonest domain set there is."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm.data.domains.base import DomainAdapter


class TableLoader(DomainAdapter):
    """Rows of a CSV file with a header.

    Args:
        table_path: the file.
        image: its column of image files.
        text: its columns of captions; an empty cell is no caption.
        audio: its column of audio files, if it has one.
        folder: where the files lie; by default beside the table. What a cell names must lie inside it.
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
        self.folder = path.parent if folder is None else Path(folder)
        self.image, self.text, self.audio, self.title = image, tuple(text), audio, path.stem
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                self.rows, header = list(reader), reader.fieldnames or ()
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
        for column in (image, *self.text, *([audio] if audio else [])):
            if column not in header:
                raise ValueError(f"{path} has no column {column!r}; its columns are {', '.join(header) or 'none'}")

    @property
    def name(self) -> str:
        return self.title

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        fields: dict[str, Any] = {"text": tuple(row[c].strip() for c in self.text if (row[c] or "").strip())}
        for field, column in (("image", self.image), ("audio", self.audio)):
            if column and row[column]:
                fields[field] = self.inside(row[column], index)
        return fields

    def inside(self, name: str, index: int) -> Path:
        """A file of the folder. ValueError on a name that leads out of it: names are data, not paths."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{self.name}, row {index}: {name!r} lies outside of {self.folder}: set its `folder`")
        return path
