"""The engine in process: a model, the rows of its streams, and the kernels."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy import empty, ndarray
from numpy.typing import ArrayLike, NDArray

from streamrnn.engine_cpu import (
    DONE,
    GENERATION_SHIFT,
    KIND_BITS,
    MISFIT,
    ROW_TWICE,
    SLOT_MASK,
    STALE_ROW,
    CpuDevice,
)
from streamrnn.errors import InputError, StreamError
from streamrnn.kernels.plan import Program
from streamrnn.model import Model
from streamrnn.state.moving import record_of_row, row_of_record
from streamrnn.state.slab import reserve
from streamrnn_client.protocol import ProtocolError, StreamId, canonical_id

__all__ = ["Device", "Engine"]

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


class Device(Protocol):
    """Where a model's streams live and are stepped: all that an `Engine` knows of it.

    Attributes
    ----------
    program : Program
        The model as the CPU's kernels see it: the layout of a row, and what checks an input.
    arithmetic : str
        What decides the bits of an output besides model and inputs.
    """

    program: Program
    arithmetic: str

    def advance(
        self,
        rows: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.float32],
        num_steps: int,
        /,
    ) -> int:
        """Check everything, then advance every row by ``num_steps``, or none.

        Parameters
        ----------
        rows : ndarray of int64, shape (B,)
            Row numbers, see `Engine.rows`.
        x : ndarray of float32 or uint32, shape (B * num_steps, num_inputs)
            Each row's inputs one after the other.
        y : ndarray of float32, shape (B * num_steps, output_size)
            Filled. Contiguous.
        num_steps : int
            T.

        Returns
        -------
        int
            `DONE`, or what is wrong (low bits) and with which row or element of x (high bits);
            `MISFIT` if x is not contiguous, or the shapes are not these.
        """

    def read_row(self, slot: int) -> NDArray[np.float32]:
        """Return a copy of a stream's row.

        Parameters
        ----------
        slot : int
            Below max_streams.

        Returns
        -------
        ndarray of float32, shape (row_bytes // 4,)
            The same layout on every device.
        """

    def write_row(self, slot: int, row: NDArray[np.float32]) -> None:
        """Replace a stream's row.

        Parameters
        ----------
        slot : int
            Below max_streams.
        row : ndarray of float32, shape (row_bytes // 4,)
            From `read_row` of any device.
        """

    def start_row(self, slot: int) -> None:
        """Put a stream's row into the initial state.

        Parameters
        ----------
        slot : int
            Below max_streams.
        """


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
        How the weights are stored: ``"float32"``, ``"bfloat16"`` or ``"int8"`` (weight-only, a
        scale a row). Sums and states are float32 with each of them.

    Raises
    ------
    InputError
        If the device is unknown.
    DeviceError
        If the device cannot be used, or has no room for so many streams.

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
        spec = model.spec
        self._dtype = np.dtype(np.uint32 if spec.is_token else np.float32)
        self._num_inputs, self._output_size = spec.num_inputs, spec.output_size
        # Each slot's generation, odd while a stream lives, and the call that it was last in.
        self._marks = reserve(16 * (max_streams + 1)).view(np.int64).reshape(-1, 2)
        self._generations = self._marks[:, 0]
        self._device = _make_device(model, device, self._marks, precision)
        self._slots: dict[Hashable, int] = {}  # a stream's row number
        self._free: list[int] = []
        self._next_slot = 0
        self._lock = threading.Lock()
        self._run(np.empty(0, dtype=np.int64), np.empty((0, self._num_inputs), self._dtype), 1)

    def __len__(self) -> int:
        """Return the number of streams that have a state."""
        return len(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        """Return whether a stream has a state."""
        return stream in self._slots

    def step(self, inputs: Mapping[Hashable, ArrayLike]) -> dict[Hashable, NDArray[np.float32]]:
        """Advance streams by one time step each; unknown ones start from the initial state.

        Parameters
        ----------
        inputs : mapping of stream id to array_like, shape (num_inputs,)
            One x for each stream. An id is anything hashable.

        Returns
        -------
        dict of stream id to ndarray of float32, shape (output_size,)
            In the order of the inputs.

        Raises
        ------
        InputError
            If an input does not fit the model. No stream has advanced then.
        StreamError
            If there is no room for another stream.
        """
        x = np.empty((len(inputs), self._num_inputs), dtype=self._dtype)
        for index, (stream, value) in enumerate(inputs.items()):
            x[index] = self._as_input(value, (self._num_inputs,), f"stream {stream!r}: x")
        streams = list(inputs)
        known = [stream in self._slots for stream in streams]
        try:
            y = self.batch(self.rows(streams), x)
        except InputError:
            # A refused step leaves nothing behind, not even the stream that it would have begun.
            for stream, was_known in zip(streams, known, strict=True):
                if not was_known and stream in self._slots:
                    self.close(stream)
            raise
        return dict(zip(streams, y, strict=True))

    def steps(self, stream: Hashable, x: ArrayLike) -> NDArray[np.float32]:
        """Advance one stream by T time steps.

        Parameters
        ----------
        stream : hashable
            The stream's id; an unknown one starts from the initial state.
        x : array_like, shape (T, num_inputs)
            Inputs in time order.

        Returns
        -------
        ndarray of float32, shape (T, output_size)

        Raises
        ------
        InputError
            If an input does not fit the model. The stream has not advanced then.
        StreamError
            If there is no room for another stream.
        """
        chunk = self._as_input(x, (-1, self._num_inputs), f"stream {stream!r}: x")
        was_known = stream in self._slots
        try:
            return self._run(self.rows([stream]), chunk, len(chunk))
        except InputError:
            if not was_known:
                self.close(stream)
            raise

    def rows(self, streams: Iterable[Hashable]) -> NDArray[np.int64]:
        """Resolve stream ids to row numbers, for `batch`. Unknown streams are started.

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
            If there is no room for another stream.
        """
        with self._lock:
            slots = self._slots
            return np.array(
                [slots[s] if s in slots else self._start(s) for s in streams], dtype=np.int64
            )

    def batch(self, rows: NDArray[np.int64], x: ArrayLike) -> NDArray[np.float32]:
        """Advance many streams by one time step each: the fast form of `step`.

        Parameters
        ----------
        rows : ndarray of int64, shape (B,)
            From `rows`, each at most once.
        x : array_like, shape (B, num_inputs)
            Fastest as a contiguous array of float32 (uint32 for a token model).

        Returns
        -------
        ndarray of float32, shape (B, output_size)

        Raises
        ------
        InputError
            If an input does not fit the model, or a stream stands twice. No stream has advanced.
        StreamError
            If a row's stream has been closed since.
        """
        # All that the compiled code cannot see for itself; it sees shapes and strides.
        if not (
            type(x) is ndarray
            and x.dtype is self._dtype
            and x.ndim == 2
            and type(rows) is ndarray
            and rows.dtype is _INT64
            and rows.ndim == 1
        ):
            x = self._as_input(x, (-1, self._num_inputs), "x")
            rows = _as_rows(rows)
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
            self._device.start_row(self._slot_of(stream))

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
            slot = self._slot_of(stream)
            del self._slots[stream]
            self._generations[slot] += 1
            self._free.append(slot)

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
            row = self._device.read_row(self._slot_of(stream))
        return record_of_row(self.model, self._device.arithmetic, stream, row)

    def import_state(
        self, stream: Hashable, record: bytes, *, any_arithmetic: bool = False
    ) -> None:
        """Start a stream from a record.

        Parameters
        ----------
        stream : hashable
            Its id here, whichever the record's is.
        record : bytes
            From `export_state` of an engine with this model, or from a server.
        any_arithmetic : bool
            Whether another device or precision may have computed it. The outputs are then as
            exact as ever, but not to the bit those that it would have given.

        Raises
        ------
        RecordError
            If it is damaged, of another model, or of another arithmetic without leave.
        StreamError
            If the stream exists, or there is no room for it.
        """
        device = self._device
        wanted = None if any_arithmetic else device.arithmetic
        row = row_of_record(self.model, wanted, device.program.row_bytes, record)
        with self._lock:
            if stream in self._slots:
                raise StreamError(f"stream {stream!r} exists; close it first")
            device.write_row(self._start(stream) & SLOT_MASK, row)

    def _slot_of(self, stream: Hashable) -> int:
        try:
            return self._slots[stream] & SLOT_MASK
        except KeyError:
            raise StreamError(
                f"stream {stream!r} is unknown; it has not been stepped, or it has been closed"
            ) from None

    def _start(self, stream: Hashable) -> int:
        """Give a stream a slot in the initial state, and return its row number."""
        if self._free:
            slot = self._free.pop()
        elif self._next_slot < self.max_streams:
            slot = self._next_slot
            self._next_slot += 1
        else:
            raise StreamError(
                f"no room for stream {stream!r}: all {self.max_streams} streams are in use; "
                "close some, or make the engine with a larger max_streams"
            )
        self._device.start_row(slot)
        self._generations[slot] += 1
        row = int(self._generations[slot]) << GENERATION_SHIFT | slot
        self._slots[stream] = row
        return row

    def _as_input(self, x: ArrayLike, shape: Sequence[int], what: str) -> NDArray[Any]:
        """Return x as a contiguous array of the model's dtype, or say what is wrong with it."""
        given = np.asarray(x)
        if given.ndim == 1 and len(shape) == 2 and self._num_inputs == 1:
            given = given[:, None]  # a plain series into a model with one input
        expected = tuple(given.shape[0] if size < 0 and given.ndim else size for size in shape)
        if given.shape != expected:
            wanted = ", ".join("T" if size < 0 else str(size) for size in shape)
            raise InputError(
                f"{what} has shape {given.shape}, expected ({wanted}): one number for each of "
                f"the model's inputs, {self._names()}"
            )
        if given.dtype == self._dtype:
            return np.ascontiguousarray(given)
        kinds = "ui" if self.model.spec.is_token else "fuib"
        if given.dtype.kind not in kinds:
            raise InputError(f"{what} has dtype {given.dtype}, expected {self._dtype}")
        if self.model.spec.is_token and given.size and given.min() < 0:
            raise InputError(f"{what} holds the token {given.min()}; tokens are 0 or more")
        with np.errstate(over="ignore"):  # too large for float32: an infinity, refused as one
            return np.ascontiguousarray(given, dtype=self._dtype)

    def _names(self) -> str:
        names = [item.name for item in self.model.spec.inputs]
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

    def _run(self, rows: NDArray[np.int64], x: NDArray[Any], num_steps: int) -> NDArray[np.float32]:
        """Advance every row by ``num_steps``, whose inputs stand one after the other in x."""
        y = empty((len(rows) * num_steps, self._output_size), _FLOAT32)
        with self._lock:
            answer = self._device.advance(rows, x, y, num_steps)
        if answer == DONE:
            return y
        if answer != MISFIT:
            self._refuse(answer & (1 << KIND_BITS) - 1, answer >> KIND_BITS, rows, x)
        x = self._as_input(x, (-1, self._num_inputs), "x")
        if len(rows) != len(x):
            raise InputError(f"{len(rows)} rows but {len(x)} inputs; give one x for each row")
        return self._run(rows, x, num_steps)

    def _refuse(self, kind: int, item: int, rows: NDArray[np.int64], x: NDArray[Any]) -> NoReturn:
        if kind == STALE_ROW:
            raise StreamError(
                f"row {item} ({rows[item]}) belongs to no stream now: it has been closed; "
                "resolve the names again with rows()"
            )
        if kind == ROW_TWICE:
            raise InputError(
                f"row {item} stands for a stream that is in this batch already; a batch holds "
                "one step of each stream, so send the second one in another batch, or use steps()"
            )
        step, index = divmod(item, self._num_inputs)
        given = self.model.spec.inputs[index]
        if given.kind == "numeric":
            wanted = "a finite number" + ("" if given.missing == "error" else " or NaN (missing)")
        else:
            wanted = f"a whole number from 0 to {given.num_categories - 1}"
        raise InputError(
            f"input {given.name!r} at index {step} of x is {x[step, index]}; expected {wanted}. "
            "No stream has advanced"
        )


def _as_rows(rows: object) -> NDArray[np.int64]:
    """Return row numbers as an array of int64, or say what is wrong with them."""
    given = np.asarray(rows)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError(
            f"rows have shape {given.shape} and dtype {given.dtype}; expected (B,) and int64, "
            "from rows()"
        )
    return given.astype(np.int64)


def _make_device(model: Model, device: str, marks: NDArray[np.int64], precision: str) -> Device:
    if device == "cpu":
        return CpuDevice(model, marks, precision)
    if precision != "float32":
        raise InputError(f"precision is {precision!r}; on device {device!r} it must be 'float32'")
    if device == "cuda":
        from streamrnn.engine_cuda import CudaDevice  # needs the extra, and takes a while

        return CudaDevice(model, marks)
    raise InputError(f"device is {device!r}; it must be 'cpu' or 'cuda'")
