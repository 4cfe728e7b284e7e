"""A step that is recorded and replayed is the step: on a stand-in for CUDA graphs that records what a CPU does."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.captured import CapturedStep
from mm.train.task import AlignTask

RESHAPES = {"squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "detach_"}
"""Operations in place that move no number."""


def storage(tensor: Tensor) -> int:
    """Equal for tensors that share their memory."""
    return tensor.untyped_storage().data_ptr()


class Graph(TorchDispatchMode):
    """Operations as a CUDA graph has them: each with its own tensors, into which a replay writes again.

    What was made within holds nothing between replays: on a GPU other recordings have its memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.made: list[Tensor] = []
        self.storages: set[int] = set()
        self.before: list[tuple[Tensor, Tensor]] = []
        self.draws = torch.Generator()

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.draws = generator

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        kwargs = kwargs or {}
        # Aliases: a tensor whose shape is changed in place later has the old one here.
        kept_args, kept_kwargs = tree_map_only(Tensor, torch.detach, (args, kwargs))
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
                self.before.extend((t, t.clone()) for t in written if storage(t) not in self.storages)
        found = function(*args, **kwargs)
        given = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        results = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        own = [t.detach() for t in results if storage(t) not in given]
        if function.overloadpacket.__name__ not in RESHAPES:
            self.operations.append((function, kept_args, kept_kwargs, own))
        self.made.extend(own)
        self.storages.update(map(storage, own))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for made in self.made:
            made.fill_(float("nan") if made.is_floating_point() else 1)
        for function, args, kwargs, own in self.operations:
            found = function(*args, **kwargs)
            again = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
            for mine, new in zip(own, again, strict=False):
                mine.copy_(new)


@contextmanager
def recording(graph: Graph, **_: Any) -> Iterator[None]:
    """Nothing of what is recorded has happened: what it wrote and drew is put back."""
    drawn, of_torch = graph.draws.get_state(), torch.get_rng_state()
    with graph:
        yield
    for tensor, value in reversed(graph.before):
        tensor.detach().copy_(value)
    graph.draws.set_state(drawn)
    torch.set_rng_state(of_torch)


def experts(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """`kernels.grouped_mlp`, whose paths on a CPU have as many rows as the routing says, in static shapes."""
    gate, up = torch.einsum("nkhd,nd->nkh", w_in[indices], x).chunk(2, -1)
    y = torch.einsum("nkdh,nkh->nkd", w_out[indices], torch.nn.functional.silu(gate) * up)
    return (weights[..., None] * y).sum(1)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that records, for which the host does not read."""
    monkeypatch.setattr("mm.train.captured.has_graphs", lambda device: True)
    for module in ("kernels.padding", "encoders.quantizers.ema", "mm.model.packed"):
        monkeypatch.setattr(f"{module}.host_reads", lambda x: False)
    monkeypatch.setattr("mm.model.moe.grouped_mlp", experts)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)


class Moving(AlignTask):
    """A task without a trainer, whose step and progress are set."""

    step = 0
    current_rate = 0.0

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return self.step

    def log(self, *args: Any, **options: Any) -> None:
        """Nobody listens."""


def steps(task: Moving, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Loss, gradients and buffers after each step; weights move in between."""
    task.train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    found = []
    for batch in batches:
        total = task.training_step(batch, 0)
        optimizer.zero_grad()
        task.backward(total)
        task.on_after_backward()
        now = {"total": total.detach().clone()}
        now |= {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
        now |= {name: buffer.clone() for name, buffer in task.named_buffers()}
        found.append(now)
        optimizer.step()
        task.step += 1
    return found


def build(tiny: AlignConfig, tiny_run: Callable[..., Run], kind: Any = "progressive") -> Moving:
    """At the step at which the last terms begin, whose weights then rise."""
    schedule = replace(tiny.schedule, kind=kind, stage2=0.0, stage3=0.3)
    task = Moving(tiny_run(schedule=schedule, loss=replace(tiny.loss, filip_rows=3, itm_rows=3)))
    task.config = replace(task.config, train=replace(task.config.train, steps=100))
    task.step = 29
    return task


SEAM_WITHIN = ("few_tokens", "codes_later", "detail_apart")
"""Kinds that are begun earlier: three steps before the stage, at which another recording is needed, and four after."""


@pytest.mark.parametrize("kind", ["progressive", "few_tokens", "codes_later", "detail_apart", "detail_projected"])
def test_replayed_steps_are_the_steps(
    kind: str, graphs: None, tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    """Seven steps, of samples that may lack a modality; from the second one on the last terms' weights rise, or all
    tokens and codes are read."""
    batches = []
    for seed in range(7):
        batch = tiny_batch(6, seed)
        batch.present["audio"][seed % 6] = False
        batches.append(batch)
    eager = build(tiny, tiny_run, kind)
    eager.step -= 3 * (kind in SEAM_WITHIN)
    eager.captured.prepared = lambda batch: CapturedStep.prepared(eager.captured, batch)  # type: ignore[method-assign]
    eager.captured.recorded = lambda batch: None  # type: ignore[method-assign]
    expected = steps(eager, batches)
    task = build(tiny, tiny_run, kind)
    task.step -= 3 * (kind in SEAM_WITHIN)
    found = steps(task, batches)
    assert task.captured.eager is None and task.captured.recordings and task.captured.replayed is not None
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one.keys() == other.keys()
        wrong = [name for name, value in one.items() if not torch.allclose(value, other[name], 1e-4, 1e-6)]
        assert not wrong, (number, wrong[:5])


def test_a_cpu_says_once_why_it_records_nothing(
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = build(tiny, tiny_run)
    with caplog.at_level(logging.INFO, "mm.train.captured"):
        steps(task, [tiny_batch(4)] * 2)
    assert caplog.messages == ["step: eager, because it does not run on a GPU"]


def test_a_step_that_cannot_be_recorded_is_taken_all_the_same(
    graphs: None,
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuses(graph: Graph, **_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    task = build(tiny, tiny_run)
    with caplog.at_level(logging.INFO, "mm.train.captured"):
        found = steps(task, [tiny_batch(4)] * 4)
    assert len(found) == 4 and caplog.messages == [
        "step: eager, because it cannot be captured: operation not permitted"
    ]
