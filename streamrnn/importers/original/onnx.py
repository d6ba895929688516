"""How an ONNX file is run: as a sequence, and step by step where its states come back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import GraphOptions, Network
from streamrnn.importers.onnx.file import read_onnx_file
from streamrnn.importers.onnx.graph import follow
from streamrnn.importers.onnx.network import Result, result_of
from streamrnn.importers.onnx.states import read_first_states
from streamrnn.importers.onnx.values import FEATURE, ONE_STEP
from streamrnn.importers.original.plan import NotRun, Plan, Trial, apart, on_and_on
from streamrnn.importers.original.trial import num_trial_steps
from streamrnn.model.model import Model

__all__ = ["plan_onnx"]

_KINDS = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
_SHORT_STEPS = 25  # of streams whose last step alone is answered
_MAX_STEPS = 10_000


def plan_onnx(path: str, model: Model, options: GraphOptions | None = None) -> Plan:
    """Plan the runs of a file that was imported.

    Raises `NotRun` if it cannot be told which axis of its input is what.
    """
    file = read_onnx_file(path)
    options = options or GraphOptions()
    graph = follow(file, options.fixed, options.states)
    main = file.model.graph
    first = read_first_states(file, lambda problem: None)  # refused at the import
    result = result_of(graph, Network(path, ""), set(first))
    signal, states = result.signal, result.states
    items = {item.name: item.type.tensor_type for item in main.input}
    constants = {tensor.name for tensor in main.initializer}

    def sizes_of(key: str) -> list[int]:
        return [
            axis.dim_value or int(options.fixed.get(axis.dim_param or f"{key}.{k}", 0))
            for k, axis in enumerate(items[key].shape.dim)
        ]

    others = {
        key: (
            [size or 1 for size in sizes_of(key)],
            _KINDS.get(item.elem_type, "float32"),
            first[key].tolist() if key in first else options.fixed.get(key, 0),
        )
        for key, item in items.items()
        if key != signal.source and key not in constants
    }
    item = items[signal.source]
    kind = _KINDS.get(item.elem_type, "float32")
    layout = _Layout(result, sizes_of(signal.source), kind, model, options.context)
    carries = (
        bool(states)
        and set(states) == set(graph.state_inputs)
        and all((use.first >= 0).all() for use in graph.uses)
    )
    facts = {
        "kind": "onnx",
        "path": path,
        "input": signal.source,
        "outputs": result.answers,
        "axis": layout.answer_axis,
        "others": others,
        "states": states,
        "carries": carries,
    }
    return Plan(facts, _trials(layout, model, carries))


class _Layout:
    """Which axis of the graph's input and output is what."""

    def __init__(
        self, result: Result, sizes: list[int], kind: str, model: Model, context: int
    ) -> None:
        signal = result.signal
        self.signal, self.is_token, self.kind = signal, model.spec.is_token, kind
        self.context = context
        self.label = result.time
        self.has_time = self.label not in ("", ONE_STEP)
        labels = [f"{signal.source}.{k}" for k in range(len(sizes))]
        if self.has_time and self.label not in labels:
            raise NotRun("it cannot be told which axis of its input is time")
        self.time = labels.index(self.label) if self.has_time else -1
        self.features = -1 if self.is_token else len(sizes) - 1
        if self.features == self.time and len(sizes) > 1:  # channels before the steps
            self.features = len(sizes) - 2 if len(sizes) > 2 else -1
        wanted = model.spec.num_inputs + context
        if self.features >= 0 and sizes[self.features] == 1 != wanted and wanted in sizes:
            self.features = sizes.index(wanted)
        places, channels = model.spec.input_shape
        # [B, C, L], where a step brings the places, each with its channels.
        self.frame = (places + context, channels) if places > 1 and channels > 1 else None
        if self.frame is not None:
            if self.has_time or sizes[1:] != [*self.frame[::-1]]:
                raise NotRun("its input is not [batch, channels, places]")
            sizes, self.features = [sizes[0], wanted + context * (channels - 1)], 1
        elif not self.is_token and (
            self.time == self.features
            or (self.features >= 0 and sizes[self.features] not in (0, wanted))
            or (self.features < 0 and wanted != 1)
        ):
            raise NotRun("its features do not lie along one axis of its input")
        found = signal.find(FEATURE)
        self.answer_axis = len(signal.axes) - 1 if found is None else found
        self.batch = [k for k in range(len(sizes)) if k not in (self.time, self.features)]
        self.batch_sizes = [sizes[k] or 1 for k in self.batch]
        self.num_streams = int(np.prod(self.batch_sizes, initial=1))
        # 0 for any number of steps.
        self.fixed_steps = sizes[self.time] if self.has_time else 1
        self.num_outputs = model.spec.output_size
        self.gives_frame = model.spec.head is None and model.spec.graph.shapes[-1][0] > 1
        if self.num_streams > 64 or self.fixed_steps > _MAX_STEPS:
            raise NotRun(f"it takes {self.num_streams} streams, {self.fixed_steps} steps at once")

    def widened(self, x: NDArray[Any]) -> NDArray[Any]:
        """Put the last samples of the step before in front of every step; zeros at first."""
        if not self.context:
            return x
        size = self.context * (self.frame[1] if self.frame is not None else 1)
        last = np.pad(x[:, :-1, -size:], ((0, 0), (1, 0), (0, 0)))
        return np.concatenate([last, x], axis=2)

    def given(self, x: NDArray[Any]) -> NDArray[Any]:
        """Lay [B, L, I] out as the graph takes it."""
        if self.frame is not None:
            return x.reshape(len(x), *self.frame).swapaxes(1, 2).astype(self.kind)
        shape = [*self.batch_sizes]
        order = [*self.batch]
        if self.has_time:
            shape.append(x.shape[1])
            order.append(self.time)
        if self.features >= 0:
            shape.append(x.shape[2])
            order.append(self.features)
        return x.reshape(shape).transpose(np.argsort(order)).astype(self.kind)

    def read(self, answer: NDArray[Any]) -> NDArray[Any]:
        """Bring an answer of the graph to [B, L, O], or [B, 1, O] of the last step alone."""
        if self.has_time and not self.signal.is_last_step and answer.ndim > 1:
            k = self.signal.find(self.label)
            wide = [] if k is None else [1 for _, size in self.signal.axes[k] if size != 1]
            if k is None or (len(wide) > 1 and self.num_streams > 1):
                raise NotRun("streams and steps lie along one axis of its output")
            if self.num_streams > 1 or k > self.answer_axis:
                answer = np.moveaxis(answer, [k, self.answer_axis], [-2, -1])
        if self.gives_frame and not self.has_time:
            answer = answer.reshape(self.num_streams, *answer.shape[-2:]).swapaxes(1, 2)
        return answer.reshape(self.num_streams, -1, self.num_outputs)


def _trials(layout: _Layout, model: Model, carries: bool) -> list[Trial]:
    most = num_trial_steps(model)
    fixed = layout.fixed_steps
    if not carries:
        length = fixed or (min(most, _SHORT_STEPS) if layout.signal.is_last_step else most)
        return [apart(layout, model, length, max(1, most // length))]
    lengths = [fixed] if fixed else [most, 1]
    return [on_and_on(layout, model, n, -(-most // n)) for n in lengths]
