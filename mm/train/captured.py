"""A training step as a CUDA graph: thousands of small kernels are started by one call instead of one by one.

Forward, losses and backward of one kind of batch are recorded once and replayed for every later one. A kind is what a
recording cannot change: the shapes of a batch, which terms of the loss are on, and how much of the tokens is read, by a
`Moment`. What changes from step to step is
copied into the recording's own tensors before it is replayed: the batch and the weights of the terms; random numbers
come from generators whose state is read at each replay.
"""

import logging
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from alignment import LossTerms, Moment
from encoders.quantizers.ema import EMAQuantizer
from kernels.collectives import world
from mm.batch import Batch
from mm.train.ranks import padded_to

WARM_UP = 1
"""Steps of a kind that are taken one operation at a time before it is captured: they compile its kernels."""
MOST = 32
"""Kinds that are captured; what comes beyond is not worth the memory."""
MOST_TERMS = 256
"""Terms of a loss that a recording has room for."""
LENGTHS = 8
"""Captions are padded to a multiple of this: few lengths, met again and again."""

log = logging.getLogger(__name__)


@dataclass
class StepOutcome:
    """What a forward found: total () is minimised, terms and metrics () by name, load (layers, M, E)."""

    total: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]
    load: Tensor


class Step(Protocol):
    """What is captured, see `AlignTask`."""

    draws: torch.Generator
    model: Any

    def term_weights(self) -> dict[str, float]: ...

    def moment(self) -> Moment: ...

    def find(self, batch: Batch) -> tuple[LossTerms, dict[str, Tensor], Tensor]: ...

    def rebalance(self, load: Tensor) -> None: ...

    def on_after_backward(self) -> None: ...

    def named_trainable(self) -> list[tuple[str, Tensor]]: ...


@dataclass
class Recording:
    """One kind of step.

    Args:
        graph: is replayed.
        batch: what it reads.
        weights: (n,), of the terms, which it reads too.
        constants: the weights by name as they were when it was recorded, in their order.
        metrics: names of what stands behind total and terms in `figures`.
        figures: (1 + n + m,), total, terms and metrics.
        load: (layers, M, E).
        gradients: of each trainable parameter; None of one that this kind does not use.
    """

    graph: torch.cuda.CUDAGraph
    batch: Batch
    weights: Tensor
    constants: dict[str, float]
    metrics: list[str]
    figures: Tensor
    load: Tensor
    gradients: list[Tensor | None]
    written: list[float]

    def replay(self, batch: Batch, weights: dict[str, float]) -> StepOutcome:
        """One step; its gradients are then in `gradients`."""
        for own, given in zip(tree_leaves(self.batch), tree_leaves(batch), strict=True):
            own.copy_(given, non_blocking=True)
        now = [weights.get(name, constant) for name, constant in self.constants.items()]
        if now != self.written:
            self.weights.copy_(torch.tensor(now).pin_memory(), non_blocking=True)
            self.written = now
        self.graph.replay()
        total, *values = self.figures.clone().unbind()
        terms = dict(zip(self.constants, values, strict=False))
        metrics = dict(zip(self.metrics, values[len(terms) :], strict=True))
        return StepOutcome(total, terms, metrics, self.load)


class CapturedStep:
    """The recordings of a task's steps.

    Args:
        task: whose steps they are.
    """

    def __init__(self, task: Step) -> None:
        self.task = task
        self.recordings: dict[Hashable, Recording] = {}
        self.met: Counter[Hashable] = Counter()
        self.eager: str | None = None
        """Why steps are not captured; None where they are, or nobody has asked."""
        self.pool: Any = None
        self.parameters: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.replayed: Recording | None = None

    def __call__(self, batch: Batch) -> StepOutcome | None:
        """Replay the step of a batch that is `prepared`, after which `hand_out` gives its gradients; None where it has
        to be taken one operation at a time."""
        self.replayed = None
        if self.eager is not None:
            return None
        weights = self.task.term_weights()
        kind = kind_of(batch, weights), self.task.moment()
        recording = self.recordings.get(kind)
        if recording is None:
            self.met[kind] += 1
            if self.met[kind] <= WARM_UP or len(self.recordings) >= MOST or not started(self.task.model):
                return None
            recording = self.recorded(batch)
            if recording is None:
                return None
            self.recordings[kind] = recording
        self.replayed = recording
        return recording.replay(batch, weights)

    def stay_eager(self, reason: str) -> None:
        """Give up, and say why."""
        self.eager = reason
        log.info("step: eager, because %s", reason)

    def prepared(self, batch: Batch) -> Batch:
        """The batch with its captions padded to the next length that is recorded, where steps can be; a step that is
        not replayed reads the same, and draws the same numbers. Says in the log where steps cannot be recorded."""
        if self.eager is None and not has_graphs(batch.ids.device):
            self.stay_eager("it does not run on a GPU")
        if self.eager is None and world() is not None:
            self.stay_eager("several processes take it together")
        if self.eager is not None or "text" not in batch.masks:
            return batch
        length = batch.masks["text"].shape[1]
        most = self.task.model.encoders["text"].bottleneck.position.shape[0]
        longer = -(-length // LENGTHS) * LENGTHS
        return padded_to(batch, {"text": max(length, min(longer, most))})

    def recorded(self, batch: Batch) -> Recording | None:
        """Record the step of a kind; None where something in it cannot be."""
        try:
            with torch.enable_grad():
                recording = self.record(batch)
        except RuntimeError as error:
            first, *_ = str(error).splitlines()
            self.stay_eager(f"it cannot be captured: {first}")
            return None
        if not self.recordings:
            log.info("step: captured as a CUDA graph, one for each kind of batch and stage of the loss")
        return recording

    def record(self, batch: Batch) -> Recording:
        """Record forward, losses, backward and rebalancing of a batch; nothing of it runs."""
        task = self.task
        if not self.parameters:
            self.parameters = [parameter for _, parameter in task.named_trainable()]
            self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
            self.pool = torch.cuda.graph_pool_handle()
        # What is written before a replay is made before the recording: what is made within shares its memory.
        own = tree_map(torch.clone, batch)
        room = torch.zeros(MOST_TERMS, device=batch.ids.device)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(task.draws)
        # Weights that autocast has narrowed for an earlier forward are not of this one.
        torch.clear_autocast_cache()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            terms, metrics, load = task.find(own)
            weights = room[: len(terms.terms)]
            total = terms.total_by(weights)
            with torch.autocast(load.device.type, enabled=False):
                found = torch.autograd.grad(total, self.parameters, allow_unused=True)
                shown = [total, *terms.terms.values(), *metrics.values()]
                figures = torch.stack([value.detach().float() for value in shown])
                gradients = self.kept(found)
                task.rebalance(load)
                task.on_after_backward()
        torch.clear_autocast_cache()
        return Recording(graph, own, weights, dict(terms.weights), list(metrics), figures, load, gradients, [])

    def kept(self, gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Copy gradients into tensors that all recordings share: their own memory is free for the next one."""
        kept: list[Tensor | None] = []
        into: list[Tensor] = []
        alike: list[Tensor] = []
        for buffer, gradient in zip(self.buffers, gradients, strict=True):
            kept.append(None if gradient is None else buffer)
            if gradient is None:
                continue
            if buffer.stride() == gradient.stride():
                into.append(buffer)
                alike.append(gradient)
            else:
                # One such pair would make all of them be copied one by one.
                buffer.copy_(gradient)
        torch._foreach_copy_(into, alike)
        return kept

    def hand_out(self) -> bool:
        """Give every parameter its gradient of the step that was replayed; False where none was."""
        if self.replayed is None:
            return False
        for parameter, gradient in zip(self.parameters, self.replayed.gradients, strict=True):
            parameter.grad = gradient
        return True


def has_graphs(device: torch.device) -> bool:
    """Whether what a device does can be recorded."""
    return device.type == "cuda"


def kind_of(batch: Batch, weights: dict[str, float]) -> Hashable:
    """What a recording cannot change: which tensors a batch has, their shapes, and which terms have a weight."""
    parts = []
    for name in ("inputs", "features", "masks", "present", "sample_index"):
        for modality, tensor in getattr(batch, name).items():
            parts.append((name, modality, tensor.shape, tensor.dtype))
    return tuple(parts), tuple(weights)


def started(model: nn.Module) -> bool:
    """Whether all codebooks have met a batch: the first one of each is looked at by the host."""
    return all(module.started for module in model.modules() if isinstance(module, EMAQuantizer))
