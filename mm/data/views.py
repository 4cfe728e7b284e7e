"""A dataset as training or evaluation sees it: position -> decoded `Example`.

Every random choice is a pure function of (seed, epoch, index): workers, caching and resuming change nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from mm.data.dataset import CaptionDataset
from mm.data.sampling import Key
from mm.modalities import MODALITIES
from mm.readers import Augment, Reader, Row

logger = logging.getLogger(__name__)
CACHE_BYTES = 4 << 30
"""How many bytes of decoded samples a view with `keep` holds in memory."""


@dataclass(frozen=True)
class Example:
    """One decoded sample with some of its captions.

    Args:
        index: position in the split.
        image_id: of the sample's image.
        captions: those that are read.
        rows: by modality what its reader returned, None where the sample lacks it; no entry where the split does.
    """

    index: int
    image_id: int
    captions: tuple[str, ...]
    rows: dict[str, Row | None] = field(default_factory=dict)


class View:
    """Decode a dataset's samples by its readers.

    Args:
        dataset: the samples.
        readers: by modality; those of a modality that the dataset lacks are not used.
        keep: hold up to CACHE_BYTES of decoded samples in memory.
    """

    def __init__(self, dataset: CaptionDataset, readers: Mapping[str, Reader], *, keep: bool) -> None:
        self.dataset = dataset
        self.readers = {m: reader for m, reader in readers.items() if reader.source in dataset.modalities}
        self._kept: dict[int, dict[str, Row | None]] = {}
        self._bytes_left = CACHE_BYTES if keep else 0

    def __len__(self) -> int:
        return len(self.dataset)

    def decoded(self, index: int) -> dict[str, Row | None]:
        """What each reader decodes of a sample, by modality; None where it lacks it, or its file does not decode.

        Args:
            index: the sample's position in the split.
        """
        if not self.readers:
            return {}
        if index in self._kept:
            return self._kept[index]
        sample = self.dataset[index]
        decoded = {m: reader.decode(sample) for m, reader in self.readers.items()}
        if self._bytes_left > 0:
            self._keep(index, decoded)
        return decoded

    def keep_nothing(self) -> None:
        """Decode anew each time from now on: every loader worker would hold samples of its own."""
        self._kept = {}
        self._bytes_left = 0

    def _keep(self, index: int, decoded: dict[str, Row | None]) -> None:
        """Hold a decoded sample in memory, and warn once no more fit."""
        self._kept[index] = decoded
        for row in decoded.values():
            if row is not None:
                self._bytes_left -= row.nbytes
        if self._bytes_left <= 0:
            logger.warning(
                "%s: %d of %d samples fill the cache of %d GiB; the others are decoded anew each time",
                self.dataset.name,
                len(self._kept),
                len(self),
                CACHE_BYTES >> 30,
            )


class TrainView(View):
    """(index, epoch) -> Example with `captions` of the image's captions, a random crop and a random stretch of audio.

    Args:
        dataset: the samples.
        readers: by modality, of everything but text.
        seed: of all random choices.
        captions: how many, drawn without repetition while there are enough; an image without any has the empty one.
        limit_captions: of an image's captions, only the first so many are drawn; 0 for all.
        augment: None resizes only, as in evaluation.
        keep: hold up to CACHE_BYTES of decoded samples; with loader workers, each would hold its own.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        readers: Mapping[str, Reader],
        *,
        seed: int = 0,
        augment: Augment | None = None,
        captions: int = 1,
        limit_captions: int = 0,
        keep: bool = False,
    ) -> None:
        super().__init__(dataset, readers, keep=keep)
        self.augment = augment
        self.seed = seed
        self.captions = captions
        self.limit_captions = limit_captions

    def __getitem__(self, key: Key) -> Example:
        """The sample at (index, epoch), by random numbers that are a pure function of (seed, epoch, index)."""
        index, epoch = key
        places = chance_places()
        total = max(place.stop for place in places.values())
        chance = np.random.default_rng((self.seed, epoch, index)).random(total)
        drawable = self.dataset.captions[index][: self.limit_captions or None]
        captions = self._draw(drawable, float(chance[0]))
        rows: dict[str, Row | None] = {}
        for modality, decoded in self.decoded(index).items():
            rows[modality] = None
            if decoded is not None:
                reader = self.readers[modality]
                rows[modality] = reader.augment(decoded, self.augment, chance[places[modality]])
        return Example(index, self.dataset.image_ids[index], captions, rows)

    def _draw(self, captions: tuple[str, ...], chance: float) -> tuple[str, ...]:
        """`captions` captions in their order from a random one on, continuing at the first after the last."""
        if not captions:
            return ("",) * self.captions
        first = int(chance * len(captions))
        return tuple(captions[(first + k) % len(captions)] for k in range(self.captions))


class EvalView(View):
    """index -> Example without any randomness (its first caption), and all captions of the split as one flat list.

    `captions`, `caption_ids` (M,) and `caption_image_ids` (M,) run parallel; `image_ids` (N,) is by position.

    Args:
        dataset: the samples.
        readers: by modality, of everything but text.
        keep: hold up to CACHE_BYTES of decoded samples.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        readers: Mapping[str, Reader],
        *,
        keep: bool = False,
    ) -> None:
        super().__init__(dataset, readers, keep=keep)
        self.image_ids = torch.tensor(dataset.image_ids)
        self.captions: list[str] = []
        caption_ids: list[int] = []
        for captions, ids in zip(dataset.captions, dataset.caption_ids, strict=True):
            self.captions.extend(captions)
            caption_ids.extend(ids)
        self.caption_ids = torch.tensor(caption_ids, dtype=torch.int64)
        counts = torch.tensor([len(captions) for captions in dataset.captions])
        self.caption_image_ids = torch.repeat_interleave(self.image_ids, counts)

    def __getitem__(self, index: int) -> Example:
        """The sample at a position, with its first caption or an empty one."""
        rows: dict[str, Row | None] = {}
        for modality, decoded in self.decoded(index).items():
            rows[modality] = None
            if decoded is not None:
                rows[modality] = self.readers[modality].evaluate(decoded)
        captions = self.dataset.captions[index][:1] or ("",)
        return Example(index, self.dataset.image_ids[index], captions, rows)


def chance_places() -> dict[str, slice]:
    """Where each modality's numbers stand among those that training draws for a sample.

    The first number is the caption's. Each choice has a place of its own, so that switching one off leaves the others
    as they were.

    Returns:
        a slice of the sample's numbers for each modality.
    """
    places = {}
    first = 1
    for modality, row in MODALITIES.items():
        places[modality] = slice(first, first + row.chances)
        first += row.chances
    return places
