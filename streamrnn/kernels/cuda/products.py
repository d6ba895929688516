"""What a model's layers are made of on a GPU: products, each a launch that ends in a cell's part.

The host alone reads this: `streamrnn.kernels.cuda.plan` packs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DeviceError, SpecError
from streamrnn.kernels.activations import ACTIVATIONS, IDENTITY
from streamrnn.kernels.gates import (
    DENSE,
    GATE_FORMS,
    GRU,
    LSTM,
    SHAPES,
    gate_biases,
    head_matrices,
    layer_matrices,
    padded,
    scaled_x_weights,
)
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["BLEND", "FORM", "HEAD", "PLAIN", "PROJECTED", "RESET"]
__all__ += ["Cell", "Product", "check_for_gpu", "head_of", "products_of"]

# What becomes of a product's sums: PyTorch's cells, or an activation; a cell of another form, or
# one whose h is projected next; the two launches of a GRU that resets h before the product; y.
PLAIN, FORM, PROJECTED, RESET, BLEND, HEAD = range(6)


@dataclass(frozen=True)
class Cell:
    """What a kernel of one layer computes; each has a kernel of its own.

    Attributes
    ----------
    kind : int
        Of its columns: `DENSE` has one a unit, `GRU` and `LSTM` four.
    activation : int
        Of a dense one.
    end : int
        `PLAIN`, `FORM`, `PROJECTED`, `RESET`, `BLEND` or `HEAD`.
    is_hard : bool
        Whether gates are hard sigmoids, unless it is plain.
    """

    kind: int
    activation: int = IDENTITY
    end: int = PLAIN
    is_hard: bool = False

    @property
    def gates(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which of a unit's columns the matrices for x and for h have."""
        if self.end == RESET:
            return (0, 1), (0, 1)
        return SHAPES[self.kind].x_gates, SHAPES[self.kind].h_gates


@dataclass(frozen=True)
class Product:
    """One launch of a layer, before it is packed."""

    cell: Cell
    biases: Sequence[NDArray[np.float64]]  # one for each sum of a unit
    x_weights: NDArray[np.float64]  # [G * H, I]
    h_weights: NDArray[np.float64]
    factors: tuple[float, ...] = (1.0,)  # of each sum's weights and bias,
    addends: tuple[float, ...] | float = -0.0  # and of the bias then; -0 changes none, 0 a -0
    reads_x: bool = True
    scratch_size: int = 0  # floats for what it computes, unless that is the layer's new h
    peepholes: NDArray[np.float64] | None = None  # [H, 4]


def products_of(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> list[Product]:
    """Return what a layer is made of; raise a `DeviceError` for a form that a GPU does not have."""
    layer = spec.chain[index]
    if {layer.cell_activation, layer.output_activation} != {"tanh"}:
        raise DeviceError(
            f'layer {index} is {layer.describe()}; this form runs on the CPU only, use device="cpu"'
        )
    if layer.is_plain or layer.layer_norm:
        kind, activation, biases, x_weights, h_weights = layer_matrices(spec, parameters, index)
        factors = SHAPES[kind].factors
        return [Product(Cell(kind, activation), biases, x_weights, h_weights, factors)]

    def own(name: str) -> NDArray[np.float64]:
        return parameters[f"{name}_l{index}"]

    size, is_hard = layer.hidden_size, layer.gate_activation != LayerSpec.gate_activation
    x_weights, h_weights = scaled_x_weights(spec, parameters, index), own("weight_hh")
    a, b = GATE_FORMS[layer.gate_activation]
    if layer.cell == "lstm":
        biases = gate_biases(LSTM, size, own("bias_ih"), own("bias_hh"))
        peepholes = np.zeros((size, 4))
        if layer.peepholes:
            peepholes[:, :3] = a * np.stack([own(f"weight_c{gate}") for gate in "ifo"], axis=1)
        form = Product(
            Cell(LSTM, end=PROJECTED if layer.projection_size else FORM, is_hard=is_hard),
            *(biases, x_weights, h_weights, (a, a, 1.0, a), (b, b, 0.0, b)),
            scratch_size=padded(size) if layer.projection_size else 0,
            peepholes=peepholes,
        )
        if not layer.projection_size:
            return [form]
        no_biases, nothing = np.zeros(layer.projection_size), np.zeros((layer.projection_size, 0))
        return [
            form,
            Product(Cell(DENSE), [no_biases], own("weight_hr"), nothing, reads_x=False),
        ]

    factors, addends = (a, a, 1.0, 1.0), (b, b, 0.0, 0.0)
    if layer.reset_after:
        biases = gate_biases(GRU, size, own("bias_ih"), own("bias_hh"))
        cell = Cell(GRU, end=FORM, is_hard=is_hard)
        return [Product(cell, biases, x_weights, h_weights, factors, addends)]
    biases = list((own("bias_ih") + own("bias_hh")).reshape(3, size))
    gates = slice(0, 2 * size)
    reset = Product(
        Cell(GRU, end=RESET, is_hard=is_hard),
        [*biases[:2], np.zeros(size), np.zeros(size)],
        *(x_weights[gates], h_weights[gates], factors, addends),
        scratch_size=2 * padded(size),
    )
    new = slice(2 * size, None)
    cell = Cell(DENSE, end=BLEND, is_hard=is_hard)
    return [reset, Product(cell, biases[2:], x_weights[new], h_weights[new])]


def head_of(spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]]) -> Product:
    """Return the product of a model's head."""
    assert spec.head is not None
    cell = Cell(DENSE, ACTIVATIONS[spec.head.activation], HEAD)
    return Product(cell, *head_matrices(spec, parameters))


def check_for_gpu(spec: ModelSpec) -> None:
    """Raise `DeviceError` unless a model is a stack of recurrent layers, with a head or without."""
    try:
        _ = spec.chain
    except SpecError as error:
        raise DeviceError(f'{error}; such models run on the CPU only, use device="cpu"') from None
    if any(item.shape for item in spec.inputs):
        raise DeviceError('an input has a shape, which runs on the CPU only; use device="cpu"')
    if spec.mask_value is not None:
        raise DeviceError('the model masks steps, on the CPU only; use device="cpu"')
