"""A model made ready for the CPU's kernels: packed weights, a plan, and scratch for one thread."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import InputError
from streamrnn.kernels.activations import ACTIVATIONS
from streamrnn.kernels.cpu.pack import Packed, aligned_floats, pack
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, Layer, Plan
from streamrnn.kernels.cpu.staged.pack import num_blocks, pack_stages
from streamrnn.kernels.cpu.tiling import cover_address
from streamrnn.kernels.gates import (
    DENSE,
    SHAPES,
    head_matrices,
    is_staged,
    layer_kind,
    layer_matrices,
    padded,
    scaled_x_weights,
)
from streamrnn.kernels.precisions import PRECISION_NAMES, PRECISIONS
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.kernels.vector_width import WIDTH
from streamrnn.kernels.virtual_memory import struct_address
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec

__all__ = ["Program"]

_ARITHMETIC_VERSION = 2  # to be raised whenever any output's bits change


class Program:
    """A model's packed weights, its plan, and scratch for one thread.

    Parameters
    ----------
    model : Model
        Scales are folded into its first and last matrices here, in float64.
    precision : str
        How the weights are stored, one of `PRECISIONS`: ``float32``; ``bfloat16``, half of it;
        ``int8``, a quarter, with a scale for each row of a matrix. Sums and states are float32
        with each of them.

    Attributes
    ----------
    plan : Plan
        Holds addresses of arrays that the program owns: keep the program alive.
    layers : ndarray of Layer, shape (num_layers,)
    layout : RowLayout
    row_bytes : int
        Bytes of one stream's row.
    initial_row : ndarray of float32, shape (row_bytes // 4,)
        The row of a stream that has seen nothing.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"precision is {precision!r}; it must be one of {known}")
        self.spec = model.spec
        self.precision = PRECISIONS[precision]
        self.layout = layout = RowLayout(model.spec)
        self.row_bytes = layout.row_bytes
        self.initial_row = aligned_floats(self.row_bytes // 4)
        self.initial_row[:] = layout.initial_row
        self.plan = Plan.one()
        self.plan["cover"] = cover_address(self.precision)
        self.plan["row_bytes"] = self.row_bytes
        self._owned: list[NDArray[Any]] = []
        self._parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        self._add_inputs()
        self._add_layers()
        self._add_outputs()
        del self._parameters
        self._add_scratch()

    @property
    def plan_address(self) -> int:
        """What compiled code takes."""
        return struct_address(self.plan)

    @property
    def arithmetic(self) -> str:
        """Name what decides the bits of an output besides model and inputs.

        The vector width is not among it: all widths give the same bits.
        """
        name = PRECISION_NAMES[self.precision]
        return f"cpu-{platform.machine()}-{name}-{_ARITHMETIC_VERSION}"

    def for_shard(self) -> Program:
        """Return a program with the same weights and scratch of its own, for another thread."""
        other = object.__new__(Program)
        other.__dict__.update(self.__dict__)
        other.plan = self.plan.copy()
        other._owned = list(self._owned)
        other._add_scratch()
        return other

    def _own(self, array: NDArray[Any]) -> int:
        """Keep an array alive as long as the program, and return its address."""
        self._owned.append(array)
        return array.ctypes.data

    def _set_weights(self, weights: Any, packed: Packed) -> None:
        """Fill a `Weights` struct."""
        weights["panels"] = self._own(packed.memory)
        weights["panel_bytes"] = packed.panel_bytes
        weights["first_weight"] = packed.first_weight
        weights["first_h_weight"] = packed.first_h_weight
        weights["num_panels"] = packed.num_panels

    def _add_inputs(self) -> None:
        spec, plan, inputs = self.spec, self.plan, self.layout.inputs.copy()
        for item, row in zip(spec.inputs, inputs, strict=True):
            if item.embedding_size:
                weights = self._parameters[f"embedding.{item.name}.weight"]
                row["embedding"] = self._own(np.ascontiguousarray(weights, dtype=np.float32))
        plan["num_inputs"] = spec.num_inputs
        plan["inputs"] = self._own(inputs)
        plan["inputs_are_features"] = self.layout.inputs_are_features

    def _add_layers(self) -> None:
        spec, plan = self.spec, self.plan
        self.layers = np.zeros(len(spec.layers), Layer.dtype)
        num_x = spec.num_features
        for index, (spec_layer, layer) in enumerate(zip(spec.layers, self.layers, strict=True)):
            if is_staged(spec_layer):
                layer["stages"] = self._stages(index, spec_layer)
            else:
                kind, activation, biases, x, h = layer_matrices(spec, self._parameters, index)
                layer["kind"], layer["activation"] = kind, activation
                packed = pack(kind, biases, x, h, self.precision)
                self._set_weights(layer["weights"], packed)
            layer["num_x"], layer["hidden_size"] = num_x, spec_layer.hidden_size
            layer["h_offset"] = self.layout.h_offsets[index]
            layer["num_panels"] = padded(spec_layer.hidden_size) // WIDTH
            num_x = spec_layer.output_size
        plan["num_layers"], plan["layers"] = len(spec.layers), self._own(self.layers)
        plan["last_h"], plan["last_size"] = self.layout.h_offsets[-1], num_x

    def _stages(self, index: int, layer: LayerSpec) -> int:
        """Pack a staged layer and return the address of its `Stages`."""
        parameters = {
            name.removesuffix(f"_l{index}"): value
            for name, value in self._parameters.items()
            if name.endswith(f"_l{index}")
        }
        parameters["weight_ih"] = scaled_x_weights(self.spec, self._parameters, index)
        stages, products = pack_stages(layer, parameters, self.precision, self._own)
        for name, packed in products.items():
            self._set_weights(stages[name][0], packed)
        return self._own(stages)

    def _add_outputs(self) -> None:
        spec, plan, layout = self.spec, self.plan, self.layout
        levels, centers = layout.output_levels, layout.output_centers
        plan["output_size"] = spec.output_size
        plan["output_levels"] = self._own(levels)
        plan["output_centers"] = self._own(centers)
        plan["outputs_are_plain"] = not centers.any() and bool(np.all(levels < 0))
        if spec.head is not None:
            packed = pack(DENSE, *head_matrices(spec, self._parameters), self.precision)
            self._set_weights(plan["head"], packed)
            plan["head_activation"] = ACTIVATIONS[spec.head.activation]

    def _add_scratch(self) -> None:
        spec, plan = self.spec, self.plan
        widest = padded(max(spec.output_size, *(layer.output_size for layer in spec.layers)))
        most_sums = max(padded(layer.hidden_size) * _num_sums(layer) for layer in spec.layers)
        for place, stride, size in (
            ("features", "feature_stride", padded(spec.num_features)),
            ("hidden", "hidden_stride", widest),
            ("sequence", "hidden_stride", widest),
            ("sums", "sums_stride", most_sums),
            ("levels", "level_stride", padded(self.layout.num_memories)),
        ):
            plan[place] = self._own(aligned_floats(MAX_BATCH_ROWS * size))
            plan[stride] = 4 * size
        for place in ("x", "h", "level", "y", "staged"):
            plan[f"{place}_pointers"] = self._own(np.zeros(MAX_BATCH_ROWS, dtype=np.int64))


def _num_sums(layer: LayerSpec) -> int:
    """Return how many sums a unit needs between the products with x and with h."""
    if is_staged(layer):
        return num_blocks(layer)
    return SHAPES[layer_kind(layer)[0]].num_accumulators
