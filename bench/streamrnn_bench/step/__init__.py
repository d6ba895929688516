"""Benchmarks of one step, in process."""
