"""How far numbers may be apart, and why: the one place for it.

Absolute, for outputs of order 1 unless said otherwise. Equality to the bit needs no entry.
"""

from __future__ import annotations

__all__ = [
    "GRADIENT",
    "KERNEL",
    "KERNEL_RELATIVE",
    "REFERENCE_FLOAT32",
    "REFERENCE_FLOAT64",
    "TENSOR",
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

# The same on a GPU, for wider layers too: relative to the largest output.
KERNEL_RELATIVE = 5e-6

# Gradients against central differences of step 1e-5 in float64, relative to their norm: 1e-10 of
# truncation and 1e-11 of rounding, times the curvature. A factor left out is above 1e-3.
GRADIENT = 1e-7

# Outputs of order 1 where both factors of each product are rounded to 11 bits (tf32) or 8
# (bfloat16): some tens of products of order 0.1 add up to a few units of the last of them.
TENSOR = {"tf32": 1e-3, "bfloat16": 1e-2}
