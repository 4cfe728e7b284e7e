"""Drawings of what a VQ-VAE's codes keep: inputs above, reconstructions below."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from encoders.tokenizer import Tokenizer
from mm.batch import Batch
from mm.model.encoding import encode

DPI = 100
"""Dots per inch of figures."""
DRAWN = ("image", "audio", "text")
"""Modalities whose decoded form can be drawn."""


@torch.inference_mode()
def draw_reconstructions(
    encoder: Any, modality: str, batch: Batch, folder: Path, tokenizer: Tokenizer | None = None
) -> Path | None:
    """Write reconstructions.png (of text also reconstructions.txt): inputs beside what is decoded from their codes.

    Args:
        encoder: of the modality; it is put into evaluation mode.
        modality: its name.
        batch: samples to draw; those without the modality are skipped.
        folder: where the file goes.
        tokenizer: of captions, needed for text.

    Returns:
        the path, or None where nothing can be drawn, as of a trunk that is decoded to features only.
    """
    if encoder.decodes_features or modality not in DRAWN:
        return None
    encoder.eval()
    device = next(encoder.parameters()).device
    batch = batch.to(device)
    present = batch.present[modality]
    output = encode(encoder, batch, modality, rows=present)
    decoded = encoder.reconstruct(output.codes)
    inputs = batch.inputs[modality][present]
    path = folder / "reconstructions.png"
    if modality == "image":
        image = image_rows(inputs.cpu(), decoded.cpu())
        image.save(path)
    elif modality == "audio":
        figure = audio_figure(encoder, inputs, decoded, output.mask)
        figure.savefig(path, dpi=DPI)
    else:
        assert tokenizer is not None
        pairs = caption_pairs(tokenizer, inputs, encoder.token_ids(decoded), output.mask)
        figure = caption_rows(pairs)
        figure.savefig(path, dpi=DPI)
        lines = [f"{caption}\n  {read}\n" for caption, read in pairs]
        path.with_suffix(".txt").write_text("".join(lines))
    return path


def audio_figure(encoder: Any, waveforms: Tensor, decoded: Tensor, mask: Tensor) -> Figure:
    """Draw log-mel spectrograms above their reconstructions; padding is white, for the decoder is not trained on it.

    Args:
        encoder: an AudioEncoder.
        waveforms: inputs (N, S) in [-1, 1].
        decoded: log-mel (N, mels, frames).
        mask: (N, T) bool, True where a token is real.
    """
    frames = decoded.shape[-1]
    frames_per_token = frames // mask.shape[1]
    mel = encoder.log_mel(waveforms)[..., :frames]
    real = mask.repeat_interleave(frames_per_token, 1)[:, None]
    decoded = decoded.masked_fill(~real, torch.nan)
    return mel_rows(mel.cpu(), decoded.cpu(), encoder.log_mel.seconds_per_frame)


def caption_pairs(tokenizer: Tokenizer, ids: Tensor, decoded: Tensor, mask: Tensor) -> list[tuple[str, str]]:
    """Decode the real tokens of captions and of their reconstructions.

    Args:
        tokenizer: that made the ids.
        ids: of the captions (N, L) int64.
        decoded: ids of the reconstructions (N, L) int64.
        mask: (N, L) bool, True where a token is real.

    Returns:
        N pairs of caption and reconstruction.
    """
    pairs = []
    for own, other, real in zip(ids, decoded, mask, strict=True):
        caption = tokenizer.decode(own[real].tolist())
        read = tokenizer.decode(other[real].tolist())
        pairs.append((caption, read))
    return pairs


def image_rows(inputs: Tensor, decoded: Tensor, zoom: int = 2, gap: int = 4) -> Image.Image:
    """Draw N images in one row, and their reconstructions in a row below.

    Args:
        inputs: (N, 3, H, W) uint8.
        decoded: (N, 3, H, W) in 0..1.
        zoom: pixels of the drawing per pixel and side.
        gap: white pixels around each image.
    """
    shown = torch.stack([inputs.float() / 255, decoded.float()])
    shown = shown.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    framed = torch.nn.functional.pad(shown, (gap, gap, gap, gap), value=1.0)
    # (2, N, 3, H, W) -> (2·H, N·W, 3)
    sheet = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = (sheet * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def mel_rows(mel: Tensor, decoded: Tensor, seconds_per_frame: float) -> Figure:
    """Draw N log-mel spectrograms in one row, and their reconstructions below, on one colour scale.

    Args:
        mel: (N, mels, frames).
        decoded: (N, mels, frames); NaN is left white.
        seconds_per_frame: scales the time axis.
    """
    figure = Figure(figsize=(3 * len(mel), 4.5), layout="constrained")
    axes = figure.subplots(2, len(mel), sharex=True, sharey=True, squeeze=False)
    low = float(mel.min())
    high = float(mel.max())
    seconds = mel.shape[-1] * seconds_per_frame
    bands = float(mel.shape[1])
    extent = (0.0, seconds, 0.0, bands)
    titled = (("log-mel", mel), ("reconstruction", decoded))
    for row, (title, spectra) in zip(axes, titled, strict=True):
        for axis, spectrum in zip(row, spectra, strict=True):
            pixels = spectrum.float().numpy()
            axis.imshow(pixels, origin="lower", aspect="auto", vmin=low, vmax=high, extent=extent)
        row[0].set_ylabel(f"{title}\nmel band")
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    return figure


def caption_rows(pairs: list[tuple[str, str]]) -> Figure:
    """Draw captions with their reconstructions below, green where both are equal and red where not.

    Args:
        pairs: N pairs of caption and reconstruction.
    """
    figure = Figure(figsize=(11, 0.5 * len(pairs) + 0.4))
    left = 0.01
    for number, (caption, read) in enumerate(pairs):
        top = 1 - (number + 0.6) / (len(pairs) + 0.4)
        below = top - 0.4 / len(pairs)
        color = "tab:green" if read == caption else "tab:red"
        figure.text(left, top, caption, family="monospace", size=9)
        figure.text(left, below, read, family="monospace", size=9, color=color)
    return figure
