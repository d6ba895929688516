"""What an importer has read: layers in the order of the data, whatever the source.

Every importer makes a `Network`; `streamrnn.importers.build` turns it into a model, or says all
that a model cannot hold. Arrays are views or copies of the file's, in the file's precision, and
rows of gates are in our order already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model

__all__ = [
    "Activation",
    "Dense",
    "Embedding",
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
class Embedding:
    """A token's row of a matrix; the first layer or none."""

    name: str
    weight: Array  # [num_categories, E]
    origins: Origins


@dataclass(frozen=True)
class Dense:
    """``activation(W x + b)``."""

    name: str
    weight: Array  # [O, I]
    bias: Array  # [O]
    origins: Origins
    activation: str = "identity"


@dataclass(frozen=True)
class Scale:
    """``gain * x + shift``, element by element."""

    name: str
    gain: Array  # [I]
    shift: Array  # [I]


@dataclass(frozen=True)
class Activation:
    """A function of every element, or a softmax over all of them."""

    name: str
    kind: str


@dataclass(frozen=True)
class Recurrent:
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
    first_state: str = ""  # what holds a first state other than zeros; a model has none


Layer = Embedding | Dense | Scale | Activation | Recurrent


@dataclass(frozen=True)
class Names:
    """Names that the caller chose; None numbers them."""

    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None


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
