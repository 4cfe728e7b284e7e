"""Contests of every kernel with its definition, its limit and every installed peer (`kernels.peers`).

`limit` is the same arithmetic as dense matrix products in the precision used; on a GPU nearest_code's is one square
product, because a search need not write its scores. The largest contrastive case is run by our own implementation
alone, to show its memory; the dense losses would need more than most machines have.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import compute_dtype, has_bf16
from kernels.grouped_mlp import grouped_mlp
from kernels.grouped_mlp import reference as grouped_mlp_reference
from kernels.info_nce import info_nce, sigmoid_loss
from kernels.info_nce import reference as info_nce_reference
from kernels.nearest_code import METRICS, assign, nearest_code
from kernels.nearest_code import reference as nearest_code_reference
from kernels.peers import (
    Routed,
    open_clip_info_nce,
    open_clip_sigmoid,
    qwen3_experts,
    torch_experts,
    vector_quantize,
)
from kernels.testing import ContrastiveCase, GroupedMLPCase, NearestCodeCase
from kernels.timing import Contest, Run

if TYPE_CHECKING:
    from rich.table import Table

Op = Literal["grouped_mlp", "nearest_code", "info_nce"]
Row = dict[str, Any]

log = logging.getLogger("kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GROUPED_MLP = {
    "4096x256, 128 experts of 128, top-8": GroupedMLPCase(4096, 128, 8, 256, 128),
    "the same, falling load": GroupedMLPCase(4096, 128, 8, 256, 128, "falling"),
    "7526x128, 128 experts of 32, top-8": GroupedMLPCase(7526, 128, 8, 128, 32, "falling"),
}
GROUPED_MLP_CUDA = {
    "32768x2048, 128 experts of 768, top-8": GroupedMLPCase(32768, 128, 8, 2048, 768),
    "65536x256, 128 experts of 128, top-8": GroupedMLPCase(65536, 128, 8, 256, 128),
    "7526x128, 128 experts of 32, top-8": GroupedMLPCase(7526, 128, 8, 128, 32, "falling"),
}
NEAREST_CODE = NearestCodeCase(16384, 8192, 64)
CONTRASTIVE = (ContrastiveCase(1024, 512), ContrastiveCase(4096, 512))
DRAWS = 32
"""Routings that take turns where the routing changes from run to run."""


def run_contests(only: Op | None, repeats: int, largest: int) -> Iterator[list[Row]]:
    """The rows of one contest after another, of the operation `only` or of all.

    `repeats` rounds per contest; `largest` is the batch of the contrastive case that is run once for its memory, 0
    skips it.
    """
    contests: dict[Op, Callable[[], Iterator[Contest]]] = {
        "grouped_mlp": mlp_contests,
        "nearest_code": code_contests,
        "info_nce": lambda: loss_contests(largest),
    }
    with torch.autograd.set_multithreading_enabled(False):
        for op, make in contests.items():
            if only in (None, op):
                for contest in make():
                    contest.device = torch.device(DEVICE)
                    yield contest.rows(repeats)


def mlp_contests() -> Iterator[Contest]:
    yield from mlp_contests_on_cuda() if DEVICE == "cuda" else mlp_contests_on_cpu()


def mlp_contests_on_cuda() -> Iterator[Contest]:
    """In bfloat16, and the smallest case as training has it."""
    for name, case in GROUPED_MLP_CUDA.items():
        yield from mlp_contest(name, case, torch.bfloat16)
    name, case = next(reversed(GROUPED_MLP_CUDA.items()))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        changing = f"{name} under bfloat16 autocast, routing redrawn each run"
        yield from mlp_contest(changing, case, torch.float32, DRAWS)


def mlp_contests_on_cpu() -> Iterator[Contest]:
    for turn, (name, case) in enumerate(GROUPED_MLP.items()):
        yield from mlp_contest(name, case, torch.float32)
        if turn and not has_bf16(DEVICE):  # emulated products take seconds each: one case shows it
            continue
        yield from mlp_contest(name, case, torch.bfloat16)
        if not has_bf16(DEVICE):
            log.warning("no native bfloat16 products on this %s: its contests are skipped from here on", DEVICE)
            continue
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            yield from mlp_contest(f"{name} under bfloat16 autocast", case, torch.float32)
            changing = f"{name} under bfloat16 autocast, routing redrawn each run"
            yield from mlp_contest(changing, case, torch.float32, DRAWS)


def mlp_contest(title: str, case: GroupedMLPCase, dtype: torch.dtype, draws: int = 1) -> Iterator[Contest]:
    """`draws` > 1 changes the routing from run to run, as training does: what is compiled for one routing is not
    found again.
    """
    x, w_in, w_out, _, weights = case.inputs(dtype, DEVICE)
    routings = [case.indices(torch.Generator().manual_seed(seed)).to(DEVICE) for seed in range(draws)]
    _, dense_in, dense_out, *_ = GroupedMLPCase(1, 1, 1, case.width, case.top_k * case.hidden).inputs(dtype, DEVICE)
    up = dense_in[0]
    down = dense_out[0]
    experts: dict[str, Routed] = {
        "ours": lambda indices: grouped_mlp(x, w_in, w_out, indices, weights),
        "reference": lambda indices: grouped_mlp_reference.grouped_mlp(x, w_in, w_out, indices, weights),
        **(torch_experts(w_in, w_out, x, weights) if DEVICE == "cuda" else {}),
        **qwen3_experts(w_in, w_out, x, weights),
    }
    forward = {name: with_next(run, itertools.cycle(routings)) for name, run in experts.items()}
    forward["limit"] = lambda: dense_mlp(x, up, down)
    leaves = [x, w_in, w_out, weights, up, down]
    for contest in both_passes("grouped_mlp", title, forward, leaves, torch.randn_like(x)):
        contest.operations = case.operations * (1 if contest.step == "forward" else 3)
        yield contest


def with_next(run: Callable[[Tensor], Any], routings: Iterator[Tensor]) -> Run:
    return lambda: run(next(routings))


def dense_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One dense SwiGLU MLP of as many products as the active experts: x (N, D), up (2KH, D), down (D, KH) -> (N, D)."""
    gate, value = (x @ up.T).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ down.T


def code_contests() -> Iterator[Contest]:
    for metric in METRICS:
        yield from code_contest(NEAREST_CODE, metric)


def code_contest(case: NearestCodeCase, metric: str) -> Iterator[Contest]:
    z, codebook = case.inputs(torch.float32, DEVICE)
    name = f"{case.vectors}x{case.width}, {case.num_codes} codes, {metric}"
    limit = square_product(z.numel() * len(codebook)) if DEVICE == "cuda" else blockwise_product(z, codebook)
    evaluation: dict[str, Run] = {
        "ours": lambda: nearest_code(z, codebook, metric),
        "reference": lambda: nearest_code_reference.nearest_code(z, codebook, metric),
        "limit": limit,
        **vector_quantize(z, codebook, metric, training=False),
    }
    yield Contest("nearest_code", f"{name}, evaluation", "float32", "forward", evaluation)
    training: dict[str, Run] = {
        "ours": ema_step(z, codebook, metric),
        "reference": lambda: nearest_code_reference.assign(z, codebook, metric),
        "limit": limit,
        **vector_quantize(z, codebook, metric, training=True),
    }
    yield Contest("nearest_code", f"{name}, training step", "float32", "forward", training)


def blockwise_product(z: Tensor, codebook: Tensor) -> Run:
    """All scores, a block of vectors at a time: z (N, C), codebook (S, C)."""
    scores = z.new_empty(128, codebook.shape[0])

    def run() -> None:
        for block in z.split(len(scores)):
            torch.mm(block, codebook.T, out=scores[: len(block)])

    return run


def square_product(multiplications: int) -> Run:
    """As many multiplications on tensor cores, in float16, with the least to read and to write."""
    side = round(multiplications ** (1 / 3))
    x, y = torch.randn(2, side, side, dtype=torch.float16, device=DEVICE)
    return lambda: x @ y


def ema_step(z: Tensor, codebook: Tensor, metric: str, decay: float = 0.99) -> Run:
    """What the library's training forward does: choice, straight-through vectors, commitment loss, EMA of the
    codebook.
    """
    codebook = codebook.clone()
    size = codebook.new_ones(codebook.shape[0])
    mean = codebook.clone()

    def move() -> None:
        """Each code to the mean of its vectors; on the sphere only its direction matters."""
        if metric == "cosine":
            codebook.copy_(F.normalize(mean, dim=-1))
            return
        total = size.sum()
        smoothed = (size + 1e-5) / (total + len(size) * 1e-5) * total
        torch.div(mean, smoothed[:, None], out=codebook)

    def step() -> tuple[Tensor, Tensor]:
        vectors = F.normalize(z, dim=-1) if metric == "cosine" else z
        indices, counts, sums = assign(vectors, codebook, metric)
        chosen = codebook[indices]
        torch._foreach_lerp_([size, mean], [counts, sums], 1 - decay)
        move()
        return vectors + (chosen - vectors).detach(), F.mse_loss(vectors, chosen)

    return step


def loss_contests(largest: int) -> Iterator[Contest]:
    for suffix, precision in precisions().items():
        with precision:
            for case in CONTRASTIVE:
                yield from loss_contest(case, suffix)
            if largest:
                yield memory_contest(ContrastiveCase(largest, 512), suffix)


def precisions() -> dict[str, AbstractContextManager]:
    """What the user may allow products to be made in, by what a case's name then says."""
    found: dict[str, AbstractContextManager] = {"": contextlib.nullcontext()}
    if DEVICE == "cuda":
        found[" with TF32"] = tf32_allowed()
        found[" under bfloat16 autocast"] = torch.autocast("cuda", dtype=torch.bfloat16)
    return found


@contextlib.contextmanager
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def loss_contest(case: ContrastiveCase, suffix: str = "") -> Iterator[Contest]:
    a, b, scale, bias = case.inputs(torch.float32, DEVICE)
    name = f"{case.pairs}x{case.width}"
    narrow = compute_dtype(a) if DEVICE == "cuda" else a.dtype

    def limit() -> Tensor:
        return Products.apply(a.to(narrow), b.to(narrow))

    nce: dict[str, Run] = {
        "ours": lambda: info_nce(a, b, scale),
        "limit": limit,
        "reference": lambda: info_nce_reference.info_nce(a, b, scale),
        **open_clip_info_nce(a, b, scale),
    }
    sigmoid: dict[str, Run] = {
        "ours": lambda: sigmoid_loss(a, b, scale, bias),
        "limit": limit,
        "reference": lambda: info_nce_reference.sigmoid_loss(a, b, scale, bias),
        **open_clip_sigmoid(a, b, scale, bias),
    }
    grad = torch.ones((), device=DEVICE)
    yield from both_passes("info_nce", f"{name}, InfoNCE{suffix}", nce, [a, b, scale], grad)
    yield from both_passes("info_nce", f"{name}, sigmoid{suffix}", sigmoid, [a, b, scale, bias], grad)


def memory_contest(case: ContrastiveCase, suffix: str = "") -> Contest:
    """Ours alone, forward and backward; once on a CPU."""
    a, b, scale, _ = case.inputs(torch.float32, DEVICE)
    runs: dict[str, Run] = {"ours": lambda: info_nce(a, b, scale)}
    name = f"{case.pairs}x{case.width}, InfoNCE{suffix}"
    _, contest = both_passes("info_nce", name, runs, [a, b, scale], torch.ones((), device=DEVICE))
    if DEVICE != "cuda":
        contest.repeats = 1
    return contest


class Products(torch.autograd.Function):
    """The three (B, B, D) products that no loss over all pairs with two gradients can do without."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        logits = a @ b.T
        ctx.save_for_backward(a, b, logits)
        return logits[0, 0].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b, logits = ctx.saved_tensors
        return logits @ b, logits.T @ a


def both_passes(op: str, case: str, forward: dict[str, Run], leaves: list[Tensor], grad: Tensor) -> Iterator[Contest]:
    """The forward pass without gradients, and forward and backward together."""
    kind = str(leaves[0].dtype).removeprefix("torch.")

    def without_grad(run: Run) -> Run:
        return torch.no_grad()(run)

    def with_backward(run: Run) -> Run:
        def both() -> None:
            output = run()
            output.backward(grad.to(output.dtype))

        return both

    for leaf in leaves:
        leaf.requires_grad_()
    yield Contest(op, case, kind, "forward", {name: without_grad(run) for name, run in forward.items()})
    runs = {name: with_backward(run) for name, run in forward.items()}
    yield Contest(op, case, kind, "forward_backward", runs, leaves)


def contest_table(rows: list[Row]) -> "Table":
    """The rows of one contest: time, and ours as a ratio to the limit and to every peer."""
    from rich.table import Table

    first = rows[0]
    title = f"{first['op']}: {first['case']}, {first['dtype']}, {first['pass']}"
    table = Table("implementation", title=title, title_justify="left")
    for heading in ("median ms", "fastest ms", "peak MB", "ours takes"):
        table.add_column(heading, justify="right")
    ours = next(row["milliseconds"] for row in rows if row["implementation"] == "ours")
    for row in rows:
        table.add_row(
            row["implementation"],
            f"{row['milliseconds']:.1f}",
            f"{row['fastest_milliseconds']:.1f}",
            f"{row['peak_bytes'] / 1e6:.1f}",
            f"{ours / row['milliseconds']:.2f} x",
        )
    return table
