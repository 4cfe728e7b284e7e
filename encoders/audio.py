"""Audio VQ-VAE: waveform -> log-mel -> trunk -> codes -> log-mel."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.trunks import TimmTrunk
from encoders.vqvae import Bottleneck, BottleneckConfig, Encoder, FeatureDecoder, first_rows
from kernels.collectives import joint_mean, step_group
from kernels.errors import UserError
from kernels.ranges import check_ranges

MELS = 64
"""Bands of the log-mel image."""
WINDOW_SECONDS = 0.025
"""Length of an analysis window."""
HOP_SECONDS = 0.01
"""Time between the starts of two windows."""
SMALLEST_POWER = 1e-5
"""Added to a band's power before its logarithm."""
SILENCE = (math.log(SMALLEST_POWER) + 4) / 4
"""A band of the log-mel image in which there is nothing."""


@dataclass(frozen=True)
class AudioConfig:
    """The audio encoder."""

    trunk: str = "scratch"
    """scratch | timm/<name>, an image model that reads the log-mel image."""
    weights: str | None = None
    """Local file for the trunk (safetensors)."""
    frozen: bool = False
    """A frozen trunk is not trained and its features are cached on disk."""
    sample_rate: Annotated[int, "[1, inf)"] = 16000
    """Hertz. Audio clips recorded at another rate are resampled."""
    seconds: Annotated[float, "(0, inf)"] = 1.76
    """Clips are cut or padded to this length."""
    width: Annotated[int, "[1, inf)"] = 128
    """Width of the scratch trunk."""
    depth: Annotated[int, "[0, inf)"] = 1
    """Blocks of the scratch trunk."""

    def __post_init__(self) -> None:
        check_ranges(self, "audio")
        if self.hop < 1 or self.seconds * self.sample_rate < self.window:
            raise UserError(
                f"audio.seconds={self.seconds} at audio.sample_rate={self.sample_rate} must hold at least one window of"
                f" {WINDOW_SECONDS} seconds"
            )

    @property
    def window(self) -> int:
        """Samples per analysis window."""
        return round(WINDOW_SECONDS * self.sample_rate)

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return round(HOP_SECONDS * self.sample_rate)


class LogMel(nn.Module):
    """waveform (B, S) -> log-mel (B, mels, frames), about zero mean and unit variance.

    Args:
        config: rate, window and hop.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        import torchaudio

        self.hop = config.hop
        self.seconds_per_frame = config.hop / config.sample_rate
        transforms = torchaudio.transforms
        frequencies = config.window // 2 + 1
        # torchaudio checks its constants by value, which the meta device does not have.
        with torch.device("cpu"):
            self.spectrogram = transforms.Spectrogram(config.window, hop_length=config.hop, power=None)
            self.mel_scale = transforms.MelScale(MELS, config.sample_rate, n_stft=frequencies)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """waveform (B, S) in [-1, 1] -> log-mel (B, mels, S // hop), without gradients."""
        # Squared magnitudes span more decades than bf16's mantissa resolves: they stay fp32 under autocast.
        with torch.autocast(waveform.device.type, enabled=False):
            # torchaudio's power=2 squares a magnitude, whose root costs more than the Fourier transform.
            spectrum = self.spectrogram(waveform.float())
            power = spectrum.real.square()
            power.addcmul_(spectrum.imag, spectrum.imag)
            mel = self.mel_scale(power)
            log_mel = (mel + SMALLEST_POWER).log()
            return (log_mel[..., :-1] + 4) / 4


class MelTrunk(Trunk):
    """From scratch: log-mel (B, mels, frames) -> tokens (B, frames / 8, F).

    Three strided 1-D convolutions, then residual blocks.

    Args:
        mels: bands of the log-mel image.
        width: F, of a token.
        depth: number of blocks.
    """

    stride = 8

    def __init__(self, mels: int, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(
            nn.Conv1d(mels, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(*(MelBlock(width) for _ in range(depth)))

    def forward(self, mel: Tensor) -> Tensor:
        """log-mel (B, mels, frames) -> tokens (B, frames / 8, F)."""
        x = self.stem(mel).transpose(1, 2)
        return self.blocks(x)


class MelBlock(nn.Module):
    """(B, T, F) -> (B, T, F): a width-3 convolution over time inside a residual MLP.

    Args:
        width: F, of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F)."""
        y = self.norm(x).transpose(1, 2)
        y = self.mix(y).transpose(1, 2)
        return x + self.project(nn.functional.gelu(y))


class AudioEncoder(Encoder):
    """waveform (B, S) float32 in [-1, 1] -> EncoderOutput with tokens (B, T, D).

    Args:
        config: trunk, rate and length.
        bottleneck: quantizer and bypass.
        width: D, the backbone's width.

    Raises:
        ValueError: there is no such trunk.
    """

    def __init__(self, config: AudioConfig, bottleneck: BottleneckConfig, width: int) -> None:
        super().__init__()
        if config.trunk != "scratch" and not config.trunk.startswith("timm/"):
            raise UserError(f"audio.trunk={config.trunk!r}: use scratch or timm/<name>")
        self.frozen_trunk = config.frozen
        self.decoded_rows = bottleneck.reconstruct
        self.log_mel = LogMel(config)
        frames = int(config.seconds * config.sample_rate) // config.hop
        if config.trunk == "scratch":
            frames -= frames % MelTrunk.stride
            self.trunk: Trunk = MelTrunk(MELS, config.width, config.depth)
            tokens = frames // MelTrunk.stride
        else:
            name = config.trunk.removeprefix("timm/")
            self.trunk = TimmTrunk(name, (MELS, frames), config.weights, channels=1)
            frames = self.trunk.size[1]
            tokens = self.trunk.tokens
        self.frames = frames
        self.samples = max(frames * config.hop, round(config.seconds * config.sample_rate))
        self.bottleneck = Bottleneck(bottleneck, self.trunk.width, width, tokens, self.trunk.prefix)
        self.decoder: nn.Module | None = None
        if bottleneck.mode != "continuous":
            code_width = bottleneck.quantizer.width
            if isinstance(self.trunk, MelTrunk):
                self.decoder = MelDecoder(code_width)
            else:
                self.decoder = FeatureDecoder(code_width, self.trunk.width)
        self.freeze_trunk_if_asked()

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        """Waveforms -> features of the trunk; a token is real if any of its samples is.

        Args:
            inputs: waveforms (B, S) in [-1, 1].
            mask: (B, S) bool, True where a sample is real; None where all are.

        Returns:
            Features (B, T, F).
        """
        waveform, real = self.whole_clip(inputs, mask)
        mel = self.log_mel(waveform)[..., : self.frames]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            if isinstance(self.trunk, TimmTrunk):
                bands = self.trunk.size[0] - MELS
                image = nn.functional.pad(mel, (0, 0, 0, bands), value=SILENCE)
                tokens = self.trunk(image[:, None]).tokens
                return Features(tokens, self.image_mask(self.trunk, real))
            tokens = self.trunk(mel)
        return Features(tokens, self.token_mask(tokens.shape[1], real))

    def whole_clip(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Waveforms at the encoder's full length, silent where a sample is not real: what stands in the padding, and
        how much of it there is, then changes nothing.

        Args:
            inputs: (B, S).
            mask: (B, S) bool, True where a sample is real; None where all are.

        Returns:
            waveforms (B, S') and how many of the samples of each are real (B,).
        """
        if mask is None:
            mask = torch.ones_like(inputs, dtype=torch.bool)
        missing = max(self.samples - inputs.shape[1], 0)
        return nn.functional.pad(inputs.where(mask, 0), (0, missing)), mask.sum(1)

    def image_mask(self, trunk: TimmTrunk, samples: Tensor) -> Tensor:
        """Which tokens of an image model hold a real sample: prefix tokens if there is any, of the grid by its columns.

        Args:
            trunk: the image model, whose columns are times.
            samples: (B,), real ones.

        Returns:
            (B, P + T) bool.
        """
        rows, columns = trunk.grid
        real = self.token_mask(columns, samples)
        prefix = (samples > 0)[:, None].expand(-1, trunk.prefix)
        return torch.cat([prefix, real.repeat(1, rows)], 1)

    def token_mask(self, tokens: int, samples: Tensor) -> Tensor:
        """Which of equal parts of the clip hold a real sample.

        Args:
            tokens: T, how many parts.
            samples: (B,), real ones.

        Returns:
            (B, T) bool.
        """
        starts = torch.arange(tokens, device=samples.device) * (self.frames * self.log_mel.hop / tokens)
        return starts < samples[:, None]

    def reconstruction(self, vectors: Tensor, features: Features, target: Tensor, mask: Tensor | None) -> Tensor:
        """The mean squared error of the log-mel at real frames, in training of all ranks' first `decoded_rows` clips.

        Args:
            vectors: code vectors (B, T, C).
            features: of the trunk, for their mask.
            target: waveforms (B, S).
            mask: (B, S) bool, True where a sample is real; None where all are.

        Returns:
            ().
        """
        assert self.decoder is not None
        rows, real_tokens = first_rows(self.decoded_rows if self.training else None, features.mask)
        waveform, _ = self.whole_clip(target[rows], None if mask is None else mask[rows])
        mel = self.log_mel(waveform)[..., : self.frames]
        decoded = self.decoder(vectors[rows]).float()
        error = (decoded - mel).square().mean(1)
        real = real_tokens.repeat_interleave(MelTrunk.stride, 1)
        return joint_mean((error * real).sum(), real.sum(), step_group())

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> log-mel (B, mels, 8T), or trunk features (B, T, F) when the trunk is pretrained."""
        if self.decoder is None:
            raise ValueError("a continuous bottleneck has no decoder: bottleneck.mode=both or vq has one")
        vectors = self.bottleneck.lookup(codes)
        return self.decoder(vectors)


class MelDecoder(nn.Module):
    """Code vectors (B, T, C) -> log-mel (B, mels, 8T).

    Args:
        code_width: C, of a code vector.
        width: of the hidden layer.
    """

    def __init__(self, code_width: int, width: int = 256) -> None:
        super().__init__()
        self.mix = nn.Conv1d(code_width, width, 3, padding=1)
        self.frames = nn.Linear(width, MelTrunk.stride * MELS)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, T, C) -> (B, mels, 8T)."""
        x = self.mix(vectors.transpose(1, 2))
        x = nn.functional.gelu(x).transpose(1, 2)
        # (B, T, 8·mels) -> (B, 8T, mels)
        frames = self.frames(x).unflatten(2, (MelTrunk.stride, MELS)).flatten(1, 2)
        return frames.transpose(1, 2)
