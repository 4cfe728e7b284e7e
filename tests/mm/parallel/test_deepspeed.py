"""DeepSpeed's ZeRO-3 on two processes is one process, if what modules return is walked as torch walks it.

Its own walk finds tensors in tuples, lists and dicts alone: experts, whose module returns a dataclass, have no weights
in its backward.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from kernels.collectives import rank_and_size, world
from mm.batch import Batch
from mm.bench.parity import Trial, difference, global_batch, share, small_config, small_run, update
from mm.bench.processes import on_processes
from mm.train.optim import build_optimizer

CONFIG = replace(small_config(), model=replace(small_config().model, generate=False))
STEPS = (1, 2)
"""In which no parameter is left without a gradient: DeepSpeed's optimizer would take that as zero, ours leaves it."""
ZERO = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": CONFIG.optim.clip,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


class Stepped(Trial):
    def forward(self, batch: Batch, number: int) -> Tensor:
        return self.training_step(batch, number)


def logged(task: Trial, step: Callable[[Batch, int], Tensor]) -> dict[str, Tensor]:
    """What steps log, and the norms of their gradients."""
    found = {}
    for number in STEPS:
        task.taken = number
        found[f"{number}: norm"] = step(share(global_batch(CONFIG, number), *rank_and_size(world())), number)
        found |= {f"{number}: {name}": torch.tensor(value) for name, value in task.logged.items()}
    return found


def of_a_rank(rank: int, folder: Path) -> None:
    import deepspeed
    from deepspeed.comm import torch as comm
    from deepspeed.runtime.zero import parameter_offload

    def walked(function: Callable[[Tensor], Tensor], value: Any, warning_msg_fn: object = None) -> Any:
        return tree_map_only(Tensor, function, value)

    os.environ["LOCAL_RANK"] = str(rank)
    comm.build_shm_op = lambda: None  # gloo does, without a compiler
    parameter_offload.apply_to_tensors_only = walked
    task = Stepped(small_run(CONFIG)).train()
    options = {"optimizer": build_optimizer(task.groups()), "config": ZERO, "dist_init_required": False}
    engine, *_ = deepspeed.initialize(model=task, **options)

    def step(batch: Batch, number: int) -> Tensor:
        engine.backward(engine(batch, number))
        task.on_after_backward()
        engine.step()
        return torch.tensor(float(engine.get_global_grad_norm()))

    found = logged(task, step)
    found["held"] = torch.tensor(sum(parameter.ds_tensor.numel() for parameter in task.parameters()))
    with deepspeed.zero.GatheredParameters(list(task.parameters())):
        found |= {f"end: {name}": parameter.detach().clone() for name, parameter in task.named_parameters()}
    torch.save(found, folder / f"{rank}.pt")


def test_zero_3_is_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install 'mm-align[deepspeed]'")
    on_processes(2, of_a_rank, (), tmp_path, 300)
    task = Stepped(small_run(CONFIG)).train()
    optimizer = build_optimizer(task.groups())

    def step(batch: Batch, number: int) -> Tensor:
        task.training_step(batch, number).backward()
        task.on_after_backward()
        return update(task, optimizer)

    expected = logged(task, step)
    expected |= {f"end: {name}": parameter.detach() for name, parameter in task.named_parameters()}
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    held = int(found.pop("held")) / sum(parameter.numel() for parameter in task.parameters())
    away = difference(found, expected)
    assert not away.unlike and 0.49 < held < 0.52
    assert away.value < 3e-5 and away.weight < 3e-4
