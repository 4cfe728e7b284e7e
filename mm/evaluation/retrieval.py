"""A split's retrieval in every direction, first by embeddings alone, then re-ranked through cross-modal attention."""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignment import PAIRS, ProgressiveAlignment
from eval.retrieval import RetrievalResult, reranked, retrieval_both, rsum, top_k
from mm.batch import CaptionDataset
from mm.config import EvalConfig
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded, SplitEmbeddings, embed_split, joint_scores
from mm.model.multimodal import MultimodalModel, select

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """results: RetrievalResult by direction ("image_to_text"); reranked: the same after the joint head;
    embeddings of the split."""

    embeddings: SplitEmbeddings
    results: dict[str, RetrievalResult] = field(default_factory=dict)
    reranked: dict[str, RetrievalResult] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat: `image_to_text/R@1` …, `reranked/image_to_text/R@1` …,
        `RSUM` of image-text with and without re-ranking."""
        found: dict[str, float] = {}
        for prefix, results in (("", self.results), ("reranked/", self.reranked)):
            for direction, result in results.items():
                found |= result.metrics(f"{prefix}{direction}/")
            if "image_to_text" in results:
                found[f"{prefix}RSUM"] = rsum(results["image_to_text"], results["text_to_image"])
        return found


def evaluate_split(
    model: MultimodalModel,
    loss: ProgressiveAlignment,
    data: AlignData,
    dataset: CaptionDataset,
    split: str,
    config: EvalConfig,
) -> Evaluation:
    """Embed a split and evaluate every pair of modalities that it carries, both ways."""
    evaluation = Evaluation(embed_split(model, data, data.eval_view(dataset), split, config.batch_size))
    parts = evaluation.embeddings.parts
    for a, b in PAIRS:
        if a not in parts or b not in parts:
            continue
        # Only what has a partner can be asked for: an image without an audio clip is no query for audio clips.
        x, y = with_partner(parts[a], parts[b]), with_partner(parts[b], parts[a])
        forward, backward = retrieval_both(x.vectors, y.vectors, x.ids, y.ids)
        evaluation.results |= {f"{a}_to_{b}": forward, f"{b}_to_{a}": backward}
        if config.rerank and f"{a}_{b}" in config.rerank_pairs:
            evaluation.reranked[f"{a}_to_{b}"] = rerank(model, loss, (a, b), x, y, config, swap=False)
            evaluation.reranked[f"{b}_to_{a}"] = rerank(model, loss, (a, b), x, y, config, swap=True)
    return evaluation


def with_partner(part: Embedded, other: Embedded) -> Embedded:
    """The rows whose image also occurs in the other modality."""
    keep = torch.isin(part.ids, other.ids)
    if bool(keep.all()):
        return part
    rows = keep.nonzero().squeeze(1)
    return Embedded(part.vectors[rows], part.tokens[rows], part.ids[rows], select(part.encoded, rows))


def rerank(
    model: MultimodalModel,
    loss: ProgressiveAlignment,
    pair: tuple[str, str],
    x: Embedded,
    y: Embedded,
    config: EvalConfig,
    swap: bool,
) -> RetrievalResult:
    """Score each query's `config.rerank` best again, jointly; with `swap` the second modality asks for the first."""
    queries, gallery = (y, x) if swap else (x, y)
    depth = min(config.rerank, len(gallery.ids))
    shortlist = top_k(queries.vectors, gallery.vectors, depth)[1]
    asking = torch.arange(len(shortlist)).repeat_interleave(depth)
    found: Tensor = shortlist.flatten()
    rows, columns = (found, asking) if swap else (asking, found)
    weights = (config.rerank_contrastive, config.rerank_filip)
    scores = joint_scores(model, loss, *pair, x, y, rows, columns, weights)
    return reranked(
        queries.vectors, gallery.vectors, queries.ids, gallery.ids, shortlist, scores.view(len(shortlist), depth)
    )
