"""Where the time of single steps went: what shards have stamped of one message in a thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamrnn_server.control.about.stats import ShardView

__all__ = ["STEP_TIMES", "step_times"]

STEP_TIMES = "step_times"  # by this name `stats` tells them
_ORDER = ("received_ns", "decoded_ns", "committed_ns", "reply_ns", "encoded_ns", "sent_ns")


def step_times(shards: Sequence[ShardView]) -> dict[str, list[int]]:
    """Return the messages that shards have timed last: a list for each field of `StepTime`.

    What is not answered yet is left out, and what was written while it was read. ``shard`` says
    whose each is.
    """
    found = []
    for number, shard in enumerate(shards):
        each = shard.step_times.copy()
        computed_ns = each["gather_ns"] + each["kernel_ns"] + each["commit_ns"]
        is_whole = (np.diff([each[name] for name in _ORDER], axis=0) >= 0).all(0)
        is_whole &= each["sent_ns"] > 0
        is_whole &= computed_ns <= each["committed_ns"] - each["decoded_ns"]
        found.append((number, each[is_whole]))
    names = [name for name in found[0][1].dtype.names or () if name != "request"]
    told = {name: [int(value) for _, each in found for value in each[name]] for name in names}
    return {"shard": [number for number, each in found for _ in each], **told}
