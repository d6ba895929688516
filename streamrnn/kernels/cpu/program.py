"""A model made ready for the CPU's kernels: packed weights, a plan, and scratch for one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import InputError
from streamrnn.kernels.arithmetic import cpu_arithmetic
from streamrnn.kernels.cpu.blocks import BLOCK_SUMS_BYTES
from streamrnn.kernels.cpu.frames.builder import Frame, columns_of, fill_weights
from streamrnn.kernels.cpu.frames.lower import Lowering
from streamrnn.kernels.cpu.pack import aligned_floats, pack
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, Layer, Plan
from streamrnn.kernels.cpu.staged.pack import num_blocks, pack_stages
from streamrnn.kernels.cpu.tiling import cover_address
from streamrnn.kernels.gates import (
    SHAPES,
    is_staged,
    layer_kind,
    layer_matrices,
    padded,
    scaled_x_weights,
)
from streamrnn.kernels.precisions import PRECISION_NAMES, PRECISIONS
from streamrnn.kernels.row_layout import RowLayout, first_row, recurrent_layers
from streamrnn.kernels.vector_width import WIDTH
from streamrnn.kernels.virtual_memory import struct_address
from streamrnn.model.model import Model
from streamrnn.model.parameters import layer_parameters
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["Program"]

# A batch's frames should stay in the cache between the layers that write and read them.
_FRAME_CACHE_BYTES = 512 << 10
_CHAIN_CACHE_BYTES = 4 << 20  # of recurrent layers alone, whose weights are read once a block
_MIN_ROWS = 6  # of a block: of the largest tile
# Weights of a model above this come from memory at every step, not from the third-level cache,
# which others use too. A block of them and the next one fit the second-level cache.
_CACHED_BYTES = 16 << 20
_WEIGHT_BLOCK_BYTES = 128 << 10


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
    layers : list of Layer
        The recurrent ones.
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
        self.initial_row[:] = first_row(model)
        self.plan = Plan.one()
        self.plan["cover"] = cover_address(self.precision)
        self.plan["row_bytes"] = self.row_bytes
        self._owned: list[NDArray[Any]] = []
        self._parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        self._add_inputs()
        self._add_ops(model)
        self._add_outputs()
        del self._parameters
        self._add_scratch()

    @property
    def plan_address(self) -> int:
        """What compiled code takes."""
        return struct_address(self.plan)

    @property
    def arithmetic(self) -> str:
        """What decides the bits of an output besides model and inputs."""
        return cpu_arithmetic(PRECISION_NAMES[self.precision], not _is_of_version_1(self.spec))

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

    def _add_inputs(self) -> None:
        spec, plan, inputs = self.spec, self.plan, self.layout.inputs.copy()
        for item, row in zip(spec.input_elements, inputs, strict=True):
            if item.embedding_size:
                weights = self._parameters[f"embedding.{item.name}.weight"]
                row["embedding"] = self._own(np.ascontiguousarray(weights, dtype=np.float32))
        plan["num_inputs"] = spec.num_inputs
        plan["inputs"] = self._own(inputs)
        plan["inputs_are_features"] = self.layout.inputs_are_features
        plan["has_mask"] = spec.mask_value is not None
        mask = spec.mask_value or 0.0
        bits = int(np.float32(mask).view(np.uint32))
        plan["mask_value"] = int(mask) if spec.is_token else bits

    def _add_ops(self, model: Model) -> None:
        """Lower the layers to operations."""
        plan = self.plan
        self._h_offsets = iter(self.layout.h_offsets)
        self.layers: list[np.void] = []
        lowering = Lowering(
            *(model.spec, self.layout, self._parameters, self.precision, self._own),
            self._add_recurrent,
        )
        lowering.lower()
        ops = np.concatenate(lowering.ops)
        plan["num_ops"], plan["ops"] = len(ops), self._own(ops)
        if sum(array.nbytes for array in self._owned) > _CACHED_BYTES:
            plan["product"]["block_cover"] = cover_address(self.precision, in_blocks=True)
            plan["product"]["block_bytes"] = _WEIGHT_BLOCK_BYTES
        plan["steps_alone"] = bool(model.spec.graph.kept)
        plan["last_y"] = self.layout.last_y
        self._num_floats = lowering.num_floats
        output = lowering.output
        plan["output_offset"], plan["output_pitch"] = 4 * output.offset, 4 * output.pitch
        plan["output_channels"] = output.channels

    def _add_recurrent(self, k: int, spec_layer: LayerSpec, read: Frame) -> int:
        """Pack a recurrent layer and return the address of its `Layer`."""
        array = np.zeros(1, Layer.dtype)
        layer = array[0]
        x_weights = columns_of(scaled_x_weights(self.spec, self._parameters, k), read)
        if is_staged(spec_layer):
            layer["stages"] = self._stages(k, spec_layer, x_weights)
        else:
            kind, activation, biases, _, h = layer_matrices(self.spec, self._parameters, k)
            layer["kind"], layer["activation"] = kind, activation
            packed = pack(kind, biases, x_weights, h, self.precision)
            fill_weights(layer["weights"], packed, self._own)
        layer["num_x"], layer["hidden_size"] = x_weights.shape[1], spec_layer.hidden_size
        layer["h_offset"] = next(self._h_offsets)
        layer["num_panels"] = padded(spec_layer.hidden_size) // WIDTH
        self.layers.append(layer)
        return self._own(array)

    def _stages(self, k: int, layer: LayerSpec, x_weights: NDArray[np.float64]) -> int:
        """Pack a staged layer and return the address of its `Stages`."""
        parameters = layer_parameters(self._parameters, k) | {"weight_ih": x_weights}
        stages, products = pack_stages(layer, parameters, self.precision, self._own)
        for name, packed in products.items():
            fill_weights(stages[name][0], packed, self._own)
        return self._own(stages)

    def _add_outputs(self) -> None:
        spec, plan, layout = self.spec, self.plan, self.layout
        levels, centers = layout.output_levels, layout.output_centers
        plan["output_size"] = spec.output_size
        plan["output_levels"] = self._own(levels)
        plan["output_fills"] = self._own(layout.output_fills)
        plan["output_centers"] = self._own(centers)
        plan["outputs_are_plain"] = not centers.any() and bool(np.all(levels < 0))

    def _add_scratch(self) -> None:
        spec, plan = self.spec, self.plan
        layers = recurrent_layers(spec)
        sums = [padded(layer.hidden_size) * _num_sums(layer) for layer in layers]
        value_bytes = 4 * padded(self._num_floats)
        cached = _FRAME_CACHE_BYTES if len(layers) < len(spec.layers) else _CHAIN_CACHE_BYTES
        block_rows = max(_MIN_ROWS, min(MAX_BATCH_ROWS, cached // value_bytes))
        plan["block_rows"] = block_rows = block_rows // _MIN_ROWS * _MIN_ROWS
        plan["values"], plan["value_stride"] = (
            self._own(aligned_floats(block_rows * value_bytes // 4)),
            value_bytes,
        )
        for place, stride, size in (
            ("features", "feature_stride", padded(spec.num_features)),
            ("sums", "sums_stride", max(sums, default=0)),
            ("levels", "level_stride", padded(self.layout.num_memories)),
        ):
            plan[place] = self._own(aligned_floats(MAX_BATCH_ROWS * size))
            plan[stride] = 4 * size
        plan["product"]["block_sums"] = self._own(aligned_floats(BLOCK_SUMS_BYTES // 4))
        for place in ("x", "input", "row", "h", "level", "y", "staged"):
            plan[f"{place}_pointers"] = self._own(np.zeros(MAX_BATCH_ROWS, dtype=np.int64))
        plan["masked"] = self._own(np.zeros(3 * MAX_BATCH_ROWS, dtype=np.int64))


def _is_of_version_1(spec: ModelSpec) -> bool:
    """Whether a model has nothing but recurrent layers of the first forms, and a head.

    This must never change: a journal that was written under one id is replayed under it.
    """
    tanh = LayerSpec.cell_activation, LayerSpec.output_activation
    return (
        spec.graph.is_chain
        and spec.mask_value is None
        and all((each.cell_activation, each.output_activation) == tanh for each in spec.chain)
        and not any(item.shape for item in spec.inputs)
    )


def _num_sums(layer: LayerSpec) -> int:
    """Return how many sums a unit needs between the products with x and with h."""
    if is_staged(layer):
        return num_blocks(layer)
    return SHAPES[layer_kind(layer)[0]].num_accumulators
