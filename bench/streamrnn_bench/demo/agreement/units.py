"""Which unit carries the subject's number over what distracts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamrnn.reference.gates import LayerGates
from streamrnn_bench.demo.agreement.grammar import Sentence

__all__ = ["KEEPS", "RESETS", "TELLS", "Unit", "best_unit", "measure_units"]

# From which values on a unit does as the textbooks tell it.
TELLS, KEEPS, RESETS = 0.9, 0.8, 0.2


@dataclass(frozen=True)
class Unit:
    """What one unit of an LSTM does, on average over sentences."""

    index: int
    tells: float  # correlation of its cell state before the verb with the subject's number
    keeps: float  # forget gate over the words between subject and verb, mean
    resets: float  # smallest forget gate from the verb of the sentence before to the subject

    @property
    def score(self) -> float:
        """How well its forget gate follows: the share that it tells, times keeping less reset."""
        return abs(self.tells) * (self.keeps - self.resets)

    @property
    def follows(self) -> bool:
        """Whether it carries the number as the textbooks tell it."""
        return abs(self.tells) >= TELLS and self.keeps >= KEEPS and self.resets <= RESETS


def measure_units(found: LayerGates, sentences: Sequence[Sentence]) -> list[Unit]:
    """Measure all units on sentences that were read one after the other, as one stream.

    The first one, which no sentence stands before, is left out.
    """
    forget, cell = found.gates["f"][0], found.states["c"][0]
    told, kept, reset = [], [], []
    start = len(sentences[0].words)
    for before, sentence in pairwise(sentences):
        subject, verb = start + sentence.subject, start + sentence.verb
        last_verb = start - len(before.words) + before.verb
        told.append(cell[verb - 1])
        kept.append(forget[subject + 1 : verb].mean(axis=0))
        reset.append(forget[last_verb : subject + 1].min(axis=0))
        start += len(sentence.words)
    numbers = np.array([2.0 * sentence.number - 1.0 for sentence in sentences[1:]])
    tells = _correlation(np.array(told), numbers)
    keeps, resets = np.mean(kept, axis=0), np.mean(reset, axis=0)
    return [Unit(k, float(tells[k]), float(keeps[k]), float(resets[k])) for k in range(len(tells))]


def _correlation(states: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each column's correlation with the numbers; 0 of one that never changes."""
    states, numbers = states - states.mean(axis=0), numbers - numbers.mean()
    norms = np.sqrt((states**2).sum(axis=0) * (numbers**2).sum())
    found: NDArray[np.float64] = (states * numbers[:, None]).sum(axis=0) / np.maximum(norms, 1e-12)
    return found


def best_unit(units: Sequence[Unit]) -> Unit:
    """Return the unit with the largest score."""
    return max(units, key=lambda unit: unit.score)
