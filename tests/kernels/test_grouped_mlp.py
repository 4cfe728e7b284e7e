"""Every path of the grouped MLP agrees with its definition: outputs and every gradient."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from kernels import dispatch
from kernels.grouped_mlp import FEW, cpu, cuda, few, grouped_mlp, reference
from kernels.testing import GROUPED_MLP_CASES, TOLERANCE, GroupedMLPCase, Routing, relative_error, relative_errors

Force = Callable[[str], None]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture(autouse=True)
def unwritten_is_nan() -> Iterator[None]:
    """New memory holds NaN, never the right numbers of an earlier test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


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


@pytest.mark.parametrize("case", GROUPED_MLP_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", FEW)
def test_parity_of_few_tokens(case: str, dtype: torch.dtype, way: str) -> None:
    inputs = GROUPED_MLP_CASES[case].inputs(dtype, "cpu")
    x, w_in, w_out, indices, weights = (tensor.detach() for tensor in inputs)
    found = FEW[way](x, w_in, w_out, indices, weights)
    exact = reference.grouped_mlp(x.double(), w_in.double(), w_out.double(), indices, weights.double())
    assert found.dtype == torch.float32 and relative_error(found, exact) < TOLERANCE[dtype]


def test_few_tokens_take_their_own_way_only_where_nothing_is_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def seen(name: str) -> Callable[..., Tensor]:
        def way(*given: Tensor) -> Tensor:
            taken.append(name)
            return few.gathered(*given)

        return way

    monkeypatch.setattr("kernels.grouped_mlp.FEW", {name: seen(name) for name in FEW})
    w_in, w_out = torch.randn(16, 8, 4), torch.randn(16, 4, 4)

    def ask(tokens: int) -> Tensor:
        indices = torch.arange(2 * tokens).view(tokens, 2) % 16
        return grouped_mlp(torch.randn(tokens, 4), w_in, w_out, indices, torch.rand(tokens, 2))

    assert ask(3).dtype == torch.float32 and taken == ["gathered"]
    ask(65)
    w_out.requires_grad_()
    ask(3).sum().backward()
    assert taken == ["gathered"] and w_out.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert ask(3).dtype == torch.bfloat16
    assert taken == ["gathered"] * 2


@pytest.mark.parametrize(
    ("rows", "expert_bytes", "dtype", "chosen"),
    [
        (8, 100_000, torch.float32, "gathered"),
        (8, 4_000_000, torch.float32, "by_expert"),
        (1024, 100_000, torch.float32, "by_expert"),
        (1025, 1, torch.float32, None),
        (8, 1_000_000, torch.bfloat16, None),
        (8, 2_000_000, torch.bfloat16, "by_expert"),
    ],
)
def test_few_tokens_are_multiplied_by_what_reads_least(
    rows: int, expert_bytes: int, dtype: torch.dtype, chosen: str | None
) -> None:
    assert dispatch.choose_few(rows, 128, expert_bytes, dtype) == chosen


@pytest.mark.parametrize("case", GROUPED_MLP_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_parity_of_wide_experts(
    case: str, dtype: torch.dtype, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own products, at sizes that the fused ones would take."""
    interpreted("triton", device, dtype)
    use_path("triton")
    monkeypatch.setattr(dispatch, "FUSED_HIDDEN", 0)
    inputs = GROUPED_MLP_CASES[case].inputs(dtype, device)
    errors = relative_errors(grouped_mlp, reference.grouped_mlp, inputs)
    assert max(errors.values()) < TOLERANCE[dtype], errors


@pytest.mark.parametrize("tokens, routing", [(60, "falling"), (60, "half idle"), (60, "repeated"), (0, "random")])
@pytest.mark.parametrize("columns", [512, 16])
def test_parity_with_torchs_grouped_product(
    tokens: int, routing: Routing, columns: int, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 on Hopper; elsewhere torch's slow substitute stands in, on a CPU with float16."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    use_path("triton")
    from kernels.grouped_mlp import triton_split

    monkeypatch.setattr(triton_split, "columns_at_once", lambda rows: columns)
    monkeypatch.setattr(cuda, "choose_products", lambda *shape: "library")
    inputs = GroupedMLPCase(tokens, 6, 2, 40, 24, routing).inputs(dtype, device)
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


@pytest.mark.parametrize("path", ["reference", "cpu", "fused", "tiles"])
def test_autocast_computes_narrow_and_returns_float32_gradients(
    path: str, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = path in ("fused", "tiles")
    use_path("triton" if ours else path)
    if ours:
        monkeypatch.setattr(cuda, "choose_products", lambda *shape: path)
    narrow_dtype = torch.float16 if ours and device == "cpu" else torch.bfloat16  # see `interpreted`
    inputs = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32, device)

    def narrow(*tensors: Tensor) -> Tensor:
        with torch.autocast(device, dtype=narrow_dtype):
            return grouped_mlp(*tensors)

    assert narrow(*inputs).dtype == narrow_dtype
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


@pytest.mark.parametrize("path", ["cpu", "fused", "tiles"])
def test_compiled_whole(path: str, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_path("cpu" if path == "cpu" else "triton")
    monkeypatch.setattr(dispatch, "FUSED_HIDDEN", 0 if path == "tiles" else 128)
    torch.compiler.reset()
    compiled = torch.compile(grouped_mlp, fullgraph=True, backend="aot_eager")
    inputs = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32, device)
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
        (*inputs, torch.float32),
        test_utils=CHECKS,
    )


def test_custom_operators_of_cuda_as_torch_defines_them(use_path: Force, device: str) -> None:
    use_path("triton")
    tensors = GROUPED_MLP_CASES["odd sizes"].inputs(torch.float32, device)
    x, w_in, w_out, indices, weights = (t.requires_grad_() if t.is_floating_point() else t for t in tensors)
    ops = torch.ops.mm_kernels
    torch.library.opcheck(
        ops.grouped_mlp_fused.default, (x, w_in, w_out, indices, weights, torch.float32), test_utils=CHECKS
    )
    torch.library.opcheck(ops.grouped_mlp_layout.default, (indices, len(w_in)), test_utils=CHECKS)
    plan = cuda.layout(indices, len(w_in))
    torch.library.opcheck(ops.grouped_mlp_up.default, (x, w_in, *plan, False), test_utils=CHECKS)
    gate_up = cuda.up(x, w_in, *plan, False).detach().requires_grad_()
    torch.library.opcheck(ops.grouped_mlp_down.default, (gate_up, w_out, weights, *plan, False), test_utils=CHECKS)


def test_the_weighted_sum_is_kept_in_float32() -> None:
    """256 equal contributions: a bfloat16 accumulator would stop growing long before the sum is reached."""
    x, w_in, w_out, _, _ = GroupedMLPCase(1, 1, 1, 8, 8).inputs(torch.bfloat16)
    indices, weights = torch.zeros(1, 256, dtype=torch.int64), torch.ones(1, 256, dtype=torch.bfloat16)
    many = grouped_mlp(x, w_in, w_out, indices, weights)
    once = grouped_mlp(x, w_in, w_out, indices[:, :1], weights[:, :1])
    assert relative_error(many, 256 * once.float()) < TOLERANCE[torch.bfloat16]


def test_saved_are_the_inputs_the_ordered_matrices_and_one_pre_activation_per_assignment() -> None:
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
    matrices = sum(tensor.untyped_storage().nbytes() for tensor in (w_in, w_out))
    given = matrices + sum(tensor.untyped_storage().nbytes() for tensor in (x, indices, weights))
    rows = 512 * 2 * (1 + 1 / cpu.RUNGS) + 8 * cpu.SMALLEST  # of 8 experts of like load
    assert sum(saved.values()) - given <= rows * (4 * 2 * 16 + 8) + 2 * 8 * 8


@pytest.mark.parametrize("loads", [[5] * 8, [1000, 3, 2, 1, 0, 0], [0, 0], list(range(299, -1, -1)), [40000, 40000]])
def test_blocks_cover_every_row_and_spare_padding_that_is_worth_a_block(
    loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "BLOCK", 4096)
    monkeypatch.setattr(cpu, "SPARED", 256)
    blocks = cpu.cut(loads, 2)
    experts = [expert for block in blocks for expert in range(len(loads))[block.experts]]
    assert experts == [expert for expert, load in enumerate(loads) if load > 0]
    for block in blocks:
        heaviest, *others = loads[block.experts]
        assert block.rows == cpu.rung(heaviest)
        assert block.size == 1 or 2 * block.size * block.rows <= 4096
        if others:
            second_half = loads[block.experts.start + block.size // 2]
            assert 2 * block.size // 2 * (block.rows - cpu.rung(second_half)) <= 256
    assert [block.start for block in blocks] == [sum(b.size * b.rows for b in blocks[:i]) for i in range(len(blocks))]


@pytest.mark.parametrize("slope", [0, 4])
def test_routing_that_changes_every_step_meets_few_shapes(slope: int) -> None:
    """oneDNN compiles a kernel for every new shape: after 50 steps next to none is new, whatever the load's slope."""
    random = torch.Generator().manual_seed(0)
    popularity = torch.exp(-slope * torch.arange(128) / 128)
    steps = []
    for _ in range(150):
        chosen = popularity.multinomial(32768, replacement=True, generator=random)
        loads = torch.bincount(chosen, minlength=128).sort(descending=True).values.tolist()
        steps.append({(block.size, block.rows) for block in cpu.cut(loads, 256)})
    early = set().union(*steps[:50])
    late = set().union(*steps[50:]) - early
    assert len(early) < 72
    assert len(late) < 8


@pytest.mark.parametrize(("span", "programs"), [(512, 512), (32, 512), (32, 2)])
def test_rows_of_an_expert_are_adjacent_and_in_order(
    span: int, programs: int, use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program counts and places all, several do, each does several spans: always a stable sort."""
    use_path("triton")
    from kernels.grouped_mlp import triton_layout

    monkeypatch.setattr(triton_layout, "SPAN", span)
    monkeypatch.setattr(triton_layout, "PROGRAMS", programs)
    indices = torch.randint(40, (77, 3), generator=torch.Generator().manual_seed(0)).to(device) % 37
    order, slot_of, ends = triton_layout.layout(indices, 40)
    expected = indices.flatten().argsort(stable=True)
    assert order.tolist() == expected.tolist()
    assert order[slot_of.flatten().long()].tolist() == list(range(77 * 3))
    assert ends.tolist() == torch.bincount(indices.flatten(), minlength=40).cumsum(0).tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: Triton's interpreter makes no assertions")
def test_an_expert_that_does_not_exist_is_an_assertion_on_the_device() -> None:
    """In a process of its own, which it ends."""
    program = (
        "import torch\nfrom kernels.grouped_mlp.triton_layout import layout\n"
        "layout(torch.tensor([[0], [4]], device='cuda'), 4)\ntorch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode and "an expert that does not exist" in done.stderr


def test_pre_activations_are_released_before_the_first_matrices_gradient(
    use_path: Force, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_path("triton")
    monkeypatch.setattr(dispatch, "FUSED_HIDDEN", 0)
    from kernels.grouped_mlp import triton_split

    held: list[StorageWeakRef] = []
    gone: list[bool] = []
    up, up_backward = triton_split.up, triton_split.up_backward

    def watched(*arguments: Any) -> Tensor:
        gate_up = up(*arguments)
        held.append(StorageWeakRef(gate_up.untyped_storage()))
        return gate_up

    def asked(*arguments: Any) -> tuple[Tensor, Tensor]:
        gc.collect()  # the interpreter leaves circles
        gone.append(held[0].expired())
        return up_backward(*arguments)

    monkeypatch.setattr(triton_split, "up", watched)
    monkeypatch.setattr(triton_split, "up_backward", asked)
    inputs = GROUPED_MLP_CASES["falling load"].inputs(torch.float32, device)
    y = grouped_mlp(*(tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs))
    assert not held[0].expired()
    y.sum().backward()
    assert gone == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("hidden", [16, 144])
def test_forward_and_backward_are_captured_in_a_graph_and_follow_another_routing(hidden: int) -> None:
    """Which also says that no step waits for the host: capturing refuses to."""
    case = GroupedMLPCase(300, 8, 2, 64, hidden)
    tensors = case.inputs(torch.bfloat16, "cuda")
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        grouped_mlp(*tensors).sum().backward()
    torch.cuda.synchronize()
    for leaf in leaves:
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = grouped_mlp(*tensors)
        y.sum().backward()
    tensors[3].copy_(case.indices(torch.Generator().manual_seed(5)))
    graph.replay()
    replayed = [y.detach().clone(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]
    for leaf in leaves:
        leaf.grad = None
    y = grouped_mlp(*tensors)
    y.sum().backward()
    direct = [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    assert all(torch.equal(a, b) for a, b in zip(replayed, direct, strict=True))


def test_more_experts_than_a_short_sort_key_holds() -> None:
    last = 2**15 + 1
    plan = cpu.layout(torch.tensor([[last], [5], [last]]), last + 1, 64)
    assert plan.order[:2].tolist() == [last, 5]
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
