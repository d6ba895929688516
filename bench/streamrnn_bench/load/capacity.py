"""``streamrnn bench load --find``: trials of a server, each with streams of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from streamrnn_bench.load.generator import Generator, Outcome, Target
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.senders import MAX_SENDERS, How
from streamrnn_bench.report.results import BenchError, Result

__all__ = ["Capacity", "Goal", "Trial", "describe_capacity", "find_capacity", "find_most"]

_NUM_CONFIRMATIONS = 3
_MAX_STEPS_DOWN = 10
_LEAST_RATE, _MOST_RATE = 1.0, 1e8
_LATE_SHARE = 0.5  # of the bound: the generator is then no judge


class Goal(NamedTuple):
    """What is to be found."""

    what: str  # ``streams`` or ``rate``
    p99_s: float
    tolerance: float


def find_capacity(
    target: Target, options: LoadOptions, goal: Goal, tell: Callable[[str], None]
) -> tuple[Capacity, Result]:
    """Find the most streams at their rate, or steps a second of all streams.

    Raises a `BenchError` if there is none, or the loop is closed.
    """
    if options.rate is None:
        raise BenchError("--find needs --rate: in a closed loop the server sets the pace")
    bound_us = goal.p99_s * 1e6
    is_streams = goal.what == "streams"
    unit = "streams" if is_streams else "steps/s"

    tell(
        f"searching the most {unit} with p99 below {bound_us:,.0f} us, in runs of "
        f"{options.duration_s:g} s; what is too much is tried twice"
    )

    def measure(amount: float) -> Trial:
        trial = _judge(amount, _load(target, _loaded(options, goal.what, amount)), bound_us)
        verdict = trial.reason or "within"
        tell(f"{amount:14,.0f} {unit:8} p99 {trial.p99_us:12,.1f} us   {verdict}")
        return trial

    if is_streams:
        most = MAX_SENDERS * options.batch
        capacity = find_most(
            measure, options.streams, options.batch, most, goal.tolerance, options.batch
        )
    else:
        start = options.offered or 1.0
        capacity = find_most(measure, start, _LEAST_RATE, _MOST_RATE, goal.tolerance)
    return capacity, _result(options, goal, capacity, unit)


def describe_capacity(goal: Goal, options: LoadOptions, capacity: Capacity) -> str:
    """Say what was found, for a terminal."""
    found = _loaded(options, goal.what, capacity.amount)
    case = f"{found.series}, {found.offered or 0:,.0f} steps/s in all"
    if goal.what == "rate":
        case = f"{found.streams:,} streams, {found.series}"
    unit = "streams" if goal.what == "streams" else "steps/s"
    p99s = ", ".join(f"{trial.p99_us:,.0f}" for trial in capacity.confirmations)
    num_within = sum(trial.is_within for trial in capacity.confirmations)
    more = f"{capacity.tolerance:.0%} more was too much"
    return (
        f"{capacity.amount:,.0f} {unit} with p99 below {goal.p99_s * 1e6:,.0f} us ({case})\n"
        f"confirmed by {num_within} of {len(capacity.confirmations)} more runs of "
        f"{options.duration_s:g} s (p99 {p99s} us); "
        f"{'no more was tried' if capacity.is_limit else more}"
    )


def _loaded(options: LoadOptions, what: str, amount: float) -> LoadOptions:
    """Return the options of a trial."""
    if what == "streams":
        return dataclasses.replace(options, streams=int(amount))
    assert options.rate is not None
    share = amount / (options.offered or 1.0)
    low, high = options.rate
    return dataclasses.replace(options, rate=(low * share, high * share))


def _load(target: Target, options: LoadOptions) -> Outcome:
    with Generator(target, options) as generator:
        generator.open()
        outcome = generator.run()
        if outcome.is_interrupted:
            raise KeyboardInterrupt
        if outcome.how == How.BAD_REPLY:
            raise BenchError(outcome.first_error)
        if outcome.how != How.NOT_SENT:
            generator.close_streams()
    return outcome


def _judge(amount: float, outcome: Outcome, bound_us: float) -> Trial:
    """Say whether a server has taken a load."""
    p99_us = outcome.latency.percentile_ns(99) / 1e3
    reason = ""
    if outcome.errors:
        reason = f"refused: {', '.join(outcome.errors)}"
    elif outcome.num_unanswered or outcome.num_unsent:
        reason = f"{outcome.num_unanswered + outcome.num_unsent:,} steps not answered"
    elif outcome.how != How.DONE or outcome.latency.number == 0:
        reason = outcome.first_error or "nothing was measured"
    elif p99_us > bound_us:
        reason = f"p99 above {bound_us:,.0f} us"
        late_us = outcome.lateness.percentile_ns(99) / 1e3
        if late_us > _LATE_SHARE * bound_us:
            reason += f", and the generator itself late by {late_us:,.0f} us"
    return Trial(amount, p99_us, reason)


def _result(options: LoadOptions, goal: Goal, capacity: Capacity, unit: str) -> Result:
    case = _loaded(options, goal.what, capacity.amount).case
    return Result(
        benchmark="load",
        case=f"most {goal.what} with p99 below {goal.p99_s * 1e6:g} us",
        value=capacity.amount,
        unit=unit,
        reference="start",
        reference_value=float(options.streams if unit == "streams" else options.offered or 1.0),
        note=f"{case}; to {capacity.tolerance:.0%}",
        samples=tuple(capacity.amount for _ in capacity.confirmations),
        details={
            "tolerance": capacity.tolerance,
            "confirmed_p99_us": [trial.p99_us for trial in capacity.confirmations],
            "trials": [list(trial) for trial in capacity.trials],
        },
    )


class Trial(NamedTuple):
    """One load and what it has shown."""

    amount: float  # of streams, or of steps a second
    p99_us: float
    reason: str  # why it is too much; empty: it is not

    @property
    def is_within(self) -> bool:
        """Whether the server has taken the load."""
        return not self.reason


class Capacity(NamedTuple):
    """The most that was within the bound, and how sure that is."""

    amount: float
    tolerance: float  # a load greater by this share was too much, in the search or afterwards
    confirmations: Sequence[Trial]  # of that amount, after the search
    trials: Sequence[Trial]  # all
    is_limit: bool  # no load was too much: the amount is what the search was allowed

    @property
    def p99_us(self) -> float:
        """The median of the confirmations' p99."""
        return median(trial.p99_us for trial in self.confirmations)


def find_most(
    measure: Callable[[float], Trial],
    start: float,
    least: float,
    most: float,
    tolerance: float,
    whole: int = 0,
) -> Capacity:
    """Double or halve until the bound lies between, halve the ratio, confirm.

    A load is too much that is so twice: what disturbs a machine makes a server slower, not faster.
    ``whole`` is what amounts are multiples of, 0 for any. A load that was found in the search must
    be within the bound in most of three more; else the next smaller one is confirmed. A
    `BenchError` if even ``least`` is too much.
    """
    trials: list[Trial] = []

    def attempt(amount: float) -> Trial:
        trials.append(measure(amount))
        return trials[-1]

    def is_taken(amount: float) -> bool:
        return attempt(amount).is_within or attempt(amount).is_within

    low, high, amount = 0.0, math.inf, _rounded(min(max(start, least), most), whole)
    while True:
        if is_taken(amount):
            low = amount
        else:
            high = amount
        if low >= most or (low > 0 and high <= low * (1 + tolerance)):
            break
        if low == 0:
            if high <= least:
                raise BenchError(f"even {least:,.0f} is too much: {trials[-1].reason}")
            following = max(high / 2, least)
        else:
            following = min(2 * low, most) if high == math.inf else math.sqrt(low * high)
        following = _rounded(following, whole)
        if low > 0 and not low < following < high:  # there is nothing between them
            break
        amount = following
    for _ in range(_MAX_STEPS_DOWN):
        confirmations = [attempt(low) for _ in range(_NUM_CONFIRMATIONS)]
        if sum(trial.is_within for trial in confirmations) > _NUM_CONFIRMATIONS // 2:
            return Capacity(low, tolerance, confirmations, trials, is_limit=high == math.inf)
        high, low = low, _rounded(low / (1 + tolerance), whole)
        if low < least or low >= high:
            break
    raise BenchError(
        "no load is confirmed: what was within the bound once is too much the next time; measure "
        f"for longer, or on a quieter machine (the last: {trials[-1].reason})"
    )


def _rounded(amount: float, whole: int) -> float:
    return max(round(amount / whole), 1) * whole if whole else amount
