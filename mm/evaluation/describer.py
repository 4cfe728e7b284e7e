"""What a model writes of samples that were embedded, and where each word looked."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from encoders.tokenizer import Tokenizer
from eval.report.exhibits import AttentionMap
from mm.artifacts.run import Run
from mm.evaluation.embed import Embedded
from mm.infer.decoding import Decoding
from mm.infer.writing import TextWriter
from mm.model.attention_maps import written_attention_maps
from mm.model.causal import Condition


class Describer:
    """Describes the samples of a split; the trunks do not run a second time.

    Args:
        run: in evaluation mode.
        tokenizer: of its text encoder.
        parts: embeddings of the split, by modality.

    Raises:
        ValueError: the model does not write text.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer | None, parts: Mapping[str, Embedded]) -> None:
        self.run = run
        self.writer = TextWriter(run.model, tokenizer)
        self.parts = parts

    def write(self, modality: str, rows: Tensor, decoding: Decoding) -> list[str]:
        """A caption of each of rows (n,) of an embedded modality."""
        return self.writer.write([""] * len(rows), self.condition(modality, rows), decoding)

    @torch.inference_mode()
    def condition(self, modality: str, rows: Tensor) -> Condition:
        """What captions are written beside: rows (n,) of an embedded modality."""
        encoded = self.parts[modality].rows(rows).to(self.run.device).encoded
        return self.writer.writer.beside({modality: replace(encoded, tokens=encoded.tokens.float())})

    def look(self, row: int, caption: str, seen: Image, side: int) -> AttentionMap | None:
        """Where the words of a written caption looked in its image; None of an empty one.

        Args:
            row: of the image among those that were embedded.
            caption: that was written of it.
            seen: the image, as it was read.
            side: patches per side of it.
        """
        words = words_of(self.writer.tokenizer, caption)
        if not words:
            return None
        beside = self.condition("image", torch.tensor([row]))
        ids = torch.tensor([[self.writer.start, *self.writer.tokenizer.word_ids(caption)]], device=self.run.device)
        maps = written_attention_maps(self.writer.writer, ids, beside)[0].mean((0, 1))
        patches = maps[:, self.run.model.encoders["image"].bottleneck.prefix :]
        patches = patches / patches.sum(1, keepdim=True).clamp(min=1e-12)
        by_token = patches.unflatten(1, (side, side)).cpu().numpy()
        weights = []
        for _, tokens in words:
            # Token t stands at place t of the text and was written by what was read at t - 1.
            weights.append(by_token[tokens.start - 1 : tokens.stop - 1].mean(0))
        return AttentionMap(seen, [word for word, _ in words], np.stack(weights))


def words_of(tokenizer: Tokenizer, caption: str) -> list[tuple[str, slice]]:
    """The words of a caption, each with its tokens; those that were cut off are left out.

    Where words together do not make the tokens of the caption, each token stands for itself.
    """
    ids, mask = tokenizer([caption])
    real = ids[0][mask[0]].tolist()
    plain = tokenizer.word_ids(caption)
    if not plain or plain[0] not in real:
        return []
    place = real.index(plain[0])
    words = [(word, tokenizer.word_ids(word)) for word in caption.split()]
    if sum(len(tokens) for _, tokens in words) != len(plain):
        words = [(tokenizer.decode([token]) or "·", [token]) for token in plain]
    found = []
    for word, tokens in words:
        # Where a caption is cut, the end token stands in the place of the next word.
        if real[place : place + len(tokens)] != tokens:
            break
        if tokens:
            found.append((word, slice(place, place + len(tokens))))
        place += len(tokens)
    return found
