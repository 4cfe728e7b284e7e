"""Every path of the grouped MLP agrees with its definition: outputs and every gradient."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.grouped_mlp import cpu, grouped_mlp, reference
from kernels.testing import GROUPED_MLP_CASES, TOLERANCE, GroupedMLPCase, relative_error, relative_errors

Force = Callable[[str], None]


def interpreted(path: str, device: str, dtype: torch.dtype) -> None:
    if path == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as the integers it is stored in; float16 stands in")


@pytest.mark.parametrize("case", GROUPED_MLP_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ["cpu", "triton"])
def test_parity(case: str, dtype: torch.dtype, path: str, use_path: Force, device: str) -> None:
    interpreted(path, device, dtype)
    use_path(path)
    inputs = GROUPED_MLP_CASES[case].inputs(dtype, device)
    errors = relative_errors(grouped_mlp, reference.grouped_mlp, inputs)
    assert max(errors.values()) < TOLERANCE[dtype], errors


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 80),
    experts=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    routing=st.sampled_from(["random", "one expert", "falling"]),
    data=st.data(),
)
def test_parity_of_any_shape(
    tokens: int, experts: int, sizes: tuple[int, int], routing: str, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, experts))
    case = GroupedMLPCase(tokens, experts, active, *sizes, routing)  # type: ignore[arg-type]
    inputs = case.inputs(torch.float64)
    errors = relative_errors(grouped_mlp, reference.grouped_mlp, inputs)
    assert max(errors.values()) < 1e-12, errors


def test_blocks_that_close_early_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = GROUPED_MLP_CASES["falling load"].inputs(torch.float64)
    monkeypatch.setattr(cpu, "BLOCK", 1500)
    errors = relative_errors(grouped_mlp, reference.grouped_mlp, inputs)
    assert max(errors.values()) < 1e-13, errors


@pytest.mark.parametrize("path", ["cpu", "triton"])
def test_non_contiguous_inputs(path: str, use_path: Force, device: str) -> None:
    use_path(path)
    x, w_in, w_out, indices, weights = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32, device)
    strided = (
        x.T.contiguous().T,
        w_in.mT.contiguous().mT,
        w_out.mT.contiguous().mT,
        indices.T.contiguous().T,
        weights.T.contiguous().T,
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    errors = relative_errors(grouped_mlp, reference.grouped_mlp, strided)
    assert max(errors.values()) < TOLERANCE[torch.float32], errors


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_autocast_computes_narrow_and_returns_float32_gradients(path: str, use_path: Force) -> None:
    use_path(path)
    inputs = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32)

    def narrow(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return grouped_mlp(*tensors)

    assert narrow(*inputs).dtype == torch.bfloat16
    leaves = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
    narrow(*leaves).float().sum().backward()
    assert {leaf.grad.dtype for leaf in leaves if leaf.grad is not None} == {torch.float32}
    errors = relative_errors(narrow, reference.grouped_mlp, tuple(tensor.detach() for tensor in inputs))
    assert max(errors.values()) < TOLERANCE[torch.bfloat16], errors


def test_backward_inside_autocast_stays_as_wide_as_forward() -> None:
    inputs = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32)
    leaves = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
    output = grouped_mlp(*leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output.sum().backward()
    inside = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    for leaf in leaves:
        leaf.grad = None
    grouped_mlp(*leaves).sum().backward()
    outside = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_compiled_whole() -> None:
    compiled = torch.compile(grouped_mlp, fullgraph=True, backend="aot_eager")
    inputs = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32)
    errors = relative_errors(compiled, reference.grouped_mlp, inputs)
    assert max(errors.values()) < TOLERANCE[torch.float32], errors


def test_gradcheck() -> None:
    x, w_in, w_out, indices, weights = GroupedMLPCase(5, 3, 2, 4, 3).inputs(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, w_in, w_out, weights)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: grouped_mlp(a, b, c, indices, d), leaves)


def test_a_custom_operator_as_torch_defines_one() -> None:
    inputs = [
        tensor.requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32)
    ]
    torch.library.opcheck(
        torch.ops.mm_kernels.grouped_mlp.default,
        (*inputs, torch.float32, "cpu"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_the_weighted_sum_is_kept_in_float32() -> None:
    """256 equal contributions: a bfloat16 accumulator would stop growing long before the sum is reached."""
    x, w_in, w_out, _, _ = GroupedMLPCase(1, 1, 1, 8, 8).inputs(torch.bfloat16)
    indices, weights = torch.zeros(1, 256, dtype=torch.int64), torch.ones(1, 256, dtype=torch.bfloat16)
    many = grouped_mlp(x, w_in, w_out, indices, weights)
    once = grouped_mlp(x, w_in, w_out, indices[:, :1], weights[:, :1])
    assert relative_error(many, 256 * once.float()) < TOLERANCE[torch.bfloat16]


def test_saved_activations_are_the_inputs_and_one_pre_activation_per_assignment() -> None:
    case = GroupedMLPCase(512, 8, 2, 32, 16)
    x, w_in, w_out, indices, weights = (
        tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in case.inputs(torch.float32)
    )
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grouped_mlp(x, w_in, w_out, indices, weights)
    given = sum(tensor.untyped_storage().nbytes() for tensor in (x, w_in, w_out, indices, weights))
    pre_activations = 4 * 512 * 2 * 2 * 16  # of 8 experts of like load
    assert sum(saved.values()) - given <= pre_activations * (1 + 1 / cpu.RUNGS) + 8 * cpu.SMALLEST * 4 * 2 * 16


@pytest.mark.parametrize("loads", [[5] * 8, [3, 0, 1000, 2, 1, 0], [0, 0], list(range(300)), [40000, 40000]])
def test_blocks_cover_every_row_with_at_most_as_much_padding(loads: list[int]) -> None:
    blocks = cpu.cut(loads, 2048)
    experts = [expert for block in blocks for expert in block.experts]
    assert sorted(experts) == [expert for expert, load in enumerate(loads) if load > 0]
    falling = [loads[expert] for expert in experts]
    assert falling == sorted(falling, reverse=True)
    for block in blocks:
        assert block.size == 1 or block.size * block.rows <= 2048
        assert all(loads[e] <= block.rows <= max(2 * loads[e], cpu.SMALLEST) for e in block.experts)
    assert [block.start for block in blocks] == [sum(b.size * b.rows for b in blocks[:i]) for i in range(len(blocks))]


@pytest.mark.parametrize("slope", [0, 4])
def test_routing_that_changes_every_step_meets_few_shapes(slope: int) -> None:
    """oneDNN compiles a kernel for every new shape: after 50 steps next to none is new, whatever the load's slope."""
    random = torch.Generator().manual_seed(0)
    popularity = torch.exp(-slope * torch.arange(128) / 128)
    steps = []
    for _ in range(150):
        chosen = popularity.multinomial(32768, replacement=True, generator=random)
        loads = torch.bincount(chosen, minlength=128).tolist()
        steps.append({(block.size, block.rows) for block in cpu.cut(loads, 4096)})
    early = set().union(*steps[:50])
    late = set().union(*steps[50:]) - early
    assert len(early) < 64
    assert len(late) < 8


def test_more_experts_than_a_short_sort_key_holds() -> None:
    last = 2**15 + 1
    plan = cpu.layout(torch.tensor([[last], [5], [last]]), last + 1, 64)
    assert [block.experts for block in plan.blocks] == [[last, 5]]
    assert plan.slot_of.flatten().tolist() == [0, cpu.SMALLEST, 1]
    assert plan.token[plan.slot_of].flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_in": torch.zeros(4, 15, 16)}, "w_in"),
        ({"x": torch.zeros(3, 9)}, "width"),
        ({"weights": torch.zeros(3, 1)}, "weights"),
        ({"indices": torch.full((3, 2), 4)}, "4 experts"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Tensor], message: str) -> None:
    names = ("x", "w_in", "w_out", "indices", "weights")
    good = dict(zip(names, GroupedMLPCase(3, 4, 2, 16, 8).inputs(torch.float32), strict=True))
    with pytest.raises(ValueError, match=message):
        grouped_mlp(**{**good, **change})
