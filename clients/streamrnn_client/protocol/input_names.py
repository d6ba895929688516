"""Inputs by name: columns and categories put into a model's order, for the client and the engine.

What has names is never taken by position. Mappings have them, and tables (pandas, polars, Arrow),
which are told by what they offer, for none of these libraries is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MISSING", "OTHER", "UNKNOWN", "InputMistake", "InputNames", "origins_of"]

# Categories that stand for an absent value, and for a name that is none of the others.
MISSING, OTHER = "missing", "other"
# Stands for both in the vocabulary of a text, where those two are words.
UNKNOWN = "<unknown>"

Array = npt.NDArray[Any]
_PLAIN = (np.ndarray, list, tuple, float, int)  # what has no names, told at once


def origins_of(items: Sequence[tuple[float, int]]) -> Array | None:
    """Return the origins of a model's inputs or outputs, one for each element; None if all are 0.

    `items` are the origin and the number of elements of each. Raises `ValueError` if one is not
    finite, `TypeError` if it is no number.
    """
    if not any(origin != 0 for origin, _ in items):
        return None
    origins = [float(origin) for origin, _ in items]
    if not np.isfinite(origins).all():
        raise ValueError(f"an origin is not finite: {origins}")
    return np.repeat(origins, [size for _, size in items])


class InputMistake(ValueError):
    """What is wrong with an input given by name: a ``name``, or a ``length``."""

    def __init__(self, kind: str, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.detail = detail


class InputNames:
    """The names of a model's inputs, the categories and the shapes of those that have some.

    `model` is what errors call it. An input with a shape is that many elements of x, in C order.
    """

    def __init__(
        self,
        model: str,
        names: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.model = model
        self.names = tuple(names)
        self.shapes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        self.categories = {
            name: {category: index for index, category in enumerate(known)}
            for name, known in categories.items()
        }

    def columns(self, x: Any) -> Mapping[Any, Any] | None:
        """Return what x holds by name, or None if it has no names.

        A series (the row of a table) has them if its labels are strings; that of a model with one
        input only if one of them is the input's name, for it may be values over time.
        """
        if isinstance(x, _PLAIN):
            return None
        if isinstance(x, Mapping):
            return x
        if hasattr(x, "__dataframe__") or (hasattr(x, "columns") and hasattr(x, "to_numpy")):
            labels = list(x.column_names if hasattr(x, "column_names") else x.columns)
            if not all(isinstance(label, str) for label in labels):
                raise InputMistake(
                    "name",
                    f"the columns of the table are named {labels[:8]}; name them as the inputs of "
                    f"{self.model}, {self}, or give an array in this order",
                )
            self._check_once(labels)
            return {label: _column(x[label]) for label in labels}
        if hasattr(x, "index") and hasattr(x, "to_numpy"):
            labels = list(x.index)
            is_named = labels and all(isinstance(label, str) for label in labels)
            if is_named and (len(self.names) > 1 or self.names[0] in labels):
                self._check_once(labels)
                return dict(zip(labels, x.to_numpy().tolist(), strict=True))
        return None

    def stack(self, x: Mapping[Any, Any], convert: Callable[[str, Any], Array]) -> Array:
        """Return the columns of x, shape (..., num_inputs), in the model's order.

        `convert` makes an array of a column's name and values; categories are numbers by then.
        Raises `InputMistake`.
        """
        unknown = [name for name in x if name not in self.names]
        if unknown:
            nearest = difflib.get_close_matches(str(unknown[0]), self.names, 3, 0.4)
            raise InputMistake(
                "name",
                f"{self.model} has no input {unknown[0]!r}; {_did_you_mean(nearest)}"
                f"Its inputs are {self}",
                name=unknown[0],
                nearest=nearest,
            )
        absent = [name for name in self.names if name not in x]
        if absent:
            raise InputMistake(
                "name",
                f"the input {absent[0]!r} of {self.model} is absent; give all of {self} "
                "(NaN for a missing value, if the model allows it)",
                name=absent[0],
                absent=absent,
            )
        columns = [convert(name, self._numbers(name, x[name])) for name in self.names]
        if self.shapes:
            return self._joined(dict(zip(self.names, columns, strict=True)))
        if len({column.shape for column in columns}) > 1:
            lengths = {name: np.shape(x[name]) for name in self.names}
            raise InputMistake(
                "length", f"the inputs have different shapes: {lengths}; give as many of each"
            )
        return np.stack(columns, axis=-1)

    def flat(self, x: Array, num_leading: int) -> Array:
        """Return x with its last axes as one, if they are the shape of the model's only input."""
        shape = self.shapes.get(self.names[0], ())
        if len(self.names) == 1 and len(shape) > 1 and x.shape[num_leading:] == shape:
            return x.reshape(*x.shape[:num_leading], -1)
        return x

    def _joined(self, columns: Mapping[str, Array]) -> Array:
        """Join columns of which some are arrays, each with its elements in C order."""
        parts = []
        for name, column in columns.items():
            shape = self.shapes.get(name, ())
            num_leading = column.ndim - len(shape)
            if num_leading < 0 or column.shape[num_leading:] != shape:
                raise InputMistake(
                    "length",
                    f"input {name!r} has shape {column.shape}; expected (..., "
                    f"{', '.join(map(str, shape))})",
                )
            parts.append(column.reshape(*column.shape[:num_leading], -1))
        if len({part.shape[:-1] for part in parts}) > 1:
            lengths = {name: column.shape for name, column in columns.items()}
            raise InputMistake(
                "length", f"the inputs have different shapes: {lengths}; give as many of each"
            )
        return np.concatenate(parts, axis=-1)

    def __str__(self) -> str:
        shown = [
            f"{name} {list(self.shapes[name])}" if name in self.shapes else name
            for name in self.names[:20]
        ]
        return f"[{', '.join(shown)}{', ...' if len(self.names) > 20 else ''}]"

    def _check_once(self, labels: Sequence[str]) -> None:
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise InputMistake("name", f"the input {twice!r} is there twice", name=twice)

    def _numbers(self, name: str, values: Any) -> Any:
        categories = self.categories.get(name)
        if categories is None:
            return values
        # As objects, for a list may hold names beside indices.
        values = values if isinstance(values, np.ndarray) else np.array(values, object)
        if values.dtype.kind not in "UOT":
            return values
        flat = [self._number(name, categories, value) for value in values.flat]
        return np.array(flat).reshape(values.shape)

    def _number(self, name: str, categories: Mapping[str, int], value: Any) -> Any:
        is_absent = value is None or value == "" or _is_no_number(value)
        is_text = UNKNOWN in categories
        if is_absent and MISSING in categories and not is_text:
            return categories[MISSING]
        if not isinstance(value, str):
            return value
        index = categories.get(value, categories.get(UNKNOWN if is_text else OTHER))
        if index is None:
            nearest = difflib.get_close_matches(value, list(categories), 3, 0.4)
            known = ", ".join(map(repr, list(categories)[:20])) or "known by number only"
            raise InputMistake(
                "name",
                f"input {name!r} has no category {str(value)!r}; {_did_you_mean(nearest)}"
                f"Its categories are {known}{', ...' if len(categories) > 20 else ''}",
                name=name,
                category=value,
                nearest=nearest,
            )
        return index


def _is_no_number(value: Any) -> bool:
    """Tell NaN, and what pandas has for it, whose comparisons have no truth."""
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return True


def _column(values: Any) -> Array:
    column = np.asarray(values)
    if column.dtype.kind == "O" and not any(isinstance(value, str) for value in column):
        return np.array(column.tolist())  # numbers of a kind that NumPy does not have
    return column


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
