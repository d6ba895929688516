"""Read the files of Keras: an archive ``.keras``, or HDF5 with or without a configuration."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import MAX_REST_BYTES, parse_json
from streamrnn.importers.keras.hdf5 import Hdf5Contents, read_hdf5

__all__ = ["HDF5_MAGIC", "ZIP_MAGIC", "KerasFile", "is_keras_archive", "read_keras_file"]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
_MAX_BYTES = 4 << 30
_MAX_INFLATED = 64 << 20  # of weights that are compressed; Keras compresses none
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
# What zipfile raises for damaged archives.
_DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    OverflowError,
    EOFError,
    IndexError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass
class KerasFile:
    """Contents of a file."""

    path: str
    config: dict[str, Any] | None = None  # None where there are weights alone
    version: str = ""  # of Keras
    weights: Hdf5Contents = field(default_factory=Hdf5Contents)


def is_keras_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a zip archive is one of Keras."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {_CONFIG, _WEIGHTS} <= set(archive.namelist())
    except _DAMAGE:
        return False


def read_keras_file(path: str | os.PathLike[str], *, weights: bool = True) -> KerasFile:
    """Read a ``.keras`` or an HDF5 file; ``weights=False`` reads the configuration alone.

    Raises `ModelFileError` if it is damaged, or the package h5py is not installed.
    """
    found = KerasFile(os.fspath(path))
    try:
        status = os.stat(found.path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise ModelFileError(f"{found.path} is no regular file, or larger than 4 GB")
        with open(found.path, "rb") as file:
            if file.read(4) == ZIP_MAGIC:
                _read_archive(found, weights)
                return found
            file.seek(0)
            found.weights = read_hdf5(file, found.path, weights=weights)
    except _DAMAGE as error:
        raise ModelFileError(f"{found.path} is damaged, or no file of Keras: {error}") from error
    found.version = found.weights.version
    if found.weights.config is not None:
        what = f"the attribute model_config in {found.path}"
        found.config = _object(parse_json(found.weights.config, what), what)
    return found


def _read_archive(found: KerasFile, weights: bool) -> None:
    with zipfile.ZipFile(found.path) as archive:
        what = f"{_CONFIG} in {found.path}"
        found.config = _object(parse_json(_part(archive, _CONFIG), what), what)
        if _METADATA in archive.namelist():
            what = f"{_METADATA} in {found.path}"
            metadata = _object(parse_json(_part(archive, _METADATA), what), what)
            found.version = str(metadata.get("keras_version", ""))[:40]
        if weights:
            with tempfile.TemporaryFile() as file:
                file.write(_part(archive, _WEIGHTS))
                file.seek(0)
                found.weights = read_hdf5(file, f"{_WEIGHTS} in {found.path}")


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    stored = info.compress_type == zipfile.ZIP_STORED
    most = info.compress_size if stored else _MAX_INFLATED
    most = min(most, MAX_REST_BYTES) if name.endswith(".json") else most
    if info.file_size > most:
        raise ModelFileError(f"{name} in {archive.filename} claims {info.file_size} bytes")
    with archive.open(info) as part:
        data = part.read(most + 1)
    if len(data) > most:
        raise ModelFileError(f"{name} in {archive.filename} has more than {most} bytes")
    return data


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelFileError(f"{what} is no JSON object")
    return value
