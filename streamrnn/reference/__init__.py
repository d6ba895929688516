"""The equations of every cell in float64, slow and obvious; no code shared with the kernels."""
