"""Another field's data from one small class: it says how many rows there are and what a row holds, the rest is here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from mm.batch import Sample
from mm.data.media import decode_audio, decode_image

FIELDS = ("image", "audio", "text")


class DomainAdapter(ABC):
    """The rows of a field's data. A subclass gives `__len__` and `__getitem__`, which returns any of

    image: an image, the path of one, or a function that draws it when it is asked for;
    audio: (mono float32 waveform (S,) in [-1, 1], hertz), the path of an audio file, or a function that gives the pair;
    text: a caption or several.

        class Products(DomainAdapter):
            def __init__(self, rows): self.rows = rows
            def __len__(self): return len(self.rows)
            def __getitem__(self, index): return {"image": Path(self.rows[index].photo), "text": self.rows[index].title}
    """

    skipped_lines: Sequence[str] = ()
    """A line for each thing of the source that could not become a row."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def augmented(self, index: int) -> Mapping[str, Any]:
        """What training sees of a row; the row itself, if a subclass does not say otherwise."""
        return self[index]

    def splits(self, held_out: float, seed: int) -> dict[str, list[int]]:
        """Rows of `train` and of `val`, which gets the share `held_out` of them; by chance, if not overruled."""
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return _parted(order, round(held_out * len(order)))

    def dataset(self, split: str = "all", rows: Iterable[int] | None = None, augment: bool = False) -> "DomainDataset":
        """Some rows (all of them by default) as a CaptionDataset, checked."""
        return DomainDataset(self, split, range(len(self)) if rows is None else rows, augment)


class DomainDataset:
    """Rows of a DomainAdapter as a CaptionDataset: position -> Sample; captions are read at once, images when asked.

    Raises ValueError of one line that names the row, at opening for what a row holds, later for a file that does not
    decode.
    """

    def __init__(self, adapter: DomainAdapter, split: str, rows: Iterable[int], augment: bool) -> None:
        self.name, self.rows = f"{adapter.name}/{split}", list(rows)
        if not self.rows:
            raise ValueError(f"{self.name} is empty: a domain set needs at least one row")
        read = adapter.augmented if augment else adapter.__getitem__
        self._records = [_checked(read(row), self.row_name(row)) for row in self.rows]
        self.image_ids = self.rows
        self.captions: list[tuple[str, ...]] = [record["text"] for record in self._records]
        starts = np.cumsum([0, *map(len, self.captions)]).tolist()
        self.caption_ids = [tuple(range(a, b)) for a, b in pairwise(starts)]
        self.has_audio = ["audio" in record for record in self._records]
        self.modalities = frozenset(m for m in FIELDS if any(record.get(m) for record in self._records))
        self.skipped = {"unusable row": len(adapter.skipped_lines)} if adapter.skipped_lines else {}

    def row_name(self, row: int) -> str:
        return f"{self.name}, row {row}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row, record = self.rows[index], self._records[index]
        where = self.row_name(row)
        image = _image(record["image"], where) if "image" in record else None
        audio, rate = _audio(record["audio"], where) if "audio" in record else (None, 0)
        return Sample(f"row_{row:08d}", row, self.captions[index], self.caption_ids[index], image, audio, rate)


def _checked(record: Any, where: str) -> dict[str, Any]:
    """A row's fields with `text` a tuple of captions. ValueError says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: __getitem__ gave {type(record).__name__}, not a dict of {', '.join(FIELDS)}")
    if unknown := [field for field in record if field not in FIELDS]:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; a row holds any of {', '.join(FIELDS)}")
    fields = {field: value for field, value in record.items() if value is not None}
    text = fields.get("text", ())
    captions = (text,) if isinstance(text, str) else tuple(text)
    if wrong := [caption for caption in captions if not isinstance(caption, str) or not caption.strip()]:
        raise ValueError(f"{where}: {wrong[0]!r} is no caption; text is a string that is not empty, or several")
    if not captions and not fields.keys() - {"text"}:
        raise ValueError(f"{where} holds nothing; give at least one of {', '.join(FIELDS)}")
    for field, kind in (("image", Image), ("audio", tuple)):
        value = fields.get(field)
        if value is not None and not (isinstance(value, kind | str | Path) or callable(value)):
            raise ValueError(f"{where}: {field} is {type(value).__name__}, not a path, a function or {kind.__name__}")
        if isinstance(value, str | Path) and not Path(value).is_file():
            raise ValueError(f"{where}: {field} {value} is not on disk")
    return fields | {"text": captions}


def _image(value: Image | str | Path | Callable[[], Image], where: str) -> Image:
    if isinstance(value, str | Path):
        return decode_image(Path(value).read_bytes(), f"{value} of {where}")
    image = value if isinstance(value, Image) else value()
    if not isinstance(image, Image):
        raise ValueError(f"{where}: the function of its image gave {type(image).__name__}, not an image")
    return image.convert("RGB")


def _audio(value: Any, where: str) -> tuple[np.ndarray, int]:
    if isinstance(value, str | Path):
        return decode_audio(Path(value).read_bytes(), f"{value} of {where}")
    pair = value() if callable(value) else value
    if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] <= 0:
        raise ValueError(f"{where}: audio is a pair of a waveform (S,) and its sample rate in hertz")
    waveform = np.asarray(pair[0], dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"{where}: the waveform must be one row (S,) of finite numbers, got shape {waveform.shape}")
    return waveform, int(pair[1])


def _parted(order: list[int], held_out: int) -> dict[str, list[int]]:
    """The first `held_out` rows of an order are `val`; either split keeps at least one row of two or more."""
    held_out = max(1, min(held_out, len(order) - 1)) if len(order) > 1 else 0
    return {"train": sorted(order[held_out:]), "val": sorted(order[:held_out])}
