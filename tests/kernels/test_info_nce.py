"""The losses agree with the dense definition in every path: value, every gradient, equal ids, two processes, memory."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from kernels.info_nce import cpu, info_nce, reference, sigmoid_loss, tiled
from kernels.testing import CONTRASTIVE_CASES, TOLERANCE, ContrastiveCase, relative_error, relative_errors

Force = Callable[[str], None]
Loss = Callable[..., Tensor]
FIRST = (15, 22)  # rows of the first of two ranks, out of 22
SCALARS = {"info_nce": 3, "sigmoid_loss": 4}  # how many of (a, b, scale, bias) each loss takes
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "info_nce": (info_nce, reference.info_nce),
    "sigmoid_loss": (sigmoid_loss, reference.sigmoid_loss),
}


def errors_of(loss: str, case: ContrastiveCase, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    ours, dense = LOSSES[loss]
    ids = case.ids(device)
    inputs = case.inputs(dtype, device)[: SCALARS[loss]]
    return relative_errors(lambda *t: ours(*t, ids=ids), lambda *t: dense(*t, ids), inputs)


def set_tile(patch: pytest.MonkeyPatch, path: str, size: int) -> None:
    """Tiles of at most ``size`` rows and columns."""
    if path == "cpu":
        patch.setattr(cpu, "TILE", size)
        return
    triton_kernel = pytest.importorskip("kernels.info_nce.triton_kernel", reason="Triton is not installed")
    sizes = {"TILE_ROWS": size, "TILE_BYTES": 2 * size**2, "BAND": size // 2, "MERGED": size // 2}
    for name, value in sizes.items():
        patch.setattr(triton_kernel, name, value)
    for name in ("GIVEN", "SPLIT", "NARROW"):
        smaller = getattr(triton_kernel, name)._replace(rows=size // 2, columns=size // 4, chunk=16)
        patch.setattr(triton_kernel, name, smaller)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CONTRASTIVE_CASES)
@pytest.mark.parametrize("path", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_parity(
    loss: str, case: str, path: str, dtype: torch.dtype, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as the integers it is stored in; float16 stands in")
    use_path(path)
    set_tile(monkeypatch, path, 32)
    errors = errors_of(loss, CONTRASTIVE_CASES[case], dtype, device)
    assert max(errors.values()) < 2 * TOLERANCE[dtype], errors


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tile", [1, 7, 67, 1000])
def test_the_tile_changes_nothing(loss: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    errors = errors_of(loss, ContrastiveCase(23, 8, 7), torch.float64)
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_values_that_can_be_checked_by_hand(path: str, use_path: Force) -> None:
    use_path(path)
    basis, scale, bias = torch.eye(4), torch.tensor(3.0), torch.tensor(-1.0)
    expected = math.log(math.exp(3) + 3) - 3  # one positive at logit 3 against three at 0
    assert info_nce(basis, basis, scale).item() == pytest.approx(expected, rel=1e-5)
    pairs = -math.log(1 / (1 + math.exp(-2))) + 3 * math.log(1 + math.exp(-1))  # positive at 3 - 1, negatives at -1
    assert sigmoid_loss(basis, basis, scale, bias).item() == pytest.approx(pairs, rel=1e-6)


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_equal_ids_are_no_negatives(path: str, use_path: Force) -> None:
    """Two captions of one image: leaving the pair out is the same as making it infinitely unlike."""
    use_path(path)
    a, b, scale, _ = ContrastiveCase(6, 8).inputs(torch.float64)
    ids = torch.tensor([0, 0, 1, 2, 3, 4])
    logits = (scale * a @ b.T).masked_fill(
        torch.tensor([[i != j and {i, j} == {0, 1} for j in range(6)] for i in range(6)]), -torch.inf
    )
    rows = (logits.logsumexp(1) - logits.diagonal()).mean()
    columns = (logits.logsumexp(0) - logits.diagonal()).mean()
    assert info_nce(a, b, scale, ids=ids).item() == pytest.approx(((rows + columns) / 2).item(), rel=1e-12)
    assert info_nce(a, b, scale, ids=torch.zeros(6, dtype=torch.int64)).abs() < 1e-12
    assert info_nce(a, b, scale, ids=torch.arange(6)).item() == pytest.approx(info_nce(a, b, scale).item(), rel=1e-12)


def test_extreme_temperatures_stay_finite() -> None:
    a, b, *_ = CONTRASTIVE_CASES["odd size"].inputs(torch.float32)
    for scale in (0.0, 1e-3, 100.0, 1e4):
        leaves = [tensor.clone().requires_grad_() for tensor in (a, b, torch.tensor(scale))]
        loss = info_nce(*leaves)
        loss.backward()
        assert loss.isfinite() and all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "TILE", 3)
    inputs = ContrastiveCase(5, 3).inputs(torch.float64)[: SCALARS[loss]]
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *t: LOSSES[loss][0](*t, ids=torch.tensor([0, 1, 0, 2, 3])), leaves)


def test_float32_under_autocast() -> None:
    inputs = CONTRASTIVE_CASES["odd size"].inputs(torch.float32)[:3]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    results = []
    for narrow in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = info_nce(*leaves)
            results.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(inside, outside) for inside, outside in zip(*results, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_triton_path_multiplies_in_autocasts_dtype(loss: str, use_path: Force, device: str) -> None:
    """Its rounding shows, in value and gradients; all else stays float32."""
    use_path("triton")
    with torch.autocast(device, dtype=torch.float16):
        errors = errors_of(loss, CONTRASTIVE_CASES["odd size"], torch.float32, device)
    assert 10 * TOLERANCE[torch.float32] < max(errors.values()) < 2 * TOLERANCE[torch.float16], errors


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_whole(loss: str) -> None:
    ours, dense = LOSSES[loss]
    compiled: Loss = torch.compile(ours, fullgraph=True, backend="aot_eager")
    inputs = CONTRASTIVE_CASES["odd size"].inputs(torch.float32)[: SCALARS[loss]]
    errors = relative_errors(compiled, dense, inputs)
    assert max(errors.values()) < 2 * TOLERANCE[torch.float32], errors


def test_non_contiguous_inputs() -> None:
    a, b, scale, _ = CONTRASTIVE_CASES["odd size"].inputs(torch.float64)
    errors = relative_errors(info_nce, reference.info_nce, (a.T.contiguous().T, b.T.contiguous().T, scale))
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("path", ["cpu", "triton"])
def test_saved_tensors_are_the_inputs_and_two_numbers_per_pair(path: str, loss: str, use_path: Force) -> None:
    use_path(path)
    pairs, width = 512, 16
    inputs = ContrastiveCase(pairs, width).inputs(torch.float32)[: SCALARS[loss]]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LOSSES[loss][0](*leaves)
    given = sum(tensor.untyped_storage().nbytes() for tensor in leaves)
    assert 0 < sum(saved.values()) <= given + 2 * 4 * pairs


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("path", ["cpu", "triton"])
def test_no_allocation_grows_with_the_square(path: str, loss: str, use_path: Force) -> None:
    """No tensor is larger than a tile or an input, forward or backward."""
    use_path(path)
    pairs, width, tile = 600 if path == "cpu" else 200, 16, 64
    inputs = ContrastiveCase(pairs, width).inputs(torch.float32)[: SCALARS[loss]]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    largest = Largest()
    with pytest.MonkeyPatch.context() as patch, largest:
        set_tile(patch, path, tile)
        LOSSES[loss][0](*leaves).backward()
    assert largest.elements == max(pairs * width, 0 if path == "cpu" else tile**2 // 2)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest storage any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return out


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    """After averaging over ranks, as DDP does; value, both shards, scale, bias; every path that has a gathered form.

    Ranks of 15 and 7 rows, and of all and none.
    """
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    for path, loss, first in itertools.product(("reference", "cpu"), LOSSES, FIRST):
        _, dense = LOSSES[loss]
        case = ContrastiveCase(22, 8, 9)
        leaves = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)[: SCALARS[loss]]]
        value = dense(*leaves, case.ids())
        value.backward()
        ranks = [torch.load(tmp_path / f"{path}-{loss}-{first}-{rank}.pt", weights_only=True) for rank in range(2)]
        for rank in ranks:
            assert relative_error(rank[0], value.detach()) < 1e-12
        for position, leaf in enumerate(leaves):
            assert leaf.grad is not None
            shards = [rank[1 + position] for rank in ranks]
            averaged = torch.cat(shards) / 2 if leaf.ndim else (shards[0] + shards[1]) / 2
            assert relative_error(averaged, leaf.grad) < 1e-12, (path, loss, first, position)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    _save_gathered(rank, folder)  # apart, so that no graph holds the group any more when it is taken down
    dist.barrier()
    dist.destroy_process_group()


def _save_gathered(rank: int, folder: str) -> None:
    """Value and gradients of this rank, to a file per path, loss and length of the first rank."""
    case, group = ContrastiveCase(22, 8, 9), dist.group.WORLD
    ids = case.ids()
    assert ids is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "TILE", 4)
        for path, loss, first in itertools.product(("reference", "cpu"), LOSSES, FIRST):
            patch.setenv("MM_KERNELS", path)
            mine = slice(first, None) if rank else slice(first)
            inputs = [tensor[mine] if tensor.ndim else tensor for tensor in case.inputs(torch.float64)]
            leaves = [tensor.clone().requires_grad_() for tensor in inputs[: SCALARS[loss]]]
            value = LOSSES[loss][0](*leaves, ids=ids[mine], group=group)
            value.backward()
            found = [value.detach(), *(leaf.grad for leaf in leaves)]
            torch.save(found, f"{folder}/{path}-{loss}-{first}-{rank}.pt")


@pytest.mark.parametrize(
    ("a", "b", "ids", "message"),
    [
        ((3, 4), (2, 4), None, r"\(3, 4\).*\(2, 4\)"),
        ((3, 4), (3, 4), torch.zeros(2), "ids"),
        ((0, 4), (0, 4), None, "B > 0"),
    ],
)
def test_wrong_shapes_are_named(a: tuple[int, int], b: tuple[int, int], ids: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(torch.zeros(a), torch.zeros(b), torch.tensor(1.0), ids=ids)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_ranks_rows_against_all_columns(loss: str, use_path: Force, device: str) -> None:
    """The gathered form in Triton: rows 20 to 40 of 60, the positives on a diagonal that does not start at zero."""
    case = ContrastiveCase(60, 24, 25)
    a, b, scale, bias = case.inputs(torch.float32, device)
    ids, mine, first = case.ids(device), slice(20, 40), 20
    assert ids is not None
    use_path("triton")
    grad = torch.tensor(3.0, device=device)
    results = {}
    for path in ("cpu", "triton"):
        where = ids[mine], ids, first, torch.float32, path
        if loss == "info_nce":
            arguments = (a[mine].contiguous(), b, scale)
            rows, columns, positives = tiled.nce_forward(*arguments, *where)
            gradients = tiled.nce_backward(*arguments, rows, columns, grad, 0.1, *where)
            results[path] = (rows, columns, positives, *gradients)
        else:
            arguments = (a[mine].contiguous(), b, scale, bias)
            gradients = tiled.sigmoid_backward(*arguments, grad, 0.1, *where)
            results[path] = (tiled.sigmoid_forward(*arguments, *where), *gradients)
    for value, expected in zip(results["triton"], results["cpu"], strict=True):
        assert relative_error(value, expected) < 2 * TOLERANCE[torch.float32]
