"""A ``.nam`` file's list of numbers, taken in its order; and its names of activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import array_of, whole
from streamrnn.importers.network import Activation, FrameLayer, Network
from streamrnn.model.layers.frame import ActivationSpec

__all__ = ["MAX_CHANNELS", "Weights", "activation_of", "plain_config", "refuse_keys", "wholes"]

Array = NDArray[Any]

MAX_CHANNELS = 8192
_MAX_LAYERS = 512
_ACTIVATIONS = {
    "Tanh": "tanh",
    "Hardtanh": "hard_tanh",
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Hardswish": "hard_swish",
    "Softsign": "softsign",
    "PReLU": "prelu",
}


class Weights:
    """Numbers that are taken one block after the other.

    Parameters
    ----------
    path : str
        For messages.
    value : list
        The file's ``weights``.
    """

    def __init__(self, path: str, value: Any) -> None:
        self._path = path
        self._values = array_of(value, f"{path}: weights")
        if self._values.ndim != 1:
            raise ModelFileError(f"{path}: its weights are no one list of numbers")
        self._at = 0

    def take(self, *shape: int) -> Array:
        """Return the next block; beyond the end it is a `ModelFileError`."""
        end = self._at + math.prod(shape)
        if end > self._values.size:
            raise ModelFileError(
                f"{self._path} has {self._values.size} weights; its config asks for more"
            )
        block = self._values[self._at : end].reshape(shape)
        self._at = end
        return block

    def finish(self) -> None:
        """Raise `ModelFileError` if numbers are left."""
        if self._at != self._values.size:
            raise ModelFileError(
                f"{self._path} has {self._values.size} weights; its config asks for {self._at}"
            )


def plain_config(value: Any, path: str) -> Any:
    """Make lists again of a configuration's long lists of numbers, which are arrays."""
    if isinstance(value, dict):
        return {key: plain_config(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_config(item, path) for item in value]
    if isinstance(value, np.ndarray):
        if value.size > MAX_CHANNELS:
            raise ModelFileError(f"{path}: its config has a list of {value.size} numbers")
        return [int(x) if x.is_integer() else x for x in value.tolist()]
    return value


def wholes(value: Any, what: str, most: int) -> list[int]:
    """Return a list of whole numbers from 1 to ``most``."""
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_LAYERS:
        raise ModelFileError(f"{what} is no list of 1 to {_MAX_LAYERS} whole numbers")
    return [whole(item, what, 1, most) for item in value]


def refuse_keys(network: Network, where: str, given: dict[str, Any], known: set[str]) -> None:
    """Note every key that is not known as a problem."""
    network.problems += [f"{where} has {str(key)[:60]!r}" for key in given if key not in known]


def activation_of(
    network: Network, value: Any, channels: int, name: str, where: str
) -> Activation | FrameLayer | None:
    """Return the layer of an activation; None where it is refused."""
    form = value if isinstance(value, dict) else {"type": value}
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in _ACTIVATIONS:
        network.problems.append(
            f"{where} has the activation {str(kind)[:60]!r}; known are {', '.join(_ACTIVATIONS)}"
        )
        return None
    known = {"LeakyReLU": {"negative_slope"}, "PReLU": {"negative_slope", "negative_slopes"}}
    refuse_keys(network, f"{where}: its activation", form, {"type"} | known.get(kind, set()))
    slope = form.get("negative_slope", 0.01)
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise ModelFileError(f"{network.path}: {where}: negative_slope is no number")
    if kind == "PReLU":
        slopes = array_of(form.get("negative_slopes", [slope]), f"{network.path}: {where}: slopes")
        if slopes.shape not in ((1,), (channels,)):
            raise ModelFileError(
                f"{network.path}: {where} has {slopes.size} slopes for {channels} channels"
            )
        arrays = {"slope": np.broadcast_to(slopes, (channels,))}
        origins = {"slope": f"config, activation of {where}"}
        return FrameLayer(name, ActivationSpec("prelu"), arrays, origins)
    is_leaky = kind == "LeakyReLU"
    return Activation(name, _ACTIVATIONS[kind], float(slope) if is_leaky else None)
