"""Retrieval when nothing of an image is kept but its codes: bytes and recalls, beside float32 vectors and faiss."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

from eval.retrieval import retrieval_both, rsum
from eval.stored_codes import CODES, FLOAT, PRODUCT, stored_codes_table
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.device import autocast
from mm.evaluation.kept import embeddings_of
from mm.evaluation.models import FinishedRun
from mm.files import write_json
from mm.hub.pull import RUNS, folder_of_run
from mm.infer.packed_codes import pack_codes, unpack_codes
from mm.optional import require

SUBCODE_BITS = 8
"""Of product quantization: a byte for each part of a vector."""


@dataclass(frozen=True)
class EvalCodes:
    """Whose codes are stored, of what."""

    runs: tuple[str, ...]
    """Folders of finished runs of one set, or hf://org/name[@revision]. Of those with bottleneck.mode=vq codes are
    stored; of others, vectors alone."""
    root: str | None = None
    """Folder of the split; without it, the runs' own data."""
    split: str = "val"
    """Whose images are searched, and whose captions search."""
    product: Annotated[tuple[int, ...], "[1, inf)"] = (8, 16, 32, 64, 128, 256)
    """Bytes that a vector of the first run has as faiss's product quantization; those that divide the embedding's
    width."""
    json: Path | None = None
    """Where to write the result; by default <the first run>/stored_codes.json."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.runs:
            raise UserError("runs is empty: --runs '[runs/x]' names whose codes are stored")


def eval_codes(config: EvalCodes) -> dict[str, Any]:
    """Measure, print a table, and write the result.

    Raises:
        ValueError: a run is missing or reads no images and captions, or product quantization is asked for, and faiss is
            not installed or the run was trained on too few images.
    """
    faiss = require("faiss", "bench") if config.product else None
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name in config.runs:
        found = RunCodes(folder_of_run(name, RUNS), config)
        rows += found.rows()
        if not about:
            learned_from = found.training_vectors() if config.product else found.arrays["image"][:0]
            for size in config.product:
                rows += found.product_rows(faiss, learned_from, size)
            about = {
                "dataset": found.dataset.name,
                "images": len(found.arrays["image"]),
                "learned_from": len(learned_from),
                "hardware": hardware(found.finished.device),
            }
    result = {**about, "faiss": getattr(faiss, "__version__", None), "commit": commit(), "rows": rows}
    Console().print(Markdown(stored_codes_table([result])))
    write_json(config.json or folder_of_run(config.runs[0], RUNS) / "stored_codes.json", result)
    return result


class RunCodes:
    """A run, and a split through it.

    Args:
        folder: of the run.
        config: names the split.
    """

    def __init__(self, folder: Path, config: EvalCodes) -> None:
        self.finished = FinishedRun(folder, config.root)
        self.name = folder.name
        run = self.finished.run
        data = self.finished.data
        if not {"image", "text"} <= set(run.model.modalities):
            raise UserError(f"{folder} reads {', '.join(run.model.modalities)}: images and captions are searched here")
        self.dataset = self.finished.open(config.split)
        data.cache_features(run.model.encoders, {config.split: self.dataset})
        embeddings = embeddings_of(run, data, self.dataset, config.split)
        self.codes = embeddings.parts["image"].encoded.codes
        self.arrays = embeddings.arrays()

    def training_vectors(self) -> np.ndarray:
        """Unit vectors (M, E) of the images that the run was trained on."""
        run = self.finished.run
        data = self.finished.training_data()
        split = data.config.train
        dataset = data.open(split)
        data.cache_features(run.model.encoders, {split: dataset})
        return embeddings_of(run, data, dataset, split).parts["image"].vectors.numpy()

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row of float32 vectors, and one of codes where they are all that the model reads."""
        vectors = self.arrays["image"]
        yield self.row(FLOAT, vectors.nbytes // len(vectors), vectors)
        if self.finished.run.config.bottleneck.mode == "vq":
            packed, decoded = self.from_codes()
            off = float(np.abs(decoded - vectors).max())
            yield {**self.row(CODES, packed.shape[1], decoded), "largest_difference": off}

    def product_rows(self, faiss: Any, learned_from: np.ndarray, size: int) -> Iterator[dict[str, Any]]:
        """A row of product quantization in `size` bytes, if they divide the width; learned_from: (M, E)."""
        vectors = self.arrays["image"]
        if vectors.shape[1] % size == 0:
            yield self.row(PRODUCT, size, product_quantized(faiss, learned_from, vectors, size))

    def row(self, stored: str, size: int, images: np.ndarray) -> dict[str, Any]:
        """Recalls in both directions of image vectors (N, E), of which `size` bytes each are stored."""
        ids, caption_ids = self.arrays["image_ids"], self.arrays["caption_image_ids"]
        there, back = retrieval_both(images, self.arrays["text"], ids, caption_ids)
        found = there.metrics("image_to_text/") | back.metrics("text_to_image/")
        recalls = {name: value for name, value in found.items() if "/R@" in name}
        return {"model": self.name, "stored": stored, "bytes": size, "RSUM": rsum(there, back), **recalls}

    def from_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes as they lie on a disk (N, B) uint8, and the unit vectors (N, E) that the model makes of these bytes."""
        run = self.finished.run
        size = run.model.encoders["image"].bottleneck.quantizer.size
        _, tokens, depth = self.codes.shape
        packed = pack_codes(self.codes, size)
        codes = unpack_codes(packed, tokens, depth, size)
        found: list[Tensor] = []
        with torch.inference_mode(), autocast(run.config.train.precision, run.device):
            for part in codes.split(run.config.eval.batch_size):
                found.append(run.model.embed_codes("image", part.to(run.device)).float().cpu())
        return packed, torch.cat(found).numpy()


def product_quantized(faiss: Any, learned_from: np.ndarray, vectors: np.ndarray, size: int) -> np.ndarray:
    """Vectors through faiss's product quantization.

    Args:
        faiss: the package.
        learned_from: (M, E) float32, of which the centroids are learned.
        vectors: (N, E) float32.
        size: bytes of a vector, which divide E.

    Returns:
        (N, E) float32, decoded.

    Raises:
        ValueError: M is less than the centroids of a part.
    """
    centroids = 2**SUBCODE_BITS
    if len(learned_from) < centroids:
        raise UserError(
            f"product quantization learns {centroids} centroids, more than the {len(learned_from)} training images:"
            " --product '[]' leaves it out"
        )
    quantizer = faiss.ProductQuantizer(vectors.shape[1], size, SUBCODE_BITS)
    # faiss warns of fewer than 39 vectors a centroid, once for every part.
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(np.ascontiguousarray(learned_from))
    return quantizer.decode(quantizer.compute_codes(np.ascontiguousarray(vectors)))
