"""Which streams are stepped most of late: who stands often among a shard's samples."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from typing import Any

from streamrnn_server.control.about.stats import ShardView
from streamrnn_server.control.error_text import stream_of
from streamrnn_server.shard.memory.arena import PAGE_BYTES
from streamrnn_server.shard.memory.header import IS_OPEN, MAX_INLINE_ID_BYTES
from streamrnn_server.shard.memory.tally import NUM_SAMPLES

__all__ = ["busiest_streams"]

_MAX_SHOWN = 20


def busiest_streams(
    shards: Sequence[ShardView], models: Sequence[tuple[str, Any]]
) -> list[dict[str, Any]]:
    """Return the streams with most of the steps that shards have sampled last.

    Returns
    -------
    list of dict
        ``stream``, ``model``, ``shard``, ``last_seq`` and ``share``, of the last steps of its
        shard; the busiest first.
    """
    found = []
    for number, shard in enumerate(shards):
        samples = shard.struct["samples"]
        num_samples = min(int(samples["number"]), NUM_SAMPLES)
        counts = Counter(samples["slots"][:num_samples].tolist())
        for slot, count in counts.most_common(_MAX_SHOWN):
            told = _look(shard, slot, models)
            if told is not None:
                found.append({**told, "shard": number, "share": count / num_samples})
    return sorted(found, key=lambda each: -each["share"])[:_MAX_SHOWN]


def _look(shard: ShardView, slot: int, models: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """Return who lives in a slot; None if that changes while it is looked at."""
    header = shard.headers[slot]
    before = header.copy()
    canonical = _canonical_id(shard, before)
    is_open = int(before["flags"]) & IS_OPEN and 0 <= int(before["model"]) < len(models)
    if canonical is None or not is_open:
        return None
    after = header.copy()
    if any(before[name] != after[name] for name in ("generation", "id_bytes", "model")):
        return None
    try:
        stream = stream_of(canonical)
    except UnicodeDecodeError:
        return None
    if stream is None:
        return None
    (model, _), last_seq = models[int(before["model"])], int(before["last_seq"])
    return {"stream": stream, "model": model, "last_seq": last_seq}


def _canonical_id(shard: ShardView, header: Any) -> bytes | None:
    """Return a slot's id; None where its address and length were read of different moments."""
    num_bytes = int(header["id_bytes"])
    if num_bytes <= MAX_INLINE_ID_BYTES:
        return header["id"].tobytes()[: max(0, num_bytes)]
    address = int(header["id"][:8].view("<i8")[0])
    begin = int(shard.struct["arena"]["base"])
    end = begin + int(shard.struct["arena"]["num_pages"]) * PAGE_BYTES
    # Whatever lies there: memory of the arena stays reserved.
    return ctypes.string_at(address, num_bytes) if begin <= address <= end - num_bytes else None
