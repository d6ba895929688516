"""Recurrent layers as nodes: one operator, or written out where ONNX has none of their form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.exporters.onnx.graph import Graph
from streamrnn.exporters.onnx.layers import add_function
from streamrnn.exporters.walk import StatePart
from streamrnn.importers.gates import in_their_order
from streamrnn.model.layers.base import Shape
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = ["add_recurrent", "is_operator"]

# Within an operator, with alpha and beta of those that have some.
_FUNCTIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "elu": ("Elu", (1.0,)),
    "hard_sigmoid_fifth": ("HardSigmoid", (0.2, 0.5)),
    "hard_sigmoid_sixth": ("HardSigmoid", (1 / 6, 0.5)),
    "identity": ("Affine", (1.0, 0.0)),
    "relu": ("Relu", ()),
    "sigmoid": ("Sigmoid", ()),
    "softplus": ("Softplus", ()),
    "softsign": ("Softsign", ()),
    "tanh": ("Tanh", ()),
}


def is_operator(layer: LayerSpec) -> bool:
    """Whether ONNX has an operator of a layer's form.

    A projection is multiplied into what the operator does with h: its state is what is projected.
    """
    functions = (layer.gate_activation, layer.cell_activation, layer.output_activation)
    return (
        not layer.layer_norm
        and not (layer.projection_size and layer.first_state)
        and all(name in _FUNCTIONS for name in functions)
    )


def add_recurrent(
    graph: Graph, k: int, layer: LayerSpec, values: Sequence[str], shapes: Sequence[Shape]
) -> str:
    """Add one recurrent layer and its states."""
    value = graph.joined_vector(k, values, shapes)
    names = [f"{state}_l{k}" for state in CELLS[layer.cell].states]
    if is_operator(layer) and layer.projection_size:
        graph.parts[names[0]] = StatePart(names[0], np.zeros(layer.hidden_size, np.float32))
    states = [graph.take(name) for name in names]
    if is_operator(layer):
        return _operator(graph, k, layer, value, states)
    write = {"gru": _gru, "lstm": _lstm}[layer.cell]
    new = write(_Cell(graph, k, layer, value, states[0]), states)
    given = [graph.give(name, each) for name, each in zip(names, new, strict=True)]
    return given[0]


def _operator(graph: Graph, k: int, layer: LayerSpec, value: str, states: Sequence[str]) -> str:
    op = layer.cell.removesuffix("_tanh").removesuffix("_relu").upper()

    def theirs(name: str) -> NDArray[Any]:
        return in_their_order(graph.parameter(f"{name}_l{k}"), "onnx", layer.cell)

    def with_axis(name: str) -> str:
        """Give a state, or x, of one step the axis that the operator wants."""
        if graph.is_sequence:
            return name
        return graph.add("Unsqueeze", [name, graph.numbers(0)], f"{name}_for_l{k}")

    bias = np.concatenate([theirs("bias_ih"), theirs("bias_hh")])
    weight_hh = theirs("weight_hh")
    if layer.projection_size:
        weight_hh = weight_hh.astype(np.float64) @ graph.parameter(f"weight_hr_l{k}")
    inputs = [
        with_axis(value),
        graph.constant(f"W_l{k}", theirs("weight_ih")[None]),
        graph.constant(f"R_l{k}", weight_hh[None]),
        graph.constant(f"B_l{k}", bias[None]),
        "",
        *map(with_axis, states),
    ]
    if layer.peepholes:
        blocks = [graph.parameter(f"weight_c{gate}_l{k}") for gate in "iof"]
        inputs.append(graph.constant(f"P_l{k}", np.concatenate(blocks)[None]))
    ends = [f"last_{name}" for name in states]
    form = _form(layer)
    graph.add_many(op, inputs, [f"all_l{k}", *ends], hidden_size=layer.hidden_size, **form)
    if graph.is_sequence:
        for name, end in zip(states, ends, strict=True):
            graph.give(name, end)
        output = graph.add("Squeeze", [f"all_l{k}", graph.numbers(1)], f"steps_l{k}")
    else:
        given = [
            graph.give(name, graph.add("Squeeze", [end, graph.numbers(0)], f"{end}_step"))
            for name, end in zip(states, ends, strict=True)
        ]
        output = given[0]
        if not graph.masked:
            output = graph.add("Squeeze", [f"all_l{k}", graph.numbers(0, 1)], f"step_l{k}")
    if not layer.projection_size:
        return output
    matrix = graph.constant(f"weight_hr_l{k}", graph.parameter(f"weight_hr_l{k}").T)
    return graph.add("MatMul", [output, matrix], f"projected_l{k}")


def _form(layer: LayerSpec) -> dict[str, Any]:
    """Return the attributes of a recurrent operator that are not their defaults."""
    attributes: dict[str, Any] = {}
    if layer.cell == "rnn_relu":
        attributes["activations"] = ["Relu"]
    if layer.cell == "gru":
        attributes["linear_before_reset"] = int(layer.reset_after)
    names = [layer.gate_activation, layer.cell_activation]
    names += [layer.output_activation] * (layer.cell == "lstm")
    if layer.cell.startswith("rnn_") or (names[0] == "sigmoid" and set(names[1:]) == {"tanh"}):
        return attributes
    known = [_FUNCTIONS[name] for name in names]
    numbers = {
        "activation_alpha": [given[0] for _, given in known if given],
        "activation_beta": [given[1] for _, given in known if len(given) > 1],
    }
    attributes["activations"] = [name for name, _ in known]
    return attributes | {name: given for name, given in numbers.items() if given}


class _Cell:
    """Nodes of one cell that is written out."""

    def __init__(self, graph: Graph, k: int, layer: LayerSpec, x: str, h: str) -> None:
        self.graph, self.k, self.layer, self.x, self.h = graph, k, layer, x, h

    def parameter(self, name: str, value: NDArray[Any] | None = None) -> str:
        """Keep a parameter, or a part of one."""
        value = self.graph.parameter(f"{name}_l{self.k}") if value is None else value
        return self.graph.constant(f"{name}_l{self.k}", value)

    def add(self, op: str, *inputs: str, to: str, **options: Any) -> str:
        """Add a node."""
        return self.graph.add(op, inputs, f"{to}_l{self.k}", **options)

    def function(self, name: str, value: str, to: str) -> str:
        """Add an activation."""
        return add_function(self.graph, name, value, f"{to}_l{self.k}")

    def product(self, name: str, value: str, rows: slice = slice(None), end: str = "") -> str:
        """Multiply by rows of a matrix, and normalise."""
        weight = self.graph.parameter(f"weight_{name}_l{self.k}")[rows]
        matrix = self.parameter(f"weight_{name}{end}", weight.T)
        made = self.add("MatMul", value, matrix, to=f"product_{name}{end}")
        if not self.layer.layer_norm:
            return made
        gain = self.graph.parameter(f"norm_weight_{name}_l{self.k}")[rows]
        return self.normalised(made, gain, np.zeros_like(gain), f"norm_{name}{end}")

    def normalised(self, value: str, gain: NDArray[Any], shift: NDArray[Any], to: str) -> str:
        """Normalise over all units."""
        inputs = [self.parameter(f"{to}_gain", gain), self.parameter(f"{to}_shift", shift)]
        options = {"axis": -1, "epsilon": self.layer.norm_epsilon}
        return self.add("LayerNormalization", value, *inputs, to=to, **options)

    def split(self, value: str, names: str, to: str) -> list[str]:
        """Part the blocks of gates."""
        sizes = self.graph.numbers(*[self.layer.hidden_size] * len(names))
        parts = [f"{to}_{name}_l{self.k}" for name in names]
        return self.graph.add_many("Split", [value, sizes], parts, axis=-1)


def _lstm(cell: _Cell, states: Sequence[str]) -> list[str]:
    layer, c = cell.layer, states[1]
    sums = cell.add("Add", cell.product("ih", cell.x), cell.parameter("bias_ih"), to="sum_ih")
    sums = cell.add("Add", sums, cell.product("hh", cell.h), to="sum_hh")
    sums = cell.add("Add", sums, cell.parameter("bias_hh"), to="sums")
    i, f, g, o = cell.split(sums, "ifgo", "gates")

    def gate(value: str, name: str, seen: str) -> str:
        if layer.peepholes:
            part = cell.add("Mul", seen, cell.parameter(f"weight_c{name}"), to=f"peephole_{name}")
            value = cell.add("Add", value, part, to=f"sum_{name}")
        return cell.function(layer.gate_activation, value, name)

    kept = cell.add("Mul", gate(f, "f", c), c, to="c_kept")
    candidate = cell.function(layer.cell_activation, g, "g")
    added = cell.add("Mul", gate(i, "i", c), candidate, to="c_added")
    new_c = cell.add("Add", kept, added, to="new_c")
    shown = new_c
    if layer.layer_norm:
        ends = [cell.graph.parameter(f"norm_{name}_c_l{cell.k}") for name in ("weight", "bias")]
        shown = cell.normalised(new_c, ends[0], ends[1], "norm_c")
    shown = cell.function(layer.output_activation, shown, "shown")
    new_h = cell.add("Mul", gate(o, "o", new_c), shown, to="new_h")
    if layer.projection_size:
        weight = cell.graph.parameter(f"weight_hr_l{cell.k}").T
        new_h = cell.add("MatMul", new_h, cell.parameter("weight_hr", weight), to="projected_h")
    return [new_h, new_c]


def _gru(cell: _Cell, states: Sequence[str]) -> list[str]:
    layer, size = cell.layer, cell.layer.hidden_size
    gates, last = slice(0, 2 * size), slice(2 * size, None)
    parts = {}
    for name, value in (("ih", cell.x), ("hh", cell.h)):
        bias = cell.graph.parameter(f"bias_{name}_l{cell.k}")
        product = cell.product(name, value, gates, "_gates")
        shift = cell.parameter(f"bias_{name}_gates", bias[gates])
        parts[name] = cell.add("Add", product, shift, to=f"gates_{name}")
    sums = cell.add("Add", parts["ih"], parts["hh"], to="gate_sums")
    r, z = (
        cell.function(layer.gate_activation, part, name)
        for name, part in zip("rz", cell.split(sums, "rz", "gates"), strict=True)
    )

    def candidate_part(name: str, value: str) -> str:
        bias = cell.graph.parameter(f"bias_{name}_l{cell.k}")[last]
        product = cell.product(name, value, last, "_n")
        return cell.add("Add", product, cell.parameter(f"bias_{name}_n", bias), to=f"n_{name}")

    if layer.reset_after:
        hidden = cell.add("Mul", r, candidate_part("hh", cell.h), to="n_reset")
    else:
        hidden = candidate_part("hh", cell.add("Mul", r, cell.h, to="h_reset"))
    total = cell.add("Add", candidate_part("ih", cell.x), hidden, to="n_sum")
    n = cell.function(layer.cell_activation, total, "n")
    rest = cell.add("Sub", cell.graph.constant("one", 1), z, to="z_rest")
    new = cell.add("Mul", rest, n, to="h_new_part")
    return [cell.add("Add", new, cell.add("Mul", z, cell.h, to="h_kept"), to="new_h")]
