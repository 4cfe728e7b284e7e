"""Which experts go: those that nothing needs, as many in every layer, by the modalities that are kept."""

import pytest
import torch

from kernels.errors import UserError
from mm.compress.prune import experts_to_keep, kept_share

LOAD = torch.tensor(
    [
        # One modality uses experts 0, 1 and 2 of the first layer, the other 3 and 4; nobody 5.
        [[10, 80, 10, 0, 0, 0], [0, 0, 0, 50, 50, 0]],
        [[0, 50, 50, 0, 0, 0], [0, 0, 0, 0, 90, 10]],
    ]
).float()


def kept(modalities: list[int], share: float = 0.0, top_k: int = 1) -> list[list[int]]:
    return [layer.tolist() for layer in experts_to_keep(LOAD, modalities, share, top_k)]


def test_what_nothing_needs_goes_and_every_layer_keeps_as_many() -> None:
    # The second layer could spare two, the first one only.
    assert kept([0, 1]) == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_experts_of_a_modality_that_is_not_kept_go() -> None:
    assert kept([0]) == [[0, 1, 2], [1, 2, 5]]
    assert kept([1]) == [[3, 4], [4, 5]]


def test_a_share_of_each_modality_may_be_lost_and_as_many_stay_as_a_token_needs() -> None:
    # 10 % of the first modality: expert 0 or 2 of the first layer, not both.
    assert [len(layer) for layer in kept([0], 0.1)] == [2, 2]
    assert kept([0], 0.19)[0] == [1, 2]
    assert [len(layer) for layer in kept([0], 0.5, top_k=4)] == [4, 4]
    # Each modality alone has lost no more than the share: together they may have lost both.
    assert [len(layer) for layer in kept([0, 1], 0.1)] == [4, 4]


def test_an_expert_is_as_needed_as_its_keenest_modality_finds_it() -> None:
    # 8 % of one modality weigh more than 5 % of both: the last expert goes, though it received more in the mean.
    load = torch.tensor([[[87, 8, 5], [95, 0, 5]]]).float()
    assert [layer.tolist() for layer in experts_to_keep(load, [0, 1], 0.06, 1)] == [[0, 1]]


def test_what_stays_received_the_rest() -> None:
    keep = [torch.tensor([1, 3]), torch.tensor([1, 4])]
    assert kept_share(LOAD, keep).tolist() == pytest.approx([130 / 200, 140 / 200])
    assert kept_share(torch.zeros(2, 1, 6), keep).tolist() == [1]


def test_a_modality_that_was_never_seen_says_nothing() -> None:
    with pytest.raises(UserError, match="has no sample here"):
        experts_to_keep(torch.zeros(1, 2, 4), [0], 0.0, 1)
