"""Models to be evaluated on data: a finished run, or an open_clip model as a peer."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from encoders.pretraining import pretraining
from eval.embeddings import Scorer
from eval.protocols import RANDOM_WEIGHTS
from eval.report.exhibits import Material
from kernels.errors import UserError
from mm.artifacts.run import load_run
from mm.artifacts.seen import load_seen, trained_on
from mm.config import encoders_of, plan_of, trunks_of
from mm.data import open_split
from mm.data.collection import seen_images, trained_words
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset, require_readable
from mm.data.module import AlignData
from mm.device import Precision, choose_device
from mm.evaluation.embed import SplitEmbeddings, joint_scores, nothing_to_score_by, trained_scorers
from mm.evaluation.exhibits import examples_of, material_of
from mm.evaluation.kept import embeddings_of
from mm.evaluation.result import describe
from mm.evaluation.retrieval import RERANKED, evaluate_embedded
from mm.infer.towers import OpenClip
from mm.progress import followed


@dataclass
class EvaluatedSplit:
    """A dataset through a model.

    Args:
        arrays: the contents of embeddings.npz, see `SplitEmbeddings.arrays`.
        joint: scorers of (image, caption) pairs by name, each fed positions in `image` and `text`; none for a dual
            encoder.
        embeddings: all that a run made of the split; None of another model.
    """

    arrays: dict[str, np.ndarray]
    joint: dict[str, Scorer]
    embeddings: SplitEmbeddings | None = None

    def cosine(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The `Scorer` of the unit vectors alone.

        Args:
            images: positions (P,) in `image`.
            captions: positions (P,) in `text`.

        Returns:
            cosines (P,).
        """
        x = self.arrays["image"][images]
        y = self.arrays["text"][captions]
        return (x * y).sum(1)


class EvaluatedModel(Protocol):
    """What `mm.evaluation.zero_shot` asks of a model."""

    trained_on: str
    """The training data, in the protocol's words."""
    pretraining: str
    """What the trunks had seen before, in the protocol's words."""
    modalities: tuple[str, ...]
    """Those that the model reads."""
    device: torch.device
    """Where it computes."""

    def open(self, split: str) -> CaptionDataset:
        """A split of the data that the model is evaluated on."""

    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        """A dataset through the model; `name` labels its progress bar and its cached features."""

    def material(self, dataset: CaptionDataset, found: EvaluatedSplit) -> Material:
        """What a report shows of a dataset beside its figures."""


class FinishedRun:
    """A finished run, its weights unchanged, on its own data or on others.

    Args:
        folder: of the run.
        root: the data that are read; None for the run's own.
        karpathy: Karpathy's split file of these data, if any.
        audio_root: folder of their audio clips, if any.
        rerank: depth of re-ranking; None for the run's own.
        precision: in which it computes; None for the run's own.

    Raises:
        ValueError: the folder holds no finished run, or one that trained nothing to re-rank by and is asked to.
    """

    def __init__(
        self,
        folder: Path,
        root: str | None = None,
        *,
        karpathy: str | None = None,
        audio_root: str | None = None,
        rerank: int | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.device = choose_device()
        self.run = load_run(folder).to(self.device)
        if rerank and not any(trained_scorers(self.run, RERANKED)):
            raise UserError(f"{folder}: {nothing_to_score_by(self.run, RERANKED)} (--rerank 0)")
        if precision is not None:
            train = replace(self.run.config.train, precision=precision)
            self.run.config = replace(self.run.config, train=train)
        config = self.run.config
        self.trained = config.data
        self.read = self.trained
        if root is not None:
            self.read = replace(self.trained, root=root, karpathy=karpathy, audio_root=audio_root)
        self.eval = config.eval if rerank is None else replace(config.eval, rerank=rerank)
        self.data = AlignData(self.read, encoders_of(config), plan_of(config), config.train.precision)
        self.seen = load_seen(folder, self.trained)
        self.training_set = trained_on(self.seen)
        self.trained_on = f"trained on {self.training_set}"
        self.pretraining = pretraining(trunks_of(config))
        self.modalities = self.run.model.modalities

    def training_data(self) -> AlignData:
        """The data that the run was trained on, wherever `root` is."""
        config = self.run.config
        return AlignData(self.trained, encoders_of(config), plan_of(config), config.train.precision)

    def open(self, split: str) -> CaptionDataset:
        """A split of `root` or of the run's own data."""
        return self.data.open(split)

    def evaluate(
        self, dataset: CaptionDataset, split: str, *, samples: int = 1000, seed: int = 0
    ) -> tuple[dict, EvaluatedSplit]:
        """Evaluate the retrieval of a split, with and without re-ranking.

        Args:
            dataset: the split.
            split: its name.
            samples: of the bootstrap behind the intervals.
            seed: of that bootstrap.

        Returns:
            the content of result.json, and the split's embeddings.
        """
        started = time.perf_counter()
        self.data.cache_features(self.run.model.encoders, {split: dataset})
        embeddings = embeddings_of(self.run, self.data, dataset, split)
        evaluation = evaluate_embedded(self.run, embeddings, dataset.name, self.eval)
        read = replace(self.read, val=split)
        config = replace(self.run.config, data=read, eval=self.eval)
        result = describe(
            replace(self.run, config=config),
            {split: evaluation},
            {split: dataset},
            {split: self._trained_words(dataset, split, read)},
            samples=samples,
            seed=seed,
        )
        result["seconds"] = round(time.perf_counter() - started, 1)
        return result, self._evaluated(evaluation.embeddings)

    def _trained_words(self, dataset: CaptionDataset, split: str, read: DataConfig) -> str:
        """Of the protocol: what the run was trained on, and how many of these images were in it."""
        opened = [collection.open(collection.train) for collection in self.seen]
        seen = seen_images(dataset, [training for training in opened if training is not None])
        zero_shot = not any(collection.has(dataset, split, read.folder) for collection in self.seen)
        return trained_words(self.training_set, seen, zero_shot)

    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        """Any dataset through the model; `name` labels its progress bar and its cached features."""
        self.data.cache_features(self.run.model.encoders, {name: dataset})
        return self._evaluated(embeddings_of(self.run, self.data, dataset, name))

    def material(self, dataset: CaptionDataset, found: EvaluatedSplit) -> Material:
        """What a report shows of a dataset, with reconstructions, codes and attention."""
        assert found.embeddings is not None  # _evaluated
        return material_of(self.run, self.data, dataset, found.embeddings)

    def _evaluated(self, found: SplitEmbeddings) -> EvaluatedSplit:
        """Embeddings with what else scores pairs, where there are images and captions: the match head, late interaction
        beside the embeddings, as far as the run trained them."""
        parts = found.parts

        def scorer(weights: tuple[float, float]) -> Scorer:
            def score(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
                rows = (torch.from_numpy(images), torch.from_numpy(captions))
                return joint_scores(self.run, RERANKED, parts["image"], parts["text"], rows, weights).numpy()

            return score

        joint: dict[str, Scorer] = {}
        if "image" in parts and "text" in parts:
            matches, interacts = trained_scorers(self.run, RERANKED)
            if matches:
                joint["match head"] = scorer((0.0, 0.0))
            elif interacts:
                joint["late interaction"] = scorer((1.0, 1.0))
        return EvaluatedSplit(found.arrays(), joint, found)


class OpenClipPeer:
    """An open_clip model with its own preprocessing, as a peer of a run.

    Args:
        name: `ViT-B-32:tag`, or a bare architecture with random weights.
        root: folder of the images and captions that it is evaluated on.
        trained_on: its training data in the user's words: open_clip does not say.
        karpathy: Karpathy's split file of `root`, if any.
        batch_size: images or captions that pass the model at a time.
    """

    modalities: tuple[str, ...] = ("image", "text")

    def __init__(
        self, name: str, root: str | None, trained_on: str, *, karpathy: str | None = None, batch_size: int = 64
    ) -> None:
        _, tagged, _ = name.partition(":")
        self.name = name if tagged else f"{name} with {RANDOM_WEIGHTS}"
        self.trained_on = trained_on if tagged else RANDOM_WEIGHTS
        self.pretraining = pretraining({"image and text": f"open_clip/{name}"})
        self.batch_size = batch_size
        self.root = root
        self.karpathy = karpathy
        self.device = choose_device()
        self.tower = OpenClip(name)
        self.tower.model.to(self.device)

    def open(self, split: str) -> CaptionDataset:
        """A split of `root`. Raises ValueError without one."""
        if self.root is None:
            raise UserError("--open_clip needs --data.root DIR, the images and captions to evaluate it on")
        dataset = open_split(self.root, split, karpathy=self.karpathy)
        require_readable(dataset)
        return dataset

    @torch.inference_mode()
    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        """Images and captions of a dataset; a dual encoder scores pairs by their vectors alone.

        Args:
            dataset: the samples; those without an image have no vector of one.
            name: labels the progress bars.
        """
        captions: list[str] = []
        caption_ids: list[int] = []
        for of_image, ids in zip(dataset.captions, dataset.caption_ids, strict=True):
            captions.extend(of_image)
            caption_ids.extend(ids)
        counts = [len(of_image) for of_image in dataset.captions]
        images, image_ids = self._embed_images(dataset, f"images of {name} through {self.name}")
        texts = self._embed_captions(captions, f"captions of {name} through {self.name}")
        arrays = {
            "image": images.float().numpy(),
            "text": texts.float().numpy(),
            "image_ids": np.array(image_ids),
            "caption_image_ids": np.repeat(dataset.image_ids, counts),
            "caption_ids": np.array(caption_ids),
        }
        return EvaluatedSplit(arrays, {})

    def material(self, dataset: CaptionDataset, found: EvaluatedSplit) -> Material:
        """What a report shows of a dataset: such a model has no codes, and its towers do not see each other."""
        return Material(found.arrays, examples=examples_of(dataset, found.arrays))

    def _embed_images(self, dataset: CaptionDataset, description: str) -> tuple[Tensor, list[int]]:
        """The images that are there -> unit vectors (N, E), and their ids. Raises ValueError where there is none."""
        starts = range(0, len(dataset), self.batch_size)
        vectors = []
        ids: list[int] = []
        for start in followed(starts, description, len(dataset), self.batch_size):
            positions = range(start, min(start + self.batch_size, len(dataset)))
            images = []
            for position in positions:
                sample = dataset[position]
                if sample.image is not None:
                    images.append(self.tower.read("image", sample.image))
                    ids.append(sample.image_id)
            if images:
                batch = self.tower.stack("image", images)
                vectors.append(self.tower.vectors("image", batch).cpu())
        if not vectors:
            raise UserError(f"{dataset.name} has no image")
        return torch.cat(vectors), ids

    def _embed_captions(self, captions: list[str], description: str) -> Tensor:
        """M captions -> unit vectors (M, E)."""
        starts = range(0, len(captions), self.batch_size)
        vectors = []
        for start in followed(starts, description, len(captions), self.batch_size):
            batch = self.tower.stack("text", captions[start : start + self.batch_size])
            vectors.append(self.tower.vectors("text", batch).cpu())
        return torch.cat(vectors)
