"""Read JSON that somebody else wrote: bounded, without NaN, and its arrays of numbers.

A parser makes objects of a text, ten times its size. So long lists of numbers, which are all but a
little of a model's file, are cut out first and become arrays chunk by chunk; the little that
remains may have `MAX_REST_BYTES`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError

__all__ = ["array_of", "parse_json", "read_json_file", "whole"]

Array = NDArray[np.float32]

MAX_REST_BYTES = 4 << 20  # beside long lists of numbers
_MAX_BYTES = 1 << 30
_MAX_ARRAYS = 500_000  # a weight matrix has one for every row
_MAX_AXES = 3
_CHUNK_BYTES = 1 << 20
# A text, so that nothing in it is taken for something else; a long list of numbers; NaN, Infinity.
# Possessive repeats: a hostile text takes neither memory nor a second look.
_TOKENS = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
    rb"|\[(?P<numbers>[-+.0-9eE, \t\r\n]{64,}+)\]"
    rb"|(?P<literal>[NI])",
    re.DOTALL,
)


def parse_json(data: bytes | str, what: str) -> Any:
    """Parse a short text; ``what`` names it in errors.

    Raises `ModelFileError` if it is no JSON, is too long, is nested too deep, or has numbers that
    are none.
    """
    return _parsed(data.encode(errors="surrogatepass") if isinstance(data, str) else data, what, [])


def _parsed(data: bytes, what: str, arrays: list[Array]) -> Any:
    """Parse a text in which ``NaN`` stands for the arrays, in their order."""
    if len(data) > MAX_REST_BYTES:
        raise ModelFileError(
            f"{what} has {len(data)} bytes beside long lists of numbers; at most {MAX_REST_BYTES} "
            "are read"
        )
    left = iter(arrays)

    def next_array(literal: str) -> Array:
        array = next(left, None)
        if array is None:
            raise ValueError(f"{literal} is no number that JSON knows")
        return array

    try:
        return json.loads(
            data.decode(), parse_constant=next_array, object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is no JSON that can be read: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def read_json_file(path: str | os.PathLike[str]) -> Any:
    """Read and parse a file; long lists of numbers come as arrays of float32.

    Raises `ModelFileError` as `parse_json` does, and if the file cannot be read.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(name) > _MAX_BYTES:
            raise ModelFileError(f"{name} is larger than a model in JSON can sensibly be (1 GB)")
        return _parsed(*_cut(Path(name).read_bytes(), name))
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error


def _cut(data: bytes, what: str) -> tuple[bytes, str, list[Array]]:
    """Put ``NaN`` in place of every long list of numbers: the rest, its name, the arrays."""
    rest, end = bytearray(), 0
    arrays: list[Array] = []
    for token in _TOKENS.finditer(data):
        if len(rest) + token.start() - end > MAX_REST_BYTES or len(arrays) > _MAX_ARRAYS:
            raise ModelFileError(
                f"{what} has more than {MAX_REST_BYTES} bytes beside long lists of numbers, or "
                f"more than {_MAX_ARRAYS} of them"
            )
        if token.lastgroup == "literal":
            raise ModelFileError(
                f"{what} is no JSON that can be read: byte {token.start()} begins no text, nor a "
                "number; NaN is no number that JSON knows, nor is Infinity"
            )
        if token.lastgroup == "numbers":
            rest += data[end : token.start()]
            rest += b"NaN"
            arrays.append(_numbers(data, *token.span("numbers"), what))
            end = token.end()
    return bytes(rest + data[end : end + MAX_REST_BYTES + 1]), what, arrays


def _numbers(data: bytes, begin: int, end: int, what: str) -> Array:
    """Parse ``1, 2, 3`` between two places."""
    parts, at = [], begin
    while at <= end:
        comma = data.find(b",", min(at + _CHUNK_BYTES, end), end)
        stop = end if comma < 0 else comma
        try:
            if stop - at > 2 * _CHUNK_BYTES:
                raise ValueError("a number takes more than a megabyte")
            text = b"[" + data[at:stop] + b"]"
            try:
                values = orjson.loads(text)
            except ValueError:  # what is beyond float64 is Inf here, and the model names it
                values = json.loads(text)
            if not values:
                raise ValueError("a number is missing")
            parts.append(_as_float32(values))
        except (ValueError, OverflowError) as error:
            raise ModelFileError(
                f"{what} is no JSON that can be read: the list of numbers at byte {at}: {error}"
            ) from error
        at = stop + 1
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_float32(values: Any) -> Array:
    with np.errstate(over="ignore"):  # the model refuses the Inf, by name
        return np.array(values, np.float32)


def array_of(value: Any, what: str, shape: tuple[int, ...] | None = None) -> Array:
    """Make an array of nested lists of numbers.

    Raises `ModelFileError` if they are ragged, hold something else, or have another shape.
    """
    if not isinstance(value, list | np.ndarray):
        raise ModelFileError(f"{what} is no list of numbers")
    if not _is_numbers(value, _MAX_AXES):
        raise ModelFileError(f"{what} holds something else than numbers")
    try:
        array = value if isinstance(value, np.ndarray) else _as_float32(value)
    except (ValueError, OverflowError) as error:
        raise ModelFileError(f"{what} is no array: its lists are not of one length") from error
    if shape is not None and array.shape != shape:
        raise ModelFileError(f"{what} has shape {list(array.shape)}; expected {list(shape)}")
    return array


def _is_numbers(value: Any, depth: int) -> bool:
    if isinstance(value, np.ndarray):
        return depth > 0
    kinds = set(map(type, value))  # one pass in C: there may be millions
    if kinds & {list, np.ndarray}:
        return (
            depth > 1
            and kinds <= {list, np.ndarray}
            and all(_is_numbers(item, depth - 1) for item in value)
        )
    return kinds <= {float, int}


def whole(value: Any, what: str, least: int, most: int) -> int:
    """Return a whole number within its bounds, or raise `ModelFileError`."""
    if type(value) is not int or not least <= value <= most:
        raise ModelFileError(
            f"{what} is {str(value)[:60]}; it must be a whole number from {least} to {most}"
        )
    return value
