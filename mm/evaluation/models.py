"""Models that already exist, on data: a finished run, or a bare open_clip model as a peer."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL.Image import Image
from rich.progress import track
from torch import Tensor

from encoders.trunks import open_clip_model
from eval.embeddings import Scorer
from mm.artifacts.run import load_run
from mm.config import encoders_of, plan_of
from mm.data import open_split
from mm.data.collection import same_collection
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.embed import SplitEmbeddings, embed_split, joint_scores
from mm.evaluation.result import describe
from mm.evaluation.retrieval import evaluate_split


@dataclass
class EvaluatedSplit:
    """A dataset through a model: the arrays of embeddings.npz, and what else scores its (image, caption) pairs.

    joint: name -> `eval.embeddings.Scorer` by positions in `image` and `text`; empty for a dual encoder.
    """

    arrays: dict[str, np.ndarray]
    joint: dict[str, Scorer]

    def cosine(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The `Scorer` of the vectors alone, which are of unit length."""
        return (self.arrays["image"][images] * self.arrays["text"][captions]).sum(1)


class EvaluatedModel(Protocol):
    """What `mm.evaluation.zero_shot` asks of a model. `trained_on` is the words of the protocol."""

    trained_on: str
    modalities: tuple[str, ...]

    def open(self, split: str) -> CaptionDataset: ...

    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit: ...


class FinishedRun:
    """A run's weights unchanged, reading from `root` or else from its own data.

    `rerank` replaces the run's own depth of re-ranking. Raises ValueError on a folder that holds no finished run.
    """

    def __init__(
        self,
        folder: Path,
        root: str | None = None,
        *,
        karpathy: str | None = None,
        audio_root: str | None = None,
        rerank: int | None = None,
    ) -> None:
        self.run = load_run(folder)
        config = self.run.config
        self.trained = config.data
        self.read = self.trained
        if root is not None:
            self.read = replace(self.trained, root=root, karpathy=karpathy, audio_root=audio_root)
        self.eval = config.eval if rerank is None else replace(config.eval, rerank=rerank)
        self.data = AlignData(self.read, encoders_of(config), plan_of(config))
        self.training_set = f"{self.trained.folder.resolve().name}/{self.trained.train}"
        self.trained_on = f"trained on {self.training_set}"
        self.modalities = self.run.model.modalities

    def open(self, split: str) -> CaptionDataset:
        return self.data.open(split)

    def evaluate(
        self, dataset: CaptionDataset, split: str, *, samples: int = 1000, seed: int = 0
    ) -> tuple[dict, EvaluatedSplit]:
        """Retrieval on a split, with and without re-ranking -> (result.json content, EvaluatedSplit).

        samples, seed: of the bootstrap behind the intervals.
        """
        started = time.perf_counter()
        self.data.cache_features(self.run.model.encoders, {split: dataset})
        evaluation = evaluate_split(self.run, self.data, dataset, split, self.eval)
        read = replace(self.read, val=split)
        result = describe(
            replace(self.run, config=replace(self.run.config, data=read, eval=self.eval)),
            {split: evaluation},
            {split: dataset},
            self.training_set,
            samples=samples,
            seed=seed,
            zero_shot=not same_collection(dataset, split, read, self.trained),
        )
        result["seconds"] = round(time.perf_counter() - started, 1)
        return result, self._evaluated(evaluation.embeddings)

    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        """Any dataset; `name` is what its progress bar and its cached features are called."""
        self.data.cache_features(self.run.model.encoders, {name: dataset})
        return self._evaluated(embed_split(self.run, self.data, self.data.eval_view(dataset), name))

    def _evaluated(self, found: SplitEmbeddings) -> EvaluatedSplit:
        parts = found.parts

        def match_head(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
            rows = (torch.from_numpy(images), torch.from_numpy(captions))
            pair = ("image", "text")
            return joint_scores(self.run, pair, parts["image"], parts["text"], rows, weights=(0.0, 0.0)).numpy()

        joint: dict[str, Scorer] = {}
        if "image" in parts and "text" in parts:
            joint["match head"] = match_head
        return EvaluatedSplit(found.arrays(), joint)


class OpenClipPeer:
    """`ViT-B-32:tag` or a bare name (random weights) with its own preprocessing.

    It reads from `root`. `trained_on` is as the user states it: nobody else knows.
    """

    modalities: tuple[str, ...] = ("image", "text")

    def __init__(
        self, name: str, root: str | None, trained_on: str, *, karpathy: str | None = None, batch_size: int = 64
    ) -> None:
        self.name, self.trained_on, self.batch_size = name, trained_on, batch_size
        self.root, self.karpathy = root, karpathy
        self.model = open_clip_model(name, None).eval()
        self.transform = image_transform_v2(
            PreprocessCfg(**open_clip.get_model_preprocess_cfg(self.model)), is_train=False
        )
        self.tokenizer = open_clip.get_tokenizer(name.partition(":")[0])

    def open(self, split: str) -> CaptionDataset:
        if self.root is None:
            raise ValueError("--open_clip needs --data.root DIR, the images and captions to evaluate it on")
        return open_split(self.root, split, karpathy=self.karpathy)

    @torch.inference_mode()
    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        """Images and captions; a dual encoder scores pairs by their vectors alone."""
        captions = [c for group in dataset.captions for c in group]
        positions, starts = (range(0, size, self.batch_size) for size in (len(dataset), len(captions)))
        images = [
            self.model.encode_image(self._pictures(dataset, at), normalize=True)
            for at in track(positions, f"images of {name} through {self.name}", transient=True)
        ]
        texts = [
            self.model.encode_text(self.tokenizer(captions[at : at + self.batch_size]), normalize=True)
            for at in track(starts, f"captions of {name} through {self.name}", transient=True)
        ]
        counts = [len(group) for group in dataset.captions]
        arrays = {
            "image": torch.cat(images).float().numpy(),
            "text": torch.cat(texts).float().numpy(),
            "image_ids": np.array(dataset.image_ids),
            "caption_image_ids": np.repeat(dataset.image_ids, counts),
            "caption_ids": np.array([i for group in dataset.caption_ids for i in group]),
        }
        return EvaluatedSplit(arrays, {})

    def _pictures(self, dataset: CaptionDataset, start: int) -> Tensor:
        """(B, 3, H, W): one batch, as the model's own preprocessing makes it."""
        rows = range(start, min(start + self.batch_size, len(dataset)))
        return torch.stack([self.transform(_picture(dataset, row)) for row in rows])


def _picture(dataset: CaptionDataset, index: int) -> Image:
    sample = dataset[index]
    if sample.image is None:
        raise ValueError(f"{dataset.name}: sample {sample.key} has no image")
    return sample.image.convert("RGB")
