"""The Lightning module: one training step from a batch to a named sum of losses,
and everything that moves between steps."""

import hashlib
import logging

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from alignment import Aligned, DrawnPairs, LossTerms, ProgressiveAlignment, loss_weights, stage
from mm.batch import Batch
from mm.config import AlignConfig
from mm.model.multimodal import ModelOutput, MultimodalModel, select
from mm.train.optim import build_optimizer, learning_rate, parameter_groups

logger = logging.getLogger(__name__)


class AlignTask(LightningModule):
    """Progressive alignment of one model. `vocabulary` (V,) is the scratch text trunk's."""

    def __init__(self, config: AlignConfig, vocabulary: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = MultimodalModel(config.model, config.image, config.audio, config.text, vocabulary)
        self.loss = ProgressiveAlignment(config.loss, config.model.token_embedding, self.model.modalities)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: the only clock of schedules and learning rate."""
        return min(1.0, self.global_step / max(1, self.config.train.steps))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.seed_step()
        output = self.read(batch)
        terms, load = self.losses(output, batch)
        self.check_finite(terms)
        self.rebalance(load)
        self.report(terms, output, load)
        return terms.total

    def read(self, batch: Batch) -> ModelOutput:
        """The model's forward of a training step."""
        return self.model(batch)

    def seed_step(self) -> None:
        """Make what a step draws (dropout, hard negatives, sampled positions) a function of (seed, step, rank).

        No generator's state has to survive: a resumed run draws what the uninterrupted one did.
        """
        digest = hashlib.sha256(f"{self.config.seed} {self.global_step} {self.global_rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))

    def losses(self, output: ModelOutput, batch: Batch) -> tuple[LossTerms, Tensor]:
        """-> (named terms and their weighted sum, expert load (layers, M, E) of all forwards of the step)."""
        config, encoded = self.config.loss, output.encoded
        loads = [output.load]
        router = dict(output.losses)

        def match(drawn: list[DrawnPairs]) -> Tensor:
            pairs = [(d.a, d.b, select(encoded[d.a], d.rows_a), select(encoded[d.b], d.rows_b)) for d in drawn]
            out = self.model.match_all(pairs)
            loads.append(out.load)
            for name, value in out.losses.items():
                router[name] = router[name] + value
            return out.logits

        sides = {m: Aligned(output.embeddings[m], output.tokens[m], output.masks[m], batch.present[m]) for m in encoded}
        terms = self.loss(sides, batch.ids, loss_weights(self.config.schedule, self.progress), match)
        for modality, e in encoded.items():
            for name, value in e.losses.items():
                terms.add(f"{name}/{modality}", value, config.vq)
        for name, value in router.items():
            terms.add(f"router/{name}", value, config.moe)
        return terms, torch.stack(loads).sum(0)

    def check_finite(self, terms: LossTerms) -> None:
        """Stop at the first step whose loss is not a number, and say which term broke."""
        if torch.isfinite(terms.total):
            return
        broken = [name for name, value in terms.terms.items() if not torch.isfinite(value)]
        raise FloatingPointError(
            f"step {self.global_step}: {', '.join(broken) or 'the sum of losses'} is not finite; "
            "lower optim.learning_rate or set train.precision=fp32, then go on with --resume true"
        )

    def rebalance(self, load: Tensor) -> None:
        """Move the routing biases against the load of all ranks: they must stay equal on every rank."""
        if dist.is_available() and dist.is_initialized():
            load = load.clone()
            dist.all_reduce(load)
        self.model.backbone.rebalance(load)

    def report(self, terms: LossTerms, output: ModelOutput, load: Tensor) -> None:
        """Log every named term, code use, and the experts' load."""
        shown = ("contrastive/image_text", "itm/image_text")
        for name, value in terms.terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name in shown)
        self.log("train/total", terms.total.detach(), prog_bar=True)
        self.log("stage", float(stage(self.config.schedule, self.progress)), prog_bar=True)
        for modality, e in output.encoded.items():
            for name, value in e.metrics.items():
                self.log(f"{name}/{modality}", value.float())
        per_expert = load.sum(1)
        self.log("experts/dead", (per_expert == 0).float().mean())
        self.log("experts/busiest", (per_expert.amax(1) / per_expert.mean(1).clamp(min=1)).mean())
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.config
        optimizer = build_optimizer(self.groups(), config.optim)
        steps = max(1, config.train.steps)
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
        factors = {m: getattr(self.config, m).learning_rate_factor for m in self.model.modalities}
        return parameter_groups(self.model, self.loss, self.config.optim, factors)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:  # type: ignore[no-untyped-def]  # Lightning's hook
        clip = self.config.optim.clip
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(
                (p for group in optimizer.param_groups for p in group["params"]), clip
            )
            if not torch.isfinite(norm):
                names = [
                    n for n, p in self.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()
                ]
                shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
                raise FloatingPointError(
                    f"step {self.global_step}: the gradient of {shown} is not finite; "
                    "lower optim.learning_rate or set train.precision=fp32, then go on with --resume true"
                )
            self.log("gradient_norm", norm)
