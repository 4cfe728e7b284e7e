"""A pipeline beside one process that takes the same microbatches: the loss over the whole batch and every gradient."""

import time
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from kernels.collectives import all_ranks, largest_over_ranks
from mm.bench.parity import Found, bytes_held_by, global_batch, small_run
from mm.config import AlignConfig
from mm.model.encoding import encode
from mm.parallel.layout import ParallelConfig
from mm.parallel.mesh import Meshes
from mm.parallel.pipeline import Pipeline, Stage, stages_of

BLOCKS = 4
MICROBATCHES = 4


class Towers(nn.Module):
    """A small run's encoders, blocks and heads, and the contrastive loss of two of its modalities.

    Args:
        config: of the run, whose blocks become four.
    """

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        backbone = replace(config.model.backbone, layers=BLOCKS)
        self.config = replace(config, model=replace(config.model, backbone=backbone))
        run = small_run(self.config)
        self.model = run.model.eval()
        self.pairs = ("image", "text")
        batch = global_batch(self.config, 0)
        with torch.no_grad():
            encoded = [encode(self.model.encoders[m], batch, m, reconstruct=False) for m in self.pairs]
        self.lengths = {m: e.tokens.shape[1] for m, e in zip(self.pairs, encoded, strict=True)}
        # In evaluation routers have no losses.
        self.model.backbone.train()
        self.tokens = torch.cat([e.tokens for e in encoded], 1)
        self.mask = torch.cat([e.mask for e in encoded], 1)

    def loss(self, x: Tensor) -> Tensor:
        """InfoNCE () of the whole batch's output tokens (B, T, D)."""
        vectors = []
        sizes = list(self.lengths.values())
        for m, part, real in zip(self.pairs, x.split(sizes, 1), self.mask.split(sizes, 1), strict=True):
            pooled = self.model.project[m](self.model.pool[m](part, real))
            vectors.append(normalize(pooled, dim=-1))
        logits = 10 * vectors[0] @ vectors[1].T
        return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def staged(config: AlignConfig, ranks: int, turns: int) -> Found:
    """One step of a pipeline of the processes that torch.distributed has connected, `turns` stages each."""
    towers = Towers(config)
    meshes = Meshes.of(ParallelConfig(pp=ranks), "cpu")
    stages = stages_of(towers.model.backbone, dist.get_rank(), ranks, turns, towers.lengths)
    pipeline = Pipeline(stages, ranks * turns, MICROBATCHES, meshes.group("pp"))
    x = towers.tokens.clone().requires_grad_() if pipeline.first else None
    started = time.perf_counter()
    value = pipeline.backward(x, towers.mask, towers.loss)
    found = found_of(towers, x, value)
    found.seconds = time.perf_counter() - started
    own = bytes_held_by(parameter for stage in stages.values() for parameter in stage.parameters())
    found.bytes = {"parameters": int(largest_over_ranks(torch.tensor(own), all_ranks()))}
    return found


def unstaged(config: AlignConfig) -> Found:
    """The same step of one process."""
    towers = Towers(config)
    whole = Stage(towers.model.backbone, range(BLOCKS), towers.lengths)
    x = towers.tokens.clone().requires_grad_()
    outputs = []
    routers = []
    started = time.perf_counter()
    for tokens, real in zip(x.chunk(MICROBATCHES), towers.mask.chunk(MICROBATCHES), strict=True):
        output, losses = whole(tokens, tokens.new_zeros(len(tokens)), real)
        outputs.append(output)
        routers.append(losses.sum())
    value = towers.loss(torch.cat(outputs))
    (value + torch.stack(routers).mean()).backward()
    found = found_of(towers, x, value)
    found.seconds = time.perf_counter() - started
    found.bytes = {"parameters": bytes_held_by(whole.parameters())}
    return found


def found_of(towers: Towers, x: Tensor | None, value: Tensor | None) -> Found:
    """The loss and all gradients that this process has."""
    found = Found()
    if x is not None and x.grad is not None:
        found.values["gradient of the encoders' tokens"] = x.grad
    if value is not None:
        found.values["contrastive"] = value.detach()
    for name, parameter in towers.model.named_parameters():
        if parameter.grad is not None:
            found.values[f"gradient {name}"] = parameter.grad
    return found
