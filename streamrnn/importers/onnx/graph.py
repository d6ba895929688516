"""Follow a graph node by node, from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError, listed
from streamrnn.importers.onnx.cell_layers import apply_cell
from streamrnn.importers.onnx.cells import Cell, find_cells
from streamrnn.importers.onnx.file import OnnxFile, check_texts
from streamrnn.importers.onnx.folded import FOLDED, filled, fold_constants, shape_of
from streamrnn.importers.onnx.frames.apply import FRAMES, apply_frame
from streamrnn.importers.onnx.frames.lengths import length_dependence
from streamrnn.importers.onnx.frames.memory import delayed, is_window, remember
from streamrnn.importers.onnx.frames.pairs import pair_states
from streamrnn.importers.onnx.inputs import (
    MAX_DEPTH,
    Graph,
    given,
    input_shape,
    state_names,
    streamed_cells,
)
from streamrnn.importers.onnx.layers import (
    ARITHMETIC,
    FUNCTIONS,
    apply_arithmetic,
    apply_function,
    apply_product,
    check_cast,
    look_up,
    normalise,
)
from streamrnn.importers.onnx.moves import MAX_ELEMENTS, MOVES, move
from streamrnn.importers.onnx.recurrent import RECURRENT, apply_recurrent
from streamrnn.importers.onnx.values import (
    FEATURE,
    ONE_STEP,
    OPEN_SIZES,
    NotFollowed,
    Signal,
    Symbols,
    Unknown,
    Value,
)

__all__ = ["as_signal", "follow"]

_MAX_NODES = 100_000


def follow(
    file: OnnxFile,
    fixed: Mapping[str, float] | None = None,
    states: Mapping[str, str] | None = None,
) -> Graph:
    """Follow the graph of a file.

    ``fixed`` are values of inputs, and sizes of axes that the file leaves open; ``states`` are
    inputs, each with the output that it is at the next step, where that was told. Raises
    `ModelFileError` if it is no graph that can be followed at all; what one node does that is not
    understood becomes `Unknown`, and so does an output that depends on the size of an open axis.
    """
    fixed = fixed or {}
    graph, sizes = _followed(file, fixed, states or {})
    if not sizes:
        return graph
    others = _followed(file, {**fixed, **sizes}, states or {})[0].values
    for item in file.model.graph.output:
        if what := length_dependence(graph.values, others, item.name, graph.open_axes):
            reason = (
                f"{what}: the network depends on sizes that the file leaves open "
                f"({listed(list(sizes))}): give them with --set AXIS=NUMBER"
            )
            graph.values[item.name] = Unknown((reason,))
    return graph


def _followed(
    file: OnnxFile, fixed: Mapping[str, float], states: Mapping[str, str]
) -> tuple[Graph, dict[str, int]]:
    """Follow a graph, and return other sizes for the axes that are open."""
    graph = Graph(file)
    main = file.model.graph
    if len(main.node) > _MAX_NODES:
        raise ModelFileError(f"{file.path}: {len(main.node)} nodes; at most {_MAX_NODES} are read")
    check_texts(file.path, main)
    _add_constants(graph, main)
    nodes = list(_inlined(graph, main.node, dict(graph.values) | _fixed_inputs(main, fixed), 0))
    pair_states(graph, nodes, fixed, states)
    cells = streamed_cells(graph, main, _find_cells(graph, main, nodes))
    begins = state_names(main, nodes, cells)
    known = begins | set(graph.pairs)
    sizes: dict[str, int] = {}
    others: dict[str, int] = {}
    for item in main.input:
        if item.name in graph.values:  # an initialiser that is an input too, as before IR 4
            continue
        shape = input_shape(graph, item, sizes, fixed, item.name in known)
        for k, axis in enumerate(item.type.tensor_type.shape.dim):
            if f"{item.name}.{k}" in graph.open_axes:
                place = OPEN_SIZES.index(shape[k]) + 1
                others[axis.dim_param or f"{item.name}.{k}"] = OPEN_SIZES[place % len(OPEN_SIZES)]
        if item.name in fixed:
            graph.fixed.add(item.name)
            graph.values[item.name] = given(item, shape, fixed[item.name])
            continue
        if item.name in known:
            try:
                ids = graph.new_symbols(shape)
            except NotFollowed as error:
                raise ModelFileError(f"{file.path}: input {item.name!r}: {error}") from error
            graph.state_inputs[item.name] = ids
            graph.values[item.name] = Symbols(ids)
        else:
            axes = tuple(((f"{item.name}.{k}", size),) for k, size in enumerate(shape))
            if file.is_one_step and len(shape) in (2, 3):
                axes = (axes[0], ((FEATURE, shape[1]),), *axes[2:])
            time = ONE_STEP if file.is_one_step else ""
            graph.values[item.name] = Signal(item.name, axes, time=time)
    if file.is_one_step:
        _read_states(graph, nodes, begins)
    _run(graph, nodes, 0, cells)
    names = {item.name for item in main.input}  # to fix a size of that name would fix the input
    return graph, {name: size for name, size in others.items() if name not in names}


def _read_states(graph: Graph, nodes: Sequence[Any], begins: set[str]) -> None:
    """Let states be what was made at the step before, but those that data is put behind."""
    windows = {
        name
        for node in nodes
        if node.op_type == "Concat" and is_window(graph, node.input)
        for name in list(node.input)[:-1]
    }
    source = next((v.source for v in graph.values.values() if isinstance(v, Signal)), "")
    for name in graph.pairs:
        value = graph.values[name]
        if name not in windows | begins and isinstance(value, Symbols):
            graph.values[name] = delayed(graph, value, source) or value


def _fixed_inputs(main: Any, fixed: Mapping[str, float]) -> dict[str, Value]:
    """Return the inputs of a graph that are numbers, the same at every step."""
    return {
        item.name: given(item, (), fixed[item.name])
        for item in main.input
        if item.name in fixed and not item.type.tensor_type.shape.dim
    }


def _inlined(
    graph: Graph, nodes: Iterable[Any], constants: dict[str, Value], depth: int
) -> Iterator[Any]:
    """Yield nodes, those of a branch in place of its If where constants alone choose it.

    Cells that an exporter wrote out may lie in such a branch.
    """
    import onnx

    for node in nodes:
        inputs = [constants.get(key) for key in node.input]
        if all(isinstance(value, np.ndarray) for value in inputs):
            branch = None
            with suppress(NotFollowed):  # refused where it is run
                if node.op_type == "If" and depth < MAX_DEPTH:
                    branch = _chosen(graph, node, inputs[0])
            if branch is not None:
                _add_constants(graph, branch)
                constants |= {item.name: graph.values[item.name] for item in branch.initializer}
                yield from _inlined(graph, branch.node, constants, depth + 1)
                for outer, inner in zip(node.output, branch.output, strict=True):
                    yield onnx.helper.make_node("Identity", [inner.name], [outer])
                continue
            if node.op_type in (*MOVES, *ARITHMETIC, *FOLDED, "Constant"):
                with suppress(NotFollowed, ValueError, TypeError, IndexError, OverflowError):
                    made = _apply(graph, node, node.name, inputs, depth)
                    constants |= dict(zip(node.output, made, strict=False))
        yield node


def _find_cells(graph: Graph, main: Any, nodes: Sequence[Any]) -> list[Cell]:
    """Find the cells that an exporter wrote out."""
    constants = dict(graph.values)
    for node in nodes:
        if node.op_type == "Constant" and len(node.output) == 1:
            try:
                constants[node.output[0]] = _constant(_attributes(graph.file, node))
            except (NotFollowed, TypeError, ValueError):
                continue  # refused where it is used
    return find_cells(nodes, constants, [item.name for item in main.output])


def _add_constants(graph: Graph, main: Any) -> None:
    for tensor in main.initializer:
        graph.values[tensor.name] = graph.file.array(tensor)
    for sparse in main.sparse_initializer:
        graph.values[sparse.values.name] = Unknown(
            (f"tensor {sparse.values.name!r} is sparse, which is not supported",)
        )


def _run(graph: Graph, nodes: Iterable[Any], depth: int, cells: Sequence[Cell] = ()) -> None:
    ends = {max(cell.nodes): cell for cell in cells}
    inside = {k for cell in cells for k in cell.nodes}
    for k, node in enumerate(nodes):
        if k in ends:
            _run_cell(graph, ends[k], node.name or ends[k].outputs[0])
        if k in inside:
            continue
        output = next((output for output in node.output if output), "(no name)")
        name = output if not node.name or node.name in graph.names else node.name
        graph.names.add(name)
        where = f"node {name!r} ({node.op_type})"
        inputs = [graph.values.get(key) if key else None for key in node.input]
        reasons = [
            f"{where} reads {key!r}, which nothing before it makes"
            for key in node.input
            if key and key not in graph.values
        ]
        reasons += [
            reason for value in inputs if isinstance(value, Unknown) for reason in value.reasons
        ]
        outputs: list[Value] = []
        try:
            if not reasons or node.op_type not in _KNOWN:
                outputs = _apply(graph, node, name, inputs, depth)
        except NotFollowed as error:
            reasons += [f"{where}: {text}" for text in error.args]
        except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
            reasons.append(f"{where} does not fit its inputs: {error}")
        if reasons:
            outputs = [Unknown(tuple(dict.fromkeys(reasons)))] * len(node.output)
        for key, value in zip(node.output, outputs, strict=False):
            if key:
                graph.values[key] = value


def _run_cell(graph: Graph, cell: Cell, name: str) -> None:
    """Let a cell that was found stand in place of its nodes."""
    outputs: list[Value] = []
    try:
        outputs, uses = apply_cell(cell, name, graph.values, graph.new_symbols)
        graph.uses += uses
    except NotFollowed as error:
        reasons = tuple(f"node {name!r} (a {cell.kind} cell): {text}" for text in error.args)
        outputs = [Unknown(reasons)] * len(cell.outputs)
    graph.values.update(zip(cell.outputs, outputs, strict=False))


def _apply(
    graph: Graph, node: Any, name: str, inputs: Sequence[Value | None], depth: int
) -> list[Value]:
    op = node.op_type
    if node.domain not in ("", "ai.onnx") or op not in _KNOWN:
        domain = f" of domain {node.domain!r}" if node.domain not in ("", "ai.onnx") else ""
        raise NotFollowed(f"the operator{domain} is not supported")
    attributes = _attributes(graph.file, node)
    names = list(node.input)
    if op in RECURRENT:
        outputs, uses = apply_recurrent(op, name, inputs, names, attributes, graph.new_symbols)
        graph.uses += uses
        return outputs
    if op == "Constant":
        return [_constant(attributes)]
    if op == "Shape":
        return [shape_of(inputs[0], attributes)]
    if op in FOLDED and all(isinstance(value, np.ndarray) for value in inputs):
        return [fold_constants(op, inputs, attributes)]
    inputs = [as_signal(graph, op, value) for value in inputs]
    if op == "Cast" and isinstance(inputs[0], Signal):
        check_cast(inputs[0], attributes, is_whole=graph.file.is_whole(inputs[0].source))
    if op in FRAMES:
        return [apply_frame(op, name, inputs, names, attributes)]
    if op == "ConstantOfShape":
        return [filled(inputs[0], attributes)]
    if op == "If":
        return _branch(graph, node, inputs[0], depth)
    if op in ARITHMETIC and len(inputs) == 2:
        return [apply_arithmetic(op, name, inputs, names)]
    if op in FUNCTIONS:
        return [apply_function(op, name, inputs[0], attributes, graph.file.opset)]
    if op in ("MatMul", "Gemm"):
        return [apply_product(op, name, inputs, names, attributes)]
    if op == "BatchNormalization" and isinstance(inputs[0], Signal):
        is_test = graph.file.opset >= 7 or attributes.get("is_test", 0)
        if attributes.get("training_mode", 0) or not is_test or any(node.output[1:]):
            raise NotFollowed(
                "it is in training mode, and normalises by its inputs: export with "
                "the network in evaluation mode"
            )
        epsilon = float(attributes.get("epsilon", 1e-5))
        return [normalise(inputs[0], inputs, name, epsilon)]
    if op == "Gather" and isinstance(inputs[0], np.ndarray) and isinstance(inputs[1], Signal):
        if attributes.get("axis", 0) != 0:
            raise NotFollowed("it looks up along another axis than the first")
        return [look_up(inputs[1], inputs[0], name, names[0])]
    if op == "Concat" and any(isinstance(value, Symbols) for value in inputs):
        is_new = graph.file.is_one_step
        data = [v for v in inputs if isinstance(v, Signal) and (v.ids is None or is_new)]
        if data and isinstance(inputs[0], Symbols) and is_window(graph, names):
            return [remember(graph, name, inputs, names, int(attributes.get("axis", 0)))]
        if data:
            inputs = [as_signal(graph, "", value) for value in inputs]
    outputs = move(op, inputs, attributes, len(node.output), name)
    for value in outputs:
        graph.num_made += value.size if isinstance(value, np.ndarray) else 0
    if graph.num_made > MAX_ELEMENTS:
        raise NotFollowed("the graph makes too many constants")
    return outputs


_KNOWN = {
    *MOVES,
    *ARITHMETIC,
    *FOLDED,
    *FRAMES,
    *FUNCTIONS,
    *RECURRENT,
    "BatchNormalization",
    "Constant",
    "ConstantOfShape",
    "Gemm",
    "If",
    "MatMul",
    "Shape",
}


def _attributes(file: OnnxFile, node: Any) -> dict[str, Any]:
    import onnx

    attributes: dict[str, Any] = {}
    for item in node.attribute:
        if item.type == onnx.AttributeProto.TENSOR:
            attributes[item.name] = file.array(item.t)
        elif item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            continue
        else:
            value = onnx.helper.get_attribute_value(item)
            if isinstance(value, bytes):
                value = value.decode(errors="replace")
            if isinstance(value, list | tuple):
                value = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
            attributes[item.name] = value
    return attributes


def _constant(attributes: dict[str, Any]) -> Value:
    for key in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if key in attributes:
            value = attributes[key]
            if isinstance(value, np.ndarray):
                return value
            return np.array(value, np.float32 if "float" in key else np.int64)
    raise NotFollowed("its value is no number")


def _chosen(graph: Graph, node: Any, condition: Value | None) -> Any:
    """Return the branch that a constant condition chooses."""
    if not isinstance(condition, np.ndarray) or condition.size != 1:
        raise NotFollowed("its condition is no constant")
    wanted = "then_branch" if condition.any() else "else_branch"
    branch = next((item.g for item in node.attribute if item.name == wanted), None)
    if branch is None or len(branch.output) != len(node.output):
        raise NotFollowed(f"it has no {wanted}")
    check_texts(graph.file.path, branch)
    return branch


def _branch(graph: Graph, node: Any, condition: Value | None, depth: int) -> list[Value]:
    """Follow the branch that a constant condition chooses."""
    if depth >= MAX_DEPTH:
        raise NotFollowed("it lies too deep")
    branch = _chosen(graph, node, condition)
    _add_constants(graph, branch)
    _run(graph, branch.node, depth + 1)
    missing = Unknown((f"node {node.name!r} (If): its branch makes no such output",))
    return [graph.values.get(item.name, missing) for item in branch.output]


def as_signal(graph: Graph, op: str, value: Value | None) -> Value | None:
    """Let the new h of a recurrent layer be its output, where an operator computes with it.

    In a graph of one step that is every step's output, else that of the last one. A state input is
    what was made at the step before.
    """
    if not isinstance(value, Symbols) or op in MOVES or op in RECURRENT:
        return value
    flat = value.ids.reshape(-1)
    for use in graph.uses:
        is_h = next(other for other in graph.uses if other.layer == use.layer) is use
        if not is_h or not np.array_equal(flat, use.last.reshape(-1)):
            continue
        signal = next(
            (v for v in graph.values.values() if isinstance(v, Signal) and v.head == use.layer),
            None,
        )
        if signal is None or signal.is_last_step:
            continue
        sizes = list(value.ids.shape)
        num_units = use.last.shape[-1]
        feature = len(sizes) - 1 - sizes[::-1].index(num_units)
        axes = tuple(
            ((FEATURE, size),) if k == feature else ((f"batch{k}", size),) if size != 1 else ()
            for k, size in enumerate(sizes)
        )
        one_step = signal.time == ONE_STEP
        return replace(signal, axes=axes, is_last_step=not one_step, ids=value.ids)
    source = next((v.source for v in graph.values.values() if isinstance(v, Signal)), "")
    return delayed(graph, value, source) or value
