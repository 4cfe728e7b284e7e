"""COCO protocols against the eccv_caption package, clip-benchmark, and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from eval.coco import PROTOCOLS, evaluate_coco, evaluate_embeddings
from eval.embeddings import Embeddings
from eval.ground_truth import GroundTruth, Matches
from eval.intervals import Bootstrap
from eval.protocols import Stated
from eval.retrieval import top_k

BENCHMARKS = Path(__file__).parents[2] / "../shared/data/coco_benchmarks"
FEW = Bootstrap(10)
needs_truth = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs ../shared/data/coco_benchmarks")


def embeddings(truth, width=24, noise=1.0, seed=0):
    """Vectors for the Karpathy test split in a shuffled order, with ten captions more than the 25,000."""
    rng = np.random.default_rng(seed)
    images = np.array(list(dict.fromkeys(truth.images.tolist())))
    caption_ids = np.concatenate([truth.captions, 10_000_000 + np.arange(10)])
    text_ids = np.concatenate([truth.images, images[:10]])
    shuffle = rng.permutation(len(caption_ids))
    caption_ids, text_ids, images = caption_ids[shuffle], text_ids[shuffle], rng.permutation(images)
    centre = dict(zip(images.tolist(), rng.standard_normal((len(images), width)), strict=True))
    image = np.stack([centre[i] for i in images.tolist()]) + noise * rng.standard_normal((len(images), width))
    text = np.stack([centre[i] for i in text_ids.tolist()]) + noise * rng.standard_normal((len(text_ids), width))
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
    return Embeddings(image.astype(np.float32), text.astype(np.float32), images, text_ids, caption_ids)


@needs_truth
def test_equals_the_eccv_caption_package():
    metrics = pytest.importorskip("eccv_caption", reason="eccv_caption is in the bench extra").Metrics()
    truth = GroundTruth.load(BENCHMARKS)
    items = embeddings(truth)
    found = evaluate_coco(items, Stated(), ground_truth=truth, bootstrap=FEW)
    assert found["all"].protocol.captions == 25_010 and found["five"].protocol.captions == 25_000
    keep = np.isin(items.caption_ids, truth.captions)
    caption_ids = items.caption_ids[keep]
    to_text = top_k(items.image, items.text[keep], 60)[1].numpy()
    to_image = top_k(items.text[keep], items.image, 60)[1].numpy()
    i2t = dict(zip(items.image_ids.tolist(), caption_ids[to_text].tolist(), strict=True))
    t2i = dict(zip(caption_ids.tolist(), items.image_ids[to_image].tolist(), strict=True))
    peer = metrics.compute_all_metrics(
        i2t,
        t2i,
        Ks=(1, 5, 10),
        target_metrics=("coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r"),
    )
    for side, name in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        for k in (1, 5, 10):
            assert_allclose(found["five"].metrics[f"{name}/R@{k}"], 100 * peer[f"coco_5k_r{k}"][side], atol=1e-6)
            assert_allclose(found["cxc"].metrics[f"{name}/R@{k}"], 100 * peer[f"cxc_r{k}"][side], atol=1e-6)
        for mine, theirs in (("map_at_r", "eccv_map_at_r"), ("r_precision", "eccv_rprecision"), ("R@1", "eccv_r1")):
            assert_allclose(found["eccv"].metrics[f"{name}/{mine}"], 100 * peer[theirs][side], atol=1e-6)


@needs_truth
def test_refuses_the_ground_truth_of_another_split():
    truth = GroundTruth.load(BENCHMARKS)
    with pytest.raises(ValueError, match="other images"):
        items = Embeddings(np.eye(5), np.eye(5), np.arange(5), np.arange(5), np.arange(5))
        evaluate_coco(items, Stated(), ground_truth=truth)


def test_the_thousand_protocol_is_the_mean_of_five_disjoint_thousands():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((5000, 8)).astype(np.float32)
    text = image + rng.standard_normal((5000, 8)).astype(np.float32)
    ids = rng.permutation(5000) * 2
    found = evaluate_coco(Embeddings(image, text, ids, ids), Stated(), bootstrap=FEW)["folds"]
    scores, own = image @ text.T, np.arange(1000)
    by_hand = [(scores[f : f + 1000, f : f + 1000].argmax(1) == own).mean() for f in range(0, 5000, 1000)]
    assert_allclose(found.metrics["image_to_text/R@1"], 100 * np.mean(by_hand), atol=0.03)
    assert (found.protocol.folds, found.protocol.images) == (5, 1000)


def test_a_sixth_caption_counts_only_in_the_gallery_of_all_captions():
    image, text = np.eye(3, 4), np.vstack([np.repeat(np.eye(3, 4)[[1, 1, 2]], 5, 0), np.eye(3, 4)[:1]])
    text_ids = np.array([0] * 5 + [1] * 5 + [2] * 5 + [0])
    found = evaluate_coco(Embeddings(image, text, np.arange(3), text_ids), Stated(), bootstrap=FEW)
    # Image 1 ties with five captions of image 0 (one half); image 2 is alone; image 0 has only its sixth caption right.
    assert found["all"].metrics["image_to_text/R@1"] == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
    assert found["five"].metrics["image_to_text/R@1"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 1) / 3)
    assert found["five"].protocol.captions == 15 and found["all"].protocol.captions_per_image == "5-6"


def test_plausible_matches_score_r_precision_by_hand():
    truth = GroundTruth(
        np.array([1, 2, 3, 4]),
        np.array([7, 7, 9, 9]),
        {"pmrp": Matches({7: [1, 2, 3], 9: [3]}, {1: [7], 2: [7], 3: [7, 9], 4: [9]})},
    )
    image, text = np.eye(2, 3), np.array([[1, 0, 0], [0.2, 0.5, 0], [0.6, 0.4, 0], [0.1, 0.9, 0]])
    items = Embeddings(image, text, np.array([7, 9]), np.array([7, 7, 9, 9]), np.array([1, 2, 3, 4]))
    found = evaluate_coco(items, Stated(), ground_truth=truth, bootstrap=FEW)["pmrp"]
    assert found.protocol.ground_truth == "pmrp" and found.protocol.split == "karpathy-test"
    # Image 7 ranks 1, 3, 2, 4: all of its three; image 9 ranks 4 first and not 3. Caption 2 prefers the other image.
    assert found.metrics["image_to_text/r_precision"] == pytest.approx(100 * (1 + 0) / 2)
    assert found.metrics["text_to_image/r_precision"] == pytest.approx(100 * (1 + 0 + 1 + 1) / 4)


def arrays():
    rng = np.random.default_rng(99)
    centre, ids = rng.standard_normal((40, 8)), np.arange(40) * 3
    text = np.repeat(centre, 5, 0) + rng.standard_normal((200, 8))
    return {"image": 4 * centre, "text": text, "image_ids": ids, "caption_image_ids": np.repeat(ids, 5)}


def test_length_of_vectors_does_not_matter():
    found = arrays()
    longer = found | {"image": found["image"] * np.random.default_rng(1).uniform(0.1, 9, (40, 1))}
    a, b = (evaluate_embeddings(Embeddings.of(x), Stated(), bootstrap=FEW)["all"].metrics for x in (found, longer))
    assert a == b


def test_audio_is_evaluated_on_the_items_that_have_one():
    found = arrays()
    found |= {"audio": found["image"][:10], "audio_image_ids": found["image_ids"][:10]}
    figures = evaluate_embeddings(Embeddings.of(found), Stated("toy", "val"), bootstrap=FEW)
    assert figures.keys() == {"all", "audio_text", "image_audio"} <= set(PROTOCOLS)
    assert figures["image_audio"].metrics["image_to_audio/R@1"] == 100 and figures["image_audio"].protocol.images == 10
    assert figures["audio_text"].protocol.captions == 50
    assert {each.protocol.name for each in figures.values()} == {"toy/val"}
    found["audio_image_ids"] = found["image_ids"][:10] + 1
    with pytest.raises(ValueError, match="no audio shares an image with any text"):
        evaluate_embeddings(Embeddings.of(found), Stated(), bootstrap=FEW)


def test_an_image_without_captions_is_in_no_gallery_and_changes_no_figure():
    rng = np.random.default_rng(0)
    image, text, ids = rng.standard_normal((6, 8)), rng.standard_normal((10, 8)), np.arange(5)
    own = {"text": text, "caption_image_ids": np.repeat(ids, 2)}
    whole = own | {"image": image[:5], "image_ids": ids}
    more = own | {"image": image, "image_ids": np.append(ids, 9)}
    a, b = (evaluate_embeddings(Embeddings.of(x), Stated(), bootstrap=FEW)["all"] for x in (whole, more))
    assert a.metrics == b.metrics and b.protocol.images == 5


@pytest.mark.parametrize("evaluate", [evaluate_coco, evaluate_embeddings])
def test_scores_are_made_on_the_device_that_was_asked_for(evaluate: Any) -> None:
    """Tensors on `meta` have no values: the first that is read says that it was there."""
    vectors, ids = np.eye(3, dtype=np.float32), np.arange(3)
    with pytest.raises(RuntimeError, match="meta"):
        evaluate(Embeddings(vectors, vectors, ids, ids), Stated(), bootstrap=FEW, device=torch.device("meta"))
