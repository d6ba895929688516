"""Layers in the order of the data, made of a state dict's tensors one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.network import (
    Activation,
    Dense,
    Embedding,
    FrameLayer,
    Layer,
    Origins,
    Recurrent,
    Scale,
    zeros,
)
from streamrnn.importers.torch.recurrent import RecurrentModule, layers_of
from streamrnn.model.layers.base import INPUT, LAYER_ACTIVATIONS
from streamrnn.model.layers.frame import ActivationSpec, MixSpec, NormSpec, SliceSpec
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.model.tensor_file import TensorFile

__all__ = ["Chain", "Item", "joined_name", "kind_of", "modules_of"]

_FLOATS = ("F32", "F16", "BF16", "F64")
_EPSILON = 1e-5  # PyTorch's default of every normalisation
_STATISTICS = {"running_mean", "running_var"}
_PARTS = {"weight", "bias"}

Shapes = dict[str, tuple[int, ...]]  # of one module, by the last part of the tensors' names


@dataclass(frozen=True)
class Item:
    """A module or an activation, in its place.

    Attributes
    ----------
    kind : str
        ``activation``, ``recurrent``, or what `kind_of` says.
    name : str
        Of the module or the activation.
    argument : str
        What stood after the colon: a slope, an epsilon, a dilation, the slopes' module.
    module : RecurrentModule or None
        Where it is one.
    """

    kind: str
    name: str
    argument: str = ""
    module: RecurrentModule | None = None


def joined_name(module: str, leaf: str) -> str:
    """Return the name of a module's tensor."""
    return f"{module}.{leaf}" if module else leaf


def modules_of(file: TensorFile) -> dict[str, Shapes]:
    """Group all tensors by the modules whose they are."""
    modules: dict[str, Shapes] = {}
    for name, stored in file.tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = stored.shape
    return modules


def kind_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say what a module without recurrence is by its tensors' shapes; nothing if it is unknown."""
    leaves = set(shapes)
    if leaves >= _STATISTICS and leaves <= _STATISTICS | _PARTS | {"num_batches_tracked"}:
        vectors = {shape for leaf, shape in shapes.items() if leaf != "num_batches_tracked"}
        size = shapes["running_mean"]
        one_size = len(vectors) == 1 and len(size) == 1 and 0 not in size
        return "batch norm" if one_size and len(leaves & _PARTS) != 1 else ""
    weight = shapes.get("weight", ())
    if (
        not leaves
        or not leaves <= _PARTS
        or 0 in weight
        or shapes.get("bias", weight[:1]) != (weight[:1])
    ):
        return ""
    if len(weight) == 1:
        return "norm" if "bias" in leaves else "slopes"
    return {2: "linear", 3: "convolution"}.get(len(weight), "")


@dataclass
class Chain:
    """Makes layers of items, and remembers what they took.

    Attributes
    ----------
    file : TensorFile
        The state dict.
    nonlinearity : str
        Of ``nn.RNN``.
    notes : list of str
        What the user must know.
    layers : list of Layer
        So far.
    size : int
        Of what the last layer gives; 0 before the first.
    num_inputs : int
        What the first layer takes; 0 for a token.
    used : set of str
        Names of the tensors that were taken.
    """

    file: TensorFile
    nonlinearity: str
    notes: list[str]
    layers: list[Layer] = field(default_factory=list)
    size: int = 0
    num_inputs: int = 0
    used: set[str] = field(default_factory=set)
    _converted: set[str] = field(default_factory=set)

    def extend(self, items: list[Item], first: Mapping[str, list[tuple[Any, ...]]]) -> None:
        """Append the layers of all items; ``first`` has the first states of recurrent modules."""
        for item in items:
            if item.kind == "recurrent":
                assert item.module is not None
                self._add_recurrent(item.module, first.get(item.module.prefix, []))
            else:
                add = getattr(self, f"_add_{item.kind.replace(' ', '_')}")
                add(item.name, item.argument)
        if self._converted:
            self.notes.append(
                f"converted from {' and '.join(sorted(self._converted))} to F32"
                + (", which rounds" if "F64" in self._converted else "")
            )

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor's numbers, and remember it."""
        dtype = self.file.tensors[name].dtype
        if dtype not in _FLOATS:
            raise ModelFileError(
                f"{self.file.path}: tensor {name!r} is {dtype}; expected one of "
                f"{', '.join(_FLOATS)} (quantised models cannot be imported)"
            )
        if dtype != "F32":
            self._converted.add(dtype)
        self.used.add(name)
        return self.file.tensors[name].array()

    def add_skip(self, gain: float) -> None:
        """Add the first inputs to the outputs."""
        if not self.num_inputs or self.size > self.num_inputs:
            what = "a token" if not self.num_inputs else f"{self.num_inputs} values"
            raise ModelFileError(
                f"{self.file.path}: the input is {what}, which cannot be added to {self.size} "
                "outputs; leave out --skip"
            )
        source = INPUT
        if self.size < self.num_inputs:
            source = "skipped input"
            spec = SliceSpec(channels=(0, self.size))
            last = self.layers[-1].name
            self.layers.append(FrameLayer(source, spec, reads=(INPUT,)))
            self.layers.append(self._mix(last, source, gain))
            return
        self.layers.append(self._mix(self.layers[-1].name, source, gain))

    def _mix(self, last: str, source: str, gain: float) -> FrameLayer:
        reads = (last, source)
        return FrameLayer("output", MixSpec(gains=(1.0, gain), reads=reads), reads=reads)

    # One for every kind of item.

    def _add_recurrent(self, module: RecurrentModule, first: list[tuple[Any, ...]]) -> None:
        self._takes(module.sizes[0], module.prefix.rstrip(".") or module.kind)
        layers = layers_of(module, self.file.tensors, self.nonlinearity, self.array)
        for k, layer in enumerate(layers):
            self._append(_with_first(layer, first[k]) if first else layer)
        self.size = module.sizes[-1]

    def _add_embedding(self, name: str, _: str) -> None:
        stored = joined_name(name, "weight")
        weight = self.array(stored)
        if self.layers:
            raise ModelFileError(f"{self.file.path}: the embedding {name!r} must come first")
        self._append(Embedding(name or "(no name)", weight, {"weight": stored}))
        self.size = weight.shape[1]

    def _add_linear(self, name: str, _: str) -> None:
        weight, bias, origins = self._weight_and_bias(name)
        self._takes(weight.shape[1], name)
        self._append(Dense(name or "(no name)", weight, bias, origins))
        self.size = weight.shape[0]

    def _add_norm(self, name: str, epsilon: str) -> None:
        weight, bias, origins = self._weight_and_bias(name)
        self._takes(weight.size, name)
        spec = NormSpec(self._number(epsilon, name) if epsilon else _EPSILON)
        self._append(FrameLayer(name, spec, {"weight": weight, "bias": bias}, origins))
        if not epsilon:
            self.notes.append(
                f"took {name} for an nn.LayerNorm with PyTorch's usual epsilon (--layers "
                f"...,{name}:EPSILON for another)"
            )

    def _add_batch_norm(self, name: str, epsilon: str) -> None:
        mean, variance = (
            self.array(joined_name(name, part)).astype(np.float64)
            for part in ("running_mean", "running_var")
        )
        self._takes(mean.size, name)
        gain = 1 / np.sqrt(variance + (self._number(epsilon, name) if epsilon else _EPSILON))
        shift: NDArray[Any] = np.zeros(mean.size)
        if joined_name(name, "weight") in self.file.tensors:
            gain = gain * self.array(joined_name(name, "weight"))
            shift = self.array(joined_name(name, "bias"))
        self._append(Scale(name, gain, shift - mean * gain))
        count = joined_name(name, "num_batches_tracked")
        self.used |= {count} & set(self.file.tensors)
        self.notes.append(f"{name} is a batch normalisation at rest: a gain and a shift")

    def _add_convolution(self, name: str, argument: str) -> None:
        """Append a convolution over steps; the argument is ``dilation`` or ``dilation:groups``."""
        weight, bias, origins = self._weight_and_bias(name)
        channels, columns, kernel = weight.shape
        dilation, _, groups = (argument or "1").partition(":")
        num_groups = self._whole(groups or "1", name)
        if not groups and self.size and self.size % columns == 0:
            num_groups = self.size // columns
        self._takes(columns * num_groups, name)
        spec = TimeConvSpec(channels, kernel, self._whole(dilation, name), num_groups)
        self._append(FrameLayer(name, spec, {"weight": weight, "bias": bias}, origins))
        self.size = channels
        self.notes.append(
            f"took {name} for a convolution over steps that sees the past alone: "
            f"{(kernel - 1) * spec.dilation} zeros before the first step, none after the last"
        )

    def _add_slopes(self, name: str, _: str) -> None:
        if self.file.tensors[joined_name(name, "weight")].shape != (1,):
            raise ModelFileError(
                f"{self.file.path}: {name!r} is a weight of one vector alone: say prelu:{name} if "
                "it is an nn.PReLU; no model has an RMSNorm"
            )
        self._add_activation("prelu", name)

    def _add_activation(self, kind: str, argument: str) -> None:
        if kind == "identity":
            return
        name = f"{kind} {len(self.layers)}"
        if kind == "prelu":
            stored = joined_name(argument, "weight")
            slopes = self.array(stored)
            if slopes.size == 1 and self.size:
                slopes = np.repeat(slopes.reshape(1), self.size)
            self._takes(slopes.size, argument)
            arrays = {"slope": slopes.reshape(-1)}
            self._append(FrameLayer(name, ActivationSpec(kind), arrays, {"slope": stored}))
            return
        slope = self._number(argument, kind) if argument else None
        if slope is not None and LAYER_ACTIVATIONS[kind] is None:
            raise ModelFileError(f"{self.file.path}: the activation {kind} takes no slope")
        self._append(Activation(name, kind, slope))

    def _append(self, layer: Layer) -> None:
        if any(each.name == layer.name for each in self.layers):  # weights that two layers share
            layer = replace(layer, name=f"{layer.name}, layer {len(self.layers)}")
        self.layers.append(layer)

    def _takes(self, size: int, name: str) -> None:
        """Check that a layer of this size fits, and set the inputs' number with the first one."""
        if self.size and self.size != size:
            raise ModelFileError(
                f"{self.file.path}: {name!r} takes {size} values, but what stands before it gives "
                f"{self.size}"
            )
        if not self.num_inputs and not self.size:
            self.num_inputs = size
        self.size = size

    def _weight_and_bias(self, name: str) -> tuple[NDArray[Any], NDArray[Any], Origins]:
        stored = joined_name(name, "weight")
        weight = self.array(stored)
        origins, bias = {"weight": stored}, zeros(weight.shape[0])
        if (other := joined_name(name, "bias")) in self.file.tensors:
            bias, origins["bias"] = self.array(other), other
        return weight, bias, origins

    def _number(self, text: str, name: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise ModelFileError(
                f"{self.file.path}: after {name}: stands {text[:40]!r}, which is no number"
            )
        return value

    def _whole(self, text: str, name: str) -> int:
        if not text.isdecimal() or not text.isascii() or len(text) > 6 or int(text) < 1:
            raise ModelFileError(
                f"{self.file.path}: after {name}: stands {text[:40]!r}, which is no whole number "
                "(a dilation, and after another colon the groups)"
            )
        return int(text)


def _with_first(layer: Recurrent, first: tuple[Any, ...]) -> Recurrent:
    states, names = first
    origins = layer.origins | dict(zip(("first_h", "first_c"), names, strict=False))
    return replace(layer, first=states, origins=origins)
