"""The vocabulary of a text: the pieces of its training part, the most frequent first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamrnn.errors import DataError, TrainingError
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.table import Column, Table
from streamrnn_client.text import UNKNOWN

__all__ = ["DEFAULT_SIZES", "with_vocabulary"]

DEFAULT_SIZES = {"char": 1000, "word": 2000}  # at most, by unit


def with_vocabulary(
    config: TrainingConfig, table: Table, num_training_rows: int
) -> tuple[TrainingConfig, Table]:
    """Give numbers to the pieces of a text; what is no text is returned as it is.

    Token 0 is `UNKNOWN`. It stands for all pieces that are not among the most frequent ones of the
    training part; of equally frequent ones the first in the order of letters comes first. The
    configuration that is returned has the vocabulary's size. Raises `TrainingError` if the
    configuration contradicts itself, `DataError` if the training part is empty.
    """
    column = next(iter(table.columns.values()))
    if not column.unit:
        if config.tokens or config.vocabulary:
            raise TrainingError(
                f"tokens and vocabulary are for texts, but {table.path} is read as a table; "
                + ("leave them out" if config.tokens else "set tokens to char or word")
            )
        return config, table
    assert column.indices is not None
    if config.horizon != (1,):
        raise TrainingError(
            f"horizon is {list(config.horizon)}; of a text the next token is predicted"
        )
    if config.vocabulary == 1:
        raise TrainingError("vocabulary is 1; the unknown token and another make 2 at least")
    counts = np.bincount(column.indices[:num_training_rows], minlength=len(column.labels))
    labels = column.labels
    most = (config.vocabulary or DEFAULT_SIZES[column.unit]) - 1
    seen = sorted(np.flatnonzero(counts).tolist(), key=lambda k: (-counts[k], labels[k]))[:most]
    if not seen:
        raise DataError(f"{table.path}: the train part of the text is empty")
    names = (UNKNOWN, *(labels[k] for k in seen))
    known = Column(
        column.name,
        column.codes(names),
        labels=names,
        num_tokens=len(names),
        unit=column.unit,
    )
    return config.replace(vocabulary=len(names)), replace(table, columns={column.name: known})
