"""Versions of one model, and what a stream that is swapped from one to the other must answer."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np

from streamrnn import Engine
from streamrnn.model.model import Model
from streamrnn.state.record import decode_record, encode_record
from tests.support.models import random_model

NUM_INPUTS, NUM_OUTPUTS = 3, 2


def versions() -> dict[str, Model]:
    """Return three versions: of the second only the weights differ, of the third the layers too."""
    one = random_model(np.random.default_rng(1), [("lstm", 24)], NUM_INPUTS, NUM_OUTPUTS)
    two = random_model(np.random.default_rng(2), [("lstm", 24)], NUM_INPUTS, NUM_OUTPUTS)
    two = Model(one.spec, two.parameters)
    three = random_model(np.random.default_rng(3), [("gru", 40)], NUM_INPUTS, NUM_OUTPUTS)
    return {"m@1": one, "m@2": two, "m@3": three}


MODELS = versions()


def folder(path: Path) -> Path:
    """Write all versions into a folder, as `model load` looks for them."""
    path.mkdir()
    for name, model in MODELS.items():
        model.save(path / f"{name}.safetensors")
    return path


_numbers = itertools.count()


@functools.cache
def engine_of(name: str) -> Engine:
    return Engine(MODELS[name])


class Run:
    """An uninterrupted run of a stream, which may be swapped after any step.

    Its last ``history`` inputs prime the other version of a swap with ``replay``.
    """

    def __init__(self, name: str, history: int = 0) -> None:
        self.inputs: collections.deque[np.ndarray] = collections.deque(maxlen=history)
        self._begin(name)

    def _begin(self, name: str, state: bytes | None = None) -> None:
        self._engine, self._stream = engine_of(name), next(_numbers)
        if state is None:
            self._engine.rows([self._stream])
        else:
            self._engine.import_state(self._stream, state)

    def step(self, x: np.ndarray) -> np.ndarray:
        self.inputs.append(x)
        return self._engine.steps(self._stream, x[np.newaxis])[0]

    def state(self) -> bytes:
        return self._engine.export_state(self._stream)

    def swap(self, name: str, policy: str, state: bytes | None = None) -> None:
        """Go on as another version, with the state that the stream has, or had."""
        record = decode_record(self.state() if state is None else state)
        record = dataclasses.replace(record, fingerprint=MODELS[name].fingerprint)
        self._engine.close(self._stream)
        self._begin(name, encode_record(record) if policy == "carry" else None)
        kept = list(self.inputs)
        if policy != "carry":
            self.inputs.clear()
        if policy == "replay":
            for x in kept:
                self.step(x)


def swapped_after(
    x: np.ndarray, y: np.ndarray, old: str, new: str, policy: str, history: int = 0
) -> int:
    """Return after how many steps a stream was swapped, whose outputs y are; all, if never.

    Each output is compared to the bit with what one side or the other answers; no third is allowed.
    """
    run = Run(old, history)
    num_old = 0
    for k in range(len(x)):
        before = run.step(x[k])
        if not np.array_equal(before, y[k]):
            break
        num_old += 1
    run = Run(old, history)
    for k in range(num_old):
        run.step(x[k])
    if num_old < len(x):
        run.swap(new, policy)
    for k in range(num_old, len(x)):
        np.testing.assert_array_equal(run.step(x[k]), y[k], err_msg=f"step {k + 1}")
    return num_old
