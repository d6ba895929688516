"""A loaded model on the GPU, and the launches of one step of a wave."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning
from numpy.typing import NDArray

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as plan_words
from streamrnn.kernels.cuda.chunk import chunk_size, make_chunk_kernel
from streamrnn.kernels.cuda.plan import GpuLayer, GpuPlan
from streamrnn.kernels.cuda.rows import (
    make_features_kernel,
    make_finish_kernel,
    make_move_kernel,
    make_softmax_kernel,
    make_start_kernel,
)
from streamrnn.kernels.cuda.support import SIMULATED
from streamrnn.kernels.cuda.tiles import TileShape, make_layer_kernel
from streamrnn.kernels.plan import Program
from streamrnn.model import Model

__all__ = ["TILING", "Network", "Tiling", "Wave"]


@dataclass(frozen=True)
class Tiling:
    """The shapes of all launches. Another tiling gives the same bits.

    Attributes
    ----------
    wide : TileShape
        For waves that fill the GPU with its blocks.
    narrow : TileShape
        For all others.
    row_threads : int
        Threads of a block where a block takes one row, or a thread one input.
    """

    wide: TileShape
    narrow: TileShape
    row_threads: int


# 128 streams and 32 LSTM units a block, 64 sums a thread in registers; or 8 streams and 16 units.
TILING = Tiling(TileShape(16, 16, 8, 8, min_blocks=2), TileShape(16, 8, 1, 4), 128)


@dataclass(frozen=True)
class Wave:
    """The arrays on the GPU that a wave's inputs and outputs lie in.

    Attributes
    ----------
    slots : device array of int32
        Of each row; the inputs follow in the same memory, as the other two see it.
    x : device array of float32
        The same memory.
    y : device array of float32
        Outputs.
    """

    slots: Any
    x: Any
    y: Any


@functools.cache
def _layer_kernel(kind: int, shape: TileShape) -> Any:
    return make_layer_kernel(kind, shape)


@functools.cache
def _row_kernels(num_threads: int) -> tuple[Any, ...]:
    return (
        make_features_kernel(num_threads),
        make_finish_kernel(num_threads),
        make_start_kernel(num_threads),
        make_move_kernel(num_threads),
        make_softmax_kernel(num_threads),
        make_chunk_kernel(num_threads),
    )


class Network:
    """A model's weights and scratch on the GPU.

    Parameters
    ----------
    model : Model
        What to run.
    program : Program
        The same model on the CPU, whose row layout is taken over.
    max_rows : int
        Of a wave.
    tiling : Tiling
        Shapes of the launches.

    Attributes
    ----------
    plan : GpuPlan
        Sizes and places.
    """

    def __init__(self, model: Model, program: Program, max_rows: int, tiling: Tiling) -> None:
        self.plan = GpuPlan(model, program)
        self._tiling = tiling
        self._words = cuda.to_device(self.plan.words)
        self._weights = cuda.to_device(self.plan.weights)
        self._initial_row = cuda.to_device(np.array(program.initial_row))
        # A chunk of one stream takes two rows in turn.
        self._work = cuda.device_array(max(2, max_rows) * self.plan.work_size, np.float32)
        (
            self._write_features,
            self._finish,
            self._start_rows,
            self._move_rows,
            self._softmax_rows,
            self._step_chunk,
        ) = _row_kernels(tiling.row_threads)
        self._num_multiprocessors = (
            1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
        )
        # Every multiprocessor has room for one block. The simulator knows no more than one.
        self._chunk = chunk_size(self.plan, self._num_multiprocessors)
        self._launches: dict[tuple[Any, ...], Any] = {}

    def steps(self, slab: Any, wave: Wave, num_rows: int, num_steps: int, stream: Any) -> None:
        """Advance a wave's streams by some time steps each, in stream order; does not wait.

        Parameters
        ----------
        slab : device array of float32, shape (num_slots * row_size,)
            The streams' rows.
        wave : Wave
            Slots, all different; behind them the inputs [num_rows, num_steps, num_inputs]; where
            the outputs [num_rows, num_steps, output_size] go.
        num_rows, num_steps : int
            1 to max_rows; 1 or more.
        stream : cuda stream
            Where to launch.
        """
        x_size = int(self.plan.words[plan_words.NUM_INPUTS])
        y_size = int(self.plan.words[plan_words.OUTPUT_SIZE])
        if num_rows == 1 and num_steps > 1 and self._chunk is not None:
            self._launch_chunk(slab, wave, num_steps, stream)
            return
        for step in range(num_steps):
            x_place = (num_rows + step * x_size, num_steps * x_size)
            y_place = (step * y_size, num_steps * y_size)
            self._step(slab, wave, num_rows, x_place, y_place, stream)

    def _step(
        self,
        slab: Any,
        wave: Wave,
        num_rows: int,
        x_place: tuple[int, int],
        y_place: tuple[int, int],
        stream: Any,
    ) -> None:
        """Launch one step. A place: of the first row, and from each row to the next."""
        plan, words, weights, work = self.plan, self._words, self._weights, self._work
        threads = self._tiling.row_threads
        x, x_start, x_stride = wave.x, *x_place
        if not plan.inputs_are_features:
            num_inputs = int(plan.words[plan_words.NUM_INPUTS])
            grid = (-(-num_rows * num_inputs // threads), 1)
            self._launch(self._write_features, grid, threads, stream)(
                words, weights, slab, work, wave.slots, x, wave.slots, x_start, x_stride, num_rows
            )
            x, x_start, x_stride = work, int(plan.words[plan_words.FEATURES]), plan.work_size
        for layer in (*plan.layers, plan.head):
            if layer is None:
                continue
            kernel, grid, layer_threads = self._layer_launch(layer, num_rows)
            self._launch(kernel, grid, layer_threads, stream)(
                words,
                weights,
                slab,
                work,
                x,
                wave.slots,
                layer.words,
                x_start,
                x_stride,
                num_rows,
            )
            x, x_start, x_stride = work, layer.out, plan.work_size
        self._launch(self._finish, (num_rows, 1), threads, stream)(
            words, weights, slab, work, wave.slots, wave.y, *y_place
        )

    def _launch_chunk(self, slab: Any, wave: Wave, num_steps: int, stream: Any) -> None:
        """Launch all steps of one stream at once."""
        assert self._chunk is not None
        num_blocks, vector_size, sums_size, num_bytes = self._chunk
        threads = self._tiling.row_threads
        self._launch(self._step_chunk, (num_blocks, 1), threads, stream, num_bytes)(
            self._words,
            self._weights,
            slab,
            self._work,
            wave.slots,
            wave.x,
            wave.slots,
            1,
            wave.y,
            num_steps,
            vector_size,
            sums_size,
        )
        words = self.plan.words
        if self.plan.head and words[plan_words.HEAD_ACTIVATION] == SOFTMAX:
            launch = self._launch(self._softmax_rows, (max(1, num_steps), 1), threads, stream)
            launch(wave.y, int(words[plan_words.OUTPUT_SIZE]))

    def warm_up(self, slab: Any, wave: Wave, stream: Any) -> None:
        """Compile and launch every kernel that this model needs, so that no step has to wait.

        Parameters
        ----------
        slab : device array of float32
            Its first row is spoilt.
        wave : Wave
            Its first slot is 0.
        stream : cuda stream
            Where to launch.
        """
        words, weights, work = self._words, self._weights, self._work
        threads, slots = self._tiling.row_threads, wave.slots
        if not self.plan.inputs_are_features:
            self._launch(self._write_features, (1, 1), threads, stream)(
                words, weights, slab, work, slots, wave.x, slots, 1, 0, 0
            )
        layers = (*self.plan.layers, *([self.plan.head] if self.plan.head else []))
        for layer in layers:
            for shape in (self._tiling.wide, self._tiling.narrow):
                kernel = _layer_kernel(layer.kind, shape)
                self._launch(kernel, (1, 1), shape.num_threads, stream)(
                    words, weights, slab, work, work, slots, layer.words, 0, 0, 0
                )
        self._launch(self._finish, (1, 1), threads, stream)(
            words, weights, slab, work, slots, wave.y, 0, 0
        )
        first = np.zeros(1, dtype=np.int32)
        self.start_rows(slab, first)
        self.write_rows(slab, first, self.read_rows(slab, first))
        if self._chunk is not None:
            self._launch_chunk(slab, wave, 0, stream)

    def start_rows(self, slab: Any, slots: NDArray[np.int32]) -> None:
        """Put rows into the initial state.

        Parameters
        ----------
        slab : device array of float32
            The streams' rows.
        slots : ndarray of int32, shape (n,)
            Which, n above 0.
        """
        launch = self._launch(self._start_rows, (len(slots), 1), self._tiling.row_threads, 0)
        launch(slab, cuda.to_device(slots), self._initial_row)

    def write_rows(self, slab: Any, slots: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        """Put rows of the host into the slab, and wait for it.

        Parameters
        ----------
        slab : device array of float32
            The streams' rows.
        slots : ndarray of int32, shape (n,)
            Where to, all different, n above 0.
        rows : ndarray of float32, shape (n, row_size)
            Contiguous.
        """
        self._move(slab, slots, cuda.to_device(rows.reshape(-1)), 1)
        cuda.synchronize()

    def read_rows(self, slab: Any, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        """Copy rows of the slab to the host, and wait for it.

        Parameters
        ----------
        slab : device array of float32
            The streams' rows.
        slots : ndarray of int32, shape (n,)
            Which, n above 0.

        Returns
        -------
        ndarray of float32, shape (n, row_size)
        """
        rows = cuda.device_array(len(slots) * self.plan.row_size, np.float32)
        self._move(slab, slots, rows, 0)
        host: NDArray[np.float32] = rows.copy_to_host()
        return host.reshape(len(slots), -1)

    def _move(self, slab: Any, slots: NDArray[np.int32], rows: Any, inwards: int) -> None:
        launch = self._launch(self._move_rows, (len(slots), 1), self._tiling.row_threads, 0)
        launch(slab, cuda.to_device(slots), rows, self.plan.row_size, inwards)

    def _layer_launch(self, layer: GpuLayer, num_rows: int) -> tuple[Any, tuple[int, int], int]:
        """Choose the tile: it decides how fast, never what comes out."""
        for shape in (self._tiling.wide, self._tiling.narrow):
            blocks = (
                -(-layer.num_units // shape.block_units(layer.kind)),
                -(-num_rows // shape.block_rows),
            )
            if blocks[0] * blocks[1] >= self._num_multiprocessors:
                break
        return _layer_kernel(layer.kind, shape), blocks, shape.num_threads

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        threads: int,
        stream: Any,
        shared_bytes: int = 0,
    ) -> Any:
        """Return a kernel ready to be called with its arguments."""
        configuration = (grid, threads, stream, shared_bytes)
        if SIMULATED:  # where a configured kernel is the kernel itself
            return kernel[configuration]
        launch = self._launches.get((kernel, configuration))
        if launch is None:
            if len(self._launches) > 4096:
                self._launches.clear()
            with warnings.catch_warnings():
                # A wave of few streams fills no GPU, and its owner knows.
                warnings.simplefilter("ignore", NumbaPerformanceWarning)
                launch = self._launches[kernel, configuration] = kernel[configuration]
        return launch
