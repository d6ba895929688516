"""The same mathematics on NVIDIA GPUs. Nothing outside this package imports numba-cuda."""
