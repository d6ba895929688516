"""Go through a network of Keras, from what its outputs need first to the outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from streamrnn.errors import ModelFileError
from streamrnn.importers.keras.config import Entry, Graph, Node, read_graph
from streamrnn.importers.keras.files import KerasFile
from streamrnn.importers.keras.layers import make_layer
from streamrnn.importers.keras.merges import joined
from streamrnn.importers.keras.values import Builder, Call, Value
from streamrnn.importers.keras.weights import Weights
from streamrnn.importers.network import FrameLayer, Network
from streamrnn.model.layers.base import INPUT
from streamrnn.model.layers.frame import SliceSpec

__all__ = ["walk_network"]

_MAX_MODELS = 8  # one within the other


def walk_network(network: Network, graph: Graph, file: KerasFile) -> None:
    """Append all layers to a network, and what no model can hold to its problems.

    Raises `ModelFileError` if the file is damaged.
    """
    weights = Weights(graph, file)
    _Walk(graph, Builder(network, file.version), weights).run()
    unused = weights.unused()
    if unused and not network.problems:
        network.problems.append(
            f"weights of layers that the configuration does not have: {unused[:20]}"
        )


class _Walk:
    """One graph: the network, or a model within it."""

    def __init__(self, graph: Graph, build: Builder, weights: Weights, depth: int = 0) -> None:
        if depth > _MAX_MODELS:
            raise ModelFileError(f"the configuration has models nested deeper than {_MAX_MODELS}")
        self.network, self.graph, self.build = build.network, graph, build
        self.weights, self.depth = weights, depth
        self.order = self._ordered()
        self.values: dict[Node, Value] = {}

    def run_within(self, values: list[Value]) -> Value:
        """Append the layers of a model within the model, given what it reads; return its output."""
        inputs = self.graph.inputs
        if len(inputs) != len(values) or len(self.graph.outputs) != 1:
            raise ModelFileError(
                f"a model within the model has {len(inputs)} inputs and "
                f"{len(self.graph.outputs)} outputs; it is given {len(values)}, and one is read"
            )
        self.values = dict(zip(inputs, values, strict=True))
        self._make_all()
        return self.values[self.graph.outputs[0]]

    def run(self) -> None:
        """Append all layers to the network, or what no model can hold to its problems."""
        self._add_inputs()
        self._make_all()
        outputs = [self.values[node] for node in self.graph.outputs]
        if not self.network.problems:
            self._finish(outputs)

    def _make_all(self) -> None:
        self._check_others()
        readers = Counter(
            node
            for each in self.order
            if self._entry(each).kind != "InputLayer"
            for node in set(self._use(each).nodes)
        )
        for node in self.order:
            if node not in self.values:
                self.values[node] = self._made(node, readers)

    def _ordered(self) -> list[Node]:
        """List all that the outputs need, what is read before what reads it."""
        ordered: dict[Node, None] = {}
        open_nodes: set[Node] = set()
        stack = [(node, False) for node in reversed(self.graph.outputs)]
        while stack:
            node, is_done = stack.pop()
            if is_done:
                ordered[node] = None
                open_nodes.discard(node)
                continue
            if node in ordered:
                continue
            if node in open_nodes or node.name not in self.graph.entries:
                raise ModelFileError(
                    f"the layers make no network: {node.name[:60]!r} is missing or in a ring"
                )
            open_nodes.add(node)
            stack.append((node, True))
            if self._entry(node).kind != "InputLayer":
                stack += [(before, False) for before in reversed(self._use(node).nodes)]
        return list(ordered)

    def _entry(self, node: Node) -> Entry:
        return self.graph.entries[node.name]

    def _use(self, node: Node) -> Any:
        uses = self._entry(node).uses
        if node.use >= len(uses) or not uses[node.use].nodes:
            raise ModelFileError(f"layer {node.name[:60]!r} reads nothing")
        return uses[node.use]

    def _check_others(self) -> None:
        """Every layer must belong to the network."""
        used = {node.name for node in self.order}
        others = [
            entry.name
            for entry in self.graph.entries.values()
            if entry.name not in used and entry.kind != "InputLayer"
        ]
        if others:
            self.network.problems.append(
                f"layers do not lie on the way to the output: {others[:20]}"
            )

    def _add_inputs(self) -> None:
        """Let one input be the model's; of several it has all numbers side by side."""
        is_input = {node: None for node in self.order if self._entry(node).kind == "InputLayer"}
        named = [node for node in self.graph.inputs if node in is_input]
        inputs = list(dict.fromkeys([*named, *is_input]))
        if unread := [node.name for node in self.graph.inputs if node not in is_input]:
            self.network.notes.append(f"left out inputs that nothing reads: {unread[:20]}")
        if len(inputs) == 1:
            entry = self._entry(inputs[0])
            value = _input_value(entry.input_shape)
            if not value.channels and value.has_time:
                value = replace(value, channels=self._first_columns())
            self.network.num_inputs = value.size
            if value.is_frame:
                self.network.input_shape = (value.length, value.channels)
            self.values[inputs[0]] = value
            return
        values = [_input_value(self._entry(node).input_shape) for node in inputs]
        if any(not v.has_time or v.is_frame or not v.channels for v in values):
            self.network.problems.append(
                "the inputs "
                + ", ".join(repr(node.name) for node in inputs[:20])
                + " cannot become one: all must be sequences of vectors [batch, steps, features]"
            )
            self.values |= dict.fromkeys(inputs, Value(is_sure=False))
            return
        first, parts = 0, []
        for node, value in zip(inputs, values, strict=True):
            last = first + value.channels
            layer = FrameLayer(node.name, SliceSpec(channels=(first, last)))
            whole = replace(value, reads=(INPUT,))
            self.values[node] = self.build.add(layer, whole, 1, value.channels)
            parts.append(f"{node.name} ({value.channels})")
            first = last
        self.network.num_inputs = first
        self.network.notes.append(f"the inputs are one, side by side: {', '.join(parts)}")

    def _first_columns(self) -> int:
        """Return how many numbers the first layer with arrays takes, in a network in a row."""
        for node in self.order:
            entry = self._entry(node)
            if entry.kind == "Embedding" or entry.model is not None:
                break
            arrays = self.weights.of(node.name)
            if arrays and arrays[0].ndim in (2, 3):
                return int(arrays[0].shape[-2])
        return 0

    def _made(self, node: Node, readers: Counter[Node]) -> Value:
        """Append one layer; what is wrong with it goes to the problems."""
        entry, use = self._entry(node), self._use(node)
        values = [self.values[before] for before in use.nodes]
        call = Call(
            entry.kind,
            entry.name[:100],
            entry.config,
            self.weights.of(entry.name) if entry.model is None else [],
            values,
            self.build,
            [None if isinstance(item, Node) else item for item in use.given],
            readers[use.nodes[0]] == 1 and not self.depth,
        )
        try:
            if entry.reason:
                raise ModelFileError(entry.reason)
            if use.others:
                raise call.refuse(
                    f"({entry.kind}) takes {', '.join(use.others)} from another layer, which no "
                    "model does"
                )
            return make_layer(call) if entry.model is None else self._made_within(call, entry)
        except ModelFileError as error:
            self.network.problems.append(str(error))
            return replace(values[0], channels=0, is_sure=False)

    def _made_within(self, call: Call, entry: Entry) -> Value:
        """Append the layers of a model; each step's alone where it is `TimeDistributed`."""
        assert entry.model is not None
        weights = self.weights.within(entry.name)
        values, is_wrapped = call.values, entry.kind == "TimeDistributed"
        if is_wrapped:
            values = [replace(value, has_time=False, is_masked=False) for value in values]
        walk = _Walk(read_graph(entry.model), self.build, weights, self.depth + 1)
        made = walk.run_within(values)
        if not is_wrapped:
            return made
        before = call.value
        return replace(
            made, has_time=True, is_masked=before.is_masked, last_of="", num_steps=before.num_steps
        )

    def _finish(self, outputs: list[Value]) -> None:
        """Join the outputs, and check what holds for the network as a whole."""
        network, build = self.network, self.build
        if len({(value.has_time, value.is_frame) for value in outputs}) > 1 or any(
            value.is_frame and value.length != outputs[0].length for value in outputs
        ):
            network.problems.append("the outputs have different axes; a model has one output")
            return
        call = Call("output", "output", {}, [], outputs, build)
        output = outputs[0] if len(outputs) == 1 else joined(call, outputs)
        if output.margin:
            network.problems.append("the output is longer than the input (ZeroPadding1D)")
        last = network.layers[-1].name if network.layers else ""
        if network.layers and output.reads != (last,):
            output = build.single(output, "output")
        if len(outputs) > 1:
            parts = ", ".join(
                f"{node.name} ({value.size})"
                for node, value in zip(self.graph.outputs, outputs, strict=True)
            )
            network.notes.append(f"the outputs are one, side by side: {parts}")
        self._check_mask(output)
        if output.last_of:
            network.gives_last_step = True
            network.notes.append(
                f"the file gives the last step alone ({output.last_of!r} leaves out the others); "
                "the model gives every step, and the last one is the file's"
            )

    def _check_mask(self, output: Value) -> None:
        """Check that a masked step can leave every state and repeat the output."""
        build, problems = self.build, self.network.problems
        if not build.masked_by:
            return
        where = f"layer {build.masked_by!r} masks steps"
        if build.unmasked:
            problems.append(
                f"{where}, but the mask does not reach {', '.join(map(repr, build.unmasked[:20]))}"
            )
        if not output.from_state:
            problems.append(
                f"{where}, but the output does not follow from the states of recurrent layers "
                "alone: a model cannot repeat it at a masked step"
            )


def _input_value(shape: list[Any] | None) -> Value:
    """Describe an input of a shape that has the batch first."""
    if shape is None:
        return Value()
    sizes = [n if type(n) is int and 0 < n <= 1 << 20 else None for n in shape]
    if not 1 <= len(sizes) <= 4:
        raise ModelFileError(f"the input has the shape {str(shape)[:60]}; known are up to 4 axes")
    steps = sizes[1] if len(sizes) > 1 else None
    if len(sizes) < 3:  # a vector, or tokens
        return Value(channels=steps or 0, has_time=False)
    if len(sizes) == 3:
        return Value(channels=sizes[2] or 0, num_steps=steps)
    length, channels = sizes[2], sizes[3]
    if length is None or channels is None:
        raise ModelFileError(f"the input has the shape {str(shape)[:60]}; a step's must be fixed")
    return Value(length=length, channels=channels, num_steps=steps, is_frame=True)
