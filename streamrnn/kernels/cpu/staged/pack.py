"""Pack what a staged layer computes with: its products in panels, its vectors in blocks.

A *block* is one vector of H floats, padded with zeros to a multiple of 16. Where a fused tile keeps
the gates of the same units side by side, the staged path keeps each gate in a block of its own: its
stages are dense products, and passes over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.activations import ACTIVATIONS
from streamrnn.kernels.cpu.pack import Packed, aligned_floats, pack
from streamrnn.kernels.cpu.plan import Stages
from streamrnn.kernels.gates import DENSE, GATE_FORMS, padded
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = ["num_blocks", "pack_stages"]


def num_blocks(layer: LayerSpec) -> int:
    """Return how many blocks of scratch a row needs.

    The sums with x of four gates, or of three and one more; with layer normalisation those with h
    apart.
    """
    return 8 if layer.layer_norm else 4


def pack_stages(
    layer: LayerSpec,
    parameters: Mapping[str, NDArray[np.float64]],
    precision: int,
    own: Callable[[NDArray[Any]], int],
) -> tuple[NDArray[np.void], dict[str, Packed]]:
    """Pack a staged layer: one `Stages` without its products, and those by name.

    Parameters
    ----------
    layer : LayerSpec
        A GRU or an LSTM.
    parameters : mapping of str to ndarray of float64
        The layer's, without the ``_l{k}``; the inputs' scales folded into ``weight_ih``.
    precision : int
        Of the weights of all products, see `pack`.
    own : callable
        Keeps an array alive and returns its address.
    """
    stager = _Stager(layer, parameters, precision, own)
    stager.fill()
    return stager.stages, stager.products


class _Stager:
    """Packs one layer into `stages` and `products`."""

    def __init__(
        self,
        layer: LayerSpec,
        parameters: Mapping[str, NDArray[np.float64]],
        precision: int,
        own: Callable[[NDArray[Any]], int],
    ) -> None:
        self._layer, self._parameters = layer, parameters
        self._precision, self._own = precision, own
        self._size, self._is_lstm = layer.hidden_size, layer.cell == "lstm"
        gates = CELLS[layer.cell].gates
        self._num_gates = len(gates)
        self._factor, offset = GATE_FORMS[layer.gate_activation]
        is_gate = np.array([gate not in "gn" for gate in gates])
        self._factors = np.repeat(np.where(is_gate, self._factor, 1.0), self._size)
        self._offsets = np.repeat(np.where(is_gate, offset, 0.0), self._size)
        self.stages = np.zeros(1, Stages.dtype)
        self.products: dict[str, Packed] = {}

    def fill(self) -> None:
        layer, stages = self._layer, self.stages
        stages["is_lstm"], stages["reset_after"] = self._is_lstm, layer.reset_after
        stages["gates_are_hard"] = layer.gate_activation != "sigmoid"
        stages["has_norm"], stages["output_size"] = layer.layer_norm, layer.output_size
        stages["h_bytes"] = 4 * padded(layer.output_size)
        stages["candidate"] = ACTIVATIONS[layer.cell_activation]
        stages["shown"] = ACTIVATIONS[layer.output_activation]
        stages["zeros"] = self._blocks(np.zeros(self._size))
        stages["ones"] = self._blocks(np.ones(self._size))
        if layer.layer_norm:
            self._add_norm()
        else:
            self._add_sums()
        if layer.projection_size:
            weights = self._parameters["weight_hr"]
            self._add_product("projection", np.zeros(len(weights)), weights)
        peepholes = np.zeros(3 * self._size)
        if layer.peepholes:
            by_gate = [self._parameters[f"weight_c{gate}"] for gate in "ifo"]
            peepholes = self._factor * np.concatenate(by_gate)
        stages["peepholes"] = self._blocks(peepholes)

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
        self.stages["num_joint"], self.stages["num_apart"] = num_joint, has_apart
        self.stages["h_block"] = self._num_gates
        biases = self._padded(biases)
        cut = num_joint * padded(self._size)
        self._add_product("joint", biases[:cut], x_weights[:cut], h_weights[:cut])
        if has_apart:
            self._add_product("x_alone", biases[cut:], x_weights[cut:])
            self._add_product("h_alone", self._padded(of_n), h_weights[cut:])

    def _add_norm(self) -> None:
        """Pack the products without biases, and what is multiplied and added afterwards."""
        stages, parameters = self.stages, self._parameters
        stages["num_apart"], stages["h_block"] = self._num_gates, 4
        for product, name in (("x_alone", "weight_ih"), ("h_alone", "weight_hh")):
            weights = self._padded(parameters[name])
            self._add_product(product, np.zeros(len(weights)), weights)
        biases, of_n = self._biases()
        stages["x_gain"] = self._blocks(parameters["norm_weight_ih"] * self._factors)
        stages["h_gain"] = self._blocks(parameters["norm_weight_hh"] * self._factors)
        stages["x_shift"], stages["h_shift"] = self._blocks(biases), self._blocks(of_n)
        stages["mask"] = self._blocks(np.ones(self._num_gates * self._size))
        stages["epsilon"] = self._layer.norm_epsilon
        if self._is_lstm:
            stages["cell_gain"] = self._blocks(parameters["norm_weight_c"])
            stages["cell_shift"] = self._blocks(parameters["norm_bias_c"])

    def _add_product(
        self,
        name: str,
        biases: NDArray[np.float64],
        x_weights: NDArray[np.float64],
        h_weights: NDArray[np.float64] | None = None,
    ) -> None:
        if h_weights is None:
            h_weights = np.zeros((len(x_weights), 0))
        self.products[name] = pack(DENSE, [biases], x_weights, h_weights, self._precision)

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
