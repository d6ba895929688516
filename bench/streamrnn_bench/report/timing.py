"""Time things side by side, so that a busy neighbour on the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["interleave", "repeats_for"]


def repeats_for(run: Callable[[int], object], round_s: float) -> int:
    """Find how often to repeat something so that a round takes about so long.

    Parameters
    ----------
    run : callable
        Takes the number of repeats. What the first call compiles or pulls into caches is paid here.
    round_s : float
        The time wanted, in seconds.

    Returns
    -------
    int
        At least 1.
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
    """Time several things in turns, and return the best time of each.

    Parameters
    ----------
    runs : mapping of str to callable
        Each takes a number of repeats.
    num_rounds : int
        How many turns each has.
    round_s : float
        About how long one turn of one of them takes, in seconds.

    Returns
    -------
    dict of str to float
        Seconds a repeat, of the fastest turn: what slows a computation down comes from outside,
        and nothing speeds it up.
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
