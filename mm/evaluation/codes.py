"""What the codes of a VQ-VAE keep of a split."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from encoders import Encoder, EncoderOutput
from mm.batch import Batch
from mm.model.encoding import encode


@torch.inference_mode()
def evaluate_codes(encoder: Encoder, modality: str, batches: Iterable[Batch]) -> dict[str, float]:
    """Evaluate what the codes keep of a split.

    Args:
        encoder: of the modality; it is put into evaluation mode.
        modality: its name.
        batches: of the split.

    Returns:
        `reconstruction`, the decoder's loss; `image/psnr` in dB, over pixels in 0..1; `text/token_accuracy` in percent;
        `tokens_per_sample`; and the figures of `utilization`, of the whole split's codes.
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
        tokens = output.mask.sum(1).float()
        found["tokens_per_sample"] = float(tokens.mean())
        size = len(output.mask)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value * size
        rows += size
    metrics = {name: value / max(1, rows) for name, value in sums.items()}
    if "image/pixel_error" in metrics:
        error = max(metrics["image/pixel_error"], 1e-12)
        metrics["image/psnr"] = -10 * math.log10(error)
    return metrics | utilization(counts)


def utilization(counts: Tensor) -> dict[str, float]:
    """How evenly the codes of Q quantizers are used.

    Args:
        counts: (Q, S), how often each of S codes was used.

    Returns:
        `perplexity` and `used_codes`, means over quantizers, of `codes` = S; `bits_per_token`, the entropy of the
        codes, an upper bound of what a token carries; its own bound `bits_per_token_fixed` = Q · log2 S.
    """
    depth, size = counts.shape
    total = counts.sum(1, keepdim=True).clamp(min=1)
    share = counts / total
    entropy = torch.special.entr(share).sum(1)
    used = (counts > 0).sum(1).float()
    return {
        "perplexity": float(entropy.exp().mean()),
        "used_codes": float(used.mean()),
        "codes": float(size),
        "bits_per_token": float(entropy.sum() / math.log(2)),
        "bits_per_token_fixed": depth * math.log2(size),
    }


def code_counts(encoded: EncoderOutput, size: int) -> Tensor:
    """How often each code was chosen at real tokens.

    Args:
        encoded: codes (N, T, Q) and mask (N, T).
        size: S, the number of codes of each quantizer.

    Returns:
        (Q, S) int64, on the CPU.
    """
    codes = encoded.codes[encoded.mask]
    counts = [torch.bincount(chosen, minlength=size) for chosen in codes.T]
    return torch.stack(counts).cpu()


def fidelity(encoder: Encoder, modality: str, batch: Batch, output: EncoderOutput) -> dict[str, float]:
    """The quality of reconstructions in the modality's own units.

    Args:
        encoder: of the modality.
        modality: its name.
        batch: N samples, n of which have the modality.
        output: of these n samples, codes (n, T, Q).

    Returns:
        `image/pixel_error`, mean squared, of pixels in 0..1; `text/token_accuracy` in percent; nothing for another
        modality or for a decoder of features.
    """
    if modality not in ("image", "text"):
        return {}
    if modality == "image" and encoder.decodes_features:
        return {}
    inputs = batch.inputs[modality][batch.present[modality]]
    decoded = encoder.reconstruct(output.codes)
    if modality == "text":
        ids = encoder.token_ids(decoded)  # type: ignore[operator]  # of TextEncoder
        right = (ids == inputs)[output.mask]
        return {"text/token_accuracy": 100 * float(right.float().mean())}
    pixels = inputs.float() / 255
    error = (decoded - pixels).square().mean()
    return {"image/pixel_error": float(error)}
