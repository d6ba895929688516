"""Layers of cells that an exporter wrote out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import Recurrent
from streamrnn.importers.onnx.cells import Cell
from streamrnn.importers.onnx.recurrent import StateUse, time_label
from streamrnn.importers.onnx.values import ONE_STEP, NotFollowed, Signal, Symbols, Unknown, Value

__all__ = ["apply_cell"]


def apply_cell(
    cell: Cell,
    name: str,
    values: Mapping[str, Value],
    new_symbols: Callable[[Sequence[int]], NDArray[np.int64]],
) -> tuple[list[Value], list[StateUse]]:
    """Follow a cell; return its outputs and what it does with states.

    ``new_symbols`` makes symbols of a shape. Raises `NotFollowed` if its operands are others.
    """
    signal = values.get(cell.x.data)
    if isinstance(signal, Unknown):
        raise NotFollowed(*signal.reasons)
    if not isinstance(signal, Signal) or signal.num_features() != cell.x.weight.shape[1]:
        raise NotFollowed("its input is not what the network computes")
    size = cell.h.weight.shape[1]
    origins = {f"{field}_ih": text for field, text in cell.x.origins.items()}
    origins |= {f"{field}_hh": text for field, text in cell.h.origins.items()}
    order = signal.feature_order()
    x_weight = cell.x.weight if order is None else cell.x.weight[:, order]
    arrays = (x_weight, cell.h.weight, cell.x.bias, cell.h.bias)
    layer = Recurrent(name, cell.kind, *arrays, origins)
    if cell.is_written_out:
        if len(signal.axes) != 3:
            raise NotFollowed("its input is not [time, batch, features]")
        time = time_label(signal, 0)
        every = replace(signal, time=time).plus(layer).with_features(size)
        shape: tuple[int, ...] = every.shape[1:]
        last = new_symbols(shape)
        return [every, Symbols(last)], [StateUse(name, np.full(last.shape, -1), last)]
    if signal.time not in ("", ONE_STEP):
        raise NotFollowed("it runs on one step of layers that run along time")
    made = replace(signal, time=ONE_STEP).plus(layer).with_features(size)
    uses = []
    for state in cell.state:
        value = values.get(state)
        if not isinstance(value, Symbols) or value.ids.shape != made.shape:
            raise NotFollowed("it begins with something else than a state input of its shape")
        ids = new_symbols(made.shape)
        uses.append(StateUse(name, value.ids, ids, must_return=True))
    outputs: list[Value] = [replace(made, ids=uses[0].last)]
    return [*outputs, *(Symbols(use.last) for use in uses[1:])], uses
