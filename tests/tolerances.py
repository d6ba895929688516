"""How far numbers may be apart, and why: the one place for it.

Absolute, for outputs of order 1 unless said otherwise. Equality to the bit needs no entry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.reference.model import ReferenceModel

__all__ = [
    "GRADIENT",
    "KERNEL",
    "KERNEL_RELATIVE",
    "REFERENCE_FLOAT32",
    "REFERENCE_FLOAT64",
    "TENSOR",
    "kernel_limit",
]

# Reference against PyTorch in float64, both from the same float32 weights: only the order of
# sums differs. 40 steps of sums of some 20 terms stay below 1e-15; another gate order, bias or
# activation gives more than 1e-3.
REFERENCE_FLOAT64 = 1e-12

# Reference against PyTorch in float32: PyTorch's own rounding, some 2^-24 a sum (6e-8) times a
# few operations in a row; measured up to 2.5e-7.
REFERENCE_FLOAT32 = 1e-6

# Kernels against the reference, after 1,000 steps on random stacks: float32 sums of up to a few
# hundred terms of order 0.1, and activations with a relative error under 3e-7, in cells that
# forget their own errors.
KERNEL = 2e-6

# Parameters moved by this much, relatively, stand for the rounding of float32 on its way through
# a model: eight units in the last place, for a sum of some terms and an activation.
_ROUNDING = 2.0**-21
_NUM_MOVED = 8
_MARGIN = 4  # over the largest of so few draws

# The same on a GPU, for wider layers too: relative to the largest output.
KERNEL_RELATIVE = 5e-6

# Gradients against central differences of step 1e-5 in float64, relative to their norm: 1e-10 of
# truncation and 1e-11 of rounding, times the curvature. A factor left out is above 1e-3.
GRADIENT = 1e-7

# Outputs of order 1 where both factors of each product are rounded to 11 bits (tf32) or 8
# (bfloat16): some tens of products of order 0.1 add up to a few units of the last of them.
TENSOR = {"tf32": 1e-3, "bfloat16": 1e-2}


def kernel_limit(model: Model, x: NDArray[np.float32]) -> float:
    """Return how far kernels may be from a model's exact outputs: `KERNEL`, or what it magnifies.

    A layer normalisation of a few units divides by as little as sqrt(epsilon) where their sums are
    nearly equal: of two units, with epsilon 1e-5 and gains of 0.4, rounding comes out 126 times as
    large. Where that happens the exact outputs themselves move when parameters do in their last
    bits: then the kernels may be off by a multiple of that. Measured over 8,378 random stacks: up
    to 4.4e-7 without normalisation; with it 1.3e-5, beyond 2e-6 for 1 in 500, and there at most 0.5
    of what the exact outputs move. A wrong formula moves them where parameters do not.
    """
    rng = np.random.default_rng(0)
    moved = ReferenceModel(model)
    given, exact = moved.parameters, moved.steps(x)
    most = 0.0
    for _ in range(_NUM_MOVED):
        moved.parameters = {
            name: value * (1 + _ROUNDING * rng.uniform(-1, 1, value.shape))
            for name, value in given.items()
        }
        most = max(most, float(np.abs(moved.steps(x) - exact).max()))
    return max(KERNEL, _MARGIN * most)
