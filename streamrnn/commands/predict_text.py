"""A text through a model: what it expected at every token, and what came."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError
from streamrnn.model.model import Model
from streamrnn.training.data.table import Table

__all__ = ["TEXT_HEADER", "is_text", "predict_text"]

TEXT_HEADER = ("token", "p", "expected", "p_expected")
BLOCK_TOKENS = 4096


def is_text(table: Table) -> bool:
    """Tell whether a table is a text."""
    return any(column.unit for column in table.columns.values())


def predict_text(model: Model, table: Table) -> Iterator[list[str]]:
    """Return the rows of `TEXT_HEADER`, one for every token of a text.

    ``token`` is the text itself, ``p`` the probability that the model gave to it before it came,
    ``expected`` the token that had the highest one, ``p_expected``; nothing was expected of the
    first token. One that the model does not know is judged as the unknown one. Raises `DataError`
    if the model does not predict the tokens of such a text.
    """
    [column] = table.columns.values()
    spec, names = model.spec, model.spec.inputs[0].categories
    is_next = tuple(output.name for output in spec.outputs) == names
    is_softmax = spec.head is not None and spec.head.activation == "softmax"
    if spec.inputs[0].unit != column.unit or not is_next or not is_softmax:
        raise DataError(
            f"{table.path} is read as a text in units of {column.unit}, and the model does not "
            "predict the next one of such a text"
        )
    assert column.indices is not None
    pieces = (column.labels[k] for k in column.indices.tolist())
    rows = _rows(model, column.codes(names).astype(np.uint32))
    return ([piece, *row] for piece, row in zip(pieces, rows, strict=True))


def _rows(model: Model, tokens: NDArray[np.uint32]) -> Iterator[list[str]]:
    from streamrnn.engine.engine import Engine

    names, engine = model.spec.inputs[0].categories, Engine(model)
    yield ["", "", ""]
    for start in range(0, len(tokens) - 1, BLOCK_TOKENS):
        block = tokens[start : min(start + BLOCK_TOKENS, len(tokens) - 1)]
        y = engine.steps("text", block[:, None])
        then = tokens[start + 1 : start + 1 + len(block)]
        best = y.argmax(axis=1)
        steps = np.arange(len(block))
        for p, k, most in zip(y[steps, then], best.tolist(), y[steps, best], strict=True):
            yield [f"{p:.9g}", names[k], f"{most:.9g}"]
