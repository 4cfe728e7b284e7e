"""Lightning's seat for a divided run: `train.strategy fsdp4-tp2`."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import ProcessGroup, new_group
from torch.distributed.fsdp import FSDPModule

from alignment import moment
from kernels.collectives import divide_samples, divide_stages
from kernels.errors import UserError
from mm.artifacts.run import Run, build_run, vocabulary_of, without_pretrained_weights
from mm.config import AlignConfig, encoders_of
from mm.parallel.layout import ParallelConfig, is_layout, obstacle, untrained
from mm.parallel.mesh import Meshes
from mm.parallel.shard import complete_gradients, shard
from mm.parallel.state import begin_saving, load_file, load_state, whole_state


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
        self.writers: ProcessGroup | None = None
        """All processes, over gloo whatever trains: checkpoints are written beside the next steps."""
        self.saving: Future[None] | None = None

    def setup_environment(self) -> None:
        """Connect the processes, and say which of them have samples of their own."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        self.meshes = Meshes.of(self.layout, self.root_device.type)
        self.writers = new_group(backend="gloo", timeout=self._timeout)

    def setup(self, trainer: Trainer) -> None:
        """Divide the task, then build the optimizer of what this process has of it."""
        task: Any = self.lightning_module
        assert self.accelerator is not None and self.meshes is not None
        self.accelerator.setup(trainer)
        task.captured.stay_eager(f"its layout is {self.layout}")
        shard(task, task.model, self.meshes, self.root_device, "training_step")
        self.model = task
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Complete the gradients that tensor parallelism and pipelines leave in parts."""
        task: Any = self.lightning_module
        assert self.meshes is not None
        complete_gradients(task, task.model, self.meshes)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Begin to write a folder, when the one before is whole; model and optimizer are asked for their state."""
        self.finish_saving()
        rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        task: Any = self.lightning_module
        folder = Path(self.broadcast(str(filepath)))
        self.saving = begin_saving(folder, task, self.optimizers[0], rest, self.writers)

    def finish_saving(self) -> None:
        """Wait until the newest checkpoint is whole. Raises what was in its way."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder that any layout wrote, or the file of a run that was not divided."""
        path = Path(self.broadcast(str(checkpoint_path)))
        task: Any = self.lightning_module
        read = load_file if path.is_file() else load_state
        return read(path, task, self.optimizers[0])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: `save_checkpoint` asks the model."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: `save_checkpoint` asks the optimizer."""
        return {}

    def teardown(self) -> None:
        self.finish_saving()
        divide_samples(None)
        divide_stages(None)
        super().teardown()


def meshes_of(trainer: Trainer) -> Meshes | None:
    """The processes that divide a trainer's run; None where none do."""
    return trainer.strategy.meshes if isinstance(trainer.strategy, LayoutStrategy) else None


@contextmanager
def whole_root(task: LightningModule) -> Iterator[None]:
    """What belongs to no block or encoder is whole within, as in a step: for an evaluation by all processes."""
    root: Any = task
    if not isinstance(task, FSDPModule):
        yield
        return
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


def whole_run(task: Any, meshes: Meshes) -> Run:
    """A task's run that processes divide as one has it, on the CPU of the first one, called by all; on the others the
    divided one."""
    state = whole_state(task, meshes.group("pp"))
    if not state:
        return task.run
    config = task.config
    named = {name.removeprefix("model."): tensor for name, tensor in state.items() if not name.startswith("loss.")}
    loss = {name: tensor for name, tensor in state.items() if name.startswith("loss.")}
    run = build_run(without_pretrained_weights(config), vocabulary_of(named))
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
    elif (lacks := untrained(layout, config.model.generate)) is not None:
        reason = lacks
    elif any(moment(config.schedule, progress).merge != "sum" for progress in (0.0, 1.0)):
        reason = f"schedule.kind {config.schedule.kind} holds weights still within a step: train it with ddp"
    elif layout.pp > 1 and moment(config.schedule, 0.0).tokens == 0:
        reason = (
            f"schedule.kind {config.schedule.kind} leaves the blocks of a pipeline idle: leave pp out of the layout"
        )
    if reason is not None:
        raise UserError(f"train.strategy {layout}: {reason}")
