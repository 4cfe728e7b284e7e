"""From a model and a split to numbers: embeddings of everything, and the joint head's scores of a shortlist."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from alignment import ProgressiveAlignment
from alignment.fine_grained import paired_late_interaction
from encoders import EncoderOutput
from kernels.dispatch import bf16_autocast
from mm.batch import Batch
from mm.data.collate import EvalView
from mm.data.module import AlignData
from mm.model.multimodal import MultimodalModel, select


@dataclass
class Embedded:
    """One modality of a split: vectors (N, E) and tokens (N, T, P) unit vectors, ids (N,) the image each row
    belongs to, encoded: EncoderOutput of all rows, what the joint head reads."""

    vectors: Tensor
    tokens: Tensor
    ids: Tensor
    encoded: EncoderOutput


@dataclass
class SplitEmbeddings:
    """A split through a model: Embedded by modality, caption_ids (M,), code_counts[m] (Q, S), expert load
    (layers, M, E)."""

    parts: dict[str, Embedded]
    caption_ids: Tensor
    code_counts: dict[str, np.ndarray] = field(default_factory=dict)
    load: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The contract of embeddings.npz: image, text, image_ids, caption_image_ids, caption_ids, optional audio,
        audio_image_ids."""
        names = {"image": "image_ids", "text": "caption_image_ids", "audio": "audio_image_ids"}
        out = {m: part.vectors.numpy() for m, part in self.parts.items()}
        out |= {names[m]: part.ids.numpy() for m, part in self.parts.items()}
        return {**out, "caption_ids": self.caption_ids.numpy()}


@torch.inference_mode()
def embed_split(
    model: MultimodalModel, data: AlignData, view: EvalView, split: str, batch_size: int
) -> SplitEmbeddings:
    """Embed all images, audio clips and captions of a split."""
    model.eval()
    rows: dict[str, list[Embedded]] = {}
    load: Tensor | float = 0.0
    for batch in _all_batches(data, view, split, batch_size):
        batch = batch.to(next(model.parameters()).device)
        with autocast(model):
            output = model(batch, reconstruct=False)
        load = load + output.load
        for m, vectors in output.embeddings.items():
            kept = batch.present[m].nonzero().squeeze(1)
            part = Embedded(
                vectors[kept].float(),
                output.tokens[m][kept].bfloat16(),
                batch.ids[kept],
                select(output.encoded[m], kept),
            )
            rows.setdefault(m, []).append(part)
    parts = {m: _concatenate(found) for m, found in rows.items()}
    counts = {m: count_codes(part.encoded, model, m) for m, part in parts.items()}
    assert isinstance(load, Tensor)
    return SplitEmbeddings(parts, view.caption_ids, counts, load.cpu().numpy())


def _all_batches(data: AlignData, view: EvalView, split: str, size: int) -> Iterable[Batch]:
    steps = -(-len(view) // size) - (-len(view.captions) // size)

    def batches() -> Iterable[Batch]:
        yield from data.image_batches(view, split, size)
        yield from data.caption_batches(view, split, size)

    return track(batches(), f"embedding {split}", total=steps, transient=True, disable=steps < 8)


def autocast(model: MultimodalModel) -> torch.autocast:
    return bf16_autocast(next(model.parameters()).device.type)


def _concatenate(parts: list[Embedded]) -> Embedded:
    """Row-wise, shorter sequences padded. Token tensors are kept in bf16: they are read under autocast anyway."""
    longest = max(p.tokens.shape[1] for p in parts)

    def pad(x: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, longest - x.shape[1]), value=value)

    term_mask = [p.encoded.term_mask for p in parts if p.encoded.term_mask is not None]
    encoded = EncoderOutput(
        torch.cat([pad(p.encoded.tokens.bfloat16(), 0) for p in parts]),
        torch.cat([pad(p.encoded.codes, -1) for p in parts]),
        torch.cat([pad(p.encoded.mask, False) for p in parts]),
        torch.cat([p.encoded.summary for p in parts]),
        term_mask=torch.cat([pad(m, False) for m in term_mask]) if term_mask else None,
    )
    tokens = torch.cat([pad(p.tokens, 0) for p in parts])
    return Embedded(
        torch.cat([p.vectors for p in parts]).cpu(), tokens, torch.cat([p.ids for p in parts]).cpu(), encoded
    )


def count_codes(encoded: EncoderOutput, model: MultimodalModel, modality: str) -> np.ndarray:
    """How often each code was used: (Q, S). A continuous bottleneck has none: (0, 0)."""
    quantizer = model.encoders[modality].bottleneck.quantizer
    if quantizer is None:
        return np.zeros((0, 0), dtype=np.int64)
    codes = encoded.codes[encoded.mask]
    counts = [torch.bincount(codes[:, q], minlength=quantizer.size) for q in range(codes.shape[1])]
    return torch.stack(counts).cpu().numpy()


@torch.inference_mode()
def joint_scores(
    model: MultimodalModel,
    loss: ProgressiveAlignment,
    a: str,
    b: str,
    left: Embedded,
    right: Embedded,
    rows: Tensor,
    columns: Tensor,
    weights: tuple[float, float],
    batch_size: int = 256,
) -> Tensor:
    """Scores of the pairs (rows[i] of a, columns[i] of b): rows (P,), columns (P,) -> (P,) fp32.

    The match logit plus `weights` times the logits of the embeddings and of late interaction, at their learned scales:
    all three are log-odds up to a constant of the query. Pairs of like length go together, so that little padding is
    computed.
    """
    model.eval()
    name = f"{a}_{b}"
    global_scale, late_scale = weights[0] * loss.contrastive[name].scale, weights[1] * loss.filip[name].scale
    out = torch.empty(len(rows))
    order = (left.encoded.mask.sum(1)[rows] + right.encoded.mask.sum(1)[columns]).argsort()
    chunks = order.split(batch_size)
    for chunk in track(chunks, f"matching {a} and {b}", transient=True, disable=len(chunks) < 16):
        i, j = rows[chunk], columns[chunk]
        x, y = _trimmed(select(left.encoded, i)), _trimmed(select(right.encoded, j))
        with autocast(model):
            score = model.match(a, b, x, y).logits.float()
            late = paired_late_interaction(left.tokens[i], left.encoded.mask[i], right.tokens[j], right.encoded.mask[j])
        cosine = (left.vectors[i] * right.vectors[j]).sum(1).to(score.device)
        out[chunk] = (score + global_scale * cosine + late_scale * late).cpu()
    return out


def _trimmed(encoded: EncoderOutput) -> EncoderOutput:
    """Without the columns that are padding in every row."""
    used = encoded.mask.any(0).nonzero()
    longest = int(used.max()) + 1 if len(used) else 1
    tokens, codes, mask = (x[:, :longest] for x in (encoded.tokens, encoded.codes, encoded.mask))
    term_mask = None if encoded.term_mask is None else encoded.term_mask[:, :longest]
    return EncoderOutput(tokens.float(), codes, mask, encoded.summary, term_mask=term_mask)
