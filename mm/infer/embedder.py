"""A run in five lines: images, audio and text to unit vectors, and how well an image and a text match."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders import EncoderOutput
from mm.artifacts.run import Run, load_run
from mm.batch import Batch
from mm.config import encoders_of
from mm.device import choose_device
from mm.infer.processor import AudioInput, ImageInput, Processor
from mm.model.multimodal import MatchInput

ROWS = 64
"""Inputs that pass the model at a time."""


class Embedder:
    """A finished run behind its processor: raw inputs to unit vectors and match scores.

    Args:
        run: config, model and loss; it is put into evaluation mode.
    """

    def __init__(self, run: Run) -> None:
        self.run = run.eval()
        self.processor = Processor(encoders_of(run.config))

    @classmethod
    def load(cls, folder: str | Path) -> "Embedder":
        """Load a finished run, onto a GPU where there is one.

        Args:
            folder: of the run.

        Raises:
            ValueError: the folder holds no run that this code can load.
        """
        device = choose_device()
        return cls(load_run(folder).to(device))

    def encode_image(self, images: Sequence[ImageInput]) -> Tensor:
        """Embed images.

        Args:
            images: N PIL images, paths, or pixels (H, W, 3) uint8.

        Returns:
            unit vectors (N, E) float32, on the CPU.

        Raises:
            ValueError: an input is no image, or the run reads none.
        """
        return self._encode("image", images, self.processor.images)

    def encode_audio(self, clips: Sequence[AudioInput]) -> Tensor:
        """Embed audio clips.

        Args:
            clips: N paths, or pairs of a mono waveform (S,) in [-1, 1] and its rate in hertz.

        Returns:
            unit vectors (N, E) float32, on the CPU.

        Raises:
            ValueError: an input is no audio clip, or the run reads none.
        """
        return self._encode("audio", clips, self.processor.audio)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions.

        Args:
            captions: N strings.

        Returns:
            unit vectors (N, E) float32, on the CPU.

        Raises:
            ValueError: the run reads no text.
        """
        return self._encode("text", captions, self.processor.text)

    @torch.inference_mode()
    def match(self, images: Sequence[ImageInput], captions: Sequence[str]) -> Tensor:
        """Score pairs of images and captions through cross-modal attention.

        Args:
            images: N images, as `encode_image` takes them.
            captions: N strings, each beside its image.

        Returns:
            log-odds (N,) float32 that each image and its caption are a pair, on the CPU.

        Raises:
            ValueError: there are not as many images as captions.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images and {len(captions)} captions: matching takes them in pairs")
        logits = []
        for start in range(0, len(images), ROWS):
            rows = slice(start, start + ROWS)
            image_batch = self.processor.images(images[rows])
            left = self._encoder_output("image", image_batch)
            text_batch = self.processor.text(captions[rows])
            right = self._encoder_output("text", text_batch)
            pair = MatchInput("image", "text", left, right)
            matched = self.run.model.match([pair])
            logits.append(matched.logits[0].float().cpu())
        if not logits:
            return torch.empty(0)
        return torch.cat(logits)

    @torch.inference_mode()
    def _encode(self, modality: str, inputs: Sequence[Any], read: Callable[[Sequence[Any]], Batch]) -> Tensor:
        """N raw inputs of a modality, which `read` makes batches of -> unit vectors (N, E) float32."""
        if isinstance(inputs, str | Path):
            raise ValueError(f"encode_{modality} takes a list: put {str(inputs)!r} into one")
        vectors = []
        for start in range(0, len(inputs), ROWS):
            batch = read(inputs[start : start + ROWS])
            output = self.run.model(batch.to(self.run.device), reconstruct=False)
            embeddings = output.embeddings[modality]
            vectors.append(embeddings.float().cpu())
        if not vectors:
            return torch.empty(0, self.run.config.model.embedding)
        return torch.cat(vectors)

    def _encoder_output(self, modality: str, batch: Batch) -> EncoderOutput:
        """One modality of a batch through its encoder alone, tokens (N, T, D)."""
        return self.run.model.encode(batch.to(self.run.device), modality, reconstruct=False)
