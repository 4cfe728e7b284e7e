"""A claim stands beside what the stored results say of it, or beside the reason why they say nothing."""

from dataclasses import asdict

import pytest

from eval.adapted import AdaptedRow
from eval.claims import Evidence, adaptation, checkpointing, claims, experts, matching, progression, scaling, sharding
from eval.protocols import Protocol
from eval.studies import Study


@pytest.fixture
def run():
    recalls = {f"{d}/R@{k}": 10.0 * k for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    return {
        "metrics": recalls,
        "intervals": {},
        "protocol": {"val": asdict(Protocol("coco_mini", "val", 163, 815, "5", trained_on="zero-shot"))},
        "config": {"name": "mine", "model": {"backbone": {"moe": {"num_experts": 128, "top_k": 8}}}},
        "parameters_total": 4_000_000,
        "parameters_active": 1_000_000,
    }


def test_without_evidence_every_claim_says_so(run):
    run["protocol"]["val"]["dataset"] = "scenes"
    rows = claims(Evidence([run]))
    assert len(rows) == 13 and len({row.claim for row in rows}) == 13
    assert all("not measured" in row.measured or "cannot be" in row.measured for row in rows)


def test_experts_are_counted_and_a_study_of_equal_training_is_told(run):
    measured = experts(Evidence([run])).measured
    assert measured == "mine: 128 experts, 8 active, 25 % of parameters; hardware not measured here"
    values = {"parameters_total": 4e6, "parameters_active": 1e6, "RSUM": 50.0, "seconds": 9.0}
    by_seed = {name: {0: value, 1: value + (name == "RSUM")} for name, value in values.items()}
    found = experts(Evidence([run], {"experts": Study("experts", {"sparse": by_seed})}))
    told = "2 seeds of few steps: sparse: 1.0 of 4.0 M parameters active, RSUM 50.5, 9 s"
    assert found.measured.endswith(told) and "experts.yaml" in found.command


def test_a_schedule_is_told_by_what_it_gained_over_contrastive_terms():
    of_seeds = {
        name: {"RSUM": dict(enumerate(values))}
        for name, values in {"plain": (300.0, 310.0), "slow": (290.0, 300.0)}.items()
    }
    study = Study("photographs", of_seeds)
    assert progression(Evidence([], {"photographs": study})).measured == (
        "RSUM of flickr8k/val against plain, at equal steps: slow -10.00 [-10.00, -10.00] over 2 seeds: a difference"
    )


def test_matching_names_gallery_negatives_and_scorer(run):
    name = "matching/hard/match head"
    run["protocol"][name] = asdict(Protocol("coco_mini", "val", 163, 815, "5", task="binary matching"))
    run["metrics"][f"{name}/accuracy"] = 91.24
    run["intervals"][f"{name}/accuracy"] = [90.0, 92.5]
    assert matching(Evidence([run])).measured == (
        "mine on 163 images of coco_mini/val: R@1 10.0 / 10.0 (not the 5K test);"
        " mine on coco_mini/val, hard negatives, match head: accuracy 91.2 % [90.0, 92.5]"
    )


def test_of_each_set_the_strategy_that_gained_most_is_told():
    seed = {"domain before": 100.0, "general before": 300.0, "general after": 290.0}
    rows = [
        AdaptedRow(how, score, "base", (seed | {"domain after": after},))
        for how, score, after in (
            ("lora", "RSUM of a", 119.0),
            ("full", "RSUM of a", 110.0),
            ("full", "RSUM of b", 90.0),
        )
    ]
    measured = adaptation(Evidence([], adapted=rows)).measured
    assert "RSUM of a, lora: 100.0 → 119.0 (+19 %), RSUM of its own set 300.0 → 290.0" in measured
    assert "RSUM of b, full: 100.0 → 90.0 (-10 %)" in measured and "110.0" not in measured


def test_checkpointing_needs_both_measurements():
    steps = {
        name: {"rows": [{"implementation": "ours", "peak_bytes": size, "milliseconds": 10.0}]}
        for name, size in (("step_default", 4e8), ("step_default_checkpoint", 2e8))
    }
    assert "400 MB to 200 MB, for 10 ms to 10 ms" in checkpointing(Evidence([], benchmarks=steps)).measured
    memory = {"case": "bench, batch 4", "peak_bytes": 3e8, "milliseconds": 5.0}
    rows = [memory | {"implementation": f"{name} checkpointing"} for name in ("without", "with")]
    gpu = {"card": "A GPU", "parts": {"memory": {"state": "done", "rows": rows}}}
    measured = checkpointing(Evidence([], benchmarks=steps | {"gpu_a": gpu})).measured
    without = "A GPU, memory of a step, bench, batch 4: without checkpointing 300 MB, 5.00 ms"
    assert measured.endswith(f"{without}; with checkpointing 300 MB, 5.00 ms")
    del steps["step_default"]
    assert checkpointing(Evidence([], benchmarks=steps)).measured == "not measured here"


PLAN = {
    "run": "70b",
    "gpus": 256,
    "batch_size": 4096,
    "machine": {"name": "h100"},
    "whole": {"memory": 1000e9},
    "sharded": {"memory": 20e9},
    "rows": [
        {"layout": "fsdp128-pp2", "efficiency": 0.8, "trains": False},
        {"layout": "fsdp256", "efficiency": 0.7, "trains": True},
    ],
}


def test_sharding_is_measured_where_it_can_be_and_predicted_where_it_cannot():
    rows = [{"layout": "fsdp2", "bytes": {"parameters": 52}, "bytes_alone": {"parameters": 100}}]
    said = sharding(Evidence([], benchmarks={"layouts": {"rows": rows}, "plan_70b": PLAN})).measured
    assert "fsdp2, measured on gloo: 48.0 % less" in said and "fsdp4" not in said
    assert "70b on 256 x h100, by formula and not measured: 1,000 to 20.0 GB a GPU, 98 % less" in said


def test_scaling_is_a_prediction_with_its_error():
    said = scaling(Evidence([], benchmarks={"plan_70b": PLAN, "plan_published": {"error_tokens": 8.2}})).measured
    assert said.startswith("predicted, not measured, of 70b on 256 x h100, 4,096 samples a step")
    assert "fsdp128-pp2 80 %, fsdp256 70 %; such predictions are 8 % off published speeds" in said
