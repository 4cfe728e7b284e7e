"""The data of a run as Lightning wants it: splits, tokenizer, cached features of frozen trunks,
and batches in a resumable order."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from encoders.text import Tokenizer, observed_vocabulary
from encoders.trunks import weights_digest
from kernels.dispatch import has_bf16
from mm.batch import Batch, CaptionDataset
from mm.data import open_split
from mm.data.collate import Augment, Collate, EvalView, Example, TrainView
from mm.data.features import ROWS_AT_ONCE, Extractor, FeatureStore, build_store, stack_rows, store_key
from mm.data.sampling import Key, StepSampler
from mm.data.scenes import ensure_scenes

if TYPE_CHECKING:
    from mm.config import AlignConfig
    from mm.model.multimodal import MultimodalModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """What a run reads, and how it is prepared."""

    root: str | None = None
    """A folder in COCO caption layout, or of webdataset shards.

    Without it, the embedded scenes are generated under `cache`.
    """
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to evaluate on."""
    karpathy: str | None = None
    """The official dataset_coco.json; `train` and `val` then name its splits, joined by + where several."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root` (scripts/prepare_speech.py writes one)."""
    cache: str = "data"
    """Folder for generated scenes and for the features of frozen trunks."""
    augment: Augment | None = None
    """Random crops and mirroring of training images; none for scenes, whose captions say left and right."""
    views: int = 1
    """Cached features of a frozen image trunk: the plain image and views-1 augmented ones, one per epoch in turn."""
    captions: int = 1
    """Captions of each image in a training step, all of them its positives: text is cheaper than images."""
    limit_images: int = 0
    """Train on so many of the images, the same ones whatever the seed; 0 for all."""
    limit_captions: int = 0
    """Train on the first so many captions of each image; 0 for all."""
    fit: Literal["crop", "squash"] = "squash"
    """How an image becomes a square: cut the centre out, or change the aspect and keep everything."""
    in_memory: bool = True
    """Keep decoded samples in memory. Needs workers=0."""
    workers: int = 0
    """Processes that decode samples while the model trains."""

    def __post_init__(self) -> None:
        for name in ("views", "captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: it must be at least 1")
        if self.limit_images < 0 or self.limit_captions < 0:
            raise ValueError(
                f"data.limit_images={self.limit_images} and data.limit_captions={self.limit_captions}:"
                " neither can be negative, and 0 stands for all"
            )
        if self.in_memory and self.workers:
            raise ValueError(
                f"data.in_memory with data.workers={self.workers}: each worker would hold its own copy; set one to 0"
            )

    @property
    def folder(self) -> Path:
        """Where the splits lie."""
        return Path(self.cache) / "scenes" if self.root is None else Path(self.root)


@dataclass
class CachedExample:
    """An example, and the cached features of those of its modalities whose trunk is frozen: one (T, F) for each of its
    captions, one for its image or audio."""

    example: Example
    features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class AlignData(LightningDataModule):
    """Everything a run reads. Call `setup()`, build the model from `vocabulary`, then `cache_features(model)`."""

    def __init__(self, config: "AlignConfig") -> None:
        super().__init__()
        self.config = config
        data, image, audio, text = config.data, config.image, config.audio, config.text
        self.tokenizer = Tokenizer(text.trunk, text.max_tokens)
        self.collate = Collate(self.tokenizer)
        self.view: dict[str, Any] = {
            "image_size": image.size,
            "audio_seconds": audio.seconds if "audio" in config.model.modalities else 0.0,
            "sample_rate": audio.sample_rate,
            "fit": data.fit,
        }
        self.frozen = tuple(m for m in config.model.modalities if getattr(config, m).frozen)
        self.raw = tuple(m for m in ("image", "audio") if m in config.model.modalities and m not in self.frozen)
        self.stores: dict[tuple[str, str, int], FeatureStore] = {}
        self.caption_rows: dict[str, dict[str, int]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the splits (generating the embedded ones if need be) and read the training captions' vocabulary."""
        if hasattr(self, "train"):
            return
        self.train = self.open(self.config.data.train)
        self.vocabulary = observed_vocabulary(self.tokenizer, (c for captions in self.train.captions for c in captions))
        self.train_view = TrainView(
            self.train,
            augment=self.config.data.augment,
            seed=self.config.seed,
            cache=self.config.data.in_memory,
            decode=self.raw,
            captions=self.config.data.captions,
            limit_captions=self.config.data.limit_captions,
            **self.view,
        )

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The validation split; of the scenes also `seen`, new scenes without held-out combinations,
        so that the gap shows."""
        return (self.config.data.val, "seen") if self.config.data.root is None else (self.config.data.val,)

    def open(self, split: str) -> CaptionDataset:
        data = self.config.data
        if data.root is None:
            return open_split(ensure_scenes(data.folder, image_size=self.config.image.size), split)
        dataset = open_split(data.folder, split, karpathy=data.karpathy, audio_root=data.audio_root)
        self._report_absent(dataset)
        return dataset

    def _report_absent(self, dataset: CaptionDataset) -> None:
        """Log which of the model's modalities the split lacks, wholly or in part."""
        for modality in self.config.model.modalities:
            silent = dataset.has_audio.count(False) if modality == "audio" else 0
            if modality not in dataset.modalities:
                logger.warning("%s has no %s: it goes on without", dataset.name, modality)
            elif silent:
                logger.warning("%s: %d of %d images have no audio", dataset.name, silent, len(dataset))

    def cache_features(self, model: "MultimodalModel", splits: dict[str, CaptionDataset]) -> None:
        """Run every frozen trunk over `splits` once, or find that it was done. `splits` maps names to datasets."""
        for split, dataset in splits.items():
            for modality in self.frozen:
                if modality == "text":
                    self.caption_rows[split] = {
                        c: i for i, c in enumerate(dict.fromkeys(c for cs in dataset.captions for c in cs))
                    }
                elif modality not in dataset.modalities:
                    continue
                views = self.config.data.views if modality == "image" and dataset is getattr(self, "train", None) else 1
                for view in range(views):
                    self.stores[split, modality, view] = self._store(model, modality, split, dataset, view)

    def _store(
        self, model: "MultimodalModel", modality: str, split: str, dataset: CaptionDataset, view: int
    ) -> FeatureStore:
        encoder, data = model.encoders[modality], self.config.data
        about = {
            "modality": modality,
            "data": dataset.name,
            "view": view,
            "encoder": getattr(self.config, modality).trunk,
            "weights": weights_digest(encoder.trunk),
            "settings": self.settings_of(modality),
            "pool": self.config.image.pool if modality == "image" else None,
            "augment": [str(data.augment), self.config.seed] if view else None,
            "content": store_key(dataset.image_ids, dataset.captions if modality == "text" else None),
        }
        folder = Path(data.cache) / "features" / f"{modality}-{split}-{view}-{store_key(about)}"
        read = self._raw_reader(modality, split, dataset, view)
        extract = Extractor(encoder, ROWS_AT_ONCE[modality])
        rows = len(self.caption_rows[split]) if modality == "text" else len(dataset)
        chunk = max(64, extract.at_once * torch.get_num_threads())
        logger.info("features of the frozen %s trunk for %s: %s", modality, dataset.name, folder)
        return build_store(
            folder, rows, chunk, lambda rows: extract(*read(rows)), f"{modality} features, {split} view {view}", about
        )

    def settings_of(self, modality: str) -> dict[str, Any]:
        """What a modality's features depend on beside trunk and data: those of images not on how audio is cut."""
        if modality == "text":
            return {"max_tokens": self.tokenizer.max_tokens}
        names = {"image": ("image_size", "fit"), "audio": ("audio_seconds", "sample_rate")}[modality]
        return {name: self.view[name] for name in names}

    def _raw_reader(self, modality: str, split: str, dataset: CaptionDataset, view: int):  # type: ignore[no-untyped-def]  # a closure
        """rows -> (inputs, mask) of one modality, as the trunk wants them."""
        if modality == "text":
            captions = list(self.caption_rows[split])
            return lambda rows: self.tokenizer([captions[i] for i in rows])
        settings: dict[str, Any] = {**self.view, "decode": (modality,)}
        if view:
            train_view = TrainView(dataset, augment=self.config.data.augment, seed=self.config.seed, **settings)
            example = lambda i: train_view[i, view]  # noqa: E731
        else:
            example = EvalView(dataset, **settings).__getitem__

        def read(rows: range) -> tuple[Tensor, Tensor | None]:
            batch = self.collate([example(i) for i in rows])
            return batch.inputs[modality], batch.masks.get(modality)

        return read

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's step on: a resumed run goes on mid-epoch, in the same order."""
        trainer, train = self.trainer, self.config.train
        assert trainer is not None
        sampler = StepSampler(
            len(self.train),
            train.batch_size,
            train.steps,
            self.config.seed,
            start_step=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            limit=self.config.data.limit_images,
        )
        workers = self.config.data.workers
        dataset = CachedView(self.train_view, self, self.config.data.train)
        return DataLoader(
            dataset,  # type: ignore[arg-type]  # indexed by (index, epoch)
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=self.stack,
            persistent_workers=workers > 0,
        )

    def stack(self, examples: list[CachedExample]) -> Batch:
        """CachedExamples -> Batch, with cached features in the place of raw input."""
        batch = self.collate([e.example for e in examples])
        for modality in examples[0].features:
            each = zip(*(e.features[modality] for e in examples), strict=True)
            batch.features[modality], batch.masks[modality] = stack_rows(row for rows in each for row in rows)
            batch.present.setdefault(modality, batch.masks[modality].any(1))
        return batch

    def eval_view(self, dataset: CaptionDataset) -> EvalView:
        return EvalView(dataset, **self.view, decode=self.raw)

    def image_batches(self, view: EvalView, split: str, size: int) -> Iterator[Batch]:
        """All images (and audio clips) of a split in order, without captions."""
        cached = CachedView(view, self, split)
        for start in range(0, len(view), size):
            batch = self.stack([cached[i] for i in range(start, min(start + size, len(view)))])
            for part in (batch.inputs, batch.features, batch.masks, batch.present):
                part.pop("text", None)
            yield batch

    def caption_batches(self, view: EvalView, split: str, size: int) -> Iterator[Batch]:
        """All captions of a split in order."""
        for start in range(0, len(view.captions), size):
            captions = view.captions[start : start + size]
            batch = self.collate.text(captions, view.caption_image_ids[start : start + size])
            if (split, "text", 0) in self.stores:
                rows, store = self.caption_rows[split], self.stores[split, "text", 0]
                batch.features["text"], batch.masks["text"] = stack_rows(store[rows[c]] for c in captions)
            yield batch


class CachedView:
    """A view's examples with the cached features of their modalities beside them; keys as the view's."""

    def __init__(self, view: TrainView | EvalView, data: AlignData, split: str) -> None:
        self.view, self.data, self.split = view, data, split
        self.cached = {m for s, m, _ in data.stores if s == split}

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: Key | int) -> CachedExample:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        example = self.view[key]  # type: ignore[index]
        return CachedExample(example, {m: self.features(m, index, epoch, example.captions) for m in self.cached})

    def features(self, modality: str, index: int, epoch: int, captions: tuple[str, ...]) -> tuple[Tensor, ...]:
        views = sum(1 for s, m, _ in self.data.stores if (s, m) == (self.split, modality))
        rows = [self.data.caption_rows[self.split][c] for c in captions] if modality == "text" else [index]
        return tuple(self.data.stores[self.split, modality, epoch % views][row] for row in rows)


def trainer_precision(precision: Literal["auto", "fp32", "bf16"]) -> Literal["bf16-mixed", "32-true"]:
    """`train.precision` in Lightning's words."""
    return "bf16-mixed" if precision == "bf16" or (precision == "auto" and has_bf16("cpu")) else "32-true"
