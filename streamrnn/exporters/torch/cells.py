"""Recurrent layers as lines of a step: PyTorch's cells, or written out where it has none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamrnn.exporters.torch.layers import function_text
from streamrnn.exporters.torch.module import Module
from streamrnn.model.layers.base import Shape
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = ["add_recurrent"]

_CELLS = {"gru": "GRUCell", "lstm": "LSTMCell", "rnn_relu": "RNNCell", "rnn_tanh": "RNNCell"}
_FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def add_recurrent(
    module: Module, k: int, layer: LayerSpec, values: Sequence[str], shapes: Sequence[Shape]
) -> str:
    """Add one recurrent layer and its states."""
    names = [f"{state}_l{k}" for state in CELLS[layer.cell].states]
    states = [module.take(name) for name in names]
    x = module.joined_vector(k, values, shapes)
    if replace(layer, first_state=False).is_plain:
        new = _plain(module, k, layer, x, states)
    else:
        write = {"gru": _gru, "lstm": _lstm}[layer.cell]
        new = write(module, k, layer, x, states)
    given = [module.give(name, value) for name, value in zip(names, new, strict=True)]
    return module.add(f"l{k}", given[0])


def _plain(module: Module, k: int, layer: LayerSpec, x: str, states: Sequence[str]) -> list[str]:
    tensors = {name: module.parameter(f"{name}_l{k}") for name in _FIELDS}
    size = tensors["weight_ih"].shape[1]
    option = ', nonlinearity="relu"' if layer.cell == "rnn_relu" else ""
    cell = module.module(
        f"l{k}", f"{_CELLS[layer.cell]}({size}, {layer.hidden_size}{option})", **tensors
    )
    if len(states) == 1:
        return [f"{cell}({x}, {states[0]})"]
    module.lines.append(f"h{k}, c{k} = {cell}({x}, ({states[0]}, {states[1]}))")
    return [f"h{k}", f"c{k}"]


def _products(module: Module, k: int, layer: LayerSpec, x: str, h: str) -> tuple[str, str]:
    """Add ``W x`` and ``W h``, normalised where the layer does, with their biases."""
    made = []
    for name, value in (("ih", x), ("hh", h)):
        weight, bias = (module.parameter(f"{what}_{name}_l{k}") for what in ("weight", "bias"))
        rows, columns = weight.shape
        if not layer.layer_norm:
            text = f"Linear({columns}, {rows})"
            linear = module.module(f"l{k}_{name}", text, weight=weight, bias=bias)
            made.append(module.add(f"{name}{k}", f"{linear}({value})"))
            continue
        linear = module.module(
            f"l{k}_{name}", f"Linear({columns}, {rows}, bias=False)", weight=weight
        )
        product = module.add(f"{name}{k}", f"{linear}({value})")
        gain = module.parameter(f"norm_weight_{name}_l{k}")
        sizes = [2 * layer.hidden_size, layer.hidden_size] if layer.cell == "gru" else [rows]
        ends = np.cumsum([0, *sizes])
        parts = []
        for j, (first, end) in enumerate(itertools.pairwise(ends)):
            norm = module.module(
                f"l{k}_norm_{name}{j}",
                f"LayerNorm({end - first}, eps={layer.norm_epsilon})",
                weight=gain[first:end],
                bias=bias[first:end],
            )
            part = product if len(sizes) == 1 else f"{product}[:, {first}:{end}]"
            parts.append(f"{norm}({part})")
        joined = parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}], dim=1)"
        made.append(module.add(product, joined))
    return made[0], made[1]


def _lstm(module: Module, k: int, layer: LayerSpec, x: str, states: Sequence[str]) -> list[str]:
    a, b = _products(module, k, layer, x, states[0])
    i, f, g, o, c, m = (f"{name}{k}" for name in "ifgocm")
    module.lines.append(f"{i}, {f}, {g}, {o} = ({a} + {b}).chunk(4, dim=1)")

    def gate(name: str, value: str, seen: str) -> None:
        if layer.peepholes:
            peephole = module.buffer(f"l{k}_c{name}", module.parameter(f"weight_c{name}_l{k}"))
            module.add(value, f"{value} + {peephole} * {seen}")
        module.add(value, function_text(module, layer.gate_activation, value))

    gate("i", i, states[1])
    gate("f", f, states[1])
    candidate = function_text(module, layer.cell_activation, g)
    module.add(c, f"{f} * {states[1]} + {i} * {candidate}")
    gate("o", o, c)
    shown = c
    if layer.layer_norm:
        tensors = {name: module.parameter(f"norm_{name}_c_l{k}") for name in ("weight", "bias")}
        text = f"LayerNorm({layer.hidden_size}, eps={layer.norm_epsilon})"
        shown = f"{module.module(f'l{k}_norm_c', text, **tensors)}({c})"
    module.add(m, f"{o} * {function_text(module, layer.output_activation, shown)}")
    if not layer.projection_size:
        return [m, c]
    text = f"Linear({layer.hidden_size}, {layer.projection_size}, bias=False)"
    projection = module.module(f"l{k}_hr", text, weight=module.parameter(f"weight_hr_l{k}"))
    return [f"{projection}({m})", c]


def _gru(module: Module, k: int, layer: LayerSpec, x: str, states: Sequence[str]) -> list[str]:
    h, size = states[0], layer.hidden_size
    a, b = _products(module, k, layer, x, h)
    r, z, n = (f"{name}{k}" for name in "rzn")
    for name, first in ((r, 0), (z, size)):
        part = f"[:, {first}:{first + size}]"
        module.add(name, function_text(module, layer.gate_activation, f"({a}{part} + {b}{part})"))
    if layer.reset_after:
        hidden = f"{r} * {b}[:, {2 * size}:]"
    else:
        linear = f"self.l{k}_hh"
        rows = f"[{2 * size}:]"
        hidden = f"F.linear({r} * {h}, {linear}.weight{rows}, {linear}.bias{rows})"
    total = f"({a}[:, {2 * size}:] + {hidden})"
    module.add(n, function_text(module, layer.cell_activation, total))
    return [f"(1 - {z}) * {n} + {z} * {h}"]
