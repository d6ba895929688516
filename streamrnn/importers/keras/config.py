"""The configuration of a network of Keras: its layers, and which of them reads which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from streamrnn.errors import ModelFileError

__all__ = ["MODELS", "Entry", "Graph", "Node", "leaves_of", "read_graph"]

MODELS = ("Functional", "Model", "Sequential")

_MAX_LAYERS = 1_000
_MAX_USES = 4_000  # of all layers
_MAX_DEPTH = 32  # of a reference within a configuration
Config = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """One use of a layer: the layer's name, and which of its uses."""

    name: str
    use: int = 0


@dataclass
class Use:
    """What one use of a layer is given."""

    given: list[Any] = field(default_factory=list)  # nodes, and what is none, in order
    others: dict[str, list[Node]] = field(default_factory=dict)  # nodes given by keyword

    @property
    def nodes(self) -> list[Node]:
        """All that is read in order."""
        return [item for item in self.given if isinstance(item, Node)]


@dataclass
class Entry:
    """A layer."""

    name: str
    kind: str  # its class; "ops.NAME" for an operation on values
    config: Config
    uses: list[Use] = field(default_factory=list)
    reason: str = ""  # why its class is not taken
    input_shape: list[Any] | None = None  # with the batch, where it is said
    model: Config | None = None  # that it is, or wraps


@dataclass
class Graph:
    """All layers in the file's order, and where the network begins and ends."""

    entries: dict[str, Entry]
    inputs: list[Node]
    outputs: list[Node]


def read_graph(config: Config) -> Graph:
    """Read a ``Sequential`` or ``Functional`` configuration.

    Raises `ModelFileError` if it is damaged, or of another class.
    """
    kind, inner = config.get("class_name"), config.get("config")
    # The configuration of a very old Sequential is the list itself.
    layers = inner if isinstance(inner, list) else None
    if isinstance(inner, dict):
        layers = inner.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
        raise ModelFileError(f"the configuration ({str(kind)[:60]}) has no list of layers")
    entries: dict[str, Entry] = {}
    for item in layers:
        entry = _entry(item, len(entries))
        if entry.name in entries:
            raise ModelFileError(f"two layers are named {entry.name[:60]!r}")
        entries[entry.name] = entry
    if kind == "Sequential":
        return _in_a_row(entries, inner)
    if kind not in MODELS or not isinstance(inner, dict):
        raise ModelFileError(
            f"the network is a {str(kind)[:60]!r}, a class of its own, whose graph the file does "
            "not hold; known are Sequential and Functional"
        )
    uses = 0
    for entry, item in zip(entries.values(), layers, strict=True):
        nodes = item.get("inbound_nodes") or []
        uses += len(nodes) if isinstance(nodes, list) else 0
        if not isinstance(nodes, list) or uses > _MAX_USES:
            raise ModelFileError(f"the uses of layer {entry.name[:60]!r} cannot be read")
        entry.uses = [_use(node, entry.name) for node in nodes]
    outputs = _nodes(inner.get("output_layers"))
    inputs = _nodes(inner.get("input_layers"))
    if not outputs:
        raise ModelFileError("the configuration names no output")
    return Graph(entries, inputs, outputs)


def _entry(item: Any, number: int) -> Entry:
    if not isinstance(item, dict) or not isinstance(item.get("config"), dict):
        raise ModelFileError("an entry of the configuration's layers is no layer")
    config: Config = item["config"]
    name = config.get("name", item.get("name"))
    name = name if isinstance(name, str) and name else f"layer {number}"
    kind, module = str(item.get("class_name"))[:60], item.get("module")
    reason = ""
    if ">" in str(item.get("registered_name")) or (
        isinstance(module, str) and not re.match(r"(tf_)?keras(\.|$)|tensorflow", module)
    ):
        reason = f"layer class {kind!r} is not one of Keras ({str(module)[:60]})"
    if isinstance(module, str) and re.match(r"keras(\.src)?\.ops", module):
        kind = f"ops.{kind}"
    build = item.get("build_config")
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    if shape is None and isinstance(build, dict):
        shape = build.get("input_shape")
    is_shape = isinstance(shape, list) and all(n is None or type(n) is int for n in shape)
    model = item if kind in MODELS else None
    wrapped = config.get("layer")
    if kind == "TimeDistributed" and isinstance(wrapped, dict):
        model = wrapped if wrapped.get("class_name") in MODELS else None
    return Entry(name, kind, config, [], reason, shape if is_shape else None, model)


def leaves_of(config: Config, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """Name the layers of a model that are no models."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    for item in layers if isinstance(layers, list) and depth else ():
        own = item.get("config") if isinstance(item, dict) else None
        if isinstance(own, dict) and item.get("class_name") in MODELS:
            yield from leaves_of(item, depth - 1)
        elif isinstance(own, dict):
            yield str(own.get("name"))


def _in_a_row(entries: dict[str, Entry], inner: Any) -> Graph:
    """Let every layer read the one before it, and the first one an input."""
    first = next(iter(entries.values()))
    if first.kind != "InputLayer":
        name = "input"
        while name in entries:
            name += "_"
        shape = first.input_shape
        if shape is None and isinstance(inner, dict):
            whole = inner.get("build_input_shape")
            shape = whole if isinstance(whole, list) else None
        entries = {name: Entry(name, "InputLayer", {}, [], "", shape)} | entries
    names = list(entries)
    for before, name in pairwise(names):
        entries[name].uses = [Use([Node(before)])]
    return Graph(entries, [Node(names[0])], [Node(names[-1])])


def _use(node: Any, name: str) -> Use:
    """Read one of the inbound nodes of a layer.

    Keras 3 writes ``{"args": [...], "kwargs": {...}}`` with ``{"keras_history": [layer, node,
    tensor]}`` within, Keras 2 a list of ``[layer, node, tensor, kwargs]``.
    """
    use = Use()
    keywords: list[tuple[str, Any]] = []
    if isinstance(node, dict):
        _collect(node.get("args"), use.given, name, _MAX_DEPTH)
        keywords = list(node["kwargs"].items()) if isinstance(node.get("kwargs"), dict) else []
    else:
        _collect(node, use.given, name, _MAX_DEPTH)
        items = node if isinstance(node, list) else []
        items = [node] if items and isinstance(items[0], str) else items
        for item in items:
            if isinstance(item, list) and len(item) > 3 and isinstance(item[3], dict):
                keywords += item[3].items()
    for key, value in keywords:
        if key == "inputs" and not use.given:
            _collect(value, use.given, name, _MAX_DEPTH)
        elif found := _nodes(value):
            use.others[str(key)[:60]] = found
    return use


def _collect(value: Any, given: list[Any], name: str, depth: int) -> None:
    """Append what a layer is given: nodes, and everything else as it is."""
    if depth == 0:
        raise ModelFileError("the configuration is nested too deep")
    tensor = value.get("config") if isinstance(value, dict) else None
    if isinstance(tensor, dict) and isinstance(tensor.get("keras_history"), list):
        value = tensor["keras_history"]
    if (reference := _reference(value)) is not None:
        if value[2] != 0:
            raise ModelFileError(
                f"layer {name[:60]!r} reads the state of {reference.name[:60]!r} (return_state), "
                "which no model gives"
            )
        given.append(reference)
    elif isinstance(value, list):
        for item in value:
            _collect(item, given, name, depth - 1)
    else:
        given.append(value)


def _reference(value: Any) -> Node | None:
    if (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and all(type(n) is int and n >= 0 for n in value[1:3])
    ):
        return Node(value[0], value[1])
    return None


def _nodes(value: Any, depth: int = _MAX_DEPTH) -> list[Node]:
    """Collect all nodes that a part of a configuration refers to."""
    if depth == 0:
        raise ModelFileError("the configuration is nested too deep")
    reference = _reference(value)
    if reference is not None:
        return [reference]
    items = value if isinstance(value, list) else ()
    if isinstance(value, dict):
        items = tuple(value.values())
    return [node for item in items for node in _nodes(item, depth - 1)]
