"""What a set's size chooses, and what one tried step says of a run to come."""

from collections.abc import Callable

import pytest
import torch

from mm.adapt.planner import choose, estimate
from mm.adapt.task import AdaptTask
from mm.artifacts.run import Run
from mm.batch import Batch


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
    tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    task = AdaptTask(tiny_run(), adapters=False)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    found = estimate(task, tiny_batch())
    assert found.seconds > 0 and found.memory > 8 * found.trainable and found.trainable == task.trainable()
    assert all(p.grad is None for p in task.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    line = found.line("full", 500, 100)
    assert "full for 500 images" in line and "for 100 steps here" in line
