"""Lightning's seat for a divided run: `train.strategy fsdp4-tp2`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from alignment import moment
from kernels.collectives import divide_samples
from kernels.errors import UserError
from mm.artifacts.run import VOCABULARY, Run, build_run, without_pretrained_weights
from mm.config import AlignConfig, encoders_of
from mm.parallel.layout import ParallelConfig, is_layout, obstacle
from mm.parallel.mesh import Meshes
from mm.parallel.shard import shard, sum_partial_gradients
from mm.parallel.state import load_state, save_state, whole_state


class LayoutStrategy(ModelParallelStrategy):
    """Divide a task among processes by `mm.parallel`; checkpoints are folders that any layout reads.

    Args:
        layout: of the processes.
        timeout: how long one waits for another.
    """

    def __init__(self, layout: ParallelConfig, timeout: timedelta) -> None:
        super().__init__(layout.data, layout.tp, timeout=timeout)
        self.layout = layout
        self.meshes: Meshes | None = None

    def setup_environment(self) -> None:
        """Connect the processes, and say which of them have samples of their own."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        self.meshes = Meshes.of(self.layout, self.root_device.type)

    def setup(self, trainer: Trainer) -> None:
        """Divide the task, then build the optimizer of what this process has of it."""
        task: Any = self.lightning_module
        assert self.accelerator is not None and self.meshes is not None
        self.accelerator.setup(trainer)
        task.captured.stay_eager(f"its layout is {self.layout}")
        shard(task, task.model, self.meshes, self.root_device, "training_step")
        task.to(self.root_device)  # where it is already; Lightning takes note
        self.model = task
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Complete the gradients that tensor parallelism leaves in parts."""
        task: Any = self.lightning_module
        assert self.meshes is not None
        sum_partial_gradients(task.model, self.meshes)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder; the state of model and optimizer is taken from themselves."""
        rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        task: Any = self.lightning_module
        save_state(Path(self.broadcast(str(filepath))), task, self.optimizers[0], rest)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder that any layout wrote, or the file of a run that was not divided."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_file():
            return super().load_checkpoint(path, weights_only)
        task: Any = self.lightning_module
        return load_state(path, task, self.optimizers[0])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: `save_checkpoint` asks the model."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: `save_checkpoint` asks the optimizer."""
        return {}

    def teardown(self) -> None:
        divide_samples(None)
        super().teardown()


def layout_of(trainer: Trainer) -> ParallelConfig | None:
    """The layout of a trainer; None where the run is not divided."""
    return trainer.strategy.layout if isinstance(trainer.strategy, LayoutStrategy) else None


@contextmanager
def whole_root(task: LightningModule) -> Iterator[None]:
    """What belongs to no block or encoder is whole within, as in a step: for an evaluation by all processes."""
    root: Any = task
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def is_filled_later(config: AlignConfig) -> bool:
    """Whether processes get a run's initial weights from the first one when it is divided, and no device holds all of
    it: not where each reads through trunks that stand still."""
    frozen = any(getattr(encoder, "frozen", False) for encoder in encoders_of(config).values())
    return is_layout(config.train.strategy) and not frozen


def empty_run(config: AlignConfig, vocabulary: Tensor | None) -> Run:
    """An untrained run on the meta device; vocabulary (V,), see `build_run`."""
    with torch.device("meta"):
        return replace(build_run(without_pretrained_weights(config), vocabulary), config=config)


def whole_run(task: Any) -> Run:
    """A divided task's run as one process has it, on the CPU of the first process, called by all; on the others the
    divided one."""
    state = whole_state(task)
    if not state:
        return task.run
    config = task.config
    named = {name.removeprefix("model."): tensor for name, tensor in state.items() if not name.startswith("loss.")}
    loss = {name: tensor for name, tensor in state.items() if name.startswith("loss.")}
    run = build_run(without_pretrained_weights(config), named.get(VOCABULARY))
    run.load_state_dict({**named, **loss})
    return replace(run, config=config)


def require_layout(config: AlignConfig, layout: ParallelConfig, processes: int) -> None:
    """Check, before anything is read, that a run can be divided so.

    Args:
        config: of the run.
        layout: of its processes.
        processes: that train.devices and train.num_nodes make.

    Raises:
        UserError: in one line what is in the way, and what would do.
    """
    reason = obstacle(layout, config.model.backbone, config.train.batch_size)
    if layout.processes != processes:
        reason = (
            f"it takes {layout.processes} processes, train.devices times train.num_nodes are {processes}:"
            f" --train.devices {layout.processes} of one machine"
        )
    elif layout.pp > 1:
        reason = "train_align has no pipeline: leave pp out"
    elif config.model.generate:
        reason = "a model that writes (model.generate) is not divided: train it with ddp"
    elif any(moment(config.schedule, progress).merge != "sum" for progress in (0.0, 1.0)):
        reason = f"schedule.kind {config.schedule.kind} holds weights still within a step: train it with ddp"
    if reason is not None:
        raise UserError(f"train.strategy {layout}: {reason}")
