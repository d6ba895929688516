"""Inputs and rows that an engine accepts, and the errors for all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.device import KIND_BITS, ROW_TWICE, STALE_ROW
from streamrnn.errors import InputError, StreamError
from streamrnn.model.spec import ModelSpec
from streamrnn_client.protocol.input_names import InputMistake, InputNames, origins_of

__all__ = ["InputForm", "as_rows"]


class InputForm:
    """Shape and dtype of one model's inputs: uint32 for a token model, else float32."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.dtype = np.dtype(np.uint32 if spec.is_token else np.float32)
        self.num_inputs = spec.num_inputs
        self.origins = origins_of([(item.origin, item.size) for item in spec.inputs])
        self._names = InputNames(
            "the model",
            [item.name for item in spec.inputs],
            {item.name: item.categories for item in spec.inputs if item.kind != "numeric"},
            {item.name: item.shape for item in spec.inputs if item.shape},
        )

    def as_array(self, x: Any, shape: Sequence[int], what: str) -> NDArray[Any]:
        """Return x as a contiguous array of the model's dtype, or raise an `InputError`.

        ``shape`` is the expected one, -1 for a number of steps; ``what`` names x in errors. What
        has names (a mapping, a table) is taken by name.
        """
        try:
            columns = self._names.columns(x)
            given = np.asarray(x) if columns is None else self._names.stack(columns, _column)
        except InputMistake as mistake:
            raise InputError(f"{what}: {mistake}") from None
        if columns is not None and len(shape) == 1 and given.ndim == 2 and len(given) == 1:
            given = given[0]  # a table with one row
        if given.ndim == 1 and len(shape) == 2 and self.num_inputs == 1:
            given = given[:, None]  # a plain series into a model with one input
        given = self._names.flat(given, len(shape) - 1)
        expected = tuple(given.shape[0] if size < 0 and given.ndim else size for size in shape)
        if given.shape != expected:
            wanted = ", ".join("T" if size < 0 else str(size) for size in shape)
            raise InputError(
                f"{what} has shape {given.shape}, expected ({wanted}): one number for each of "
                f"the model's inputs, {self._names}"
            )
        if self.origins is not None:
            given = given - self.origins if given.dtype.kind in "fuib" else given
        elif given.dtype == self.dtype:
            return np.ascontiguousarray(given)
        is_token = self._spec.is_token
        if given.dtype.kind not in ("ui" if is_token else "fuib"):
            raise InputError(f"{what} has dtype {given.dtype}, expected {self.dtype}")
        if is_token and given.size and given.min() < 0:
            raise InputError(f"{what} holds the token {given.min()}; tokens are 0 or more")
        with np.errstate(over="ignore"):  # too large for float32: infinity, refused later
            return np.ascontiguousarray(given, dtype=self.dtype)

    def refuse(self, answer: int, rows: NDArray[np.int64], x: NDArray[Any]) -> NoReturn:
        """Raise the error for a device's answer that is neither `DONE` nor `MISFIT`.

        A `StreamError` for a row whose stream has been closed, else an `InputError`.
        """
        kind, item = answer & (1 << KIND_BITS) - 1, answer >> KIND_BITS
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
        step, index = divmod(item, self.num_inputs)
        given = self._spec.input_elements[index]
        if given.kind == "numeric":
            wanted = "a finite number" + ("" if given.missing == "error" else " or NaN (missing)")
        else:
            wanted = f"a whole number from 0 to {given.num_categories - 1}"
        raise InputError(
            f"input {given.name!r} at index {step} of x is {x[step, index]}; expected {wanted}. "
            "No stream has advanced"
        )


def _column(name: str, values: Any) -> NDArray[Any]:
    column = np.asarray(values)
    if column.dtype.kind not in "fuib":
        raise InputMistake("value", f"input {name!r} has dtype {column.dtype}, not numbers")
    return column


def as_rows(rows: object) -> NDArray[np.int64]:
    """Return row numbers [B] as an array of int64, or raise an `InputError`."""
    given = np.asarray(rows)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError(
            f"rows have shape {given.shape} and dtype {given.dtype}; expected (B,) and int64, "
            "from rows()"
        )
    return given.astype(np.int64)
