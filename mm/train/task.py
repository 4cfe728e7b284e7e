"""The Lightning module: one training step from a batch to a named sum of losses, and what moves between steps."""

import hashlib
from collections.abc import Iterable

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from alignment import Aligned, DrawnPairs, LossTerms, loss_weights, stage
from kernels.collectives import sum_over_ranks, world
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.modalities import pairs_of
from mm.model.multimodal import MatchInput, MatchOutput, ModelOutput, select
from mm.train.optim import build_optimizer, learning_rate, parameter_groups

SHOWN = ("contrastive/image_text", "itm/image_text")
"""Terms that the progress bar shows."""


class AlignTask(LightningModule):
    """Trains the model and the loss of `run`, which it is handed."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.config = run.config
        self.model = run.model
        self.loss = run.loss
        self.stages = pairs_of(self.model.modalities)

    @property
    def run(self) -> Run:
        """What is trained, to be saved and evaluated."""
        return Run(self.config, self.model, self.loss)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: the only clock of schedules and learning rate."""
        return min(1.0, self.global_step / max(1, self.config.train.steps))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.seed_step()
        output = self.read(batch)
        terms, load = self.losses(output, batch)
        check_finite(terms, self.global_step)
        self.rebalance(load)
        self.report(terms, output, load)
        return terms.total

    def read(self, batch: Batch) -> ModelOutput:
        """The model's forward of a training step."""
        return self.model(batch)

    def losses(self, output: ModelOutput, batch: Batch) -> tuple[LossTerms, Tensor]:
        """-> (named terms and their weighted sum, expert load (layers, M, E) of all forwards of the step)."""
        weights = loss_weights(self.config.schedule, self.progress, self.stages)
        sides = aligned_sides(output, batch)
        rows = self.loss.rows(sides)
        terms = self.loss(sides, rows, batch.ids, weights)
        drawn = self.loss.draw(sides, rows, batch.ids, weights)
        matched = self.match(drawn, output)
        if matched:
            self.loss.add_matching(terms, drawn, matched.logits, weights)
        for modality, encoded in output.encoded.items():
            for name, value in encoded.losses.items():
                terms.add(f"{name}/{modality}", value, self.config.loss.vq)
        for name, value in output.losses.items():
            both = value + matched.losses[name] if matched else value
            terms.add(f"router/{name}", both, 1.0)
        loads = [output.load, matched.load] if matched else [output.load]
        return terms, torch.stack(loads).sum(0)

    def match(self, drawn: list[DrawnPairs], output: ModelOutput) -> MatchOutput | None:
        """Drawn pairs through the joint reading, all in one call: small calls cost more than what they compute."""
        if not drawn:
            return None
        pairs = []
        for d in drawn:
            left = select(output.encoded[d.a], d.rows_a)
            right = select(output.encoded[d.b], d.rows_b)
            pairs.append(MatchInput(d.a, d.b, left, right))
        return self.model.match(pairs)

    def seed_step(self) -> None:
        """Make what a step draws (dropout, hard negatives, sampled positions) a function of (seed, step, rank).

        No generator's state has to survive: a resumed run draws what the uninterrupted one did.
        """
        digest = hashlib.sha256(f"{self.config.seed} {self.global_step} {self.global_rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))

    def rebalance(self, load: Tensor) -> None:
        """Move the routing biases against the load of all ranks: they must stay equal on every rank."""
        self.model.backbone.rebalance(sum_over_ranks(load.clone(), world()))

    def report(self, terms: LossTerms, output: ModelOutput, load: Tensor) -> None:
        """Log every named term, code utilization, and the experts' load."""
        for name, value in terms.terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name in SHOWN)
        self.log("train/total", terms.total.detach(), prog_bar=True)
        self.log("stage", float(stage(self.config.schedule, self.progress)), prog_bar=True)
        for modality, encoded in output.encoded.items():
            for name, value in encoded.metrics.items():
                self.log(f"{name}/{modality}", value.float())
        per_expert = load.sum(1)
        busiest = per_expert.amax(1) / per_expert.mean(1).clamp(min=1)
        self.log("experts/dead", (per_expert == 0).float().mean())
        self.log("experts/busiest", busiest.mean())
        self.log("learning_rate", self.current_rate)

    @property
    def current_rate(self) -> float:
        """The learning rate of the first group now."""
        return self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.groups())
        steps = self.config.train.steps
        # One step ahead of progress: the first update already moves.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.learning_rate_factor(min(1.0, (step + 1) / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_factor(self, progress: float) -> float:
        """On every group's rate, at `progress` in [0, 1]."""
        return learning_rate(self.config.optim, self.config.schedule, progress)

    def groups(self) -> list[dict]:
        """What the optimizer moves, by learning rate and decay."""
        return parameter_groups(self.named_trainable(), self.config.optim)

    def named_trainable(self) -> list[tuple[str, Tensor]]:
        """The parameters that train: the model's by their own names, the loss's under `loss.`"""
        return [(name, parameter) for name, parameter in named_parameters(self) if parameter.requires_grad]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:  # type: ignore[no-untyped-def]  # Lightning's hook
        if self.config.optim.clip:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self.log("gradient_norm", clip_gradients(self, parameters, self.config.optim.clip))


def aligned_sides(output: ModelOutput, batch: Batch) -> dict[str, Aligned]:
    """What the loss reads of each modality."""
    sides = {}
    for m in output.encoded:
        sides[m] = Aligned(
            output.embeddings[m], output.tokens[m], output.masks[m], batch.present[m], batch.sample_index[m]
        )
    return sides


def named_parameters(task: AlignTask) -> list[tuple[str, Tensor]]:
    """The model's parameters by their own names, the loss's under `loss.`"""
    named: list[tuple[str, Tensor]] = list(task.model.named_parameters())
    named.extend((f"loss.{name}", parameter) for name, parameter in task.loss.named_parameters())
    return named


def check_finite(terms: LossTerms, step: int) -> None:
    """Stop at the first step whose loss is not a number, and say which term broke."""
    if not torch.isfinite(terms.total):
        broken = [name for name, value in terms.terms.items() if not torch.isfinite(value)]
        raise not_finite(step, ", ".join(broken) or "the sum of losses")


def clip_gradients(task: LightningModule, parameters: list[Tensor], largest: float) -> Tensor:
    """Scale the gradients so that their joint norm is at most `largest`; -> the norm before. FloatingPointError names
    those that are not finite."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    if not torch.isfinite(norm):
        raise not_finite(task.global_step, f"the gradient of {_listed(broken_gradients(task))}")
    return norm


def broken_gradients(task: LightningModule) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    names = []
    for name, parameter in task.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            names.append(name)
    return names


def not_finite(step: int, what: str) -> FloatingPointError:
    """The one line with which a diverged run ends."""
    return FloatingPointError(
        f"step {step}: {what} is not finite; lower optim.learning_rate or set train.precision=fp32,"
        " then go on with --resume true"
    )


def _listed(names: Iterable[str]) -> str:
    first, *rest = names
    shown = [first, *rest[:2]]
    return ", ".join(shown) + (" …" if len(rest) > 2 else "")
