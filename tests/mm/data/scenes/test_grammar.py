"""Captions: a function of the scene, from the declared vocabulary, and together they say every fact."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm.data.scenes import VOCABULARY, Scene, captions, scene_at
from mm.data.scenes.grammar import PLACES, WORDS
from mm.data.scenes.scene import BACKGROUNDS, COLOURS, ROWS, SHAPES, SIZES, SPLITS, TEXTURES, Look

scenes = st.builds(scene_at, st.integers(0, 5), st.sampled_from(sorted(SPLITS)), st.integers(0, 9999))
MEANING = {word: attribute for attribute, words in WORDS.items() for word in words}


def read_inventory(caption: str) -> tuple[str, list[dict[str, str]]]:
    """Background and, from left to right, each object's size, texture, colour and shape, as a reader understands it."""
    things: list[dict[str, str]] = [{}]
    for word in re.findall("[a-z]+", caption):
        meaning = MEANING.get(word)
        for kind, values in {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}.items():
            if meaning in values:
                things[-1][kind] = str(meaning)
                if kind == "shape":
                    things.append({})
    (background,) = {MEANING.get(word) for word in caption.split()} & set(BACKGROUNDS)
    return str(background), things[:-1]


def read_rows(caption: str) -> list[str]:
    """The rows, from left to right."""
    phrases = {phrase: row for row, phrases in PLACES.items() for phrase in phrases}
    return [phrases[found] for found in re.findall("|".join(phrases), caption)][::-1]


def with_changed_fact(scene: Scene, number: int, kind: str, value: str) -> Scene:
    thing = scene.objects[number]
    if kind in Look._fields:
        thing = replace(thing, look=thing.look._replace(**{kind: value}))
    else:
        thing = replace(thing, **{kind: value})  # type: ignore[arg-type]
    return replace(scene, objects=(*scene.objects[:number], thing, *scene.objects[number + 1 :]))


@given(scenes)
def test_the_captions_can_be_read_back_into_the_facts(scene: Scene) -> None:
    inventory, rows, *_ = captions(scene)
    background, things = read_inventory(inventory)
    read = [
        (t["colour"], t["shape"], t["texture"], t["size"], row) for t, row in zip(things, read_rows(rows), strict=True)
    ]
    assert (background, *read) == scene.facts


@given(scenes)
def test_captions_are_five_different_sentences_of_known_words(scene: Scene) -> None:
    texts = captions(scene)
    assert len(set(texts)) == 5
    assert {word for text in texts for word in re.findall(r"[^\s,:]+", text)} <= VOCABULARY


@given(scenes, st.floats(-0.01, 0.01))
def test_captions_are_a_function_of_the_facts(scene: Scene, shift: float) -> None:
    """The same scene says the same again, and where exactly an object was drawn says nothing."""
    moved = tuple(replace(thing, x=thing.x + shift, y=thing.y + shift) for thing in scene.objects)
    assert captions(replace(scene, objects=moved)) == captions(scene)


@given(scenes, st.data())
def test_changing_any_fact_changes_the_captions(scene: Scene, data: st.DataObject) -> None:
    kinds = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES, "row": ROWS}
    changed = with_changed_fact(
        scene,
        data.draw(st.integers(0, len(scene.objects) - 1)),
        kind := data.draw(st.sampled_from(sorted(kinds))),
        data.draw(st.sampled_from(kinds[kind])),
    )
    assert (captions(changed) == captions(scene)) == (changed.facts == scene.facts)


def test_all_captions_name_every_object_and_leave_different_facts_out() -> None:
    scene = scene_at(0, "val", 0)
    texts = captions(scene)
    for thing in scene.objects:
        for text in texts:
            words = set(re.findall("[a-z]+", text))
            assert words & set(WORDS[thing.look.colour]) and words & set(WORDS[thing.look.shape])
    said = [
        frozenset(
            kind
            for kind, values in {"size": SIZES, "background": BACKGROUNDS, "row": ROWS}.items()
            if any(
                phrase in f" {text} "
                for value in values
                for phrase in (PLACES[value] if kind == "row" else [f" {w} " for w in WORDS[value]])
            )
        )
        for text in texts
    ]
    assert said == [{"size", "background"}, {"row"}, set(), {"background"}, {"size", "row"}]


def test_captions_are_short_and_the_vocabulary_small() -> None:
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.SimpleTokenizer()
    texts = [text for index in range(60) for text in captions(scene_at(0, "val", index))]
    assert max(len(tokenizer.encode(text)) for text in texts) + 2 <= 40
    assert 80 <= len(VOCABULARY) <= 150
