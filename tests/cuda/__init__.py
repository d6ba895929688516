"""Tests of the CUDA kernels."""
