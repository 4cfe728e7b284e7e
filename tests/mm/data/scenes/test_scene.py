"""Scenes: distinct, placed apart, and the held-out combinations stay out of training."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm.data.scenes import Scene, capacity, scene_at
from mm.data.scenes.scene import (
    COLOURS,
    HELD_OUT_COLOUR_SHAPE,
    HELD_OUT_TEXTURE_SHAPE,
    RADIUS,
    ROWS,
    SHAPES,
    SPLITS,
    TEXTURES,
    Look,
)

MANY = 3000
GOLDEN = ("gray", ("cyan", "heart", "striped", "large", "middle"), ("red", "moon", "striped", "large", "middle"))
scenes = st.builds(scene_at, st.integers(0, 5), st.sampled_from(sorted(SPLITS)), st.integers(0, 9999))


@pytest.fixture(scope="module")
def facts() -> dict[str, list]:
    return {split: [scene_at(0, split, index) for index in range(MANY)] for split in SPLITS}


@pytest.mark.parametrize("split", ["train", "seen"])
def test_no_held_out_pair_occurs_in_training_or_seen(facts: dict[str, list], split: str) -> None:
    looks = [thing.look for scene in facts[split] for thing in scene.objects]
    assert not HELD_OUT_COLOUR_SHAPE & {(look.colour, look.shape) for look in looks}
    assert not HELD_OUT_TEXTURE_SHAPE & {(look.texture, look.shape) for look in looks}


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_evaluation_scene_has_a_held_out_pair(facts: dict[str, list], split: str) -> None:
    for scene in facts[split]:
        pairs = {(o.look.colour, o.look.shape) for o in scene.objects}
        patterns = {(o.look.texture, o.look.shape) for o in scene.objects}
        assert pairs & HELD_OUT_COLOUR_SHAPE or patterns & HELD_OUT_TEXTURE_SHAPE


def test_every_part_of_a_held_out_pair_occurs_in_training(facts: dict[str, list]) -> None:
    """Only the combinations are new: each pair that is not held out, hence each attribute, has been seen."""
    looks = [thing.look for scene in facts["train"] for thing in scene.objects]
    assert {(look.colour, look.shape) for look in looks} == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    } - HELD_OUT_COLOUR_SHAPE
    assert {(look.texture, look.shape) for look in looks} == {
        (texture, shape) for texture in TEXTURES for shape in SHAPES
    } - HELD_OUT_TEXTURE_SHAPE
    assert Look("red", "star", "solid").held_out and not Look("red", "heart", "solid").held_out


def test_no_two_scenes_share_their_facts_within_or_between_splits(facts: dict[str, list]) -> None:
    every = [scene.facts for scenes_of_split in facts.values() for scene in scenes_of_split]
    assert len(set(every)) == len(every)


def test_the_last_scene_of_the_full_splits_are_still_distinct() -> None:
    """Train and seen share one order of cells, read from both ends: they meet but do not overlap."""
    edge = {scene_at(0, "train", capacity("train") - 1 - k).facts[:3] for k in range(50)}
    other = {scene_at(0, "seen", capacity("seen") - 1 - k).facts[:3] for k in range(50)}
    assert not edge & other


@given(scenes)
def test_objects_are_ordered_from_left_to_right_inside_the_image_and_apart(scene: Scene) -> None:
    objects = scene.objects
    assert 2 <= len(objects) <= 4
    assert all(a.x < b.x for a, b in pairwise(objects))
    for i, a in enumerate(objects):
        assert RADIUS[a.size] - 0.01 <= min(a.x, a.y, 1 - a.x, 1 - a.y)
        assert ROWS[int(3 * a.y)] == a.row
        for b in objects[:i]:
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 >= (RADIUS[a.size] + RADIUS[b.size]) ** 2


@given(scenes)
def test_the_stated_relation_is_true(scene: Scene) -> None:
    relation = scene.relation
    subject, anchor = (scene.objects[i] for i in (relation.subject, relation.anchor))
    true = {
        "left of": subject.x < anchor.x,
        "right of": subject.x > anchor.x,
        "above": subject.y < anchor.y,
        "below": subject.y > anchor.y,
    }
    assert true[relation.kind]


def test_a_scene_is_the_same_on_every_machine_and_depends_on_seed_split_and_index_alone() -> None:
    """These facts were drawn once and written down; a change here changes everybody's data: raise folder.VERSION."""
    assert scene_at(3, "train", 17).facts == GOLDEN
    assert len({scene_at(3, "train", 17), scene_at(4, "train", 17), scene_at(3, "train", 18)}) == 3


def test_impossible_scenes_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train"):
        scene_at(0, "dev", 0)
    with pytest.raises(ValueError, match=f"'val' does not exist: the split has at most {capacity('val')}"):
        scene_at(0, "val", capacity("val"))
    with pytest.raises(ValueError, match="negative"):
        scene_at(-1, "val", 0)
