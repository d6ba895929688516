"""The files that a training writes, checked before it begins: none of them is somebody else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from streamrnn.errors import ModelFileError, TrainingError
from streamrnn.model.file import METADATA_KEY
from streamrnn.model.tensor_file import read_tensor_file
from streamrnn.training.config_file import is_written_config
from streamrnn.training.fit.checkpoint import is_checkpoint
from streamrnn.training.search.store import is_store

__all__ = [
    "ENDINGS", "check_data_name", "check_model_path", "check_outputs", "checkpoint_path",
    "chosen_path", "configuration_path", "search_path",
]  # fmt: skip


ENDINGS = ("checkpoint", "search")
"""Of the files beside a model's that hold its training while it runs."""


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse an output that cannot be written, or is an input or another output.

    Both are paths by what they are, such as ``the data``; links are followed.
    """
    taken = dict(inputs)
    for what, path in outputs.items():
        if not path.parent.is_dir():
            raise TrainingError(f"the directory {path.parent} does not exist; make it first")
        if path.is_dir():
            raise TrainingError(f"{path} is a directory; {what} is a file")
        for other, place in taken.items():
            if _is_same(path, place):
                raise TrainingError(f"{path} is {other}; write {what} to another file")
        taken[what] = path


def check_data_name(path: str) -> None:
    """Refuse a name that neither a report nor a configuration can hold: it is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(
            f"the path of the data, {path!a}, is no UTF-8, so that the model's report and its "
            "configuration cannot name the file; rename it"
        ) from error


def check_model_path(path: Path) -> None:
    """Refuse to write the model over a file that is none."""
    if path.suffix == ".toml":
        raise TrainingError(f"{path} is the model's file; .toml is kept for its configuration")
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    try:
        is_model = METADATA_KEY in read_tensor_file(path).metadata
    except ModelFileError:
        is_model = False
    if not is_model:
        raise TrainingError(
            f"{path} exists and is no model of StreamRNN; it is not overwritten: name another file"
        )


def checkpoint_path(model: Path, resume: bool) -> Path:
    """Return where a training is kept while it runs; check that it can begin, or go on."""
    path = model.with_name(f"{model.name}.checkpoint")
    trials = search_path(model)
    if not resume and trials.exists():
        raise TrainingError(
            f"{trials} holds a search that was not ended: go on with it (--resume), or remove the "
            "file to begin anew"
            if is_store(trials)
            else f"{trials} exists and is no search of a training; it is not overwritten"
        )
    if resume and not path.exists() and not trials.exists():
        raise TrainingError(
            f"{path} does not exist, so that there is nothing to go on with: the training has "
            "ended, or never began; leave --resume out to begin it"
        )
    if not resume and path.exists():
        raise TrainingError(
            f"{path} holds a training that was not ended: go on with it (--resume), or remove the "
            "file to begin anew"
            if is_checkpoint(path)
            else f"{path} exists and is no checkpoint of a training; it is not overwritten"
        )
    return path


def search_path(model: Path) -> Path:
    """Return where the trials of a search are kept while it runs."""
    return model.with_name(f"{model.name}.search")


def chosen_path(model: Path) -> Path:
    """Return where the measured model goes if a refit on all rows takes its place."""
    return model.with_name(f"{model.stem}.chosen{model.suffix}")


def configuration_path(model: Path, source: Path | None) -> Path:
    """Return where the configuration with all choices goes: beside the model.

    That is ``MODEL.toml``; or ``MODEL.trained.toml`` (``trained2`` and so on), if that is a file
    of the user's own: the ``source`` that the training was told by, or one that no training has
    written.
    """
    suffixes = [".toml", ".trained.toml", *(f".trained{k}.toml" for k in range(2, 100))]
    for path in (model.with_suffix(suffix) for suffix in suffixes):
        is_source = source is not None and _is_same(path, source)
        if not is_source and (not path.exists() or is_written_config(path)):
            return path
    raise TrainingError(
        f"there is no name left for the configuration of {model}: its directory holds too many "
        "files .toml"
    )


def _is_same(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist
        return False
