"""Inputs that are computed from a row's time, by one function for training and for serving.

The time zone is UTC; a time without a zone is taken to be in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TIME_FEATURES", "time_features"]

Doubles = npt.NDArray[np.float64]

TIME_FEATURES = {
    "hour": ("hour sin", "hour cos"),
    "weekday": ("weekday sin", "weekday cos"),
    "month": ("month sin", "month cos"),
    "elapsed": ("elapsed s",),
}
"""What can be computed, and the names of the inputs that hold it."""

_DAY_S = 86_400


def time_features(inputs: Iterable[str], time: Any, previous: Any = None) -> dict[str, Any]:
    """Compute the inputs that follow from the time of a step, or from those of T steps.

    ``hour`` is the time of the day with its fractions, ``weekday`` the day of the week from Monday
    on, ``month`` that of the year from January on; of each the sine and the cosine of its share of
    the day, the week or the year, in UTC. ``elapsed s`` are the seconds since the stream's previous
    step: NaN where there is none.

    Parameters
    ----------
    inputs : iterable of str
        Names of inputs, such as ``client.model("name").input_names``. Those that are no feature of
        time are left out.
    time : datetime, numpy.datetime64, str or float, or a sequence of T of them
        Of the step, in UTC unless it says its zone; text is ISO 8601, a number is seconds since
        1970.
    previous : the same or None
        Time of the stream's step before; None if this is its first.

    Returns
    -------
    dict of str to float, or to ndarray of float64, [T]
        By the input's name: ready to be merged with the other inputs.

    Raises
    ------
    ValueError
        If a time is none.
    """
    times = _seconds(time)
    steps = np.atleast_1d(times)
    before = np.nan if previous is None else float(_seconds(previous))
    found: dict[str, Doubles] = {}
    wanted = set(inputs)
    for feature, names in TIME_FEATURES.items():
        if wanted.isdisjoint(names):
            continue
        if feature == "elapsed":
            found[names[0]] = np.diff(steps, prepend=before)
            continue
        turns = 2 * np.pi * _share(feature, steps)
        found[names[0]], found[names[1]] = np.sin(turns), np.cos(turns)
    return {
        name: values if times.ndim else float(values[0])
        for name, values in found.items()
        if name in wanted
    }


def _share(feature: str, seconds: Doubles) -> Doubles:
    """Return how much of the day, the week or the year is over, [T], from 0 to 1."""
    if feature == "hour":
        return np.asarray(seconds % _DAY_S / _DAY_S)
    if feature == "weekday":  # 1970 began with a Thursday
        return np.asarray((seconds // _DAY_S + 3) % 7 / 7)
    moments = np.floor(seconds).astype(np.int64).astype("datetime64[s]")
    return np.asarray(moments.astype("datetime64[M]").astype(np.int64) % 12 / 12)


def _seconds(time: Any) -> Doubles:
    """Return times as seconds since 1970, [] or [T]."""
    values = np.asarray(time)
    if values.dtype.kind == "M":
        found = values.astype("datetime64[us]").astype(np.int64) / 1e6
        found = np.where(np.isnat(values), np.nan, found)
    elif values.dtype.kind in "OU":
        flat = [_second(value) for value in values.reshape(-1).tolist()]
        found = np.array(flat, np.float64).reshape(values.shape)
    elif values.dtype.kind in "fiu":
        found = values.astype(np.float64)
    else:
        raise ValueError(f"{values.dtype} is no time; give a datetime, or seconds since 1970")
    if found.ndim > 1 or not np.isfinite(found).all():
        raise ValueError("times must be one or a sequence of them, and none may be missing")
    return np.asarray(found)


def _second(time: Any) -> float:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, np.datetime64):
        return float(_seconds(time))
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if isinstance(time, int | float) and not isinstance(time, bool):
        return float(time)
    raise ValueError(f"{time!r} is no time; give a datetime, or seconds since 1970")
