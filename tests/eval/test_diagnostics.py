"""Counts of use, by cases that can be done in the head."""

import numpy as np
import pytest

from eval.diagnostics import Diagnostics, code_utilization, expert_overlap, expert_utilization, utilization


def test_equal_use_has_as_many_effective_codes_as_there_are():
    found = utilization(np.full(16, 3))
    assert found.perplexity == pytest.approx(16) and found.dead == 0 and found.peak == pytest.approx(1)


def test_one_code_for_everything_is_one_effective_code_and_the_rest_dead():
    found = utilization([0, 9, 0, 0])
    assert (found.perplexity, found.dead, found.used, found.peak) == (pytest.approx(1), 3, 25, 4)


def test_nothing_used_is_all_dead():
    assert utilization(np.zeros(5)).dead == 5


def test_every_quantizer_and_layer_is_reported():
    assert [u.dead for u in code_utilization({"image": np.array([[1, 0], [1, 1]])})["image"]] == [1, 0]
    found = expert_utilization({"image": np.array([[4, 0]]), "text": np.array([[0, 4]])})
    assert found["image"][0].dead == 1 and found["all"][0].dead == 0


def test_overlap_is_nothing_for_disjoint_experts_and_one_for_equal_use():
    assert expert_overlap({"a": [[1, 0]], "b": [[0, 5]]})["a & b"] == 0
    assert expert_overlap({"a": [[1, 3]], "b": [[2, 6]]})["a & b"] == pytest.approx(1)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="finite"):
        utilization([1, -1])


def test_counts_survive_the_arrays_of_a_file(tmp_path):
    counts = Diagnostics({"image": np.array([[1, 2]])}, {"image": np.ones((2, 3)), "text": np.zeros((2, 3))})
    np.savez(tmp_path / "diagnostics.npz", **counts.arrays())
    with np.load(tmp_path / "diagnostics.npz") as arrays:
        found = Diagnostics.of(arrays)
    assert found.code_counts["image"].tolist() == [[1, 2]]
    assert found.expert_load.keys() == {"image", "text"} and (found.expert_load["image"] == 1).all()


def test_loads_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        expert_utilization({"image": np.ones((2, 3)), "text": np.ones((2, 4))})
