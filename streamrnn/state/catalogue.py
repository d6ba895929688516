"""Catalogue: what a server has been told about models while it ran, as it stands on disk.

One JSON file in the state directory, and beside it the weight files of the models that were loaded,
by their SHA-256. All of it is checked here, whoever brought it: a server's start, or a backup.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamrnn.errors import ModelError, StateError
from streamrnn.model.model import Model

__all__ = [
    "CATALOGUE_FILE",
    "MAX_MODELS",
    "MAX_NAME_BYTES",
    "MODELS_DIRECTORY",
    "POLICIES",
    "WEIGHTS",
    "Content",
    "Loaded",
    "Share",
    "SwapRule",
    "encode_content",
    "loaded_models",
    "name_fault",
    "parse_content",
    "read_content",
    "weights_path",
]

CATALOGUE_FILE, MODELS_DIRECTORY = "models.json", "models"  # in a state directory
WEIGHTS = re.compile(r"[0-9a-f]{64}\.safetensors", re.ASCII)  # a file of that folder
POLICIES = ("keep", "carry", "reset", "replay")
MAX_NAME_BYTES, MAX_MODELS = 128, 2**14
_VERSION = 1
_MAX_BYTES = 2**24
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, bytes that are no UTF-8, ends of lines


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


def name_fault(name: str) -> str | None:
    """Return what is wrong with a model's name, if anything is."""
    if not 1 <= len(name.encode(errors="replace")) <= MAX_NAME_BYTES:
        return f"a model's name has 1 to {MAX_NAME_BYTES} bytes"
    if any(unicodedata.category(char) in _NO_TEXT for char in name):
        return "a model's name is one line of text in UTF-8"
    alias, at, version = name.partition("@")
    if at and not (alias and version):
        return "a version is named NAME@VERSION, and neither of the two is empty"
    return None


def read_content(directory: Path) -> bytes | None:
    """Return a state directory's catalogue as it is on disk; None if there is none.

    Raises
    ------
    StateError
        If it cannot be read, or is too long for one.
    """
    path = directory / CATALOGUE_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read the catalogue of models: {error}") from error
    if len(data) > _MAX_BYTES:
        raise StateError(f"{path} is no catalogue of models: it has more than {_MAX_BYTES} bytes")
    return data


def parse_content(data: bytes | None, path: Path) -> Content:
    """Return what a catalogue says.

    Parameters
    ----------
    data : bytes or None
        Of `read_content`.
    path : Path
        Where it comes from, for the words of errors.

    Raises
    ------
    StateError
        If it is none.
    """
    if data is None:
        return Content()
    try:
        fields = json.loads(data)
        if fields["version"] != _VERSION:
            raise ValueError(f"it is of version {fields['version']!r}, known is {_VERSION}")
        content = Content(
            {_name(k): Loaded(**v) for k, v in fields["models"].items()},
            {_name(k): _name(v) for k, v in fields["aliases"].items()},
            {_name(k): Share(**v) for k, v in fields["shares"].items()},
            {_name(k): SwapRule(**v) for k, v in fields["swaps"].items()},
        )
        _check(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StateError(f"{path} is no catalogue of models: {error!r}") from error
    return content


def encode_content(content: Content) -> bytes:
    """Return what `parse_content` takes."""
    fields = {
        "version": _VERSION,
        "models": {name: each._asdict() for name, each in content.models.items()},
        "aliases": dict(content.aliases),
        "shares": {name: each._asdict() for name, each in content.shares.items()},
        "swaps": {name: each._asdict() for name, each in content.swaps.items()},
    }
    return json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True).encode()


def weights_path(directory: Path, sha256: str) -> Path:
    """Return where a state directory has the copy of a weight file."""
    return directory / MODELS_DIRECTORY / f"{sha256}.safetensors"


def loaded_models(content: Content, directory: Path) -> Iterator[tuple[str, Model]]:
    """Yield the models of a catalogue by name, read from the copies in a state directory.

    Raises
    ------
    StateError
        If a file is not there, or has changed.
    """
    for name, loaded in content.models.items():
        path = weights_path(directory, loaded.sha256)
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            model = Model.load(path)
        except (OSError, ModelError) as error:
            raise StateError(f"cannot load model {name!r} of the catalogue: {error}") from error
        if sha256 != loaded.sha256:
            raise StateError(f"{path} has changed since model {name!r} was loaded from it")
        if model.fingerprint != loaded.fingerprint:
            raise StateError(f"{path} holds another model than {name!r} of the catalogue")
        yield name, model


def _check(content: Content) -> None:
    if len(content.models) > MAX_MODELS:
        raise ValueError(f"it has {len(content.models)} models; the most are {MAX_MODELS}")
    for loaded in content.models.values():
        if not all(_SHA256.fullmatch(_text(each)) for each in loaded):
            raise ValueError(f"{loaded} is no pair of SHA-256")
    for share in content.shares.values():
        if type(share.share) is not int or not 0 < share.share <= 10_000:
            raise ValueError(f"{share} is no share of 10,000")
        _name(share.name)
    for rule in content.swaps.values():
        if _text(rule.policy) not in POLICIES[1:]:
            raise ValueError(f"{rule} has no policy of {POLICIES[1:]}")
        _name(rule.to)


def _name(value: Any) -> str:
    fault = name_fault(_text(value))
    if fault is not None:
        raise ValueError(f"{value[:MAX_NAME_BYTES]!r}: {fault}")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
