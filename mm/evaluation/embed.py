"""From a run and a split to numbers: embeddings of everything, and the joint head's scores of chosen pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import pad

from alignment import Pair
from alignment.fine_grained import paired_late_interaction
from encoders import EncoderOutput
from kernels.dispatch import bf16_autocast
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.data.module import AlignData
from mm.data.views import EvalView
from mm.evaluation.codes import code_counts
from mm.modalities import MODALITIES
from mm.model.multimodal import MatchInput, MultimodalModel, select


@dataclass
class Embedded:
    """One modality of a split: vectors (N, E) and tokens (N, T, P) unit vectors, ids (N,) the image each row
    belongs to, encoded: EncoderOutput of all rows, what the joint head reads."""

    vectors: Tensor
    tokens: Tensor
    ids: Tensor
    encoded: EncoderOutput

    def rows(self, rows: Tensor) -> "Embedded":
        """Some of the rows (N,)."""
        return Embedded(self.vectors[rows], self.tokens[rows], self.ids[rows], select(self.encoded, rows))


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
        arrays = {}
        for modality, part in self.parts.items():
            arrays[modality] = part.vectors.numpy()
            arrays[MODALITIES[modality].ids] = part.ids.numpy()
        arrays["caption_ids"] = self.caption_ids.numpy()
        return arrays


@torch.inference_mode()
def embed_split(run: Run, data: AlignData, view: EvalView, split: str) -> SplitEmbeddings:
    """Embed all images, audio clips and captions of a split."""
    run.eval()
    rows: dict[str, list[Embedded]] = {}
    load: Tensor | float = 0.0
    for batch in _all_batches(data, view, split, run.config.eval.batch_size):
        batch = batch.to(run.device)
        with autocast(run.model):
            output = run.model(batch, reconstruct=False)
        load = load + output.load
        for modality, vectors in output.embeddings.items():
            kept = batch.present[modality].nonzero().squeeze(1)
            tokens = output.tokens[modality][kept].bfloat16()
            encoded = select(output.encoded[modality], kept)
            part = Embedded(vectors[kept].float(), tokens, batch.ids[kept], encoded)
            rows.setdefault(modality, []).append(part)
    parts = {modality: _concatenate(found) for modality, found in rows.items()}
    counts = {modality: count_codes(part.encoded, run.model, modality) for modality, part in parts.items()}
    assert isinstance(load, Tensor)
    return SplitEmbeddings(parts, view.caption_ids, counts, load.cpu().numpy())


def _all_batches(data: AlignData, view: EvalView, split: str, size: int) -> Iterator[Batch]:
    steps = -(-len(view) // size) - (-len(view.captions) // size)

    def batches() -> Iterator[Batch]:
        yield from data.sample_batches(view, split, size)
        yield from data.caption_batches(view, split, size)

    yield from track(batches(), f"embedding {split}", total=steps, transient=True, disable=steps < 8)


def autocast(model: MultimodalModel) -> torch.autocast:
    """The precision of evaluation, on the model's device."""
    return bf16_autocast(next(model.parameters()).device.type)


def _concatenate(parts: Sequence[Embedded]) -> Embedded:
    """Row-wise, shorter sequences padded. Token tensors are kept in bf16: they are read under autocast anyway."""
    encoded = [part.encoded for part in parts]
    term_masks = [e.term_mask for e in encoded if e.term_mask is not None]
    joined = EncoderOutput(
        _padded([e.tokens.bfloat16() for e in encoded], 0),
        _padded([e.codes for e in encoded], -1),
        _padded([e.mask for e in encoded], False),
        torch.cat([e.summary for e in encoded]),
        term_mask=_padded(term_masks, False) if term_masks else None,
    )
    vectors = torch.cat([part.vectors for part in parts]).cpu()
    tokens = _padded([part.tokens for part in parts], 0)
    ids = torch.cat([part.ids for part in parts]).cpu()
    return Embedded(vectors, tokens, ids, joined)


def _padded(tensors: Sequence[Tensor], value: float) -> Tensor:
    """(N_i, T_i, …) -> (ΣN, max T, …)."""
    longest = max(tensor.shape[1] for tensor in tensors)
    wide = []
    for tensor in tensors:
        behind = (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1])
        wide.append(pad(tensor, behind, value=value))
    return torch.cat(wide)


def count_codes(encoded: EncoderOutput, model: MultimodalModel, modality: str) -> np.ndarray:
    """How often each code was used: (Q, S). A continuous bottleneck has none: (0, 0)."""
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
    """Scores of pairs of samples, rows (P,) of the left and (P,) of the right side -> (P,) fp32.

    The match logit plus `weights` times the logits of the embeddings and of late interaction, at their learned scales:
    all three are log-odds up to a constant of the query. Pairs of like length go together, so that little padding is
    computed.
    """
    run.eval()
    a, b = pair
    contrastive_scale = weights[0] * run.loss.contrastive[f"{a}_{b}"].scale
    filip_scale = weights[1] * run.loss.filip[f"{a}_{b}"].scale
    scores = torch.empty(len(rows[0]))
    lengths = left.encoded.mask.sum(1)[rows[0]] + right.encoded.mask.sum(1)[rows[1]]
    chunks = lengths.argsort().split(batch_size)
    for chunk in track(chunks, f"matching {a} and {b}", transient=True, disable=len(chunks) < 16):
        x = left.rows(rows[0][chunk])
        y = right.rows(rows[1][chunk])
        with autocast(run.model):
            matched = run.model.match([MatchInput(a, b, _trimmed(x.encoded), _trimmed(y.encoded))])
            late = paired_late_interaction(x.tokens, x.encoded.mask, y.tokens, y.encoded.mask)
        score = matched.logits[0].float()
        cosine = (x.vectors * y.vectors).sum(1).to(score.device)
        scores[chunk] = (score + contrastive_scale * cosine + filip_scale * late).cpu()
    return scores


def _trimmed(encoded: EncoderOutput) -> EncoderOutput:
    """Without the columns that are padding in every row."""
    used = encoded.mask.any(0).nonzero()
    longest = int(used.max()) + 1 if len(used) else 1
    tokens = encoded.tokens[:, :longest].float()
    codes = encoded.codes[:, :longest]
    mask = encoded.mask[:, :longest]
    term_mask = None if encoded.term_mask is None else encoded.term_mask[:, :longest]
    return EncoderOutput(tokens, codes, mask, encoded.summary, term_mask=term_mask)
