"""A checkpoint of a divided run: what comes back, what is whole, and one file for a run that is not divided."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mm.parallel.gradients import whole
from mm.parallel.state import REST, as_file, is_whole_folder, load_state, save_state, whole_state
from mm.train.resume import newest_checkpoint


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process is connected to itself."""
    place = tmp_path_factory.mktemp("alone") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network() -> nn.Module:
    model = nn.Sequential()
    model.add_module("used", nn.Linear(3, 2))
    model.add_module("unused", nn.Linear(3, 2))
    return model


def built(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = network()
    model.register_buffer("count", torch.tensor(seed))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    used = model.get_parameter("used.weight")
    used.grad = torch.ones_like(used)
    optimizer.step()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module, torch.optim.Optimizer]:
    model, optimizer = built(1)
    step(model, optimizer)
    step(model, optimizer)
    folder = tmp_path / "checkpoints" / "step=2.ckpt"
    save_state(folder, model, optimizer, {"global_step": 2})
    return folder, model, optimizer


def test_weights_and_moments_come_back_to_the_bit(saved: tuple[Path, nn.Module, torch.optim.Optimizer]) -> None:
    folder, model, optimizer = saved
    other, its = built(2)
    assert load_state(folder, other, its) == {"global_step": 2}
    for (name, value), (_, there) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(whole(value), whole(there)), name
    used, there = model.get_parameter("used.weight"), other.get_parameter("used.weight")
    for moment in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(whole(optimizer.state[used][moment]), whole(its.state[there][moment]))
    # A parameter that had no gradient yet begins at its first one, not two steps before.
    assert other.get_parameter("unused.weight") not in its.state


def test_a_folder_is_whole_or_passed_over(saved: tuple[Path, nn.Module, torch.optim.Optimizer]) -> None:
    folder, model, optimizer = saved
    assert is_whole_folder(folder) and newest_checkpoint(folder.parents[1]) == folder
    (part,) = folder.glob("*.distcp")
    for name in (part.name, REST, ".metadata"):
        path = folder / name
        content = path.read_bytes()
        for spoiled in (content[:-1], b""):
            path.write_bytes(spoiled)
            assert not is_whole_folder(folder), name
        path.unlink()
        assert not is_whole_folder(folder), name
        path.write_bytes(content)
    assert is_whole_folder(folder)
    save_state(folder, model, optimizer, {"global_step": 3})  # one of this name is replaced
    assert torch.load(folder / REST, weights_only=True) == {"global_step": 3}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_run_that_is_not_divided_reads_one_file(
    saved: tuple[Path, nn.Module, torch.optim.Optimizer], tmp_path: Path
) -> None:
    folder, model, _ = saved
    content = torch.load(as_file(folder, tmp_path / "whole.ckpt"), weights_only=True)
    plain = network()
    plain.register_buffer("count", torch.tensor(0))
    plain.load_state_dict(content["state_dict"])
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.5)
    optimizer.load_state_dict(content["optimizer_states"][0])
    used = plain.get_parameter("used.weight")
    assert content["global_step"] == 2 and optimizer.param_groups[0]["lr"] == 0.1
    assert list(optimizer.state) == [used] and optimizer.state[used]["step"] == 2
    assert torch.equal(whole_state(model, None)["used.weight"], used)
