"""Every path chooses the reference's entry wherever the margin exceeds rounding, and counts and sums what it chose."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.nearest_code import METRICS, assign, cpu, nearest_code, reference
from kernels.testing import NEAREST_CODE_CASES, NearestCodeCase, relative_error

Force = Callable[[str], None]


def regret(z: Tensor, codebook: Tensor, chosen: Tensor, metric: str) -> Tensor:
    """How much worse than the best entry every choice is, in float64 and relative to the scores' size: (N,)."""
    z, codebook = z.double(), codebook.double()
    if metric == "cosine":
        distance = 1 - F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T
        return distance.gather(1, chosen[:, None])[:, 0] - distance.amin(1)
    distance = (z[:, None] - codebook[None]).square().sum(-1)
    size = z.square().sum(-1) + codebook.square().sum(-1).amax()
    return (distance.gather(1, chosen[:, None])[:, 0] - distance.amin(1)) / size


@pytest.mark.parametrize("case", NEAREST_CODE_CASES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_choice_is_the_nearest(
    case: str, metric: str, path: str, dtype: torch.dtype, use_path: Force, device: str
) -> None:
    use_path(path)
    z, codebook = NEAREST_CODE_CASES[case].inputs(dtype, device)
    chosen = nearest_code(z, codebook, metric)
    assert chosen.dtype == torch.int64 and chosen.shape == z.shape[:1]
    assert (regret(z, codebook, chosen, metric) < 1e-6).all()


@pytest.mark.parametrize("path", ["cpu", "triton"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_references_choice_where_the_margin_exceeds_rounding(
    path: str, metric: str, use_path: Force, device: str
) -> None:
    z, codebook = NearestCodeCase(300, 256, 24).inputs(torch.float32, device)
    expected = reference.nearest_code(z, codebook, metric)
    second = regret(z, torch.where(torch.arange(256, device=device)[:, None] >= 0, codebook, 0), expected, metric)
    use_path(path)
    chosen = nearest_code(z, codebook, metric)
    assert (second < 1e-6).all()
    assert (regret(z, codebook, chosen, metric)[chosen != expected] < 1e-6).all()
    assert (chosen == expected).float().mean() > 0.99


@pytest.mark.parametrize("metric", METRICS)
def test_screening_loses_no_code(metric: str, use_path: Force, device: str) -> None:
    """Codes and vectors of any length, none among them; more near codes than a program keeps; parts of the codes."""
    use_path("triton")
    g = torch.Generator().manual_seed(0)
    codebook = torch.randn(300, 20, generator=g) * torch.logspace(-9, 3, 300)[:, None]
    codebook[200:] = codebook[199] + 1e-3 * torch.randn(100, 20, generator=g)
    codebook[[3, 250]] = 0
    z = torch.cat([torch.zeros(1, 20), 1e3 * torch.randn(20, 20, generator=g), codebook[190:210] + 1e-4])
    z, codebook = z.to(device), codebook.to(device)
    assert (regret(z, codebook, nearest_code(z, codebook, metric), metric) < 1e-6).all()


@pytest.mark.parametrize("codes", [64, 70])
@pytest.mark.parametrize("copies", [2, 3, 9])
@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_codes_the_first_is_chosen(
    metric: str, copies: int, codes: int, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one column of the tiles or in several, as many as a program keeps or more."""
    z, codebook = NearestCodeCase(40, codes, 16).inputs(torch.float32, device)
    expected = reference.nearest_code(z, codebook, metric)
    use_path("triton")
    screening = pytest.importorskip("kernels.nearest_code.triton_kernel")
    monkeypatch.setattr(screening, "PROGRAMS", 1)  # all codes in one part
    assert torch.equal(nearest_code(z, codebook.repeat(copies, 1), metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_codes_of_one_column_that_half_precision_cannot_tell_apart(
    metric: str, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine near ones, of which two are kept."""
    use_path("triton")
    screening = pytest.importorskip("kernels.nearest_code.triton_kernel")
    monkeypatch.setattr(screening, "PROGRAMS", 1)
    z, codebook = NearestCodeCase(40, 64, 16).inputs(torch.float32, device)
    codebook = codebook.repeat(9, 1)
    codebook += 1e-4 * torch.randn(codebook.shape, generator=torch.Generator().manual_seed(0)).to(device)
    assert (regret(z, codebook, nearest_code(z, codebook, metric), metric) < 1e-6).all()


@pytest.mark.parametrize(("codes", "copies"), [(64, 3), (70, 9)])
def test_what_is_not_kept_is_bounded(
    codes: int, copies: int, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three equal codes of one column: by the column's bound; nine in several, more than are kept: by the others'."""
    z, codebook = NearestCodeCase(40, codes, 16).inputs(torch.float32, device)
    use_path("triton")
    screening = pytest.importorskip("kernels.nearest_code.triton_kernel")
    monkeypatch.setattr(screening, "PROGRAMS", 1)
    units = screening._units(z, codebook.repeat(copies, 1), True)
    found = screening._screen(units, z.shape, codes * copies, True)
    best = found.bounds[:, 0, 0]
    kept = found.kept
    assert (found.bounds[:, 0, kept] > best - 1e-3).all() == (codes == 64)
    assert (found.bounds[:, 0, kept + 1] > best - 1e-3).all() == (codes == 70)


def test_no_statement_makes_the_host_wait() -> None:
    """Sizes that depend on values, as of bincount, have no place in a fake tensor."""
    with FakeTensorMode():
        indices, counts, sums = assign(torch.empty(9, 4, device="cuda"), torch.empty(5, 4, device="cuda"))
    assert indices.shape == (9,) and counts.shape == (5,) and sums.shape == (5, 4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 9), st.sampled_from(METRICS))
def test_any_shape(vectors: int, codes: int, width: int, metric: str) -> None:
    z, codebook = NearestCodeCase(vectors, codes, width).inputs(torch.float32)
    assert (regret(z, codebook, nearest_code(z, codebook, metric), metric) < 1e-6).all()


@pytest.mark.parametrize("path", ["reference", "cpu", "triton"])
def test_the_statistics_are_those_of_the_choice(path: str, use_path: Force, device: str) -> None:
    use_path(path)
    z, codebook = NEAREST_CODE_CASES["odd sizes"].inputs(torch.float32, device)
    indices, counts, sums = assign(z, codebook)
    assert torch.equal(indices, nearest_code(z, codebook))
    assert counts.dtype == sums.dtype == torch.float32 and counts.sum() == len(z)
    for code in range(len(codebook)):
        assert counts[code] == (indices == code).sum()
        assert relative_error(sums[code], z[indices == code].sum(0)) < 1e-6


def test_statistics_stay_float32_under_autocast() -> None:
    z, codebook = NEAREST_CODE_CASES["odd sizes"].inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = assign(z, codebook)
    for value, expected in zip(inside, assign(z, codebook), strict=True):
        assert torch.equal(value, expected)


def test_no_gradient_and_non_contiguous_inputs() -> None:
    z, codebook = NEAREST_CODE_CASES["codes a multiple of the fold"].inputs(torch.float32)
    expected = nearest_code(z, codebook)
    strided = nearest_code(z.T.contiguous().T.requires_grad_(), codebook.T.contiguous().T.requires_grad_())
    assert torch.equal(strided, expected) and not strided.requires_grad


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = NEAREST_CODE_CASES["codes a multiple of the fold"].inputs(torch.float32)
    expected = nearest_code(z, codebook)
    monkeypatch.setattr(cpu, "ELEMENTS", 512 * 3)
    assert torch.equal(nearest_code(z, codebook), expected)


def test_compiled_whole() -> None:
    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    z, codebook = NEAREST_CODE_CASES["odd sizes"].inputs(torch.float32)
    for value, expected in zip(compiled(z, codebook), assign(z, codebook), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(4, 3), "manhattan"), "euclidean, cosine"),
        ((torch.zeros(2, 3), torch.zeros(4, 5)), r"\(2, 3\).*\(4, 5\)"),
        ((torch.zeros(2, 3), torch.zeros(0, 3)), "S > 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_code(*arguments)
