"""Parameters of a model: names, shapes, checks, and the model's fingerprint.

They carry PyTorch's names, shapes and gate orders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError, SpecError
from streamrnn.model.checks import check_json
from streamrnn.model.layers.base import Layer
from streamrnn.model.spec import ModelSpec

__all__ = [
    "FORMAT_VERSION",
    "Parameters",
    "TensorEntries",
    "canonical_spec",
    "check_parameters",
    "fingerprint_of",
    "layer_parameters",
    "parameter_shapes",
    "tensor_digest",
    "tensor_entries",
]

FORMAT_VERSION = 1  # of the weight file, and of what a fingerprint covers
# Of a weight or a bias with its scale folded in: the kernels multiply it by up to 1.45, and add two
# biases, in float32.
_MAX_FOLDED = 2.0**126

_Array = TypeVar("_Array", bound=NDArray[Any])

Parameters = Mapping[str, NDArray[np.float32]]
# By name: safetensors' name of the dtype, the shape and the `tensor_digest`.
TensorEntries = Mapping[str, tuple[str, tuple[int, ...], str]]


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name every parameter of a model, with its shape, in the canonical order.

    ``embedding.{input}.weight`` [num_categories, E] for every embedded input; for every layer
    ``weight_ih_l{k}`` [G*H, F or H of layer k-1], ``weight_hh_l{k}`` [G*H, H], ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` [G*H]; ``head.weight`` [O, H] and ``head.bias`` [O] with a head.

    A layer's form adds to its own: ``weight_hr_l{k}`` [R, H] (projection; h, and with it every
    matrix that it enters, is R wide then); ``weight_ci_l{k}``, ``weight_cf_l{k}`` and
    ``weight_co_l{k}`` [H] (peepholes); ``norm_weight_ih_l{k}`` and ``norm_weight_hh_l{k}`` [G*H]
    (the gains of a layer normalisation, whose shifts are the two biases), and for an LSTM
    ``norm_weight_c_l{k}`` and ``norm_bias_c_l{k}`` [H]; ``first_h_l{k}`` [H or R] and
    ``first_c_l{k}`` [H] (the state of new streams).

    Layers of other kinds have ``weight_l{k}`` and ``bias_l{k}``, and ``slope_l{k}`` for a prelu;
    the classes of `streamrnn.model.layers` give their shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for item in spec.inputs:
        if item.embedding_size:
            shapes[f"embedding.{item.name}.weight"] = (item.num_categories, item.embedding_size)
    for k, layer in enumerate(spec.layers):
        named = layer.parameter_shapes(spec.graph.read_shapes(k))
        shapes |= {f"{name}_l{k}": shape for name, shape in named.items()}
    if spec.head is not None:
        length, channels = spec.graph.shapes[-1]
        shapes["head.weight"] = (spec.output_size, length * channels)
        shapes["head.bias"] = (spec.output_size,)
    return shapes


def layer_parameters(parameters: Mapping[str, _Array], k: int) -> dict[str, _Array]:
    """Return the parameters of layer ``k`` by their names without its number."""
    end = f"_l{k}"
    return {
        name.removesuffix(end): value for name, value in parameters.items() if name.endswith(end)
    }


def check_parameters(spec: ModelSpec, parameters: Mapping[str, NDArray[Any]]) -> Parameters:
    """Copy a model's parameters, or raise `ModelError` with what is wrong with them.

    The copies are read-only, in C order, and come in the order of `parameter_shapes`.
    """
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
    checked = {name: _checked(name, parameters[name], shape) for name, shape in shapes.items()}
    _check_folded(spec, checked)
    return MappingProxyType(checked)


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
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


def _check_folded(spec: ModelSpec, parameters: Parameters) -> None:
    """Raise `ModelError` if a number overflows when the scale next to it is folded into it."""
    factors: dict[str, NDArray[np.float64]] = {}
    if spec.folds_input_scales:
        factors["weight_ih_l0"] = 1.0 / spec.feature_scales
    if spec.head is not None:
        output_scales = np.array([item.scale for item in spec.outputs])
        factors |= {"head.weight": output_scales[:, None], "head.bias": output_scales}
    for name, value in parameters.items():
        factor = factors.get(name, np.float64(1.0))
        # Most of the time no array need be made to know it.
        if max(float(value.max()), -float(value.min())) * float(factor.max()) <= _MAX_FOLDED:
            continue
        folded = value * factor
        over = np.abs(folded) > _MAX_FOLDED
        if over.any():
            index = tuple(int(i) for i in np.argwhere(over)[0])
            raise ModelError(
                f"parameter {name}{list(index)} is {value[index]:.3g}, and with its scale "
                f"folded in {folded[index]:.3g}; above {_MAX_FOLDED:.3g} float32 overflows in the "
                "step, and every stream would answer NaN: is the scale of that input or output "
                "right, or did the training diverge?"
            )


def canonical_spec(spec: ModelSpec) -> str:
    """Write a description as the one JSON text that a fingerprint covers.

    Keys are sorted, nothing is indented, all is ASCII, and fields that have their default value
    are left out: a field that a later version adds does not change the fingerprint of a model
    that makes no use of it, and so its streams' saved states stay valid. The price: the defaults
    are part of the file format and must never change.

    Raises `ModelError` if ``spec.training`` holds something that JSON cannot express.
    """
    try:
        check_json(spec.training, "training")
        return json.dumps(
            _without_defaults(spec), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (SpecError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"the model's description cannot be written as JSON: {error}; training may hold only "
            "plain dicts, lists, strings, finite numbers, booleans and None"
        ) from error


def _without_defaults(item: Any) -> Any:
    """Turn a dataclass into plain types, leaving out what has its default value."""
    if is_dataclass(item):
        plain = {}
        for entry in fields(item):
            value = getattr(item, entry.name)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            if value != default:
                plain[entry.name] = _without_defaults(value)
        if isinstance(item, Layer) and item.op:
            plain["op"] = item.op
        return plain
    if isinstance(item, tuple):
        return [_without_defaults(element) for element in item]
    return item


def tensor_digest(value: NDArray[Any]) -> str:
    """Hex SHA-256 of the bytes of a tensor in C order, little-endian."""
    return hashlib.sha256(value.reshape(-1).view(np.uint8).data).hexdigest()


def tensor_entries(parameters: Parameters) -> TensorEntries:
    """Return what a fingerprint covers of each parameter."""
    return {name: ("F32", value.shape, tensor_digest(value)) for name, value in parameters.items()}


def fingerprint_of(spec_text: str, tensors: TensorEntries) -> str:
    """Hex SHA-256 of all of a model: its description as JSON, and every tensor."""
    listed = [[name, *entry] for name, entry in sorted(tensors.items())]
    text = json.dumps([FORMAT_VERSION, spec_text, listed], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
