"""Layers over a chunk of time and back, compiled: what the trainer computes with."""
