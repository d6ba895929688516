"""Catalogue: what a server has been told about models while it ran, for its next start.

One JSON file in the state directory, replaced as a whole, and beside it the weight files of the
models that were loaded: copies, by their SHA-256, so that what happens in the folder that they came
from changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamrnn.errors import ModelError, StartError
from streamrnn.model.model import Model

__all__ = [
    "CATALOGUE_FILE",
    "MODELS_DIRECTORY",
    "POLICIES",
    "Catalogue",
    "Content",
    "Loaded",
    "Share",
    "SwapRule",
]

CATALOGUE_FILE, MODELS_DIRECTORY = "models.json", "models"  # in a state directory
POLICIES = ("keep", "carry", "reset")
_VERSION, _FILE_MODE = 1, 0o600
_MAX_FILE_BYTES = 2**24
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class SwapRule(NamedTuple):
    """To which version a version's streams go on, and how: one of `POLICIES` but ``keep``."""

    to: str
    policy: str


class Share(NamedTuple):
    """The version that so many of 10,000 new streams get instead of the alias' own."""

    name: str
    share: int


class Loaded(NamedTuple):
    """A model that was loaded: of its file and of itself the SHA-256."""

    sha256: str
    fingerprint: str


class Content(NamedTuple):
    """All that a catalogue says."""

    models: Mapping[str, Loaded] = {}
    aliases: Mapping[str, str] = {}  # family -> name of the version that new streams get
    shares: Mapping[str, Share] = {}  # by family
    swaps: Mapping[str, SwapRule] = {}  # by the name of the version that is left


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
        if directory is not None and (directory / CATALOGUE_FILE).exists():
            self.content = _read(directory / CATALOGUE_FILE)

    def with_loaded(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Return the models that were loaded before, and after them others.

        Raises
        ------
        StartError
            If a file is not there, or has changed; or others are named as those, and are different.
        """
        loaded = self._load()
        for name, model in models.items():
            if name in loaded and loaded[name].fingerprint != model.fingerprint:
                raise StartError(
                    f"the state directory has another model {name!r}, which was loaded while the "
                    "server ran: give this one another version (NAME@VERSION=PATH)"
                )
        return {**loaded, **models}

    def _load(self) -> dict[str, Model]:
        models = {}
        for name, loaded in self.content.models.items():
            path = self._path_of(loaded.sha256)
            try:
                data = path.read_bytes()
                model = Model.load(path)
            except (OSError, ModelError) as error:
                raise StartError(f"cannot load model {name!r} of the catalogue: {error}") from error
            if hashlib.sha256(data).hexdigest() != loaded.sha256:
                raise StartError(f"{path} has changed since model {name!r} was loaded from it")
            if model.fingerprint != loaded.fingerprint:
                raise StartError(f"{path} holds another model than {name!r} of the catalogue")
            models[name] = model
        return models

    def keep_file(self, data: bytes) -> str:
        """Keep a copy of a weight file; return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self._directory is not None:
            path = self._path_of(sha256)
            path.parent.mkdir(0o700, exist_ok=True)
            _write(path, data)
            _sync_directory(self._directory)
        return sha256

    def commit(self, content: Content) -> None:
        """Let the catalogue say something else: on disk when this returns, or not at all.

        Raises
        ------
        OSError
            If it cannot be written; what it said before holds.
        """
        if self._directory is not None:
            fields = {
                "version": _VERSION,
                "models": {name: each._asdict() for name, each in content.models.items()},
                "aliases": dict(content.aliases),
                "shares": {name: each._asdict() for name, each in content.shares.items()},
                "swaps": {name: each._asdict() for name, each in content.swaps.items()},
            }
            text = json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True)
            _write(self._directory / CATALOGUE_FILE, text.encode())
        self.content = content

    def drop_files(self) -> None:
        """Delete copies of weight files that no model of the catalogue has any more."""
        if self._directory is None:
            return
        used = {self._path_of(each.sha256) for each in self.content.models.values()}
        for path in (self._directory / MODELS_DIRECTORY).glob("*.safetensors"):
            if path not in used:
                path.unlink(missing_ok=True)

    def _path_of(self, sha256: str) -> Path:
        assert self._directory is not None
        return self._directory / MODELS_DIRECTORY / f"{sha256}.safetensors"


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
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Content:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        fields = json.loads(data)
        if fields["version"] != _VERSION:
            raise ValueError(f"it is of version {fields['version']!r}, known is {_VERSION}")
        content = Content(
            {_text(k): Loaded(**v) for k, v in fields["models"].items()},
            {_text(k): _text(v) for k, v in fields["aliases"].items()},
            {_text(k): Share(**v) for k, v in fields["shares"].items()},
            {_text(k): SwapRule(**v) for k, v in fields["swaps"].items()},
        )
        _check(content)
    except OSError as error:
        raise StartError(f"cannot read the catalogue of models: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StartError(f"{path} is no catalogue of models: {error!r}") from error
    return content


def _check(content: Content) -> None:
    for loaded in content.models.values():
        if not all(_SHA256.fullmatch(_text(each)) for each in loaded):
            raise ValueError(f"{loaded} is no pair of SHA-256")
    for share in content.shares.values():
        if type(share.share) is not int or not 0 < share.share <= 10_000:
            raise ValueError(f"{share} is no share of 10,000")
        _text(share.name)
    for rule in content.swaps.values():
        if _text(rule.policy) not in POLICIES[1:]:
            raise ValueError(f"{rule} has no policy of {POLICIES[1:]}")
        _text(rule.to)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()
    return value
