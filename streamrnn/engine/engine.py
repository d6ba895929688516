"""In-process engine: a model, its streams, and the device that steps them.

`streamrnn.engine.streams` maps streams to rows, `streamrnn.engine.inputs` checks inputs, and a
`streamrnn.engine.device.Device` steps rows: `streamrnn.engine.cpu` or `streamrnn.engine.cuda`.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy import empty, ndarray
from numpy.typing import NDArray

from streamrnn.engine.cpu import CpuDevice
from streamrnn.engine.device import DONE, MISFIT, Device
from streamrnn.engine.inputs import InputForm, as_rows
from streamrnn.engine.streams import StreamTable
from streamrnn.errors import InputError, StreamError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn.model.model import Model
from streamrnn.state.transfer import record_of_row, row_of_record
from streamrnn_client.protocol import ProtocolError, StreamId, canonical_id
from streamrnn_client.protocol.input_names import origins_of

__all__ = ["Engine"]

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


class Engine:
    """Runs one model for many streams, one time step at a time, in this process.

    Each stream's hidden and cell state stays in the engine; a step brings the next input and
    returns the next output. The bits of an output depend neither on which other streams are
    stepped together with it, nor on whether its steps came singly or as a chunk.

    Methods may be called from several threads; they run one after the other.

    Parameters
    ----------
    model : Model
        What to run.
    device : str
        ``"cpu"``, or ``"cuda"`` (the extra ``cuda`` and a GPU; see docs/cuda.md).
    max_streams : int
        The most streams at once. On the CPU memory is taken only for those that exist, on a GPU
        for all of them.
    precision : str
        On the CPU how the weights are stored: ``"float32"``, ``"bfloat16"`` or ``"int8"``
        (weight-only, a scale a row). On a GPU how both factors of a product are rounded:
        ``"float32"``, or ``"tf32"`` and ``"bfloat16"``, for its tensor cores; ``"int8"`` as on the
        CPU. Sums and states are float32 with each of them.

    Raises
    ------
    InputError
        If the device is unknown, or does not have the precision.
    DeviceError
        If the device cannot be used, or has too little memory for so many streams.

    Examples
    --------
    >>> engine = Engine(Model.load("co2.safetensors"))  # doctest: +SKIP
    >>> y = engine.step({"a": x_a, "b": x_b})           # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        max_streams: int = 1 << 20,
        precision: str = "float32",
    ) -> None:
        if not 1 <= max_streams < 1 << 31:
            raise InputError(f"max_streams is {max_streams}; it must be from 1 to 2^31 - 1")
        self.model = model
        self.max_streams = max_streams
        self._form = InputForm(model.spec)
        self._dtype, self._num_inputs = self._form.dtype, self._form.num_inputs
        self._output_size = model.spec.output_size
        self._origins = origins_of([(item.origin, item.size) for item in model.spec.outputs])
        self._streams = StreamTable(max_streams)
        # Of inputs that are taken as they are, when outputs are given as they are.
        has_origins = self._form.origins is not None or self._origins is not None
        self._plain_dtype = None if has_origins else self._dtype
        self._device = _make_device(model, device, self._streams.marks, precision)
        self._lock = threading.RLock()  # a signal handler or a __del__ may call in the midst
        self._run(np.empty(0, dtype=np.int64), np.empty((0, self._num_inputs), self._dtype), 1)

    def __len__(self) -> int:
        """Return the number of streams that have a state."""
        return len(self._streams)

    def __contains__(self, stream: Hashable) -> bool:
        """Return whether a stream has a state."""
        return stream in self._streams

    def step(self, inputs: Mapping[Any, Any]) -> dict[Hashable, NDArray[Any]]:
        """Advance streams by one time step each; unknown ones start in the initial state.

        Parameters
        ----------
        inputs : mapping of stream id to array_like, shape (num_inputs,), or mapping
            One x for each stream, in the model's order or by name (categories by name or index).
            An id is anything hashable.

        Returns
        -------
        dict of stream id to ndarray of float32, shape (output_size,)
            In the order of the inputs; float64 if an output has an origin (here and below).

        Raises
        ------
        InputError
            If an input does not fit the model. No stream has advanced then.
        StreamError
            If there are ``max_streams`` already.
        """
        x = np.empty((len(inputs), self._num_inputs), dtype=self._dtype)
        for index, (stream, value) in enumerate(inputs.items()):
            x[index] = self._form.as_array(value, (self._num_inputs,), f"stream {stream!r}: x")
        streams = list(inputs)
        known = [stream in self._streams for stream in streams]
        try:
            y = self._run(self.rows(streams), x, 1)
        except InputError:
            # A refused step has no effect: it does not even start a stream.
            for stream, was_known in zip(streams, known, strict=True):
                if not was_known and stream in self._streams:
                    self.close(stream)
            raise
        return dict(zip(streams, y, strict=True))

    def steps(self, stream: Hashable, x: Any) -> NDArray[Any]:
        """Advance one stream by T time steps.

        Parameters
        ----------
        stream : hashable
            The stream's id; an unknown one starts from the initial state.
        x : array_like, shape (T, num_inputs), or mapping, or table
            Inputs in time order. What has names, as a mapping or a pandas DataFrame has, is taken
            by them; the order of its columns does not matter.

        Returns
        -------
        ndarray of float32, shape (T, output_size)

        Raises
        ------
        InputError
            If an input does not fit the model. The stream has not advanced then.
        StreamError
            If there are ``max_streams`` already.
        """
        chunk = self._form.as_array(x, (-1, self._num_inputs), f"stream {stream!r}: x")
        was_known = stream in self._streams
        try:
            return self._run(self.rows([stream]), chunk, len(chunk))
        except InputError:
            if not was_known:
                self.close(stream)
            raise

    def rows(self, streams: Iterable[Hashable]) -> NDArray[np.int64]:
        """Resolve stream ids to row numbers, for `batch`; unknown streams are started.

        Parameters
        ----------
        streams : iterable of hashable
            Stream ids.

        Returns
        -------
        ndarray of int64, shape (B,)
            Valid until a stream is closed; `batch` notices one that is not.

        Raises
        ------
        StreamError
            If there would be more than ``max_streams``; none has been started then.
        """
        with self._lock:
            rows, started = self._streams.resolve(streams)
            if started:
                self._device.start_rows(self._streams.slots(started))
            return rows

    def batch(self, rows: NDArray[np.int64], x: Any) -> NDArray[Any]:
        """Advance many streams by one time step each: the fast form of `step`.

        Parameters
        ----------
        rows : ndarray of int64, shape (B,)
            From `rows`, each at most once.
        x : array_like, shape (B, num_inputs), or mapping, or table
            One row a stream; by name as in `steps`. Fastest as a contiguous array of float32
            (uint32 for a token model).

        Returns
        -------
        ndarray of float32, shape (B, output_size)

        Raises
        ------
        InputError
            If an input does not fit the model, or a stream occurs twice. No stream has advanced.
        StreamError
            If a row's stream has been closed since.
        """
        # Compiled code checks shapes and strides, but cannot check these.
        if (
            type(x) is ndarray
            and x.dtype is self._plain_dtype
            and x.ndim == 2
            and type(rows) is ndarray
            and rows.dtype is _INT64
            and rows.ndim == 1
        ):
            y = empty((len(rows), self._output_size), _FLOAT32)
            with self._lock:
                answer = self._device.advance(rows, x, y, 1)
            if answer == DONE:
                return y
        else:
            x = self._form.as_array(x, (-1, self._num_inputs), "x")
            rows = as_rows(rows)
        return self._run(rows, x, 1)

    def reset(self, stream: Hashable) -> None:
        """Put a stream back to the initial state.

        Parameters
        ----------
        stream : hashable
            Its id.

        Raises
        ------
        StreamError
            If it is unknown.
        """
        with self._lock:
            self._device.start_rows(self._streams.slots([stream]))

    def close(self, stream: Hashable) -> None:
        """Forget a stream.

        Parameters
        ----------
        stream : hashable
            Its id.

        Raises
        ------
        StreamError
            If it is unknown.
        """
        with self._lock:
            self._streams.forget(stream)

    def export_state(self, stream: StreamId) -> bytes:
        """Write a stream's record, for `import_state` here or elsewhere, or for a server.

        Parameters
        ----------
        stream : str or int
            Its id: one that a server's streams can have too.

        Returns
        -------
        bytes
            As docs/STATE.md describes it.

        Raises
        ------
        StreamError
            If it is unknown.
        InputError
            If a server's streams cannot have such an id.
        """
        try:
            canonical_id(stream)
        except ProtocolError as error:
            raise InputError(f"stream {stream!r}: {error}") from error
        with self._lock:
            [row] = self._device.read_rows(self._streams.slots([stream]))
        return record_of_row(self.model, self._device.arithmetic, stream, row)

    def import_state(
        self, stream: Hashable, record: bytes, *, any_arithmetic: bool = False
    ) -> None:
        """Start a stream from a record.

        Parameters
        ----------
        stream : hashable
            Its id here, which may differ from the record's.
        record : bytes
            From `export_state` of an engine with this model, or from a server.
        any_arithmetic : bool
            Whether another device or precision may have computed it. The outputs are then as
            exact, but may differ in bits from those of the other one.

        Raises
        ------
        RecordError
            If it is damaged, of another model, or of another arithmetic that is not allowed.
        StreamError
            If the stream exists, or there are ``max_streams`` already.
        """
        device = self._device
        wanted = None if any_arithmetic else device.arithmetic
        row = row_of_record(self.model, wanted, device.program.row_bytes, record)
        with self._lock:
            if stream in self._streams:
                raise StreamError(f"stream {stream!r} exists; close it first")
            self._streams.resolve([stream])
            device.write_rows(self._streams.slots([stream]), row[None])

    def _run(self, rows: NDArray[np.int64], x: NDArray[Any], num_steps: int) -> NDArray[Any]:
        """Advance every row by ``num_steps``, whose inputs are consecutive in x."""
        y = empty((len(rows) * num_steps, self._output_size), _FLOAT32)
        with self._lock:
            answer = self._device.advance(rows, x, y, num_steps)
        if answer == DONE:
            return y if self._origins is None else y + self._origins
        if answer != MISFIT:
            self._form.refuse(answer, rows, x)
        x = self._form.as_array(x, (-1, self._num_inputs), "x")
        if len(rows) != len(x):
            raise InputError(f"{len(rows)} rows but {len(x)} inputs; give one x for each row")
        return self._run(rows, x, num_steps)


def _make_device(model: Model, device: str, marks: NDArray[np.int64], precision: str) -> Device:
    if device not in DEVICE_PRECISIONS:
        raise InputError(f"device is {device!r}; it must be 'cpu' or 'cuda'")
    if precision not in DEVICE_PRECISIONS[device]:
        known = ", ".join(DEVICE_PRECISIONS[device])
        raise InputError(
            f"precision is {precision!r}; on device {device!r} it must be one of {known}"
        )
    if device == "cpu":
        return CpuDevice(model, marks, precision)
    from streamrnn.engine.cuda import CudaDevice

    return CudaDevice(model, marks, precision)
