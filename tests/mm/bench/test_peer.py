"""What the peer reads of our batches, and how large it is."""

from collections.abc import Callable

import torch

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.bench.peer import first_pairs, numbers_of, tower_layers, tower_parameters


def test_each_image_gets_the_first_of_its_captions() -> None:
    """Row r of K·B captions belongs to image r mod B."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    captions = torch.arange(6).view(6, 1)
    found, first = first_pairs(Batch(torch.arange(2), inputs={"image": images, "text": captions}))
    assert found.shape == (2, 3, 4, 4) and (found[0].unique(), found[1].unique()) == (-1, 1)
    assert first.tolist() == [[0], [1]]


def test_a_tower_is_what_one_modality_uses(tiny_run: Callable[..., Run]) -> None:
    model = tiny_run().model
    own = [model.encoders["image"].trunk, model.encoders["image"].bottleneck, model.pool["image"]]
    heads = sum(map(numbers_of, [*own, model.project["image"]]))
    idle = sum(block.moe.w_in.numel() + block.moe.w_out.numel() for block in model.backbone.blocks) * 6 // 8
    assert tower_parameters(model, "image") == numbers_of(model.backbone) - idle + heads
    assert tower_layers(model, "image", width=32) == round(tower_parameters(model, "image") / 12288)
    assert tower_layers(model, "image", width=4096) == 1
