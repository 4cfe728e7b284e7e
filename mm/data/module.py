"""The data of a run as Lightning wants it: splits, tokenizer, cached features of frozen trunks, and batches in a
resumable order."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from encoders import Encoder, ImageConfig
from encoders.tokenizer import Tokenizer, observed_vocabulary
from kernels.collectives import rank_and_size, world
from kernels.errors import UserError
from mm.batch import Batch
from mm.data import open_split
from mm.data.cached import CachedExample, CachedView, FeatureCache, stack_cached
from mm.data.collate import Collate
from mm.data.config import BatchPlan, DataConfig
from mm.data.dataset import CaptionDataset, presence, require_readable
from mm.data.sampling import StepSampler
from mm.data.scenes import ensure_scenes
from mm.data.views import EvalView, TrainView
from mm.device import Precision
from mm.modalities import build_readers, noun

logger = logging.getLogger(__name__)
MOST_WORKERS = 12
"""That `data.workers=auto` starts: two cores are left to the process that feeds the GPU."""


class AlignData(LightningDataModule):
    """Everything a run reads. Call `setup()`, build the model from `vocabulary`, then `cache_features(encoders)`.

    Args:
        config: where the data are, and how training reads them.
        encoders: settings of each modality's encoder by name, which determine its inputs.
        plan: which samples each training step holds.
        precision: of the run, in which features of frozen trunks are made.
    """

    def __init__(self, config: DataConfig, encoders: Mapping[str, Any], plan: BatchPlan, precision: Precision) -> None:
        super().__init__()
        self.config = config
        self.encoders = encoders
        self.plan = plan
        self.tokenizer: Tokenizer | None = None
        if "text" in encoders:
            text = encoders["text"]
            self.tokenizer = Tokenizer(text.trunk, text.max_tokens)
        self.readers = build_readers(encoders)
        self.collate = Collate(self.readers, self.tokenizer)
        self.features = FeatureCache(config, encoders, self.collate, plan.seed, precision)
        # Views decode only the modalities that are not cached.
        self.raw = {m: reader for m, reader in self.readers.items() if m not in self.features.frozen}

    def setup(self, stage: str | None = None) -> None:
        """Open the splits (generating the embedded ones if need be) and read the training captions' vocabulary."""
        if hasattr(self, "train"):
            return
        self.train = self._opened(self.config.train)
        self.vocabulary = None
        if self.tokenizer is not None and self.encoders["text"].trunk == "scratch":  # Others have one of their own.
            self.vocabulary = self.observed_vocabulary()
        self.train_view = TrainView(
            self.train,
            self.raw,
            seed=self.plan.seed,
            augment=self.config.augment,
            captions=self.config.captions,
            limit_captions=self.config.limit_captions,
            keep=self.config.workers in (0, "auto"),
        )

    def observed_vocabulary(self) -> Tensor:
        """The ids (V,) int64 of all tokens in the training captions, sorted, of a model that reads text."""
        assert self.tokenizer is not None
        return observed_vocabulary(self.tokenizer, captions_of(self.train))

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The splits that a finished run is evaluated on.

        The embedded scenes have two: the validation split, whose combinations are held out, and `seen`, new scenes of
        trained combinations; their gap is what the combinations cost.
        """
        if self.config.root is None:
            return (self.config.val, "seen")
        return (self.config.val,)

    def open(self, split: str) -> CaptionDataset:
        """Open a split of the run's data to be evaluated on.

        Args:
            split: its name.

        Raises:
            ValueError: there is no such split, see `open_split`, or two of its samples have one image id.
        """
        dataset = self._opened(split)
        image_id, samples = Counter(dataset.image_ids).most_common(1)[0]
        if samples > 1:
            raise UserError(
                f"{dataset.name}: {samples} samples have image id {image_id}, and every copy would match each of its"
                " captions; keep all captions of an image in one sample"
            )
        return dataset

    def _opened(self, split: str) -> CaptionDataset:
        """A split, in which for training samples may share an image id.

        Raises ValueError if most of its files do not decode.
        """
        config = self.config
        if config.root is None:
            image = self.encoders.get("image", ImageConfig())
            folder = ensure_scenes(config.folder, image_size=image.size)
            return open_split(folder, split)
        dataset = open_split(config.folder, split, karpathy=config.karpathy, audio_root=config.audio_root)
        require_readable(dataset)
        self._report_absent(dataset)
        return dataset

    def _report_absent(self, dataset: CaptionDataset) -> None:
        """Log which of the model's modalities the split lacks, wholly or in part."""
        for modality in self.encoders:
            source = self.readers[modality].source if modality in self.readers else modality
            absent = presence(dataset, source).count(False)
            if source not in dataset.modalities:
                logger.warning("%s has no %s: it goes on without", dataset.name, modality)
            elif absent:
                logger.warning("%s: %d of %d samples have no %s", dataset.name, absent, len(dataset), noun(modality))

    def cache_features(self, encoders: Mapping[str, Encoder], splits: Mapping[str, CaptionDataset]) -> None:
        """Run every frozen trunk over splits, or open the stores of an earlier run.

        Args:
            encoders: by modality, with the trunks' weights.
            splits: datasets by name; the training split has `config.views` views, any other one.
        """
        for split, dataset in splits.items():
            trained_on = dataset is getattr(self, "train", None)
            views = self.config.views if trained_on else 1
            self.features.fill(encoders, split, dataset, views)

    def train_dataloader(self) -> DataLoader:
        """Batches of this rank from the trainer's step on: a resumed run continues mid-epoch, in the same order."""
        trainer = self.trainer
        assert trainer is not None
        # Processes that divide a model have the same samples: these are not the trainer's ranks.
        rank, ranks = rank_and_size(world())
        sampler = StepSampler(
            len(self.train),
            self.plan.batch_size,
            self.plan.steps,
            self.plan.seed,
            start_step=trainer.global_step,
            rank=rank,
            world_size=ranks,
            limit=self.config.limit_images,
        )
        return self.loader(sampler, trainer.strategy.root_device)

    def loader(self, sampler: StepSampler, device: torch.device) -> DataLoader:
        """Batches of the training split for a model on a device.

        Args:
            sampler: decides what each batch holds.
            device: of the model.
        """
        # Not a bound method: a worker process that is spawned is sent it, and would be sent the trainer too.
        stack = partial(stack_cached, collate=self.collate, cache=self.features)
        workers = loader_workers(self.config.workers, device)
        if workers:
            self.train_view.keep_nothing()
        dataset: Any = CachedView(self.train_view, self.features, self.config.train)  # indexed by (index, epoch)
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=stack,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the trainer's device; from pinned memory it is copied while the host goes on."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def stack(self, examples: list[CachedExample]) -> Batch:
        """B examples -> Batch of raw inputs and cached features."""
        return stack_cached(examples, self.collate, self.features)

    def train_batch(self, indices: list[int], epoch: int = 0) -> Batch:
        """Some samples of the training split.

        Args:
            indices: their positions in the split.
            epoch: determines their captions and augmentation.
        """
        view = CachedView(self.train_view, self.features, self.config.train)
        examples = [view[index, epoch] for index in indices]
        return self.stack(examples)

    def eval_view(self, dataset: CaptionDataset) -> EvalView:
        """A dataset without randomness, decoding the modalities that are not cached."""
        return EvalView(dataset, self.raw)

    def sample_batches(
        self, view: EvalView, split: str, size: int, starts: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Samples of a split in order, without their captions.

        Args:
            view: of the split.
            split: names its cached features.
            size: samples per batch; the last one may have fewer.
            starts: the first sample of each batch; None for all.
        """
        cached = CachedView(view, self.features, split)
        for start in range(0, len(view), size) if starts is None else starts:
            stop = min(start + size, len(view))
            examples = [cached[index] for index in range(start, stop)]
            batch = self.stack(examples)
            without_text = [m for m in batch.modalities if m != "text"]
            yield batch.select(without_text)

    def caption_batches(
        self, view: EvalView, split: str, size: int, starts: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Captions of a split in order, none where the model reads no text.

        Args:
            view: of the split.
            split: names its cached features.
            size: captions per batch; the last one may have fewer.
            starts: the first caption of each batch; None for all.
        """
        if self.tokenizer is None:
            return
        for start in range(0, len(view.captions), size) if starts is None else starts:
            rows = slice(start, start + size)
            captions = view.captions[rows]
            batch = self.collate.text(captions, view.caption_image_ids[rows])
            if "text" in self.features.modalities(split):
                features = self.features.lookup(split, "text", 0, 0, captions)
                self.features.put(batch, "text", features)
            yield batch


def loader_workers(asked: int | Literal["auto"], device: torch.device) -> int:
    """How many processes decode what a model on a device trains on.

    Args:
        asked: as `data.workers` has it.
        device: of the model.
    """
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return 0
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 2))


def captions_of(dataset: CaptionDataset) -> Iterator[str]:
    """All captions of a split."""
    for captions in dataset.captions:
        yield from captions
