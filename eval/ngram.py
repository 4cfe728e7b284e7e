"""An n-gram model of words, the baseline of whatever writes sequences of few different words.

Witten and Bell 1991, interpolated: a history gives way to the next shorter one the more, the more different words
followed it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

START = "<start>"
END = "<end>"


class NGram:
    """What follows the last n - 1 words.

    Args:
        texts: each a sequence of words, START and END not among them.
        order: n.
    """

    def __init__(self, texts: Iterable[Sequence[str]], order: int = 5) -> None:
        self.order = order
        self._followers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        words = {END}
        for text in texts:
            padded = [START] * (order - 1) + [*text, END]
            words.update(text)
            for place in range(order - 1, len(padded)):
                for length in range(order):
                    self._followers[tuple(padded[place - length : place])][padded[place]] += 1
        self.words = sorted(words)
        """What can follow, V of them."""
        self._place = {word: place for place, word in enumerate(self.words)}
        self._known: dict[tuple[str, ...], np.ndarray] = {}

    def probabilities(self, before: Sequence[str]) -> np.ndarray:
        """Of each of `words`, that it follows: (V,) float64.

        Args:
            before: all words so far; a word that no text has is followed by what follows the words behind it.
        """
        padded = [START] * (self.order - 1) + list(before)
        return self._of(tuple(padded[len(padded) - self.order + 1 :]))

    def _of(self, history: tuple[str, ...]) -> np.ndarray:
        """The same of a history of at most n - 1 words."""
        if history not in self._known:
            shorter = self._of(history[1:]) if history else np.full(len(self.words), 1 / len(self.words))
            followers = self._followers.get(history, Counter())
            counts = np.zeros(len(self.words))
            for word, count in followers.items():
                counts[self._place[word]] = count
            total = counts.sum() + len(followers)
            self._known[history] = (counts + len(followers) * shorter) / total if total else shorter
        return self._known[history]
