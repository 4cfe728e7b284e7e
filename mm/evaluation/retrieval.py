"""A split's retrieval in every direction, first by embeddings alone, then re-ranked through cross-modal attention."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignment import Pair
from eval.retrieval import RetrievalResult, reranked, retrieval_both, rsum, top_k
from mm.artifacts.run import Run
from mm.config import EvalConfig
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded, SplitEmbeddings, embed_split, joint_scores
from mm.modalities import pairs_of

RERANKED: Pair = ("image", "text")
"""The pair that is scored again jointly."""


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


def evaluate_split(run: Run, data: AlignData, dataset: CaptionDataset, split: str, config: EvalConfig) -> Evaluation:
    """Embed a split and evaluate every pair of modalities that it carries, both ways."""
    evaluation = Evaluation(embed_split(run, data, data.eval_view(dataset), split))
    parts = evaluation.embeddings.parts
    for a, b in pairs_of(parts):
        # Only what has a partner can be asked for: an image without audio is no query for audio.
        x = with_partner(parts[a], parts[b])
        y = with_partner(parts[b], parts[a])
        forward, backward = retrieval_both(x.vectors, y.vectors, x.ids, y.ids)
        evaluation.results |= {f"{a}_to_{b}": forward, f"{b}_to_{a}": backward}
        if config.rerank and (a, b) == RERANKED:
            evaluation.reranked[f"{a}_to_{b}"] = rerank(run, (a, b), x, y, config, swap=False)
            evaluation.reranked[f"{b}_to_{a}"] = rerank(run, (a, b), x, y, config, swap=True)
    return evaluation


def first_stage_metrics(run: Run, data: AlignData, dataset: CaptionDataset, split: str) -> dict[str, float]:
    """Recalls and RSUM of embeddings alone: what is watched as training goes."""
    found = evaluate_split(run, data, dataset, split, EvalConfig(rerank=0)).metrics()
    return {name: value for name, value in found.items() if "R@" in name or name == "RSUM"}


def with_partner(part: Embedded, other: Embedded) -> Embedded:
    """The rows whose image also occurs in the other modality."""
    keep = torch.isin(part.ids, other.ids)
    if bool(keep.all()):
        return part
    return part.rows(keep.nonzero().squeeze(1))


def rerank(run: Run, pair: Pair, x: Embedded, y: Embedded, config: EvalConfig, swap: bool) -> RetrievalResult:
    """Score each query's `config.rerank` best again, jointly; with `swap` the second modality asks for the first."""
    queries, gallery = (y, x) if swap else (x, y)
    depth = min(config.rerank, len(gallery.ids))
    shortlist = top_k(queries.vectors, gallery.vectors, depth)[1]
    asking = torch.arange(len(shortlist)).repeat_interleave(depth)
    found: Tensor = shortlist.flatten()
    rows = (found, asking) if swap else (asking, found)
    scores = joint_scores(run, pair, x, y, rows, config.rerank_weights).view(len(shortlist), depth)
    return reranked(queries.vectors, gallery.vectors, queries.ids, gallery.ids, shortlist, scores)
