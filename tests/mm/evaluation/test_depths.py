"""Depths of re-ranking over a stand-in for the run: what is asked of it, and what is not asked again."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels.errors import UserError
from mm.evaluation.config import RerankDepths
from mm.evaluation.depths import rerank_depths

NAMES = ("image_to_text/R@1", "text_to_image/R@1")


class Evaluated:
    """In the place of mm.evaluation.models.FinishedRun: re-ranking to depth d is worth d points."""

    def __init__(self, folder: Path, root: str | None, *, rerank: int) -> None:
        self.depth = rerank
        self.run = SimpleNamespace(model=SimpleNamespace(encoders=None))
        self.data = SimpleNamespace(cache_features=lambda encoders, splits: None)

    def open(self, split: str) -> str:
        return split

    def evaluate(self, dataset: str, split: str) -> tuple[dict, None]:
        if self.depth == 13:
            raise UserError("eval_coco: 13 brings bad luck")
        kinds = {"": 0, "reranked/": self.depth} if self.depth else {"": 0}
        metrics = {kind + name: 50.0 + d for kind, d in kinds.items() for name in NAMES}
        intervals = {name: [value - 2, value + 2] for name, value in metrics.items()}
        return {"metrics": metrics, "intervals": intervals, "seconds": 0.5}, None


@pytest.fixture
def depths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str, float]]]:
    """depths(0, 5) -> (variant, measure, value) of the table."""
    monkeypatch.setattr("mm.evaluation.depths.FinishedRun", Evaluated)

    def run(*asked: int) -> list[tuple[str, str, float]]:
        table = rerank_depths(RerankDepths(run=tmp_path, depths=asked, table=tmp_path / "out" / "rerank.csv"))
        return [(row["variant"], row["measure"], float(row["value"])) for row in csv.DictReader(table.open())]

    return run


def test_each_depth_is_a_variant_with_its_interval(depths: Callable[..., list]) -> None:
    found = {(variant, measure): value for variant, measure, value in depths(0, 5)}
    assert found["0", "image_to_text/R@1"] == 50 and found["5", "image_to_text/R@1"] == 55
    assert (found["5", "text_to_image/R@1/low"], found["5", "text_to_image/R@1/high"]) == (53, 57)
    assert ("5", "seconds") in found


def test_what_the_table_has_is_not_evaluated_again(depths: Callable[..., list]) -> None:
    first = depths(0)
    assert depths(0, 2)[: len(first)] == first and len(depths(0, 2)) == 2 * len(first)


def test_an_evaluation_that_fails_says_why(depths: Callable[..., list]) -> None:
    with pytest.raises(ValueError, match="depth 13: eval_coco: 13 brings bad luck"):
        depths(13)


def test_by_default_the_table_lies_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.evaluation.depths.FinishedRun", Evaluated)
    assert rerank_depths(RerankDepths(run=tmp_path, depths=(0,))) == tmp_path / "rerank.csv"
