"""Every contest runs to its end on tiny cases: who takes part, and what a row says, never how long anything took."""

import contextlib
import importlib.util
from collections.abc import Callable

import pytest
import torch

from kernels import bench
from kernels.bench import Op, Row, contest_table, run_contests
from kernels.testing import ContrastiveCase, GroupedMLPCase, NearestCodeCase

PEERS = {
    "grouped_mlp": ("transformers", ["transformers_eager", "transformers_grouped_mm"]),
    "nearest_code": ("vector_quantize_pytorch", ["vector_quantize_pytorch"]),
    "info_nce": ("open_clip", ["open_clip"]),
}


@pytest.fixture
def contests(monkeypatch: pytest.MonkeyPatch) -> Callable[[Op], list[list[Row]]]:
    """contests(op) -> the rows of each contest, on tiny cases, one round each."""
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "GROUPED_MLP", {"tiny": GroupedMLPCase(6, 3, 2, 16, 16)})
    monkeypatch.setattr(bench, "NEAREST_CODE", NearestCodeCase(130, 8, 4))
    monkeypatch.setattr(bench, "CONTRASTIVE", (ContrastiveCase(6, 8),))
    return lambda op: list(run_contests(op, repeats=1, largest=0))


@pytest.mark.parametrize(("op", "count"), [("grouped_mlp", 4), ("nearest_code", 4), ("info_nce", 4)])
def test_each_contest_has_its_definition_its_limit_and_the_installed_peers(
    op: Op, count: int, contests: Callable[[Op], list[list[Row]]]
) -> None:
    library, peers = PEERS[op]
    expected = {"ours", "reference", "limit"}
    if importlib.util.find_spec(library) is not None:
        expected |= set(peers)
    found = contests(op)
    assert len(found) >= count  # of both passes: two dtypes, two metrics of two steps, two losses
    for rows in found:
        assert len(rows) == len(expected) and {row["implementation"] for row in rows} == expected
        for row in rows:
            assert row["op"] == op and row["repeats"] == 1
            assert row["milliseconds"] > 0 and row["peak_bytes"] >= 0
    passes = {row["pass"] for rows in found for row in rows}
    assert passes == ({"forward"} if op == "nearest_code" else {"forward", "forward_backward"})


def test_contests_on_a_gpu_count_the_operations_of_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "GROUPED_MLP_CUDA", {"tiny": GroupedMLPCase(6, 3, 2, 16, 8)})
    forward = 3 * 2 * 16 * 8 * 6 * 2  # three matrices for each of 12 assignments, a multiplication and an addition
    contests = list(bench.mlp_contests_on_cuda())
    assert [contest.operations for contest in contests] == [forward, 3 * forward] * 2
    row, *_ = contests[1].rows(1)
    assert row["teraflops"] == pytest.approx(1e-9 * 3 * forward / row["milliseconds"], abs=0.06)


def test_the_largest_batch_is_ours_alone_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CONTRASTIVE", ())
    ((row,),) = run_contests("info_nce", repeats=5, largest=12)
    assert row["case"] == "12x512, InfoNCE" and row["pass"] == "forward_backward"
    assert row["implementation"] == "ours" and row["repeats"] == 1


def test_on_a_gpu_losses_are_timed_in_every_precision_a_user_may_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DEVICE", "cuda")
    with pytest.warns(UserWarning) if not torch.cuda.is_available() else contextlib.nullcontext():
        precisions = bench.precisions()
    allowed = {}
    for name, precision in precisions.items():
        with precision:
            allowed[name] = torch.backends.cuda.matmul.allow_tf32
    assert allowed == {"": False, " with TF32": True, " under bfloat16 autocast": False}
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_limit_of_a_search_on_a_gpu_is_one_product_of_as_many_multiplications(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    product = bench.square_product(16 * 8 * 4)()
    assert product.shape == (8, 8) and product.dtype == torch.float16


def test_the_table_says_how_much_of_anothers_time_ours_takes() -> None:
    shared = {"op": "grouped_mlp", "case": "tiny", "dtype": "float32", "pass": "forward"}
    times = {"ours": 3.0, "limit": 2.0, "reference": 6.0}
    rows = []
    for name, taken in times.items():
        figures = {"milliseconds": taken, "fastest_milliseconds": taken - 0.5, "peak_bytes": 2_500_000}
        rows.append({**shared, "implementation": name, **figures})
    table = contest_table(rows)
    assert table.title == "grouped_mlp: tiny, float32, forward"
    columns = [list(column.cells) for column in table.columns]
    assert list(map(list, zip(*columns, strict=True))) == [
        ["ours", "3.0", "2.5", "2.5", "1.00 x"],
        ["limit", "2.0", "1.5", "2.5", "1.50 x"],
        ["reference", "6.0", "5.5", "2.5", "0.50 x"],
    ]
