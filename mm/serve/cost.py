"""How long a batch takes: a · tokens + b · items + c, learned from the batches that ran."""

import numpy as np
from scipy.optimize import nnls

MEMORY = 0.95
"""What is left of a batch's weight when the next one has run: the last twenty decide."""
PRIOR = 0.05
"""Weight of what was guessed before any batch ran, beside 1 of each batch."""
LEAST = 1e-6
"""Seconds that a batch takes at least."""


class CostModel:
    """Seconds of a batch by its tokens, padding included, and its items.

    Weighted least squares of relative errors, no coefficient below zero: a batch never gets cheaper by growing.

    Args:
        token: seconds of a token, guessed.
        item: seconds of an item, guessed.
        batch: seconds of a batch of any size, guessed.
    """

    def __init__(self, token: float, item: float, batch: float) -> None:
        self.coefficients = np.array([token, item, batch])
        self.products = np.zeros((3, 3))
        self.targets = np.zeros(3)
        for tokens, items in ((1, 1), (64, 1), (64, 16)):
            self._add(tokens, items, self.seconds(tokens, items), PRIOR)

    @classmethod
    def of_two(cls, one: float, full: float, size: int) -> "CostModel":
        """Guessed from the seconds of a batch of one and of a full one."""
        item = max(0.0, full - one) / max(size - 1, 1)
        return cls(0.0, item, max(LEAST, one - item))

    def seconds(self, tokens: int, items: int) -> float:
        """What a batch of `items` will take that has `tokens` of them, padding included."""
        token, item, batch = self.coefficients
        return max(LEAST, float(token * tokens + item * items + batch))

    def learn(self, tokens: int, items: int, seconds: float) -> None:
        """Take into account what a batch took."""
        self.products *= MEMORY
        self.targets *= MEMORY
        self._add(tokens, items, max(LEAST, seconds), 1.0)
        # The root of the normal equations is the same problem in three rows.
        root = np.linalg.cholesky(self.products + 1e-9 * np.diag(self.products.diagonal()))
        self.coefficients, _ = nnls(root.T, np.linalg.solve(root, self.targets))

    def _add(self, tokens: int, items: int, seconds: float, weight: float) -> None:
        row = np.array([tokens, items, 1.0]) / seconds
        self.products += weight * np.outer(row, row)
        self.targets += weight * row
