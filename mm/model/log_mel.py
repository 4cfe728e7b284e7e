"""The log-mel image without a Fourier transform: engines have none, or one that is less exact than a product."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from encoders.audio import SMALLEST_POWER, LogMel


class LogMelByProducts(nn.Module):
    """waveform (B, S) -> log-mel (B, mels, S // hop), as `encoders.audio.LogMel` with the transform as a convolution.

    Args:
        log_mel: whose window, hop and bands it has.
    """

    waves: Tensor
    bands: Tensor

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.hop = log_mel.hop
        self.seconds_per_frame = log_mel.seconds_per_frame
        window = log_mel.spectrogram.window.double()
        size = len(window)
        self.padding = size // 2
        frequencies = size // 2 + 1
        angle = torch.outer(torch.arange(frequencies), torch.arange(size)).double() * (2 * math.pi / size)
        waves = torch.cat([angle.cos(), -angle.sin()]) * window
        self.register_buffer("waves", waves.float()[:, None])
        # (mels, F) for both halves: the power of a frequency is the sum of two squares.
        bands = log_mel.mel_scale.fb.T
        self.register_buffer("bands", torch.cat([bands, bands], 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform (B, S) in [-1, 1] -> log-mel (B, mels, S // hop)."""
        padded = pad(waveform.float()[:, None], (self.padding, self.padding), mode="reflect")
        power = conv1d(padded, self.waves, stride=self.hop).square()
        mel = self.bands @ power
        log_mel = (mel + SMALLEST_POWER).log()
        return (log_mel[..., :-1] + 4) / 4
