"""Benchmarks that are no captioned split: SugarCrepe's edited captions, and folders of classes.

Both become a CaptionDataset of listed files, so that a model embeds them as it embeds everything else.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.classification import AUDIO_TEMPLATES, IMAGE_TEMPLATES, prompts, zero_shot_figures
from eval.embeddings import Scorer
from eval.protocols import Figures
from eval.sugar_crepe import sugar_crepe, sugar_crepe_items
from mm.batch import Sample
from mm.data.media import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, decode_audio, decode_image
from mm.evaluation.models import EvaluatedModel

logger = logging.getLogger(__name__)
PICTURE_FOLDERS = ("", "val2017", "images")


class ListedFiles:
    """A CaptionDataset of images or of audio clips: `captions[i]` belong to `files[i]`, whose image id is i."""

    def __init__(self, name: str, files: list[Path], captions: list[tuple[str, ...]], modality: str) -> None:
        self.name, self.files, self.captions, self.modality = name, files, captions, modality
        self.image_ids = list(range(len(files)))
        first = np.cumsum([0, *map(len, captions)]).tolist()
        self.caption_ids = [tuple(range(at, at + len(c))) for at, c in zip(first[:-1], captions, strict=True)]
        self.modalities = frozenset({modality, "text"})
        self.has_audio = [modality == "audio"] * len(files)
        self.skipped: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        stated = (path.stem, index, self.captions[index], self.caption_ids[index])
        if self.modality == "image":
            return Sample(*stated, image=decode_image(path.read_bytes(), str(path)))
        waveform, rate = decode_audio(path.read_bytes(), str(path))
        return Sample(*stated, audio=waveform, sample_rate=rate)


def evaluate_sugar_crepe(
    model: EvaluatedModel, folder: Path, pictures: Path, *, samples: int = 1000, seed: int = 0
) -> dict[str, Figures]:
    """`cosine`, and every joint score of the model by its name -> figures of SugarCrepe's seven files in `folder`.

    `pictures` holds COCO val2017, or has it in val2017/ or images/. Items without their image are skipped, counted
    in the protocol and logged. Raises ValueError where no image is there.
    """
    _needs(model, "image", "text")
    listed = sugar_crepe_items(folder)
    items, dataset = _with_pictures(listed, pictures)
    skipped = sum(map(len, listed.values())) - sum(map(len, items.values()))
    judged = model.embed(dataset, "sugar_crepe")
    row = {path.name: at for at, path in enumerate(dataset.files)}
    column = {caption: at for at, caption in enumerate(c for captions in dataset.captions for c in captions)}

    def figures(name: str, scorer: Scorer) -> Figures:
        def score(files: list[str], captions: list[str]) -> np.ndarray:
            return scorer(np.array([row[f] for f in files]), np.array([column[c] for c in captions]))

        return sugar_crepe(
            items, score, scored_by=name, trained_on=model.trained_on, skipped=skipped, samples=samples, seed=seed
        )

    return {name: figures(name, scorer) for name, scorer in {"cosine": judged.cosine, **judged.joint}.items()}


def evaluate_classes(
    model: EvaluatedModel, folder: Path, templates: Sequence[str] | None = None, *, samples: int = 1000, seed: int = 0
) -> dict[str, Figures]:
    """Zero-shot classification of `folder`/<class name>/*, images or audio clips; an underscore in a name is a space.

    templates: captions with {} for the class name; by default those of `eval.classification` for the modality.
    """
    files, classes, kind = _class_files(folder)
    _needs(model, kind, "text")
    asked = prompts(classes, templates or (IMAGE_TEMPLATES if kind == "image" else AUDIO_TEMPLATES))
    # The first file of a class carries all its prompts, the others one: each is to be embedded once, and no file
    # without a caption is known to the caches of features.
    captions = [
        tuple(own if at == 0 else own[:1]) for paths, own in zip(files, asked, strict=True) for at in range(len(paths))
    ]
    name = folder.resolve().name
    dataset = ListedFiles(f"{name}/classes", [path for paths in files for path in paths], captions, kind)
    arrays = model.embed(dataset, "classes").arrays
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files])
    first = np.searchsorted(labels, np.arange(len(files)))
    of_class = arrays["text"][np.concatenate([dataset.caption_ids[at] for at in first])]
    kept = arrays["image_ids" if kind == "image" else "audio_image_ids"]  # an audio clip without samples has no vector
    return {
        "classes": zero_shot_figures(
            arrays[kind],
            labels[kept],
            of_class.reshape(len(files), len(asked[0]), -1),
            dataset=name,
            split="classes",
            kind="pictures" if kind == "image" else "sounds",
            trained_on=model.trained_on,
            skipped=len(labels) - len(kept),
            samples=samples,
            seed=seed,
        )
    }


def _needs(model: EvaluatedModel, *modalities: str) -> None:
    if missing := [m for m in modalities if m not in model.modalities]:
        raise ValueError(f"the model has no encoder of {' and '.join(missing)}, only of {', '.join(model.modalities)}")


def _with_pictures(
    listed: Mapping[str, list[dict[str, str]]], pictures: Path
) -> tuple[dict[str, list[dict[str, str]]], ListedFiles]:
    """The items whose image is there, and the images with every caption that the items ask for."""
    names = sorted({item["filename"] for rows in listed.values() for item in rows})
    found = {name: path for name in names if (path := _picture_file(pictures, name)) is not None}
    if not found:
        raise ValueError(
            f"{pictures} holds none of SugarCrepe's {len(names):,} images, such as {names[0]}:"
            " they are those of COCO val2017"
        )
    items = {split: [item for item in rows if item["filename"] in found] for split, rows in listed.items()}
    if len(found) < len(names):
        skipped_lines = sum(map(len, listed.values())) - sum(map(len, items.values()))
        logger.warning(
            "sugar_crepe: %s of %s images are missing in %s; %s items are skipped",
            f"{len(names) - len(found):,}",
            f"{len(names):,}",
            pictures,
            f"{skipped_lines:,}",
        )
    captions: dict[str, dict[str, None]] = {name: {} for name in found}
    for item in (item for rows in items.values() for item in rows):
        captions[item["filename"]] |= {item["caption"]: None, item["negative_caption"]: None}
    return items, ListedFiles(
        f"{pictures.resolve().name}/sugar_crepe",
        list(found.values()),
        [tuple(texts) for texts in captions.values()],
        "image",
    )


def _picture_file(folder: Path, name: str) -> Path | None:
    if Path(name).name != name:
        raise ValueError(f"SugarCrepe names an image {name!r}: a file name is not a path")
    return next((path for place in PICTURE_FOLDERS if (path := folder / place / name).is_file()), None)


def _class_files(folder: Path) -> tuple[list[list[Path]], list[str], str]:
    """The files of each class in order, the names of the classes, and the modality of all files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of classes (<class name>/<image or audio>)")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [sorted(path for path in f.iterdir() if _modality(path)) for f in folders]
    if len(folders) < 2 or not all(files):
        empty = next((f.name for f, paths in zip(folders, files, strict=True) if not paths), None)
        raise ValueError(
            f"{folder}: "
            + (
                f"class {empty!r} holds no image and no audio"
                if empty
                else "classification needs at least two folders, one a class"
            )
        )
    modality, *others = {_modality(path) for paths in files for path in paths}
    if others:
        raise ValueError(f"{folder} holds images and audio clips: classify either, in a folder of its own")
    return files, [path.name.replace("_", " ") for path in folders], modality


def _modality(path: Path) -> str:
    """`image`, `audio`, or nothing for any other file."""
    extension = path.suffix[1:].lower()
    return "image" if extension in IMAGE_EXTENSIONS else "audio" if extension in AUDIO_EXTENSIONS else ""
