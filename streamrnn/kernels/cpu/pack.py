"""Parameters in PyTorch's order and shapes, packed into the panels that the tiles read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.gates import SHAPES, padded
from streamrnn.kernels.precisions import FLOAT32, INT8, LEAST_INT8_SCALE
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["Packed", "aligned_floats", "pack"]

_ALIGNMENT_BYTES = 64


def aligned_floats(size: int) -> NDArray[np.float32]:
    """Return ``size`` zeroed float32 that start at a multiple of 64 bytes."""
    memory = np.zeros(4 * size + _ALIGNMENT_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + 4 * size].view(np.float32)


class Packed(NamedTuple):
    """One product's weights as the tiles read them.

    A panel holds the biases, one vector an accumulator; for int8 what the accumulators are
    multiplied by in the end, likewise; the weights for x, then those for h, each [k, gate, WIDTH].

    Attributes
    ----------
    memory : ndarray of uint8
        The panels one after the other, 64-byte aligned.
    panel_bytes, first_weight, first_h_weight : int
        Bytes of a panel, and from its start to the weights for x and for h.
    """

    memory: NDArray[np.uint8]
    panel_bytes: int
    first_weight: int
    first_h_weight: int

    @property
    def num_panels(self) -> int:
        """Number of panels."""
        return self.memory.size // self.panel_bytes


def pack(
    kind: int,
    biases: Sequence[NDArray[np.float64]],
    x_weights: NDArray[np.float64],
    h_weights: NDArray[np.float64],
    precision: int = FLOAT32,
) -> Packed:
    """Pack one layer.

    Padding units have zero weights and biases: they stay exactly 0 in every cell. int8 weights are
    whole multiples of a scale of their own for each unit and accumulator, the largest being 127;
    the biases are divided by it, so that the sums run in its multiples.

    Parameters
    ----------
    kind : int
        Of the tile: `DENSE`, `GRU` or `LSTM`.
    biases : sequence of ndarray, shape (H,)
        One for each accumulator.
    x_weights : ndarray, shape (G * H, I)
        Gates in the tile's order.
    h_weights : ndarray, shape (G * H, H_in)
        Likewise; H_in is 0 for a head.
    precision : int
        `FLOAT32`, `BFLOAT16` (rounded to nearest, ties to even) or `INT8`.

    Returns
    -------
    Packed
    """
    shape = SHAPES[kind]
    num_panels = padded(len(biases[0])) // WIDTH
    factors = np.array(shape.factors)
    bias = _by_unit(np.concatenate(biases), factors, num_panels)
    x = _by_unit(x_weights, factors[list(shape.x_gates)], num_panels)
    h = _by_unit(h_weights, factors[list(shape.h_gates)], num_panels)
    header = [bias]
    if precision == INT8:
        scale = np.zeros_like(bias)
        for weights, gates in ((x, shape.x_gates), (h, shape.h_gates)):
            largest = np.abs(weights).max(axis=2, keepdims=True, initial=0.0) / 127
            for gate, accumulator in enumerate(gates):
                scale[accumulator] = np.maximum(scale[accumulator], largest[gate])
        # The biases must not overflow, nor a scale be a subnormal number, which a step takes as 0.
        least = LEAST_INT8_SCALE * np.maximum(np.abs(bias), 1.0)
        scale = np.where(scale == 0, 1.0, np.maximum(scale, least))
        header = [bias / scale, scale]
        x = np.rint(x / scale[list(shape.x_gates)])
        h = np.rint(h / scale[list(shape.h_gates)])
    parts = [_panels(part, num_panels).astype(np.float32).view(np.uint8) for part in header]
    first_weight = sum(part.shape[1] for part in parts)
    parts += [_stored(_panels(part, num_panels), len(part), precision) for part in (x, h)]
    used = sum(part.shape[1] for part in parts)
    panel_bytes = -(-used // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    memory = aligned_floats(num_panels * panel_bytes // 4).view(np.uint8)
    memory.reshape(num_panels, panel_bytes)[:, :used] = np.concatenate(parts, axis=1)
    return Packed(memory, panel_bytes, first_weight, first_weight + parts[-2].shape[1])


def _by_unit(
    matrix: NDArray[np.float64], factors: NDArray[np.float64], num_panels: int
) -> NDArray[np.float64]:
    """[G * H, K] or [G * H] -> [G, units of all panels, K], each gate times its factor."""
    num_gates = len(factors)
    hidden_size = matrix.shape[0] // num_gates
    num_columns = matrix.shape[1] if matrix.ndim == 2 else 1
    full = np.zeros((num_gates, num_panels * WIDTH, num_columns))
    full[:, :hidden_size] = matrix.reshape(num_gates, hidden_size, num_columns)
    return full * factors[:, None, None]


def _panels(units: NDArray[np.float64], num_panels: int) -> NDArray[np.float64]:
    """[G, units, K] -> [panel, K * G * WIDTH], in the order of the tile's loop."""
    num_gates, _, num_columns = units.shape
    by_panel = units.reshape(num_gates, num_panels, WIDTH, num_columns).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(by_panel).reshape(num_panels, num_columns * num_gates * WIDTH)


def _stored(panels: NDArray[np.float64], num_gates: int, precision: int) -> NDArray[np.uint8]:
    """Return panels of weights as they are stored, [panel, bytes]."""
    if precision == INT8:
        return panels.astype(np.int8).view(np.uint8)
    wide = panels.astype(np.float32)
    if precision == FLOAT32:
        return wide.view(np.uint8)
    bits = wide.view(np.uint32)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    # Pairs of gates share their lanes: see `Tile.load_weights`.
    num_panels, num_columns = len(panels), panels.shape[1] // (num_gates * WIDTH)
    halves = halves.reshape(num_panels, num_columns, num_gates, WIDTH)
    paired = num_gates // 2 * 2
    low, high = halves[:, :, 0:paired:2], halves[:, :, 1:paired:2]
    pairs = np.stack([low, high], axis=-1).reshape(num_panels, num_columns, paired * WIDTH)
    num_single = num_gates - paired
    single = halves[:, :, paired:].reshape(num_panels, num_columns, num_single * WIDTH)
    stored = np.ascontiguousarray(np.concatenate([pairs, single], axis=2))
    return stored.reshape(num_panels, panels.shape[1]).view(np.uint8)
