"""A record of a stream, for tests to change and to damage."""

from __future__ import annotations

import numpy as np

from streamrnn.state.record import NUMBERED, StreamRecord

__all__ = ["EXAMPLE"]

EXAMPLE = StreamRecord(
    stream=b"sa",
    model="co2",
    fingerprint="ab" * 32,
    arithmetic="float32-cpu",
    owner="eve",
    numbering=NUMBERED,
    window=4,
    last_seq=3,
    clock_s=5,
    row=bytes(range(64)),
    digests=np.arange(3),
    outputs=np.arange(24, dtype=np.uint8).reshape(3, 8),
)
