"""The report's tables: directions are rows, utilization is by part, and what is absent is said."""

import numpy as np
import pytest

from eval.diagnostics import Diagnostics
from eval.report_tables import metrics_table, utilization_tables


def cells(rows):
    return [[cell["value"] for cell in row] for row in rows]


def test_directions_are_rows_and_measures_columns():
    result = {
        "metrics": {"a_to_b/R@1": 61.2, "a_to_b/true_recall@1": 9.0, "RSUM": 400.0, "codes/image/used": 99.0},
        "intervals": {"a_to_b/R@1": [55.0, 67.04]},
    }
    table = metrics_table(result)
    assert table["heads"] == ["", "R@1", "RSUM"]
    assert cells(table["rows"]) == [["a to b", "61.20", ""], ["overall", "", "400.00"]]
    assert table["rows"][0][1]["small"] == "55.0–67.0"


def test_utilization_is_by_quantizer_and_layer():
    load = {"image": np.array([[4, 0], [2, 2]]), "text": np.array([[0, 4], [2, 2]])}
    codes, experts = utilization_tables(Diagnostics({"image": np.array([[1, 1, 0, 0]])}, load))
    assert cells(codes["rows"]) == [["image, quantizer 0", "4", "2", "50.0", "2.0", "2.0"]] and codes["note"] == ""
    names = [row[0] for row in cells(experts["rows"])]
    assert names[:2] == ["image, layer 0", "image, layer 1"] and names[-1] == "all, layer 1"
    assert experts["note"] == "Shared routing mass: image & text 0.50"


def test_a_table_without_counts_is_skipped_and_said(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    (experts,) = utilization_tables(Diagnostics(expert_load={"image": np.ones((1, 2))}))
    assert experts["title"] == "Experts in use" and experts["note"] == "" and "'Codes in use'" in caplog.text
