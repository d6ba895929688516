"""Catalogue: what a server has been told about models while it ran, for its next start.

One JSON file in the state directory (`streamrnn.state.catalogue`), replaced as a whole, and beside
it copies of the weight files of models that were loaded: so what happens in the folder that they
came from changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from streamrnn.errors import StartError, StateError
from streamrnn.model.model import Model
from streamrnn.state.catalogue import (
    CATALOGUE_FILE,
    MODELS_DIRECTORY,
    Content,
    encode_content,
    loaded_models,
    parse_content,
    read_content,
    weights_path,
)
from streamrnn.state.journal import sync_directory

__all__ = ["Catalogue"]

_FILE_MODE = 0o600


class Catalogue:
    """A catalogue, in a state directory or, without one, for as long as the server runs.

    Raises
    ------
    StartError
        If the file cannot be read, or is none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.content = Content()
        self._begun_as: bytes | None = None
        if directory is not None:
            try:
                self._begun_as = read_content(directory)
                self.content = parse_content(self._begun_as, directory / CATALOGUE_FILE)
            except StateError as error:
                raise StartError(str(error)) from error

    def with_loaded(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Return the models that were loaded before, and after them others.

        Raises
        ------
        StartError
            If a file is not there, or has changed; or others are named as those, and are different.
        """
        loaded: dict[str, Model] = {}
        if self._directory is not None:
            try:
                loaded.update(loaded_models(self.content, self._directory))
            except StateError as error:
                raise StartError(str(error)) from error
        for name, model in models.items():
            if name in loaded and loaded[name].fingerprint != model.fingerprint:
                raise StartError(
                    f"the state directory has another model {name!r}, which was loaded while the "
                    "server ran: give this one another version (NAME@VERSION=PATH)"
                )
        return {**loaded, **models}

    def take_over(self) -> None:
        """Begin to use the directory, which is this server's alone now.

        Raises
        ------
        StartError
            If the server before has changed the catalogue since it was read, or the directory
            cannot be written.
        """
        if self._directory is None:
            return
        try:
            if read_content(self._directory) != self._begun_as:
                raise StartError(
                    f"the server before this one has changed the catalogue of models in "
                    f"{self._directory} while this one started: start it again"
                )
            self.drop_files()
        except (StateError, OSError) as error:
            raise StartError(f"cannot use the catalogue of models: {error}") from error

    def keep_file(self, data: bytes) -> str:
        """Keep a copy of a weight file; return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self._directory is not None:
            path = weights_path(self._directory, sha256)
            path.parent.mkdir(0o700, exist_ok=True)
            _write(path, data)
            sync_directory(self._directory)
        return sha256

    def commit(self, content: Content) -> None:
        """Let the catalogue say something else: on disk when this returns, or not at all.

        Raises
        ------
        OSError
            If it cannot be written; what it said before holds.
        """
        if self._directory is not None:
            _write(self._directory / CATALOGUE_FILE, encode_content(content))
        self.content = content

    def drop_files(self) -> None:
        """Delete copies that no model of the catalogue has any more, and what a crash has left."""
        if self._directory is None:
            return
        used = {weights_path(self._directory, each.sha256) for each in self.content.models.values()}
        unfinished = self._directory.glob(f".{CATALOGUE_FILE}-*")
        for path in (*unfinished, *(self._directory / MODELS_DIRECTORY).glob("*.safetensors*")):
            if path not in used:
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and wait until it is on disk."""
    descriptor, whole = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, path)
    except BaseException:
        Path(whole).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
