"""Another field's data from one small class: it says how many rows there are and what a row holds, the rest is here."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from kernels.errors import UserError
from mm.batch import Sample
from mm.data.dataset import noted
from mm.data.media import decode_audio, decode_image, pixels_of
from mm.data.skipped import Unreadable

FIELDS = ("image", "audio", "text")
VALUES: dict[str, type] = {"image": Image, "audio": tuple}
"""What a field holds, if not a path or a function."""


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

    skipped: Sequence[str] = ()
    """A line for each thing of the source that could not become a row."""

    @property
    def name(self) -> str:
        """What the set is called in messages."""
        return type(self).__name__

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def augmented(self, index: int) -> Mapping[str, Any]:
        """What training sees of a row; the row itself, if a subclass does not say otherwise."""
        return self[index]

    def splits(self, held_out: float, seed: int) -> dict[str, list[int]]:
        """Rows of `train` and of `val`, which gets the share `held_out` of them; by chance, if not overruled.

        Either split keeps at least one row of two or more.
        """
        size = len(self)
        order = np.random.default_rng(seed).permutation(size).tolist()
        count = 0
        if size > 1:
            count = round(held_out * size)
            count = max(1, min(count, size - 1))
        val = sorted(order[:count])
        train = sorted(order[count:])
        return {"train": train, "val": val}

    def dataset(self, split: str = "all", rows: Iterable[int] | None = None, augment: bool = False) -> "DomainDataset":
        """Some rows (all of them by default) as a CaptionDataset. Raises ValueError for a row that is wrong."""
        if rows is None:
            rows = range(len(self))
        return DomainDataset(self, split, rows, augment)


class DomainDataset:
    """Rows of a DomainAdapter as a CaptionDataset: position -> Sample; captions are read at once, images when asked.

    Args:
        adapter: where the rows come from.
        split: its name, for messages.
        rows: which of the rows; a sample's image id is its row.
        augment: whether to read the rows as training sees them.

    Raises:
        ValueError: one line that names the row, at opening for what a row holds, later for what it draws.
    """

    def __init__(self, adapter: DomainAdapter, split: str, rows: Iterable[int], augment: bool) -> None:
        self.name = f"{adapter.name}/{split}"
        self.rows = list(rows)
        if not self.rows:
            raise UserError(f"{self.name} is empty: a domain set needs at least one row")
        read = adapter.augmented if augment else adapter.__getitem__
        self._records: list[dict[str, Any]] = []
        self.image_ids = self.rows
        self.captions: list[tuple[str, ...]] = []
        self.caption_ids: list[tuple[int, ...]] = []
        self.has_image: list[bool] = []
        self.has_audio: list[bool] = []
        modalities: set[str] = set()
        first = 0
        for row in self.rows:
            record = _checked(read(row), self.row_name(row))
            self._records.append(record)
            captions = record["text"]
            self.captions.append(captions)
            end = first + len(captions)
            self.caption_ids.append(tuple(range(first, end)))
            first = end
            self.has_image.append("image" in record)
            self.has_audio.append("audio" in record)
            modalities.update(field for field in FIELDS if record.get(field))
        self.modalities = frozenset(modalities)
        self.skipped: dict[str, int] = {}
        if adapter.skipped:
            self.skipped["unusable row"] = len(adapter.skipped)
        self.unreadable = Unreadable(self.name, self.skipped)

    def row_name(self, row: int) -> str:
        """What an error calls a row."""
        return f"{self.name}, row {row}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        record = self._records[index]
        where = self.row_name(row)
        image = None
        audio = None
        rate = 0
        if "image" in record:
            image = self._image(record["image"], where)
        if "audio" in record:
            audio, rate = self._audio(record["audio"], where)
        sample = Sample(
            key=f"row_{row:08d}",
            image_id=row,
            captions=self.captions[index],
            caption_ids=self.caption_ids[index],
            image=image,
            audio=audio,
            sample_rate=rate,
        )
        return noted(self, index, sample)

    def _image(self, value: Any, where: str) -> Tensor | None:
        """The image that a row holds or draws, or that of its file; None of a file that does not decode."""
        if not isinstance(value, str | Path):
            return _drawn(value, where)
        name = f"{value} of {where}"
        return self.unreadable.attempt("image", name, lambda: decode_image(Path(value).read_bytes(), name))

    def _audio(self, value: Any, where: str) -> tuple[np.ndarray | None, int]:
        """(waveform, hertz) that a row holds or gives, or of its file; (None, 0) of a file that does not decode."""
        if not isinstance(value, str | Path):
            return _waveform(value, where)
        name = f"{value} of {where}"
        found = self.unreadable.attempt("audio", name, lambda: decode_audio(Path(value).read_bytes(), name))
        return found or (None, 0)


def _checked(record: Any, where: str) -> dict[str, Any]:
    """A row's fields with `text` a tuple of captions. ValueError says what is wrong with it."""
    fields = ", ".join(FIELDS)
    if not isinstance(record, Mapping):
        found = type(record).__name__
        raise UserError(f"{where}: __getitem__ gave {found}, not a dict of {fields}")
    for field in record:
        if field not in FIELDS:
            raise UserError(f"{where}: unknown field {field!r}; a row holds any of {fields}")
    present = {field: value for field, value in record.items() if value is not None}
    captions = _captions(present.get("text", ()), where)
    if not captions and not present.keys() - {"text"}:
        raise UserError(f"{where} holds nothing; give at least one of {fields}")
    for field in VALUES:
        if field in present:
            _check_value(field, present[field], where)
    return present | {"text": captions}


def _captions(text: Any, where: str) -> tuple[str, ...]:
    """A caption or several as a tuple. Raises ValueError for one that says nothing."""
    captions = (text,) if isinstance(text, str) else tuple(text)
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{where}: {caption!r} is no caption; text is a string that is not empty, or several")
    return captions


def _check_value(field: str, value: Any, where: str) -> None:
    """Raises ValueError for what can be neither read nor called, and for the path of a file that is not there."""
    kind = VALUES[field]
    if isinstance(value, str | Path):
        if not Path(value).is_file():
            raise UserError(f"{where}: {field} {value} is not on disk")
        return
    if not isinstance(value, kind) and not callable(value):
        found = type(value).__name__
        raise UserError(f"{where}: {field} is {found}, not a path, a function or {kind.__name__}")


def _drawn(value: Any, where: str) -> Tensor:
    """The RGB image (3, H, W) uint8 that a row holds or draws. Raises ValueError if it is none."""
    image = value if isinstance(value, Image) else value()
    if not isinstance(image, Image):
        found = type(image).__name__
        raise UserError(f"{where}: the function of its image gave {found}, not an image")
    return pixels_of(image)


def _waveform(value: Any, where: str) -> tuple[np.ndarray, int]:
    """(waveform (S,) float32, hertz) that a row holds or gives. Raises ValueError if it is no such pair."""
    pair = value() if callable(value) else value
    problem = f"{where}: audio is a pair of a waveform (S,) and its sample rate in hertz"
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(problem)
    samples, rate = pair
    if rate <= 0:
        raise UserError(problem)
    waveform = np.asarray(samples, dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise UserError(f"{where}: the waveform must be one row (S,) of finite numbers, got shape {waveform.shape}")
    return waveform, int(rate)
