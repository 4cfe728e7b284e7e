"""What cannot be divided is refused in one line before anything is read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment import ScheduleConfig
from kernels.errors import UserError
from mm.config import AlignConfig, TrainConfig
from mm.parallel.layout import ParallelConfig
from mm.train.align import train_align
from mm.train.layouts import LayoutStrategy, require_layout
from mm.train.trainer import strategy_of
from mm.train.vqvae import train_vqvae
from mm.train.vqvae_config import VQVAEConfig

CPU = torch.device("cpu")


def refused(config: AlignConfig, word: str, processes: int) -> str:
    with pytest.raises(UserError) as error:
        require_layout(config, ParallelConfig.of_word(word), processes)
    return str(error.value)


def test_a_layout_is_refused_with_what_would_do(tiny: AlignConfig) -> None:
    require_layout(tiny, ParallelConfig.of_word("fsdp4-tp2-ep2"), 8)
    assert "takes 4 processes, train.devices times train.num_nodes are 2: --train.devices 4" in refused(
        tiny, "fsdp4", 2
    )
    for word in ("ddp2-pp2", "fsdp2-pp2", "tp2-pp2"):
        require_layout(tiny, ParallelConfig.of_word(word), 4)
    assert "tp4 does not divide the 2 heads" in refused(tiny, "tp4", 4)
    assert "do not divide the batch of 8" in refused(tiny, "fsdp3", 3)
    writes = replace(tiny, model=replace(tiny.model, generate=True))
    require_layout(writes, ParallelConfig.of_word("fsdp2-tp2"), 4)
    assert "model.generate" in refused(writes, "pp2", 2)
    still = replace(tiny, schedule=ScheduleConfig("detail_projected"))
    assert "schedule.kind detail_projected" in refused(still, "fsdp2", 2)
    idle = replace(tiny, schedule=ScheduleConfig("projections_first"))
    require_layout(idle, ParallelConfig.of_word("fsdp2-tp2"), 4)
    assert "leave pp out of the layout" in refused(idle, "pp2", 2)


def test_the_refusal_comes_before_anything_is_read(tiny: AlignConfig, tmp_path: Path) -> None:
    train = replace(tiny.train, strategy="fsdp2", devices=1)
    with pytest.raises(UserError, match=r"train\.strategy fsdp2: it takes 2 processes"):
        train_align(replace(tiny, train=train, runs=str(tmp_path), data=replace(tiny.data, root="nowhere")))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="an encoder alone is not divided"):
        train_vqvae(VQVAEConfig(train=train, runs=str(tmp_path)))


@pytest.mark.parametrize("name", ["fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_3"])
def test_engines_that_find_no_tensors_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="ZeRO-3 is a layout such as fsdp8"):
        strategy_of(TrainConfig(strategy=name), CPU)


def test_a_layout_is_a_strategy_of_its_own() -> None:
    strategy = strategy_of(TrainConfig(strategy="fsdp2-ep2"), CPU)
    assert isinstance(strategy, LayoutStrategy) and strategy.layout == ParallelConfig(dp_shard=2, ep=2)
