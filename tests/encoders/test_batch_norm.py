"""Batch norms see the global batch without its absent rows; alone and with all present they are torch's and timm's."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from encoders.batch_norm import JointBatchNorm, counted_rows, join_batch_norms
from kernels.collectives import sum_over_ranks, world


def network(kind: str) -> nn.Module:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(4) if kind == "torch" else BatchNormAct2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 2, 3))


def images(rows: int = 6) -> Tensor:
    return torch.randn(rows, 3, 7, 7, generator=torch.Generator().manual_seed(1))


def passed(model: nn.Module, x: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers of a step that reads the present rows."""
    kept = torch.ones(len(x), dtype=torch.bool) if present is None else present
    with counted_rows(model.train(), present):
        y = model(x)[kept]
    y.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **gradients, **{name: b.clone() for name, b in model.named_buffers()}}


@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_alone_it_is_what_it_replaces(kind: str) -> None:
    plain = network(kind)
    joint = copy.deepcopy(plain)
    join_batch_norms(joint)
    assert isinstance(joint[1], JointBatchNorm) and joint.state_dict().keys() == plain.state_dict().keys()  # type: ignore[index]
    torch.testing.assert_close(passed(joint, images()), passed(plain, images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joint.eval()(images()), plain.eval()(images()), rtol=1e-4, atol=1e-5)


def test_absent_rows_do_not_count() -> None:
    present = torch.tensor([True, True, False, True, False, True])
    whole, few = network("torch"), network("torch")
    join_batch_norms(whole)
    join_batch_norms(few)
    spoiled = images().masked_fill(~present.view(-1, 1, 1, 1), 1e3)
    torch.testing.assert_close(passed(whole, spoiled, present), passed(few, images()[present]), rtol=1e-4, atol=1e-5)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = network("timm")
    join_batch_norms(model)
    mine = slice(4) if rank == 0 else slice(4, 6)
    found = passed(model, images()[mine])
    for name, _ in model.named_parameters():
        found[name] = sum_over_ranks(found[name], world())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_share_their_statistics(tmp_path: Path) -> None:
    """Ranks of four and two rows; here each adds its own part of the loss, and the gradients are summed."""
    mp.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    model = network("timm")
    join_batch_norms(model)
    expected = passed(model, images())
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    joined = {**found[0], "y": torch.cat([found[0]["y"], found[1]["y"]])}
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-5)
