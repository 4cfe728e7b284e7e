"""The pages' tables say what the results say, and nothing else."""

import json
from dataclasses import asdict

import pytest

from eval.adapted import AdaptedRow
from eval.protocols import Protocol
from eval.studies import Study
from eval.tables import (
    adapted_rows_table,
    baseline_of,
    corruption_table,
    gather,
    gpu_table,
    headline_table,
    is_run,
    kernels_table,
    kills_table,
    memory_table,
    pretraining_of,
    retrieval_table,
    stored_name,
    studies_table,
    utilization_table,
    without_places,
)


@pytest.fixture
def run():
    recalls = {f"{d}/R@{k}": 10.0 * k for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    return {
        "metrics": recalls | {"RSUM": 123.4, "experts/image/used": 87.5, "experts/image/perplexity": 60.0},
        "intervals": {},
        "protocol": {"val": asdict(Protocol("coco_mini", "val", 1630, 8150, "5-7", trained_on="zero-shot"))},
        "config": {"name": "mine", "model": {"backbone": {"moe": {"num_experts": 128, "top_k": 8}}}},
        "commit": "abc",
        "hardware": "2 cores",
        "seconds": 6100.0,
        "seconds_features": 7.0,
        "parameters_total": 4_000_000,
        "parameters_active": 1_000_000,
    }


def test_a_run_is_a_row_with_its_protocol_and_where_it_was_measured(run):
    table = retrieval_table([run])
    assert (
        "| mine | coco_mini/val, 1,630 images × 5-7 captions, zero-shot | 10.0/50.0/100.0 | 10.0/50.0/100.0 | 123.4 | –"
        " | 4.0 M, 1.0 M | 6,100, features 7 |"
    ) in table
    assert table.endswith("Measured on: 2 cores (commits abc).")
    run["protocol"]["val"]["trained_on"] = "trained on coco_mini/train"
    run["metrics"] |= {"reranked/RSUM": 130.0} | {f"reranked/{d}/R@1": 11.0 for d in ("image_to_text", "text_to_image")}
    table = retrieval_table([run, run | {"commit": "def", "seconds_features": 0.0}])
    assert "held-out split" in table and "130.0, R@1 11.0 / 11.0" in table and "(commits abc, def)" in table
    assert "| 6,100 |" in table


def test_what_the_trunks_had_seen_is_said_once_for_runs_of_the_same(run):
    other = json.loads(json.dumps(run)) | {"config": run["config"] | {"name": "other"}}
    other["protocol"]["val"]["pretraining"] = "image: pairs"
    again = run | {"config": run["config"] | {"name": "again"}}
    assert pretraining_of([run, other, again]) == "- mine, again: not stated.\n- other: image: pairs."


def test_utilization_is_by_modality_and_a_bottleneck_without_codes_has_none(run):
    assert utilization_table([run]).splitlines()[2:] == ["| mine on coco_mini/val | image | – | – | 87.5 | 60.0 |"]


def test_a_study_is_told_against_its_first_variant():
    made = Study("made", {"a": {"RSUM": {0: 1.0, 1: 3.0}, "image_to_text/R@1": {0: 4.0}}, "b": {"RSUM": {0: 2.0}}})
    other = Study("other", {"a": {"accuracy": {0: 1.0}}})
    rows = studies_table({"made": made, "other": other}).splitlines()[2:]
    assert rows == [
        "| made | a | 2 | 2.0 | 4.0 | – | – | – |  |",
        "| made | b | 1 | 2.0 | – | – | – | – | +1.00 (one seed: no interval) |",
    ]


def test_the_default_is_told_against_linear_heads():
    values = {"default": {0: 470.0, 1: 472.0}, "linear": {0: 350.0}, "linear_equal_time": {0: 500.0, 1: 501.0}}
    said = baseline_of({"baseline": Study("baseline", {name: {"RSUM": each} for name, each in values.items()})})
    assert "over 2 seeds: RSUM 471." in said and "350 in as many steps, 500 in as much time" in said
    assert "-29.50 [" in said and baseline_of({}) == ""


def test_adapted_rows_say_their_group():
    seed = {"trainable": 10, "peak memory, GiB": 1.0, "minutes": 2.0, "domain before": 100.0, "domain after": 110.0}
    table = adapted_rows_table([AdaptedRow("full", "RSUM of molecules/val", "base", (seed,))])
    assert "| RSUM of molecules/val, from base | full | 1 | 10 | 1.0 | 2.0 | 100.0 → 110.0 | — |" in table


def test_what_is_gathered_is_sorted_by_what_it_is(run):
    rows = [{"strategy": "full", "score": "RSUM", "base": "base", "seeds": [{"trainable": 1}]}]
    gathered = gather([run], {"made": Study("made", {"a": {"RSUM": {0: 1.0}}})}, {"adapt": {"rows": rows}})
    assert gathered.adapted == [AdaptedRow("full", "RSUM", "base")] and "made" in gathered.studies


def test_the_first_page_has_two_runs_beside_chance(run):
    protocol = asdict(Protocol("scenes", "val", 1000, 5000, "5", trained_on="trained on scenes/train"))
    default = run | {"config": run["config"] | {"name": "default"}, "protocol": {"val": protocol}, "seconds": 120.0}
    table = headline_table([run, default])
    assert table.count("\n") == 2
    assert table.endswith("| default | scenes/val, 1,000 images | 10.0 % | 10.0 % | 123 | 3.2 | 2 |")


def test_what_a_soak_and_a_bench_found_stands_in_tables():
    counts = {"trials": 1000, "refused": 3, "silent": 0}
    assert corruption_table({"corrupt": {"subjects": {"images": counts}}}).endswith("| images | 1,000 | 3 | 0 |")
    killed = {"steps": 1000, "killed_after_logged_step": [3, 999], "tensors": 40, "tensors_that_differ": ["a"]}
    assert kills_table(killed).endswith("| 2 | 1 | 1,000 | 40 | 1 |")
    assert memory_table({"resident_mib_by_step": {"500": 1182.5}}).endswith("| MiB | 1,182 |")
    row = {"op": "info_nce", "case": "8x8", "dtype": "float32", "pass": "forward", "peak_bytes": 2e6}
    row |= {"device": "a CPU", "torch": "2.11.0", "date": "2026-11-27"}
    rows = [
        row | {"implementation": "ours", "milliseconds": 0.5},
        row | {"implementation": "peer", "milliseconds": 2.0},
    ]
    text = kernels_table(rows)
    assert "| info_nce, 8x8, float32, forward | ours 0.50 ms, 2 MB; peer 2.00 ms (0.25 ×) |" in text
    assert "Measured on: a CPU, torch 2.11.0, 2026-11-27" in text


def test_a_kept_result_says_nothing_of_where_its_run_lay(run):
    assert without_places({"a": ["/x/runs", "../photographs", 3], "b": "/tmp"}) == {
        "a": ["runs", "../photographs", 3],
        "b": "tmp",
    }
    assert stored_name(run) == "mine-on-coco_mini-val.json"


def test_benchmarks_are_no_runs(run):
    assert is_run(run)
    assert not is_run([run]) and not is_run({"rows": []}) and not is_run({"metrics": run["metrics"]})


def test_a_gpu_has_a_table_that_says_where_it_was_measured():
    row = {"op": "info_nce", "case": "8x8", "dtype": "float32", "pass": "forward_backward", "peak_bytes": 2e6}
    rows = [
        row | {"implementation": "ours", "milliseconds": 0.5},
        row | {"implementation": "peer", "milliseconds": 2.0},
    ]
    gpu = {
        "card": "NVIDIA H200",
        "torch": "2.11.0",
        "driver": "580",
        "triton": "3.6.0",
        "cores": 16,
        "commit": "abc",
        "seconds": 200.4,
        "parts": {
            "kernels": {"state": "done", "seconds": 1.0, "rows": rows},
            "run": {"state": "out of time", "seconds": 75.0},
        },
    }
    text = gpu_table(gpu)
    assert "| info_nce, 8x8, float32, forward + backward | ours 0.50 ms, 2 MB; peer 2.00 ms (0.25 ×) |" in text
    assert "| run | out of time |" in text and "NVIDIA H200, torch 2.11.0, driver 580" in text
