"""The learning rate of continued pre-training, stage by stage."""

from collections.abc import Callable

import pytest

from mm.adapt.config import MixConfig
from mm.adapt.continued import ContinuedTask
from mm.artifacts.run import Run


@pytest.mark.parametrize(
    ("steps", "stages", "expected"),
    [
        (8, 4, [1, 1, 0.8, 0.8, 0.64, 0.64, 0.512, 0.512]),
        (5, 2, [1, 1, 0.8, 0.8, 0.8]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_the_rate_falls_at_the_end_of_each_stage(
    tiny_run: Callable[..., Run], steps: int, stages: int, expected: list[float]
) -> None:
    task = ContinuedTask(tiny_run(), MixConfig(stages=stages))
    assert [task.learning_rate_factor((step + 1) / steps) for step in range(steps)] == pytest.approx(expected)
