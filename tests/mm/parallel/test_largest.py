"""The largest configuration, divided without memory: what a process would hold is what the planner says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.multiprocessing import start_processes
from torch.testing._internal.distributed.fake_pg import FakeStore

from encoders import TextConfig
from mm.artifacts.run import build_run, config_from_dict, without_pretrained_weights
from mm.bench.parity import small_config, small_run
from mm.config import AlignConfig
from mm.parallel.cost import MACHINES, Rates, estimate
from mm.parallel.experts import local
from mm.parallel.layout import ParallelConfig
from mm.parallel.mesh import Meshes
from mm.parallel.plan import PlanConfig, of_rank, workload
from mm.parallel.shard import divide, divided_layers
from mm.train.task import AlignTask

GPUS = 256
FILE = Path(__file__).parents[3] / "configs" / "70b.yaml"


@pytest.fixture(scope="module")
def config() -> PlanConfig:
    """Two of its blocks: all are alike."""
    config = config_from_dict(yaml.safe_load(FILE.read_text()))
    model = replace(config.model, backbone=replace(config.model.backbone, layers=2))
    return PlanConfig(**{**vars(config), "model": model, "gpus": GPUS})


def sizes(config: AlignConfig, word: str) -> tuple[int, int, float]:
    """Bytes of parameters: of all of them, of those that the first process holds, and of these what the plan says."""
    layout = ParallelConfig.of_word(word)
    with torch.device("meta"):
        run = build_run(without_pretrained_weights(config), torch.arange(1000))
    task = AlignTask(run)
    whole = 4 * sum(parameter.numel() for parameter in task.parameters())
    divide(task, run.model, Meshes.of(layout, "cpu"))
    held = 4 * sum(local(parameter).numel() for parameter in task.parameters())
    expected = estimate(of_rank(workload(config), config, layout), layout, MACHINES["h100"], Rates()).bytes
    return whole, held, expected["parameters"]


def check_sizes(rank: int, config: AlignConfig, word: str, most: float) -> None:
    """In a process of its own, which believes to be the first of 256: one that has had meshes and then differentiates
    cannot be forked for other tests."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=GPUS)
    whole, held, said = sizes(config, word)
    # Rows that the processes do not divide evenly are the first ones' more.
    assert held == pytest.approx(said, rel=0.02) and held < most * whole


@pytest.mark.parametrize("word, most", [("fsdp256", 1.02 / GPUS), ("fsdp16-tp8-pp2", 0.015)])
def test_a_process_holds_what_the_plan_says(config: PlanConfig, word: str, most: float) -> None:
    start_processes(check_sizes, (config, word, most), start_method="fork")


def test_tp_divides_of_encoders_what_the_plan_says() -> None:
    config = replace(small_config(), text=TextConfig(width=256, depth=1, heads=2, max_tokens=12))
    start_processes(check_sizes, (config, "ddp64-tp4", 0.65), start_method="fork")


def test_a_hidden_width_that_tp_does_not_divide_stays_whole() -> None:
    model: Any = small_run(small_config(), "meta").model
    for tp, count in ((2, 1), (3, 0)):
        layers = [layer for _, plan in divided_layers(model.encoders["text"], tp) for layer in plan]
        assert layers == ["token", *["mlp.0", "mlp.2"] * count]
