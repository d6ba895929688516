"""Inputs and outputs of a served model: names and categories resolved to arrays.

The server knows arrays only; names are resolved here, with the description that `models` returns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamrnn_client.errors import BadName, BadValue, NotSupported, WrongLength
from streamrnn_client.protocol.input_names import InputMistake, InputNames, origins_of
from streamrnn_client.sampling import Sampler
from streamrnn_client.text import Vocabulary, is_of_text

__all__ = ["ModelInfo"]

Array = npt.NDArray[Any]
FLOAT = np.dtype("<f4")
TOKEN = np.dtype("<u4")
_MAX_SHORT = 64  # numbers that are converted faster one by one


class ModelInfo:
    """A model that the server serves.

    Parameters
    ----------
    entry : mapping
        One element of what `models` returned: name, fingerprint, spec, row_bytes.

    Attributes
    ----------
    name, fingerprint : str
    spec : dict
        The model's whole description, as plain types.
    input_names, output_names : tuple of str
        In the order of the elements of x and of y.
    num_inputs, output_size : int
        Number of elements of x and of y for one step.
    output_shapes : dict of str to tuple of int
        Of each output by name; empty for one number.
    is_token : bool
        Whether x holds uint32 token ids instead of float32 values.
    dtype : numpy.dtype
        Of x on the wire: little-endian float32 or uint32.
    output_dtype : numpy.dtype
        Of y as it is returned: float32, or float64 where an output has an origin.
    row_bytes : int
        What one stream's state takes in the server.
    about : dict
        What else the server tells: ``alias``, the name of all its versions, ``version``, which of
        them it is, and ``is_current``, whether new streams of the alias get it; and perhaps their
        ``share``, and to which version its streams are ``swapped_to``, by which ``policy``.

    Raises
    ------
    NotSupported
        If the entry is not one that this client can read.
    """

    def __init__(self, entry: Mapping[str, Any]) -> None:
        try:
            self.name: str = entry["name"]
            self.fingerprint: str = entry["fingerprint"]
            self.spec: dict[str, Any] = entry["spec"]
            self.row_bytes: int = entry["row_bytes"]
            self.about: dict[str, Any] = {k: v for k, v in entry.items() if k != "spec"}
            inputs = self.spec["inputs"]
            self.input_names: tuple[str, ...] = tuple(item["name"] for item in inputs)
            self.output_names: tuple[str, ...] = tuple(
                item["name"] for item in self.spec["outputs"]
            )
            self._names = InputNames(
                f"model {self.name!r}",
                self.input_names,
                {i["name"]: i["categories"] for i in inputs if i["kind"] != "numeric"},
                {i["name"]: i["shape"] for i in inputs if i.get("shape")},
            )
            self.output_shapes: dict[str, tuple[int, ...]] = {
                item["name"]: tuple(item.get("shape", ())) for item in self.spec["outputs"]
            }
            self.num_inputs: int = sum(math.prod(item.get("shape", ())) for item in inputs)
            self.output_size: int = sum(map(math.prod, self.output_shapes.values()))
            self.is_token: bool = inputs[0]["kind"] == "token"
            origins = (
                origins_of([_origin_and_size(item) for item in inputs]),
                origins_of([_origin_and_size(item) for item in self.spec["outputs"]]),
            )
            names = (self.name, self.fingerprint, *self.input_names, *self.output_names)
            if not all(isinstance(name, str) for name in names) or not self.output_names:
                raise TypeError("a name is no string, or there is no output")
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise NotSupported(
                f"the server describes a model in a way that this client cannot read ({error!r}); "
                "client and server should be of the same version"
            ) from None
        self.dtype = TOKEN if self.is_token else FLOAT
        self._input_origins, self._output_origins = origins
        # Of what is given, before the origins are subtracted.
        self._given = self.dtype if self._input_origins is None else np.dtype(np.float64)
        self.output_dtype = np.dtype(np.float32 if self._output_origins is None else np.float64)
        self._pack_floats = struct.Struct(f"<{self.num_inputs}f").pack

    def __repr__(self) -> str:
        return f"ModelInfo({self.name!r}, {self.num_inputs} -> {self.output_size})"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The pieces of text that a text model knows.

        Raises `NotSupported` if it is none.
        """
        first = self.spec["inputs"][0]
        try:
            if is_of_text(self.spec["inputs"]):
                return Vocabulary(first["unit"], first["categories"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotSupported(f"model {self.name!r} has no vocabulary of text: {error}") from None
        raise NotSupported(
            f"model {self.name!r} takes no text; its inputs are {self._names}. A model of text is "
            "trained with --tokens char or word"
        )

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the tokens of a text, [T], as `steps` takes them.

        What the model's vocabulary lacks becomes its unknown token. Raises `NotSupported` if the
        model takes no text.
        """
        return self.vocabulary.encode(text)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Return the text of tokens; U+FFFD stands for the unknown one.

        Raises `NotSupported` if the model takes no text, `BadValue` if there is no such token.
        """
        try:
            return self.vocabulary.decode(tokens)
        except ValueError as error:
            raise BadValue(str(error)) from None

    def sampler(self, text: str | None, num_tokens: int | None, **options: Any) -> Sampler:
        """Return what draws text from the model's outputs; `Sampler` says the options.

        Raises `NotSupported` if the model does not predict the next token of a text.
        """
        vocabulary, head = self.vocabulary, self.spec.get("head")
        is_next = self.output_names == tuple(self.spec["inputs"][0]["categories"])
        if not is_next or not isinstance(head, dict) or head.get("activation") != "softmax":
            raise NotSupported(
                f"model {self.name!r} does not predict the next token of a text: its outputs are "
                f"no probabilities of its {len(vocabulary)} tokens"
            )
        return Sampler(vocabulary, text, num_tokens, **options)

    def step_array(self, x: Any) -> Array:
        """Return one step's input as a C-contiguous array [num_inputs].

        In the model's order, or by name (a mapping, or a table with one row); categories by name
        or by index. A model with one input also takes a plain number. `x` itself is returned where
        it fits. Raises `WrongLength`, `BadValue` or `BadName`.
        """
        return self._from_origins(self._one_step(x))

    def _one_step(self, x: Any) -> Array:
        array = self._to_short_array(x)
        if array is None:
            array = self._names.flat(self._to_array(x), 0)
        if array.shape == (self.num_inputs,):
            return array
        if array.ndim == 0 and self.num_inputs == 1:
            return array.reshape(1)
        if array.shape == (1, self.num_inputs):
            return array[0]
        raise self._wrong_shape(array, f"({self.num_inputs},)", "one step")

    def steps_array(self, x: Any, what: str = "T") -> Array:
        """Return many steps as a C-contiguous array [T, num_inputs].

        In the model's order, or by name with T values each (a mapping or a table); a model with one
        input also takes shape (T,), one of text a text. `what` names the first axis in the text of
        an error. Otherwise as `step_array`.
        """
        array = self._names.flat(self._to_array(x), 1)
        if array.ndim == 2 and array.shape[1] == self.num_inputs:
            return self._from_origins(array)
        if array.ndim == 1 and self.num_inputs == 1:
            return self._from_origins(array.reshape(-1, 1))
        raise self._wrong_shape(array, f"({what}, {self.num_inputs})", "many steps")

    def row_arrays(self, inputs: Mapping[Any, Any]) -> Array:
        """Return one step each of many streams as an array [B, num_inputs], for `steps_array`.

        Rows are in the mapping's order. Raises as `step_array`; the message names the stream.
        """
        rows = np.empty((len(inputs), self.num_inputs), self._given)
        for row, (stream, x) in zip(rows, inputs.items(), strict=True):
            try:
                row[:] = self._one_step(x)
            except (WrongLength, BadValue, BadName) as error:
                raise type(error)(f"stream {stream!r}: {error}", error.detail) from None
        return rows

    def outputs(self, y: Any) -> Array:
        """Return a reply's outputs as a writable array [t * output_size] of `output_dtype`."""
        if type(y) is not bytes or len(y) % (4 * self.output_size):
            raise NotSupported(
                f"the server answered with outputs that are not those of model {self.name!r}; was "
                "it started again with another model under this name? Make a new Client"
            )
        return self.to_origins(np.frombuffer(bytearray(y), FLOAT))

    def to_origins(self, y: Array) -> Array:
        """Return outputs, [...] of whole steps, as the user counts them."""
        if self._output_origins is None:
            return y
        return (y.reshape(-1, self.output_size) + self._output_origins).reshape(y.shape)

    def _from_origins(self, x: Array) -> Array:
        """Return x, [..., num_inputs], as it goes on the wire."""
        if self._input_origins is None:
            return x
        with np.errstate(over="ignore"):
            return (x - self._input_origins).astype(FLOAT)

    def _to_short_array(self, x: Any) -> Array | None:
        """Convert a short list of floats, which NumPy's general way takes long for."""
        if type(x) is not list or len(x) != self.num_inputs or len(x) > _MAX_SHORT:
            return None
        if self.is_token or self._input_origins is not None or set(map(type, x)) != {float}:
            return None
        try:
            return np.frombuffer(self._pack_floats(*x), FLOAT)
        except OverflowError:  # too large for float32
            return None

    def _to_array(self, x: Any) -> Array:
        if type(x) is np.ndarray and x.dtype == self._given and x.flags.c_contiguous:
            return x
        if isinstance(x, str) and is_of_text(self.spec["inputs"]):
            return self.encode(x)
        try:
            columns = self._names.columns(x)
            if columns is not None:
                return np.ascontiguousarray(self._names.stack(columns, self._column), self._given)
        except InputMistake as mistake:
            kind = WrongLength if mistake.kind == "length" else BadName
            raise kind(str(mistake), mistake.detail) from None
        if self.is_token:
            return self._to_tokens(x)
        return self._to_floats(x, "x")

    def _to_floats(self, x: Any, what: str) -> Array:
        try:
            # A number too large for float32 becomes Inf, which the server refuses by name.
            with np.errstate(over="ignore"):
                array = np.asarray(x)
                if array.dtype.kind not in "fiub":
                    raise ValueError(f"it holds {array.dtype}")
                return np.ascontiguousarray(array, self._given).reshape(array.shape)
        except (ValueError, TypeError) as error:
            raise BadValue(
                f"{what} is no array of numbers ({error}); give numbers in the order "
                f"{self._names}, or a mapping by name"
            ) from None

    def _to_tokens(self, x: Any) -> Array:
        array = np.asarray(x)
        if array.dtype.kind not in "iu" or (
            array.size and (array.min() < 0 or array.max() > 2**32 - 1)
        ):
            raise BadValue(
                f"x holds {array.dtype}; model {self.name!r} takes token ids: integers from 0 to "
                f"{len(self._names.categories[self.input_names[0]]) or 2**32} - 1"
            )
        return np.ascontiguousarray(array, TOKEN).reshape(array.shape)

    def _column(self, name: str, values: Any) -> Array:
        return self._to_tokens(values) if self.is_token else self._to_floats(values, repr(name))

    def _wrong_shape(self, array: Array, expected: str, what: str) -> WrongLength:
        return WrongLength(
            f"x has shape {array.shape}; for {what} model {self.name!r} takes {expected}: the "
            f"inputs {self._names}",
            {"shape": list(array.shape), "num_inputs": self.num_inputs},
        )


def _origin_and_size(item: Mapping[str, Any]) -> tuple[float, int]:
    """Return what stands for 0 in an input or output, and its number of elements."""
    return item.get("origin", 0.0), math.prod(item.get("shape", ()))
