"""A training on disk while it runs, so that it goes on, to the bit, after it was stopped.

The file is a safetensors file: every array of the trainer, and one metadata entry, JSON, with the
counts, the state of the random numbers, a digest, and what the training belongs to. It is
replaced as a whole after every evaluation; nothing in it is run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError, TrainingError
from streamrnn.model.checks import shown
from streamrnn.model.tensor_file import TensorFile, read_tensor_file, write_tensor_file
from streamrnn.training.fit.trainer import Counts, Evaluation, Trainer
from streamrnn.training.network.layers import Array

__all__ = ["Checkpoint", "is_checkpoint"]

METADATA_KEY = "streamrnn.training"
_FORMAT = 3
_NUMBERS = tuple(item for item in fields(Evaluation) if item.name != "memory")
_DAMAGED = (KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Checkpoint:
    """A training's file.

    ``identity`` is what decides how the training goes on, as JSON types by name; another one is
    refused. Without ``resume`` nothing is restored.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self.path, self.identity, self.resume = path, dict(identity), resume

    def keep(self, trainer: Trainer) -> None:
        """Write a trainer; the old file or the new one is there, whenever the program ends."""
        arrays = {name: np.ascontiguousarray(value) for name, value in _arrays(trainer).items()}
        about = {
            "format": _FORMAT,
            "identity": self.identity,
            "counts": asdict(trainer.counts),
            "rng": trainer.rng_before,
            "memory": [each.memory for each in trainer.history],
        }
        metadata = {METADATA_KEY: json.dumps(about | {"sha256": _digest(about, arrays)})}
        try:
            write_tensor_file(self.path, arrays, metadata)
        except ModelFileError as error:
            raise TrainingError(str(error)) from error

    def restore(self, trainer: Trainer) -> None:
        """Bring a new trainer to where the kept one was.

        Raises `TrainingError` if the file is damaged or no checkpoint, or belongs to a training of
        other data or settings: what differs is named.
        """
        if not self.resume:
            return
        try:
            file = read_tensor_file(self.path)
            about = _about(file)
            self._check_identity(about["identity"])
            _fill(trainer, about, {name: item.array() for name, item in file.tensors.items()})
        except (ModelFileError, *_DAMAGED) as error:
            raise TrainingError(
                f"{self.path} is damaged, or no checkpoint of this version: {error}"
            ) from error

    def remove(self) -> None:
        """Remove the file: the training has ended."""
        self.path.unlink(missing_ok=True)

    def is_of_this(self) -> bool:
        """Tell whether the file is there and of this training."""
        try:
            self._check_identity(_about(read_tensor_file(self.path))["identity"])
        except (ModelFileError, TrainingError, *_DAMAGED):
            return False
        return True

    def _check_identity(self, kept: Any) -> None:
        if not isinstance(kept, dict):
            raise ValueError(f"its identity is {shown(kept)}")
        absent = object()
        own: dict[str, Any] = json.loads(json.dumps(self.identity))
        differing = [
            f"{name} is {shown(own.get(name))}, was {shown(kept.get(name))}"
            for name in sorted({*own, *kept})
            if own.get(name, absent) != kept.get(name, absent)
        ]
        if differing:
            raise TrainingError(
                f"{self.path} is of another training: {'; '.join(differing)}. Go on with what it "
                "was begun with, or remove the file to begin anew"
            )


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a checkpoint, damaged perhaps."""
    try:
        return METADATA_KEY in read_tensor_file(path).metadata
    except ModelFileError:
        return False


def _arrays(trainer: Trainer) -> dict[str, Array]:
    """Return every array that changes; all but the history are the trainer's own."""
    named: dict[str, Array] = {
        "weights": trainer.network.flat,
        "average": trainer.average,
        "best": trainer.best,
        **trainer.optimiser.moments,
    }
    for kind, states in (("ends", trainer.ends), ("state", trainer.state)):
        for k, layer in enumerate(states):
            named |= {f"{kind}.{k}.{s}": state for s, state in enumerate(layer)}
    history = [[getattr(each, item.name) for item in _NUMBERS] for each in trainer.history]
    named["history"] = np.array(history, np.float64).reshape(len(history), len(_NUMBERS))
    return named


def _digest(about: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _about(file: TensorFile) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(file.metadata[METADATA_KEY])
    if about["format"] != _FORMAT:
        raise ValueError(f"its format is {shown(about['format'])}, this one reads {_FORMAT}")
    arrays = {name: item.array() for name, item in file.tensors.items()}
    given = about.pop("sha256")
    if given != _digest(about, arrays):
        raise ValueError("its bytes are not those that were written")
    return about


def _fill(trainer: Trainer, about: dict[str, Any], kept: Mapping[str, Array]) -> None:
    """Fill a new trainer, whose arrays say what each kept one must be like."""
    trainer.rng.bit_generator.state = about["rng"]
    trainer.begin_epoch()
    trainer.counts = _counts(about["counts"], len(trainer.plan))
    if trainer.counts.num_pieces:
        num_rows = len(trainer.plan[trainer.counts.num_pieces - 1].rows)
        trainer.state = trainer.network.initial_state(num_rows)
    trainer.history = _history(kept["history"], about["memory"])
    if trainer.counts.best_evaluation > len(trainer.history):
        raise ValueError(f"evaluation {trainer.counts.best_evaluation} is the best one")
    expected = _arrays(trainer)
    if set(expected) - set(kept):
        raise ValueError(f"it has no {', '.join(sorted(set(expected) - set(kept)))}")
    for name, value in expected.items():
        if (kept[name].shape, kept[name].dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"{name} is {kept[name].dtype} {kept[name].shape}; {value.dtype} {value.shape} "
                "was expected"
            )
        value[...] = kept[name]
    trainer.optimiser.num_updates = trainer.counts.num_updates


def _counts(given: dict[str, Any], num_pieces: int) -> Counts:
    counts = Counts(**given)
    for item in fields(Counts):
        value = getattr(counts, item.name)
        wanted = (int, float) if item.type == "float" else int
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError(f"{item.name} is {shown(value)}")
        if not math.isfinite(value) or (value < 0 and item.name != "loss_sum"):
            raise ValueError(f"{item.name} is {shown(value)}")
    if counts.num_pieces >= num_pieces:
        raise ValueError(f"{counts.num_pieces} pieces are done, of {num_pieces}")
    return counts


def _history(rows: Array, probes: Any) -> list[Evaluation]:
    if rows.ndim != 2 or rows.shape[1] != len(_NUMBERS):
        raise ValueError(f"the history has the shape {rows.shape}")
    if not isinstance(probes, list) or not all(p is None or isinstance(p, dict) for p in probes):
        raise ValueError(f"what it remembers is {shown(probes)}")
    history = []
    for row, memory in zip(rows.tolist(), probes, strict=True):
        values = {item.name: value for item, value in zip(_NUMBERS, row, strict=True)}
        values["memory"] = memory
        for name in ("num_updates", "max_updates", "trial"):
            values[name] = int(values[name])
        history.append(Evaluation(**values))
    return history
