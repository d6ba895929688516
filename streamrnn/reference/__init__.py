"""Equations of every cell in float64, sharing no code with the kernels."""
