"""Import a file of Keras: follow the layers from the input to the output."""

from __future__ import annotations

import os

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import build_model
from streamrnn.importers.json_text import MAX_REST_BYTES, parse_json
from streamrnn.importers.keras.config import read_graph
from streamrnn.importers.keras.files import KerasFile, read_keras_file
from streamrnn.importers.keras.walk import walk_network
from streamrnn.importers.network import ImportedModel, Names, Network

__all__ = ["import_keras"]


def import_keras(
    path: str | os.PathLike[str], names: Names, config: str | os.PathLike[str] | None = None
) -> ImportedModel:
    """Read a model of Keras 2 or 3.

    Parameters
    ----------
    path : str or path
        ``.keras``, ``.h5`` or ``.weights.h5``.
    names : Names
        Names for inputs and outputs.
    config : str, path or None
        For weights alone: the file that holds the configuration, ``.keras``, ``.h5`` or JSON.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If the file is damaged, or the network holds what a model cannot: all of that is listed.
    """
    file = read_keras_file(path)
    if config is not None:
        other = _read_config(config)
        file.config, file.version = other.config, file.version or other.version
    if file.config is None:
        raise ModelFileError(
            f"{file.path} holds weights alone: give the file that has the configuration with "
            "--config (the .keras or .h5 of the same model, or model.to_json() in a file)"
        )
    version = f" {file.version}" if file.version else ""
    network = Network(file.path, f"Keras{version}")
    try:
        walk_network(network, read_graph(file.config), file)
    except ModelFileError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    return build_model(network, names)


def _read_config(path: str | os.PathLike[str]) -> KerasFile:
    with open(path, "rb") as opened:
        start = opened.read(MAX_REST_BYTES + 1)
    if start[:64].lstrip()[:1] == b"{":
        config = parse_json(start, os.fspath(path))
        if not isinstance(config, dict):
            raise ModelFileError(f"{os.fspath(path)} is no JSON object")
        return KerasFile(os.fspath(path), config, str(config.get("keras_version", ""))[:40])
    return read_keras_file(path, weights=False)
