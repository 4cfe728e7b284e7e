"""The blocks of a backbone in stages of several processes, by torch's schedules.

Every process of a pipeline has the same samples, and all but the blocks: it computes encoders, heads and losses as one
process does. All of these, the blocks of a stage too, may be divided further, among processes that have pipelines of
their own. The rows of each stream are divided into microbatches of one shape. What passes between stages is whole,
float and used (torch 2.11 asks for it): tokens, and the routers' losses; masks come to every stage by themselves.

A contrastive loss needs all embeddings at once, a pipeline has those of one microbatch. GradCache (Gao et al. 2021):
the blocks run twice, first for all outputs, of which whatever follows has gradients; then, in its backward, under 1F1B
(Narayanan et al. 2019), each microbatch against the gradients of its own outputs. That is exact without dropout, and
costs one more forward. Losses of the routers are means of a microbatch, weighted by its tokens: `z` is then that of the
batch, `balance` and `entropy`, which are no means over tokens, are not.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.nn.functional import pad

from kernels.collectives import Group, from_rank, largest_over_ranks, rank_and_size, step_group, sum_over_ranks, world
from mm.model.backbone import Backbone, Passed
from mm.model.moe import ROUTER_LOSSES
from mm.model.packed import Reading, Span, Stream, pack, spans_of
from mm.parallel.layout import ParallelConfig, microbatches


@dataclass(frozen=True)
class Microbatches:
    """Rows of every stream in parts of one shape.

    Args:
        spans: where each stream stands among all tokens, by number of its reading and modality, in their order.
        count: how many parts.
    """

    spans: Mapping[tuple[int, str], Span]
    count: int

    def rows(self, span: Span) -> int:
        """Of a stream in a part; the last parts may have fewer real ones."""
        return -(-span.rows // self.count)

    def divided(self, x: Tensor) -> Tensor:
        """x (N, ...) of all tokens -> (count, n, ...), zeros (False) behind a stream's last row."""
        parts = []
        for span in self.spans.values():
            stream = x[span.start : span.stop].reshape(span.size, -1)
            missing = self.rows(span) * self.count * span.length - span.size
            parts.append(pad(stream, (0, 0, 0, missing)).view(self.count, -1, *x.shape[1:]))
        return torch.cat(parts, 1)

    def joined(self, x: Tensor) -> Tensor:
        """The inverse of `divided`."""
        sizes = [self.rows(span) * span.length for span in self.spans.values()]
        parts = []
        for span, part in zip(self.spans.values(), x.split(sizes, 1), strict=True):
            parts.append(part.flatten(0, 1)[: span.size])
        return torch.cat(parts)

    def readings(self, x: Tensor, mask: Tensor) -> list[Reading]:
        """Tokens x (n, D) and mask (n,) of one part -> its readings."""
        sizes = [self.rows(span) * span.length for span in self.spans.values()]
        found: dict[int, Reading] = {}
        for (number, m), tokens, real in zip(self.spans, x.split(sizes), mask.split(sizes), strict=True):
            shape = (-1, self.spans[number, m].length)
            found.setdefault(number, {})[m] = Stream(tokens.unflatten(0, shape), real.unflatten(0, shape))
        return [found[number] for number in sorted(found)]


class Stage(nn.Module):
    """Some blocks of a backbone, in their order, that read one microbatch after another.

    Args:
        backbone: whose blocks they are.
        numbers: of these blocks.
        passage: of which this is a part.
    """

    def __init__(self, backbone: Backbone, numbers: range, passage: "Passage") -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(backbone.blocks[number] for number in numbers)
        self.through = backbone.through
        self.modalities = backbone.modalities
        self.numbers = numbers
        self.passage = passage

    def forward(self, x: Tensor, losses: Tensor, mask: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Pass a microbatch through the blocks, and add its load to the passage's.

        Args:
            x: tokens (1, n, D) of all streams.
            losses: (1, 3), `ROUTER_LOSSES` of the blocks so far.
            mask: (1, n) bool, True where a token is real.
            weight: (1,), share of all real tokens.

        Returns:
            tokens (1, n, D), and losses (1, 3) with those of these blocks added.
        """
        once_more = torch.is_grad_enabled()
        # The first time, too: so that losses are of all ranks, and no kernel rounds otherwise.
        with torch.set_grad_enabled(self.passage.trains):
            readings = self.passage.parts.readings(x[0], mask[0])
            tokens, layout = pack(readings, self.modalities, self.passage.fuse)
            out = self.through(self.blocks, tokens, layout)
            own = [out.losses.get(name, losses.new_zeros(())) for name in ROUTER_LOSSES]
            losses = losses + weight[:, None] * torch.stack(own)
        self.passage.load[self.numbers.start : self.numbers.stop] += out.load
        y = out.x[None].to(x.dtype)
        return (y, losses) if once_more else (y.detach(), losses.detach())


class PlacedStage(PipelineStage):
    """A stage whose blocks may be sharded: they are gathered once for all microbatches, and their gradients, which stay
    whole until then, reduced behind the last one."""

    @property
    def sharded(self) -> list[FSDPModule]:
        """Blocks and parts of them that FSDP2 shards each for itself."""
        return [module for module in self.submod.modules() if isinstance(module, FSDPModule)]

    def backward_maybe_with_nosync(self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False):  # type: ignore[no-untyped-def]  # torch's hook
        """torch's, which does this for a stage that is one sharded module."""
        for part in self.sharded:
            part.set_requires_gradient_sync(last_backward, recurse=False)
        return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)


class Pipeline:
    """What `Backbone.forward` calls instead of its blocks where processes divide them.

    Args:
        backbone: of whose blocks this process has its own.
        layout: of the processes.
        group: of those that divide the blocks.
    """

    def __init__(self, backbone: Backbone, layout: ParallelConfig, group: Group) -> None:
        self.backbone = backbone
        self.layout = layout
        self.group = group
        rank, _ = rank_and_size(group)
        self.stages = stages_of(len(backbone.blocks), layout, rank)
        # torch's stages look for gradients at the parts of a batch, which are no leaves; the batch itself has them.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed")

    def __call__(self, readings: list[Reading], fuse: bool) -> Passed:
        """Pass readings of streams (B, T, D) through all blocks; called by all processes."""
        spans = spans_of(readings, self.backbone.modalities)
        streams = [readings[number][m] for number, m in spans]
        x = torch.cat([stream.x.flatten(0, 1) for stream in streams])
        parts = Microbatches(spans, self.count(max(span.rows for span in spans.values()), x.device))
        mask = parts.divided(torch.cat([stream.mask.flatten() for stream in streams]))
        tokens = sum_over_ranks(mask.sum(1).float(), step_group())
        weight = tokens / tokens.sum().clamp(min=1)
        load = x.new_zeros(len(self.backbone.blocks), len(self.backbone.modalities), self.backbone.num_experts).float()
        passage = Passage(self, parts, fuse, mask, weight, load, torch.is_grad_enabled())
        if passage.trains and not x.requires_grad:
            # What stands before may be frozen; the blocks learn all the same.
            x = x.detach().requires_grad_()
        y, losses = _Through.apply(parts.divided(x), passage)
        named = dict(zip(ROUTER_LOSSES, losses.unbind(), strict=True))
        config = self.backbone.blocks[0].moe.config
        on = [name for name in ROUTER_LOSSES if getattr(config, name) and self.backbone.training]
        return Passed(parts.joined(y), {name: named[name] for name in on}, passage.load)

    def count(self, rows: int, device: torch.device) -> int:
        """Of microbatches: where processes with other samples meet in each, to add losses or to exchange tokens, as
        many as the one with most rows has."""
        group = world() if self.layout.ep > 1 else step_group()
        found = torch.tensor(microbatches(rows, self.layout), device=device)
        return int(largest_over_ranks(found, group))


@dataclass
class Passage:
    """One batch on its way through the blocks, and its gradients on their way back.

    Args:
        pipeline: of these processes.
        parts: how it is divided.
        fuse: whether modalities attend to each other.
        mask: (count, n) bool, True where a token is real.
        weight: (count,), share of all real tokens that a microbatch has.
        load: (layers, M, E), to which stages add.
        trains: whether gradients are asked for.
    """

    pipeline: Pipeline
    parts: Microbatches
    fuse: bool
    mask: Tensor
    weight: Tensor
    load: Tensor
    trains: bool

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens x (count, n, D), read on the first process -> tokens (count, n, D) and the routers' losses (3,), on
        all."""
        group, last = self.pipeline.group, self.pipeline.layout.pp - 1
        start = x.new_zeros(len(x), len(ROUTER_LOSSES), dtype=torch.float32)
        found = self.run(x, start, None, None)
        y, losses = (torch.empty_like(x), start) if found is None else found
        sum_over_ranks(self.load, group)
        return from_rank(y.contiguous(), last, group), from_rank(losses.sum(0), last, group)

    def gradient(self, x: Tensor, of_tokens: Tensor, of_losses: Tensor) -> Tensor:
        """Give the parameters of all blocks their gradients.

        Args:
            x: tokens (count, n, D).
            of_tokens: (count, n, D), the gradient of the outputs, on all processes.
            of_losses: (3,), of the losses.

        Returns:
            (count, n, D), that of the tokens, on all processes.
        """
        self.load = torch.zeros_like(self.load)
        target = torch.cat([of_tokens.flatten(1), of_losses.expand(len(x), -1)], 1)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            start = x.new_zeros(len(x), len(ROUTER_LOSSES), dtype=torch.float32, requires_grad=True)
            self.run(leaf, start, target, against)
        grad = torch.empty_like(x) if leaf.grad is None else leaf.grad
        return from_rank(grad, 0, self.pipeline.group)

    def run(self, x: Tensor, losses: Tensor, target: Tensor | None, loss: Any) -> Sequence[Tensor] | None:
        """Forward, with a loss backward too; what comes out of the last stage, on its process."""
        layout = self.pipeline.layout
        shapes = tuple(part[:1].to("meta") for part in (x.detach(), losses.detach()))
        placed: list[Any] = []
        for number, blocks in self.pipeline.stages.items():
            stage = Stage(self.pipeline.backbone, blocks, self)
            count = layout.pp * layout.turns
            placed.append(PlacedStage(stage, number, count, x.device, shapes, shapes, group=self.pipeline.group))
        # What each microbatch is run against is a sum already.
        options: dict[str, Any] = {"loss_fn": loss, "scale_grads": False}
        schedule: Any
        if len(placed) == 1:
            schedule = Schedule1F1B(placed[0], self.parts.count, **options)
        else:
            schedule = ScheduleInterleaved1F1B(placed, self.parts.count, **options)
        given = (x, losses) if placed[0].is_first else ()
        target = target if placed[-1].is_last else None
        found = schedule.step(*given, mask=self.mask, weight=self.weight, target=target)
        for stage in placed:
            for part in stage.sharded:
                part.reshard()
        return found


class _Through(torch.autograd.Function):
    """The outputs of a passage now, its gradients when whatever follows has its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passage: Passage) -> tuple[Tensor, Tensor]:
        ctx.passage = passage
        ctx.save_for_backward(x)
        kind = x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return passage.outputs(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.autocast(*ctx.autocast):
            return ctx.passage.gradient(x, *grads), None


def against(output: Sequence[Tensor], target: Tensor) -> Tensor:
    """() whose gradients by tokens (1, n, D) and losses (1, 3) are the target (1, n·D + 3)."""
    return (torch.cat([part.flatten(1).float() for part in output], 1) * target).sum()


def stages_of(blocks: int, layout: ParallelConfig, rank: int) -> dict[int, range]:
    """The stages of a process of a pipeline: numbers of their blocks by their own, which are pp apart."""
    count = layout.pp * layout.turns
    size = blocks // count
    return {number: range(number * size, (number + 1) * size) for number in range(rank, count, layout.pp)}
