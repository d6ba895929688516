"""What makes features of raw inputs, and the user's units of outputs, as lines of a step."""

from __future__ import annotations

from typing import Any

from streamrnn.exporters.torch.layers import function_text
from streamrnn.exporters.torch.module import Module
from streamrnn.exporters.walk import LAST_INPUTS
from streamrnn.model.spec import InputSpec

__all__ = ["add_features", "add_head"]


def add_features(module: Module) -> dict[str, str]:
    """Add what makes features of the raw inputs ``x`` [B, I], or tokens [B].

    Returns the level of every input that has a memory, [B], by its name.
    """
    spec = module.spec
    length, channels = spec.input_shape
    if spec.mask_value is not None:
        equal = f"x == {spec.mask_value!r}"
        module.add("masked", equal if spec.is_token else f"({equal}).all(dim=1)")
    if spec.is_token:
        module.add("x", f"{_embedding(module, 0, spec.inputs[0])}(x)")
        return {}
    if all(item.kind == "numeric" and item.missing == "error" for item in spec.inputs) and not any(
        item.difference for item in spec.inputs
    ):
        elements = spec.input_elements
        centers, scales = [item.center for item in elements], [item.scale for item in elements]
        if any(centers) or any(scale != 1 for scale in scales):
            module.add("x", _scaled(module, "x", "x", centers, scales))
        if length > 1:
            module.add("x", f"x.reshape(-1, {length}, {channels}).transpose(1, 2)")
        return {}
    remembered = [item.name for item in spec.inputs if item.has_memory]
    parts: list[str] = []
    levels: dict[str, str] = {}
    kept: list[str] = []
    at = 0
    for i, item in enumerate(spec.inputs):
        column = f"x[:, {at}]" if item.size == 1 else f"x[:, {at}:{at + item.size}]"
        at += item.size
        if item.kind == "numeric":
            last = ""
            if item.has_memory:
                last = f"{module.take(LAST_INPUTS)}[:, {remembered.index(item.name)}]"
            parts += _numeric(module, i, item, column, last)
            if item.has_memory:
                levels[item.name] = level = f"x{i}"
                if item.starts_known:  # nothing is, as long as nothing was
                    level = f"torch.where(torch.isnan({column}), {last}, {level})"
                kept.append(level)
        elif item.embedding_size:
            parts.append(f"{_embedding(module, i, item)}({column}.long())")
        else:
            parts.append(f"F.one_hot({column}.long(), {item.num_categories}).to(x.dtype)")
    if levels:
        module.give(LAST_INPUTS, f"torch.stack([{', '.join(kept)}], dim=1)")
    module.lines += ["features = [", *(f"    {part}," for part in parts), "]"]
    module.add("x", "torch.cat(features, dim=1)")
    return levels


def _embedding(module: Module, i: int, item: InputSpec) -> str:
    weight = module.parameter(f"embedding.{item.name}.weight")
    text = f"Embedding({weight.shape[0]}, {weight.shape[1]})"
    return module.module(f"embedding{i}", text, weight=weight)


def _scaled(module: Module, name: str, value: str, center: Any, scale: Any) -> str:
    """Write ``(value - center) / scale``."""
    ends = (
        module.buffer(f"{name}_{what}", end) for what, end in (("center", center), ("scale", scale))
    )
    return f"({value} - {next(ends)}) / {next(ends)}"


def _numeric(module: Module, i: int, item: InputSpec, column: str, last: str) -> list[str]:
    """Add the level ``x{i}`` [B] of one input; return its features, each [B, n]."""
    name = f"x{i}"
    level = column
    if item.missing != "error":
        known = f"torch.nan_to_num({last}, nan={item.fill!r})" if last else repr(item.fill)
        level = f"torch.where(torch.isnan({column}), {known}, {column})"
    if item.shape:
        return [_scaled(module, name, level, item.center, item.scale)]
    module.add(name, level)
    value = name
    if item.difference:
        value = f"torch.nan_to_num({name} - {last}, nan=0.0)"
    if (item.center, item.scale) != (0.0, 1.0):
        value = f"({_scaled(module, name, value, item.center, item.scale)})"
    features = [f"{value}[:, None]"]
    if item.missing == "mask":
        features.append(f"torch.isnan({column})[:, None].to(x.dtype)")
    return features


def add_head(module: Module, value: str, levels: dict[str, str]) -> tuple[str, str]:
    """Add the head, and what makes the user's units of its outputs; return both."""
    spec = module.spec
    length, channels = spec.graph.shapes[-1]
    flat = module.vector(value, (length, channels))
    if spec.head is None:
        return flat, value
    weights = {name: module.parameter(f"head.{name}") for name in ("weight", "bias")}
    linear = module.module("head", f"Linear({length * channels}, {spec.output_size})", **weights)
    head = module.add("head", function_text(module, spec.head.activation, f"{linear}({flat})"))
    y = head
    scales, centers = [o.scale for o in spec.outputs], [o.center for o in spec.outputs]
    if any(centers) or any(scale != 1 for scale in scales):
        ends = module.buffer("y_scale", scales), module.buffer("y_center", centers)
        y = module.add("y", f"{head} * {ends[0]} + {ends[1]}")
    added = [levels.get(o.difference_of or "", "") for o in spec.outputs]
    if any(added):
        columns = [
            f"y[:, {k}] + {level}" if level else f"y[:, {k}]" for k, level in enumerate(added)
        ]
        if y != "y":
            module.add("y", y)
        y = module.add("y", f"torch.stack([{', '.join(columns)}], dim=1)")
    return y, head
