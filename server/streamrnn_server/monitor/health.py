"""Whether all threads of a server move, and whether it can do all that it is there for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamrnn_server.worker import Worker

__all__ = ["Health", "trouble"]

_WITHIN_S = 5.0  # a thread that has not moved for so long is stuck
_LOOK_EVERY_S = 0.005
_MAX_COMMIT_S = 10.0  # a disk that takes longer is in trouble


def trouble(stats: Mapping[str, Any]) -> list[str]:
    """Say what is wrong now, by what `stats` tells; counters tell of what is over."""
    if stats.get("read_only") is not None:
        return [f"the disk cannot be written: {stats['read_only']}"]
    commit_s = stats.get("commit_under_way_s") or 0.0
    if commit_s > _MAX_COMMIT_S:
        return [f"the disk has not answered for {commit_s:.0f} s"]
    return []


class Health:
    """Looks whether threads move.

    Those that wait for nothing but messages are sent one: ``ping`` wakes the control thread, which
    passes a number on to the shards.

    Parameters
    ----------
    ping : callable
        Wakes the control thread, from any thread, and returns the number that it is to pass on.
    heard : callable
        Returns the last number that each of these threads has heard, by its name.
    workers : callable
        Returns the threads that move by themselves.
    """

    def __init__(
        self,
        ping: Callable[[], int],
        heard: Callable[[], Mapping[str, int]],
        workers: Callable[[], Sequence[Worker]],
    ) -> None:
        self._ping, self._heard, self._workers = ping, heard, workers
        self._under_way: asyncio.Task[list[str]] | None = None

    async def stuck(self) -> list[str]:
        """Return the names of threads that do not move; who asks meanwhile gets the same answer."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._look())
        return await asyncio.shield(self._under_way)

    async def _look(self) -> list[str]:
        number = self._ping()
        end_s = time.monotonic() + _WITHIN_S
        while True:
            deaf = [name for name, heard in self._heard().items() if heard < number]
            if not deaf or time.monotonic() >= end_s:
                return deaf + [each.name for each in self._workers() if each.is_stuck()]
            await asyncio.sleep(_LOOK_EVERY_S)
