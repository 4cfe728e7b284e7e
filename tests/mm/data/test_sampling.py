"""Properties: what a step holds is a function of the seed and the step alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data.sampling import StepSampler

sizes = st.integers(4, 60)


@settings(max_examples=40, deadline=None)
@given(size=sizes, data=st.data())
def test_an_epoch_visits_no_image_twice_and_leaves_less_than_a_batch(size, data):
    batch = data.draw(st.integers(1, size))
    sampler = StepSampler(size, batch, steps=2 * (size // batch), seed=3)
    for epoch in range(2):
        keys = [key for step in list(sampler)[epoch * (size // batch) : (epoch + 1) * (size // batch)] for key in step]
        indices = {index for index, _ in keys}
        assert len(indices) == len(keys) == size - size % batch and {e for _, e in keys} == {epoch}
        assert indices <= set(range(size))


@settings(max_examples=30, deadline=None)
@given(size=sizes, start=st.integers(0, 9), seed=st.integers(0, 1000))
def test_resuming_continues_the_same_order(size, start, seed):
    whole = list(StepSampler(size, 4, 10, seed))
    assert list(StepSampler(size, 4, 10, seed, start_step=start)) == whole[start:]


@settings(max_examples=30, deadline=None)
@given(world=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 1000))
def test_ranks_together_hold_what_one_process_would(world, seed):
    whole = list(StepSampler(30, 12, 7, seed))
    ranks = [list(StepSampler(30, 12, 7, seed, rank=rank, world_size=world)) for rank in range(world)]
    for step, keys in enumerate(whole):
        assert [key for rank in ranks for key in rank[step]] == keys


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(4, 30), seed=st.integers(0, 1000))
def test_a_limit_takes_the_same_images_for_every_seed_and_a_smaller_one_some_of_them(limit, seed):
    def seen(seed, limit):
        sampler = StepSampler(30, 1, limit, seed, limit=limit)
        return {index for step in sampler for index, _ in step}

    assert seen(seed, limit) == seen(seed + 1, limit) and len(seen(seed, limit)) == limit
    assert seen(seed, limit // 2) < seen(seed, limit)


def test_epochs_and_seeds_differ():
    first, second = list(StepSampler(50, 50, 2, seed=0))
    assert [i for i, _ in first] != [i for i, _ in second]
    assert list(StepSampler(50, 50, 1, seed=1)) != [first]


def test_the_length_is_the_number_of_steps():
    assert len(StepSampler(10, 4, 25, seed=0, start_step=20)) == 25
    assert len(list(StepSampler(10, 4, 25, seed=0, start_step=20))) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 11}, "a batch of 11 cannot be drawn from a split of 10 images"),
        ({"batch_size": 0}, "a batch of 0"),
        ({"world_size": 3}, "does not divide over 3 processes"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        ({"start_step": -1}, "negative"),
        ({"limit": 11}, "a limit of 11 images, but the split has 10"),
        ({"limit": 3}, "a batch of 4 cannot be drawn from a split of 3 images"),
    ],
)
def test_impossible_requests_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepSampler(**{"size": 10, "batch_size": 4, "steps": 5, "seed": 0, **arguments})
