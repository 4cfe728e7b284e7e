"""Adapted runs of one strategy are one row, whatever their seeds."""

from dataclasses import asdict

import pytest

from eval.adapted import adapted_rows, adapted_table, stored_rows
from eval.protocols import Protocol

PROTOCOL = {"val": asdict(Protocol("molecules", "val", 512, 512, "1"))}


def adapted(after, strategy="lora", general=True):
    before = {"domain": 100.0, "general": 300.0} if general else {"domain": 100.0}
    found = {
        "strategy": strategy,
        "run": "base",
        "targets": ["w_in", "w_out"] if strategy == "lora" else [],
        "trainable": 12345,
        "peak_memory_gib": 1.5,
        "minutes": 2.0,
        "selected": {"metric": "RSUM"},
        "before": before,
        "after": {"domain": after, "general": 290.0} if general else {"domain": after},
    }
    return {"protocol": PROTOCOL, "adaptation": found}


def test_seeds_are_averaged_and_groups_are_of_one_set_and_base():
    rows = adapted_rows({"a": adapted(110.0), "b": adapted(130.0, "full"), "c": adapted(120.0)})
    assert [row.strategy for row in rows] == ["lora on w_in + w_out", "full"]
    assert {row.group for row in rows} == {"RSUM of molecules/val, from base"}
    assert rows[0].text() == (
        "lora on w_in + w_out",
        "2",
        "12,345",
        "1.5",
        "2.0",
        "100.0 → 115.0 ± 7.1",
        "300.0 → 290.0",
    )
    assert adapted_table(rows, rows[0].group).row_count == 2 and adapted_table(rows, "other").row_count == 0


def test_what_was_not_measured_is_a_dash():
    (row,) = adapted_rows({"a": adapted(110.0, general=False)})
    assert row.change("general") == "—" and row.change("domain") == "100.0 → 110.0"


def test_continued_pre_training_is_a_strategy():
    found = adapted(110.0)["adaptation"]
    del found["strategy"], found["targets"]
    (row,) = adapted_rows({"a": {"protocol": PROTOCOL, "continued": found}})
    assert row.strategy == "continued pre-training"


def test_rows_survive_their_json():
    rows = adapted_rows({"a": adapted(110.0), "b": adapted(120.0)})
    (again,) = stored_rows({"rows": [asdict(row) | {"seeds": list(row.seeds)} for row in rows]})
    assert again == rows[0] and again.seeds == rows[0].seeds


def test_a_run_that_was_not_adapted_is_named():
    with pytest.raises(ValueError, match="runs/x is no adapted run"):
        adapted_rows({"runs/x": {"protocol": PROTOCOL}})
