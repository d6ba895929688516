"""What a model's layers are made of on a GPU: products, each a launch that ends in a cell's part.

The host alone reads this: `streamrnn.kernels.cuda.plan` packs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from streamrnn.model.spec import CELLS, LayerSpec, ModelSpec

__all__ = ["BLEND", "FORM", "HEAD", "NORM", "PLAIN", "RESET"]
__all__ += ["READS_H", "READS_SCRATCH", "READS_X"]
__all__ += ["Cell", "Product", "check_for_gpu", "head_of", "products_of"]

# What becomes of a product's sums: PyTorch's cells, or an activation; a cell of another form; the
# two launches of a GRU that resets h before the product; y. `NORM` is no product: it normalises
# rows of sums, and goes on to the cell.
PLAIN, FORM, RESET, BLEND, HEAD, NORM = range(6)

# What a product reads: the layer's x, what the one before it has computed, or the layer's old h.
READS_X, READS_SCRATCH, READS_H = range(3)


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
        `PLAIN`, `FORM`, `RESET`, `BLEND`, `HEAD` or `NORM`.
    is_hard : bool
        Whether gates are hard sigmoids, unless it is plain.
    to_scratch : bool
        Whether what it computes is not the layer's h but something for its next product.
    is_scaled : bool
        Whether its weights are whole numbers (int8), and each sum is multiplied by a scale.
    """

    kind: int
    activation: int = IDENTITY
    end: int = PLAIN
    is_hard: bool = False
    to_scratch: bool = False
    is_scaled: bool = False

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
    reads: int = READS_X
    scratch_size: int = 0  # floats for what it computes, unless that is the layer's new h
    peepholes: NDArray[np.float64] | None = None  # [H, 4]
    norm: NDArray[np.float64] | None = None  # what `_norm_of` returns


def products_of(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> list[Product]:
    """Return what a layer is made of; raise a `DeviceError` for a form that a GPU does not have."""
    layer = spec.chain[index]
    if {layer.cell_activation, layer.output_activation} != {"tanh"}:
        raise DeviceError(
            f'layer {index} is {layer.describe()}; this form runs on the CPU only, use device="cpu"'
        )
    if layer.is_plain:
        kind, activation, biases, x_weights, h_weights = layer_matrices(spec, parameters, index)
        factors = SHAPES[kind].factors
        return [Product(Cell(kind, activation), biases, x_weights, h_weights, factors)]

    def own(name: str) -> NDArray[np.float64]:
        return parameters[f"{name}_l{index}"]

    size, is_hard = layer.hidden_size, layer.gate_activation != LayerSpec.gate_activation
    x_weights, h_weights = scaled_x_weights(spec, parameters, index), own("weight_hh")
    a, b = GATE_FORMS[layer.gate_activation]
    if layer.layer_norm:
        return [*_norm_products(layer, own, x_weights), *_projection(layer, own)]
    if layer.cell == "lstm":
        biases = gate_biases(LSTM, size, own("bias_ih"), own("bias_hh"))
        peepholes = np.zeros((size, 4))
        if layer.peepholes:
            peepholes[:, :3] = a * np.stack([own(f"weight_c{gate}") for gate in "ifo"], axis=1)
        form = Product(
            Cell(LSTM, end=FORM, is_hard=is_hard, to_scratch=bool(layer.projection_size)),
            *(biases, x_weights, h_weights, (a, a, 1.0, a), (b, b, 0.0, b)),
            scratch_size=padded(size) if layer.projection_size else 0,
            peepholes=peepholes,
        )
        return [form, *_projection(layer, own)]

    factors, addends = (a, a, 1.0, 1.0), (b, b, 0.0, 0.0)
    if layer.reset_after:
        biases = gate_biases(GRU, size, own("bias_ih"), own("bias_hh"))
        cell = Cell(GRU, end=FORM, is_hard=is_hard)
        return [Product(cell, biases, x_weights, h_weights, factors, addends)]
    biases = list((own("bias_ih") + own("bias_hh")).reshape(3, size))
    gates = slice(0, 2 * size)
    reset = Product(
        Cell(GRU, end=RESET, is_hard=is_hard, to_scratch=True),
        [*biases[:2], np.zeros(size), np.zeros(size)],
        *(x_weights[gates], h_weights[gates], factors, addends),
        scratch_size=2 * padded(size),
    )
    new = slice(2 * size, None)
    cell = Cell(DENSE, end=BLEND, is_hard=is_hard)
    return [reset, Product(cell, biases[2:], x_weights[new], h_weights[new])]


def _dense(cell: Cell, weights: NDArray[np.float64], reads: int, scratch_size: int = 0) -> Product:
    """Return a product of one matrix, without biases."""
    num_rows = len(weights)
    nothing = np.zeros((num_rows, 0))
    return Product(
        cell, [np.zeros(num_rows)], weights, nothing, reads=reads, scratch_size=scratch_size
    )


def _projection(layer: LayerSpec, own: Callable[[str], NDArray[np.float64]]) -> list[Product]:
    """Return the product that makes h of what an LSTM shows, if there is one."""
    if not layer.projection_size:
        return []
    return [_dense(Cell(DENSE), own("weight_hr"), READS_SCRATCH)]


def _norm_products(
    layer: LayerSpec, own: Callable[[str], NDArray[np.float64]], x_weights: NDArray[np.float64]
) -> list[Product]:
    """Return what a layer with layer normalisation is made of, but for its projection.

    The sums with x, those with h, each gate in a block of its own; then what makes the cell's.
    """
    kind = LSTM if layer.cell == "lstm" else GRU
    num_gates, sums = len(CELLS[layer.cell].gates), Cell(DENSE, to_scratch=True)
    size = num_gates * padded(layer.hidden_size)
    nothing = np.zeros((layer.hidden_size, 0))
    return [
        _dense(sums, _blocks(num_gates, x_weights), READS_X, size),
        _dense(sums, _blocks(num_gates, own("weight_hh")), READS_H, size),
        Product(
            Cell(
                kind,
                end=NORM,
                is_hard=layer.gate_activation != LayerSpec.gate_activation,
                to_scratch=bool(layer.projection_size),
            ),
            [np.zeros(layer.hidden_size)],
            *(nothing, nothing),
            scratch_size=padded(layer.hidden_size) if layer.projection_size else 0,
            norm=_norm_of(layer, own),
        ),
    ]


def _norm_of(layer: LayerSpec, own: Callable[[str], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return what normalised sums are multiplied by and what is added, in blocks.

    Gains of the sums with x, and of those with h; what is added to both together; what is added to
    the half of a GRU's n that r scales; gain and shift of an LSTM's c; then epsilon.
    """
    size, (a, b) = layer.hidden_size, GATE_FORMS[layer.gate_activation]
    gates = CELLS[layer.cell].gates
    factors = np.repeat([1.0 if gate in "gn" else a for gate in gates], size)
    x_bias, h_bias, of_n = own("bias_ih"), own("bias_hh"), np.zeros(size)
    both, c_gain, c_shift = x_bias + h_bias, np.zeros(size), np.zeros(size)
    if layer.cell == "lstm":
        c_gain, c_shift = own("norm_weight_c"), own("norm_bias_c")
    else:
        both[2 * size :], of_n = x_bias[2 * size :], h_bias[2 * size :]
    shift = both * factors + np.repeat([0.0 if gate in "gn" else b for gate in gates], size)
    by_gate = (own("norm_weight_ih") * factors, own("norm_weight_hh") * factors, shift)
    parts = [_blocks(len(gates), part) for part in by_gate]
    parts += [_blocks(1, part) for part in (of_n, c_gain, c_shift)]
    return np.concatenate([*parts, [layer.norm_epsilon]])


def _blocks(num_gates: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pad each gate's rows with zeros: [G * H, ...] -> [G * block, ...]."""
    size = len(rows) // num_gates
    full = np.zeros((num_gates, padded(size), *rows.shape[1:]))
    full[:, :size] = rows.reshape(num_gates, size, *rows.shape[1:])
    return full.reshape(-1, *rows.shape[1:])


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
