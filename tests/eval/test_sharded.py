"""Two processes that share the gallery count the same, to the bit, as one."""

import socket

import numpy as np
import torch.distributed as dist
import torch.multiprocessing as mp

from eval.coco import evaluate_embeddings
from eval.embeddings import Embeddings
from eval.intervals import Bootstrap
from eval.protocols import Stated
from eval.ranks import count_pairs
from eval.retrieval import matching_pairs, retrieval_both


def data():
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((size, 12)).astype(np.float32) for size in (700, 11_000))
    text[5000:5300] = text[:300]  # ties across the shards
    return image, text, np.arange(700), np.concatenate([np.arange(700), rng.integers(0, 700, 10_300)])


def figures(group=None):
    """Every figure of every protocol, and both ends of its interval, as `scripts/eval_coco.py` reports them."""
    image, text, ids, text_ids = data()
    items = Embeddings.of({"image": image, "text": text, "image_ids": ids, "caption_image_ids": text_ids})
    found = evaluate_embeddings(items, Stated(), bootstrap=Bootstrap(20), group=group)
    assert set(found) == {"all", "five"}
    return np.array([(f.metrics[name], *f.intervals[name]) for f in found.values() for name in f.metrics])


def one_rank(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    image, text, ids, text_ids = data()
    forward, backward = retrieval_both(image, text, ids, text_ids, group=dist.group.WORLD)
    counts = count_pairs(image, text, matching_pairs(ids, text_ids), group=dist.group.WORLD, cache_bytes=0)
    np.savez(
        f"{folder}/{rank}.npz",
        forward=forward.ranks,
        backward=backward.ranks,
        tied=counts.by_column.tied,
        hits=forward.hits,
        figures=figures(dist.group.WORLD),
    )
    dist.destroy_process_group()


def test_two_ranks_equal_one_to_the_bit(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, args=(port, str(tmp_path)), nprocs=2)
    image, text, ids, text_ids = data()
    forward, backward = retrieval_both(image, text, ids, text_ids)
    tied = count_pairs(image, text, matching_pairs(ids, text_ids)).by_column.tied
    alone = figures()
    for rank in (0, 1):
        found = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(found["forward"], forward.ranks) and np.array_equal(found["hits"], forward.hits)
        assert np.array_equal(found["figures"], alone)
        assert np.array_equal(found["backward"], backward.ranks) and np.array_equal(found["tied"], tied)
