"""Times every kernel against its definition, its limit and every installed peer: python scripts/bench_kernels.py
--json rows.json

One process, the same inputs, implementations interleaved, median of the repeats. `limit` is the same arithmetic as
dense matrix products. A peer that is not installed is named and skipped. The largest contrastive case is run once,
by our own implementation, to show its memory; the dense losses would need more than most machines have.
"""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kernels.dispatch import has_bf16
from kernels.grouped_mlp import grouped_mlp
from kernels.grouped_mlp import reference as grouped_mlp_reference
from kernels.info_nce import info_nce, sigmoid_loss
from kernels.info_nce import reference as info_nce_reference
from kernels.nearest_code import assign, nearest_code
from kernels.nearest_code import reference as nearest_code_reference
from kernels.testing import ContrastiveCase, GroupedMLPCase, NearestCodeCase
from kernels.timing import Contest, Run
from mm.cli import run_command
from mm.files import write_json

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Op = Literal["grouped_mlp", "nearest_code", "info_nce"]
GROUPED_MLP = {
    "4096x256, 128 experts of 128, top-8": GroupedMLPCase(4096, 128, 8, 256, 128),
    "the same, falling load": GroupedMLPCase(4096, 128, 8, 256, 128, "falling"),
    "7526x128, 128 experts of 32, top-8": GroupedMLPCase(7526, 128, 8, 128, 32, "falling"),
}
DRAWS = 32
GROUPED_MLP_CUDA = {"32768x2048, 128 experts of 768, top-8": GroupedMLPCase(32768, 128, 8, 2048, 768)}


def main(json: Path | None = None, only: Op | None = None, repeats: int = 9, largest: int = 32768) -> None:
    """Benchmarks the kernels on this machine.

    Args:
        json: where to write the rows.
        only: the one operation to run.
        repeats: rounds per contest; implementations slower than a second take part in three.
        largest: batch of the contrastive case that is run once for its memory; 0 leaves it out.
    """
    contests = {"grouped_mlp": mlp_contests, "nearest_code": code_contests, "info_nce": lambda: loss_contests(largest)}
    rows = []
    with torch.autograd.set_multithreading_enabled(False):
        for op, make in contests.items():
            for contest in make() if only in (None, op) else ():
                rows += contest.rows(repeats)
                show(rows)
                if json is not None:
                    write_json(json, rows)


def mlp_contests() -> Iterator[Contest]:
    cases = {**GROUPED_MLP, **(GROUPED_MLP_CUDA if DEVICE == "cuda" else {})}
    for turn, (name, case) in enumerate(cases.items()):
        yield from mlp_contest(name, case, torch.float32)
        if turn and not has_bf16(DEVICE):  # emulated products take seconds each: one case shows it
            continue
        yield from mlp_contest(name, case, torch.bfloat16)
        if not has_bf16(DEVICE):
            print(f"no native bfloat16 products on this {DEVICE}: its contests are skipped from here on")
            continue
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            yield from mlp_contest(name, case, torch.float32, " under bfloat16 autocast")
            yield from mlp_contest(name, case, torch.float32, " under bfloat16 autocast, routing drawn anew", DRAWS)


def mlp_contest(
    name: str, case: GroupedMLPCase, dtype: torch.dtype, how: str = "", draws: int = 1
) -> Iterator[Contest]:
    """`draws` > 1 changes the routing from run to run, as training does: what is compiled for one routing is not
    found again.
    """
    x, w_in, w_out, _, weights = case.inputs(dtype, DEVICE)
    seeds = (torch.Generator().manual_seed(seed) for seed in range(draws))
    routings = [case.indices(generator).to(DEVICE) for generator in seeds]
    dense = GroupedMLPCase(1, 1, 1, case.width, case.active * case.hidden).inputs(dtype, DEVICE)
    up, down = dense[1][0], dense[2][0]
    experts = {
        "ours": lambda chosen: grouped_mlp(x, w_in, w_out, chosen, weights),
        "reference": lambda chosen: grouped_mlp_reference.grouped_mlp(x, w_in, w_out, chosen, weights),
        **qwen3_experts(w_in, w_out, x, weights),
    }
    forward: dict[str, Run] = {n: with_next(run, itertools.cycle(routings)) for n, run in experts.items()}
    forward["limit"] = lambda: dense_mlp(x, up, down)
    leaves = [x, w_in, w_out, weights, up, down]
    yield from both_passes("grouped_mlp", name + how, dtype, forward, leaves, torch.randn_like(x))


def with_next(run: Callable[[Tensor], Any], routings: Iterator[Tensor]) -> Run:
    return lambda: run(next(routings))


def dense_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = (x @ up.T).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ down.T


def qwen3_experts(w_in: Tensor, w_out: Tensor, x: Tensor, weights: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """transformers' Qwen3-MoE experts with our weights as their parameters, as functions of the routing."""
    if not installed("transformers"):
        return {}
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def run(kind: str) -> Callable[[Tensor], Any]:
        config = Qwen3MoeConfig(
            hidden_size=w_out.shape[1], moe_intermediate_size=w_out.shape[2], num_experts=w_out.shape[0]
        )
        config._experts_implementation = kind
        with torch.device("meta"):
            experts = Qwen3MoeExperts(config)
        experts.gate_up_proj, experts.down_proj = torch.nn.Parameter(w_in), torch.nn.Parameter(w_out)
        return lambda chosen: experts(x, chosen, weights)

    return {f"transformers_{kind}": run(kind) for kind in ("eager", "grouped_mm")}


def code_contests() -> Iterator[Contest]:
    case = NearestCodeCase(16384, 8192, 64)
    z, codebook = case.inputs(torch.float32, DEVICE)
    for metric in ("euclidean", "cosine"):
        yield from code_contest(f"{case.vectors}x{case.width}, {case.codes} codes, {metric}", z, codebook, metric)


def code_contest(name: str, z: Tensor, codebook: Tensor, metric: str) -> Iterator[Contest]:
    scores = z.new_empty(128, codebook.shape[0])
    limit: dict[str, Run] = {"limit": lambda: [torch.mm(block, codebook.T, out=scores) for block in z.split(128)]}
    library = vector_quantize(z, codebook, metric)
    evaluation: dict[str, Run] = {
        "ours": lambda: nearest_code(z, codebook, metric),
        "reference": lambda: nearest_code_reference.nearest_code(z, codebook, metric),
    }
    training: dict[str, Run] = {
        "ours": ema_step(z, codebook, metric),
        "reference": lambda: nearest_code_reference.assign(z, codebook, metric),
    }
    for step, runs in (("evaluation", evaluation), ("training step", training)):
        contestants = runs | limit | library(step == "training step")
        yield Contest("nearest_code", f"{name}, {step}", "float32", "forward", contestants)


def ema_step(z: Tensor, codebook: Tensor, metric: str, decay: float = 0.99) -> Run:
    """What the library's training forward does: choice, straight-through vectors, commitment loss, EMA of the
    codebook.
    """
    codebook, size, mean = codebook.clone(), codebook.new_ones(codebook.shape[0]), codebook.clone()

    def step() -> tuple[Tensor, Tensor]:
        indices, counts, sums = assign(z, codebook, metric)
        chosen = codebook[indices]
        size.lerp_(counts, 1 - decay)
        mean.lerp_(sums, 1 - decay)
        smoothed = (size + 1e-5) / (size.sum() + len(size) * 1e-5) * size.sum()
        torch.div(mean, smoothed[:, None], out=codebook)
        return z + (chosen - z).detach(), F.mse_loss(z, chosen)

    return step


def vector_quantize(z: Tensor, codebook: Tensor, metric: str) -> Callable[[bool], dict[str, Run]]:
    """vector-quantize-pytorch with our codebook; called with whether it trains."""
    if not installed("vector_quantize_pytorch"):
        return lambda training: {}
    from vector_quantize_pytorch import VectorQuantize

    def run(training: bool) -> dict[str, Run]:
        library = VectorQuantize(
            dim=z.shape[1], codebook_size=codebook.shape[0], decay=0.99, use_cosine_sim=metric == "cosine"
        ).to(DEVICE)
        library._codebook.embed.data.copy_(codebook[None])
        library.train(training)
        batch = z[None]

        def step() -> Any:
            with torch.set_grad_enabled(training):
                return library(batch)

        return {"vector_quantize_pytorch": step}

    return run


def loss_contests(largest: int) -> Iterator[Contest]:
    for pairs in (1024, 4096):
        yield from loss_contest(f"{pairs}x512", *ContrastiveCase(pairs, 512).inputs(torch.float32, DEVICE))
    if largest:
        a, b, scale, _ = ContrastiveCase(largest, 512).inputs(torch.float32, DEVICE)
        runs: dict[str, Run] = {"ours": lambda: info_nce(a, b, scale)}
        name, grad = f"{largest}x512, InfoNCE", torch.ones((), device=DEVICE)
        _, contest = both_passes("info_nce", name, torch.float32, runs, [a, b, scale], grad)
        contest.repeats = 1
        yield contest


def loss_contest(name: str, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Iterator[Contest]:
    nce: dict[str, Run] = {
        "ours": lambda: info_nce(a, b, scale),
        "limit": lambda: Products.apply(a, b),
        "reference": lambda: info_nce_reference.info_nce(a, b, scale),
    }
    sigmoid: dict[str, Run] = {
        "ours": lambda: sigmoid_loss(a, b, scale, bias),
        "limit": lambda: Products.apply(a, b),
        "reference": lambda: info_nce_reference.sigmoid_loss(a, b, scale, bias),
    }
    if installed("open_clip"):
        from open_clip.loss import ClipLoss, SigLipLoss

        clip, siglip = ClipLoss(), SigLipLoss()
        nce["open_clip"] = lambda: clip(a, b, scale)
        sigmoid["open_clip"] = lambda: siglip(a, b, scale, bias)
    grad = torch.ones((), device=DEVICE)
    yield from both_passes("info_nce", f"{name}, InfoNCE", torch.float32, nce, [a, b, scale], grad)
    yield from both_passes("info_nce", f"{name}, sigmoid", torch.float32, sigmoid, [a, b, scale, bias], grad)


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


def both_passes(
    op: str, case: str, dtype: torch.dtype, forward: dict[str, Run], leaves: list[Tensor], grad: Tensor
) -> Iterator[Contest]:
    """The forward pass without gradients, and forward and backward together."""
    kind = str(dtype).removeprefix("torch.")

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


def installed(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed: skipped", file=sys.stderr)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """The last contest: time, and ours as a ratio to the limit and to every peer."""
    last = rows[-1]
    contest = [row for row in rows if all(row[key] == last[key] for key in ("op", "case", "dtype", "pass"))]
    ours = next(row["milliseconds"] for row in contest if row["implementation"] == "ours")
    table = Table(title=f"{last['op']}: {last['case']}, {last['dtype']}, {last['pass']}", title_justify="left")
    for heading in ("implementation", "median ms", "fastest ms", "peak MB", "ours takes"):
        table.add_column(heading, justify="left" if heading == "implementation" else "right")
    for row in contest:
        times = (f"{row['milliseconds']:.1f}", f"{row['fastest_milliseconds']:.1f}", f"{row['peak_bytes'] / 1e6:.1f}")
        table.add_row(row["implementation"], *times, f"{ours / row['milliseconds']:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
