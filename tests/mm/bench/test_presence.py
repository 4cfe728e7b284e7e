"""Every legal set of modalities, frozen or not, with a third of something absent, trains, evaluates and reports."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from mm.bench import presence
from mm.bench.presence import (
    FACTORS,
    PresenceRow,
    check_result,
    combinations,
    expected_protocol,
    pairwise_cover,
    run_row,
    train_in_processes,
)
from mm.evaluation.config import EvalCoco
from mm.evaluation.request import answer
from mm.train.align import train_align

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_align.py"
MOST_ROWS = 14
TWO_PROCESSES = 2
"""Rows that train on two processes; `make soak` trains all."""


def test_the_cover_has_every_two_values_of_two_factors_in_few_rows() -> None:
    rows = pairwise_cover(FACTORS)
    assert len(rows) <= MOST_ROWS
    for (one, values), (other, others) in itertools.combinations(FACTORS.items(), 2):
        for pair in itertools.product(values, others):
            assert any((getattr(row, one), getattr(row, other)) == pair for row in rows), (one, other, pair)


def some_rows() -> list[PresenceRow]:
    """The cover, on one process but for few rows: each costs as much as all others when it starts two."""
    cover = pairwise_cover(FACTORS)
    twice = [row for row in cover if row.processes == 2][:TWO_PROCESSES]
    return [row if row in twice else replace(row, processes=1) for row in cover]


@pytest.mark.parametrize("row", dict.fromkeys(some_rows()), ids=lambda row: row.name)
def test_a_third_absent_trains_two_steps_is_evaluated_and_reported(row: PresenceRow, tmp_path: Path) -> None:
    """What the finished run says of itself is what eval_coco says of it; both are what was written to disk."""
    result = run_row(row, tmp_path, train_align if row.processes == 1 else train_in_processes(SCRIPT))
    again = answer(EvalCoco(run=tmp_path / row.name, samples=10)).result
    assert again["protocol"]["val"] == result["protocol"]["val"]
    for name, value in result["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, abs=1e-3), name


def test_a_result_that_says_what_was_not_there_is_refused() -> None:
    row = replace(combinations(FACTORS)[0], modalities=("image", "text"), absent="image", layout="shards")
    protocol = expected_protocol(row)
    assert protocol == {
        "samples": 9,
        "present": {"image": 6, "text": 9},
        "gallery": {"image_to_text": 12, "text_to_image": 6},
    }
    metrics = {"chance/image_to_text/R@1": 100 / 6, "chance/text_to_image/R@1": 100 / 6}
    check_result(row, {"protocol": {"val": protocol}, "metrics": metrics})
    wrong = [
        {"protocol": {"val": protocol | {"samples": 6}}, "metrics": metrics},
        {"protocol": {"val": protocol}, "metrics": metrics | {"R@1": float("nan")}},
        {"protocol": {"val": protocol}, "metrics": metrics | {"chance/text_to_image/R@1": 100 / 9}},
    ]
    for result in wrong:
        with pytest.raises(ValueError, match="image_text-scratch-no_image-shards-1"):
            check_result(row, result)


def test_a_combination_that_fails_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both, only the one in processes of its own is started by the script, which says in one line why it ends."""
    first = pairwise_cover(FACTORS)[0]
    monkeypatch.setattr(presence, "combinations", lambda factors: [first, replace(first, processes=2)])
    monkeypatch.setattr(presence, "train_align", lambda config: None)
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit('script: ' + sys.argv[1])\n")
    found = presence.run_all(tmp_path, script)
    failed = found["failed"]
    assert found["rows"] == 2 and list(failed) == [first.name, first.name[:-1] + "2"]
    assert "result.json" in failed[first.name] and "code 1: script: --config" in failed[first.name[:-1] + "2"]
    assert "2 of 2" in capsys.readouterr().out
