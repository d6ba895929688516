"""An LSTM learns which number a verb has, and is judged beside what needs no memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamrnn import Engine
from streamrnn.model.model import Model
from streamrnn.training.config import TrainingConfig
from streamrnn.training.run.progress import TrainingProgress
from streamrnn.training.train import train_to_file
from streamrnn_bench.demo.agreement.grammar import NUMBERS, Sentence, write_table
from streamrnn_bench.demo.output import Output

__all__ = ["Judged", "Parts", "judge", "learn", "numbers_of", "words_as_inputs"]

UPDATES, UNITS, LEARNING_RATE = 1000, 8, 0.02
N_GRAM = 5

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """Sentences to learn from, to choose by, and to judge by: as long as those, and longer."""

    train: list[Sentence]
    validation: list[Sentence]
    short: list[Sentence]
    long: list[Sentence]


def learn(parts: Parts, path: Path, updates: int, output: Output) -> Model:
    """Train on one stream of words; return the model, which the engine has reproduced."""
    table = path.with_name("agreement.csv")
    write_table(
        {
            "train": parts.train,
            "validation": parts.validation,
            "test": parts.short + parts.long,
        },
        table,
    )
    config = TrainingConfig(
        path=str(table),
        predict=("next verb",),
        time="",
        inputs=("word",),
        horizon=(0,),
        split_by="column:part",
        layers=(f"lstm:{UNITS}",),
        updates=updates or UPDATES,
        learning_rate=LEARNING_RATE,
    )
    path.with_name(f"{path.name}.checkpoint").unlink(missing_ok=True)
    with TrainingProgress(output.console) as progress:
        return train_to_file(config, path, progress).model


def words_as_inputs(model: Model, sentences: Sequence[Sentence]) -> NDArray[np.float32]:
    """Return the words one after the other as inputs, [T, 1]."""
    index = {name: k for k, name in enumerate(model.spec.inputs[0].categories)}
    words = [index[word] for sentence in sentences for word in sentence.words]
    return np.array(words, np.float32)[:, None]


def numbers_of(model: Model, y: NDArray[np.floating], sentences: Sequence[Sentence]) -> list[int]:
    """Return which number the outputs of a stream of sentences, [T, 2], expect of each verb."""
    places = [NUMBERS.index(item.name) for item in model.spec.outputs]
    found, start = [], 0
    for sentence in sentences:
        found.append(places[int(np.argmax(y[start + sentence.verb - 1]))])
        start += len(sentence.words)
    return found


@dataclass(frozen=True)
class Judged:
    """Which sentences each way gets right."""

    right: dict[str, Bools]  # by way, of every sentence


def judge(model: Model, parts: Parts, sentences: Sequence[Sentence]) -> Judged:
    """Let the engine read the sentences as one new stream, and compare."""
    numbers = np.array([sentence.number for sentence in sentences])
    y = Engine(model).steps("reader", words_as_inputs(model, sentences))
    most = Counter(sentence.number for sentence in parts.train).most_common(1)[0][0]
    n_gram = _NGram(parts.train)
    expected = {
        f"the LSTM, {UNITS} units": numbers_of(model, y, sentences),
        "always the more frequent number": [most] * len(sentences),
        "the number of the last noun": [sentence.nouns[-1] for sentence in sentences],
        f"the last {N_GRAM - 1} words ({N_GRAM}-gram)": [n_gram(item) for item in sentences],
    }
    return Judged({way: np.array(found) == numbers for way, found in expected.items()})


class _NGram:
    """Which verb's number came oftest after the same words; fewer words where those are new."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self._counts: dict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
        for sentence in sentences:
            for context in self._contexts(sentence):
                self._counts[context][sentence.number] += 1

    def __call__(self, sentence: Sentence) -> int:
        known = next(each for each in self._contexts(sentence) if each in self._counts)
        return self._counts[known].most_common(1)[0][0]

    def _contexts(self, sentence: Sentence) -> list[tuple[str, ...]]:
        """Return what stands before the verb, the longest first, nothing last."""
        before = sentence.words[: sentence.verb]
        return [before[len(before) - n :] for n in range(min(N_GRAM - 1, len(before)), -1, -1)]
