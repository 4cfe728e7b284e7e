"""The Karpathy test split by COCO's own ids, and the matches that CxC, ECCV Caption and PMRP add to it.

CxC: Parekh et al. 2021. ECCV Caption: Chun et al. 2022. PMRP: Chun et al. 2021; its plausible matches are computed from
COCO's instance annotations and are not among ECCV Caption's files. It is evaluated only where
`pm_image_to_caption.json` and `pm_caption_to_image.json` lie beside them (the package calls them so), and has been
checked by hand-made cases alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels.errors import MissingError, UserError
from kernels.parsing import parse_json

STEMS = {"cxc": "cxc", "eccv": "eccv", "pmrp": "pm"}
"""Ground truth -> the first part of its files' names."""


@dataclass(frozen=True)
class Matches:
    """Extra matches by id (the two are not transposes)."""

    image_to_text: Mapping[int, list[int]]
    """Image id -> caption ids."""
    text_to_image: Mapping[int, list[int]]
    """Caption id -> image ids."""


@dataclass(frozen=True)
class GroundTruth:
    """The Karpathy test split by COCO's own ids."""

    captions: np.ndarray
    """(25000,) caption ids in fold order."""
    images: np.ndarray
    """(25000,) the image id of each."""
    extra: dict[str, Matches]
    """`cxc`, `eccv`, and `pmrp` where its files are there."""

    @classmethod
    def load(cls, folder: Path | str) -> "GroundTruth":
        """From a folder that holds ECCV Caption's files, or has them in `eccv_caption/`; `pm_*.json` are optional.

        Raises:
            FileNotFoundError: naming the missing file.
            ValueError: naming a file that is something else.
        """
        folder = Path(folder)
        if (folder / "eccv_caption").is_dir():
            folder = folder / "eccv_caption"
        ids = folder / "coco_test_ids.npy"
        if not ids.is_file():
            raise MissingError(f"{ids}: no ground truth there; point at the folder of ECCV Caption's data files")
        captions = np.load(ids, allow_pickle=False).astype(np.int64)
        image_of = _read(folder / "original_caption_to_image.json")
        images = np.array([image_of[int(caption)][0] for caption in captions])
        extra = {}
        for name, stem in STEMS.items():
            to_text = folder / f"{stem}_image_to_caption.json"
            to_image = folder / f"{stem}_caption_to_image.json"
            if name != "pmrp" or to_text.is_file():
                extra[name] = Matches(_read(to_text), _read(to_image))
        return cls(captions, images, extra)

    def fold_order(self) -> np.ndarray:
        """(5000,) the different image ids in the order in which the split lists them."""
        _, first = np.unique(self.images, return_index=True)
        return self.images[np.sort(first)]

    def positives(self, caption_ids: np.ndarray, image_ids: np.ndarray) -> set[tuple[int, int]]:
        """Every (image id, caption id) that anybody calls a match: what a hard negative must not be.

        Args:
            caption_ids: (M,) the captions asked for.
            image_ids: (N,) the images asked for.
        """
        found = set(zip(self.images.tolist(), self.captions.tolist(), strict=True))
        for matches in self.extra.values():
            for image, captions in matches.image_to_text.items():
                found |= {(image, caption) for caption in captions}
            for caption, images in matches.text_to_image.items():
                found |= {(image, caption) for image in images}
        asked_images = set(image_ids.tolist())
        asked_captions = set(caption_ids.tolist())
        return {(i, c) for i, c in found if i in asked_images and c in asked_captions}

    def check(self, image_ids: np.ndarray, caption_ids: np.ndarray | None) -> None:
        """Raises ValueError unless these are the split's images (N,), with all 25,000 captions among the (M,)."""
        images = set(self.images.tolist())
        if set(image_ids.tolist()) != images:
            raise UserError(
                f"the ground truth is for the {len(images):,} images of the Karpathy test split by COCO id; these"
                " embeddings are of other images: do not give a ground truth"
            )
        if caption_ids is None or not np.isin(self.captions, caption_ids).all():
            raise UserError(
                "CxC and ECCV name captions by COCO id: embeddings need `caption_ids` with all 25,000 of them"
            )


def _read(path: Path) -> dict[int, list[int]]:
    """Id -> ids. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise MissingError(f"{path}: this ground-truth file is missing")
    found = {}
    try:
        for key, values in parse_json(path.read_bytes(), "it").items():
            found[int(key)] = [int(value) for value in values]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not map ids to lists of ids: {error}") from None
    return found
