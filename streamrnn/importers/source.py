"""Recognise a file by its content, and import it."""

from __future__ import annotations

import os
from dataclasses import fields

import numpy as np

from streamrnn.errors import ModelError, ModelFileError, listed
from streamrnn.importers.json_state import (
    import_guitarml,
    import_json_state_dict,
    is_guitarml,
    is_state_dict,
)
from streamrnn.importers.json_text import read_json_file
from streamrnn.importers.keras.files import HDF5_MAGIC, ZIP_MAGIC, is_keras_archive
from streamrnn.importers.keras.network import import_keras
from streamrnn.importers.nam import import_nam, is_nam
from streamrnn.importers.network import GraphOptions, ImportedModel, Names
from streamrnn.importers.onnx.file import looks_like_onnx
from streamrnn.importers.onnx.network import import_onnx
from streamrnn.importers.rtneural import import_rtneural, is_rtneural
from streamrnn.importers.torch import TorchOptions, import_torch

__all__ = ["import_file"]

# Options that every source has; the others say what a state dict leaves open.
_COMMON = ("inputs", "outputs", "first_state")


@np.errstate(all="ignore")  # the model refuses what overflows, by name
def import_file(
    path: str | os.PathLike[str],
    options: TorchOptions | None = None,
    config: str | os.PathLike[str] | None = None,
    graph: GraphOptions | None = None,
) -> ImportedModel:
    """Import a file of any source.

    Parameters
    ----------
    path : str or path
        The file; its name says nothing.
    options : TorchOptions or None
        What the file cannot tell; None for the defaults.
    config : str, path or None
        For weights of Keras alone: the file that holds the configuration.
    graph : GraphOptions or None
        What a graph of ONNX leaves open.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelError
        If the file is damaged, of no known kind, or holds what a model cannot.
    """
    options = options or TorchOptions()
    start = _start_of(path)
    names = Names(options.inputs, options.outputs)
    if start[:8] == HDF5_MAGIC or (start[:4] == ZIP_MAGIC and is_keras_archive(path)):
        _refuse_state_dict_options(path, options)
        _refuse_graph_options(path, graph)
        return import_keras(path, names, config)
    if config is not None:
        raise ModelError(f"{os.fspath(path)} is no file of Keras; leave out --config")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        _refuse_graph_options(path, graph)
        return _import_json(os.fspath(path), options, names)
    if start[8:9] != b"{" and looks_like_onnx(start):
        _refuse_state_dict_options(path, options)
        return import_onnx(path, names, graph, zero_state=options.zero_state)
    _refuse_graph_options(path, graph)
    return import_torch(path, options)


def _import_json(path: str, options: TorchOptions, names: Names) -> ImportedModel:
    value = read_json_file(path)
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is JSON, but no object")
    if is_state_dict(value) and not is_rtneural(value):
        return import_json_state_dict(path, value, options)
    _refuse_state_dict_options(path, options)
    if is_nam(value):
        return import_nam(path, value, names, zero_state=options.zero_state)
    if is_guitarml(value):
        return import_guitarml(path, value, options)
    if is_rtneural(value):
        return import_rtneural(path, value, names)
    raise ModelFileError(
        f"{path} is JSON of no known kind; known are Neural Amp Modeler, RTNeural and AIDA-X, "
        f"GuitarML, and state dicts. Its keys: {listed([str(key) for key in value])}"
    )


def _start_of(path: str | os.PathLike[str]) -> bytes:
    """Read a file's first bytes; nothing of what is no regular file, which its reader refuses."""
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise ModelFileError(
            f"{os.fspath(path)} cannot be read: {error.strerror or error}"
        ) from error
    except ValueError:  # a path with a NUL character
        return b""


def _refuse_graph_options(path: str | os.PathLike[str], graph: GraphOptions | None) -> None:
    if graph is not None and graph != GraphOptions():
        raise ModelError(
            f"{os.fspath(path)} is no ONNX file; leave out --set, --state and --context"
        )


def _refuse_state_dict_options(path: str | os.PathLike[str], options: TorchOptions) -> None:
    given = [
        item.name.replace("_", "-")
        for item in fields(options)
        if item.name not in _COMMON and getattr(options, item.name) != item.default
    ]
    if options.first_state is not None and not options.zero_state:
        given.append("first-state")
    if given:
        raise ModelError(
            f"{os.fspath(path)} says itself how its layers are joined; leave out "
            + ", ".join(f"--{name}" for name in given)
        )
