"""What is known of a graph while it is followed, and what its inputs are: data or states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.network import FrameLayer
from streamrnn.importers.onnx.cells import Cell
from streamrnn.importers.onnx.file import OnnxFile
from streamrnn.importers.onnx.moves import MAX_ELEMENTS, MOVES
from streamrnn.importers.onnx.recurrent import RECURRENT, StateUse
from streamrnn.importers.onnx.values import OPEN_SIZES, NotFollowed, Value

__all__ = [
    "MAX_DEPTH",
    "Graph",
    "branches",
    "given",
    "input_shape",
    "state_names",
    "streamed_cells",
    "trace_moves",
]

MAX_DEPTH = 8  # of graphs in branches
_MAX_MOVED = 64  # values that are followed to one that is moved


@dataclass
class Graph:
    """What is known of a graph after it was followed."""

    file: OnnxFile
    values: dict[str, Value] = field(default_factory=dict)
    state_inputs: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    uses: list[StateUse] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of nodes
    num_symbols: int = 0
    num_made: int = 0  # elements of constants that the graph made
    open_axes: set[str] = field(default_factory=set)  # labels of axes whose size is open
    fixed: set[str] = field(default_factory=set)  # of what was given, the names that were found
    # By name of a state input, the output that is this state at the next step.
    pairs: dict[str, str] = field(default_factory=dict)
    paired_by: str = ""  # what the pairs were found by
    is_told: bool = False  # whether an option says them
    unclear: str = ""  # which pairs may be others, and what decides; nothing if it is clear
    # State inputs that are computed with, as layers that give what was made at the step before.
    delays: dict[str, FrameLayer] = field(default_factory=dict)
    roots: dict[str, set[str]] = field(default_factory=dict)  # what a value is only moved from
    data_ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # of what joined a state

    def new_symbols(self, shape: Sequence[int]) -> NDArray[np.int64]:
        """Give every element of a shape a new id."""
        count = int(np.prod(shape))
        if self.num_symbols + count > MAX_ELEMENTS:
            raise NotFollowed("it has too many states")
        ids = np.arange(self.num_symbols, self.num_symbols + count).reshape(tuple(shape))
        self.num_symbols += count
        return ids


def trace_moves(graph: Graph, nodes: Sequence[Any]) -> None:
    """Note what values are only moved from."""
    roots = graph.roots
    for node in nodes:
        if node.op_type in MOVES:
            moved = list(node.input) if node.op_type == "Concat" else list(node.input)[:1]
            whole = set().union(*(roots.get(name, {name}) for name in moved[:_MAX_MOVED]))
            for name in node.output:
                roots[name] = whole if len(whole) < _MAX_MOVED else {name}


def streamed_cells(graph: Graph, main: Any, cells: list[Cell]) -> list[Cell]:
    """Leave out cells whose state is another one at the next step than what they give."""
    roots = graph.roots

    def of(name: str) -> set[str]:
        return roots.get(name, {name})

    inputs = {item.name for item in main.input}
    kept = []
    for cell in cells:
        states = [of(name) & inputs for name in cell.state]
        paired = [graph.pairs[name] for each in states for name in each if name in graph.pairs]
        returned = all(of(output) & set(cell.outputs) for output in paired)
        if all(states) and (returned or not paired):
            kept.append(cell)
    return kept


def given(item: Any, shape: tuple[int, ...], value: float) -> NDArray[Any]:
    """Return an input that is the same at every step."""
    is_whole = item.type.tensor_type.elem_type in (6, 7)
    return np.full(shape, value, np.int64 if is_whole else np.float64)


def input_shape(
    graph: Graph, item: Any, sizes: dict[str, int], fixed: Mapping[str, float], is_state: bool
) -> tuple[int, ...]:
    """Return the shape of an input; axes whose size is open get one that is like no other.

    Where such axes have no names, that of a state is taken to be the batch, as an input's first.
    """
    file = graph.file
    if not item.type.HasField("tensor_type") or not item.type.tensor_type.HasField("shape"):
        raise ModelFileError(f"{file.path}: input {item.name!r} has no shape")
    shape = []
    for k, axis in enumerate(item.type.tensor_type.shape.dim):
        if axis.HasField("dim_value") and axis.dim_value > 0:
            shape.append(int(axis.dim_value))
            continue
        name = axis.dim_param or f"{item.name}.{k}"
        if name in fixed and fixed[name] == int(fixed[name]) > 0:
            graph.fixed.add(name)
            shape.append(int(fixed[name]))
            continue
        graph.open_axes.add(f"{item.name}.{k}")
        is_batch = not axis.dim_param and (is_state or k == 0)
        key = "(batch)" if is_batch else name
        shape.append(sizes.setdefault(key, OPEN_SIZES[len(sizes) % len(OPEN_SIZES)]))
    if len(shape) > 8 or any(size > 1 << 24 for size in shape):
        raise ModelFileError(f"{file.path}: input {item.name!r} has the shape {shape}")
    return tuple(shape)


def state_names(main: Any, nodes: Sequence[Any], cells: Sequence[Cell]) -> set[str]:
    """Find the inputs that reach an initial state and are only moved on the way."""
    wanted = {name for cell in cells for name in cell.state}
    for node in reversed(list(_all_nodes(nodes, 0))):
        if node.op_type in RECURRENT:
            wanted |= {name for name in list(node.input)[5:7] if name}
        elif node.op_type == "If":
            for branch in branches(node):
                outputs = zip(node.output, branch.output, strict=False)
                wanted |= {inner.name for outer, inner in outputs if outer in wanted}
        elif node.op_type in MOVES and wanted & set(node.output):
            inputs = list(node.input) if node.op_type == "Concat" else list(node.input)[:1]
            wanted |= set(inputs)
    return wanted & {item.name for item in main.input}


def branches(node: Any) -> list[Any]:
    """Return the graphs of an If."""
    return [item.g for item in node.attribute if item.name in ("then_branch", "else_branch")]


def _all_nodes(nodes: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield nodes, those of an If's branches before it."""
    for node in nodes:
        inner = branches(node) if node.op_type == "If" and depth < MAX_DEPTH else []
        for branch in inner:
            yield from _all_nodes(branch.node, depth + 1)
        yield node
