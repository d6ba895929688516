"""Demonstration, and benchmarks against peers and the machine's limits."""
