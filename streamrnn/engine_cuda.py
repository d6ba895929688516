"""A GPU as an engine's device: the slab and the weights there, a wave over and back in one copy.

A call is cut into waves of some rows and some of their steps. Inputs and slot numbers of a wave go
over in one pinned buffer, its outputs come back in one. There are two such pairs: while the GPU
computes one wave, the host fills the other's inputs and empties its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine_device import DONE, SLOT_MASK, check_call
from streamrnn.errors import DeviceError
from streamrnn.kernels.cuda.support import ARITHMETIC, gpu_errors, require_gpu
from streamrnn.kernels.plan import Program
from streamrnn.model import Model

__all__ = ["CudaDevice"]

_MAX_WORK_BYTES = 64 << 20  # scratch of a wave
_MAX_BUFFER_BYTES = 8 << 20  # a wave's inputs, or its outputs
_MIN_ROWS, _MAX_ROWS = 128, 16_384  # of a wave
_SPARE_BYTES = 256 << 20  # for the driver, and for the code of the kernels


class CudaDevice:
    """A slab on a GPU, stepped by its kernels. See `streamrnn.engine_device.Device`.

    Parameters
    ----------
    model : Model
        What to run.
    marks : ndarray of int64, shape (max_streams + 1, 2)
        See `streamrnn.engine_device.check_call`. Memory of the slab is taken for all slots.

    Attributes
    ----------
    program : Program
        The same model on the CPU: the layout of a row, and what checks an input.
    arithmetic : str
        What decides the bits of an output besides model and inputs.
    max_rows : int
        Of a wave.
    wave_x, wave_y : ndarray of float32
        Pinned memory for `begin_wave` and `end_wave`.

    Raises
    ------
    DeviceError
        If there is no GPU that can be used, or it has no room for so many streams.
    """

    def __init__(self, model: Model, marks: NDArray[np.int64]) -> None:
        self._cuda = require_gpu()
        self._marks, max_streams = marks, len(marks) - 1
        from streamrnn.kernels.cuda.network import TILING, Network

        self.program = Program(model)
        self.arithmetic = ARITHMETIC
        spec = model.spec
        self._row_size = self.program.row_bytes // 4
        self._num_inputs, self._output_size = spec.num_inputs, spec.output_size
        work_bytes = self.program.row_bytes + 4 * (spec.num_features + spec.output_size + 32)
        self.max_rows = max(_MIN_ROWS, min(_MAX_ROWS, _MAX_WORK_BYTES // work_bytes, max_streams))
        # Room for one step of all rows, or for more steps of fewer.
        buffer_size = _MAX_BUFFER_BYTES // 4
        self._x_size = max(buffer_size, self.max_rows * (self._num_inputs + 1))
        self._y_size = max(buffer_size, self.max_rows * self._output_size)
        self._failure: DeviceError | None = None
        self._started: list[int] = []  # slots whose rows are to be put into the initial state
        parameters_bytes = sum(value.nbytes for value in model.parameters.values())
        fixed = 2 * parameters_bytes + self.max_rows * work_bytes
        self._check_room(max_streams, fixed + 8 * (self._x_size + self._y_size))
        try:
            self._network = Network(model, self.program, self.max_rows, TILING)
            self._slab = self._cuda.device_array(max_streams * self._row_size, np.float32)
            self._lanes = [_Lane(self._cuda, self._x_size, self._y_size) for _ in range(2)]
        except gpu_errors() as error:
            raise DeviceError(f"the GPU has refused the memory that it showed: {error}") from error
        self.wave_x, self.wave_y = self._lanes[0].x, self._lanes[0].y
        self._compute = self._cuda.stream()
        self._guard(self._warm_up)

    def advance(
        self,
        rows: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.float32],
        num_steps: int,
        /,
    ) -> int:
        """See `streamrnn.engine_device.Device.advance`.

        Parameters
        ----------
        rows, x, y, num_steps
            As there.

        Returns
        -------
        int

        Raises
        ------
        DeviceError
            If the GPU has failed, now or before. The streams are lost then.
        """
        answer: int = check_call(
            self.program.plan, rows, x, num_steps, self._marks.ctypes.data, len(self._marks) - 1
        )
        if answer != DONE or not len(x):
            return answer
        slots = (rows & SLOT_MASK).astype(np.int32)
        self._guard(self._run, slots, x, y, num_steps)
        return DONE

    def start_rows(self, slots: NDArray[np.integer[Any]]) -> None:
        """See `streamrnn.engine_device.Device.start_rows`. Done before the next call.

        Parameters
        ----------
        slots
            As there.
        """
        self._started.extend(slots.tolist())

    def read_rows(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """See `streamrnn.engine_device.Device.read_rows`.

        Parameters
        ----------
        slots : ndarray of integers, shape (n,)
            Below max_streams.

        Returns
        -------
        ndarray of float32, shape (n, row_bytes // 4)

        Raises
        ------
        DeviceError
            If the GPU has failed, now or before. The streams are lost then.
        """
        parts = [np.empty((0, self._row_size), dtype=np.float32)]
        for first in range(0, len(slots), self.max_rows):
            some = slots[first : first + self.max_rows].astype(np.int32)
            parts.append(self._guard(self._read, some))
        return np.concatenate(parts)

    def write_rows(self, slots: NDArray[np.integer[Any]], rows: NDArray[np.float32]) -> None:
        """See `streamrnn.engine_device.Device.write_rows`.

        Parameters
        ----------
        slots : ndarray of integers, shape (n,)
            Below max_streams, all different.
        rows : ndarray of float32, shape (n, row_bytes // 4)
            From `read_rows` of any device.

        Raises
        ------
        DeviceError
            If the GPU has failed, now or before. The streams are lost then.
        """
        for first in range(0, len(slots), self.max_rows):
            some = slots[first : first + self.max_rows].astype(np.int32)
            values = np.ascontiguousarray(rows[first : first + self.max_rows], dtype=np.float32)
            self._guard(self._write, some, values)

    def begin_wave(self, num_rows: int) -> None:
        """Start one step of some streams, for a caller that checks and packs by itself.

        Parameters
        ----------
        num_rows : int
            1 to max_rows. ``wave_x`` holds so many slots (int32, all different), and behind them
            as many inputs. Both must stay as they are until `end_wave`.

        Raises
        ------
        DeviceError
            If the GPU has failed, now or before. The streams are lost then.
        """
        self._guard(self._begin_wave, num_rows)

    def end_wave(self) -> None:
        """Wait for the wave that was begun; its outputs are in ``wave_y`` then.

        Raises
        ------
        DeviceError
            If the GPU has failed, now or before. The streams are lost then.
        """
        self._guard(self._lanes[0].collect)

    def _begin_wave(self, num_rows: int) -> None:
        lane = self._lanes[0]
        lane.send(num_rows * (1 + self._num_inputs), False, self._compute)
        self._network.steps(self._slab, lane.wave, num_rows, 1, self._compute)
        lane.receive(num_rows * self._output_size, None, False, self._compute)

    def _run(
        self, slots: NDArray[np.int32], x: NDArray[Any], y: NDArray[np.float32], num_steps: int
    ) -> None:
        """Cut a call into waves, and keep two of them under way."""
        self._start_rows()
        waves = list(self._waves(len(slots), num_steps))
        x = x.view(np.float32).reshape(len(slots), num_steps, self._num_inputs)
        y = y.reshape(len(slots), num_steps, self._output_size)
        for number, (rows, steps) in enumerate(waves):
            lane = self._lanes[number % 2]
            lane.collect()
            lane.send(lane.fill(slots[rows], x[rows, steps]), len(waves) > 1, self._compute)
            num_rows, num_wave_steps = x[rows, steps].shape[:2]
            self._network.steps(self._slab, lane.wave, num_rows, num_wave_steps, self._compute)
            target = y[rows, steps]
            lane.receive(target.size, target, len(waves) > 1, self._compute)
        for lane in self._lanes:
            lane.collect()

    def _warm_up(self) -> None:
        """Compile what the model needs; the first row is spoilt, and no stream has it yet."""
        lane = self._lanes[0]
        lane.send(lane.fill(np.zeros(1, np.int32), np.zeros(0, np.float32)), False, self._compute)
        self._network.warm_up(self._slab, lane.wave, self._compute)
        self._compute.synchronize()

    def _waves(self, num_rows: int, num_steps: int) -> Iterator[tuple[slice, slice]]:
        """Yield rows and steps of each wave; a row's steps in their order."""
        for first in range(0, num_rows, self.max_rows):
            rows = slice(first, min(num_rows, first + self.max_rows))
            wave_rows = rows.stop - first
            most = min(
                (self._x_size - wave_rows) // (wave_rows * self._num_inputs),
                self._y_size // (wave_rows * self._output_size),
            )
            for step in range(0, num_steps, most):
                yield rows, slice(step, min(num_steps, step + most))

    def _start_rows(self) -> None:
        if self._started:
            slots = np.array(self._started, dtype=np.int32)
            self._started.clear()
            self._network.start_rows(self._slab, slots)
            self._cuda.synchronize()

    def _read(self, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        self._start_rows()
        return self._network.read_rows(self._slab, slots)

    def _write(self, slots: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        self._start_rows()
        self._network.write_rows(self._slab, slots, rows)

    def _guard(self, function: Any, *args: Any) -> Any:
        """Call a function; after an error of the GPU refuse everything, as after a crash."""
        if self._failure is not None:
            raise self._failure
        try:
            self._cuda.current_context()  # of this thread, which may be a new one
            return function(*args)
        except gpu_errors() as error:
            self._failure = DeviceError(
                f"the GPU has failed: {error}. The streams of this engine are lost: start a new "
                "process, restore their states there, and replay"
            )
            raise self._failure from error

    def _check_room(self, max_streams: int, fixed_bytes: int) -> None:
        """Refuse more streams than fit, and say how many would."""
        free = self._cuda.current_context().get_memory_info().free - _SPARE_BYTES - fixed_bytes
        row_bytes = self.program.row_bytes
        if max_streams * row_bytes <= free:
            return
        fitting = max(0, int(free // row_bytes))
        hint = f"make the engine with max_streams={fitting}" if fitting else "use device 'cpu'"
        raise DeviceError(
            f"{max_streams:,} streams of {row_bytes:,} bytes need "
            f"{max_streams * row_bytes / 2**30:.1f} GiB of the GPU's memory, where {fitting:,} "
            f"would fit; {hint}"
        )


class _Lane:
    """One wave on its way: pinned buffers, their twins on the GPU, and where the outputs go."""

    def __init__(self, cuda: Any, x_size: int, y_size: int) -> None:
        from streamrnn.kernels.cuda.network import Wave

        self.x = cuda.pinned_array(x_size, np.float32)
        self.y = cuda.pinned_array(y_size, np.float32)
        x = cuda.device_array(x_size, np.float32)
        self.wave = Wave(x.view(np.int32), x, cuda.device_array(y_size, np.float32))
        self._copies = cuda.stream()
        self._sent, self._computed, self._received = (cuda.event() for _ in range(3))
        self._target: NDArray[np.float32] | None = None
        self._is_under_way = False
        self._driver = cuda.cudadrv.driver

    def fill(self, slots: NDArray[np.int32], x: NDArray[np.float32]) -> int:
        """Put slots and inputs where `send` takes them from; return their size."""
        size = slots.size + x.size
        self.x[: slots.size].view(np.int32)[:] = slots
        self.x[slots.size : size].reshape(x.shape)[:] = x
        return size

    def send(self, size: int, overlaps: bool, compute: Any) -> None:
        """Start the copy of slots and inputs to the GPU; ``compute`` will wait for it."""
        stream = self._copies if overlaps else compute
        self._driver.host_to_device(self.wave.x, self.x, 4 * size, stream=stream)
        if overlaps:
            self._sent.record(self._copies)
            self._sent.wait(compute)

    def receive(
        self, size: int, target: NDArray[np.float32] | None, overlaps: bool, compute: Any
    ) -> None:
        """Start the copy of the outputs to the host, for `collect` to put into ``target``."""
        stream = compute
        if overlaps:
            stream = self._copies
            self._computed.record(compute)
            self._computed.wait(stream)
        self._driver.device_to_host(self.y, self.wave.y, 4 * size, stream=stream)
        self._received.record(stream)
        self._target, self._is_under_way = target, True

    def collect(self) -> None:
        """Wait for this lane's outputs, if it is under way, and hand them over."""
        if not self._is_under_way:
            return
        self._received.synchronize()
        self._is_under_way = False
        if self._target is not None:
            self._target[:] = self.y[: self._target.size].reshape(self._target.shape)
            self._target = None
