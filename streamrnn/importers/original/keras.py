"""How a file of Keras is run: as a sequence; step by step where its layers are stateful."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from numpy.typing import NDArray

from streamrnn.importers.keras.files import read_keras_file
from streamrnn.importers.keras.layers import RECURRENT
from streamrnn.importers.network import GraphOptions
from streamrnn.importers.original.plan import NotRun, Plan, apart, on_and_on
from streamrnn.importers.original.trial import num_trial_steps
from streamrnn.model.model import Model

__all__ = ["plan_keras"]

_MAX_DEPTH = 32
_MAX_STEPS = 10_000
_OVER_TIME = ("Conv1D", "DepthwiseConv1D", "SeparableConv1D")


def plan_keras(path: str, model: Model, options: GraphOptions | None = None) -> Plan:
    """Plan the run of a file that was imported.

    Raises `NotRun` if the file holds weights alone, or objects that are not Keras's own.
    """
    file = read_keras_file(path, weights=False)
    if file.config is None:
        raise NotRun("the file holds weights alone")
    installed = importlib.metadata.version("keras")
    if file.version.split(".")[0] != installed.split(".")[0]:
        # An activation of one name has changed between the two.
        raise NotRun(f"Keras {file.version or '(of no known version)'} made it, not {installed}")
    _check_modules(file.config, _MAX_DEPTH)
    layers = _layers(file.config)
    num_streams, length = _batch_shape(layers)
    most = num_trial_steps(model)
    if length is not None and length > _MAX_STEPS:
        raise NotRun(f"it takes {length} steps at once")
    # A convolution over time begins with zeros each time.
    if all(layer.get("stateful") for kind, layer in layers if kind in (*RECURRENT, *_OVER_TIME)):
        trials = [
            on_and_on(_Layout(model, num_streams or 1), model, n, -(-most // n))
            for n in ([most, 1] if length is None else [length])
        ]
    else:
        n = length or most
        trials = [apart(_Layout(model, num_streams or 2), model, n, max(1, most // n))]
    return Plan({"kind": "keras", "path": path}, trials)


class _Layout:
    """Batch, steps, features."""

    def __init__(self, model: Model, num_streams: int) -> None:
        self.is_token, self.num_streams = model.spec.is_token, num_streams
        self.num_outputs = model.spec.output_size
        self.shape = model.spec.inputs[0].shape

    def widened(self, x: NDArray[Any]) -> NDArray[Any]:
        return x

    def given(self, x: NDArray[Any]) -> NDArray[Any]:
        if self.shape:
            return x.reshape(*x.shape[:2], *self.shape)
        return x[..., 0] if self.is_token else x

    def read(self, answer: NDArray[Any]) -> NDArray[Any]:
        return answer.reshape(self.num_streams, -1, self.num_outputs)


def _check_modules(value: Any, depth: int) -> None:
    """Let Keras make no object of a class that is not its own."""
    if depth == 0:
        raise NotRun("its configuration is nested too deep")
    if isinstance(value, list):
        for item in value:
            _check_modules(item, depth - 1)
    if not isinstance(value, dict):
        return
    module = value.get("module")
    if module is not None and str(module).split(".")[0] != "keras":
        raise NotRun(f"its configuration names the module {str(module)[:60]!r}")
    if value.get("class_name") in ("Lambda", "function", "__lambda__"):
        raise NotRun("its configuration holds functions")
    for item in value.values():
        _check_modules(item, depth - 1)


def _layers(config: Any) -> list[tuple[Any, Any]]:
    """List the layers with those of models within, as far as they were imported."""
    inner = config.get("config")
    found: list[tuple[Any, Any]] = []
    for item in inner if isinstance(inner, list) else inner.get("layers", []):
        own = item.get("config", {})
        has_layers = isinstance(own, list) or "layers" in own
        found += _layers(item) if has_layers else [(item.get("class_name"), own)]
    return found


def _batch_shape(layers: list[tuple[Any, Any]]) -> tuple[int | None, int | None]:
    """Find the batch and the number of steps that the first input is fixed to."""
    for _, own in layers:
        shape = own.get("batch_shape") or own.get("batch_input_shape")
        if isinstance(shape, list) and len(shape) in (2, 3, 4):
            batch, steps = (n if type(n) is int and n > 0 else None for n in shape[:2])
            return batch, steps
    return None, None
