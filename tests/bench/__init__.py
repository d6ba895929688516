"""Tests of the benchmarks and the demonstration."""
