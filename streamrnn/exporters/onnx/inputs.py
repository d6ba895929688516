"""What makes features of raw inputs, and the user's units of outputs, as nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.exporters.onnx.graph import Graph
from streamrnn.exporters.onnx.layers import add_function
from streamrnn.exporters.walk import LAST_INPUTS
from streamrnn.model.spec import InputSpec

__all__ = ["add_features", "add_head", "is_plain"]


def is_plain(item: InputSpec) -> bool:
    """Whether an input becomes a feature by its centre and scale alone."""
    return item.kind == "numeric" and item.missing == "error" and not item.difference


def add_features(graph: Graph) -> tuple[str, dict[str, str]]:
    """Add what makes features of the raw inputs ``x``.

    Returns them, and the level of every input that has a memory, [streams, 1], by its name.
    """
    from onnx import TensorProto

    items = graph.spec.inputs
    lead: list[int | str] = ["steps", "streams"] if graph.is_sequence else ["streams"]
    length, channels = graph.spec.input_shape
    if graph.spec.is_token:
        graph.inputs.append(("x", TensorProto.INT64, lead))
        _add_mask(graph, [])
        name = f"embedding.{items[0].name}.weight"
        weight = graph.constant("embedding.weight", graph.parameter(name))
        return graph.add("Gather", [weight, "x"], "features", axis=0), {}
    sizes = [channels, length] if length > 1 else [graph.spec.num_inputs]
    graph.inputs.append(("x", TensorProto.FLOAT, [*lead, *sizes]))
    _add_mask(graph, list(range(1, 1 + len(sizes))))
    if length > 1:
        return _scaled(graph, "x", "x", items[0].center, items[0].scale), {}
    if all(map(is_plain, items)):
        elements = graph.spec.input_elements
        centers, scales = [item.center for item in elements], [item.scale for item in elements]
        return _scaled(graph, "x", "x", centers, scales), {}
    columns = ["x"]
    if len(items) > 1:
        columns = [f"x{i}" for i in range(len(items))]
        widths = graph.numbers(*(item.size for item in items))
        graph.add_many("Split", ["x", widths], columns, axis=-1)
    remembered = _memories(graph)
    parts: list[str] = []
    levels: dict[str, str] = {}
    kept: list[str] = []
    for i, (item, column) in enumerate(zip(items, columns, strict=True)):
        if item.kind == "numeric":
            last = remembered.get(item.name)
            made, level = _numeric(graph, i, item, column, last)
            parts += made
            if last is not None:
                levels[item.name] = level
                if item.starts_known:  # nothing is remembered, as long as nothing was
                    level = graph.add("Where", [f"x{i}_missing", last, level], f"x{i}_kept")
                kept.append(level)
        else:
            parts.append(_category(graph, i, item, column))
    if levels:
        graph.give(LAST_INPUTS, graph.add("Concat", kept, "levels", axis=-1))
    return graph.add("Concat", parts, "features", axis=-1), levels


def _add_mask(graph: Graph, axes: list[int]) -> None:
    """Add whether all inputs of a stream equal the value that leaves a step out."""
    from onnx import TensorProto

    value = graph.spec.mask_value
    if value is None:
        return
    dtype = np.int64 if graph.spec.is_token else np.float32
    equal = graph.add("Equal", ["x", graph.constant("mask_value", value, dtype)], "x_equal")
    if not axes:
        graph.masked = graph.add("Unsqueeze", [equal, graph.numbers(1)], "masked")
        return
    number = graph.add("Cast", [equal], "x_equal_number", to=TensorProto.FLOAT)
    least = graph.add("ReduceMin", [number], "x_equal_least", axes=axes, keepdims=0)
    flat = graph.add("Unsqueeze", [least, graph.numbers(1)], "x_equal_all")
    graph.masked = graph.add("Cast", [flat], "masked", to=TensorProto.BOOL)


def _scaled(graph: Graph, what: str, value: str, center: Any, scale: Any) -> str:
    """Add ``(value - center) / scale``, as far as it does something."""
    if np.any(np.asarray(center) != 0):
        shift = graph.constant(f"{what}.center", center)
        value = graph.add("Sub", [value, shift], f"{what}_centered")
    if np.any(np.asarray(scale) != 1):
        divisor = graph.constant(f"{what}.scale", scale)
        value = graph.add("Div", [value, divisor], f"{what}_scaled")
    return value


def _memories(graph: Graph) -> dict[str, str]:
    """Part the last inputs, NaN where nothing was seen yet."""
    names = [item.name for item in graph.spec.inputs if item.has_memory]
    if not names:
        return {}
    last = graph.take(LAST_INPUTS)
    columns = [f"{LAST_INPUTS}_{k}" for k in range(len(names))]
    if len(names) == 1:
        return {names[0]: last}
    graph.add_many("Split", [last, graph.numbers(*[1] * len(names))], columns, axis=-1)
    return dict(zip(names, columns, strict=True))


def _numeric(
    graph: Graph, i: int, item: InputSpec, column: str, last: str | None
) -> tuple[list[str], str]:
    """Add the features of one number, each [..., 1]; return its level too."""
    from onnx import TensorProto

    name, value, mask = f"x{i}", column, []
    unseen = graph.add("IsNaN", [last], f"{name}_unseen") if last is not None else ""
    if item.missing != "error":
        missing = graph.add("IsNaN", [column], f"{name}_missing")
        known = graph.constant(f"{name}.fill", item.fill)
        if last is not None:
            known = graph.add("Where", [unseen, known, last], f"{name}_known")
        value = graph.add("Where", [missing, known, column], f"{name}_filled")
        if item.missing == "mask":
            mask = [graph.add("Cast", [missing], f"{name}_mask", to=TensorProto.FLOAT)]
    feature = value
    if item.difference and last is not None:
        change = graph.add("Sub", [value, last], f"{name}_change")
        zero = graph.constant("zero", 0)
        feature = graph.add("Where", [unseen, zero, change], f"{name}_difference")
    return [_scaled(graph, name, feature, [item.center], [item.scale]), *mask], value


def _category(graph: Graph, i: int, item: InputSpec, column: str) -> str:
    """Add the features of one category."""
    from onnx import TensorProto

    name = f"x{i}"
    whole = graph.add("Cast", [column], f"{name}_whole", to=TensorProto.INT64)
    index = graph.add("Squeeze", [whole, graph.numbers(-1)], f"{name}_index")
    if item.embedding_size:
        table = graph.constant(f"{name}.weight", graph.parameter(f"embedding.{item.name}.weight"))
        return graph.add("Gather", [table, index], f"{name}_embedded", axis=0)
    depth = graph.constant(f"{name}.depth", item.num_categories, np.int64)
    values = graph.constant("off_on", [0, 1])
    return graph.add("OneHot", [index, depth, values], f"{name}_one_hot", axis=-1)


def add_head(graph: Graph, value: str, levels: dict[str, str]) -> tuple[str, str]:
    """Add the head, and what makes the user's units of its outputs; return both."""
    spec = graph.spec
    if spec.head is None:
        return value, value
    weight = graph.constant("head.weight", graph.parameter("head.weight").T)
    bias = graph.constant("head.bias", graph.parameter("head.bias"))
    flat = graph.vector(value, spec.graph.shapes[-1])
    sums = graph.add("Add", [graph.add("MatMul", [flat, weight], "head_products"), bias], "head")
    head = value = add_function(graph, spec.head.activation, sums, "head_activated")
    scales, centers = [o.scale for o in spec.outputs], [o.center for o in spec.outputs]
    if any(scale != 1 for scale in scales):
        value = graph.add("Mul", [value, graph.constant("y.scale", scales)], "y_scaled")
    if any(centers):
        value = graph.add("Add", [value, graph.constant("y.center", centers)], "y_centered")
    if any(item.difference_of for item in spec.outputs):
        zero = graph.constant("no_level", [[0.0]])
        zeros = graph.add("Mul", [next(iter(levels.values())), zero], "no_levels")
        added = [levels[o.difference_of] if o.difference_of else zeros for o in spec.outputs]
        value = graph.add(
            "Add", [value, graph.add("Concat", added, "y_levels", axis=-1)], "y_level"
        )
    return value, head
