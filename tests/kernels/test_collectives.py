"""Two processes see one batch: the gradient that returns to each is that of the whole."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from alignment.fine_grained import CodeAgreement
from kernels.collectives import gather


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both sides (8, 3, 6) and masks (8, 3) of the global batch."""
    random = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(8, 3, 6, generator=random), dim=-1) for _ in range(2))
    return a, b, torch.arange(3) < 1 + torch.arange(8)[:, None] % 3


def agreement(mine: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value, gradient of the rank's tokens, gradient of the codebook."""
    torch.manual_seed(0)
    loss = CodeAgreement(8, 6)
    a, b, mask = tokens()
    x = a[mine].clone().requires_grad_()
    value = loss(x, mask[mine], b[mine], mask[mine], torch.arange(8)[mine])
    value.backward()
    assert x.grad is not None and loss.codebook.grad is not None
    return value.detach(), x.grad, loss.codebook.grad


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    flags = gather(torch.arange(8)[mine] % 2 == 0)
    torch.save([gather(torch.arange(8)[mine]), flags, *agreement(mine)], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_alone_it_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def test_two_ranks_give_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    mp.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    value, grad, codebook = agreement(slice(0, 8))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for ids, flags, found, _, _ in ranks:
        assert torch.equal(ids, torch.arange(8)) and torch.equal(flags, ids % 2 == 0)
        torch.testing.assert_close(found, value)
    # DDP averages over the ranks, each of which has the whole loss.
    torch.testing.assert_close(torch.cat([r[3] for r in ranks]) / 2, grad)
    torch.testing.assert_close((ranks[0][4] + ranks[1][4]) / 2, codebook)
