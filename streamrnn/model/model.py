"""A model: what is fixed about it (`ModelSpec`) together with what is loaded (its parameters).

The parameters carry PyTorch's names, shapes and gate orders. They are float32, read-only and
owned by the model, so a model is never changed once it exists and its fingerprint stays true.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.model.spec import CELLS, ModelSpec

__all__ = [
    "FORMAT_VERSION",
    "Model",
    "Parameters",
    "canonical_spec",
    "fingerprint_of",
    "parameter_shapes",
    "tensor_digest",
]

FORMAT_VERSION = 1  # of the weight file, and of what a fingerprint covers

Parameters = Mapping[str, NDArray[np.float32]]


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name every parameter of a model, with its shape.

    Parameters
    ----------
    spec : ModelSpec
        What is fixed about the model.

    Returns
    -------
    dict of str to tuple of int
        ``embedding.{input}.weight`` [num_categories, E] for every embedded input;
        ``weight_ih_l{k}`` [G*H, F or H of layer k-1], ``weight_hh_l{k}`` [G*H, H],
        ``bias_ih_l{k}`` and ``bias_hh_l{k}`` [G*H] for every layer; ``head.weight`` [O, H] and
        ``head.bias`` [O] with a head. In this order. A layer's form adds to its own
        ``weight_hr_l{k}`` [R, H] (projection; h, and with it every matrix that it enters, is R
        wide then), ``weight_ci_l{k}``, ``weight_cf_l{k}`` and ``weight_co_l{k}`` [H] (peepholes),
        ``norm_weight_ih_l{k}`` and ``norm_weight_hh_l{k}`` [G*H] (the gains of a layer
        normalisation, whose shifts are the two biases), and for an LSTM ``norm_weight_c_l{k}`` and
        ``norm_bias_c_l{k}`` [H].
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for item in spec.inputs:
        if item.embedding_size:
            shapes[f"embedding.{item.name}.weight"] = (item.num_categories, item.embedding_size)
    num_columns = spec.num_features
    for k, layer in enumerate(spec.layers):
        num_units, num_outputs = layer.hidden_size, layer.output_size
        num_rows = len(CELLS[layer.cell].gates) * num_units
        shapes[f"weight_ih_l{k}"] = (num_rows, num_columns)
        shapes[f"weight_hh_l{k}"] = (num_rows, num_outputs)
        shapes[f"bias_ih_l{k}"] = (num_rows,)
        shapes[f"bias_hh_l{k}"] = (num_rows,)
        if layer.projection_size:
            shapes[f"weight_hr_l{k}"] = (num_outputs, num_units)
        if layer.peepholes:
            for gate in "ifo":
                shapes[f"weight_c{gate}_l{k}"] = (num_units,)
        if layer.layer_norm:
            shapes[f"norm_weight_ih_l{k}"] = (num_rows,)
            shapes[f"norm_weight_hh_l{k}"] = (num_rows,)
            if layer.cell == "lstm":
                shapes[f"norm_weight_c_l{k}"] = (num_units,)
                shapes[f"norm_bias_c_l{k}"] = (num_units,)
        num_columns = num_outputs
    if spec.head is not None:
        shapes["head.weight"] = (spec.output_size, num_columns)
        shapes["head.bias"] = (spec.output_size,)
    return shapes


def _without_defaults(item: Any) -> Any:
    """Turn a dataclass into plain types, leaving out what has its default value."""
    if is_dataclass(item):
        plain = {}
        for entry in fields(item):
            value = getattr(item, entry.name)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            if value != default:
                plain[entry.name] = _without_defaults(value)
        return plain
    if isinstance(item, tuple):
        return [_without_defaults(element) for element in item]
    return item


def canonical_spec(spec: ModelSpec) -> str:
    """Write a description as the one JSON text that a fingerprint covers.

    Keys are sorted, nothing is indented, all is ASCII, and fields that have their default value
    are left out: a field that a later version adds does not change the fingerprint of a model
    that makes no use of it, and so its streams' saved states stay valid. The price: the defaults
    are part of the file format and must never change.

    Parameters
    ----------
    spec : ModelSpec
        What is fixed about the model.

    Returns
    -------
    str

    Raises
    ------
    ModelError
        If ``spec.training`` holds something that JSON cannot say.
    """
    try:
        return json.dumps(
            _without_defaults(spec), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"the model's description cannot be written as JSON: {error}; training may hold only "
            "plain dicts, lists, strings, finite numbers, booleans and None"
        ) from error


def tensor_digest(value: NDArray[Any]) -> str:
    """Digest the bytes of a tensor.

    Parameters
    ----------
    value : ndarray
        In C order, little-endian.

    Returns
    -------
    str
        Hex SHA-256.
    """
    return hashlib.sha256(value.reshape(-1).view(np.uint8).data).hexdigest()


def fingerprint_of(spec_text: str, tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Digest all of a model: its description and every tensor's name, dtype, shape and bytes.

    Parameters
    ----------
    spec_text : str
        The description, as JSON.
    tensors : mapping of str to (str, tuple of int, str)
        Name to dtype (safetensors' name of it), shape, and hex SHA-256 of the bytes.

    Returns
    -------
    str
        Hex SHA-256.
    """
    listed = [[name, *entry] for name, entry in sorted(tensors.items())]
    text = json.dumps([FORMAT_VERSION, spec_text, listed], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Copy one parameter into a read-only C-ordered array, or say what is wrong with it."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ModelError(f"parameter {name} is {got}; it must be a NumPy array of float32")
    if value.shape != shape:
        raise ModelError(
            f"parameter {name} has shape {list(value.shape)}; the model's description asks for "
            f"{list(shape)}"
        )
    finite = np.isfinite(value)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ModelError(
            f"parameter {name}{list(index)} is {value[index]} ({value.size - finite.sum()} of "
            f"{value.size} elements are not finite); such a model answers NaN for ever, train it "
            "again or take an earlier checkpoint"
        )
    owned = np.array(value, dtype=np.float32, order="C", copy=True)
    owned.setflags(write=False)
    return owned


class Model:
    """A recurrent network: its description and its parameters.

    Parameters
    ----------
    spec : ModelSpec
        What is fixed about it.
    parameters : mapping of str to ndarray of float32
        Exactly those that `parameter_shapes` names; copied.

    Attributes
    ----------
    spec : ModelSpec
        As given.
    parameters : mapping of str to ndarray of float32
        Read-only arrays in C order, owned by the model, in the order of `parameter_shapes`.
    fingerprint : str
        Hex SHA-256 of all of it; the same as in the weight file.

    Raises
    ------
    ModelError
        If a parameter is missing, unknown, of another shape or dtype, or not finite.
    """

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, NDArray[Any]]) -> None:
        shapes = parameter_shapes(spec)
        missing = [name for name in shapes if name not in parameters]
        if missing:
            raise ModelError(
                f"parameter {missing[0]} {list(shapes[missing[0]])} is missing"
                + (f", and {len(missing) - 1} more: {missing[1:]}" if missing[1:] else "")
            )
        unknown = [name for name in parameters if name not in shapes]
        if unknown:
            raise ModelError(
                f"unknown parameter {unknown[0]!r}; the model's description asks for "
                f"{', '.join(shapes)}"
            )
        self.spec = spec
        self.parameters: Parameters = MappingProxyType(
            {name: _checked(name, parameters[name], shape) for name, shape in shapes.items()}
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the description and every parameter."""
        return fingerprint_of(
            canonical_spec(self.spec),
            {
                name: ("F32", value.shape, tensor_digest(value))
                for name, value in self.parameters.items()
            },
        )

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(value.size for value in self.parameters.values())

    def __repr__(self) -> str:
        layers = " -> ".join(f"{layer.cell} {layer.hidden_size}" for layer in self.spec.layers)
        return (
            f"<Model {self.spec.num_inputs} inputs -> {layers} -> {self.spec.output_size} outputs, "
            f"{self.num_parameters} parameters>"
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a weight file.

        Parameters
        ----------
        path : str or path
            A file that `save`, ``streamrnn train`` or ``streamrnn import`` wrote.

        Returns
        -------
        Model

        Raises
        ------
        ModelFileError
            If the file is damaged, of another kind, or holds a model that does not fit its own
            description. The message says what and where.
        """
        from streamrnn.model.file import load_model

        return load_model(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a weight file, all or nothing.

        Parameters
        ----------
        path : str or path
            Replaced if it exists; a reader sees the old file or the new one, never a part.

        Raises
        ------
        ModelFileError
            If the file cannot be written.
        """
        from streamrnn.model.file import save_model

        save_model(self, path)
