"""The global term: what is a negative, and what the temperature may become."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from alignment.contrastive import Contrastive, clamp_log_scale
from alignment.fine_grained import dense_info_nce


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_random_batch_costs_about_the_logarithm_of_its_size() -> None:
    loss = Contrastive(temperature=1.0)
    assert loss(unit(64), unit(64, 1), torch.arange(64)).item() == pytest.approx(math.log(64), rel=0.05)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_matched_pairs_cost_less_than_shuffled_ones(kind: str) -> None:
    a, ids, loss = unit(12), torch.arange(12), Contrastive(kind)  # type: ignore[arg-type]
    assert loss(a, a, ids) < loss(a, a.roll(1, 0), ids)


def test_the_same_image_twice_is_not_its_own_negative() -> None:
    """Two captions of one image in a batch: pulling one closer must not push the other away."""
    a = unit(2).repeat_interleave(2, 0)
    apart, same = torch.arange(4), torch.tensor([0, 0, 1, 1])
    loss = Contrastive(temperature=0.01)
    assert loss(a, a, same).item() == pytest.approx(0, abs=1e-4)
    assert loss(a, a, apart).item() == pytest.approx(math.log(2), abs=1e-3)


def test_the_dense_form_equals_the_kernel() -> None:
    a, b, ids = unit(9), unit(9, 1), torch.tensor([0, 1, 2, 2, 3, 4, 4, 4, 5])
    loss = Contrastive()
    torch.testing.assert_close(loss(a, b, ids), dense_info_nce(loss.scale * a @ b.T, ids))


def test_a_scale_that_stepped_over_its_ceiling_comes_back() -> None:
    loss = Contrastive("softmax", 0.01)
    a, b = torch.eye(4), torch.eye(4).roll(1, 0)  # no pair fits: every step should lower the scale
    ids = torch.arange(4)
    with torch.no_grad():
        loss.log_scale += 3
    clamp_log_scale(loss.log_scale)
    assert loss.scale.item() == pytest.approx(100, rel=1e-4)
    loss(a, b, ids).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad.item() > 0
    torch.optim.SGD(loss.parameters(), lr=0.01).step()
    assert loss.scale.item() < 99


@pytest.mark.parametrize(("kind", "count"), [("softmax", 1), ("sigmoid", 2)])
def test_every_parameter_gets_a_gradient(kind: str, count: int) -> None:
    loss = Contrastive(kind)  # type: ignore[arg-type]
    loss(unit(6), unit(6, 1), torch.arange(6)).backward()
    grads = [p.grad for p in loss.parameters()]
    assert len(grads) == count and all(g is not None and g.abs() > 0 for g in grads)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_parameter_is_without_dimension_and_the_loss_is(kind: str) -> None:
    """FSDP2 refuses parameters of shape (): temperature and bias are (1,), scale and loss ()."""
    loss = Contrastive(kind, temperature=0.25)  # type: ignore[arg-type]
    assert {p.shape for p in loss.parameters()} == {(1,)}
    assert loss.scale.shape == () and loss.scale.item() == pytest.approx(4)
    assert loss(unit(6), unit(6, 1), torch.arange(6)).shape == ()
