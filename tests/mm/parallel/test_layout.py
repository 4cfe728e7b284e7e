"""A layout is one word, and says why a model cannot be divided so."""

from dataclasses import replace

import pytest

from kernels.errors import UserError
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.parallel.layout import ParallelConfig, is_layout, layouts, microbatches, obstacle, untrained

MODEL = BackboneConfig(width=64, layers=6, heads=4, moe=MoEConfig(num_experts=12, top_k=2, hidden=16, shared=32))


@pytest.mark.parametrize("word", ["fsdp8-tp2-ep4", "ddp2-fsdp4", "fsdp4-tp2-pp3", "pp2-vpp2", "fsdp1", "pp2", "ddp2"])
def test_a_word_says_the_layout_and_back(word: str) -> None:
    assert str(ParallelConfig.of_word(word)) == word and is_layout(word)


def test_processes_are_counted() -> None:
    layout = ParallelConfig.of_word("ddp2-fsdp8-tp2-pp3-ep4")
    assert (layout.data, layout.processes) == (16, 96)  # experts take no processes


@pytest.mark.parametrize("word", ["fsdp", "fsdp0", "tp2-tp2", "zero3", "fsdp2-x", "fsdp6-ep4", "fsdp2+tp2", "vpp2", ""])
def test_a_word_that_is_no_layout_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="layout"):
        ParallelConfig.of_word(word)


def test_lightning_s_strategies_are_no_layouts() -> None:
    assert not any(
        is_layout(name) for name in ("auto", "ddp", "fsdp", "ddp_spawn", "deepspeed_stage_3", "single_device")
    )


@pytest.mark.parametrize(
    "word, said",
    [
        ("tp3", "tp3 does not divide the 4 heads: take one of [1, 2, 4]"),
        ("fsdp8-ep8", "ep8 does not divide the 12 experts"),
        ("fsdp8-tp4-ep8", "ep8-tp4 does not divide the 12 experts"),
        ("pp4", "pp4 does not divide the 6 blocks: take one of [1, 2, 3, 6]"),
        ("pp2-vpp2", "pp2 times vpp2 does not divide the 6 blocks"),
        ("fsdp6", "6 processes with samples of their own do not divide the batch of 64"),
        ("fsdp10-ep2", "divides an expert in 5"),
        ("fsdp4-tp2", None),
        ("ddp2-fsdp4-tp4-pp3", None),
        ("fsdp4-ep4", None),
    ],
)
def test_what_cannot_be_divided_is_said(word: str, said: str | None) -> None:
    found = obstacle(ParallelConfig.of_word(word), MODEL, 64)
    assert found is None if said is None else found is not None and said in found


def test_a_shared_expert_that_does_not_divide_is_said() -> None:
    model = replace(MODEL, moe=replace(MODEL.moe, shared=30))
    assert "width 30" in (obstacle(ParallelConfig(tp=4), model, 64) or "")


def test_dropout_in_a_pipeline_is_said() -> None:
    assert "set model.backbone.dropout=0" in (obstacle(ParallelConfig(pp=2), replace(MODEL, dropout=0.1), 64) or "")


def test_what_train_align_lacks_is_said() -> None:
    for word, writes, lacks in (
        ("ddp2-pp2-vpp3", False, False),
        ("fsdp2-tp2-pp2", False, False),
        ("fsdp2-tp2", True, False),
        ("pp2", True, True),
    ):
        assert (untrained(ParallelConfig.of_word(word), writes) is not None) == lacks
    layout = ParallelConfig.of_word("pp2-vpp3")
    assert [microbatches(rows, layout) for rows in (1, 3, 5, 8, 64)] == [2, 2, 4, 8, 8]


def test_every_division_is_met_once_and_tensors_stay_in_a_machine() -> None:
    found = list(layouts(8, node=2))
    assert len(set(found)) == len(found) and {each.processes for each in found} == {8}
    assert max(each.tp for each in found) == 2 and max(each.ep for each in found) == 8
