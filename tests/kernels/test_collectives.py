"""Two processes see one batch: what each rank is given, and that the gradient which returns is that of the whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import normalize

from alignment.fine_grained import CodeAgreement
from kernels.collectives import (
    Group,
    all_ranks,
    divide_samples,
    exchange,
    from_rank,
    gather,
    gather_uneven,
    joint_mean,
    joint_sum,
    largest_over_ranks,
    partial_sum,
    rank_and_size,
    rows_of_ranks,
    shared_input,
    step_group,
    sum_over_ranks,
    world,
)


def on_two_ranks(make: Callable[[int], object], folder: Path) -> list:
    """What `make` returns on rank 0 and on rank 1 of two gloo processes."""
    mp.start_processes(one_rank, (make, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def one_rank(rank: int, make: Callable[[int], object], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(make(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Both sides (8, 3, 6) and masks (8, 3) of the global batch."""
    random = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(8, 3, 6, generator=random), dim=-1) for _ in range(2))
    return a, b, torch.arange(3) < 1 + torch.arange(8)[:, None] % 3


def agreement(mine: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient of the rank's tokens, gradient of the codebook."""
    torch.manual_seed(0)
    loss = CodeAgreement(8, 6)
    a, b, mask = tokens()
    x = a[mine].clone().requires_grad_()
    p = loss.distribution(x, mask[mine])
    value = loss(p, loss.distribution(b[mine], mask[mine]), torch.arange(8)[mine])
    value.backward()
    assert x.grad is not None and loss.codebook.grad is not None
    return value.detach(), x.grad, loss.codebook.grad


def test_two_ranks_give_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    value, grad, codebook = agreement(slice(0, 8))
    ranks = on_two_ranks(lambda rank: agreement(slice(4 * rank, 4 * rank + 4)), tmp_path)
    for found, _, _ in ranks:
        torch.testing.assert_close(found, value)
    # DDP averages over the ranks, each of which has the whole loss.
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]) / 2, grad)
    torch.testing.assert_close((ranks[0][2] + ranks[1][2]) / 2, codebook)


def gathered_with_gradient(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([[1.0], [2.0]]) + 10 * rank
    x.requires_grad_()
    found = gather(x.T, world())  # not contiguous
    found.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1))
    assert x.grad is not None
    return found.detach(), x.grad


def test_a_gradient_is_summed_over_the_ranks_that_read_the_row(tmp_path: Path) -> None:
    first, second = on_two_ranks(gathered_with_gradient, tmp_path)
    assert first[0].tolist() == second[0].tolist() == [[1, 2], [11, 12]]
    assert first[1].tolist() == [[3], [6]]  # (1 + 2) times the row's gradient
    assert second[1].tolist() == [[9], [12]]


def gathered_without_gradient(rank: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(4) + 4 * rank
    return gather(ids, world()), gather(ids % 2 == 0, world())


def test_integers_and_booleans_are_gathered(tmp_path: Path) -> None:
    for ids, flags in on_two_ranks(gathered_without_gradient, tmp_path):
        assert ids.dtype == torch.int64 and flags.dtype == torch.bool
        assert torch.equal(ids, torch.arange(8)) and torch.equal(flags, ids % 2 == 0)


def gathered_unevenly(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    mine = torch.arange(6.0).view(3, 2)[: 1 + 2 * rank] + 10 * rank
    nothing = mine[: 2 * rank]  # rank 0 has no row
    return gather_uneven(mine, world()), gather_uneven(nothing, world()), gather_uneven(mine[:0], world())


def test_ranks_of_uneven_length_are_joined_in_rank_order(tmp_path: Path) -> None:
    for found, of_one_rank, of_none in on_two_ranks(gathered_unevenly, tmp_path):
        assert found.tolist() == [[0, 1], [10, 11], [12, 13], [14, 15]]
        assert of_one_rank.tolist() == [[10, 11], [12, 13]]
        assert of_none.shape == (0, 2)


def with_gradients(rank: int) -> list[Tensor]:
    """Ranks read uneven rows, rows by number, a sum and a mean; each weighs what it reads by 1 + its number."""
    x = (torch.arange(6.0).view(3, 2)[: 1 + 2 * rank] + 10 * rank).requires_grad_()
    even = (torch.tensor([[1.0], [2.0]]) + 10 * rank).requires_grad_()
    group = world()
    joined = gather_uneven(x, group, [1, 3])
    rows = rows_of_ranks(even, torch.tensor([3, 0, 3]), group)
    mean = joint_mean(x.sum(0), len(x), group)
    total = joint_sum(even, group)
    ((1 + rank) * (joined.sum() + rows.sum() + mean.sum() + total.sum())).backward()
    assert x.grad is not None and even.grad is not None
    return [joined.detach(), rows.detach(), mean.detach(), total.detach(), x.grad, even.grad]


def test_what_ranks_share_passes_back_the_sum_of_their_gradients(tmp_path: Path) -> None:
    for rank, (joined, rows, mean, total, uneven, even) in enumerate(on_two_ranks(with_gradients, tmp_path)):
        assert joined.tolist() == [[0, 1], [10, 11], [12, 13], [14, 15]]
        assert rows.tolist() == [[12], [1], [12]]
        assert mean.tolist() == [9, 10] and total.tolist() == [[12], [14]]
        # The ranks weigh by 1 and 2: a row has 3 of each reading, and a quarter of it by the mean of four rows.
        assert uneven.eq(3 + 3 / 4).all()
        assert even.tolist() == ([[3 + 3], [3]] if rank == 0 else [[3], [2 * 3 + 3]])


def without_gradients(rank: int) -> list:
    flags = rows_of_ranks(torch.tensor([rank == 0, True]), torch.tensor([0, 2]), world())
    largest = largest_over_ranks(torch.tensor([rank, 5 - rank]), world())
    spoiled = torch.tensor([[float("nan")], [2.0]])
    nothing = joint_mean(torch.zeros(()), 0, world())
    with torch.no_grad():
        alone = step_group() is None
    return [flags, largest, rows_of_ranks(spoiled, torch.tensor([1, 3]), world()), nothing, alone, step_group() is None]


def test_rows_that_nobody_asks_for_change_nothing_and_an_evaluation_is_a_ranks_own(tmp_path: Path) -> None:
    for flags, largest, rows, nothing, alone, in_step in on_two_ranks(without_gradients, tmp_path):
        assert flags.tolist() == [True, False] and largest.tolist() == [1, 5]
        assert rows.tolist() == [[2], [2]] and nothing == 0
        assert alone and not in_step


def exchanged(rank: int) -> tuple[Tensor, Tensor]:
    """Rank 0 keeps one row and sends two, rank 1 sends nothing and keeps one; each weighs what it has by 1 + its
    number."""
    x = (torch.arange(3.0)[: 3 - 2 * rank, None] + 10 * rank).requires_grad_()
    found = exchange(x, [1, 2] if rank == 0 else [0, 1], [1, 0] if rank == 0 else [2, 1], world())
    ((1 + rank) * found.sum()).backward()
    assert x.grad is not None
    return found.detach(), x.grad


def test_rows_go_to_other_ranks_and_their_gradients_come_back(tmp_path: Path) -> None:
    (first, of_first), (second, of_second) = on_two_ranks(exchanged, tmp_path)
    assert first.tolist() == [[0]] and second.tolist() == [[1], [2], [10]]
    assert of_first.tolist() == [[1], [2], [2]] and of_second.tolist() == [[2]]


def in_parts(rank: int) -> tuple[Tensor, Tensor]:
    """Both ranks have x; each multiplies it by its own number, and both go on alike with the sum."""
    x = torch.tensor([3.0], requires_grad=True)
    y = partial_sum(shared_input(x, world()) * (1 + rank), world())
    (2 * y).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_parts_of_one_result_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    for y, gradient in on_two_ranks(in_parts, tmp_path):
        assert y.tolist() == [9] and gradient.tolist() == [6]


def samples_divided(rank: int) -> tuple[Tensor, Tensor]:
    alone = dist.new_group([0]), dist.new_group([1])
    divide_samples(alone[rank])
    inside = world() is None and all_ranks() is not None
    divide_samples(None)
    own = torch.tensor([float(rank)])
    return torch.tensor([inside, world() is not None]), from_rank(own, 0, world())


def test_samples_may_be_divided_among_fewer_than_all_ranks(tmp_path: Path) -> None:
    for flags, first in on_two_ranks(samples_divided, tmp_path):
        assert flags.tolist() == [True, True] and first.tolist() == [0]


def summed(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([1.0, 2.0]) * 10**rank
    returned = sum_over_ranks(x, world())
    return x, returned


def test_the_sum_is_in_place(tmp_path: Path) -> None:
    for x, returned in on_two_ranks(summed, tmp_path):
        assert x.tolist() == returned.tolist() == [11, 22]


def in_groups_of_one(rank: int) -> list:
    """The group, and not the world, is what is gathered and summed over."""
    groups: list[Group] = [dist.new_group([0]), dist.new_group([1])]  # each rank takes part in making both
    group = groups[rank]
    x = torch.tensor([1.0 + rank])
    found = [gather(x, group), gather(x.long(), group), gather_uneven(x, group), sum_over_ranks(x.clone(), group)]
    return [*found, rank_and_size(group), rank_and_size(world())]


def test_a_group_bounds_every_function(tmp_path: Path) -> None:
    for rank, (*found, in_group, in_world) in enumerate(on_two_ranks(in_groups_of_one, tmp_path)):
        assert [x.tolist() for x in found] == [[1 + rank]] * 4
        assert in_group == (0, 1) and in_world == (rank, 2)


@pytest.mark.parametrize("function", [gather, gather_uneven, sum_over_ranks])
def test_without_a_group_it_is_the_identity(function: Callable[[Tensor, Group], Tensor]) -> None:
    x = torch.randn(3, 2)
    assert function(x, None) is x
    assert world() is None and rank_and_size(world()) == (0, 1)
