"""What counts as active."""

from collections.abc import Callable
from dataclasses import replace

from mm.config import AlignConfig
from mm.model.size import count_parameters
from mm.train.task import AlignTask


def test_of_the_experts_only_the_active_share_counts(tiny_task: Callable[..., AlignTask], tiny: AlignConfig) -> None:
    total, active = count_parameters(tiny_task().model)
    moe = tiny.model.backbone.moe
    per_layer = moe.num_experts * 3 * moe.hidden * 32  # gate, up and down
    assert total - active == 2 * per_layer * (moe.num_experts - moe.top_k) // moe.num_experts
    dense = replace(tiny.model.backbone, moe=replace(moe, top_k=8))
    assert len(set(count_parameters(tiny_task(model=replace(tiny.model, backbone=dense)).model))) == 1
