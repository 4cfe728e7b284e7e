"""A finished run that goes on training: which of its parameters move, and how fast."""

from collections import defaultdict
from fnmatch import fnmatchcase

from lightning import LightningModule
from torch import Tensor

from mm.adapt.lora import ExpertLora
from mm.batch import Batch
from mm.config import AlignConfig
from mm.model.multimodal import ModelOutput
from mm.train.task import AlignTask


class AdaptTask(AlignTask):
    """The model and loss of `run` under other settings.

    With adapters the base stands still, statistics, codes and routing included: it stays in evaluation mode, and what
    an adapter file holds is all that has changed.

    Args:
        rates: factors on the learning rate by name pattern (`backbone.*`); of several that fit, the last counts.
    """

    def __init__(self, run: AlignTask, config: AlignConfig, adapters: bool, rates: dict[str, float]) -> None:
        super(AlignTask, self).__init__()  # not AlignTask's: it would build the model anew
        self.config, self.model, self.loss = config, run.model, run.loss
        self.adapters, self.rates = adapters, rates
        self.strict_loading = False  # a checkpoint holds what moves; the rest is the base's
        for pattern in rates:
            matching(self, pattern, "rates")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = snapshot(self)

    def train(self, mode: bool = True) -> "AdaptTask":
        super().train(mode)
        if self.adapters:
            self.model.eval()
            for name, module in self.model.named_modules():
                if isinstance(module, ExpertLora) or "lora_dropout" in name:
                    module.train(mode)
        return self

    def read(self, batch: Batch) -> ModelOutput:
        return self.model(batch, reconstruct=not self.adapters)

    def rebalance(self, load: Tensor) -> None:
        if not self.adapters:
            super().rebalance(load)

    def groups(self) -> list[dict]:
        names = {id(p): n for n, p in names_of(self)}
        found: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for group in super().groups():
            for parameter in group["params"]:
                fitting = [f for pattern, f in self.rates.items() if fnmatchcase(names[id(parameter)], pattern)]
                factor = fitting[-1] if fitting else 1.0
                found[factor * group["lr"], group["weight_decay"]].append(parameter)
        return [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in found.items()]


def moving(task: LightningModule) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: p.detach() for name, p in task.named_parameters() if p.requires_grad}


def snapshot(task: LightningModule) -> dict[str, Tensor]:
    """What training changes: the parameters that move, and all buffers."""
    return {name: t.detach().clone() for name, t in (*moving(task).items(), *task.named_buffers())}


def names_of(task: AlignTask) -> list[tuple[str, Tensor]]:
    """The model's parameters by their own names, the loss's under `loss.`."""
    return [*task.model.named_parameters(), *((f"loss.{n}", p) for n, p in task.loss.named_parameters())]


def matching(task: AlignTask, pattern: str, option: str) -> list[Tensor]:
    """The parameters whose names a pattern fits. Raises ValueError, naming the option, where there are none."""
    found = [p for name, p in names_of(task) if fnmatchcase(name, pattern)]
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) + "*" for name, _ in names_of(task)})
        raise ValueError(f"{option}: no parameter is called {pattern!r}; there are {', '.join(parts)}")
    return found


def freeze(task: AlignTask, patterns: tuple[str, ...]) -> None:
    """Parameters whose names fit any of the patterns train no more. Raises ValueError where nothing is left."""
    for pattern in patterns:
        for parameter in matching(task, pattern, "freeze"):
            parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for _, p in names_of(task)):
        raise ValueError(f"freeze={list(patterns)} leaves nothing to train")
