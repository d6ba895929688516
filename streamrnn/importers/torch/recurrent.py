"""Recurrent modules of a PyTorch state dict, inferred from names and shapes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.network import Recurrent, zeros
from streamrnn.model.tensor_file import StoredTensor, TensorFile

__all__ = [
    "RECURRENT_NAME",
    "RecurrentModule",
    "chained",
    "find_modules",
    "layers_of",
    "numbered_order",
    "read_module",
]

# Of nn.RNN, nn.GRU and nn.LSTM; without the number of a layer those of the nn.*Cell.
RECURRENT_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<name>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)"
    r"(?:_l(?P<k>\d{1,4}))?(?P<reverse>_reverse)?"
)
_CELL_OF_GATES = {1: "rnn", 3: "gru", 4: "lstm"}
_MAX_MODULES = 8  # whose order is sought; more are named by the user


@dataclass(frozen=True)
class RecurrentModule:
    """One module: layers that are all alike."""

    prefix: str  # of its tensors' names
    is_cell: bool  # nn.LSTMCell and the like, whose names have no number
    cell: str  # rnn, gru or lstm
    hidden_size: int
    projection_size: int  # 0 for no projection
    sizes: tuple[int, ...]  # I, and the size of every layer's h

    @property
    def kind(self) -> str:
        """PyTorch's name of it."""
        return f"nn.{self.cell.upper()}{'Cell' if self.is_cell else ''}"

    @property
    def num_layers(self) -> int:
        """Number of its layers."""
        return len(self.sizes) - 1


def find_modules(file: TensorFile) -> dict[str, dict[str, re.Match[str]]]:
    """Group the recurrent tensors by the prefix of their names."""
    found: dict[str, dict[str, re.Match[str]]] = {}
    for name in file.tensors:
        match = RECURRENT_NAME.fullmatch(name)
        if match:
            found.setdefault(match["prefix"], {})[name] = match
    return found


def read_module(file: TensorFile, prefix: str) -> RecurrentModule:
    """Infer cell and sizes of the module under a prefix.

    Raises `ModelFileError` if the shapes do not fit together, or the network is bidirectional.
    """
    matches = find_modules(file).get(prefix, {}).values()
    for match in matches:
        if match["reverse"]:
            raise ModelFileError(
                f"{file.path}: tensor {match[0]!r} belongs to a bidirectional network, which "
                "needs the end of a sequence before it can answer its beginning: it cannot be "
                "streamed. Train it with bidirectional=False"
            )
    is_cell = all(match["k"] is None for match in matches)
    if not is_cell and any(match["k"] is None for match in matches):
        raise ModelFileError(
            f"{file.path}: the names under {prefix!r} are of a layered module and of a cell; the "
            f"tensors are {', '.join(match[0] for match in matches)}"
        )
    num_layers = 1 if is_cell else 1 + max(int(match["k"]) for match in matches)
    if num_layers > len(matches):
        numbers = {int(match["k"]) for match in matches if not is_cell}
        missing = next(k for k in range(num_layers) if k not in numbers)
        raise ModelFileError(f"{file.path}: tensor '{prefix}weight_ih_l{missing}' is missing")
    leaf = _leaf(is_cell)
    with_bias = any(match["name"].startswith("bias") for match in matches)
    projection_size = 0
    if any(match["name"] == "weight_hr" for match in matches):
        name = f"{prefix}{leaf('weight_hr', 0)}"
        shape = _shape(file, name)
        if len(shape) != 2 or 0 in shape:
            raise ModelFileError(
                f"{file.path}: tensor {name!r} has shape {list(shape)}; expected [R, H], the "
                "projection of nn.LSTM(proj_size=R)"
            )
        projection_size, hidden_size = shape
        cell, num_gates = "lstm", 4
    else:
        cell, num_gates, hidden_size = _read_cell(file, f"{prefix}{leaf('weight_hh', 0)}")
    rows, h_size = num_gates * hidden_size, projection_size or hidden_size
    first_input = _shape(file, f"{prefix}{leaf('weight_ih', 0)}")
    sizes = [first_input[1] if len(first_input) == 2 else 0]
    module = RecurrentModule(prefix, is_cell, cell, hidden_size, projection_size, tuple(sizes))
    for k in range(num_layers):
        why = f"layer {k} of this {module.kind} with H = {hidden_size}"
        why += f" and proj_size = {projection_size}" if projection_size else ""
        wanted: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, sizes[-1]),
            "weight_hh": (rows, h_size),
        }
        if with_bias:
            wanted |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if projection_size:
            wanted["weight_hr"] = (h_size, hidden_size)
        for name, shape in wanted.items():
            _expect(file, f"{prefix}{leaf(name, k)}", shape, why)
        sizes.append(h_size)
    return replace(module, sizes=tuple(sizes))


def layers_of(
    module: RecurrentModule,
    tensors: Mapping[str, StoredTensor],
    nonlinearity: str,
    array: Callable[[str], NDArray[Any]],
) -> list[Recurrent]:
    """Read the layers of a module with ``array``; ``nonlinearity`` is that of nn.RNN."""
    leaf = _leaf(module.is_cell)
    cell = f"rnn_{nonlinearity}" if module.cell == "rnn" else module.cell
    layers = []
    for k in range(module.num_layers):
        fields: dict[str, Any] = {}
        origins = {}
        for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
            name = f"{module.prefix}{leaf(field, k)}"
            if name in tensors:
                fields[field] = array(name)
                origins[field] = name
        num_rows = fields["weight_ih"].shape[0]
        for field in ("bias_ih", "bias_hh"):
            fields.setdefault(field, zeros(num_rows))
        name = module.prefix.rstrip(".") or module.kind
        if module.num_layers > 1:
            name += f", layer {k}"
        layers.append(Recurrent(name, cell, origins=origins, **fields))
    return layers


def chained(modules: Sequence[RecurrentModule]) -> list[tuple[RecurrentModule, ...]]:
    """List the orders in which each module takes what the one before it gives: two at most."""
    if len(modules) > _MAX_MODULES:
        return []
    found: list[tuple[RecurrentModule, ...]] = []

    def extend(order: tuple[RecurrentModule, ...]) -> None:
        if len(order) == len(modules):
            found.append(order)
        for module in modules:
            fits = not order or order[-1].sizes[-1] == module.sizes[0]
            if module not in order and fits and len(found) < 2:
                extend((*order, module))

    extend(())
    return found


def numbered_order(modules: Sequence[RecurrentModule]) -> tuple[RecurrentModule, ...] | None:
    """Return the modules by number where their names differ in one number alone, else None.

    ``lstm1, lstm2``, ``layers.0, layers.1``; ``lstm, lstm2`` too.
    """
    numbers: dict[int, RecurrentModule] = {}
    stems = set()
    for module in modules:
        name = module.prefix.rstrip(".")
        match = re.fullmatch(r"(.*?)(\d{0,9})", name)
        assert match is not None  # both parts may be empty
        stems.add(match[1])
        numbers[int(match[2] or 0)] = module
    if len(stems) > 1 or len(numbers) < len(modules):
        return None
    order = tuple(numbers[number] for number in sorted(numbers))
    pairs = itertools.pairwise(order)
    return order if all(a.sizes[-1] == b.sizes[0] for a, b in pairs) else None


def _leaf(is_cell: bool) -> Callable[[str, int], str]:
    return (lambda name, k: name) if is_cell else (lambda name, k: f"{name}_l{k}")


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
