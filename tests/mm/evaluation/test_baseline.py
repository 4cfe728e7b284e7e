"""A baseline answers the same question."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from eval.protocols import Protocol
from mm.evaluation.baseline import RESULTS, stored_baseline

ASKED = Protocol("toy", "val", 40, 200, "5", rerank_depth=2, trained_on="trained on toy/train")


def store(folder: Path, name: str, rsum: float, **changes: object) -> None:
    protocol = replace(ASKED, **changes)  # type: ignore[arg-type]
    result = {
        "metrics": {"RSUM": rsum, "image_to_text/R@1": rsum / 6, "reranked/image_to_text/R@1": rsum / 5},
        "intervals": {},
        "protocol": {"val": asdict(protocol)},
    }
    (folder / f"{name}-on-toy-val.json").write_text(json.dumps(result))


def test_the_best_of_the_same_question_is_taken_whoever_answered_it(tmp_path: Path) -> None:
    assert stored_baseline(ASKED, tmp_path) is None
    store(tmp_path, "better", 300, trained_on="zero-shot", rerank_depth=10)
    store(tmp_path, "worse", 200)
    store(tmp_path, "other", 500, images=41)
    found = stored_baseline(ASKED, tmp_path)
    assert found is not None and found.name == "better" and found.metrics == {"RSUM": 300, "image_to_text/R@1": 50}
    store(tmp_path, "best", 400)
    found = stored_baseline(ASKED, tmp_path)
    assert found is not None and found.metrics["reranked/image_to_text/R@1"] == 80


def test_what_the_repository_stores_can_be_read() -> None:
    assert stored_baseline(ASKED, RESULTS) is None and len(list(RESULTS.glob("*-on-*.json"))) > 2
