"""Features of frozen trunks in the place of raw inputs: computed once for a split, read back beside its examples."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders import Encoder, Features
from encoders.state import weights_digest
from mm.batch import Batch
from mm.data.collate import Collate
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset, StampedDataset, content_stamp, presence
from mm.data.features import Extractor, FeatureStore, build_store, stack_rows, store_key
from mm.data.sampling import Key
from mm.data.views import EvalView, Example, TrainView
from mm.device import Precision
from mm.modalities import MODALITIES

logger = logging.getLogger(__name__)
ENCODER_SETTINGS = ("pool", "window", "hop")
"""What an encoder's settings say of features, beside what its reader says and its weights hold."""
Read = Callable[[Sequence[int]], tuple[Tensor, Tensor | None, Tensor]]
"""Rows of a split -> raw inputs (N, …) of one modality, their mask, and which rows are present (N,)."""


@dataclass
class CachedExample:
    """An example beside the cached features of its modalities.

    Args:
        example: without the rows of modalities whose trunk is frozen.
        features: of those modalities, (T, F) for the image or audio clip, and for each caption.
    """

    example: Example
    features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class FeatureCache:
    """The stores of a run's frozen trunks, by split, modality and view.

    Args:
        data: the cache's folder, and the augmentation of views.
        encoders: settings of each modality's encoder, by name.
        collate: its readers and its tokenizer read what a trunk takes.
        seed: of the augmented views.
        precision: of the run.
    """

    def __init__(
        self, data: DataConfig, encoders: Mapping[str, Any], collate: Collate, seed: int, precision: Precision
    ) -> None:
        self.data = data
        self.precision = precision
        self.encoders = encoders
        self.collate = collate
        self.seed = seed
        self.frozen = tuple(m for m, config in encoders.items() if config.frozen)
        self.stores: dict[tuple[str, str, int], FeatureStore] = {}
        self.caption_rows: dict[str, dict[str, int]] = {}

    @property
    def seconds(self) -> float:
        """How long the extraction of all stores took, whenever that was."""
        return sum(store.seconds for store in self.stores.values())

    def fill(self, encoders: Mapping[str, Encoder], split: str, dataset: CaptionDataset, views: int = 1) -> None:
        """Run every frozen trunk over a split, or open the store of an earlier run.

        Args:
            encoders: by modality, with the trunks' weights.
            split: names the stores.
            dataset: the split.
            views: how often images are read, the first time without augmentation, then each time with another one.
        """
        for modality in self.frozen:
            if modality == "text":
                self.caption_rows[split] = numbered(dataset.captions)
            elif modality not in dataset.modalities:
                continue
            views_of_it = views if modality == "image" else 1
            for view in range(views_of_it):
                store = self._store(encoders[modality], modality, split, dataset, view, views_of_it - view)
                if modality != "text":
                    _read_absent(dataset, self.collate.readers[modality].source, store)
                self.stores[split, modality, view] = store

    def modalities(self, split: str) -> tuple[str, ...]:
        """The modalities whose features of a split are there."""
        return tuple(m for m in self.frozen if (split, m, 0) in self.stores)

    def lookup(self, split: str, modality: str, index: int, epoch: int, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """Cached features of one sample.

        Args:
            split: that the sample belongs to.
            modality: one of `modalities(split)`.
            index: the sample's position in the split.
            epoch: chooses the view.
            captions: of the sample; text features are those of each of them.

        Returns:
            (T, F) of the image or audio clip, or of each caption; (0, F) where the sample lacks it.
        """
        views = 0
        for stored_split, stored_modality, _ in self.stores:
            views += stored_split == split and stored_modality == modality
        store = self.stores[split, modality, epoch % views]
        if modality != "text":
            return (store[index],)
        rows = self.caption_rows[split]
        absent = torch.empty(0, store.tokens.shape[1], dtype=torch.float16)
        return tuple(store[rows[caption]] if caption else absent for caption in captions)

    def put(self, batch: Batch, modality: str, rows: Sequence[Tensor]) -> None:
        """Put a modality's features into a batch; their mask replaces the raw input's.

        Args:
            batch: may hold the modality's raw inputs.
            modality: its name.
            rows: features (T_i, F) of every row.
        """
        tokens, mask = stack_rows(rows)
        batch.features[modality] = tokens
        batch.masks[modality] = mask
        if modality not in batch.present:
            batch.present[modality] = mask.any(1)
            batch.sample_index[modality] = torch.arange(len(rows))

    def _store(
        self, encoder: Encoder, modality: str, split: str, dataset: CaptionDataset, view: int, views: int
    ) -> FeatureStore:
        """Open or compute the store of one view of one modality of a split, the first of `views` to come."""
        extract = Extractor(encoder, MODALITIES[modality].rows_at_once, self.precision)
        about = self._about(extract, modality, split, dataset, view)
        name = f"{modality}-{split}-{view}-{store_key(about)}"
        folder = Path(self.data.cache) / "features" / name
        read = self._reader(modality, split, dataset, view)
        count = len(self.caption_rows[split]) if modality == "text" else len(dataset)
        chunk = chunk_rows(extract)
        said = (modality, dataset.name, extract.arithmetic.removeprefix("torch."), extract.device, folder)
        logger.info("features of the frozen %s trunk for %s in %s on %s: %s", *said)

        def features(rows: Sequence[int]) -> Features:
            return extract.of_present(*read(rows))

        description = f"{modality} features, {split} view {view}"
        return build_store(folder, count, chunk, features, description, {"data": dataset.name, **about}, views)

    def _about(
        self, extract: Extractor, modality: str, split: str, dataset: CaptionDataset, view: int
    ) -> dict[str, Any]:
        """Everything that determines a store's content: data, weights, settings, arithmetic, augmentation."""
        config = self.encoders[modality]
        return {
            "modality": modality,
            "view": view,
            "encoder": config.trunk,
            "weights": weights_digest(extract.original.trunk),
            "settings": self._settings(modality),
            "arithmetic": extract.arithmetic,
            "absent": "no tokens",
            "augment": [str(self.data.augment), self.seed] if view else None,
            "content": self._content(modality, split, dataset),
        }

    def _content(self, modality: str, split: str, dataset: CaptionDataset) -> str:
        """What a trunk reads of a split: its different captions, or what the files of a modality hold."""
        if modality == "text":
            return store_key(list(self.caption_rows[split]))
        if isinstance(dataset, StampedDataset):
            return content_stamp(dataset, self.collate.readers[modality].source, Path(self.data.cache))
        # Only a name tells one set that says nothing of its files from another.
        return store_key(dataset.name, dataset.image_ids)

    def _settings(self, modality: str) -> dict[str, Any]:
        """The settings, by name, that a modality's features depend on beside trunk and data."""
        config = self.encoders[modality]
        if modality == "text":
            return {"max_tokens": config.max_tokens}
        settings = self.collate.readers[modality].settings()
        for name in ENCODER_SETTINGS:
            settings[name] = getattr(config, name, None)
        return settings

    def _reader(self, modality: str, split: str, dataset: CaptionDataset, view: int) -> Read:
        """What reads rows of a split: its different captions, or its samples as a view shows them."""
        if modality == "text":
            return self._caption_reader(split)
        readers = {modality: self.collate.readers[modality]}
        collate = Collate(readers, None)
        train_view = TrainView(dataset, readers, seed=self.seed, augment=self.data.augment)
        eval_view = EvalView(dataset, readers)

        def read(rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
            examples = [train_view[row, view] if view else eval_view[row] for row in rows]
            batch = collate(examples)
            return batch.inputs[modality], batch.masks.get(modality), batch.present[modality]

        return read

    def _caption_reader(self, split: str) -> Read:
        captions = list(self.caption_rows[split])

        def read(rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
            assert self.collate.tokenizer is not None
            ids, mask = self.collate.tokenizer([captions[row] for row in rows])
            return ids, mask, torch.ones(len(rows), dtype=torch.bool)

        return read


class CachedView:
    """A view's examples beside the cached features of their modalities; keys are the view's.

    Args:
        view: decodes the modalities that are not cached.
        cache: its stores hold the others.
        split: that the view shows.
    """

    def __init__(self, view: TrainView | EvalView, cache: FeatureCache, split: str) -> None:
        self.view = view
        self.cache = cache
        self.split = split
        self.cached = cache.modalities(split)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: Key | int) -> CachedExample:
        """(index, epoch) of a training view, or an index of an evaluation view -> CachedExample."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        example = self.view[key]  # type: ignore[index]
        features = {}
        for modality in self.cached:
            features[modality] = self.cache.lookup(self.split, modality, index, epoch, example.captions)
        return CachedExample(example, features)


def _read_absent(dataset: CaptionDataset, source: str, store: FeatureStore) -> None:
    """Read the samples again that a store has no features of although they have a file: one that does not decode is
    counted so, also where the features were made by an earlier run."""
    there = presence(dataset, source)
    for row in store.empty_rows():
        if there[row]:
            dataset[row]


def stack_cached(examples: Sequence[CachedExample], collate: Collate, cache: FeatureCache) -> Batch:
    """Stack examples into a batch, with cached features in the place of raw inputs.

    Args:
        examples: B of them, with K captions each.
        collate: stacks what is not cached.
        cache: pads and masks what is.

    Returns:
        Batch with features (N, T, F) by modality.
    """
    batch = collate([cached.example for cached in examples])
    for modality in examples[0].features:
        rows: list[Tensor] = []
        for cached in examples:
            rows.extend(cached.features[modality])
        cache.put(batch, modality, rows)
    return batch


def chunk_rows(extract: Extractor) -> int:
    """How many rows of a store are computed at a time: what keeps every CPU thread busy, or a GPU."""
    return max(64, extract.at_once * torch.get_num_threads())


def numbered(captions: Sequence[Sequence[str]]) -> dict[str, int]:
    """Every different caption of a split with its row, numbered in the order of their first appearance.

    Args:
        captions: of each image.
    """
    rows: dict[str, int] = {}
    for of_image in captions:
        for caption in of_image:
            rows.setdefault(caption, len(rows))
    return rows
