"""A loaded model on the GPU, and the launches of one step of a batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda.compiler import SIMULATED, max_shared_bytes, num_multiprocessors
from streamrnn.kernels.cuda.launches import Launch, Launches, Number
from streamrnn.kernels.cuda.persistent import (
    exchange_size,
    make_persistent_kernel,
    persistent_shape,
)
from streamrnn.kernels.cuda.plan import GpuLayer, GpuPlan
from streamrnn.kernels.cuda.products import NORM, READS_H, READS_SCRATCH, READS_X, Cell
from streamrnn.kernels.cuda.rows import (
    features_rows,
    make_features_kernel,
    make_move_kernel,
    make_norm_kernel,
    make_softmax_kernel,
)
from streamrnn.kernels.cuda.tensor_cores import TensorShape, make_tensor_kernel
from streamrnn.kernels.cuda.tiles import TileShape, make_layer_kernel

__all__ = ["TENSOR_TILING", "TILING", "Batch", "Network", "Slab", "Tiling"]


# Numba warns of a grid of fewer blocks, in a class of warnings of its own and in whatever thread
# that is: a filter would reach the user's warnings too. What has no row ends at once.
_MIN_BLOCKS = 1 if SIMULATED else 128


@dataclass(frozen=True)
class Tiling:
    """The shapes of all launches. Another tiling gives the same bits."""

    shapes: tuple[TileShape | TensorShape, ...]  # the first whose blocks fill the GPU, or the last
    row_threads: int  # of a block that takes one row, or whose threads take one input each
    min_blocks: int = 0  # that fill the GPU; 0: three for four multiprocessors


# 128 streams and 32 LSTM units a block, 64 sums a thread in registers; 32 streams and 16 units, 16
# sums; or 8 streams. As measured on an H100 (docs/decisions.md).
TILING = Tiling(
    (TileShape(2, 4, 8, 2, 2, min_blocks=2), TileShape(2, 2, 4, 1, 4), TileShape(2, 2, 1, 1, 4)),
    128,
)
# The first of them by eight warps; or 16 streams and 32 units by four.
TENSOR_TILING = Tiling((TensorShape(2, 4, 2, 8, 2, min_blocks=2), TensorShape(4, 1, 1, 4, 4)), 128)


@dataclass(frozen=True)
class Batch:
    """The arrays on the GPU that a batch's inputs and outputs lie in."""

    slots: Any  # int32, of each row; the inputs follow in the same memory
    x: Any  # the same memory as float32
    y: Any  # float32, outputs


@dataclass(frozen=True)
class Slab:
    """The streams' rows, and in which half of each the newest h lies: 0 or 1."""

    rows: Any  # float32 [num_slots * row_size], on the GPU
    halves: NDArray[np.uint8]  # [num_slots], on the host: as after all batches that have begun


@functools.cache
def _layer_kernel(cell: Cell, shape: TileShape | TensorShape, precision: str) -> Any:
    if isinstance(shape, TensorShape):
        return make_tensor_kernel(cell, shape, precision)
    return make_layer_kernel(cell, shape)


_norm_kernel = functools.cache(make_norm_kernel)


@functools.cache
def _row_kernels(num_threads: int) -> tuple[Any, ...]:
    return (
        make_features_kernel(num_threads),
        make_move_kernel(num_threads),
        make_softmax_kernel(num_threads),
    )


class Network:
    """A model's weights and scratch on the GPU.

    Parameters
    ----------
    plan : GpuPlan
        What to run: sizes and places.
    max_rows : int
        Of a batch.
    """

    def __init__(self, plan: GpuPlan, max_rows: int) -> None:
        self.plan, self._max_rows = plan, max_rows
        self._tiling = tiling = TILING if plan.precision == "float32" else TENSOR_TILING
        self._words = cuda.to_device(plan.words)
        self._weights = cuda.to_device(plan.weights)
        self._first_record = cuda.to_device(plan.first_record)
        self._write_features, self._move_rows, self._softmax_rows = _row_kernels(tiling.row_threads)
        self._num_multiprocessors = num_multiprocessors()
        # Every multiprocessor has room for one block. A chunk has the bits of its single steps,
        # which the persistent kernel would not give it beside tensor cores.
        self._persistent = (
            persistent_shape(
                self.plan, self._num_multiprocessors, max_shared_bytes(), tiling.row_threads
            )
            if plan.precision == "float32"
            else None
        )
        if self._persistent:
            num_words = exchange_size(self._persistent)
            self._exchange = cuda.to_device(np.zeros(num_words, np.int64))
        self._work = cuda.to_device(np.zeros(max(1, max_rows * plan.work_size), np.float32))

    @property
    def max_persistent_rows(self) -> int:
        """The most rows whose steps are one launch; 0 if the model goes step by step."""
        return self._persistent.max_rows if self._persistent else 0

    def make_slab(self, num_slots: int) -> Slab:
        """Allocate rows, which no stream has yet."""
        rows = cuda.device_array(num_slots * self.plan.row_size, np.float32)
        return Slab(rows, np.zeros(num_slots, np.uint8))

    def launches(self, slab: Slab, batch: Batch) -> Launches:
        """Describe the launches of batches.

        The batch holds codes, all different, and at `first_input` the inputs [num_rows, num_steps,
        num_inputs]; in ``y`` go outputs [num_rows, num_steps, num_outputs].
        """
        plan, threads = self.plan, self._tiling.row_threads
        num_inputs, num_outputs = (int(plan.header[k]) for k in ("num_inputs", "output_size"))
        state = (self._weights, slab.rows, self._work)
        step: list[Launch] = []
        x_place: tuple[Any, int, int] = (batch.x, Number.X_START, Number.X_STRIDE)
        if plan.has_features:
            arrays = (self._words, *state, batch.slots, batch.x, batch.slots)
            block_rows = features_rows(num_inputs, threads)
            numbers = (*x_place[1:], Number.NUM_ROWS)
            step.append(Launch(self._write_features, (*arrays, *numbers), threads, 1, block_rows))
            x_place = (self._work, int(plan.header["features"]), plan.work_size)
        computed = x_place
        of_step = (Number.Y_START, Number.Y_STRIDE, Number.STEP, Number.NUM_ROWS)
        for layer in (*plan.layers, *([plan.head] if plan.head else [])):
            of_h = (slab.rows, layer.state + layer.other, 0)
            x, *place = {READS_X: x_place, READS_SCRATCH: computed, READS_H: of_h}[layer.reads]
            words = self._words[layer.place :]
            arrays = (words, *state, x, batch.slots, batch.y)
            step += self._layer_launches(layer, (*arrays, *place, *of_step))
            computed = (self._work, layer.out, plan.work_size)
            if layer.is_last:
                x_place = (slab.rows, layer.state, 0)
        last: tuple[Launch, ...] = ()
        if plan.head_activation == SOFTMAX:
            arguments = (batch.y, num_outputs, Number.NUM_ROWS, Number.NUM_STEPS)
            last = (Launch(self._softmax_rows, arguments, threads, 4 * self._num_multiprocessors),)
        return Launches(
            tuple(step),
            self._persistent_launches(slab, batch),
            last,
            self._max_rows,
            self.max_persistent_rows,
            num_inputs,
            num_outputs,
        )

    def _layer_launches(self, layer: GpuLayer, arguments: tuple[Any, ...]) -> list[Launch]:
        """Return a launch of each tile: which is taken decides how fast, never what comes out."""
        if layer.cell.end == NORM:
            threads = self._tiling.row_threads
            return [Launch(_norm_kernel(layer.cell, threads), arguments, threads, 1, block_rows=1)]
        shapes = self._tiling.shapes
        min_blocks = self._tiling.min_blocks or 3 * self._num_multiprocessors // 4
        return [
            Launch(
                _layer_kernel(layer.cell, shape, self.plan.precision),
                arguments,
                shape.num_threads,
                num_blocks=-(-layer.num_units // shape.block_units(layer.cell.kind)),
                block_rows=shape.block_rows,
                min_blocks=min_blocks if num_alternatives else 0,
                num_alternatives=num_alternatives,
            )
            for shape, num_alternatives in zip(shapes, reversed(range(len(shapes))), strict=True)
        ]

    def _persistent_launches(self, slab: Slab, batch: Batch) -> tuple[Launch, ...]:
        shape = self._persistent
        if shape is None:
            return ()
        numbers = (Number.NUM_ROWS, Number.NUM_STEPS, Number.X_START, Number.X_STRIDE, Number.STEP)
        arrays = (self._words, self._weights, slab.rows, self._exchange, batch.slots, batch.x)
        launch = Launch(
            make_persistent_kernel(shape),
            (*arrays, batch.slots, batch.y, *numbers),
            shape.threads,
            shape.num_blocks,
            shared_bytes=shape.shared_bytes,
            is_cooperative=True,
        )
        return (launch,)

    def start_rows(self, slab: Slab, slots: NDArray[np.int32]) -> None:
        """Put one or more rows into the initial state."""
        slab.halves[slots] = 0
        self._move(slab, slots, self._first_record, 0, 1)

    def write_rows(
        self, slab: Slab, slots: NDArray[np.int32], records: NDArray[np.float32]
    ) -> None:
        """Put records [n, record_size] of the host into n different slots, and wait for it."""
        slab.halves[slots] = 0
        self._move(slab, slots, cuda.to_device(records.reshape(-1)), self.plan.record_size, 1)
        cuda.synchronize()

    def read_rows(self, slab: Slab, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        """Copy the records [n, record_size] of n slots to the host, and wait for it."""
        records = cuda.device_array(len(slots) * self.plan.record_size, np.float32)
        self._move(slab, slots, records, self.plan.record_size, 0)
        host: NDArray[np.float32] = records.copy_to_host()
        return host.reshape(len(slots), -1)

    def _move(
        self, slab: Slab, slots: NDArray[np.int32], records: Any, stride: int, inwards: int
    ) -> None:
        launch = self._move_rows[max(len(slots), _MIN_BLOCKS), self._tiling.row_threads]
        codes = cuda.to_device(slots << 1 | slab.halves[slots])
        launch(self._words, slab.rows, codes, records, stride, inwards)
