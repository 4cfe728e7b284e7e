"""A pipeline of blocks by torch's schedules, and a loss over the whole batch behind it.

Blocks are divided into stages, a batch into microbatches of one shape. What passes between stages is float and used
(torch 2.11 asks for it): tokens, and the routers' losses of each row; masks come to every stage by themselves. Losses
of the routers are means of a microbatch.

A contrastive loss needs all embeddings at once, a pipeline has those of one microbatch. GradCache (Gao et al. 2021):
the blocks run twice, first without gradients for all outputs, of which the loss has gradients; then with them, each
microbatch against the gradients of its own outputs. That is exact without dropout, and costs one more forward.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from mm.model.backbone import Backbone
from mm.model.packed import Stream, pack, unpack


class Stage(nn.Module):
    """Some blocks of a backbone, in their order, and its last norm behind the last of them.

    Args:
        backbone: whose blocks they are.
        blocks: their numbers.
        lengths: tokens of each modality that the stage is given, one after another.
    """

    def __init__(self, backbone: Backbone, blocks: range, lengths: Mapping[str, int]) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(backbone.blocks[number] for number in blocks)
        self.norm = backbone.norm if blocks.stop == len(backbone.blocks) else nn.Identity()
        self.modalities = backbone.modalities
        self.lengths = dict(lengths)

    def forward(self, x: Tensor, losses: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read every modality alone, as `Backbone.forward` does to embed.

        Args:
            x: tokens (B, T, D) of all modalities.
            losses: (B,), of the routers so far, a share for each row.
            mask: (B, T) bool, True where a token is real.

        Returns:
            tokens (B, T, D), and losses (B,) with those of these blocks added.
        """
        sizes = list(self.lengths.values())
        parts = zip(self.lengths, x.split(sizes, 1), mask.split(sizes, 1), strict=True)
        reading = {m: Stream(tokens, real) for m, tokens, real in parts}
        tokens, layout = pack([reading], self.modalities, fuse=False)
        for block in self.blocks:
            out, _ = block(tokens, layout)
            tokens = out.x
            losses = losses + sum(out.losses.values()) / len(losses)
        (reading,) = unpack(tokens, [reading], self.modalities)
        return self.norm(torch.cat([reading[m].x for m in self.lengths], 1)), losses


def stages_of(backbone: Backbone, rank: int, ranks: int, turns: int, lengths: Mapping[str, int]) -> dict[int, Stage]:
    """The stages of a rank by their numbers: with several turns those that are `ranks` apart.

    Args:
        backbone: whose blocks ranks · turns divides.
        rank: of the pipeline.
        ranks: of it.
        turns: stages of a rank.
        lengths: see `Stage`.
    """
    size = len(backbone.blocks) // (ranks * turns)
    numbers = range(rank, ranks * turns, ranks)
    return {number: Stage(backbone, range(number * size, (number + 1) * size), lengths) for number in numbers}


class Pipeline:
    """The stages of this rank under 1F1B (Narayanan et al. 2019), interleaved where it has several.

    Args:
        stages: of this rank, see `stages_of`.
        count: stages of all ranks.
        microbatches: that a batch is divided into.
        group: of the ranks.
    """

    def __init__(self, stages: Mapping[int, Stage], count: int, microbatches: int, group: ProcessGroup | None) -> None:
        self.first = 0 in stages
        self.last = count - 1 in stages
        self.microbatches = microbatches
        # A schedule of torch 2.11 whose first call was forward alone receives no gradients in later ones.
        self.forward = self.schedule(stages, count, group)
        self.both = self.schedule(stages, count, group)

    def schedule(self, stages: Mapping[int, Stage], count: int, group: ProcessGroup | None) -> Any:
        """1F1B of these stages, see the class."""
        placed: list[Any] = []
        for number, stage in stages.items():
            device = next(stage.parameters()).device
            placed.append(PipelineStage(stage, number, count, device, group=group))
        # What each microbatch is run against is a sum already.
        options: dict[str, Any] = {"loss_fn": self.against, "scale_grads": False}
        if len(placed) == 1:
            return Schedule1F1B(placed[0], self.microbatches, **options)
        return ScheduleInterleaved1F1B(placed, self.microbatches, **options)

    def backward(self, x: Tensor | None, mask: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Forward and backward of a batch; called by all ranks.

        Args:
            x: tokens (B, T, D) on the first rank, which get a gradient; None elsewhere.
            mask: (B, T) bool, on every rank.
            loss: of all output tokens (B, T, D), on the last rank; what it reads beside them gets its gradients, too.

        Returns:
            its value () on the last rank; the routers' losses, means over microbatches, have their gradients and are
            not in it.
        """
        given: tuple[Tensor, ...] = ()
        if self.first:
            assert x is not None
            given = (x, x.new_zeros(len(x), requires_grad=True))
        with torch.no_grad():
            nothing = mask.new_zeros(len(mask), 1, 1, dtype=torch.float32)
            outputs = self.forward.eval(*(part.detach() for part in given), mask=mask, target=nothing)
        value = None
        target = None
        if self.last:
            cached = outputs[0].detach().requires_grad_()
            value = loss(cached)
            value.backward()
            target = cached.grad
        self.both.step(*given, mask=mask, target=target)
        return None if value is None else value.detach()

    def against(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """() whose gradient by tokens (B, T, D) is the target, and which holds the routers' losses (B,)."""
        tokens, losses = output
        return (tokens * target).sum() + losses.sum() / self.microbatches
