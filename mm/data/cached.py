"""Features of frozen trunks in the place of raw inputs: made once for a split, read back beside its examples."""

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
from mm.data.dataset import CaptionDataset
from mm.data.features import Extractor, FeatureStore, build_store, stack_rows, store_key
from mm.data.sampling import Key
from mm.data.views import EvalView, Example, TrainView
from mm.modalities import MODALITIES

logger = logging.getLogger(__name__)
Read = Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]
"""Rows of a split -> inputs and mask of one modality, as its trunk wants them."""


@dataclass
class CachedExample:
    """An example, and the cached features of those of its modalities whose trunk is frozen: one (T, F) for each of its
    captions, one for its image or audio clip."""

    example: Example
    features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class FeatureCache:
    """The stores of a run's frozen trunks, by split, modality and view.

    Args:
        encoders: settings of each modality's encoder.
        seed: of the augmented views.
    """

    def __init__(self, data: DataConfig, encoders: Mapping[str, Any], collate: Collate, seed: int) -> None:
        self.data = data
        self.encoders = encoders
        self.collate = collate
        self.seed = seed
        self.frozen = tuple(m for m, config in encoders.items() if config.frozen)
        self.stores: dict[tuple[str, str, int], FeatureStore] = {}
        self.caption_rows: dict[str, dict[str, int]] = {}

    @property
    def seconds(self) -> float:
        """What making all stores took, whenever that was."""
        return sum(store.seconds for store in self.stores.values())

    def fill(self, encoders: Mapping[str, Encoder], split: str, dataset: CaptionDataset, views: int = 1) -> None:
        """Run every frozen trunk over a split once, or find that it was done; of images `views` times, the first
        without augmentation."""
        for modality in self.frozen:
            if modality == "text":
                self.caption_rows[split] = numbered(dataset.captions)
            elif modality not in dataset.modalities:
                continue
            for view in range(views if modality == "image" else 1):
                store = self._store(encoders[modality], modality, split, dataset, view)
                self.stores[split, modality, view] = store

    def modalities(self, split: str) -> tuple[str, ...]:
        """Those of which the split's features are there."""
        return tuple(m for m in self.frozen if (split, m, 0) in self.stores)

    def lookup(self, split: str, modality: str, index: int, epoch: int, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """Features (T, F) of a sample's image or audio clip, or of each of its captions."""
        views = sum(1 for s, m, _ in self.stores if (s, m) == (split, modality))
        store = self.stores[split, modality, epoch % views]
        if modality != "text":
            return (store[index],)
        rows = self.caption_rows[split]
        return tuple(store[rows[caption]] for caption in captions)

    def put(self, batch: Batch, modality: str, rows: Sequence[Tensor]) -> None:
        """Features (T_i, F) of every row of a modality into a batch, in the place of its raw input's mask."""
        batch.features[modality], batch.masks[modality] = stack_rows(rows)
        if modality not in batch.present:
            batch.present[modality] = batch.masks[modality].any(1)
            batch.sample_index[modality] = torch.arange(len(rows))

    def _store(self, encoder: Encoder, modality: str, split: str, dataset: CaptionDataset, view: int) -> FeatureStore:
        augment = [str(self.data.augment), self.seed] if view else None
        about = {
            "modality": modality,
            "data": dataset.name,
            "view": view,
            "encoder": self.encoders[modality].trunk,
            "weights": weights_digest(encoder.trunk),
            "settings": self._settings(modality),
            "pool": getattr(self.encoders[modality], "pool", None),
            "augment": augment,
            "content": store_key(dataset.image_ids, dataset.captions if modality == "text" else None),
        }
        folder = Path(self.data.cache) / "features" / f"{modality}-{split}-{view}-{store_key(about)}"
        read = self._reader(modality, split, dataset, view)
        extract = Extractor(encoder, MODALITIES[modality].rows_at_once)
        count = len(self.caption_rows[split]) if modality == "text" else len(dataset)
        chunk = max(64, extract.at_once * torch.get_num_threads())
        logger.info("features of the frozen %s trunk for %s: %s", modality, dataset.name, folder)

        def features(rows: Sequence[int]) -> Features:
            return extract(*read(rows))

        return build_store(folder, count, chunk, features, f"{modality} features, {split} view {view}", about)

    def _settings(self, modality: str) -> dict[str, Any]:
        """What a modality's features depend on beside trunk and data."""
        if modality == "text":
            return {"max_tokens": self.encoders["text"].max_tokens}
        return self.collate.readers[modality].settings()

    def _reader(self, modality: str, split: str, dataset: CaptionDataset, view: int) -> Read:
        if modality == "text":
            captions = list(self.caption_rows[split])

            def read_captions(rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
                assert self.collate.tokenizer is not None
                return self.collate.tokenizer([captions[row] for row in rows])

            return read_captions
        readers = {modality: self.collate.readers[modality]}
        stack = Collate(readers, None)
        train_view = TrainView(dataset, readers, seed=self.seed, augment=self.data.augment)
        eval_view = EvalView(dataset, readers)

        def read(rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            batch = stack([train_view[row, view] if view else eval_view[row] for row in rows])
            return batch.inputs[modality], batch.masks.get(modality)

        return read


class CachedView:
    """A view's examples with the cached features of their modalities beside them; keys as the view's."""

    def __init__(self, view: TrainView | EvalView, cache: FeatureCache, split: str) -> None:
        self.view = view
        self.cache = cache
        self.split = split
        self.cached = cache.modalities(split)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: Key | int) -> CachedExample:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        example = self.view[key]  # type: ignore[index]
        features = {}
        for modality in self.cached:
            features[modality] = self.cache.lookup(self.split, modality, index, epoch, example.captions)
        return CachedExample(example, features)


def stack_cached(examples: Sequence[CachedExample], collate: Collate, cache: FeatureCache) -> Batch:
    """CachedExamples -> Batch, with cached features in the place of raw input."""
    batch = collate([cached.example for cached in examples])
    for modality, first in examples[0].features.items():
        rows: list[Tensor] = []
        for number in range(len(first)):
            rows.extend(cached.features[modality][number] for cached in examples)
        cache.put(batch, modality, rows)
    return batch


def numbered(captions: Sequence[Sequence[str]]) -> dict[str, int]:
    """Every different caption of a split with its row, in the order in which they come."""
    rows: dict[str, int] = {}
    for of_image in captions:
        for caption in of_image:
            rows.setdefault(caption, len(rows))
    return rows
