"""What the codes of a VQ-VAE keep of a split."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from encoders import Encoder, EncoderOutput
from mm.batch import Batch
from mm.model.multimodal import encode


@torch.inference_mode()
def evaluate_codes(encoder: Encoder, modality: str, batches: Iterable[Batch]) -> dict[str, float]:
    """What the codes keep of a split, in evaluation mode.

    reconstruction: the decoder's loss · image/psnr: dB, over pixels in 0..1 · text/token_accuracy: percent.
    perplexity and used codes (mean over the Q quantizers, of S) are of the whole split's codes; bits_per_token is the
    entropy of those codes, an upper bound of what a token carries, and at most bits_per_token_fixed = Q · log2 S.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    quantizer = encoder.bottleneck.quantizer
    assert quantizer is not None
    counts = torch.zeros(quantizer.depth, quantizer.size)
    sums: dict[str, float] = {}
    rows = 0
    for batch in batches:
        batch = batch.to(device)
        output = encode(encoder, batch, modality, rows=batch.present[modality])
        counts += code_counts(output, quantizer.size)
        found = {"reconstruction": float(output.losses["reconstruction"])}
        found |= fidelity(encoder, modality, batch, output)
        found["tokens_per_sample"] = float(output.mask.sum(1).float().mean())
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value * len(output.mask)
        rows += len(output.mask)
    metrics = {name: value / max(1, rows) for name, value in sums.items()}
    if "image/pixel_error" in metrics:
        metrics["image/psnr"] = -10 * math.log10(max(metrics["image/pixel_error"], 1e-12))
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(1)
    return metrics | {
        "perplexity": float(entropy.exp().mean()),
        "used_codes": float((counts > 0).sum(1).float().mean()),
        "codes": float(quantizer.size),
        "bits_per_token": float(entropy.sum() / math.log(2)),
        "bits_per_token_fixed": quantizer.depth * math.log2(quantizer.size),
    }


def code_counts(encoded: EncoderOutput, size: int) -> Tensor:
    """How often each of `size` codes was chosen at real tokens: (Q, S) int64."""
    codes = encoded.codes[encoded.mask]
    return torch.stack([torch.bincount(chosen, minlength=size) for chosen in codes.T]).cpu()


def fidelity(encoder: Encoder, modality: str, batch: Batch, output: EncoderOutput) -> dict[str, float]:
    """The reconstruction in the modality's own terms, where it has them: error of pixels in 0..1, right tokens in %."""
    if modality not in ("image", "text") or (modality == "image" and encoder.decodes_features):
        return {}
    inputs = batch.inputs[modality][batch.present[modality]]
    decoded = encoder.reconstruct(output.codes)
    if modality == "text":
        ids = encoder.token_ids(decoded)  # type: ignore[operator]  # of TextEncoder
        right = (ids == inputs)[output.mask]
        return {"text/token_accuracy": 100 * float(right.float().mean())}
    pixels = inputs.float() / 255
    return {"image/pixel_error": float((decoded - pixels).square().mean())}
