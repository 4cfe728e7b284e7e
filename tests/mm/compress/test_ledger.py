"""What a model takes: every weight is counted once, in the bits it is stored in."""

from collections.abc import Callable

import pytest
import torch

from mm.artifacts.run import Run
from mm.compress.ledger import group_of, ledger
from mm.compress.nf4 import quantize


def test_the_ledger_counts_every_weight_and_what_it_is_stored_in(tiny_run: Callable[..., Run]) -> None:
    model = tiny_run().model
    before = {row.group: row for row in ledger(model)}
    assert before["all"].weights == sum(p.numel() for p in model.parameters()) and before["all"].bits == 32
    pytest.importorskip("bitsandbytes")
    torch.nn.init.normal_(model.backbone.blocks[0].moe.w_in)
    quantize(model)
    after = {row.group: row for row in ledger(model)}
    assert {g: row.weights for g, row in after.items()} == {g: row.weights for g, row in before.items()}
    # Tables of 16 and 256 numbers for each tensor weigh on weights as small as these; half a byte is what remains.
    assert 4 < after["experts"].bits < 12 and after["router"].bits == 32


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("encoders.audio.trunk.norm.weight", "audio encoder"),
        ("backbone.blocks.0.moe.w_in", "experts"),
        ("backbone.blocks.0.moe.parametrizations.w_in.0.lora_A", "adapters"),
        ("backbone.blocks.0.moe.shared.down.weight", "shared expert"),
        ("backbone.blocks.0.moe.router.affinity", "router"),
        ("backbone.blocks.0.cross_attention.q_proj.weight", "attention"),
        ("backbone.norm.weight", "backbone, the rest"),
        ("project.image.linear.weight", "heads"),
    ],
)
def test_a_parameter_belongs_to_the_part_a_reader_knows(name: str, group: str) -> None:
    assert group_of(name) == group
