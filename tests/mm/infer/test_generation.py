"""Texts written by a model: one after another, side by side, by beams."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.infer.decoding import Decoding, kept
from mm.infer.embedder import Embedder
from mm.infer.generation import Generation, neighbours
from mm.infer.writing import TextWriter

PREFIXES = ["red", "two blue squares", "", "stripes", "small"]
IMAGES = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in range(5)]


@pytest.fixture
def run(tiny: AlignConfig, tiny_run: Callable[..., Run]) -> Run:
    run = tiny_run(model=replace(tiny.model, generate=True)).eval()
    for block in run.model.backbone.blocks:
        torch.nn.init.normal_(block.cross_attention.out_proj.weight, std=0.5)
    return run


@pytest.fixture
def embedder(run: Run) -> Embedder:
    return Embedder(run)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(6), Decoding(6, temperature=5.0, top_k=6), Decoding(6, temperature=5.0, top_p=0.9), Decoding(5, beams=3)],
    ids=["likeliest", "top_k", "top_p", "beams"],
)
def test_a_text_does_not_depend_on_what_is_written_beside_it(
    embedder: Embedder, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = embedder.generate(image=IMAGES, prefix=PREFIXES, decoding=decoding)
    assert all(text.startswith(prefix) for text, prefix in zip(together, PREFIXES, strict=True))
    assert len(set(together)) > 2
    # Finished texts leave their slots to others.
    monkeypatch.setattr("mm.infer.writing.Generation", partial(Generation, slots=2))
    assert embedder.generate(image=IMAGES, prefix=PREFIXES, decoding=decoding) == together
    if not decoding.temperature:
        assert embedder.generate(image=IMAGES[1], prefix=PREFIXES[1], decoding=decoding) == together[1]


def test_beams_find_what_is_likelier_than_the_likeliest_tokens(embedder: Embedder) -> None:
    found = embedder.generate(prefix=["red", "small green"], decoding=Decoding(4, beams=8))
    assert len(found) == 2 and found[0].startswith("red")


def test_text_ends_at_a_stop_token_and_at_the_end_of_the_context(embedder: Embedder) -> None:
    long = embedder.generate(prefix="red", decoding=Decoding(100))
    assert len(long.split()) <= 11
    word = long.split()[1]
    assert embedder.generate(prefix="red", decoding=Decoding(100, stop=f"{word}</w>")) == "red"


def test_the_same_seed_draws_the_same_text(embedder: Embedder) -> None:
    draw = [embedder.generate(prefix="red", decoding=Decoding(8, temperature=3.0, seed=s)) for s in (0, 0, 1, 2, 3)]
    assert draw[0] == draw[1] and len(set(draw)) > 1


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert kept(logits, Decoding(temperature=1.0, top_k=2)).isfinite().tolist() == [[False, True, True, False]]
    assert kept(logits, Decoding(temperature=1.0, top_p=0.01)).isfinite().tolist() == [[False, True, False, False]]
    assert kept(logits, Decoding(temperature=1.0)).isfinite().all()


def test_slots_beside_each_other_are_filled_at_once() -> None:
    assert neighbours([0, 1, 3, 5, 6]) == [[0, 1], [3], [5, 6]] and neighbours([]) == []


def test_what_cannot_be_written_is_refused(embedder: Embedder, tiny: AlignConfig, tiny_run: Callable[..., Run]) -> None:
    refused = {
        "text 0 is blank": {"prefix": [" ", "red"]},
        "prefix 1 has 12 tokens, which fill the model's context of 12": {
            "image": IMAGES[:2],
            "prefix": ["", "red " * 11],
        },
        r"no token '</s>'": {"prefix": "red", "decoding": Decoding(stop="</s>")},
        "2 prefixes for 1 inputs": {"image": IMAGES[0], "prefix": ["a", "b"]},
        "give one of image, audio, got 2": {"image": IMAGES[0], "audio": "x.wav"},
    }
    for words, asked in refused.items():
        with pytest.raises(ValueError, match=words):
            embedder.generate(**asked)
    with pytest.raises(ValueError, match="nothing to describe or to go on from: give image, audio or prefix"):
        embedder.generate()
    with pytest.raises(ValueError, match="does not write text"):
        Embedder(tiny_run()).generate(prefix="red")
    deaf = Embedder(tiny_run(model=replace(tiny.model, generate=True, modalities=("image", "text"))))
    with pytest.raises(ValueError, match="has no encoder of audio, only of image, text"):
        deaf.generate(audio=np.zeros(16000, np.float32))
    mute = Embedder(tiny_run(model=replace(tiny.model, modalities=("image", "audio"))))
    with pytest.raises(ValueError, match="does not write text"):
        mute.generate(image=IMAGES[0])
    with pytest.raises(ValueError, match="top_k and top_p have no effect without temperature"):
        Decoding(top_k=3)
    with pytest.raises(ValueError, match="beams are searched, not drawn"):
        Decoding(beams=2, temperature=1.0)


def test_a_condition_of_padding_alone_is_refused(
    run: Run, tiny_batch: Callable[..., Batch], embedder: Embedder
) -> None:
    batch = tiny_batch(rows=3)
    batch.present["image"] = torch.tensor([True, False, True])
    writer = TextWriter(run.model, embedder.processor.tokenizer)
    with pytest.raises(ValueError, match="input 1 has no real token to describe: leave it out"):
        writer.write(["", "", ""], writer.condition([batch], "image"), Decoding(2))


def test_logits_that_are_not_finite_are_refused(embedder: Embedder) -> None:
    writer = embedder.run.model.causal
    assert writer is not None
    writer.leave.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the logits of token 2 are not finite"):
        embedder.generate(prefix="red")
