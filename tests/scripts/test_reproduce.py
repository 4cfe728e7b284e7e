"""The pages' tables say what the result files say, and nothing else."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from eval.protocols import Protocol

PROTOCOL = Protocol("coco_mini", "val", 163, 815, "5", trained_on="zero-shot, trained on flickr8k/train")

NAMES = ("retrieval", "studies", "adapted", "claims")
PAGE = "\n".join(f"<!-- {name}: written by scripts/reproduce.py -->old<!-- /{name} -->" for name in NAMES)


@pytest.fixture
def result() -> dict:
    recalls = {f"{d}/R@{k}": 10.0 * k for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    return {
        "metrics": recalls | {"RSUM": 123.4, "experts/image/used": 87.5, "experts/image/perplexity": 60.0},
        "intervals": {},
        "protocol": {"val": asdict(PROTOCOL)},
        "config": {"name": "mine", "model": {"backbone": {"moe": {"num_experts": 128, "top_k": 8}}}},
        "commit": "abc",
        "hardware": "2 cores",
        "seconds": 61.0,
        "seconds_features": 7.0,
        "parameters_total": 4_000_000,
        "parameters_active": 1_000_000,
    }


@pytest.fixture
def reproduce(script: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """reproduce(*words) writes R.md from the results of the test's folder."""
    return lambda *words: script("reproduce.py", *places(tmp_path), *words)


def places(folder: Path) -> list[object]:
    return ["--results", folder / "results", "--pages", f"[{folder / 'R.md'}]"]


def test_a_result_becomes_a_row_between_the_markers(
    reproduce: Callable[..., None], tmp_path: Path, result: dict
) -> None:
    run = tmp_path / "result.json"
    run.write_text(json.dumps(result))
    readme = tmp_path / "R.md"
    readme.write_text(f"before\n{PAGE}\nafter\n")
    reproduce("--add", f"[{run}]")
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| mine | coco_mini/val, 163 images × 5 captions, zero-shot | 10.0/50.0/100.0 |" in text
    assert "61, features 7" in text and "128 experts, 8 active, 25 % of parameters" in text
    assert "on 163 images of coco_mini/val: R@1 10.0 / 10.0 (not the 5K test)" in text
    reproduce()
    assert readme.read_text() == text


def test_claims_stand_beside_what_was_measured_of_them(
    reproduce: Callable[..., None], tmp_path: Path, result: dict
) -> None:
    results = tmp_path / "results"
    (results / "ablations").mkdir(parents=True)
    name = "matching/hard/cosine"
    result["protocol"][name] = asdict(replace(PROTOCOL, task="binary matching"))
    result["metrics"][f"{name}/accuracy"] = 91.24
    result["intervals"][f"{name}/accuracy"] = [90.0, 92.5]
    (results / "mine.json").write_text(json.dumps(result))
    rows = [
        (v, seed, m, x)
        for v, total in (("sparse", 4e6), ("dense", 2e6))
        for seed in (0, 1)
        for m, x in {
            "parameters_total": total,
            "parameters_active": 1e6,
            "RSUM": 50 + seed,
            "seconds": 9,
            "image_to_text/R@1": 4.0,
            "text_to_image/R@1": 3.0,
        }.items()
    ]
    lines = [",".join(map(str, ("experts", *row))) for row in rows]
    (results / "ablations" / "experts.csv").write_text("\n".join(["study,variant,seed,measure,value", *lines]))
    adapted = {
        "trainable": 10,
        "peak memory, GiB": 1.0,
        "minutes": 2.0,
        "domain before": 100.0,
        "general before": 300.0,
        "general after": 290.0,
    }
    titles = {"lora on w_in": 119.0, "full": 110.0}
    adapt = {
        "rows": [
            {
                "strategy": how,
                "score": "RSUM of molecules/val",
                "base": "base",
                "seeds": [adapted | {"domain after": after}],
            }
            for how, after in titles.items()
        ]
    }
    steps = {
        name: {"rows": [{"implementation": "ours", "peak_bytes": size, "milliseconds": 10.0}]}
        for name, size in (("step_default", 4e8), ("step_default_checkpoint", 2e8))
    }
    for name, content in {"adapt": adapt, **steps}.items():
        (results / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "R.md").write_text(PAGE)
    reproduce()
    text = (tmp_path / "R.md").read_text()
    assert "2 seeds of few steps: sparse: 1.0 of 4.0 M parameters active, RSUM 50.5, 9 s; dense: 1.0 of" in text
    assert "mine on coco_mini/val, hard negatives, cosine: accuracy 91.2 % [90.0, 92.5]" in text
    assert "lora on w_in: 100.0 → 119.0 (+19 %), RSUM of its own set 300.0 → 290.0" in text and "110.0 (" not in text
    assert "| experts | dense | 2 | 50.5 | 4.0 | 3.0 | – | – | +0.00 [+0.00, +0.00] over 2 seeds: no difference" in text
    assert "400 MB to 200 MB" in text
    assert "| RSUM of molecules/val, from base | full | 1 | 10 | 1.0 | 2.0 | 100.0 → 110.0 |" in text


def test_a_kept_result_says_nothing_of_where_its_run_lay(
    reproduce: Callable[..., None], tmp_path: Path, result: dict
) -> None:
    result["config"] |= {"runs": str(tmp_path / "runs"), "data": {"root": "../photographs", "cache": str(tmp_path)}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "R.md").write_text(PAGE)
    reproduce("--add", f"[{tmp_path / 'result.json'}]")
    text = (tmp_path / "results" / "mine-on-coco_mini-val.json").read_text()
    config = json.loads(text)["config"]
    assert str(tmp_path) not in text
    assert (config["runs"], config["data"]) == ("runs", {"root": "../photographs", "cache": tmp_path.name})


def test_a_result_of_older_code_is_kept_in_today_s_words(
    reproduce: Callable[..., None], tmp_path: Path, result: dict
) -> None:
    old = {"dataset": "coco_mini/val", "split": "val", "images": 163, "captions": 815, "captions_per_image": 5.0}
    old |= {"recall": "any-hit", "rerank_depth": 0, "zero_shot": True, "trained_on": "flickr8k/train", "skipped": {}}
    moe = {"experts": 128, "active": 8}
    result["config"]["model"]["backbone"]["moe"] = moe
    (tmp_path / "result.json").write_text(json.dumps(result | {"protocol": {"val": old}, "judged": "runs/mine"}))
    (tmp_path / "R.md").write_text(PAGE)
    reproduce("--add", f"[{tmp_path / 'result.json'}]")
    kept = json.loads((tmp_path / "results" / "mine-on-coco_mini-val.json").read_text())
    assert kept["protocol"] == {"val": asdict(PROTOCOL)} and "judged" not in kept
    assert kept["config"]["model"]["backbone"]["moe"] == {"num_experts": 128, "top_k": 8}
    text = (tmp_path / "R.md").read_text()
    assert "| mine | coco_mini/val, 163 images × 5 captions, zero-shot |" in text and "128 experts, 8 active" in text


def test_without_results_it_says_how_to_add_one(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--add" in refused("reproduce.py", *places(tmp_path))
