"""A picture of retrieval for a page: captions of embedded scenes, and the scenes that a run puts nearest to them."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.embeddings import Embeddings
from kernels.errors import UserError
from mm.data.scenes.folder import IDS_OF_A_SPLIT, SIZES
from mm.data.scenes.grammar import captions
from mm.data.scenes.image import render_image
from mm.data.scenes.scene import SPLITS, Scene, scene_at

SIDE = 132
GAP = 12
LINE = 30
RIGHT = (26, 127, 55)
INK = (31, 35, 40)
PAPER = (255, 255, 255)


def retrieval_strip(embeddings: Embeddings, queries: int = 3, shown: int = 5) -> Image.Image:
    """A row for each of the first scenes: its first caption, and the `shown` nearest images, the scene itself framed.

    Args:
        embeddings: of a split of the embedded scenes, made with seed 0.

    Raises:
        ValueError: the images are no embedded scenes.
    """
    strip = Image.new("RGB", (shown * (SIDE + GAP) + GAP, queries * (LINE + SIDE + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=14)
    for row, image_id in enumerate(embeddings.image_ids[:queries]):
        top = GAP + row * (LINE + SIDE + GAP)
        draw.text((GAP, top), captions(scene_of(image_id))[0], fill=INK, font=font)
        similarity = embeddings.image @ embeddings.text[_first_caption(embeddings, image_id)]
        for place, found in enumerate(np.argsort(-similarity, kind="stable")[:shown]):
            left = GAP + place * (SIDE + GAP)
            strip.paste(render_image(scene_of(embeddings.image_ids[found]), SIDE), (left, top + LINE))
            if embeddings.image_ids[found] == image_id:
                frame = (left - 5, top + LINE - 5, left + SIDE + 4, top + LINE + SIDE + 4)
                draw.rectangle(frame, outline=RIGHT, width=4)
    return strip


def scene_of(image_id: int) -> Scene:
    """The embedded scene with this id.

    Raises:
        ValueError: no split of the embedded scenes has it.
    """
    number, index = divmod(int(image_id), IDS_OF_A_SPLIT)
    for split, its_number in SPLITS.items():
        if its_number == number and index < SIZES.get(split, 0):
            return scene_at(0, split, index)
    raise UserError(f"image {image_id} is no embedded scene: a strip is made of a run on them")


def _first_caption(embeddings: Embeddings, image_id: int) -> int:
    """Position of an image's first caption."""
    return int(np.flatnonzero(embeddings.caption_image_ids == image_id)[0])
