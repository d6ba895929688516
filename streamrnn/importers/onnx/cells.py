"""Recurrent cells that an exporter wrote out: products, gates and states, node by node.

PyTorch's exporters write ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` so, one step of them,
and ``nn.RNN`` as one copy of its cell for every time step. They are found by their shape: from the
node that makes the new h back to the products, with every node between accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import zeros

__all__ = ["Cell", "Product", "find_cells"]

Array = NDArray[Any]
_MAX_LOOKS = 2_000_000  # at nodes: some seconds; a graph of 100,000 nodes needs fewer
_MAX_STEPS = 10_000  # of a recurrence that was written out
# Inputs that a node must have to be one of a cell's; others have at least one.
_LEAST_INPUTS = {"Add": 2, "Gather": 2, "Gemm": 2, "MatMul": 2, "Mul": 2, "Slice": 2, "Sub": 2}


@dataclass(frozen=True)
class Product:
    """``W v + b``, with the names of what they were made of."""

    data: str  # name of v
    weight: Array  # [O, I]
    bias: Array  # [O]
    origins: dict[str, str]


@dataclass
class Cell:
    """A cell that was found: it stands in place of its nodes."""

    kind: str  # lstm, gru, rnn_tanh, rnn_relu
    x: Product
    h: Product
    state: tuple[str, ...]  # names of h, and c
    outputs: tuple[str, ...]  # names of the new h, and the new c
    nodes: set[int] = field(default_factory=set)  # places of the nodes that it is made of
    is_written_out: bool = False  # whether it is all steps; then h begins with zeros


def _is_whole(node: Any) -> bool:
    return len(node.input) >= _LEAST_INPUTS.get(node.op_type, 1)


class _Finder:
    """Matches nodes backwards from a value."""

    def __init__(self, nodes: Sequence[Any], constants: Mapping[str, Any]) -> None:
        self.nodes = nodes
        self.constants = constants
        self.maker = {
            name: k
            for k, node in enumerate(nodes)
            if _is_whole(node)
            for name in node.output
            if name
        }
        self.used: set[int] = set()
        self.looks_left = _MAX_LOOKS

    def made_by(self, name: str) -> int | None:
        """Return the place of the node that makes a value; None for all once it took too long."""
        self.looks_left -= 1
        return self.maker.get(name) if self.looks_left > 0 else None

    def node(self, name: str, *ops: str) -> Any | None:
        """Return the node that makes a value if it is one of these operators."""
        k = self.made_by(name)
        if k is None or self.nodes[k].op_type not in ops:
            return None
        self.used.add(k)
        return self.nodes[k]

    def constant(self, name: str) -> Array | None:
        """Return a constant."""
        value = self.constants.get(name)
        return value if isinstance(value, np.ndarray) else None

    def pairs(self, name: str, op: str) -> Iterator[tuple[str, str]]:
        """Give the two operands of a node in both orders."""
        node = self.node(name, op)
        if node is not None and len(node.input) == 2:
            a, b = node.input
            yield a, b
            yield b, a

    def terms(self, name: str, depth: int = 8) -> list[str]:
        """Take a sum apart, so deep at most."""
        k = self.made_by(name)
        if depth == 0 or k is None or self.nodes[k].op_type != "Add":
            return [name]
        self.used.add(k)
        return [term for part in self.nodes[k].input for term in self.terms(part, depth - 1)]

    def product(self, name: str) -> Product | None:
        """Match ``W v``, or with a bias in the same node."""
        node = self.node(name, "Gemm", "MatMul")
        if node is None or len(node.input) < 2:
            return None
        matrix = self.constant(node.input[1])
        if matrix is None or matrix.ndim != 2:
            return None
        bias: Array = zeros(matrix.shape[1])
        origins = {"weight": node.input[1]}
        weight = matrix.T
        if node.op_type == "Gemm":
            plain = {item.name: item.f if item.type == 1 else item.i for item in node.attribute}
            if plain.get("transA", 0) or (plain.get("alpha", 1), plain.get("beta", 1)) != (1, 1):
                return None
            if plain.get("transB", 0):
                weight = matrix
            bias = zeros(weight.shape[0])
            if len(node.input) > 2 and node.input[2]:
                given = self.constant(node.input[2])
                if given is None or given.size != weight.shape[0]:
                    return None
                bias, origins["bias"] = given.reshape(-1), node.input[2]
        return Product(node.input[0], weight, bias, origins)

    def products(self, name: str) -> list[Product] | None:
        """Match a sum of products and constants; a constant goes to the product next to it."""
        found: list[Product] = []
        constants: list[tuple[Array, str]] = []
        for term in self.terms(name):
            value = self.constant(term)
            if value is not None:
                constants.append((value.reshape(-1), term))
                continue
            product = self.product(term)
            if product is None:
                return None
            found.append(product)
        for value, label in constants:
            if not found or value.size != found[0].bias.size:
                return None
            at = next((j for j, p in enumerate(found) if "bias" not in p.origins), 0)
            target = found[at]
            found[at] = Product(
                target.data,
                target.weight,
                target.bias + value,
                target.origins | {"bias": label},
            )
        return found

    def parts(self, names: Sequence[str]) -> str | None:
        """Return the value of which these are the equal parts, in this order."""
        k = self.made_by(names[0])
        if k is None or self.nodes[k].op_type != "Split" or list(self.nodes[k].output) != [*names]:
            return None
        self.used.add(k)
        return str(self.nodes[k].input[0])


def find_cells(
    nodes: Sequence[Any], constants: Mapping[str, Any], outputs: Sequence[str]
) -> list[Cell]:
    """Find the cells among the nodes of a graph; no node belongs to two of them.

    What a node within a cell makes must not be read outside of it.
    """
    cells: list[Cell] = []
    taken: set[int] = set()
    matchers: tuple[tuple[tuple[str, ...], Callable[[_Finder, Any], Cell | None]], ...] = (
        (("Mul",), _lstm),
        (("Add",), _gru),
        (("Concat",), _written_out),
        (("Tanh", "Relu"), _rnn),
    )
    if not any(node.op_type in ("Tanh", "Relu") for node in nodes):
        return []
    finder = _Finder(nodes, constants)
    readers: dict[str, set[int]] = {name: {-1} for name in outputs}
    for k, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, set()).add(k)
    for ops, match in matchers:
        for k, node in enumerate(nodes):
            if finder.looks_left <= 0:
                return cells
            if node.op_type not in ops or k in taken or len(node.output) != 1:
                continue
            if not _is_whole(node):
                continue
            finder.used = {k}
            cell = match(finder, node)
            if cell is None or finder.used & taken:
                continue
            inner = {name for j in finder.used for name in nodes[j].output} - set(cell.outputs)
            if all(readers.get(name, set()) <= finder.used for name in inner):
                cell.nodes = set(finder.used)
                taken |= finder.used
                cells.append(cell)
    return cells


def _input(finder: _Finder, name: str, op: str) -> str:
    node = finder.node(name, op)
    return str(node.input[0]) if node is not None else ""


def _split_by_state(products: Sequence[Product] | None) -> tuple[Product, Product] | None:
    """Tell the product with x from the one with h, whose matrix is [G*H, H]."""
    if products is None or len(products) != 2:
        return None
    a, b = products
    if a.weight.shape[0] != b.weight.shape[0] or a.data == b.data:
        return None
    hidden = [p for p in (a, b) if p.weight.shape[0] % p.weight.shape[1] == 0]
    if len(hidden) == 2:
        # Both could be; PyTorch's names say which.
        hidden = [p for p in hidden if "hh" in p.origins["weight"]] or hidden
    if len(hidden) != 1:
        return None
    return (b, a) if hidden[0] is a else (a, b)


def _lstm(finder: _Finder, node: Any) -> Cell | None:
    """Match ``h' = o * tanh(c')``, ``c' = f * c + i * g``."""
    start = set(finder.used)
    for o_name, shown in finder.pairs(node.output[0], "Mul"):
        finder.used = set(start)
        o, c_new = _input(finder, o_name, "Sigmoid"), _input(finder, shown, "Tanh")
        if not o or not c_new:
            continue
        used = set(finder.used)
        for kept, added in finder.pairs(c_new, "Add"):
            for f_name, c in finder.pairs(kept, "Mul"):
                for i_name, g_name in finder.pairs(added, "Mul"):
                    finder.used = used | _makers(finder, c_new, kept, added)
                    f, i = _input(finder, f_name, "Sigmoid"), _input(finder, i_name, "Sigmoid")
                    g = _input(finder, g_name, "Tanh")
                    gates = finder.parts((i, f, g, o)) if f and i and g else None
                    pair = _split_by_state(finder.products(gates)) if gates else None
                    if pair is None or pair[1].weight.shape[0] != 4 * pair[1].weight.shape[1]:
                        continue
                    state = (pair[1].data, c)
                    return Cell("lstm", *pair, state, (node.output[0], c_new))
    return None


def _makers(finder: _Finder, *names: str) -> set[int]:
    return {finder.maker[name] for name in names}


def _gru(finder: _Finder, node: Any) -> Cell | None:
    """Match ``h' = n + z * (h - n)`` and ``h' = (1 - z) * n + z * h``."""
    start = set(finder.used)
    for first, second in finder.pairs(node.output[0], "Add"):
        for z_name, rest in finder.pairs(second, "Mul"):
            finder.used = start | _makers(finder, second)
            z = _input(finder, z_name, "Sigmoid")
            if not z:
                continue
            difference = finder.node(rest, "Sub")
            if difference is not None and difference.input[1] == first:
                h, n_name = str(difference.input[0]), first
            else:
                finder.used.discard(finder.maker.get(rest, -1))
                h, n_name = rest, _kept(finder, first, z_name)
            cell = _gru_gates(finder, z, n_name, h) if n_name else None
            if cell is not None:
                cell.outputs = (node.output[0],)
                return cell
    return None


def _kept(finder: _Finder, name: str, z_name: str) -> str:
    """Match ``(1 - z) * n`` and return the name of n."""
    for one_minus, n_name in finder.pairs(name, "Mul"):
        node = finder.node(one_minus, "Sub")
        if node is None or node.input[1] != z_name:
            continue
        one = finder.constant(node.input[0])
        if one is not None and one.size and (one == 1).all():
            return n_name
    return ""


def _gru_gates(finder: _Finder, z: str, n_name: str, h: str) -> Cell | None:
    """Match ``z = x_z + h_z``, ``n = tanh(x_n + r * h_n)`` with parts of two products."""
    n = _input(finder, n_name, "Tanh")
    if not n:
        return None
    used = set(finder.used)
    for x_n, gated in finder.pairs(n, "Add"):
        for r_name, h_n in finder.pairs(gated, "Mul"):
            finder.used = used | _makers(finder, n, gated)
            r = _input(finder, r_name, "Sigmoid")
            if not r:
                continue
            for x_r, h_r in finder.pairs(r, "Add"):
                for x_z, h_z in finder.pairs(z, "Add"):
                    a, b = finder.parts((x_r, x_z, x_n)), finder.parts((h_r, h_z, h_n))
                    x_parts = finder.products(a) if a else None
                    h_parts = finder.products(b) if b else None
                    if x_parts is None or h_parts is None or len(x_parts) + len(h_parts) != 2:
                        continue
                    x, hidden = x_parts[0], h_parts[0]
                    rows, columns = hidden.weight.shape
                    if hidden.data == h and rows == 3 * columns == x.weight.shape[0]:
                        return Cell("gru", x, hidden, (h,), ())
    return None


def _rnn(finder: _Finder, node: Any) -> Cell | None:
    """Match ``h' = f(W x + b + W h + b)``."""
    pair = _split_by_state(finder.products(node.input[0]))
    if pair is None or pair[1].weight.shape[0] != pair[1].weight.shape[1]:
        return None
    kind = f"rnn_{node.op_type.lower()}"
    return Cell(kind, *pair, (pair[1].data,), (node.output[0],))


def _written_out(finder: _Finder, node: Any) -> Cell | None:
    """Match all steps of a simple recurrent layer, put together along time.

    ``h_t = f(L[t] + W h_{t-1} + b)``, where L is computed for all steps at once and ``W h_0 + b``
    was made a constant of.
    """
    names = list(node.input)
    axes = [item.i for item in node.attribute if item.name == "axis"]
    if axes != [0] or not 1 < len(names) <= _MAX_STEPS:
        return None
    source, product, kind = "", None, ""
    before = ""
    first: Array | None = None
    for t, name in enumerate(names):
        step = finder.node(name, "Tanh", "Relu")
        if step is None or kind not in ("", step.op_type):
            return None
        kind = step.op_type
        rest, place = [], None
        for term in finder.terms(step.input[0]):
            sliced = _slice_of(finder, term)
            if sliced is not None and place is None:
                place = sliced
            else:
                rest.append(term)
        if place is None or place[1] != t or source not in ("", place[0]):
            return None
        source = place[0]
        if t == 0:
            constants = [finder.constant(term) for term in rest]
            if any(value is None for value in constants):
                return None
            first = sum((v.reshape(-1) for v in constants if v is not None), np.zeros(1))
            before = name
            continue
        now = _one_product(finder, rest)
        if now is None or now.data != before:
            return None
        same = product is None or _same(product, now)
        product, before = now if product is None else product, name
        if not same:
            return None
    if product is None or first is None or product.weight.shape[0] != product.weight.shape[1]:
        return None
    # h_0 must be zeros: only b is left of W h_0 + b.
    if first.size not in (1, product.bias.size) or not np.array_equal(
        np.broadcast_to(first, product.bias.shape).astype(np.float32), product.bias
    ):
        return None
    size = product.weight.shape[0]
    x = Product(source, np.eye(size, dtype=np.float32), zeros(size), {})
    outputs = (node.output[0], names[-1])
    return Cell(f"rnn_{kind.lower()}", x, product, (), outputs, is_written_out=True)


def _one_product(finder: _Finder, terms: Sequence[str]) -> Product | None:
    found = [finder.products(term) for term in terms if finder.constant(term) is None]
    if len(found) != 1 or found[0] is None or len(found[0]) != 1:
        return None
    product = found[0][0]
    for term in terms:
        value = finder.constant(term)
        if value is None:
            continue
        if value.size != product.bias.size:
            return None
        product = Product(
            product.data,
            product.weight,
            product.bias + value.reshape(-1),
            product.origins | {"bias": term},
        )
    return product


def _same(a: Product, b: Product) -> bool:
    return np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)


def _slice_of(finder: _Finder, name: str) -> tuple[str, int] | None:
    """Match step t of a value, cut out along its first axis: the value's name, and t."""
    squeezed = finder.node(name, "Squeeze")
    cut = finder.node(squeezed.input[0] if squeezed is not None else name, "Slice")
    if cut is None or len(cut.input) < 4:
        gathered = finder.node(name, "Gather")
        index = finder.constant(gathered.input[1]) if gathered is not None else None
        axis = [a.i for a in gathered.attribute if a.name == "axis"] if gathered is not None else []
        if gathered is None or index is None or index.size != 1 or axis not in ([], [0]):
            return None
        return str(gathered.input[0]), int(index.reshape(-1)[0])
    numbers = [finder.constant(part) for part in cut.input[1:]]
    if any(value is None or value.size != 1 for value in numbers):
        return None
    start, end, axis_, *step = (int(v.reshape(-1)[0]) for v in numbers if v is not None)
    if axis_ != 0 or end != start + 1 or step not in ([], [1]):
        return None
    return str(cut.input[0]), start
