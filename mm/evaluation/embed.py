"""From a run and a split to numbers: embeddings of everything, and the joint head's scores of chosen pairs."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import register_dataclass, tree_map_only

from alignment import Pair, loss_weights
from alignment.fine_grained import paired_late_interaction
from alignment.progressive import name_of
from encoders import EncoderOutput
from kernels.collectives import Group, gather_objects, rank_and_size, sum_over_ranks
from kernels.errors import UserError
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.data.module import AlignData
from mm.data.views import EvalView
from mm.device import autocast, precision_name
from mm.evaluation.codes import code_counts
from mm.modalities import MODALITIES, pairs_of
from mm.model.encoding import select
from mm.model.multimodal import MatchInput, MultimodalModel
from mm.progress import followed

logger = logging.getLogger(__name__)
CPU = torch.device("cpu")


@dataclass
class Embedded:
    """One modality of a split, N rows, in the memory of the CPU: a split's tokens need not fit a GPU.

    Args:
        vectors: unit vectors (N, E) float32.
        tokens: unit vectors (N, T, P) for late interaction, bfloat16, of a run of fp32 float32.
        ids: (N,) int64, the image that each row belongs to.
        encoded: EncoderOutput of all rows, tokens (N, T, D), which the joint reading starts from.
    """

    vectors: Tensor
    tokens: Tensor
    ids: Tensor
    encoded: EncoderOutput

    def rows(self, rows: Tensor) -> "Embedded":
        """The rows at positions (n,) int64, which may recur."""
        vectors = self.vectors[rows]
        tokens = self.tokens[rows]
        ids = self.ids[rows]
        encoded = select(self.encoded, rows)
        return Embedded(vectors, tokens, ids, encoded)

    def to(self, device: torch.device) -> "Embedded":
        """All rows on a device."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), self)


register_dataclass(Embedded)


@dataclass
class SplitEmbeddings:
    """A split through a model.

    Args:
        parts: embeddings by modality.
        caption_ids: (C,) int64 of the captions that are not empty, parallel to the text's rows.
        code_counts: (Q, S) int64 by modality, how often each code of each quantizer was used.
        load: (layers, M, E), assignments per modality and expert.
    """

    parts: dict[str, Embedded]
    caption_ids: Tensor
    code_counts: dict[str, np.ndarray] = field(default_factory=dict)
    load: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The contents of embeddings.npz.

        Returns:
            unit vectors (N, E) by modality; `image_ids`, `caption_image_ids` and `audio_image_ids` (N,), the image of
            each of their rows; `caption_ids`. Modalities that the split lacks have no entry.
        """
        arrays = {}
        for modality, part in self.parts.items():
            arrays[modality] = part.vectors.numpy()
            arrays[MODALITIES[modality].ids] = part.ids.numpy()
        if "text" in self.parts:
            arrays["caption_ids"] = self.caption_ids.numpy()
        return arrays


@torch.no_grad()  # and not inference mode, in which FSDP2 gathers nothing
def embed_split(run: Run, data: AlignData, view: EvalView, split: str, group: Group = None) -> SplitEmbeddings:
    """Embed all images, audio clips and captions of a split, each modality alone.

    Args:
        run: its model is put into evaluation mode.
        data: makes the batches.
        view: of the split.
        split: names its cached features.
        group: whose ranks take a batch each, in turn; the model may be divided among them.

    Returns:
        SplitEmbeddings of the rows that are present: on every rank those of all batches, as one process has them.
    """
    run.eval()
    precision = run.config.train.precision
    logger.info("evaluating %s on %s in %s", split, run.device, precision_name(precision, run.device))
    kept = torch.float32 if precision == "fp32" else torch.bfloat16
    rows: dict[str, list[tuple[int, Embedded]]] = {}
    load: Tensor | float = 0.0
    for number, batch in _own_batches(data, view, split, run.config.eval.batch_size, group):
        batch = batch.to(run.device)
        with autocast(precision, run.device):
            output = run.model(batch, reconstruct=False)
        if number is None:
            continue
        load = load + output.load
        for modality, vectors in output.embeddings.items():
            present = batch.present[modality].nonzero().squeeze(1)
            tokens = output.tokens[modality][present].to(kept)
            encoded = select(output.encoded[modality], present)
            encoded.tokens = encoded.tokens.to(kept)
            part = Embedded(vectors[present].float(), tokens, batch.ids[present], encoded)
            rows.setdefault(modality, []).append((number, part.to(CPU)))
    parts = {}
    counts = {}
    for modality, found in _of_all_ranks(rows, group).items():
        parts[modality] = _concatenate(found)
        counts[modality] = count_codes(parts[modality].encoded, run.model, modality)
    total = sum_over_ranks(torch.as_tensor(load, device=run.device), group)
    embedded = torch.tensor([bool(caption) for caption in view.captions], dtype=torch.bool)
    return SplitEmbeddings(parts, view.caption_ids[embedded], counts, total.cpu().numpy())


def _own_batches(
    data: AlignData, view: EvalView, split: str, size: int, group: Group
) -> Iterator[tuple[int | None, Batch]]:
    """This rank's batches of a split's samples, then of its captions, while a line says how far they are.

    Every rank has as many, with its number: where they do not divide, some read the last one too, whose number is then
    None.
    """
    rank, ranks = rank_and_size(group)

    def turns(rows: int) -> tuple[list[int | None], list[int]]:
        count = math.ceil(rows / size)
        own = range(rank, math.ceil(count / ranks) * ranks, ranks)
        return [turn if turn < count else None for turn in own], [min(turn, count - 1) * size for turn in own]

    def batches() -> Iterator[tuple[int | None, Batch]]:
        numbers, starts = turns(len(view))
        yield from zip(numbers, data.sample_batches(view, split, size, starts), strict=False)
        numbers, starts = turns(len(view.captions))
        yield from zip(numbers, data.caption_batches(view, split, size, starts), strict=False)

    steps = math.ceil(len(view) / size / ranks) + math.ceil(len(view.captions) / size / ranks)
    yield from followed(batches(), f"evaluation: batches of {split}", steps)


def _of_all_ranks(rows: dict[str, list[tuple[int, Embedded]]], group: Group) -> dict[str, list[Embedded]]:
    """Embeddings by modality in the order of their batches' numbers, those of all ranks."""
    found: dict[str, list[tuple[int, Embedded]]] = {}
    for part in gather_objects(rows, group):
        for modality, numbered in part.items():
            found.setdefault(modality, []).extend(numbered)
    ordered = {}
    for modality in MODALITIES:
        if modality in found:
            ordered[modality] = [part for _, part in sorted(found[modality], key=itemgetter(0))]
    return ordered


def _concatenate(parts: Sequence[Embedded]) -> Embedded:
    """Embeddings one after another, shorter sequences padded.

    Token tensors of a run that is not of fp32 are in bf16: they are read under autocast anyway.
    """
    encoded = _concatenate_encoded([part.encoded for part in parts])
    vectors = torch.cat([part.vectors for part in parts])
    tokens = _padded([part.tokens for part in parts], 0)
    ids = torch.cat([part.ids for part in parts])
    return Embedded(vectors, tokens, ids, encoded)


def _concatenate_encoded(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """Encoder outputs one after another: tokens (N_i, T_i, D) -> (ΣN, max T, D), codes padded by -1."""
    tokens = _padded([part.tokens for part in parts], 0)
    codes = _padded([part.codes for part in parts], -1)
    mask = _padded([part.mask for part in parts], False)
    summary = torch.cat([part.summary for part in parts])
    term_masks = [part.term_mask for part in parts if part.term_mask is not None]
    term_mask = _padded(term_masks, False) if term_masks else None
    return EncoderOutput(tokens, codes, mask, summary, term_mask=term_mask)


def _padded(tensors: Sequence[Tensor], value: float) -> Tensor:
    """Tensors (N_i, T_i, …) -> (ΣN, max T, …), `value` behind the shorter ones."""
    longest = max(tensor.shape[1] for tensor in tensors)
    wide = []
    for tensor in tensors:
        missing = longest - tensor.shape[1]
        unchanged = (0, 0) * (tensor.ndim - 2)
        wide.append(pad(tensor, (*unchanged, 0, missing), value=value))
    return torch.cat(wide)


def count_codes(encoded: EncoderOutput, model: MultimodalModel, modality: str) -> np.ndarray:
    """How often each code was used at real tokens.

    Args:
        encoded: codes (N, T, Q) and mask (N, T).
        model: whose encoder made them.
        modality: of that encoder.

    Returns:
        (Q, S) int64; (0, 0) of a continuous bottleneck, which has no codes.
    """
    quantizer = model.encoders[modality].bottleneck.quantizer
    if quantizer is None:
        return np.zeros((0, 0), dtype=np.int64)
    return code_counts(encoded, quantizer.size).numpy()


@torch.inference_mode()
def joint_scores(
    run: Run,
    pair: Pair,
    left: Embedded,
    right: Embedded,
    rows: tuple[Tensor, Tensor],
    weights: tuple[float, float],
    batch_size: int = 256,
) -> Tensor:
    """Score pairs of samples by what was trained to tell them apart one by one.

    The score is the match logit, through cross-modal attention, plus `weights` times the logits of the embeddings and
    of late interaction (FILIP, Yao et al. 2022), at their learned scales: all three are log-odds up to a constant of
    the query. A term that the run did not train is left out. Pairs of similar length share a batch, so that little
    padding is computed, and one batch at a time is on the model's device.

    Args:
        run: its model is put into evaluation mode.
        pair: names of the left and the right modality.
        left: embeddings of the left modality, N rows.
        right: embeddings of the right modality, M rows.
        rows: positions (P,) int64 in `left` and (P,) in `right`.
        weights: of the embeddings' logit and of late interaction's.
        batch_size: pairs that are read at a time.

    Returns:
        scores (P,) float32, on the CPU.

    Raises:
        ValueError: the run trained neither matching nor late interaction.
    """
    run.eval()
    a, b = pair
    name = name_of(pair)
    matches, interacts = trained_scorers(run, pair)
    if not matches and not interacts:
        raise UserError(nothing_to_score_by(run, pair))
    contrastive_scale = weights[0] * run.loss.contrastive[name].scale
    filip_scale = weights[1] * run.loss.filip[name].scale
    left_rows, right_rows = rows
    scores = torch.empty(len(left_rows))
    lengths = left.encoded.mask.sum(1)[left_rows] + right.encoded.mask.sum(1)[right_rows]
    chunks = lengths.argsort().split(batch_size)
    for chunk in followed(chunks, f"evaluation: pairs of {a} and {b}", len(left_rows), batch_size):
        x = _trimmed(left.rows(left_rows[chunk])).to(run.device)
        y = _trimmed(right.rows(right_rows[chunk])).to(run.device)
        score = contrastive_scale * (x.vectors * y.vectors).sum(1)
        with autocast(run.config.train.precision, run.device):
            if matches:
                matched = run.model.match([MatchInput(a, b, x.encoded, y.encoded)])
                score = score + matched.logits[0].float()
            if interacts and weights[1]:
                late = paired_late_interaction(x.tokens, x.encoded.mask, y.tokens, y.encoded.mask)
                score = score + filip_scale * late
        scores[chunk] = score.cpu()
    return scores


def trained_scorers(run: Run, pair: Pair) -> tuple[bool, bool]:
    """Whether a run's training ended with matching of a pair of modalities, and with its late interaction."""
    trained = run.loss.term_weights(loss_weights(run.config.schedule, 1.0, pairs_of(run.model.modalities)))
    name = name_of(pair)
    return f"itm/{name}" in trained, f"filip/{name}" in trained


def nothing_to_score_by(run: Run, pair: Pair) -> str:
    """What is said of a run that cannot re-rank."""
    kind = run.config.schedule.kind
    return f"schedule.kind={kind} trains neither matching nor late interaction of {' and '.join(pair)}: not re-ranked"


def _trimmed(part: Embedded) -> Embedded:
    """Rows (N, T, …) without the columns that are padding in every row; the encoder's tokens float32."""
    encoded = part.encoded
    used = encoded.mask.any(0).nonzero()
    longest = int(used.max()) + 1 if len(used) else 1
    tokens = encoded.tokens[:, :longest].float()
    codes = encoded.codes[:, :longest]
    mask = encoded.mask[:, :longest]
    term_mask = None if encoded.term_mask is None else encoded.term_mask[:, :longest]
    shorter = EncoderOutput(tokens, codes, mask, encoded.summary, term_mask=term_mask)
    return Embedded(part.vectors, part.tokens[:, :longest], part.ids, shorter)
