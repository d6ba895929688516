"""What a staged layer computes with: its products in panels, its vectors in blocks, one table.

A *block* is one vector of H floats, padded with zeros to a multiple of 16. Where a fused tile keeps
the gates of the same units side by side, the staged path keeps each gate in a block of its own: its
stages are dense products, and passes over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu.activations import GATE_FACTOR
from streamrnn.kernels.cpu.pack import aligned_floats, pack, padded
from streamrnn.kernels.cpu.tiles import DENSE
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = ["Stager", "num_blocks"]

# Words of a staged layer's table.
(
    IS_LSTM,
    GATES_ARE_HARD,
    RESET_AFTER,
    HAS_NORM,
    OUTPUT_SIZE,  # elements of h
    H_BYTES,  # of h in a row, padded: c follows it there
    NUM_JOINT,  # gates, the first ones, whose products with x and with h have one sum
    NUM_APART,  # the other gates
    OF_H,  # which block the first sum of `H_ALONE` goes to
    PEEPHOLES,  # address of three blocks: i, f, o; zeros without peepholes
    X_GAIN,  # address of a block a gate
    X_SHIFT,  # address of a block a gate
    H_GAIN,  # address of a block a gate
    H_SHIFT,  # address of one block: of a GRU's n
    CELL_GAIN,  # address of one block
    CELL_SHIFT,  # address of one block
    MASK,  # address of a block a gate: 1 where there is a unit, 0 in the padding
    ZEROS,  # address of one block
    EPSILON,  # address of one float
    PRODUCTS,  # where the words of the four products begin
) = range(20)

# The products, and the words of each.
JOINT, X_ALONE, H_ALONE, PROJECTION, NUM_PRODUCTS = range(5)
WEIGHTS, PANEL_BYTES, FIRST_WEIGHT, FIRST_H_WEIGHT, NUM_PANELS, PRODUCT_WORDS = range(6)

STAGE_WORDS = PRODUCTS + NUM_PRODUCTS * PRODUCT_WORDS

# A gate's sum is brought to the form that its function takes: `emit_gate_parts` wants a power of
# two, a hard sigmoid is a clip of a x + b.
_GATE_FORMS = {
    "sigmoid": (GATE_FACTOR, 0.0),
    "hard_sigmoid_fifth": (1.0 / 5.0, 0.5),
    "hard_sigmoid_sixth": (1.0 / 6.0, 0.5),
}


def num_blocks(layer: LayerSpec) -> int:
    """Return how many blocks of scratch a row needs.

    Parameters
    ----------
    layer : LayerSpec
        Of the staged path.

    Returns
    -------
    int
        The sums with x of four gates, or of three and one more; with layer normalisation those
        with h apart.
    """
    return 8 if layer.layer_norm else 4


class Stager:
    """Packs one layer.

    Parameters
    ----------
    layer : LayerSpec
        Its form; a GRU or an LSTM.
    parameters : mapping of str to ndarray of float64
        The layer's, without the ``_l{k}``; the inputs' scales folded into ``weight_ih``.
    precision : int
        Of the weights of all products, see `pack`.
    own : callable
        Keeps an array alive and returns its address.
    """

    def __init__(
        self,
        layer: LayerSpec,
        parameters: Mapping[str, NDArray[np.float64]],
        precision: int,
        own: Callable[[NDArray[np.generic]], int],
    ) -> None:
        self._layer, self._parameters = layer, parameters
        self._precision, self._own = precision, own
        self._size, self._is_lstm = layer.hidden_size, layer.cell == "lstm"
        gates = CELLS[layer.cell].gates
        self._num_gates = len(gates)
        self._factor, offset = _GATE_FORMS[layer.gate_activation]
        is_gate = np.array([gate not in "gn" for gate in gates])
        self._factors = np.repeat(np.where(is_gate, self._factor, 1.0), self._size)
        self._offsets = np.repeat(np.where(is_gate, offset, 0.0), self._size)
        self._table = np.zeros(STAGE_WORDS, dtype=np.int64)

    def table(self) -> NDArray[np.int64]:
        """Return the layer's words.

        Returns
        -------
        ndarray of int64, shape (STAGE_WORDS,)
        """
        layer, table = self._layer, self._table
        table[IS_LSTM], table[RESET_AFTER] = self._is_lstm, layer.reset_after
        table[GATES_ARE_HARD] = layer.gate_activation != "sigmoid"
        table[HAS_NORM], table[OUTPUT_SIZE] = layer.layer_norm, layer.output_size
        table[H_BYTES] = 4 * padded(layer.output_size)
        table[ZEROS] = self._blocks(np.zeros(self._size))
        if layer.layer_norm:
            self._add_norm()
        else:
            self._add_sums()
        if layer.projection_size:
            weights = self._parameters["weight_hr"]
            self._add_product(PROJECTION, np.zeros(len(weights)), weights)
        peepholes = np.zeros(3 * self._size)
        if layer.peepholes:
            by_gate = [self._parameters[f"weight_c{gate}"] for gate in "ifo"]
            peepholes = self._factor * np.concatenate(by_gate)
        table[PEEPHOLES] = self._blocks(peepholes)
        return table

    def _biases(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what is added to the sums of all gates, and to a GRU's n before r scales it."""
        x_bias, h_bias = self._parameters["bias_ih"], self._parameters["bias_hh"]
        both, of_n = x_bias + h_bias, np.zeros(self._size)
        if not self._is_lstm and self._layer.reset_after:
            last = slice(2 * self._size, None)
            both[last], of_n = x_bias[last], h_bias[last]
        return both * self._factors + self._offsets, of_n

    def _add_sums(self) -> None:
        """Pack the products of a layer without layer normalisation."""
        biases, of_n = self._biases()
        x_weights, h_weights = (
            self._padded(self._parameters[name] * self._factors[:, None])
            for name in ("weight_ih", "weight_hh")
        )
        has_apart = not self._is_lstm and self._layer.reset_after  # n, whose half r scales
        num_joint = self._num_gates - has_apart
        self._table[NUM_JOINT], self._table[NUM_APART] = num_joint, has_apart
        self._table[OF_H] = self._num_gates
        biases = self._padded(biases)
        cut = num_joint * padded(self._size)
        self._add_product(JOINT, biases[:cut], x_weights[:cut], h_weights[:cut])
        if has_apart:
            self._add_product(X_ALONE, biases[cut:], x_weights[cut:])
            self._add_product(H_ALONE, self._padded(of_n), h_weights[cut:])

    def _add_norm(self) -> None:
        """Pack the products without biases, and what is multiplied and added afterwards."""
        table, parameters = self._table, self._parameters
        table[NUM_APART], table[OF_H] = self._num_gates, 4
        for product, name in ((X_ALONE, "weight_ih"), (H_ALONE, "weight_hh")):
            weights = self._padded(parameters[name])
            self._add_product(product, np.zeros(len(weights)), weights)
        biases, of_n = self._biases()
        table[X_GAIN] = self._blocks(parameters["norm_weight_ih"] * self._factors)
        table[H_GAIN] = self._blocks(parameters["norm_weight_hh"] * self._factors)
        table[X_SHIFT], table[H_SHIFT] = self._blocks(biases), self._blocks(of_n)
        table[MASK] = self._blocks(np.ones(self._num_gates * self._size))
        table[EPSILON] = self._floats(np.array([self._layer.norm_epsilon]))
        if self._is_lstm:
            table[CELL_GAIN] = self._blocks(parameters["norm_weight_c"])
            table[CELL_SHIFT] = self._blocks(parameters["norm_bias_c"])

    def _add_product(
        self,
        product: int,
        biases: NDArray[np.float64],
        x_weights: NDArray[np.float64],
        h_weights: NDArray[np.float64] | None = None,
    ) -> None:
        if h_weights is None:
            h_weights = np.zeros((len(x_weights), 0))
        packed = pack(DENSE, [biases], x_weights, h_weights, self._precision)
        words = self._table[PRODUCTS + product * PRODUCT_WORDS :][:PRODUCT_WORDS]
        words[WEIGHTS], words[PANEL_BYTES] = self._own(packed.memory), packed.panel_bytes
        words[FIRST_WEIGHT], words[FIRST_H_WEIGHT] = packed.first_weight, packed.first_h_weight
        words[NUM_PANELS] = packed.memory.size // packed.panel_bytes

    def _padded(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pad each gate's rows with zeros to a block: [G * H, ...] -> [G * block, ...]."""
        num_gates, block = len(rows) // self._size, padded(self._size)
        full = np.zeros((num_gates, block, *rows.shape[1:]))
        full[:, : self._size] = rows.reshape(num_gates, self._size, *rows.shape[1:])
        return full.reshape(num_gates * block, *rows.shape[1:])

    def _blocks(self, values: NDArray[np.float64]) -> int:
        return self._floats(self._padded(values))

    def _floats(self, values: NDArray[np.float64]) -> int:
        kept = aligned_floats(values.size)
        kept[:] = values
        return self._own(kept)
