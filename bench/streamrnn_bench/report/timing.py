"""Interleaved timing, so that a busy machine slows all candidates alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["interleave", "repeats_for"]


def repeats_for(run: Callable[[int], object], round_s: float) -> int:
    """Find how many repeats take about ``round_s``; at least 1.

    ``run`` takes the number of repeats. Its first call also pays for compilation and cold caches.
    """
    run(1)
    num_repeats = 1
    while True:
        start = time.perf_counter()
        run(num_repeats)
        elapsed_s = time.perf_counter() - start
        if elapsed_s > round_s / 8:
            return max(1, round(num_repeats * round_s / elapsed_s))
        num_repeats *= 4


def interleave(
    runs: Mapping[str, Callable[[int], object]], num_rounds: int, round_s: float
) -> dict[str, float]:
    """Time several functions in turns; return the best seconds a repeat of each.

    Each takes a number of repeats, and gets ``num_rounds`` turns of about ``round_s``. The fastest
    turn counts: outside influences slow a computation down, and nothing speeds it up.
    """
    num_repeats = {name: repeats_for(run, round_s) for name, run in runs.items()}
    best_s = dict.fromkeys(runs, float("inf"))
    for _ in range(num_rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(num_repeats[name])
            elapsed_s = time.perf_counter() - start
            best_s[name] = min(best_s[name], elapsed_s / num_repeats[name])
    return best_s
