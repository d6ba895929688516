"""Checks of single values of a description, wherever it comes from: a file, an importer, a call."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Real

import numpy as np

from streamrnn.errors import SpecError

__all__ = [
    "check_flag",
    "check_float32",
    "check_json",
    "check_one_of",
    "check_scale",
    "check_size",
    "check_text",
    "check_whole",
    "shown",
]

MAX_SIZE = 65_536  # of any one axis: far above any recurrent network, far below an overflow
MAX_WHOLE = 2**53  # above it a float64, and many a JSON reader, loses the last digits
MIN_SCALE = 2.0**-126  # the least normal float32: smaller ones have lost digits, or are taken as 0
_MAX_TEXT = 65_536  # characters of a name, of which an error shows the first
_MAX_DEPTH = 64  # far above a configuration, far below what a codec's recursion bears


def check_whole(value: object, what: str, least: int, most: int) -> None:
    """Raise `SpecError` unless a value is a whole number within its bounds."""
    if type(value) is not int or not least <= value <= most:
        raise SpecError(
            f"{what} is {shown(value)}; it must be a whole number from {least} to {most}"
        )


def check_size(value: object, what: str, least: int = 1) -> None:
    """Raise `SpecError` unless a size is a whole number from ``least`` to `MAX_SIZE`."""
    check_whole(value, what, least, MAX_SIZE)


def check_flag(value: object, what: str) -> None:
    """Raise `SpecError` unless a value is true or false."""
    if not isinstance(value, bool):
        raise SpecError(f"{what} is {shown(value)}; it is true or false")


def check_text(value: object, what: str, least: int = 0) -> None:
    """Raise `SpecError` unless a value is a string that UTF-8 can express, of so many letters."""
    if not isinstance(value, str) or not least <= len(value) <= _MAX_TEXT:
        kind = "a non-empty string" if least else "a string"
        raise SpecError(
            f"{what} is {shown(value)}; it must be {kind} of at most {_MAX_TEXT} characters"
        )
    if not _is_utf8(value):
        raise SpecError(f"{what} is {value!r}; it has a surrogate, which is no character")


def check_one_of(value: object, what: str, known: Collection[str]) -> None:
    """Raise `SpecError` unless a value is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise SpecError(f"{what} {shown(value)}; known are {', '.join(known)}")


def check_float32(value: object, what: str) -> float:
    """Round to float32, so that the kernels and the reference use the same number.

    Raises `SpecError` unless it is a number, and finite then.
    """
    rounded = math.inf
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        try:
            with np.errstate(over="ignore"):  # beyond float32 it is Inf
                rounded = float(np.float32(value))
        except OverflowError:  # a whole number beyond float64
            pass
    if not math.isfinite(rounded):
        raise SpecError(f"{what} is {shown(value)}; it must be a finite float32")
    return rounded


def check_float64(value: object, what: str) -> float:
    """Return a number as a float; raise `SpecError` unless it is one, and finite."""
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise SpecError(f"{what} is {shown(value)}; it must be a finite number")


def check_scale(value: object, what: str) -> float:
    """Round a scale to float32; raise `SpecError` unless it is a normal number above 0."""
    rounded = check_float32(value, what)
    if rounded < MIN_SCALE:
        raise SpecError(
            f"{what} is {shown(value)}; it must be above 0, and at least {MIN_SCALE:.3g}: below "
            "that float32 loses its digits. Give the values in a smaller unit"
        )
    return rounded


def check_json(value: object, what: str, depth: int = _MAX_DEPTH) -> None:
    """Raise `SpecError` unless a value is plain, and small enough for every codec it goes through.

    Whole numbers have 64 bits, strings no surrogates, and lists and dicts are not nested too deep.
    """
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise SpecError(f"{what} has the key {shown(key)}; a key is a string")
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise SpecError(f"{what} is nested deeper than {_MAX_DEPTH}")
        items = [*value, *value.values()] if isinstance(value, dict) else value
        for item in items:
            check_json(item, what, depth - 1)
    elif isinstance(value, str):
        if not _is_utf8(value):
            raise SpecError(f"{what} has {shown(value)}, with a surrogate, which is no character")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise SpecError(f"{what} has the whole number {shown(value)}, of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"{what} has {value}, which is no finite number")
    elif value is not None:
        raise SpecError(f"{what} has a {type(value).__name__}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Write a value for a message, in few letters whatever it is."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value) if not isinstance(value, str) else repr(value[:60])
    except (RecursionError, ValueError):  # nested too deep, or with too long a number in it
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."
