"""Benchmarks that are no captioned split: SugarCrepe's edited captions, and folders of classes.

Both become a CaptionDataset of listed files, so that a model embeds them as it embeds everything else.
"""

import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.classification import AUDIO_TEMPLATES, IMAGE_TEMPLATES, prompts, zero_shot_figures
from eval.embeddings import Scorer
from eval.figures import Figures
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap
from eval.protocols import Stated
from eval.sugar_crepe import sugar_crepe, sugar_crepe_items
from kernels.errors import MissingError, UserError
from mm.batch import Sample
from mm.data.dataset import files_stamp, noted
from mm.data.media import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, EncodedSample, Member, decode_sample
from mm.data.skipped import Unreadable, warn_of_skipped
from mm.evaluation.models import EvaluatedModel

logger = logging.getLogger(__name__)
IMAGE_FOLDERS = ("", "val2017", "images")
KINDS = {"image": "images", "audio": "audio clips"}
"""Modality -> the word of the protocol."""
IDS = {"image": "image_ids", "audio": "audio_image_ids"}
Items = dict[str, list[dict[str, str]]]
"""SugarCrepe's split -> items with `filename`, `caption` and `negative_caption`."""


class ListedFiles:
    """A CaptionDataset of images or of audio clips: `captions[i]` belong to `files[i]`, whose image id is i."""

    def __init__(self, name: str, files: list[Path], captions: list[tuple[str, ...]], modality: str) -> None:
        """List files.

        Args:
            name: of the set.
            files: of images or of audio clips.
            captions: of each file.
            modality: `image` or `audio`.
        """
        self.name = name
        self.files = files
        self.captions = captions
        self.modality = modality
        self.image_ids = list(range(len(files)))
        self.caption_ids: list[tuple[int, ...]] = []
        first = 0
        for several in captions:
            self.caption_ids.append(tuple(range(first, first + len(several))))
            first += len(several)
        self.modalities = frozenset({modality, "text"})
        self.has_image = [modality == "image"] * len(files)
        self.has_audio = [modality == "audio"] * len(files)
        self.skipped: dict[str, int] = {}
        self.unreadable = Unreadable(name, self.skipped)

    def __len__(self) -> int:
        return len(self.files)

    def stamp(self, source: str) -> str:
        """What the files hold, by size and time of change, see `StampedDataset`; all are of one modality."""
        return files_stamp(self.files)

    def size(self, source: str, index: int) -> int:
        """Of a file, in bytes."""
        return self.files[index].stat().st_size

    def content(self, source: str, index: int) -> bytes:
        """The bytes of a file."""
        return self.files[index].read_bytes()

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        stated = EncodedSample(path.stem, index, self.captions[index], self.caption_ids[index])
        member = Member(str(path), self.modality, path.read_bytes)
        return noted(self, index, decode_sample(stated, [member], self.unreadable))


def evaluate_sugar_crepe(
    model: EvaluatedModel, folder: Path, images: Path, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> dict[str, Figures]:
    """SugarCrepe by the cosine and by every joint score of a model.

    Args:
        model: of images and text.
        folder: of SugarCrepe's seven files.
        images: holds COCO val2017, or has it in val2017/ or images/. Items without their image are skipped, counted in
            the protocol and logged.
        bootstrap: of the intervals.

    Returns:
        figures by the name of the score.

    Raises:
        ValueError: where no image is there.
    """
    _needs(model, "image", "text")
    listed = sugar_crepe_items(folder)
    files = _files_of(listed, images)
    items = _of_images(listed, files)
    missing = _count(listed) - _count(items)
    dataset = _with_captions(items, files, f"{images.resolve().name}/sugar_crepe")
    embedded = model.embed(dataset, "sugar_crepe")
    scorers: dict[str, Scorer] = {"cosine": embedded.cosine, **embedded.joint}
    skipped = {"image is missing": missing} if missing else {}
    places = {dataset.files[image_id].name: at for at, image_id in enumerate(embedded.arrays["image_ids"])}
    readable = _of_images(items, places)
    broken = _count(items) - _count(readable)
    if broken:
        skipped["image does not decode"] = broken
    trained_on = model.trained_on
    found = {}
    for name, scorer in scorers.items():
        score = _NamedScore(dataset, places, scorer)
        found[name] = sugar_crepe(
            readable, score, scored_by=name, trained_on=trained_on, skipped=skipped, bootstrap=bootstrap
        )
    return found


def _of_images(items: Items, names: Container[str]) -> Items:
    """The items whose image is one of these."""
    return {split: [item for item in rows if item["filename"] in names] for split, rows in items.items()}


def _count(items: Items) -> int:
    return sum(len(rows) for rows in items.values())


class _NamedScore:
    """A scorer by positions as one by file names and captions."""

    def __init__(self, dataset: ListedFiles, rows: Mapping[str, int], scorer: Scorer) -> None:
        """`rows`: where the vector of each file name is."""
        self.scorer = scorer
        self.row = rows
        self.column: dict[str, int] = {}
        for several, ids in zip(dataset.captions, dataset.caption_ids, strict=True):
            own = dict(zip(several, ids, strict=True))
            self.column.update(own)

    def __call__(self, files: list[str], captions: list[str]) -> np.ndarray:
        """File names (P,) and captions (P,) -> scores (P,)."""
        rows = [self.row[file] for file in files]
        columns = [self.column[caption] for caption in captions]
        return self.scorer(np.array(rows), np.array(columns))


def _files_of(listed: Items, images: Path) -> dict[str, Path]:
    """The images that are there; what is missing is logged.

    Args:
        listed: items of every split.
        images: the folder that is searched.

    Returns:
        the name that items ask for -> its file.

    Raises:
        ValueError: where none is there, or a name is a path.
    """
    asked: list[str] = []
    for rows in listed.values():
        asked += [item["filename"] for item in rows]
    names = sorted(set(asked))
    found = {}
    for name in names:
        path = _image_file(images, name)
        if path is not None:
            found[name] = path
    if not found:
        raise UserError(
            f"{images} holds none of SugarCrepe's {len(names):,} images, such as {names[0]}:"
            " they are those of COCO val2017"
        )
    if len(found) < len(names):
        missing = len(names) - len(found)
        skipped = sum(name not in found for name in asked)
        logger.warning(
            f"sugar_crepe: {missing:,} of {len(names):,} images are missing in {images}; {skipped:,} items are skipped"
        )
    return found


def _with_captions(items: Items, files: Mapping[str, Path], name: str) -> ListedFiles:
    """The images with every caption that the items ask for, each once."""
    captions: dict[str, dict[str, None]] = {file: {} for file in files}
    for rows in items.values():
        for item in rows:
            asked = (item["caption"], item["negative_caption"])
            captions[item["filename"]].update(dict.fromkeys(asked))
    of_files = [tuple(texts) for texts in captions.values()]
    return ListedFiles(name, list(files.values()), of_files, "image")


def _image_file(folder: Path, name: str) -> Path | None:
    """The image in one of the `IMAGE_FOLDERS`. Raises ValueError on a name that leads out of them."""
    if Path(name).name != name:
        raise UserError(f"SugarCrepe names an image {name!r}: a file name is not a path")
    for place in IMAGE_FOLDERS:
        path = folder / place / name
        if path.is_file():
            return path
    return None


def evaluate_classes(
    model: EvaluatedModel,
    folder: Path,
    templates: Sequence[str] | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> dict[str, Figures]:
    """Zero-shot classification of `folder`/<class name>/*, images or audio clips.

    Args:
        model: of text and of what the folder holds.
        folder: with a folder for each class; an underscore in its name is a space.
        templates: captions with {} for the class name; by default those of `eval.classification` for the modality.
        bootstrap: of the intervals.

    Returns:
        figures by `classes`.
    """
    classes = _Classes.of(folder)
    modality = classes.modality
    _needs(model, modality, "text")
    by_default = IMAGE_TEMPLATES if modality == "image" else AUDIO_TEMPLATES
    asked = prompts(classes.names, templates or by_default)
    dataset = classes.dataset(asked)
    arrays = model.embed(dataset, "classes").arrays
    labels = classes.labels()
    count = len(classes.names)
    own: list[int] = []
    for first in np.searchsorted(labels, np.arange(count)):
        own += dataset.caption_ids[first]
    prompt_vectors = arrays["text"][own].reshape(count, len(asked[0]), -1)
    kept = arrays[IDS[modality]]  # a file that does not decode and an audio clip without samples have no vector
    skipped = classes.skipped | dataset.skipped
    silent = len(labels) - len(kept) - sum(dataset.skipped.values())
    if silent:
        skipped["without samples"] = silent
    stated = Stated(classes.name, "classes", model.trained_on, skipped)
    figures = zero_shot_figures(
        arrays[modality], labels[kept], prompt_vectors, stated, kind=KINDS[modality], bootstrap=bootstrap
    )
    return {"classes": figures}


@dataclass(frozen=True)
class _Classes:
    """A folder of classes."""

    name: str
    names: list[str]
    """Of the classes."""
    files: list[list[Path]]
    """Of each class, in order."""
    modality: str
    """Of all files."""
    skipped: dict[str, int]
    """Files of kinds that are not read, by reason."""

    @classmethod
    def of(cls, folder: Path) -> "_Classes":
        """Raises FileNotFoundError or ValueError where it is none."""
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder of classes (<class name>/<image or audio>)")
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        files = []
        modalities: set[str] = set()
        skipped: Counter[str] = Counter()
        for each in folders:
            paths = []
            for path in sorted(each.iterdir()):
                if _modality(path):
                    paths.append(path)
                else:
                    skipped[f"file of a kind that is not read ({path.suffix or path.name})"] += 1
            if not paths:
                raise UserError(f"{folder}: class {each.name!r} holds no image and no audio")
            files.append(paths)
            modalities |= {_modality(path) for path in paths}
        if len(folders) < 2:
            raise UserError(f"{folder}: classification needs at least two folders, one a class")
        if len(modalities) > 1:
            raise UserError(f"{folder} holds images and audio clips: classify either, in a folder of its own")
        names = [path.name.replace("_", " ") for path in folders]
        name = f"{folder.resolve().name}/classes"
        warn_of_skipped(name, skipped)
        return cls(folder.resolve().name, names, files, modalities.pop(), dict(skipped))

    def labels(self) -> np.ndarray:
        """(N,) the class of each file, in 0 .. C-1."""
        sizes = [len(paths) for paths in self.files]
        return np.repeat(np.arange(len(sizes)), sizes)

    def dataset(self, asked: Sequence[Sequence[str]]) -> ListedFiles:
        """All files with the prompts of their class, (C classes) x (P prompts).

        The first file of a class carries all its prompts, the others one: each is to be embedded once, and no file
        without a caption is known to the caches of features.
        """
        files: list[Path] = []
        captions: list[tuple[str, ...]] = []
        for paths, own in zip(self.files, asked, strict=True):
            files += paths
            others = len(paths) - 1
            captions.append(tuple(own))
            captions += [tuple(own[:1])] * others
        return ListedFiles(f"{self.name}/classes", files, captions, self.modality)


def _needs(model: EvaluatedModel, *modalities: str) -> None:
    """Raises ValueError on a model without one of the modalities."""
    missing = [modality for modality in modalities if modality not in model.modalities]
    if missing:
        known = ", ".join(model.modalities)
        raise UserError(f"the model has no encoder of {' and '.join(missing)}, only of {known}")


def _modality(path: Path) -> str:
    """`image`, `audio`, or nothing for any other file."""
    extension = path.suffix[1:].lower()
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return "audio" if extension in AUDIO_EXTENSIONS else ""
