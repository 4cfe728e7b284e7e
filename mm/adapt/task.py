"""A finished run that goes on training: all of it, or adapters on a base that stands still."""

from torch import Tensor

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.compress.lora import ExpertLora
from mm.model.multimodal import ModelOutput
from mm.train.callbacks import snapshot
from mm.train.ranks import same_lengths
from mm.train.task import AlignTask


class AdaptTask(AlignTask):
    """Trains the model and the loss of a finished run under the settings of the adapted one, which `run` has.

    With adapters the base stands still, statistics, codes and routing included: it stays in evaluation mode, and what
    an adapter file holds is all that has changed.
    """

    def __init__(self, run: Run, adapters: bool) -> None:
        super().__init__(run)
        self.adapters = adapters
        self.strict_loading = False  # a checkpoint holds what moves; the rest is the base's

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
        """The model's forward of a training step; a base that stands still learns nothing from its decoders."""
        given = {"draws": self.draws, "moment": self.moment(), "code_share": self.code_share}
        return self.model(same_lengths(batch), reconstruct=not self.adapters, **given)

    def rebalance(self, load: Tensor) -> None:
        if not self.adapters:
            super().rebalance(load)

    def trainable(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for _, parameter in self.named_trainable())
