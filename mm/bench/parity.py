"""Layouts beside one process: what processes that divide a run compute is what one computes on the same global batch.

A small run takes a few steps with AdamW, audio absent of some samples, captions of unlike lengths. Compared are the
terms of the loss, every gradient, its norm, what is logged, and at the end weights, codes and routing biases. Measured
are seconds of a step, and the bytes that a process holds.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from alignment import LossConfig, ScheduleConfig
from encoders import AudioConfig, BottleneckConfig, ImageConfig, TextConfig
from encoders.quantizer import QuantizerConfig
from encoders.tokenizer import Tokenizer, observed_vocabulary
from kernels.collectives import all_ranks, largest_over_ranks, pipeline, rank_and_size, world
from mm.artifacts.run import Run, build_run
from mm.batch import Batch
from mm.bench.alive import LargestAlive
from mm.config import AlignConfig, OptimConfig, TrainConfig
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.parallel.experts import local
from mm.parallel.gradients import clip_by_norm, whole
from mm.parallel.layout import ParallelConfig
from mm.parallel.mesh import Meshes
from mm.parallel.shard import complete_gradients, shard
from mm.parallel.stages import whole_tensors
from mm.train.optim import build_optimizer
from mm.train.task import AlignTask

CAPTIONS = ("red circle", "two blue squares", "one small green heart left of a star", "stripes", "a dot")
SAMPLES = 8
STEPS = 3
PROGRESS = 0.8
"""Share of the run at which the steps are: all losses are on."""
RUN_STEPS = 10


def small_config(experts: int = 8, checkpoint: bool = False, width: int = 32, pipeline: bool = False) -> AlignConfig:
    """All three modalities from scratch in two small blocks.

    Args:
        experts: how many, of which at most 8 are active.
        checkpoint: whether blocks are recomputed.
        width: of the backbone, its heads and experts with it.
        pipeline: whether it is for one: four blocks, of the routers' losses the one that microbatches do not change,
            and no captions written, which the others learn.
    """
    balance = 0.0 if pipeline else 0.1
    top_k = min(8, max(2, experts // 4))
    moe = MoEConfig(num_experts=experts, top_k=top_k, hidden=width // 4, shared=width, balance=balance)
    backbone = BackboneConfig(width=width, layers=4 if pipeline else 2, heads=4, checkpoint=checkpoint, moe=moe)
    return AlignConfig(
        model=ModelConfig(embedding=16, token_embedding=8, generate=not pipeline, backbone=backbone),
        image=ImageConfig(size=32, width=16, depth=1),
        audio=AudioConfig(seconds=0.32, width=16, depth=1),
        text=TextConfig(width=16, depth=1, heads=2, max_tokens=12),
        bottleneck=BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=3),
        schedule=ScheduleConfig(kind="progressive"),
        loss=LossConfig(filip_rows=6, itm_rows=5),
        train=TrainConfig(steps=RUN_STEPS, batch_size=SAMPLES, precision="fp32", accelerator="cpu"),
        optim=OptimConfig(clip=0.5),
    )


def small_run(config: AlignConfig, device: str = "cpu") -> Run:
    """The same initial weights each time; none on the meta device."""
    vocabulary = observed_vocabulary(tokenizer(config.text.max_tokens), CAPTIONS)
    torch.manual_seed(0)
    with torch.device(device):
        return build_run(config, vocabulary)


@cache
def tokenizer(max_tokens: int) -> Tokenizer:
    """Of text from scratch."""
    return Tokenizer("scratch", max_tokens)


def global_batch(config: AlignConfig, seed: int, samples: int = SAMPLES) -> Batch:
    """Noise images, noise clips of growing length of which every third is absent, captions of unlike lengths."""
    random = torch.Generator().manual_seed(seed)
    length = int(config.audio.seconds * config.audio.sample_rate)
    texts = [CAPTIONS[(seed + row) % len(CAPTIONS)] for row in range(samples)]
    ids, mask = tokenizer(config.text.max_tokens)(texts)
    size = config.image.size
    batch = Batch(torch.arange(samples))
    batch.put("image", torch.randint(0, 256, (samples, 3, size, size), dtype=torch.uint8, generator=random))
    lengths = torch.linspace(length // 2, length, samples).long()
    waveforms = torch.randn(samples, length, generator=random) * 0.1
    batch.put("audio", waveforms, torch.arange(length) < lengths[:, None])
    batch.put("text", ids, mask)
    batch.present["audio"] = torch.arange(samples) % 3 != 1
    return batch


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    """A rank's samples as its loader gives them: captions no longer than its own longest."""
    part = Batch(batch.ids.chunk(ranks)[rank])
    for m in batch.modalities:
        mask = batch.masks[m].chunk(ranks)[rank] if m in batch.masks else None
        inputs = batch.inputs[m].chunk(ranks)[rank]
        if m == "text" and mask is not None:
            length = int(mask.sum(1).max())
            inputs, mask = inputs[:, :length], mask[:, :length]
        part.put(m, inputs, mask)
        part.present[m] = batch.present[m].chunk(ranks)[rank]
    return part


class Trial(AlignTask):
    """A task that takes steps without a trainer, and keeps what it logs."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.taken = 0
        self.logged: dict[str, float] = {}

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return int(PROGRESS * RUN_STEPS) + self.taken

    @property
    def current_rate(self) -> float:
        return 0.0

    def log(self, name: str, value: Any, **_: object) -> None:  # type: ignore[override]
        self.logged[name] = float(value)


@dataclass
class Found:
    """What a layout's steps gave.

    Args:
        values: whole tensors by name, for comparison.
        bytes: that this process holds, by role; the largest of all processes.
        activations: bytes of what the first step makes and holds at once, but for its gradients; the largest of all
            processes.
        seconds: of a step, without the first.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    activations: int = 0
    seconds: float = 0.0


def take_steps(config: AlignConfig, layout: ParallelConfig | None, steps: int = STEPS) -> Found:
    """Take steps of a small run from its initial weights.

    Args:
        config: of the run.
        layout: of the processes that torch.distributed has connected; None for this one alone.
        steps: how many.
    """
    task, optimizer, meshes = built(small_run(config, initial_device()), layout)
    found = Found()
    times = []
    for number in range(steps):
        started = time.perf_counter()
        if number == 0:
            with LargestAlive() as alive:
                differentiate(task, meshes, number)
            found.values |= gradients_of(task)
            found.bytes = bytes_held(task)
            found.activations = alive.bytes - found.bytes["gradients"]
        else:
            differentiate(task, meshes, number)
        found.values[f"step {number}: norm"] = update(task, optimizer)
        times.append(time.perf_counter() - started)
        for name, value in task.logged.items():
            found.values[f"step {number}: {name}"] = torch.tensor(value)
    found.bytes["moments"] = bytes_held_by(t for state in optimizer.state.values() for t in state.values())
    for role in found.bytes:
        found.bytes[role] = of_largest(found.bytes[role])
    found.activations = of_largest(found.activations)
    for name, tensor in whole_tensors(task.state_dict(), pipeline()):
        found.values[f"end: {name}"] = tensor.detach().clone()
    found.seconds = min(times[1:] or times)
    return found


def of_largest(number: int) -> int:
    """The largest of all processes' numbers."""
    return int(largest_over_ranks(torch.tensor(number), all_ranks()))


def initial_device() -> str:
    """Where a process builds a run: the first one alone has values, as of a model that is too large for all."""
    rank, _ = rank_and_size(all_ranks())
    return "meta" if rank else "cpu"


def built(run: Run, layout: ParallelConfig | None) -> tuple[Trial, Optimizer, Meshes | None]:
    """A run divided among the processes that torch.distributed has connected, and its optimizer; layout: None for this
    process alone."""
    task = Trial(run).train()
    meshes = None
    if layout is not None:
        meshes = Meshes.of(layout, "cpu")
        shard(task, task.model, meshes, torch.device("cpu"), "training_step")
    return task, build_optimizer(task.groups()), meshes


def differentiate(task: Trial, meshes: Meshes | None, number: int) -> None:
    """Forward and backward of a step, of this process's share of its batch."""
    batch = share(global_batch(task.config, number, task.config.train.batch_size), *rank_and_size(world()))
    task.training_step(batch, number).backward()
    task.on_after_backward()
    if meshes is not None:
        complete_gradients(task, task.model, meshes)


def update(task: Trial, optimizer: Optimizer) -> Tensor:
    """The rest of a step -> the norm () of its gradients."""
    norm = clip_by_norm(list(task.parameters()), task.config.optim.clip)
    optimizer.step()
    task.clamp_scales()
    optimizer.zero_grad()
    task.taken += 1
    return norm.detach()


def gradients_of(task: AlignTask) -> dict[str, Tensor]:
    """Every gradient whole, by name."""
    found = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            found[f"gradient {name}"] = whole(parameter.grad).detach().clone()
    return found


def bytes_held(task: AlignTask) -> dict[str, int]:
    """Bytes of parameters and of gradients in this process."""
    parameters = list(task.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return {"parameters": bytes_held_by(parameters), "gradients": bytes_held_by(gradients)}


def bytes_held_by(tensors: Any) -> int:
    """Bytes of tensors in this process."""
    return sum(part.numel() * part.element_size() for part in map(local, tensors))


@dataclass
class Difference:
    """How far a layout is from one process, relative to the largest entry of each tensor.

    Args:
        gradient: largest of all gradients.
        value: largest of all else but weights.
        weight: largest absolute of the weights at the end.
        worst: the name of the worst gradient.
        unlike: names that one of the two has alone.
    """

    gradient: float = 0.0
    value: float = 0.0
    weight: float = 0.0
    worst: str = ""
    unlike: Sequence[str] = ()


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Difference:
    """Compare what a layout found with what one process did."""
    result = Difference(unlike=sorted(found.keys() ^ expected.keys()))
    for name in found.keys() & expected.keys():
        there, here = expected[name].double(), found[name].double()
        error = float((here - there).abs().max()) if there.numel() else 0.0
        scaled = error / max(float(there.abs().max()) if there.numel() else 0.0, 1e-2)
        if name.startswith("gradient "):
            if scaled > result.gradient:
                result.gradient, result.worst = scaled, name
        elif name.startswith("end: "):
            result.weight = max(result.weight, error)
        else:
            result.value = max(result.value, scaled)
    return result
