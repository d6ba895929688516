"""Recurrent layers of a PyTorch state dict, inferred from names and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamrnn.errors import ModelFileError
from streamrnn.model.tensor_file import TensorFile

__all__ = ["RECURRENT_NAME", "RecurrentLayers", "read_layers"]

RECURRENT_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<name>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(?P<k>\d+)"
    r"(?P<reverse>_reverse)?"
)
_CELL_OF_GATES = {1: "rnn", 3: "gru", 4: "lstm"}


@dataclass(frozen=True)
class RecurrentLayers:
    """Recurrent layers of a state dict, all alike."""

    cell: str  # rnn, gru or lstm
    hidden_size: int
    projection_size: int  # 0 for no projection
    sizes: list[int]  # I, and the size of every layer's h


def _shape(file: TensorFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise ModelFileError(f"{file.path}: tensor {name!r} is missing")
    return file.tensors[name].shape


def _expect(file: TensorFile, name: str, shape: tuple[int, ...], why: str) -> None:
    got = _shape(file, name)
    if got != shape:
        raise ModelFileError(
            f"{file.path}: tensor {name!r} has shape {list(got)}; {why} asks for {list(shape)}"
        )


def read_layers(file: TensorFile, prefix: str) -> RecurrentLayers:
    """Infer cell and sizes of the recurrent layers under a prefix.

    Raises `ModelFileError` if the shapes do not fit together, or the network is bidirectional.
    """
    matches = [
        m for m in map(RECURRENT_NAME.fullmatch, file.tensors) if m and m["prefix"] == prefix
    ]
    for match in matches:
        if match["reverse"]:
            raise ModelFileError(
                f"{file.path}: tensor {match[0]!r} belongs to a bidirectional network, which "
                "needs the end of a sequence before it can answer its beginning: it cannot be "
                "streamed. Train it with bidirectional=False"
            )
    num_layers = 1 + max(int(match["k"]) for match in matches)
    with_bias = any(match["name"].startswith("bias") for match in matches)
    projection_size = 0
    if any(match["name"] == "weight_hr" for match in matches):
        name = f"{prefix}weight_hr_l0"
        shape = _shape(file, name)
        if len(shape) != 2 or 0 in shape:
            raise ModelFileError(
                f"{file.path}: tensor {name!r} has shape {list(shape)}; expected [R, H], the "
                "projection of nn.LSTM(proj_size=R)"
            )
        projection_size, hidden_size = shape
        cell, num_gates = "lstm", 4
    else:
        cell, num_gates, hidden_size = _read_cell(file, f"{prefix}weight_hh_l0")
    rows, h_size = num_gates * hidden_size, projection_size or hidden_size
    first_input = _shape(file, f"{prefix}weight_ih_l0")
    sizes = [first_input[1] if len(first_input) == 2 else 0]
    for k in range(num_layers):
        why = f"layer {k} of this nn.{cell.upper()} with H = {hidden_size}"
        why += f" and proj_size = {projection_size}" if projection_size else ""
        _expect(file, f"{prefix}weight_ih_l{k}", (rows, sizes[-1]), why)
        _expect(file, f"{prefix}weight_hh_l{k}", (rows, h_size), why)
        if with_bias:
            _expect(file, f"{prefix}bias_ih_l{k}", (rows,), why)
            _expect(file, f"{prefix}bias_hh_l{k}", (rows,), why)
        if projection_size:
            _expect(file, f"{prefix}weight_hr_l{k}", (h_size, hidden_size), why)
        sizes.append(h_size)
    return RecurrentLayers(cell, hidden_size, projection_size, sizes)


def _read_cell(file: TensorFile, name: str) -> tuple[str, int, int]:
    """Return cell, number of gates and H from the shape of the first ``weight_hh``."""
    shape = _shape(file, name)
    if len(shape) != 2 or shape[1] == 0 or shape[0] not in {g * shape[1] for g in _CELL_OF_GATES}:
        raise ModelFileError(
            f"{file.path}: tensor {name!r} has shape {list(shape)}; expected [H, H] (nn.RNN), "
            "[3*H, H] (nn.GRU) or [4*H, H] (nn.LSTM)"
        )
    num_gates = shape[0] // shape[1]
    return _CELL_OF_GATES[num_gates], num_gates, shape[1]
