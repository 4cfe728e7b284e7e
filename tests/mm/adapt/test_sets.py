"""What fine-tuning and continued pre-training share."""

from dataclasses import replace

import pytest

from alignment import ScheduleConfig
from mm.adapt.sets import DomainData, domain_config
from mm.config import AlignConfig, TrainConfig
from mm.train.optim import OptimConfig


@pytest.mark.parametrize(("asked", "expected"), [(None, 2), (1, 1), (3, 3)])
def test_a_domain_has_the_runs_views_unless_it_asks_for_others(
    tiny: AlignConfig, asked: int | None, expected: int
) -> None:
    own = replace(tiny, data=replace(tiny.data, views=2, karpathy="of the run's own set"))
    read = domain_config(
        own,
        DomainData("molecules", views=asked),
        runs="runs",
        seed=1,
        optim=OptimConfig(),
        schedule=ScheduleConfig(kind="joint"),
        train=TrainConfig(),
    ).data
    assert (read.views, read.root, read.karpathy) == (expected, "molecules", None)
