"""The Lightning module: one training step from a batch to a named sum of losses, and what moves between steps."""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from alignment import (
    Aligned,
    DrawnPairs,
    LossTerms,
    Moment,
    code_share,
    highest_temperature,
    loss_weights,
    moment,
    on_top,
    stage,
    still_sides,
)
from kernels.collectives import joint_sum, rank_and_size, sum_over_ranks, world
from kernels.draws import generator_device
from kernels.errors import UserError
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.modalities import pairs_of
from mm.model.encoding import select
from mm.model.multimodal import MatchInput, MatchOutput, ModelOutput
from mm.model.writer import Writer
from mm.train.captions import Written, write_captions
from mm.train.captured import CapturedStep, StepOutcome
from mm.train.finite import check_finite, clip_gradients
from mm.train.optim import build_optimizer, learning_rate, parameter_groups
from mm.train.ranks import same_lengths

SHOWN = ("contrastive/image_text", "itm/image_text")
"""Terms that the progress bar shows."""


class AlignTask(LightningModule):
    """Train a run's model and loss by the progressive alignment loss.

    Args:
        run: config, model and loss; it is trained in place.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.config = run.config
        self.model = run.model
        self.loss = run.loss
        self.compression = run.compression
        self.stages = pairs_of(self.model.modalities)
        self.draws = torch.Generator()
        """Of what is drawn over the global batch, in the same state on every rank; see `seed_step`."""
        self.code_share = torch.ones(())
        """What `alignment.code_share` is in this step, where a recorded step reads it; see `seed_step`."""
        self.load: Tensor | None = None
        """Of a step whose routing biases have yet to move, (layers, M, E)."""
        self.writer = None if run.model.causal is None else Writer(run.model)
        self.captured = CapturedStep(self)

    @property
    def run(self) -> Run:
        """The config, model and loss that are trained, to be saved and evaluated."""
        return Run(self.config, self.model, self.loss, self.compression)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: the only clock of schedules and learning rate."""
        steps = max(1, self.config.train.steps)
        return min(1.0, self.global_step / steps)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check, before a batch travels to its device, that matching finds a wrong pair in it.

        Raises:
            ValueError: it is of one image.
        """
        matches = any(name.startswith("itm/") for name in self.term_weights())
        if matches and world() is None and bool((batch.ids == batch.ids[0]).all()):
            raise UserError(f"a batch of {len(batch)} with one image has no negative pair: use a larger batch")
        return batch

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step: forward, losses, log. The routing biases move behind its backward.

        Args:
            batch: the samples of this rank.
            batch_index: unused, Lightning's.

        Returns:
            the weighted sum of all losses () of the global batch, the same on every rank: the gradients' mean over the
            ranks, which the strategy takes, is that of one process, see `kernels.collectives`.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        self.seed_step()
        batch = self.captured.prepared(batch)
        outcome = self.captured(batch)
        if outcome is None:
            terms, metrics, load = self.find(batch)
            outcome = StepOutcome(terms.total, terms.terms, metrics, load)
            self.rebalance(load)
        check_finite(outcome, self.global_step)
        self.report(outcome)
        return outcome.total

    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        """Give every parameter its gradient; a step that was replayed has them already."""
        if not self.captured.hand_out():
            super().backward(loss, *args, **options)

    def find(self, batch: Batch) -> tuple[LossTerms, dict[str, Tensor], Tensor]:
        """Forward and losses of a step.

        Args:
            batch: the samples of this rank.

        Returns:
            named terms; the encoders' metrics () by name; expert load (layers, M, E) of all ranks.
        """
        output = self.read(batch)
        terms, load = self.losses(output, batch)
        metrics = {}
        for modality, encoded in output.encoded.items():
            for name, value in encoded.metrics.items():
                metrics[f"{name}/{modality}"] = value
        return terms, metrics, load

    def read(self, batch: Batch) -> ModelOutput:
        """The model's forward of a training step."""
        return self.model(same_lengths(batch), draws=self.draws, moment=self.moment(), code_share=self.code_share)

    def losses(self, output: ModelOutput, batch: Batch) -> tuple[LossTerms, Tensor]:
        """All losses of a step: alignment terms, matching of drawn pairs, the encoders' and the router's.

        Args:
            output: the model's forward of `batch`.
            batch: the samples of this rank.

        Returns:
            named terms and their weighted sum; expert load (layers, M, E) of all forwards of the step on all ranks.
        """
        weights = self.term_weights()
        sides = aligned_sides(output, batch)
        rows = self.loss.rows(sides)
        schedule = self.config.schedule
        still = still_sides(schedule, self.stages)
        terms = self.loss(sides, rows, batch.ids, weights, still, on_top(schedule))
        drawn = self.loss.draw(sides, rows, batch.ids, weights, self.draws)
        matched = self.match(drawn, output)
        if matched:
            self.loss.add_matching(terms, drawn, matched.logits, weights)
        written: list[Written] = []
        if self.writer is not None:
            written = write_captions(self.writer, output, batch, rows, weights)
            for out in written:
                terms.add(out.name, out.value, weights[out.name])
        for modality, encoded in output.encoded.items():
            for name, value in encoded.losses.items():
                terms.add(f"{name}/{modality}", value, self.config.loss.vq)
        others: list[Written | MatchOutput] = [*written]
        if matched:
            others.append(matched)
        for name, value in output.losses.items():
            for other in others:
                value = value + other.losses[name]
            terms.add(f"router/{name}", value, 1.0)
        loads = [output.load, *(other.load for other in others)]
        return terms, sum_over_ranks(torch.stack(loads).sum(0), world())

    def term_weights(self) -> dict[str, float]:
        """Of every term of a pair of modalities that is on now, by name, its weight."""
        weights = loss_weights(self.config.schedule, self.progress, self.stages)
        found = self.loss.term_weights(weights)
        return found if self.writer is None else found | self.loss.caption_weights(weights)

    def moment(self) -> Moment:
        """What the step is beside its weights."""
        return moment(self.config.schedule, self.progress)

    def match(self, drawn: list[DrawnPairs], output: ModelOutput) -> MatchOutput | None:
        """Read drawn pairs jointly, all in one call: small calls cost more than what they compute.

        Each rank reads every W-th pair, and is sent the logits of the others.

        Args:
            drawn: rows of either side, for each pair of modalities.
            output: the model's forward, whose encoder outputs are read again.

        Returns:
            MatchOutput with logits for each element of `drawn`, and the load of this rank; None if nothing was drawn.
        """
        if not drawn:
            return None
        group = world()
        rank, ranks = rank_and_size(group)
        pairs = []
        for pair in drawn:
            left = select(output.encoded[pair.a], pair.rows_a, group, pair.real)
            right = select(output.encoded[pair.b], pair.rows_b, group, pair.real)
            if group is not None:
                mine = torch.arange(rank, len(pair.rows_a), ranks, device=pair.rows_a.device)
                left = select(left, mine)
                right = select(right, mine)
            pairs.append(MatchInput(pair.a, pair.b, left, right))
        matched = self.model.match(pairs, hold=self.moment().merge != "sum")
        logits = []
        for pair, own in zip(drawn, matched.logits, strict=True):
            mine = torch.arange(rank, len(pair.rows_a), ranks, device=own.device)
            of_all = own.new_zeros(len(pair.rows_a)).index_copy(0, mine, own)
            logits.append(joint_sum(of_all, group))
        return replace(matched, logits=logits)

    def seed_step(self) -> None:
        """Make what a step draws over the global batch (hard negatives, sampled positions) a function of (seed, step),
        and dropout one of (seed, step, rank).

        No generator's state has to survive: a resumed run draws the same numbers as the uninterrupted one.
        """
        seed = self.config.seed
        if self.draws.device != generator_device(self.run.device):
            self.draws = torch.Generator(generator_device(self.run.device))
        self.code_share = self.code_share.to(self.run.device)
        self.code_share.fill_(code_share(self.config.schedule, self.progress))
        self.draws.manual_seed(step_seed(seed, self.global_step, 0))
        rank, _ = rank_and_size(world())
        torch.manual_seed(step_seed(seed, self.global_step, rank))

    def rebalance(self, load: Tensor) -> None:
        """Note the load of a step, against which the routing biases move once its backward is done.

        Gradient checkpointing routes again within the backward: a bias that moved before would send tokens to other
        experts than the forward did.

        Args:
            load: (layers, M, E) assignments of all ranks.
        """
        self.load = load

    def on_after_backward(self) -> None:
        """Move the routing biases against the load."""
        if self.load is None:
            return
        self.model.backbone.rebalance(self.load)
        self.load = None

    def report(self, outcome: StepOutcome) -> None:
        """Log every named term, code utilization, and the experts' load.

        `experts/dead` is the share of experts without any assignment, `experts/busiest` the largest load over the mean
        one.
        """
        for name, value in outcome.terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name in SHOWN)
        self.log("train/total", outcome.total.detach(), prog_bar=True)
        current = stage(self.config.schedule, self.progress)
        self.log("stage", float(current), prog_bar=True)
        for name, value in outcome.metrics.items():
            self.log(name, value.float())
        per_expert = outcome.load.sum(1)
        if len(per_expert):
            dead = (per_expert == 0).float()
            busiest = per_expert.amax(1) / per_expert.mean(1).clamp(min=1)
            self.log("experts/dead", dead.mean())
            self.log("experts/busiest", busiest.mean())
        self.log("learning_rate", self.current_rate)

    @property
    def current_rate(self) -> float:
        """The learning rate of the optimizer's first group now."""
        return self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over `groups`, and a schedule that multiplies every group's rate by `learning_rate_factor`."""
        optimizer = build_optimizer(self.groups())
        steps = self.config.train.steps

        def factor(step: int) -> float:
            # The schedule runs one step ahead of progress: the first update already moves.
            progress = (step + 1) / steps
            return self.learning_rate_factor(min(1.0, progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *step: Any, **options: Any) -> None:
        """Lightning's step of the optimizer, after which the learned temperatures are brought back into their range."""
        super().optimizer_step(*step, **options)
        self.clamp_scales()

    def clamp_scales(self) -> None:
        """Bring the learned temperatures to where they may be now."""
        self.loss.clamp_scales(highest_temperature(self.config.schedule, self.config.loss.temperature, self.progress))

    def learning_rate_factor(self, progress: float) -> float:
        """Factor on every group's learning rate, at `progress` in [0, 1]."""
        return learning_rate(self.config.optim, self.config.schedule, progress)

    def groups(self) -> list[dict]:
        """The trainable parameters, grouped by learning rate and decay."""
        return parameter_groups(self.named_trainable(), self.config.optim)

    def named_trainable(self) -> list[tuple[str, Tensor]]:
        """The parameters that train: the model's by their own names, the loss's under `loss.`"""
        return [(name, parameter) for name, parameter in named_parameters(self) if parameter.requires_grad]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:  # type: ignore[no-untyped-def]  # Lightning's hook
        """Clip by `optim.clip` and log the norm before. Raises FloatingPointError on one that is not finite."""
        largest = self.config.optim.clip
        if not largest:
            return
        parameters: list[Tensor] = []
        for group in optimizer.param_groups:
            parameters.extend(group["params"])
        norm = clip_gradients(self, parameters, largest)
        self.log("gradient_norm", norm)


def step_seed(seed: int, step: int, rank: int) -> int:
    """What a rank draws in a step begins at this number, below 2^56."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def aligned_sides(output: ModelOutput, batch: Batch) -> dict[str, Aligned]:
    """Collect what the alignment loss reads of each modality.

    Args:
        output: embeddings (N, E), tokens (N, T, P), masks (N, T) by modality.
        batch: which rows are present (N,), and the sample (N,) that each belongs to.
    """
    sides = {}
    for m in output.encoded:
        present = batch.present[m]
        sample_index = batch.sample_index[m]
        sides[m] = Aligned(output.embeddings[m], output.tokens[m], output.masks[m], present, sample_index)
    return sides


def named_parameters(task: AlignTask) -> list[tuple[str, Tensor]]:
    """The model's parameters by their own names, the loss's under `loss.`"""
    named: list[tuple[str, Tensor]] = list(task.model.named_parameters())
    named.extend((f"loss.{name}", parameter) for name, parameter in task.loss.named_parameters())
    return named
