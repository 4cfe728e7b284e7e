"""A protocol says what was counted, and survives JSON."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from eval.protocols import Protocol, Stated

COCO = Protocol("coco", "karpathy-test", 5000, 25_010, "5-7", skipped={"truncated": 2})


def test_a_protocol_survives_json_and_has_exactly_its_own_fields():
    stored = json.loads(json.dumps(asdict(COCO)))
    assert Protocol.of_dict(stored) == COCO
    with pytest.raises(ValueError, match="unknown or missing here: speed"):
        Protocol.of_dict(stored | {"speed": 3})
    del stored["captions"], stored["folds"]
    with pytest.raises(ValueError, match="unknown or missing here: captions, folds"):
        Protocol.of_dict(stored)


def test_what_the_trunks_had_seen_is_the_models_and_not_the_measurements():
    assert not COCO.differences(replace(COCO, pretraining="image: pairs"))
    assert COCO.differences(replace(COCO, pretraining="image: pairs", folds=5)) == ["folds: 1 != 5"]


def test_sizes_are_counted_and_the_rest_is_stated():
    stated = Stated("x", "y", "zero-shot, trained on z", {"truncated": 1})
    protocol = Protocol.of_ids(np.arange(3), np.array([0, 0, 1, 2, 2]), stated, rerank_depth=4)
    assert (protocol.images, protocol.captions, protocol.captions_per_image) == (3, 5, "1-2")
    assert (protocol.name, protocol.trained_on, protocol.rerank_depth) == ("x/y", "zero-shot, trained on z", 4)
    assert protocol.skipped == {"truncated": 1}
    assert Protocol.of_ids(np.arange(2), np.array([0, 1]), stated).captions_per_image == "1"
    assert Protocol.of_ids(np.arange(2), np.array([], int), stated).captions_per_image == "0"


def test_zero_shot_is_read_from_what_was_trained_on():
    trained = {"zero-shot": True, "zero-shot, trained on flickr8k": True, "trained on coco": False, "unstated": False}
    for words, expected in trained.items():
        assert replace(COCO, trained_on=words).zero_shot is expected


def test_its_words_say_sizes_recall_depth_and_what_was_skipped():
    assert str(COCO) == (
        "coco karpathy-test 5,000 images x 25,010 captions (5-7 each), original matches, any-hit recall,"
        " not re-ranked, 2 skipped, unstated"
    )
    folds = replace(COCO, folds=5, rerank_depth=20, skipped={})
    assert "in 5 folds of 5,000 images" in str(folds) and "re-ranked to 20, unstated" in str(folds)
    asked = replace(COCO, task="forced choice")
    assert (
        str(asked)
        == "coco karpathy-test: forced choice; 5,000 images or audio clips x 25,010 captions, 2 skipped, unstated"
    )


def test_differences_name_the_field_and_both_values():
    assert COCO.differences(COCO) == []
    assert COCO.differences(replace(COCO, folds=5, dataset="x")) == ["dataset: coco != x", "folds: 1 != 5"]


def test_what_only_one_protocol_has_counted_is_no_difference():
    counted = replace(COCO, samples=5000, present={"image": 5000, "text": 5000}, gallery={"image_to_text": 25_010})
    with_audio = replace(counted, present=counted.present | {"audio": 7}, gallery={"image_to_audio": 7})
    assert COCO.differences(counted) == counted.differences(with_audio) == []
    fewer = replace(counted, present={"image": 4999, "text": 5000})
    assert [line.split(":")[0] for line in counted.differences(fewer)] == ["present"]
