"""Sentences of a small grammar, in which a verb agrees with a noun far before it.

After Linzen, Dupoux and Goldberg, "Assessing the ability of LSTMs to learn syntax-sensitive
dependencies", TACL 4, 2016: nouns between the subject and its verb distract.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["NUMBERS", "Sentence", "sentences", "write_table"]

NUMBERS = ("singular", "plural")
_NOUNS = {
    "thing": (("key", "keys"), ("cabinet", "cabinets"), ("door", "doors"), ("table", "tables"),
              ("picture", "pictures"), ("letter", "letters"), ("window", "windows")),
    "person": (("boy", "boys"), ("girl", "girls"), ("teacher", "teachers"), ("friend", "friends"),
               ("neighbour", "neighbours")),
}  # fmt: skip
_PREPOSITIONS = ("near", "behind", "beside", "under", "of", "with", "to")
_ADJECTIVES = ("old", "small", "red", "heavy", "new")
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
_ENDINGS = {"is": ("here", "lost", "gone"), "was": ("here", "lost", "gone"), "has": ("vanished",)}


@dataclass(frozen=True)
class Sentence:
    """Words from the first ``the`` to the full stop."""

    words: tuple[str, ...]
    subject: int  # place of the subject, which tells the number
    verb: int  # place of the verb
    number: int  # of `NUMBERS`
    nouns: tuple[int, ...]  # the number of every noun before the verb, the subject first

    @property
    def num_distractors(self) -> int:
        """Number of nouns between the subject and the verb."""
        return len(self.nouns) - 1


def sentences(count: int, distractors: tuple[int, int], rng: np.random.Generator) -> list[Sentence]:
    """Draw sentences with so many distractors, from the least to the most, all alike often."""
    least, most = distractors
    return [_sentence(int(rng.integers(least, most + 1)), rng) for _ in range(count)]


def _sentence(num_distractors: int, rng: np.random.Generator) -> Sentence:
    nouns = [pair for pairs in _NOUNS.values() for pair in pairs]
    words: list[str] = []
    numbers = rng.integers(0, 2, num_distractors + 1).tolist()
    subject = 0
    for k, number in enumerate(numbers):
        if k:
            words.append(_PREPOSITIONS[rng.integers(len(_PREPOSITIONS))])
        words.append("the")
        if rng.random() < 0.4:
            words.append(_ADJECTIVES[rng.integers(len(_ADJECTIVES))])
        words.append(nouns[rng.integers(len(nouns))][number])
        subject = subject or len(words) - 1
    pair = _VERBS[rng.integers(len(_VERBS))]
    ending = _ENDINGS[pair[0]]
    verb = len(words)
    words += [pair[numbers[0]], ending[rng.integers(len(ending))], "."]
    return Sentence(tuple(words), subject, verb, numbers[0], tuple(numbers))


def write_table(parts: dict[str, list[Sentence]], path: Path) -> None:
    """Write one stream of words; before each verb stands the number that it must have."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("word", "next verb", "part"))
        for part, drawn in parts.items():
            writer.writerows(_rows(drawn, part))


def _rows(drawn: Iterable[Sentence], part: str) -> Iterable[tuple[str, str, str]]:
    for sentence in drawn:
        for place, word in enumerate(sentence.words):
            is_asked = place == sentence.verb - 1
            yield word, NUMBERS[sentence.number] if is_asked else "", part
