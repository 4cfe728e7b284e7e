"""From samples on disk to the batch a model is fed.

`TrainView` and `EvalView` turn a dataset's position into a decoded `Example`; `Collate` stacks examples into a `Batch`.
Every random choice is a pure function of (seed, epoch, index): workers, caching and resuming change nothing.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mm.batch import Batch, CaptionDataset, Sample
from mm.data.media import resample

logger = logging.getLogger(__name__)
CACHE_BYTES = 4 << 30
"""How much decoded images and audio a view with `cache` keeps in memory."""
Tokenizer = Callable[[list[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Augment:
    """What training does to an image. Mirroring is off: captions name left and right."""

    crop_scale: float = 0.6
    """Smallest share of the image's area that a random crop keeps; 1 means no crop."""
    crop_ratio: float = 4 / 3
    """Largest stretch of a crop's aspect, and 1 over it the smallest."""
    flip: bool = False
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1 or self.crop_ratio < 1:
            raise ValueError(f"augment: crop_scale must lie in (0, 1] and crop_ratio be at least 1, got {self}")


@dataclass(frozen=True)
class Example:
    """One decoded image with some of its captions: image (3, H, W) uint8, audio (S,) int16 with S what there is of it.

    An absent image is zeros with `has_image` False; absent audio is an empty `audio`, or None where the whole split
    has no audio. `audio_samples` is the length that a batch is padded to.
    """

    index: int
    image_id: int
    captions: tuple[str, ...]
    image: Tensor | None
    has_image: bool
    audio: Tensor | None
    audio_samples: int


class _View:
    """Decodes a dataset's samples to uint8 images and int16 audio at one rate, keeping them if `cache`."""

    def __init__(
        self,
        dataset: CaptionDataset,
        *,
        image_size: int,
        audio_seconds: float,
        sample_rate: int,
        cache: bool,
        fit: Literal["crop", "squash"],
        unreadable: Literal["error", "skip"],
        decode: Collection[str],
    ) -> None:
        if image_size < 1 or audio_seconds < 0 or sample_rate < 1:
            raise ValueError(
                f"image_size, audio_seconds and sample_rate must be positive, "
                f"got {image_size}, {audio_seconds}, {sample_rate}"
            )
        self.dataset, self.image_size, self.sample_rate = dataset, image_size, sample_rate
        self.audio_samples = round(audio_seconds * sample_rate)
        self.fit, self.unreadable = fit, unreadable
        self.decode = frozenset(decode) & dataset.modalities
        self._cache: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
        self._cache_left = CACHE_BYTES if cache else 0

    def __len__(self) -> int:
        return len(self.dataset)

    def _decoded(self, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(image (H, W, 3) uint8, waveform (S,) int16 at `sample_rate`), whichever there is."""
        if not self.decode:
            return None, None
        if index in self._cache:
            return self._cache[index]
        decoded = self._decode(index)
        if self._cache_left > 0:
            self._cache[index] = decoded
            self._cache_left -= sum(part.nbytes for part in decoded if part is not None)
            if self._cache_left <= 0:
                logger.warning(
                    "%s: %d of %d samples fill the cache of %d GiB; the others are decoded anew each time",
                    self.dataset.name,
                    len(self._cache),
                    len(self),
                    CACHE_BYTES >> 30,
                )
        return decoded

    def _decode(self, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            sample = self.dataset[index]
        except ValueError as error:
            if self.unreadable == "error":
                raise
            logger.warning("%s: %s; the sample goes on without it", self.dataset.name, error)
            return None, None
        picture = sample.image if "image" in self.decode else None
        return None if picture is None else np.array(picture.convert("RGB")), self._waveform(sample)

    def _waveform(self, sample: Sample) -> np.ndarray | None:
        if sample.audio is None or not len(sample.audio) or not self.audio_samples or "audio" not in self.decode:
            return None
        waveform = resample(sample.audio, sample.sample_rate, self.sample_rate)
        return np.round(np.clip(waveform, -1.0, 1.0) * 32767).astype(np.int16)

    def _example(
        self, index: int, captions: tuple[str, ...], picture: np.ndarray | None, waveform: np.ndarray | None
    ) -> Example:
        image, audio = None, None
        if "image" in self.decode:
            size = self.image_size
            shown = np.zeros((size, size, 3), np.uint8) if picture is None else picture
            image = torch.from_numpy(shown).permute(2, 0, 1)
        if "audio" in self.decode and self.audio_samples:
            audio = torch.from_numpy(np.zeros(0, np.int16) if waveform is None else waveform)
        return Example(
            index, self.dataset.image_ids[index], captions, image, picture is not None, audio, self.audio_samples
        )


class TrainView(_View):
    """(index, epoch) -> Example with `captions` of the image's captions, a random crop and a random stretch of audio.

    Args:
        captions: how many, drawn without repetition while there are enough; an image without any has the empty one.
        limit_captions: of an image's captions, only the first so many are drawn; 0 for all.
        augment: None resizes only, as in evaluation.
        cache: keep up to CACHE_BYTES of decoded samples (without loader workers: each would hold its own).
        fit: without augmentation, "crop" keeps the aspect and cuts the centre, "squash" keeps everything.
        unreadable: "error" raises the one-line ValueError of a file that does not decode; "skip" logs it and the
            sample takes part without image and audio.
        decode: which of image and audio are wanted; what is skipped (its features are cached, say) is not decoded.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        *,
        image_size: int,
        augment: Augment | None = None,
        audio_seconds: float = 0.0,
        sample_rate: int = 16000,
        seed: int = 0,
        cache: bool = False,
        fit: Literal["crop", "squash"] = "crop",
        unreadable: Literal["error", "skip"] = "error",
        decode: Collection[str] = ("image", "audio"),
        captions: int = 1,
        limit_captions: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            image_size=image_size,
            audio_seconds=audio_seconds,
            sample_rate=sample_rate,
            cache=cache,
            fit=fit,
            unreadable=unreadable,
            decode=decode,
        )
        self.augment, self.seed, self.captions, self.limit_captions = augment, seed, captions, limit_captions

    def __getitem__(self, key: tuple[int, int]) -> Example:
        index, epoch = key
        # Each choice has a slot of its own, so that switching one off leaves the others as they were.
        chance = np.random.default_rng((self.seed, epoch, index)).random(7)
        drawn = self._draw(self.dataset.captions[index][: self.limit_captions or None], float(chance[0]))
        picture, waveform = self._decoded(index)
        if picture is not None:
            picture = (
                resized(picture, self.image_size, self.fit)
                if self.augment is None
                else augmented(picture, self.image_size, self.augment, chance[1:6])
            )
        if waveform is not None:
            spare = max(0, len(waveform) - self.audio_samples)
            first = int(chance[6] * (spare + 1)) if self.augment is not None else 0
            waveform = waveform[first : first + self.audio_samples]
        return self._example(index, drawn, picture, waveform)

    def _draw(self, captions: tuple[str, ...], chance: float) -> tuple[str, ...]:
        """Captions in their order from a random one on, around the end: as many as asked for."""
        first = int(chance * len(captions))
        return tuple(captions[(first + k) % len(captions)] if captions else "" for k in range(self.captions))


class EvalView(_View):
    """index -> Example without any randomness (its first caption), and all captions of the split as one flat list.

    `captions`, `caption_ids` and `caption_image_ids` run parallel; `image_ids` runs parallel to the positions.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        *,
        image_size: int,
        audio_seconds: float = 0.0,
        sample_rate: int = 16000,
        cache: bool = False,
        fit: Literal["crop", "squash"] = "crop",
        unreadable: Literal["error", "skip"] = "error",
        decode: Collection[str] = ("image", "audio"),
    ) -> None:
        super().__init__(
            dataset,
            image_size=image_size,
            audio_seconds=audio_seconds,
            sample_rate=sample_rate,
            cache=cache,
            fit=fit,
            unreadable=unreadable,
            decode=decode,
        )
        self.image_ids = torch.tensor(dataset.image_ids)
        self.captions = [caption for group in dataset.captions for caption in group]
        self.caption_ids = torch.tensor([i for group in dataset.caption_ids for i in group], dtype=torch.int64)
        self.caption_image_ids = torch.repeat_interleave(
            self.image_ids, torch.tensor([len(group) for group in dataset.captions])
        )

    def __getitem__(self, index: int) -> Example:
        picture, waveform = self._decoded(index)
        picture = None if picture is None else resized(picture, self.image_size, self.fit)
        waveform = None if waveform is None else waveform[: self.audio_samples]
        captions = self.dataset.captions[index]
        return self._example(index, captions[:1] or ("",), picture, waveform)


class Collate:
    """Examples -> Batch. Token rows are kept, since a caption recurs every epoch and tokenizing is the slowest part.

    Args:
        tokenizer: list of B strings -> (ids (B, L) int64, mask (B, L) bool, True where real).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        captions = [c for at_once in zip(*(e.captions for e in examples), strict=True) for c in at_once]
        batch = self.text(captions, torch.tensor([e.image_id for e in examples]))
        if examples[0].image is not None:
            batch.inputs["image"] = torch.stack([e.image for e in examples if e.image is not None])
            batch.present["image"] = torch.tensor([e.has_image for e in examples])
        if examples[0].audio is not None:
            lengths = torch.tensor([0 if e.audio is None else len(e.audio) for e in examples])
            batch.inputs["audio"] = _waveforms([e.audio for e in examples], examples[0].audio_samples)
            batch.masks["audio"] = torch.arange(examples[0].audio_samples) < lengths[:, None]
            batch.present["audio"] = lengths > 0
        return batch

    def text(self, captions: Sequence[str], image_ids: Tensor) -> Batch:
        """A batch of captions alone, a multiple of B of them; image_ids (B,) int64."""
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._rows]:
            tokens, mask = self.tokenizer(new)
            # Without the padding of the call that met them first: a batch's length must not depend on what came before.
            self._rows.update(
                (caption, (row[:n], real[:n]))
                for caption, row, real, n in zip(new, tokens, mask, _lengths(mask), strict=True)
            )
        rows = [self._rows[caption] for caption in captions]
        return Batch(
            image_ids,
            inputs={"text": _stack([r[0] for r in rows])},
            masks={"text": _stack([r[1] for r in rows])},
            present={"text": torch.tensor([bool(caption) for caption in captions])},
        )


def resized(picture: np.ndarray, size: int, fit: Literal["crop", "squash"]) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8, bicubic with antialiasing; "crop" cuts the centre square first."""
    height, width = picture.shape[:2]
    if height == width == size:
        return picture
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return _resize(picture, size, box, PIL.Image.Resampling.BICUBIC)


def augmented(picture: np.ndarray, size: int, augment: Augment, chance: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8: a random crop, perhaps mirrored.

    chance (5,) in [0, 1) decides area, aspect, horizontal and vertical place of the crop, and mirroring.
    """
    height, width = picture.shape[:2]
    if augment.crop_scale < 1:
        area = augment.crop_scale + (1 - augment.crop_scale) * chance[0]
        stretch = augment.crop_ratio ** (chance[1] - 0.5)
        wide, high = min(1.0, area**0.5 * stretch) * width, min(1.0, area**0.5 / stretch) * height
        left, top = chance[2] * (width - wide), chance[3] * (height - high)
        picture = _resize(picture, size, (left, top, left + wide, top + high), PIL.Image.Resampling.BILINEAR)
    else:
        picture = resized(picture, size, "squash")
    return np.ascontiguousarray(picture[:, ::-1]) if augment.flip and chance[4] < 0.5 else picture


def _resize(
    picture: np.ndarray, size: int, box: tuple[float, float, float, float], filter: PIL.Image.Resampling
) -> np.ndarray:
    return np.array(PIL.Image.fromarray(picture).resize((size, size), filter, box=box, reducing_gap=3.0))


def _waveforms(waveforms: Sequence[Tensor | None], samples: int) -> Tensor:
    """int16 waveforms of any length up to `samples` -> (B, samples) float32 in [-1, 1], zeros where there is none."""
    padded = np.zeros((len(waveforms), samples), dtype=np.int16)
    for row, waveform in enumerate(waveforms):
        if waveform is not None:
            padded[row, : len(waveform)] = waveform.numpy()
    return torch.from_numpy(padded).to(torch.float32).mul_(1 / 32767)


def _lengths(mask: Tensor) -> list[int]:
    """mask (B, L) -> one past the last real position of each row."""
    return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1).tolist()


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Token rows (L_i,) -> (B, max L), padded with zeros (False in a mask)."""
    if len({len(row) for row in rows}) == 1:
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
