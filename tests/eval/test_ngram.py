"""An n-gram model counts what it has seen, and gives way to shorter histories."""

import numpy as np
import pytest

from eval.ngram import END, NGram


def test_what_follows_was_seen_to_follow() -> None:
    model = NGram([list("abab")] * 50, order=3)
    assert model.words == [END, "a", "b"]
    for before, following in (("", "a"), ("a", "b"), ("aba", "b")):
        probabilities = model.probabilities(list(before))
        assert probabilities.sum() == pytest.approx(1)
        assert model.words[int(probabilities.argmax())] == following and probabilities.max() > 0.9
    # After "ab" a text went on as often as it ended.
    _, on, again = model.probabilities(list("ab"))
    assert on == pytest.approx(0.5, abs=0.02) and again < 0.02


def test_a_shorter_history_stands_in_for_one_that_was_never_seen() -> None:
    model = NGram(["ab", "cb", "cb"], order=2)
    unseen = model.probabilities(["z"])
    np.testing.assert_allclose(unseen, model.probabilities(["y", "x"]))
    # Of nine words three end a text, three are b; each of the four kinds of word costs one count: (3 + 4/4) / (9 + 4).
    assert dict(zip(model.words, unseen, strict=True))["b"] == pytest.approx(4 / 13)
    # After c only b came, twice: (2 + 1 * 4/13) / (2 + 1).
    assert dict(zip(model.words, model.probabilities(["c"]), strict=True))["b"] == pytest.approx((2 + 4 / 13) / 3)


def test_only_as_many_words_as_the_order_has_are_looked_at() -> None:
    model = NGram(["abcd", "xbcy"], order=3)
    np.testing.assert_array_equal(model.probabilities(list("abc")), model.probabilities(list("xbc")))
    longer = NGram(["abcd", "xbcy"], order=4)
    assert longer.probabilities(list("abc")).argmax() != longer.probabilities(list("xbc")).argmax()
