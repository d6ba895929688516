"""Errors that StreamRNN raises for its users.

The tree names the part that cannot be used::

    StreamRNNError
    ├── ModelError            a model is not valid
    │   ├── SpecError         its description contradicts itself
    │   └── ModelFileError    its file is damaged, or no weight file at all
    ├── InputError            an input does not fit the model (the caller's fault)
    ├── DataError             a table or a training file cannot be used
    ├── TrainingError         training went wrong (diverged, nothing to train on)
    │   └── TrainingStopped       it was stopped before there was a model
    ├── StreamError           a stream is unknown, or the capacity is used up
    ├── StateError            stored state cannot be used
    │   ├── RecordError           a stream's record is torn, changed, foreign or of another version
    │   └── StoreError            its directory cannot be read or written
    ├── DeviceError           a GPU cannot be used, or has failed
    └── StartError            a server could not start (exit code 3)

A message says what came, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice

from streamrnn_client.words import counted

__all__ = [
    "DataError",
    "DeviceError",
    "InputError",
    "ModelError",
    "ModelFileError",
    "RecordError",
    "SpecError",
    "StartError",
    "StateError",
    "StoreError",
    "StreamError",
    "StreamRNNError",
    "TrainingError",
    "TrainingStopped",
    "counted",
    "listed",
    "suggestion",
]

_MAX_LISTED = 40
_MAX_LETTERS = 100  # of a name in a list


class StreamRNNError(Exception):
    """Root of every error raised for a user of StreamRNN."""


class ModelError(StreamRNNError):
    """A model is not valid: shapes, names or values do not fit."""


class SpecError(ModelError):
    """A model's description contradicts itself."""


class ModelFileError(ModelError):
    """A weight file is damaged, truncated, of another kind, or not readable."""


class InputError(StreamRNNError, ValueError):
    """An input does not fit the model: wrong length, name, category or value."""


class DataError(StreamRNNError):
    """A table of data cannot be read, or lacks what was asked of it."""


class TrainingError(StreamRNNError):
    """Training cannot go on: it diverged, or there is nothing to learn from."""


class TrainingStopped(TrainingError):
    """A training was stopped, as its user asked, before there was a model."""


class StreamError(StreamRNNError, KeyError):
    """A stream is unknown, or there is no capacity for another one."""

    def __str__(self) -> str:
        # KeyError would print the message in quotes, as it prints keys.
        return str(self.args[0]) if self.args else ""


class StateError(StreamRNNError):
    """Stored state cannot be used."""


class RecordError(StateError):
    """A stream's record is torn, changed, foreign, or of a version that is not known."""


class StoreError(StateError):
    """A state directory cannot be read or written: the disk is full, or it fails."""


class DeviceError(StreamRNNError):
    """A GPU has failed, or cannot be used: none, no driver, too old, too small."""


class StartError(StreamRNNError):
    """A server could not start: its address is taken, a model is missing, and so on."""


class ServerError(StreamRNNError):
    """A part of a running server has failed, so that it cannot go on."""


def listed(names: Collection[str]) -> str:
    """Return names for a message, separated by commas: the first ones, where there are many."""
    first = ", ".join(name[:_MAX_LETTERS] for name in islice(names, _MAX_LISTED))
    return first if len(names) <= _MAX_LISTED else f"{first}, ... ({len(names)} in all)"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` if a known name is near, else nothing."""
    by_lower = {item.lower(): item for item in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
