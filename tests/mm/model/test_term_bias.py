"""Which tokens belong to a term, against a search in plain Python, and which terms can be seen at all."""

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from encoders.tokenizer import Tokenizer, observed_vocabulary
from mm.artifacts.probe import probe
from mm.artifacts.run import Run, load_run, save_run
from mm.batch import Batch
from mm.config import encoders_of
from mm.model.term_bias import Terms, token_sequences

SMALL = st.integers(0, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SMALL, min_size=6, max_size=6), min_size=1, max_size=4),
    st.lists(st.lists(SMALL, min_size=1, max_size=8), min_size=1, max_size=5),
)
def test_every_token_of_every_occurrence_is_marked(captions: list[list[int]], terms: list[list[int]]) -> None:
    sequences = torch.tensor([term + [-1] * (8 - len(term)) for term in terms])
    expected = [
        [
            any(
                caption[start : start + len(term)] == term and start <= i < start + len(term)
                for term in terms
                for start in range(len(caption))
            )
            for i in range(6)
        ]
        for caption in captions
    ]
    assert Terms(sequences)(torch.tensor(captions)).tolist() == expected


def test_terms_are_found_in_captions_with_and_without_neighbours() -> None:
    tokenizer = Tokenizer("scratch", 16)
    sequences, seen, skipped = token_sequences(["benzene ring", "molecular weight", ""], tokenizer, None)
    assert seen == ["benzene ring", "molecular weight"] and not skipped
    ids, mask = tokenizer(["a Benzene ring", "benzene", "molecular weight, and a benzene ring!"])
    term_mask = [tokenizer.decode(row[marks].tolist()) for row, marks in zip(ids, Terms(sequences)(ids), strict=True)]
    assert term_mask == ["benzene ring", "", "molecular weight benzene ring"]
    assert not (Terms(sequences)(ids) & ~mask).any()


def test_marking_asks_the_device_for_nothing_and_follows_what_is_loaded() -> None:
    terms = Terms(torch.tensor([[5, -1, -1], [6, 7, -1]]))
    terms.load_state_dict(Terms(torch.tensor([[1, 2, 3], [4, -1, -1]])).state_dict())
    ids = torch.tensor([[5, 1, 2, 3], [6, 7, 4, 1]])
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        marks = terms(ids)
    assert marks.tolist() == [[False, True, True, True], [False, False, True, False]]
    asked = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2"}
    assert not asked & {event.key for event in recorded.key_averages()}


def test_what_cannot_be_seen_is_skipped_with_a_reason() -> None:
    tokenizer = Tokenizer("scratch", 6)
    vocabulary = observed_vocabulary(tokenizer, ["a red circle"])
    terms = ["red", "benzene", "circle red circle red circle", "red"]
    _, seen, skipped = token_sequences(terms, tokenizer, vocabulary)
    assert seen == ["red"]
    assert skipped == {
        "benzene": "the text trunk has not met its tokens",
        "circle red circle red circle": "it is longer than a caption, of 6 tokens",
    }


def test_a_model_with_a_term_bias_is_the_same_model_at_first_and_travels(
    tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], tmp_path: object
) -> None:
    run = tiny_run().eval()
    batch = tiny_batch()
    before = run.model(batch).embeddings["text"]
    sequences, _, _ = token_sequences(["circle"], Tokenizer("scratch", 12), None)
    run.model.add_term_bias(sequences)
    torch.testing.assert_close(run.model(batch).embeddings["text"], before)
    for block in run.model.backbone.blocks:
        block.self_attention.term_bias.data.fill_(3.0)
    after = run.model(batch).embeddings["text"]
    changed = (after - before).abs().amax(1) > 1e-4
    assert changed.tolist() == [
        "circle" in caption for caption in ("red circle", "two blue squares", "one small green heart", "stripes")
    ]
    save_run(run, tmp_path)  # type: ignore[arg-type]
    loaded = load_run(tmp_path)  # type: ignore[arg-type]
    torch.testing.assert_close(loaded.model(batch).embeddings["text"], after)
    assert probe(loaded.model, encoders_of(loaded.config))["match"].shape == (3,)
