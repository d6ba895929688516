"""Memory budgets that leave an exact number of bytes for streams."""

from __future__ import annotations

from streamrnn_server.shard.setup import waiting_bytes

__all__ = ["budget_of", "fixed_bytes"]


def fixed_bytes(struct) -> int:
    """Return what a shard takes before its first stream, but for the share that may wait."""
    clients = struct["clients"]
    waiting = int(clients["max_unread_bytes"]) + int(clients["max_asked_bytes"])
    return int(struct["budget"]["used_bytes"]) - waiting


def budget_of(num_bytes: int) -> int:
    """Return the least budget of which so many bytes are left beside the share that may wait."""
    budget = num_bytes
    while budget - sum(waiting_bytes(budget)) < num_bytes:
        budget += num_bytes - (budget - sum(waiting_bytes(budget)))
    return budget
