"""What a set's size chooses, and what one tried step says of a run to come."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mm.adapt.planner import choose, estimate, trainable
from mm.adapt.task import AdaptTask
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.task import AlignTask


@pytest.mark.parametrize(
    ("images", "strategy"),
    [
        (1, "lora"),
        (9_999, "lora"),
        (10_000, "qlora"),
        (100_000, "qlora"),
        (100_001, "full"),
    ],
)
def test_the_size_of_the_set_chooses(images: int, strategy: str) -> None:
    assert choose(images) == strategy


def test_a_tried_step_is_measured_and_leaves_no_trace(
    tiny: AlignConfig, tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    run = tiny_task()
    before = {name: tensor.clone() for name, tensor in run.state_dict().items()}
    task = AdaptTask(run, replace(tiny), adapters=False, rates={})
    found = estimate(task, tiny_batch())
    assert found.seconds > 0 and found.memory > 8 * found.trainable and found.trainable == trainable(task)
    assert all(p.grad is None for p in task.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    line = found.line("full", 500, 100)
    assert "full for 500 images" in line and "for 100 steps here" in line
