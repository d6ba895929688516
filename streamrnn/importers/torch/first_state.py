"""A trained first state (h0, c0) in a state dict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError, listed
from streamrnn.importers.torch.chain import Chain
from streamrnn.importers.torch.recurrent import RecurrentModule
from streamrnn.model.tensor_file import TensorFile

__all__ = ["FirstStates", "first_states", "like_first_states"]

_MAX_AXES = 4
# By the prefix of a module, for each of its layers: h (and c), and the names of their tensors.
FirstStates = dict[str, list[tuple[tuple[NDArray[Any], ...], tuple[str, ...]]]]


def like_first_states(
    file: TensorFile, others: Sequence[str], order: Sequence[RecurrentModule]
) -> list[str]:
    """Find the tensors that look like a trained first state of one of the modules."""
    counts = {
        (num_layers * size, size)
        for module in order
        for num_layers in (module.num_layers, 1)
        for size in (module.sizes[-1], module.hidden_size)
    }
    states = []
    for name in others:
        shape = file.tensors[name].shape
        leaf = name.rpartition(".")[2]
        is_parameter = leaf in ("weight", "bias", "running_mean", "running_var")
        can_be = not is_parameter and 1 <= len(shape) <= _MAX_AXES
        if can_be and (math.prod(shape), shape[-1]) in counts:
            states.append(name)
    return states


def first_states(
    chain: Chain, names: Sequence[str], order: Sequence[RecurrentModule]
) -> FirstStates:
    """Read the tensors that the caller named: h0 (and c0) of every module in its order.

    Raises `ModelFileError` if they are not as many as the modules have, or of another shape.
    """
    file = chain.file
    wanted = [(module, state) for module in order for state in _states(module)]
    if len(names) != len(wanted):
        asked = ", ".join(
            f"{state}0 of {module.prefix.rstrip('.') or module.kind}" for module, state in wanted
        )
        raise ModelFileError(
            f"{file.path}: --first-state names {len(names)} tensors ({listed(names)}); there must "
            f"be {len(wanted)}: {asked} ('zeros' for one that is not there)"
        )
    found: FirstStates = {}
    left = iter(names)
    for module in order:
        parts = [_rows(chain, next(left), module, state) for state in _states(module)]
        found[module.prefix] = [
            (tuple(rows[k] for rows, _ in parts), tuple(name for _, name in parts))
            for k in range(module.num_layers)
        ]
    return found


def _states(module: RecurrentModule) -> tuple[str, ...]:
    return ("h", "c") if module.cell == "lstm" else ("h",)


def _rows(
    chain: Chain, wanted: str, module: RecurrentModule, state: str
) -> tuple[NDArray[Any], str]:
    """Return one state of every layer, [layers, size], and the tensor's name."""
    size = module.sizes[-1] if state == "h" else module.hidden_size
    if wanted == "zeros":
        return np.zeros((module.num_layers, size), np.float32), "nothing (zeros)"
    file = chain.file
    name = _resolved(file, wanted)
    shape = file.tensors[name].shape
    count = math.prod(shape)
    axes = tuple(axis for axis in shape[:-1] if axis != 1)
    if not shape or shape[-1] != size or axes not in ((), (module.num_layers,)):
        raise ModelFileError(
            f"{file.path}: tensor {name!r} has shape {list(shape)}; the first state {state}0 of "
            f"{module.kind} asks for [{module.num_layers}, 1, {size}] or [{size}]"
        )
    rows = chain.array(name).reshape(count // size, size)
    if len(rows) < module.num_layers:
        chain.notes.append(f"{name} is the first state of all {module.num_layers} layers")
        rows = np.repeat(rows, module.num_layers, axis=0)
    return rows, name


def _resolved(file: TensorFile, wanted: str) -> str:
    """Find the tensor that a name, or the end of a name, means."""
    ends = [name for name in file.tensors if name == wanted or name.endswith(f".{wanted}")]
    exact = [name for name in ends if name == wanted]
    found = exact or ends
    if len(found) != 1:
        raise ModelFileError(
            f"{file.path}: --first-state names {wanted!r}, and "
            + (f"{listed(found)} end so" if found else f"no tensor is it: {listed(file.tensors)}")
        )
    return found[0]
