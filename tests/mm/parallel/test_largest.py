"""The largest configuration, divided without memory: what a process would hold is what the planner says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.testing._internal.distributed.fake_pg import FakeStore

from kernels.collectives import divide_samples
from mm.artifacts.run import build_run, config_from_dict, without_pretrained_weights
from mm.parallel.cost import MACHINES, Rates, estimate
from mm.parallel.experts import local
from mm.parallel.layout import ParallelConfig
from mm.parallel.mesh import Meshes
from mm.parallel.plan import PlanConfig, of_rank, workload
from mm.parallel.shard import divide
from mm.train.task import AlignTask

GPUS = 256
FILE = Path(__file__).parents[3] / "configs" / "70b.yaml"


@pytest.fixture(scope="module")
def config() -> PlanConfig:
    """Two of its blocks: all are alike."""
    config = config_from_dict(yaml.safe_load(FILE.read_text()))
    model = replace(config.model, backbone=replace(config.model.backbone, layers=2))
    return PlanConfig(**{**vars(config), "model": model, "gpus": GPUS})


@pytest.fixture
def many() -> Iterator[None]:
    """This process believes to be the first of 256."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=GPUS)
    yield
    divide_samples(None)
    dist.destroy_process_group()


def test_a_process_holds_what_the_plan_says(config: PlanConfig, many: None) -> None:
    layout = ParallelConfig.of_word("fsdp256")
    with torch.device("meta"):
        run = build_run(without_pretrained_weights(config), torch.arange(1000))
    task = AlignTask(run)
    divide(task, run.model, Meshes.of(layout, "cpu"))
    held = 4 * sum(local(parameter).numel() for parameter in task.parameters())
    expected = estimate(of_rank(workload(config), config, layout), layout, MACHINES["h100"], Rates()).bytes
    # Rows that the processes do not divide evenly are the first ones' more.
    assert held == pytest.approx(expected["parameters"], rel=0.02)
