"""Images of what a VQ-VAE's codes keep: inputs above, reconstructions below."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from encoders.text import Tokenizer
from mm.batch import Batch
from mm.model.multimodal import encode

DRAWN = ("image", "audio", "text")


@torch.inference_mode()
def draw_reconstructions(
    encoder: Any, modality: str, batch: Batch, folder: Path, tokenizer: Tokenizer | None = None
) -> Path | None:
    """Write reconstructions.png (for text also .txt) of a batch through a modality's Encoder; None where there is
    nothing to look at, as of a trunk that is decoded to features only."""
    if encoder.decodes_features or modality not in DRAWN:
        return None
    encoder.eval()
    batch = batch.to(next(encoder.parameters()).device)
    here = batch.present[modality]
    output = encode(encoder, batch, modality, rows=here)
    decoded = encoder.reconstruct(output.codes)
    inputs = batch.inputs[modality][here]
    path = folder / "reconstructions.png"
    if modality == "image":
        image_rows(inputs.cpu(), decoded.cpu()).save(path)
    elif modality == "audio":
        mel = encoder.log_mel(inputs)[..., : decoded.shape[-1]]
        real = output.mask.repeat_interleave(decoded.shape[-1] // output.mask.shape[1], 1)[:, None]
        decoded = decoded.masked_fill(~real, torch.nan)  # left white: the decoder says nothing about padding
        mel_rows(mel.cpu(), decoded.cpu(), encoder.log_mel.seconds_per_frame).savefig(path, dpi=100)
    else:
        assert tokenizer is not None
        pairs = []
        for said, read, real in zip(inputs, encoder.token_ids(decoded), output.mask, strict=True):
            pairs.append((tokenizer.decode(said[real].tolist()), tokenizer.decode(read[real].tolist())))
        caption_rows(pairs).savefig(path, dpi=100)
        path.with_suffix(".txt").write_text("".join(f"{said}\n  {read}\n" for said, read in pairs))
    return path


def image_rows(inputs: Tensor, decoded: Tensor, zoom: int = 2, gap: int = 4) -> Image.Image:
    """inputs (N, 3, H, W) uint8, decoded (N, 3, H, W) in 0..1 -> one image of two rows."""
    shown = torch.stack([inputs.float() / 255, decoded.float()])
    shown = shown.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    framed = torch.nn.functional.pad(shown, (gap, gap, gap, gap), value=1.0)
    sheet = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())


def mel_rows(mel: Tensor, decoded: Tensor, seconds_per_frame: float) -> Figure:
    """mel, decoded (N, mels, frames), one colour scale for all."""
    figure = Figure(figsize=(3 * len(mel), 4.5), layout="constrained")
    axes = figure.subplots(2, len(mel), sharex=True, sharey=True, squeeze=False)
    low = float(mel.min())
    high = float(mel.max())
    extent = (0.0, mel.shape[-1] * seconds_per_frame, 0.0, float(mel.shape[1]))
    for row, (spectra, title) in enumerate(((mel, "log-mel"), (decoded, "reconstruction"))):
        for axis, spectrum in zip(axes[row], spectra, strict=True):
            axis.imshow(spectrum.float().numpy(), origin="lower", aspect="auto", vmin=low, vmax=high, extent=extent)
        axes[row, 0].set_ylabel(f"{title}\nmel band")
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    return figure


def caption_rows(pairs: list[tuple[str, str]]) -> Figure:
    """(caption, reconstruction) pairs: a table with what differs in red."""
    figure = Figure(figsize=(11, 0.5 * len(pairs) + 0.4))
    for i, (caption, read) in enumerate(pairs):
        top = 1 - (i + 0.6) / (len(pairs) + 0.4)
        figure.text(0.01, top, caption, family="monospace", size=9)
        color = "tab:green" if read == caption else "tab:red"
        figure.text(0.01, top - 0.4 / len(pairs), read, family="monospace", size=9, color=color)
    return figure
