"""What an importer has read: layers in the order of the data, whatever the source.

Every importer makes a `Network`; `streamrnn.importers.build` turns it into a model, or says all
that a model cannot hold. Arrays are views or copies of the file's, in the file's precision, and
rows of gates are in our order already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.layers.base import Layer as SpecLayer
from streamrnn.model.model import Model

__all__ = [
    "Activation",
    "Dense",
    "Embedding",
    "FrameLayer",
    "GraphOptions",
    "ImportedModel",
    "Layer",
    "Names",
    "Network",
    "Origins",
    "Recurrent",
    "Scale",
    "note_on_first_state",
    "zeros",
]

Array = NDArray[Any]
Origins = dict[str, str]  # a field's name to the tensors of the source that it was made of


@dataclass(frozen=True)
class Imported:
    """Base of all layers: what they read, by name; nothing for the layer before."""

    reads: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Embedding(Imported):
    """A token's row of a matrix; the first layer or none."""

    name: str
    weight: Array  # [num_categories, E]
    origins: Origins


@dataclass(frozen=True)
class Dense(Imported):
    """``activation(W x + b)``."""

    name: str
    weight: Array  # [O, I]
    bias: Array  # [O]
    origins: Origins
    activation: str = "identity"
    slope: float | None = None


@dataclass(frozen=True)
class Scale(Imported):
    """``gain * x + shift``, channel by channel."""

    name: str
    gain: Array  # [C], or [1] for all of them
    shift: Array  # the same


@dataclass(frozen=True)
class Activation(Imported):
    """A function of every element, or a softmax over all channels."""

    name: str
    kind: str
    slope: float | None = None


@dataclass(frozen=True)
class Recurrent(Imported):
    """One recurrent layer, in the words of `streamrnn.model.spec.LayerSpec`."""

    name: str
    cell: str
    weight_ih: Array  # [G*H, I]
    weight_hh: Array  # [G*H, H or R]
    bias_ih: Array  # [G*H]
    bias_hh: Array  # [G*H]
    origins: Origins
    weight_hr: Array | None = None  # [R, H]
    peepholes: tuple[Array, Array, Array] | None = None  # of i, f, o, each [H]
    reset_after: bool = True
    gate_activation: str = "sigmoid"
    cell_activation: str = "tanh"
    output_activation: str = "tanh"
    first: tuple[Array, ...] = ()  # a first state other than zeros: h, and c


@dataclass(frozen=True)
class FrameLayer(Imported):
    """A layer of any other kind, in the words of `streamrnn.model.layers`."""

    name: str
    spec: SpecLayer  # without a name, and what it reads
    arrays: dict[str, Array] = field(default_factory=dict)  # its parameters
    origins: Origins = field(default_factory=dict)
    along: str = ""  # which of the input's axes it runs along, where that may be time
    places: int = 0  # how many it takes along that axis, where a slice must know


Layer = Embedding | Dense | Scale | Activation | Recurrent | FrameLayer


@dataclass(frozen=True)
class Names:
    """Names that the caller chose; None numbers them."""

    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None


@dataclass(frozen=True)
class GraphOptions:
    """What a graph leaves open, in the caller's words.

    Attributes
    ----------
    fixed : mapping of str to float
        Values of graph inputs that are the same at every step, and sizes of open axes.
    context : int
        Samples of the frame before that stand in front of every frame.
    states : mapping of str to str
        Inputs that are states, each with the output that it is at the next step; all of them but
        those of recurrent operators. Empty: as names and shapes tell.
    """

    fixed: Mapping[str, float] = field(default_factory=dict)
    context: int = 0
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Network:
    """All that was read, and all that was not understood."""

    path: str
    source: str  # "PyTorch state dict", "ONNX", ...
    layers: list[Layer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what no model can hold, one each
    notes: list[str] = field(default_factory=list)
    holds_graph: bool = True  # whether the file says how its tensors are joined
    # Whether the source gave the last step alone; a model gives every step.
    gives_last_step: bool = False
    num_inputs: int = 0  # where the layers do not say
    input_shape: tuple[int, ...] = ()  # of a frame [L, C] that a step brings
    mask_value: float | None = None


@dataclass
class ImportedModel:
    """An imported model, and what its user must know about it."""

    model: Model  # ready to be saved
    # what was converted, assumed or left out, one sentence each
    notes: list[str] = field(default_factory=list)
    # our parameters and what each was made of, in the order of the model
    became: dict[str, str] = field(default_factory=dict)
    source: str = "PyTorch state dict"
    holds_graph: bool = False


def note_on_first_state(what: str) -> str:
    """Return the note on a first state that was left out."""
    return (
        f"left out the first state {what}: streams begin with zeros, and their first outputs "
        "differ from the original's"
    )


def zeros(num_rows: int) -> NDArray[np.float32]:
    """Stand for an absent bias: adding zero changes nothing."""
    return np.zeros(num_rows, np.float32)
