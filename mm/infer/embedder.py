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
from mm.infer.processor import AudioInput, ImageInput, Processor
from mm.model.multimodal import MatchInput

ROWS = 64
"""Inputs that pass the model at a time."""


class Embedder:
    """A finished run behind its processor. `run` is what it holds."""

    def __init__(self, run: Run) -> None:
        self.run = run.eval()
        self.processor = Processor(encoders_of(run.config))

    @classmethod
    def load(cls, folder: str | Path) -> "Embedder":
        """Raises ValueError, naming the folder, where it holds no run that this code can load."""
        return cls(load_run(folder))

    def encode_image(self, images: Sequence[ImageInput]) -> Tensor:
        """N images -> unit vectors (N, E) float32."""
        return self._encode("image", images, self.processor.images)

    def encode_audio(self, clips: Sequence[AudioInput]) -> Tensor:
        """N audio clips -> unit vectors (N, E) float32."""
        return self._encode("audio", clips, self.processor.audio)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """N captions -> unit vectors (N, E) float32."""
        return self._encode("text", captions, self.processor.text)

    @torch.inference_mode()
    def match(self, images: Sequence[ImageInput], captions: Sequence[str]) -> Tensor:
        """N images and N captions -> log-odds (N,) float32 that each image and its caption are a pair."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images and {len(captions)} captions: matching takes them in pairs")
        logits = []
        for start in range(0, len(images), ROWS):
            left = self._encoder_output("image", self.processor.images(images[start : start + ROWS]))
            right = self._encoder_output("text", self.processor.text(captions[start : start + ROWS]))
            matched = self.run.model.match([MatchInput("image", "text", left, right)])
            logits.append(matched.logits[0].float().cpu())
        return torch.cat(logits) if logits else torch.empty(0)

    @torch.inference_mode()
    def _encode(self, modality: str, inputs: Sequence[Any], read: Callable[[Sequence[Any]], Batch]) -> Tensor:
        if isinstance(inputs, str | Path):
            raise ValueError(f"encode_{modality} takes a list: put {str(inputs)!r} into one")
        vectors = []
        for start in range(0, len(inputs), ROWS):
            batch = read(inputs[start : start + ROWS]).to(self.run.device)
            output = self.run.model(batch, reconstruct=False)
            vectors.append(output.embeddings[modality].float().cpu())
        if not vectors:
            return torch.empty(0, self.run.config.model.embedding)
        return torch.cat(vectors)

    def _encoder_output(self, modality: str, batch: Batch) -> EncoderOutput:
        return self.run.model.encode(batch.to(self.run.device), modality, reconstruct=False)
