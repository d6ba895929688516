"""Runs of an engine, and comparison of their bits."""

from __future__ import annotations

import numpy as np

__all__ = ["assert_same_bits", "stepped"]


def stepped(engine, x, batches=None):
    """Return the outputs [B, T, O] of streams 0..B-1 over x [B, T, I].

    All make their steps together, or, at each step, one of ``batches`` after the other.
    """
    num_streams, num_steps = x.shape[:2]
    rows = engine.rows(range(num_streams))
    y = np.empty((num_streams, num_steps, engine.model.spec.output_size), np.float32)
    for t in range(num_steps):
        for batch in [np.arange(num_streams)] if batches is None else batches:
            y[batch, t] = engine.batch(rows[batch], x[batch, t])
    return y


def assert_same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
