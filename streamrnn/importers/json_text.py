"""Read JSON that somebody else wrote: bounded, without NaN, and its arrays of numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError

__all__ = ["array_of", "parse_json", "read_json_file", "whole"]

_MAX_BYTES = 1 << 30
_MAX_AXES = 3


def parse_json(data: bytes | str, what: str) -> Any:
    """Parse a text; ``what`` names it in errors.

    Raises `ModelFileError` if it is no JSON, is nested too deep, or has numbers that are none.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is no JSON that can be read: {error}") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON knows")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def read_json_file(path: str | os.PathLike[str]) -> Any:
    """Read and parse a file; see `parse_json`."""
    name = os.fspath(path)
    try:
        if os.path.getsize(name) > _MAX_BYTES:
            raise ModelFileError(f"{name} is larger than a model in JSON can sensibly be (1 GB)")
        return parse_json(Path(name).read_bytes(), name)
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error


def array_of(value: Any, what: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """Make an array of nested lists of numbers.

    Raises `ModelFileError` if they are ragged, hold something else, or have another shape.
    """
    if not isinstance(value, list):
        raise ModelFileError(f"{what} is no list of numbers")
    if not _is_numbers(value, _MAX_AXES):
        raise ModelFileError(f"{what} holds something else than numbers")
    try:
        with np.errstate(over="ignore"):  # the model refuses the Inf, by name
            array = np.array(value, np.float64).astype(np.float32)
    except (ValueError, OverflowError) as error:
        raise ModelFileError(f"{what} is no array: its lists are not of one length") from error
    if shape is not None and array.shape != shape:
        raise ModelFileError(f"{what} has shape {list(array.shape)}; expected {list(shape)}")
    return array


def _is_numbers(value: list[Any], depth: int) -> bool:
    kinds = set(map(type, value))  # one pass in C: there may be millions
    if kinds == {list}:
        return depth > 1 and all(_is_numbers(item, depth - 1) for item in value)
    return kinds <= {float, int}


def whole(value: Any, what: str, least: int, most: int) -> int:
    """Return a whole number within its bounds, or raise `ModelFileError`."""
    if type(value) is not int or not least <= value <= most:
        raise ModelFileError(
            f"{what} is {str(value)[:60]}; it must be a whole number from {least} to {most}"
        )
    return value
