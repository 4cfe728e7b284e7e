"""A finished run in five lines: images, audio and text to unit vectors and codes, and how well an image and a text
match.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from encoders import EncoderOutput
from encoders.state import weights_digest
from encoders.trunks import original
from kernels.errors import UserError
from mm.artifacts.run import Run, load_run
from mm.batch import Batch
from mm.config import encoders_of
from mm.infer import base
from mm.infer.base import BaseEmbedder
from mm.infer.decoding import Decoding
from mm.infer.inputs import Inputs, one_of, text_inputs
from mm.infer.processor import Processor
from mm.infer.writing import TextWriter, paired_prefixes
from mm.model.encoding import select
from mm.model.multimodal import MatchInput


class Embedder(BaseEmbedder):
    """A finished run behind its processor: raw inputs to unit vectors, codes and match scores.

    Args:
        run: config, model and loss; it is put into evaluation mode.
        name: of the run, for messages and for indexes.
    """

    def __init__(self, run: Run, name: str = "the run") -> None:
        super().__init__(name, run.model.modalities, run.config.model.embedding)
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
        return cls(load_run(folder), str(folder))

    def match(self, image: Any, text: Any) -> Tensor:
        """Score pairs of images and texts through cross-modal attention.

        Args:
            image: one image or a list of N, as `encode_image` takes them.
            text: one string or a list of N; one beside a list is paired with each of it.

        Returns:
            log-odds float32, () of one pair, (N,) of N, on the CPU; `torch.sigmoid` makes probabilities of them.

        Raises:
            ValueError: there are not as many images as texts.
        """
        images = self.inputs("image", image)
        texts = self.inputs("text", text)
        counts = [len(inputs) for inputs in (images, texts) if not inputs.single] or [1]
        if len(set(counts)) > 1:
            raise UserError(f"{counts[0]} images and {counts[1]} texts: matching takes them in pairs")
        left = self._encoded("image", images, counts[0])
        right = self._encoded("text", texts, counts[0])
        logits = []
        with torch.inference_mode():
            for x, y in zip(left, right, strict=True):
                matched = self.run.model.match([MatchInput("image", "text", x, y)])
                logits.append(matched.logits[0].float().cpu())
        found = torch.cat(logits)
        return found[0] if images.single and texts.single else found

    def generate(
        self, *, image: Any = None, audio: Any = None, prefix: Any = "", decoding: Decoding | None = None
    ) -> Any:
        """Write text: a caption of an image or of a sound, or what follows a prefix.

        Args:
            image: one image or a list of N, as `encode_image` takes them.
            audio: one audio clip or a list of N, as `encode_audio` takes them.
            prefix: what the text begins with; one string for all, or a list of N. Needed where nothing is described.
            decoding: how tokens are chosen; the likeliest unless it says otherwise.

        Returns:
            a string of one input, a list of N strings of a list; prefixes included.

        Raises:
            ValueError: the model does not write text or read that modality, both modalities are given, or a prefix is
                empty where it is needed, or longer than the model's context.
        """
        writer = TextWriter(self.run.model, self.processor.tokenizer)
        decoding = decoding or Decoding()
        if image is None and audio is None:
            if prefix == "":
                raise UserError("there is nothing to describe or to go on from: give image, audio or prefix")
            given = text_inputs(prefix)
            texts = writer.write(given.items, None, decoding)
            return texts[0] if given.single else texts
        modality, described = one_of(image=image, audio=audio)
        inputs = self.inputs(modality, described)
        batches = (batch.to(self.run.device) for batch in self.batches(modality, inputs))
        condition = writer.condition(batches, modality)
        texts = writer.write(paired_prefixes(prefix, len(inputs)), condition, decoding)
        return texts[0] if inputs.single else texts

    def codes(self, *, image: Any = None, audio: Any = None, text: Any = None) -> Tensor:
        """Quantize inputs of one modality, see `BaseEmbedder.codes`.

        Raises:
            ValueError: not exactly one modality is given, or its bottleneck is continuous.
        """
        modality, given = one_of(image=image, audio=audio, text=text)
        inputs = self.inputs(modality, given)
        if self.run.model.encoders[modality].bottleneck.quantizer is None:
            raise UserError(f"{self.name} has no codes of {modality}: its bottleneck is continuous")
        with torch.inference_mode():
            found = [encoded.codes.cpu() for encoded in self._encoded(modality, inputs, len(inputs))]
        longest = max(codes.shape[1] for codes in found)
        wide = [pad(codes, (0, 0, 0, longest - codes.shape[1]), value=-1) for codes in found]
        codes = torch.cat(wide)
        return codes[0] if inputs.single else codes

    def read(self, modality: str, item: Any) -> Any:
        """Read one image or audio clip as a batch of one row; a string stays one."""
        if modality == "text":
            return item
        batch = self.processor.images([item]) if modality == "image" else self.processor.audio([item])
        if not batch.present[modality].all():
            raise UserError(f"{item} holds no {modality}")
        return batch

    def stack(self, modality: str, rows: list[Any]) -> Batch:
        """N strings, or batches of one row -> Batch of N rows."""
        if modality == "text":
            return self.processor.text(rows)
        batch = Batch(torch.arange(len(rows)))
        inputs = torch.cat([row.inputs[modality] for row in rows])
        masks = [row.masks[modality] for row in rows if modality in row.masks]
        batch.put(modality, inputs, torch.cat(masks) if masks else None)
        return batch

    def vectors(self, modality: str, batch: Batch) -> Tensor:
        """Batch of N rows -> unit vectors (N, E)."""
        output = self.run.model(batch.to(self.run.device), reconstruct=False)
        return output.embeddings[modality]

    def _encoded(self, modality: str, inputs: Inputs, count: int) -> Iterator[EncoderOutput]:
        """Inputs through their encoder alone, `count` rows in batches; a single input is encoded once and repeated."""
        encoded = None
        for batch in self.batches(modality, inputs):
            encoded = self.run.model.encode(batch.to(self.run.device), modality, reconstruct=False)
            if not inputs.single:
                yield encoded
        if inputs.single:
            assert encoded is not None  # inputs are never empty
            for start in range(0, count, base.ROWS):
                rows = min(base.ROWS, count - start)
                yield select(encoded, torch.zeros(rows, dtype=torch.int64, device=self.run.device))

    def _digest(self) -> str:
        """Of the weights, and of the settings by which inputs are read."""
        settings = {modality: reader.settings() for modality, reader in self.processor.readers.items()}
        encoders = self.processor.encoders
        trunks = {modality: original(encoder.trunk) for modality, encoder in encoders.items()}
        read = {"readers": settings, "trunks": trunks, "tokens": getattr(encoders.get("text"), "max_tokens", None)}
        content = json.dumps([weights_digest(self.run.model), read], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
