"""The benchmark of evaluation: its data, its figures, and peak memory measured in a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from eval.ground_truth import GroundTruth, Matches
from mm.bench import eval as bench
from mm.bench.eval import Data, EvalBenchmark, benchmark_table, largest_difference, made_embeddings, ours, peak_of


@pytest.fixture
def data() -> Data:
    """Twelve images with five captions each, and ten captions more."""
    images = np.repeat(np.arange(12) * 3, 5)
    truth = GroundTruth(np.arange(60), images, {"cxc": Matches({0: [0]}, {0: [0]})})
    return made_embeddings(truth, EvalBenchmark(width=8, noise=0.5))


def test_ten_captions_are_beyond_the_ground_truth(data: Data) -> None:
    items = data.items
    assert items.image.shape == (12, 8) and items.text.shape == (70, 8)
    np.testing.assert_allclose(np.linalg.norm(items.text, axis=1), 1, rtol=1e-5)
    assert items.caption_ids is not None and items.caption_ids[-10:].tolist() == list(range(60, 70))
    found = ours(data)
    assert found["all/image_to_text/R@1"] > 20 and {name.split("/")[0] for name in found} == {"all", "five", "cxc"}
    one = bench.ours_one_protocol(data)
    assert largest_difference(one, found) == {"figures": 6, "largest": 0.0, "at": "all/image_to_text/R@1"}


def test_a_difference_is_named_by_where_it_is_largest() -> None:
    found = largest_difference({"a": 1.0, "b": 5.0}, {"a": 1.5, "b": 3.0, "c": 9.0})
    assert found == {"figures": 2, "largest": 2.0, "at": "b"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_measured_in_a_process_of_its_own(data: Data) -> None:
    assert 0 < peak_of("ours, 5K only", data, threads=1) < 1 << 30


def test_the_table_has_a_row_for_each_implementation() -> None:
    rows = [{"implementation": "ours", "protocol": "5K", "milliseconds": 12.0, "peak_bytes": 3_000_000}]
    size = {"images": 12, "captions": 70, "width": 8, "threads": 2, "hardware": "2 cores", "limit_ms": 3.0}
    assert benchmark_table(size | {"rows": rows}).row_count == 1


def test_real_embeddings_need_the_package(tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark", reason="clip-benchmark is in the bench extra")
    rng = np.random.default_rng(0)
    image = rng.standard_normal((70, 4))
    ids = np.arange(70)
    np.savez(tmp_path / "run.npz", image=image, text=image + 1, image_ids=ids, caption_image_ids=ids)
    found = bench.agreement(tmp_path / "run.npz")
    assert found["figures"] == 6 and found["largest"] < 1e-3
