"""N-grams of tokens, smoothed: interpolated, modified Kneser-Ney.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling",
Computer Speech and Language 13, 1999, sections 3 and 4.1: three discounts an order, lower orders
from the number of different tokens before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALES", "NGram", "tuned_ngram"]

Codes = NDArray[np.int64]
Doubles = NDArray[np.float64]

SCALES = (0.6, 0.8, 1.0, 1.2)  # of the estimated discounts, chosen in validation
LEAST_DISCOUNT = 0.05  # what is never seen is not impossible
MAX_GRAMS = 2**62  # different ones that an int64 tells apart


class _Table(NamedTuple):
    """One order: its grams with their counts, and their contexts."""

    grams: Codes  # sorted
    counts: Doubles
    discounts: Doubles  # of each gram
    contexts: Codes  # sorted
    totals: Doubles  # of the counts of each context
    freed: Doubles  # of its discounts


class NGram:
    """Probabilities of tokens by those before them, [N] of 0 to ``num_tokens`` - 1.

    A gram is a number: its tokens as digits, the oldest first.
    """

    def __init__(self, codes: Codes, num_tokens: int, order: int, scale: float = 1.0) -> None:
        if num_tokens**order > MAX_GRAMS:
            raise ValueError(f"{order}-grams of {num_tokens} tokens are too many")
        self.num_tokens, self.order = num_tokens, order
        self._tables = []
        for n in range(1, order + 1):
            if n == order:
                found = _grams(codes, np.arange(n - 1, len(codes)), num_tokens, n)
            else:  # each is counted once for every token before it
                longer = np.unique(_grams(codes, np.arange(n, len(codes)), num_tokens, n + 1))
                found = longer % num_tokens**n
            self._tables.append(_table(found, num_tokens, scale))

    def probabilities(self, codes: Codes, places: Codes) -> Doubles:
        """Return those of the tokens at some places, each by the ones before it."""
        p = np.full(len(places), 1.0 / self.num_tokens)
        for n, table in enumerate(self._tables, 1):
            grams = _grams(codes, places, self.num_tokens, n)
            k, is_known = _find(table.grams, grams)
            left = np.where(is_known, table.counts[k] - table.discounts[k], 0.0)
            k, is_known = _find(table.contexts, grams // self.num_tokens)
            p = np.where(is_known, (left + table.freed[k] * p) / table.totals[k], p)
        return p

    def bits(self, codes: Codes, places: Codes) -> float:
        """Return the mean cross-entropy of the tokens at some places, in bits."""
        return float(-np.log2(self.probabilities(codes, places)).mean())


def _grams(codes: Codes, places: Codes, num_tokens: int, n: int) -> Codes:
    """Return the grams that end at some places."""
    grams = np.zeros(len(places), np.int64)
    for back in range(n - 1, -1, -1):
        grams = grams * num_tokens + codes[places - back]
    return grams


def _table(found: Codes, num_tokens: int, scale: float) -> _Table:
    grams, counts = np.unique(found, return_counts=True)
    discounts = scale * _discounts(counts)[np.minimum(counts, 3) - 1]
    discounts = np.minimum(discounts, counts)
    contexts, first = np.unique(grams // num_tokens, return_index=True)
    totals = np.add.reduceat(counts.astype(np.float64), first)
    freed = np.add.reduceat(discounts, first)
    return _Table(grams, counts.astype(np.float64), discounts, contexts, totals, freed)


def _discounts(counts: Codes) -> Doubles:
    """Return those of counts 1, 2, and 3 or more: equation 26 of the source."""
    n1, n2, n3, n4 = (max(int(np.count_nonzero(counts == k)), 1) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2.0 * n2)
    found = [1.0 - 2.0 * y * n2 / n1, 2.0 - 3.0 * y * n3 / n2, 3.0 - 4.0 * y * n4 / n3]
    return np.clip(found, LEAST_DISCOUNT, [1.0, 2.0, 3.0])


def _find(known: Codes, wanted: Codes) -> tuple[Codes, NDArray[np.bool_]]:
    """Return where each one stands among those that are known, and whether it is there."""
    k = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return k, known[k] == wanted


def tuned_ngram(
    codes: Codes, stops: tuple[int, int], num_tokens: int, order: int, scales: Sequence[float]
) -> tuple[NGram, float]:
    """Fit to the tokens before the second stop; how, those from the first to it have chosen.

    Returns it and the scale of its discounts.
    """
    first, second = stops
    places = np.arange(max(first, order), second)

    def loss(scale: float) -> float:
        return NGram(codes[:first], num_tokens, order, scale).bits(codes, places)

    best = min(scales, key=loss)
    return NGram(codes[:second], num_tokens, order, best), best
