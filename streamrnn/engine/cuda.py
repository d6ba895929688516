"""CUDA device: slab and weights on the GPU, one copy each way for a batch.

A call is cut into batches of some rows and some of their steps. Inputs and slot numbers of a batch
are copied from one pinned buffer, its outputs into another. There are two such pairs: while the GPU
computes one batch, the host fills the inputs and empties the outputs of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.device import DONE, SLOT_MASK, check_call
from streamrnn.errors import DeviceError
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cuda.compiler import arithmetic, gpu_errors, require_gpu
from streamrnn.kernels.cuda.launches import first_input
from streamrnn.kernels.jit import jit
from streamrnn.model.model import Model

if TYPE_CHECKING:
    from streamrnn.kernels.cuda.transfer import Transfer

__all__ = ["CudaDevice"]

_MAX_WORK_BYTES = 64 << 20  # scratch of a batch
_MAX_BUFFER_BYTES = 8 << 20  # a batch's inputs, or its outputs
_MIN_ROWS, _MAX_ROWS = 128, 16_384  # of a batch
_MAX_CHUNK_STEPS = 32  # of a server's batch; other batches wait meanwhile
_MAX_STREAMS = 1 << 30  # a slot and a bit are an int32
_SPARE_BYTES = 256 << 20  # for the driver, and for the code of the kernels


class CudaDevice:
    """CUDA device: a slab on a GPU, stepped by the CUDA kernels.

    ``marks`` is [max_streams + 1, 2], see `check_call`; memory for all slots is allocated at once.
    ``precision`` is one of `streamrnn.kernels.precisions.DEVICE_PRECISIONS`. ``max_rows`` bounds a
    batch; ``max_chunk_rows`` and ``max_chunk_steps`` bound a batch whose steps are one launch (0
    rows if the model is stepped one launch a step). ``batch_x`` and ``batch_y`` are pinned memory
    for `begin_batch` and `end_batch`. Raises a `DeviceError` if there is no usable GPU or too
    little memory.
    """

    def __init__(self, model: Model, marks: NDArray[np.int64], precision: str = "float32") -> None:
        self._cuda = require_gpu()
        self._marks, max_streams = marks, len(marks) - 1
        from streamrnn.kernels.cuda.network import Network
        from streamrnn.kernels.cuda.plan import GpuPlan
        from streamrnn.kernels.cuda.transfer import Transfer

        plan = GpuPlan(model, precision)
        self.program = Program(model)
        self.arithmetic = arithmetic(precision)
        self._num_inputs, self._output_size = model.spec.num_inputs, model.spec.output_size
        self._record_size, self._row_bytes = plan.record_size, 4 * plan.row_size
        work_bytes = 4 * max(1, plan.work_size)
        self.max_rows = max(_MIN_ROWS, min(_MAX_ROWS, _MAX_WORK_BYTES // work_bytes, max_streams))
        # Enough for one step of all rows, or for more steps of fewer.
        buffer_size = _MAX_BUFFER_BYTES // 4
        fewest = first_input(self.max_rows) + self.max_rows * self._num_inputs
        self._x_size = max(buffer_size, fewest)
        self._y_size = max(buffer_size, self.max_rows * self._output_size)
        self._failure: DeviceError | None = None
        self._started: list[int] = []  # slots whose rows `start_rows` has deferred
        fixed = plan.weights.nbytes + self.max_rows * work_bytes
        self._check_room(max_streams, fixed + 8 * (self._x_size + self._y_size))
        try:
            self._network = Network(plan, self.max_rows)
            self._slab = self._network.make_slab(max_streams)
            self._compute = self._cuda.stream()
            sizes = (self._x_size, self._y_size)
            self._transfers = [
                Transfer(self._network, self._slab, *sizes, self._compute) for _ in range(2)
            ]
        except gpu_errors() as error:
            raise DeviceError(f"the GPU has refused what the engine needs: {error}") from error
        self.max_chunk_rows = rows = self._network.max_persistent_rows
        self.max_chunk_steps = min(
            _MAX_CHUNK_STEPS,
            (self._x_size - first_input(rows)) // max(1, rows * self._num_inputs),
            self._y_size // max(1, rows * self._output_size),
        )
        self.batch_x, self.batch_y = self._transfers[0].x, self._transfers[0].y
        self._guard(self._warm_up)

    def advance(
        self,
        rows: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.float32],
        num_steps: int,
        /,
    ) -> int:
        """Implement `Device.advance`."""
        answer: int = _check_call(
            self.program.plan_address,
            rows,
            x,
            num_steps,
            self._marks.ctypes.data,
            len(self._marks) - 1,
        )
        if answer != DONE or not len(x):
            return answer
        slots = (rows & SLOT_MASK).astype(np.int32)
        self._guard(self._run, slots, x, y, num_steps)
        return DONE

    def start_rows(self, slots: NDArray[np.integer[Any]]) -> None:
        """Implement `Device.start_rows`, deferred until the next call."""
        self._started.extend(slots.tolist())

    def read_rows(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Implement `Device.read_rows`."""
        parts = [np.empty((0, self._record_size), dtype=np.float32)]
        for first in range(0, len(slots), self.max_rows):
            some = slots[first : first + self.max_rows].astype(np.int32)
            parts.append(self._guard(self._read, some))
        return np.concatenate(parts)

    def write_rows(self, slots: NDArray[np.integer[Any]], rows: NDArray[np.float32]) -> None:
        """Implement `Device.write_rows`."""
        for first in range(0, len(slots), self.max_rows):
            some = slots[first : first + self.max_rows].astype(np.int32)
            values = np.ascontiguousarray(rows[first : first + self.max_rows], dtype=np.float32)
            self._guard(self._write, some, values)

    def begin_batch(self, num_rows: int, num_steps: int = 1) -> None:
        """Start a batch that the caller has checked and packed into ``batch_x``.

        ``batch_x`` holds the slots (int32, all different; 1 to ``max_rows``) and, at
        `first_input`, the inputs [num_rows, num_steps, num_inputs]. It must not change until
        `end_batch`; the slots have been replaced then. Raises a `DeviceError` if the GPU has
        failed, now or before; the streams are lost then.
        """
        self._guard(self._transfers[0].begin, num_rows, num_steps, False)

    def end_batch(self) -> None:
        """Wait for the batch; ``batch_y`` then is [num_rows, num_steps, output_size].

        Raises a `DeviceError` as `begin_batch` does.
        """
        self._guard(self._transfers[0].end)

    def _run(
        self, slots: NDArray[np.int32], x: NDArray[Any], y: NDArray[np.float32], num_steps: int
    ) -> None:
        """Cut a call into batches, and keep two of them in flight."""
        self._start_rows()
        batches = list(self._batches(len(slots), num_steps))
        x = x.view(np.float32).reshape(len(slots), num_steps, self._num_inputs)
        y = y.reshape(len(slots), num_steps, self._output_size)
        under_way: list[tuple[Transfer, NDArray[np.float32]]] = []
        for number, (rows, steps) in enumerate(batches):
            transfer = self._transfers[number % 2]
            if len(under_way) == 2:
                _end(*under_way.pop(0))
            inputs = x[rows, steps]
            num_rows, num_batch_steps = inputs.shape[:2]
            transfer.x[:num_rows].view(np.int32)[:] = slots[rows]
            first = first_input(num_rows)
            transfer.x[first : first + inputs.size].reshape(inputs.shape)[:] = inputs
            transfer.begin(num_rows, num_batch_steps, len(batches) > 1)
            under_way.append((transfer, y[rows, steps]))
        for each in under_way:
            _end(*each)

    def _warm_up(self) -> None:
        """Run the kernels once; overwrites the first row, which no stream has yet."""
        transfer = self._transfers[0]
        transfer.x[: first_input(1) + 2 * self._num_inputs] = 0
        for num_steps in (1, 2):
            transfer.begin(1, num_steps, False)
            transfer.end()
        first = np.zeros(1, dtype=np.int64)
        self.start_rows(first)
        self._write(first.astype(np.int32), self._read(first.astype(np.int32)))

    def _batches(self, num_rows: int, num_steps: int) -> Iterator[tuple[slice, slice]]:
        """Yield rows and steps of each batch; a row's steps in time order."""
        for first in range(0, num_rows, self.max_rows):
            rows = slice(first, min(num_rows, first + self.max_rows))
            batch_rows = rows.stop - first
            most = min(
                (self._x_size - first_input(batch_rows)) // (batch_rows * self._num_inputs),
                self._y_size // (batch_rows * self._output_size),
            )
            for step in range(0, num_steps, most):
                yield rows, slice(step, min(num_steps, step + most))

    def _start_rows(self) -> None:
        if self._started:
            self._cuda.current_context()  # of this thread, which may be a new one
            slots = np.array(self._started, dtype=np.int32)
            self._started.clear()
            self._network.start_rows(self._slab, slots)
            self._cuda.synchronize()

    def _read(self, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        self._start_rows()
        self._cuda.current_context()
        return self._network.read_rows(self._slab, slots)

    def _write(self, slots: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        self._start_rows()
        self._cuda.current_context()
        self._network.write_rows(self._slab, slots, rows)

    def _guard(self, function: Any, *args: Any) -> Any:
        """Call a function; after a GPU error refuse every further call."""
        if self._failure is not None:
            raise self._failure
        try:
            return function(*args)
        except gpu_errors() as error:
            self._failure = DeviceError(
                f"the GPU has failed: {error}. The streams of this engine are lost: start a new "
                "process, restore their states there, and replay"
            )
            raise self._failure from error

    def _check_room(self, max_streams: int, fixed_bytes: int) -> None:
        """Raise a `DeviceError` if the streams do not fit; it says how many would."""
        free = self._cuda.current_context().get_memory_info().free - _SPARE_BYTES - fixed_bytes
        row_bytes = self._row_bytes
        if max_streams * row_bytes <= free and max_streams <= _MAX_STREAMS:
            return
        fitting = min(max(0, int(free // row_bytes)), _MAX_STREAMS)
        hint = f"make the engine with max_streams={fitting}" if fitting else "use device 'cpu'"
        raise DeviceError(
            f"{max_streams:,} streams of {row_bytes:,} bytes need "
            f"{max_streams * row_bytes / 2**30:.1f} GiB of the GPU's memory, where {fitting:,} "
            f"would fit; {hint}"
        )


@jit
def _check_call(plan_address, rows, x, num_steps, marks, max_streams):  # type: ignore[no-untyped-def]
    return check_call(plan_at(plan_address), rows, x, num_steps, marks, max_streams)


def _end(transfer: Transfer, target: NDArray[np.float32]) -> None:
    """Wait for a batch, and copy its outputs to the caller's array."""
    transfer.end()
    target[:] = transfer.y[: target.size].reshape(target.shape)
