"""What a report shows of a run beside its figures: examples, reconstructions, code maps, attention.

All of it comes from the embeddings that were evaluated and from a few samples that are read again; the trunks do not
run a second time.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from encoders import EncoderOutput
from eval.diagnostics import Diagnostics
from eval.report.cards import Examples
from eval.report.exhibits import AttentionMap, CodeMap, Exhibits, Form, Material, Reconstruction
from eval.report.media import Clip
from mm.artifacts.run import Run
from mm.data.dataset import CaptionDataset
from mm.data.media import encode_audio, pil_image
from mm.data.module import AlignData
from mm.device import autocast
from mm.evaluation.describer import Describer, words_of
from mm.evaluation.embed import Embedded, SplitEmbeddings
from mm.evaluation.reconstructions import caption_pairs
from mm.infer.decoding import Decoding
from mm.modalities import MODALITIES
from mm.model.attention_maps import attends_across, cross_attention_maps
from mm.model.encoding import select
from mm.model.multimodal import MatchInput
from mm.readers import LARGEST_SAMPLE, resized

DECODED = 6
"""Samples of each modality that are reconstructed."""
MAPPED = 64
"""Images whose codes are compared."""
ATTENDED = 3
"""Captions whose attention is shown."""
WRITTEN = 2
"""Best and worst images, of each so many, that the model describes."""
DECODING = Decoding(beams=3)
"""How it does."""
ROWS = 256
"""Images that are compared with all captions at a time."""
LARGEST = 640
"""Pixels per side of an image that is cut into patches."""


def material_of(run: Run, data: AlignData, dataset: CaptionDataset, embeddings: SplitEmbeddings) -> Material:
    """Everything that a report shows of a split through a run.

    Args:
        run: its model is put into evaluation mode.
        data: which reads the split.
        dataset: the split.
        embeddings: of the split.
    """
    run.eval()
    arrays = embeddings.arrays()
    shower = Shower(run, data, dataset, embeddings)
    examples = replace(examples_of(dataset, arrays), clip=shower.clip)
    return Material(arrays, diagnostics_of(embeddings), examples, shower.exhibits())


def diagnostics_of(embeddings: SplitEmbeddings) -> Diagnostics:
    """Counts by modality; a continuous bottleneck has no codes, a backbone without layers no experts."""
    load = embeddings.load
    assert load is not None
    codes = {m: counts for m, counts in embeddings.code_counts.items() if counts.size}
    order = list(MODALITIES)
    experts = {m: load[:, order.index(m)] for m in embeddings.parts} if len(load) else {}
    return Diagnostics(codes, experts)


def examples_of(dataset: CaptionDataset, arrays: Mapping[str, np.ndarray]) -> Examples:
    """All captions that were embedded, and any embedded image by its id.

    Args:
        dataset: the split.
        arrays: of its embeddings.npz; a run embeds no empty caption, another model may.
    """
    position = dict(zip(dataset.image_ids, range(len(dataset)), strict=True))
    captions: list[str] = []
    for several in dataset.captions:
        captions += several
    if len(captions) != len(arrays.get("text", ())):
        captions = [caption for caption in captions if caption]
    embedded = set(arrays["image_ids"].tolist()) if "image_ids" in arrays else set()

    def thumbnail(image_id: int) -> Image | None:
        image = dataset[position[image_id]].image if image_id in embedded else None
        return None if image is None else pil_image(image)

    def described(image_id: int) -> str:
        return next(iter(dataset.captions[position[image_id]]), "")

    return Examples(captions, thumbnail, described)


class Shower:
    """Makes the exhibits of a split through a run.

    Args:
        run: in evaluation mode.
        data: which reads the split.
        dataset: the split.
        embeddings: of the split.
    """

    def __init__(self, run: Run, data: AlignData, dataset: CaptionDataset, embeddings: SplitEmbeddings) -> None:
        self.run = run
        self.data = data
        self.dataset = dataset
        self.parts = embeddings.parts
        self.position = dict(zip(dataset.image_ids, range(len(dataset)), strict=True))

    def exhibits(self) -> Exhibits:
        """All there are, and why others are not."""
        absent: dict[str, str] = {}
        reconstructions = {}
        for modality in self.parts:
            reason = self.undecoded(modality)
            if reason:
                absent[f"Reconstructions of {modality}"] = reason
            else:
                reconstructions[modality] = self.reconstructions(modality)
        maps: list[CodeMap] = []
        attention: list[AttentionMap] = []
        written: list[AttentionMap] = []
        for title, reason in (
            ("Which patches share a code", self.unmapped()),
            ("Where words look", self.unattended()),
            ("What it writes", self.unwritten()),
        ):
            if reason:
                absent[title] = reason
        if not self.unmapped():
            maps = self.code_maps()
        if not self.unattended():
            attention = self.attention()
        if not self.unwritten():
            written = self.written()
        return Exhibits(reconstructions, maps, attention, written, absent)

    def clip(self, image_id: int) -> Clip | None:
        """The audio of an image as the model hears it."""
        row = self.row("audio", image_id)
        if row is None:
            return None
        waveform = row.astype(np.float32) / LARGEST_SAMPLE
        reader = self.data.readers["audio"]
        encoder = self.run.model.encoders["audio"]
        mel = encoder.log_mel(torch.from_numpy(waveform)[None].to(self.run.device))[0]
        rate = reader.sample_rate  # type: ignore[attr-defined]  # of AudioReader
        return Clip(encode_audio(waveform, rate, "flac"), "audio/flac", mel.cpu().numpy())

    def row(self, modality: str, image_id: int) -> np.ndarray | None:
        """What the reader of audio or images makes of an image's sample; None where it lacks the modality."""
        if modality not in self.data.readers or image_id not in self.position:
            return None
        reader = self.data.readers[modality]
        decoded = reader.decode(self.dataset[self.position[image_id]])
        return None if decoded is None else reader.evaluate(decoded)

    def undecoded(self, modality: str) -> str:
        """Why nothing is decoded from the codes of a modality; empty where something is."""
        encoder = self.run.model.encoders[modality]
        if encoder.bottleneck.quantizer is None:
            return "the bottleneck is continuous: it has no codes"
        if encoder.decodes_features:
            return "its trunk is pretrained, so that features are decoded, which cannot be looked at"
        return ""

    @torch.inference_mode()
    def reconstructions(self, modality: str) -> list[Reconstruction]:
        """A few samples of a modality, spread over the split, beside what is decoded from their codes."""
        part = self.parts[modality]
        rows = spread(len(part.ids), DECODED)
        encoder = self.run.model.encoders[modality]
        encoded = select(part.encoded, rows)
        decoded = encoder.reconstruct(encoded.codes.clamp(min=0).to(self.run.device)).float()
        if modality == "text":
            return self.decoded_captions(rows, encoder.token_ids(decoded).cpu(), encoded.mask)
        ids = part.ids[rows].tolist()
        given = [self.row(modality, image_id) for image_id in ids]
        found = []
        for number, row in enumerate(given):
            assert row is not None  # its codes were found
            found.append(Reconstruction(*self.forms(modality, row, decoded[number], encoded.mask[number])))
        return found

    def forms(self, modality: str, row: np.ndarray, decoded: Tensor, mask: Tensor) -> tuple[Form, Form]:
        """An input and its reconstruction, as images or as spectrograms."""
        if modality == "image":
            return pil_image(torch.as_tensor(row)), pil_image((255 * decoded).round().to(torch.uint8).cpu())
        encoder = self.run.model.encoders[modality]
        inputs, _ = self.data.readers[modality].stack([row])
        # The decoder is not trained on padding, which comes last.
        frames = int(mask.sum()) * decoded.shape[-1] // len(mask)
        mel = encoder.log_mel(inputs.to(self.run.device))[0]
        return mel[:, :frames].cpu().numpy(), decoded[:, :frames].cpu().numpy()

    def decoded_captions(self, rows: Tensor, ids: Tensor, mask: Tensor) -> list[Reconstruction]:
        """Captions as their tokens say them, beside what is decoded."""
        tokenizer = self.data.tokenizer
        assert tokenizer is not None  # of a model that reads text
        found = []
        captions = examples_of(self.dataset, {"text": self.parts["text"].ids.numpy()}).captions
        for row, decoded, real in zip(rows.tolist(), ids, mask, strict=True):
            own, own_mask = tokenizer([captions[row]])
            length = int(own_mask.sum())
            pairs = caption_pairs(tokenizer, own[:, :length], decoded[None, :length], real[None, :length])
            found.append(Reconstruction(*pairs[0]))
        return found

    def grid_side(self) -> int:
        """Patches per side of an image; 0 where its tokens are no square grid."""
        encoder = self.run.model.encoders["image"]
        tokens = self.parts["image"].encoded.mask.shape[1] - encoder.bottleneck.prefix
        side = math.isqrt(tokens)
        return side if side * side == tokens else 0

    def unmapped(self) -> str:
        """Why no codes are drawn over images; empty where they are."""
        if "image" not in self.parts:
            return "the model reads no images, or the split has none"
        if self.run.model.encoders["image"].bottleneck.quantizer is None:
            return "the bottleneck is continuous: it has no codes"
        return "" if self.grid_side() else "the tokens of an image are no square grid"

    def code_maps(self) -> list[CodeMap]:
        """Images with the codes of the first quantizer, spread over the split."""
        part = self.parts["image"]
        rows = spread(len(part.ids), MAPPED)
        side = self.grid_side()
        prefix = self.run.model.encoders["image"].bottleneck.prefix
        found = []
        for row in rows.tolist():
            image = self.as_read(int(part.ids[row]))
            codes = part.encoded.codes[row, prefix:, 0].view(side, side)
            if image is not None:
                found.append(CodeMap(image, codes.numpy()))
        return found

    def as_read(self, image_id: int) -> Image | None:
        """The part of an image that the model reads, at its own aspect."""
        pixels = self.dataset[self.position[image_id]].image
        if pixels is None:
            return None
        if self.data.encoders["image"].fit == "crop":
            pixels = resized(pixels, min(pixels.shape[1:]), "crop")
        image = pil_image(pixels)
        image.thumbnail((LARGEST, LARGEST))
        return image

    def unattended(self) -> str:
        """Why no attention is shown; empty where it is."""
        if not {"image", "text"} <= self.parts.keys():
            return "it takes images and captions"
        if not attends_across(self.run.model):
            kind = self.run.config.schedule.kind
            return f"cross-modal attention is as it was initialised, at zero: the schedule ({kind}) never trained it"
        return "" if self.grid_side() else "the tokens of an image are no square grid"

    def attention(self) -> list[AttentionMap]:
        """Captions with their own images, spread over the split."""
        image, text = self.parts["image"], self.parts["text"]
        captions = examples_of(self.dataset, {"text": text.ids.numpy()}).captions
        tokenizer = self.data.tokenizer
        assert tokenizer is not None  # of a model that reads text
        pairs = []
        for row in spread(len(text.ids), ATTENDED).tolist():
            own = (image.ids == text.ids[row]).nonzero().flatten().tolist()
            pairs += [(own[0], row)] if own else []
        found = []
        for image_row, text_row in pairs:
            shown = self.as_read(int(image.ids[image_row]))
            words = words_of(tokenizer, captions[text_row])
            if shown is None or not words:
                continue
            maps = self.token_maps(image_row, text_row)
            weights = np.stack([maps[tokens].mean(0) for _, tokens in words])
            found.append(AttentionMap(shown, [word for word, _ in words], weights))
        return found

    def token_maps(self, image_row: int, text_row: int) -> np.ndarray:
        """(T, side, side), how much each token of a caption attends to each patch of an image, mean over layers and
        heads; a token's sum to one over the patches."""
        left = self.encoded("image", image_row)
        right = self.encoded("text", text_row)
        with autocast(self.run.config.train.precision, self.run.device):
            weights = cross_attention_maps(self.run.model, MatchInput("image", "text", left, right))
        prefix = self.run.model.encoders["image"].bottleneck.prefix
        patches = weights[0].mean((0, 1))[:, prefix:]
        patches = patches / patches.sum(1, keepdim=True).clamp(min=1e-12)
        side = self.grid_side()
        return patches.unflatten(1, (side, side)).cpu().numpy()

    def unwritten(self) -> str:
        """Why no caption is written; empty where some are."""
        if self.run.model.causal is None:
            return "the model does not write text: model.generate=true trains it to"
        if not {"image", "text"} <= self.parts.keys():
            return "it takes images, and captions to find the best and the worst by"
        return "" if self.grid_side() else "the tokens of an image are no square grid"

    def written(self) -> list[AttentionMap]:
        """What the model writes of the images that it finds best and worst, and where each word looked."""
        describer = Describer(self.run, self.data.tokenizer, self.parts)
        image = self.parts["image"]
        margins = margins_of(image, self.parts["text"])
        order = margins.argsort(descending=True)[: int(margins.isfinite().sum())].tolist()
        worst = order[WRITTEN:][-WRITTEN:][::-1]
        chosen = [("Best", row) for row in order[:WRITTEN]] + [("Worst", row) for row in worst]
        captions = describer.write("image", torch.tensor([row for _, row in chosen], dtype=torch.int64), DECODING)
        found = []
        for (kind, row), caption in zip(chosen, captions, strict=True):
            shown = self.as_read(int(image.ids[row]))
            look = None if shown is None else describer.look(row, caption, shown, self.grid_side())
            if look is not None:
                found.append(replace(look, kind=kind))
        return found

    def encoded(self, modality: str, row: int) -> EncoderOutput:
        """One row of a modality, on the device, its tokens float32."""
        part = self.parts[modality].rows(torch.tensor([row])).to(self.run.device)
        return replace(part.encoded, tokens=part.encoded.tokens.float())


def spread(total: int, count: int) -> Tensor:
    """At most `count` of 0 .. total - 1 (int64), evenly, each the middle of its stretch."""
    count = min(count, total)
    return ((torch.arange(count) + 0.5) * total / max(count, 1)).long()


def margins_of(images: Embedded, captions: Embedded) -> Tensor:
    """By how much each image is nearer to the nearest of its captions than to any other, (N,); negative where another
    is nearer, -inf where it has none."""
    found = []
    for vectors, ids in zip(images.vectors.split(ROWS), images.ids.split(ROWS), strict=True):
        scores = vectors @ captions.vectors.T
        own = ids[:, None] == captions.ids
        wrong = scores.masked_fill(own, -1.0).amax(1)
        found.append(scores.masked_fill(~own, -torch.inf).amax(1) - wrong)
    return torch.cat(found)
