"""A split's retrieval in every direction, first by embeddings alone, then re-ranked pair by pair."""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignment import Pair
from eval.retrieval import RetrievalResult, reranked, retrieval_both, rsum, top_k
from kernels.collectives import Group
from kernels.errors import UserError
from mm.artifacts.run import Run
from mm.config import EvalConfig
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.evaluation.embed import (
    Embedded,
    SplitEmbeddings,
    embed_split,
    joint_scores,
    nothing_to_score_by,
    trained_scorers,
)
from mm.modalities import pairs_of

logger = logging.getLogger(__name__)
RERANKED: Pair = ("image", "text")
"""The pair that is scored again jointly."""


@dataclass
class Evaluation:
    """The retrieval of a split.

    Args:
        embeddings: of the split.
        results: by direction, such as "image_to_text", of the embeddings alone.
        reranked: by direction, after the shortlists were scored jointly.
    """

    embeddings: SplitEmbeddings
    results: dict[str, RetrievalResult] = field(default_factory=dict)
    reranked: dict[str, RetrievalResult] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """All figures by name.

        Returns:
            `image_to_text/R@1` and so on for every direction, in percent; the sum `RSUM` of the six image-text recalls;
            both again under `reranked/`.
        """
        found: dict[str, float] = {}
        for prefix, results in (("", self.results), ("reranked/", self.reranked)):
            for direction, result in results.items():
                found |= result.metrics(f"{prefix}{direction}/")
            if "image_to_text" in results:
                found[f"{prefix}RSUM"] = rsum(results["image_to_text"], results["text_to_image"])
        return found


def evaluate_split(
    run: Run, data: AlignData, dataset: CaptionDataset, split: str, config: EvalConfig, group: Group = None
) -> Evaluation:
    """Embed a split and evaluate every pair of modalities that any of its samples has, both ways.

    Args:
        run: its model and loss.
        data: makes the batches.
        dataset: the split.
        split: names its cached features.
        config: depth and weights of re-ranking.
        group: whose ranks embed it together.

    Raises:
        ValueError: no sample has two of the model's modalities.
    """
    view = data.eval_view(dataset)
    return evaluate_embedded(run, embed_split(run, data, view, split, group), dataset.name, config)


def evaluate_embedded(run: Run, embeddings: SplitEmbeddings, name: str, config: EvalConfig) -> Evaluation:
    """Evaluate every pair of modalities that any sample of a split has, both ways.

    Args:
        run: its model and loss.
        embeddings: of the split.
        name: of the split, for an error.
        config: depth and weights of re-ranking.

    Raises:
        ValueError: no sample has two of the model's modalities.
    """
    evaluation = Evaluation(embeddings)
    parts = embeddings.parts
    for a, b in pairs_of(parts):
        # A row without a partner has no right answer: an image without audio is no query for audio.
        x = with_partner(parts[a], parts[b])
        y = with_partner(parts[b], parts[a])
        if not len(x.ids):
            continue
        forward, backward = retrieval_both(x.vectors.to(run.device), y.vectors.to(run.device), x.ids, y.ids)
        evaluation.results[f"{a}_to_{b}"] = forward
        evaluation.results[f"{b}_to_{a}"] = backward
        if not config.rerank or (a, b) != RERANKED:
            continue
        if any(trained_scorers(run, RERANKED)):
            evaluation.reranked[f"{a}_to_{b}"] = rerank(run, (a, b), x, y, config, swap=False)
            evaluation.reranked[f"{b}_to_{a}"] = rerank(run, (a, b), x, y, config, swap=True)
        else:
            logger.warning("%s", nothing_to_score_by(run, RERANKED))
    if not evaluation.results:
        raise UserError(f"{name}: no sample has two of {', '.join(run.model.modalities)} to retrieve between")
    return evaluation


def first_stage_metrics(
    run: Run, data: AlignData, dataset: CaptionDataset, split: str, group: Group = None
) -> dict[str, float]:
    """Recalls and RSUM of embeddings alone, without re-ranking, to be logged during training.

    Args:
        run: its model and loss.
        data: makes the batches.
        dataset: the split.
        split: names its cached features.
        group: whose ranks embed it together.

    Returns:
        figures by name, in percent.
    """
    config = EvalConfig(rerank=0)
    evaluation = evaluate_split(run, data, dataset, split, config, group)
    found = {}
    for name, value in evaluation.metrics().items():
        if "R@" in name or name == "RSUM":
            found[name] = value
    return found


def with_partner(part: Embedded, other: Embedded) -> Embedded:
    """The rows of one modality whose image also occurs in the other one."""
    keep = torch.isin(part.ids, other.ids)
    if bool(keep.all()):
        return part
    return part.rows(keep.nonzero().squeeze(1))


def rerank(run: Run, pair: Pair, x: Embedded, y: Embedded, config: EvalConfig, swap: bool) -> RetrievalResult:
    """Score each query's best candidates again, see `joint_scores`.

    Args:
        run: its model and loss.
        pair: names of the first and the second modality.
        x: embeddings of the first modality.
        y: embeddings of the second modality.
        config: how many candidates are scored, and the weights of their logits.
        swap: whether the second modality queries the first.
    """
    queries, gallery = (y, x) if swap else (x, y)
    depth = min(config.rerank, len(gallery.ids))
    asking = queries.vectors.to(run.device)
    asked = gallery.vectors.to(run.device)
    shortlist = top_k(asking, asked, depth)[1].cpu()
    query_rows = torch.arange(len(shortlist)).repeat_interleave(depth)
    gallery_rows: Tensor = shortlist.flatten()
    rows = (gallery_rows, query_rows) if swap else (query_rows, gallery_rows)
    scores = joint_scores(run, pair, x, y, rows, config.rerank_weights)
    scores = scores.view(len(shortlist), depth)
    return reranked(asking, asked, queries.ids, gallery.ids, shortlist, scores)
