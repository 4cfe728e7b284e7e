"""Words of captions are found again in their tokens."""

from encoders.tokenizer import Tokenizer
from mm.evaluation.describer import words_of


def test_words_are_their_tokens() -> None:
    tokenizer = Tokenizer("scratch", 8)
    ids, _ = tokenizer(["a strawberry-red crescent"])
    words = words_of(tokenizer, "a strawberry-red crescent")
    assert [word for word, _ in words] == ["a", "strawberry-red", "crescent"]
    for word, tokens in words:
        assert ids[0][tokens].tolist() == tokenizer.word_ids(word)
    cut = words_of(tokenizer, "one two three four five six seven eight nine")
    assert [word for word, _ in cut] == ["one", "two", "three", "four", "five", "six"]
    assert words_of(tokenizer, "") == []
