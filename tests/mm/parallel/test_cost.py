"""The cost model: what must hold of any, and counts that can be made by hand."""

from dataclasses import replace

import pytest

from mm.parallel.cost import MACHINES, Machine, Rates, Workload, estimate
from mm.parallel.layout import ParallelConfig

LOAD = Workload(dense=4e9, experts=8e9, flops=6e9, layers=10, width=1000, attended=0, tokens=8000, top_k=2)
PLAIN = Machine(peak=1e12, memory=1e12, hbm=28e9, nvlink=1e9, network=1e8)
RATES = Rates(1, 1, 1, 1, 1, 1, 1, 1)


def of(word: str, load: Workload = LOAD) -> tuple[dict[str, float], dict[str, float]]:
    found = estimate(load, ParallelConfig.of_word(word), PLAIN, RATES)
    return found.bytes, found.seconds


def test_one_gpu_computes_and_waits_for_nobody() -> None:
    bytes_, seconds = of("fsdp1")
    assert seconds["products"] == pytest.approx(8000 * 6e9 / 1e12)
    assert seconds["optimizer"] == pytest.approx(12)  # 28 bytes of 12e9 parameters at 28e9 a second
    assert sum(seconds.values()) == pytest.approx(seconds["products"] + seconds["optimizer"])
    assert (bytes_["parameters"], bytes_["gradients"], bytes_["moments"]) == (48e9, 48e9, 96e9)


def test_sharding_divides_what_is_held_and_replication_does_not() -> None:
    whole, shared, replicated = (of(word)[0] for word in ("fsdp1", "fsdp8", "ddp8"))
    for role in ("parameters", "gradients", "moments"):
        assert shared[role] == whole[role] / 8 and replicated[role] == whole[role]
    assert shared["activations"] == whole["activations"]


def test_tensors_and_stages_divide_products_too() -> None:
    alone = of("fsdp1")[1]["products"]
    assert of("tp2")[1]["products"] == of("pp2")[1]["products"] == alone / 2
    assert of("fsdp8-ep8")[1]["products"] == alone


def test_a_pipeline_stands_still_for_the_stages_before_it() -> None:
    load = replace(LOAD, microbatches=8)
    seconds = of("pp5", load)[1]
    assert seconds["bubble"] == pytest.approx(seconds["products"] * 4 / 8)
    assert of("pp5", replace(load, turns=2))[1]["bubble"] == pytest.approx(seconds["bubble"] / 2)
    assert of("fsdp5", load)[1]["bubble"] == 0


def test_a_loss_over_the_whole_batch_costs_a_pipeline_one_more_forward() -> None:
    twice = replace(LOAD, techniques=frozenset({"grad_cache"}))
    seconds = of("tp2-pp2", twice)[1]
    assert seconds["second forward"] == pytest.approx(seconds["products"] / 3)
    assert seconds["tensor parallel"] == pytest.approx(1.5 * of("tp2-pp2")[1]["tensor parallel"])
    assert of("tp2", twice)[1]["second forward"] == of("tp2-pp2")[1]["second forward"] == 0


def test_what_lies_outside_of_blocks_is_divided_by_sharding_alone() -> None:
    load = replace(LOAD, outside=1e9, outside_flops=2e9)
    for word, share in (("tp2", 6.5e9), ("pp2", 6.5e9), ("fsdp2", 6e9), ("fsdp2-tp2", 3.25e9)):
        assert of(word, load)[0]["parameters"] == pytest.approx(4 * share)
    heads = replace(load, outside_whole=2e8)  # whole on every process, but only beside a pipeline
    assert of("fsdp2", heads) == of("fsdp2", load)
    assert of("fsdp2-pp2", heads)[0]["parameters"] == pytest.approx(4 * (0.2e9 + 0.8e9 / 2 + 11e9 / 4))
    assert of("tp2", load)[1]["products"] == pytest.approx(8000 * (2e9 + 4e9 / 2) / 1e12)


def test_sums_of_tensor_parallelism_are_counted() -> None:
    # Four sums a layer, each sent and received: 2 · 2 bytes · tokens · width · 1/2, at NVLink's rate.
    assert of("tp2")[1]["tensor parallel"] == pytest.approx(10 * 4 * 2 * 2 * 8000 * 1000 / 2 / 1e9)
    assert (
        of("tp2", replace(LOAD, techniques=frozenset({"async_tp"})))[1]["tensor parallel"]
        < of("tp2")[1]["tensor parallel"]
    )


def test_rows_to_other_machines_pass_the_network() -> None:
    # Two rows of a token four times a layer; within a machine 7/8 of them leave a GPU.
    assert of("fsdp8-ep8")[1]["expert parallel"] == pytest.approx(10 * 4 * 2 * 8000 * 2 * 1000 * (7 / 8) / 1e9)
    assert of("fsdp16-ep16")[1]["expert parallel"] > 2 * of("fsdp8-ep8")[1]["expert parallel"]


def test_collectives_hide_behind_products_as_far_as_these_last() -> None:
    assert of("fsdp8", replace(LOAD, tokens=8e9))[1]["data parallel"] == 0
    assert of("fsdp8", replace(LOAD, tokens=1))[1]["data parallel"] == pytest.approx(8 * 12e9 * (7 / 8) / 1e9, rel=1e-3)


def test_recomputing_keeps_less_and_takes_longer() -> None:
    rates = Rates()
    rows = [
        estimate(replace(LOAD, recompute=how), ParallelConfig(), PLAIN, rates) for how in ("none", "selective", "full")
    ]
    assert [row.bytes["activations"] for row in rows] == sorted((r.bytes["activations"] for r in rows), reverse=True)
    assert rows[2].seconds["products"] == pytest.approx(rows[0].seconds["products"] * 4 / 3)


def test_efficiency_is_the_share_of_a_step_in_which_a_gpu_works() -> None:
    one = estimate(LOAD, ParallelConfig(), MACHINES["h100"], Rates())
    many = estimate(LOAD, ParallelConfig(dp_shard=64), MACHINES["h100"], Rates())
    assert one.efficiency == 1 and 0 < many.efficiency < 1
