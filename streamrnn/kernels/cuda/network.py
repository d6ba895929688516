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
from streamrnn.kernels.cuda.features import features_rows, make_features_kernel
from streamrnn.kernels.cuda.launches import Launch, Launches, Number
from streamrnn.kernels.cuda.outputs import (
    make_finish_kernel,
    make_move_kernel,
    make_softmax_kernel,
    make_start_kernel,
)
from streamrnn.kernels.cuda.persistent import (
    exchange_size,
    make_persistent_kernel,
    persistent_shape,
)
from streamrnn.kernels.cuda.plan import LAYER_SIZE, Cell, GpuLayer, GpuPlan
from streamrnn.kernels.cuda.tensor_cores import TensorShape, make_tensor_kernel
from streamrnn.kernels.cuda.tiles import TileShape, make_layer_kernel
from streamrnn.kernels.row_layout import first_row
from streamrnn.model.model import Model

__all__ = ["TENSOR_TILING", "TILING", "Batch", "Network", "Tiling"]


# Numba warns of a grid of fewer blocks, in a class of warnings of its own and in whatever thread
# that is: a filter would reach the user's warnings too. What has no row ends at once.
_MIN_BLOCKS = 1 if SIMULATED else 128


@dataclass(frozen=True)
class Tiling:
    """The shapes of all launches. Another tiling gives the same bits."""

    wide: TileShape | TensorShape  # for batches that fill the GPU with its blocks
    narrow: TileShape | TensorShape  # for all others
    row_threads: int  # of a block that takes one row, or whose threads take one input each
    min_wide_blocks: int = 0  # wide blocks that fill the GPU; 0: one a multiprocessor


# 128 streams and 32 LSTM units a block, 64 sums a thread in registers; or 8 streams and 16 units.
TILING = Tiling(TileShape(2, 4, 8, 2, 2, min_blocks=2), TileShape(2, 2, 1, 1, 4), 128)
# The same block by eight warps; or 16 streams and 32 units by four.
TENSOR_TILING = Tiling(TensorShape(2, 4, 2, 8, 2, min_blocks=2), TensorShape(4, 1, 1, 4, 4), 128)


@dataclass(frozen=True)
class Batch:
    """The arrays on the GPU that a batch's inputs and outputs lie in."""

    slots: Any  # int32, of each row; the inputs follow in the same memory
    x: Any  # the same memory as float32
    y: Any  # float32, outputs


@functools.cache
def _layer_kernel(cell: Cell, shape: TileShape | TensorShape, precision: str) -> Any:
    if isinstance(shape, TensorShape):
        return make_tensor_kernel(cell, shape, precision)
    return make_layer_kernel(cell, shape)


@functools.cache
def _row_kernels(num_threads: int) -> tuple[Any, ...]:
    return (
        make_features_kernel(num_threads),
        make_finish_kernel(num_threads),
        make_start_kernel(num_threads),
        make_move_kernel(num_threads),
        make_softmax_kernel(num_threads),
    )


class Network:
    """A model's weights and scratch on the GPU.

    Parameters
    ----------
    model : Model
        What to run.
    max_rows : int
        Of a batch.
    precision : str
        Of the products: ``"float32"``, or ``"tf32"`` and ``"bfloat16"``, which go by tensor cores.

    Attributes
    ----------
    plan : GpuPlan
        Sizes and places.
    """

    def __init__(self, model: Model, max_rows: int, precision: str = "float32") -> None:
        self.plan = GpuPlan(model, precision)
        self._precision, self._max_rows = precision, max_rows
        self._tiling = tiling = TILING if precision == "float32" else TENSOR_TILING
        self._words = cuda.to_device(self.plan.words)
        self._weights = cuda.to_device(self.plan.weights)
        self._initial_row = cuda.to_device(first_row(model))
        (
            self._write_features,
            self._finish,
            self._start_rows,
            self._move_rows,
            self._softmax_rows,
        ) = _row_kernels(tiling.row_threads)
        self._num_multiprocessors = num_multiprocessors()
        # Every multiprocessor has room for one block. A chunk has the bits of its single steps,
        # which the persistent kernel would not give it beside tensor cores.
        self._persistent = (
            persistent_shape(
                self.plan, self._num_multiprocessors, max_shared_bytes(), tiling.row_threads
            )
            if precision == "float32"
            else None
        )
        if self._persistent:
            num_words = exchange_size(self._persistent)
            self._exchange = cuda.to_device(np.zeros(num_words, np.int64))
        self._work = cuda.to_device(np.zeros(max_rows * self.plan.work_size, np.float32))

    @property
    def max_persistent_rows(self) -> int:
        """The most rows whose steps are one launch; 0 if the model goes step by step."""
        return self._persistent.max_rows if self._persistent else 0

    def launches(self, slab: Any, batch: Batch) -> Launches:
        """Describe the launches of batches.

        ``slab`` holds the streams' rows. The batch holds slots, all different, and at `first_input`
        the inputs [num_rows, num_steps, num_inputs]; in ``y`` go outputs [num_rows, num_steps,
        output_size].
        """
        plan, threads = self.plan, self._tiling.row_threads
        state = (self._words, self._weights, slab, self._work)
        num_inputs = int(plan.header["num_inputs"])
        step: list[Launch] = []
        x_place: tuple[Any, int, int] = (batch.x, Number.X_START, Number.X_STRIDE)
        if plan.has_features:
            arguments = (*state, batch.slots, batch.x, batch.slots, *x_place[1:], Number.NUM_ROWS)
            block_rows = features_rows(num_inputs, threads)
            step.append(Launch(self._write_features, arguments, threads, 1, block_rows))
            x_place = (self._work, int(plan.header["features"]), plan.work_size)
        computed = x_place
        for layer in (*plan.layers, *([plan.head] if plan.head else [])):
            x, *place = x_place if layer.reads_x else computed
            words = self._words[layer.place : layer.place + LAYER_SIZE]
            arguments = (words, *state[1:], x, batch.slots, *place, Number.NUM_ROWS)
            step += self._layer_launches(layer, arguments)
            computed = (self._work, layer.out, plan.work_size)
            if layer.is_last:
                x_place = computed
        of_batch = (Number.NUM_ROWS, Number.STEP, Number.NUM_STEPS)
        step.append(Launch(self._finish, (*state, batch.slots, batch.y, *of_batch), threads, 1, 1))
        persistent = self._persistent_launches(slab, batch)
        return Launches(
            tuple(step), persistent, self._max_rows, self.max_persistent_rows, num_inputs
        )

    def _layer_launches(self, layer: GpuLayer, arguments: tuple[Any, ...]) -> list[Launch]:
        """Return both tiles: which is taken decides how fast, never what comes out."""
        return [
            Launch(
                _layer_kernel(layer.cell, shape, self._precision),
                arguments,
                shape.num_threads,
                num_blocks=-(-layer.num_units // shape.block_units(layer.cell.kind)),
                block_rows=shape.block_rows,
                min_blocks=min_blocks,
                num_alternatives=num_alternatives,
            )
            for shape, min_blocks, num_alternatives in (
                (self._tiling.wide, self._tiling.min_wide_blocks or self._num_multiprocessors, 1),
                (self._tiling.narrow, 0, 0),
            )
        ]

    def _persistent_launches(self, slab: Any, batch: Batch) -> tuple[Launch, ...]:
        shape, header, threads = self._persistent, self.plan.header, self._tiling.row_threads
        if shape is None:
            return ()
        of_chunk, x_place = (Number.NUM_ROWS, Number.NUM_STEPS), (Number.X_START, Number.X_STRIDE)
        arrays = (self._words, self._weights, slab, self._exchange, batch.slots, batch.x)
        persistent = Launch(
            make_persistent_kernel(shape),
            (*arrays, batch.slots, batch.y, *of_chunk, *x_place),
            shape.threads,
            shape.num_blocks,
            shared_bytes=shape.shared_bytes,
            is_cooperative=True,
        )
        if not self.plan.head or header["head_activation"] != SOFTMAX:
            return (persistent,)
        arguments = (batch.y, int(header["output_size"]), *of_chunk)
        softmax = Launch(self._softmax_rows, arguments, threads, 4 * self._num_multiprocessors)
        return (persistent, softmax)

    def start_rows(self, slab: Any, slots: NDArray[np.int32]) -> None:
        """Put one or more rows into the initial state."""
        launch = self._launch_of_rows(self._start_rows, len(slots))
        launch(slab, cuda.to_device(slots), self._initial_row)

    def write_rows(self, slab: Any, slots: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        """Put rows [n, row_size] of the host into n different slots, and wait for it."""
        self._move(slab, slots, cuda.to_device(rows.reshape(-1)), 1)
        cuda.synchronize()

    def read_rows(self, slab: Any, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        """Copy the rows [n, row_size] of n slots to the host, and wait for it."""
        rows = cuda.device_array(len(slots) * self.plan.row_size, np.float32)
        self._move(slab, slots, rows, 0)
        host: NDArray[np.float32] = rows.copy_to_host()
        return host.reshape(len(slots), -1)

    def _move(self, slab: Any, slots: NDArray[np.int32], rows: Any, inwards: int) -> None:
        launch = self._launch_of_rows(self._move_rows, len(slots))
        launch(slab, cuda.to_device(slots), rows, self.plan.row_size, inwards)

    def _launch_of_rows(self, kernel: Any, num_rows: int) -> Any:
        """Return a kernel ready to be called, at least one block a row."""
        return kernel[max(num_rows, _MIN_BLOCKS), self._tiling.row_threads]
