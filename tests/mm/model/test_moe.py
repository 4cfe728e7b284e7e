"""The mixture against a dense loop over experts, and its balance."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from mm.model.moe import MoE, MoEConfig, Router, modality_entropy

CONFIG = MoEConfig(num_experts=8, top_k=2, hidden=6, shared=0, z=0.0)


def build(config: MoEConfig = CONFIG, width: int = 10) -> MoE:
    torch.manual_seed(0)
    return MoE(config, width, modalities=3)


def tokens(count: int = 40, width: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


@pytest.mark.parametrize("shared", [0, 5])
def test_it_equals_a_dense_loop_over_all_experts(shared: int) -> None:
    moe, (x, modality) = build(replace(CONFIG, shared=shared)), tokens()
    chosen, weights, _ = moe.router(x)
    gate = torch.zeros(len(x), 8).scatter(1, chosen, weights)  # zero for every expert that was not chosen
    expected = 0
    for e in range(8):
        hidden = x @ moe.w_in[e].T
        expected = expected + gate[:, e, None] * ((silu(hidden[:, :6]) * hidden[:, 6:]) @ moe.w_out[e].T)
    if moe.shared is not None:
        expected = expected + moe.shared(x)
    torch.testing.assert_close(moe(x, modality).x, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_positive_sum_to_one_and_choose_the_best() -> None:
    router, (x, _) = build().router, tokens()
    chosen, weights, logits = router(x)
    assert (weights > 0).all() and torch.allclose(weights.sum(1), torch.ones(len(x)))
    assert torch.equal(chosen.sort(1).values, logits.topk(2, dim=1).indices.sort(1).values)


def test_load_counts_every_assignment_once_under_its_modality() -> None:
    moe, (x, modality) = build(), tokens()
    load = moe(x, modality).load
    assert load.shape == (3, 8)
    assert load.sum(1).tolist() == [2 * (modality == m).sum().item() for m in range(3)]
    only = moe(x, torch.ones_like(modality)).load
    assert not only[[0, 2]].any() and torch.equal(only[1], load.sum(0))


def test_the_bias_takes_load_from_the_busiest_expert() -> None:
    """All tokens like two experts; the bias spreads them without touching the weights they get."""
    moe, (x, modality) = build(), tokens(300)
    x = x + 3 * moe.router.affinity[:2].detach().sum(0)
    before = moe(x, modality).load.sum(0)
    for _ in range(200):
        moe.router.rebalance(moe(x, modality).load.sum(0), rate=0.01)
    after = moe(x, modality).load.sum(0)
    assert after.max() < 0.6 * before.max() and (after == 0).sum() < (before == 0).sum()
    assert after.sum() == before.sum()


def test_the_bias_moves_against_the_load_and_never_enters_the_weights() -> None:
    router, (x, _) = Router(CONFIG, 10), tokens()
    _, weights, _ = router(x)
    router.rebalance(torch.tensor([9.0, 1, 5, 5, 5, 5, 5, 5]), rate=0.5)
    assert router.bias.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0]
    with torch.no_grad():
        router.bias.fill_(3.0)  # the same for all: nothing is chosen otherwise
    torch.testing.assert_close(router(x)[1], weights)
    assert not any(name == "bias" for name, _ in router.named_parameters())
    assert "bias" in router.state_dict()


def test_the_router_is_fp32_under_autocast() -> None:
    moe, (x, modality) = build(), tokens()
    chosen = moe.router(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        again, weights, logits = moe.router(x)
        assert moe(x, modality).x.isfinite().all()
    assert weights.dtype == logits.dtype == torch.float32 and torch.equal(again, chosen)


def test_losses_are_there_when_asked_for() -> None:
    x, modality = tokens()
    assert build()(x, modality).losses == {}
    asked = build(replace(CONFIG, z=1.0, balance=1.0, entropy=1.0))(x, modality).losses
    assert set(asked) == {"z", "balance", "entropy"}


def test_an_even_load_has_the_least_balance_loss() -> None:
    moe = build(replace(CONFIG, balance=1.0))
    modality = torch.zeros(8, dtype=torch.int64)
    even, crowded = torch.full((8, 8), -9.0).fill_diagonal_(9.0), torch.full((8, 8), -9.0)
    crowded[:, 0] = 9.0
    costs = [moe.losses(logits, logits.topk(1).indices, modality)["balance"].item() for logits in (even, crowded)]
    assert costs == pytest.approx([1.0, 8.0], rel=1e-2)


def test_modality_entropy_wants_sure_tokens_and_a_spread_modality() -> None:
    modality = torch.arange(8) % 2  # the third has no token, and does not count
    sure_and_spread = torch.eye(4).repeat_interleave(2, 0)
    collapsed = torch.eye(4)[:1].expand(8, 4)
    assert modality_entropy(sure_and_spread, modality, 3).item() == pytest.approx(-math.log(4), abs=1e-4)
    assert modality_entropy(collapsed, modality, 3).item() == pytest.approx(0, abs=1e-4)


def test_every_chosen_expert_learns_and_no_other() -> None:
    moe, (x, modality) = build(), tokens(3)
    out = moe(x, modality)
    out.x.square().sum().backward()
    assert moe.w_in.grad is not None and moe.router.affinity.grad is not None
    assert torch.equal(moe.w_in.grad.flatten(1).any(1), out.load.sum(0) > 0)
    assert moe.router.affinity.grad.any()


def test_more_active_than_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"moe\.top_k=9 of moe\.num_experts=8"):
        MoEConfig(num_experts=8, top_k=9)
