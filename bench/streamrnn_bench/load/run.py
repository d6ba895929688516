"""One load from beginning to end: open, drive, verify, close, tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from streamrnn.engine.engine import Engine
from streamrnn.model.model import Model
from streamrnn_bench.load.breakdown import Breakdown, breakdown_of
from streamrnn_bench.load.generator import Generator, Outcome, Target
from streamrnn_bench.load.histogram import Histogram
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.report import describe, results_of
from streamrnn_bench.load.senders import NUM_X, How, Senders
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_client import Client
from streamrnn_client.errors import StreamRNNClientError

__all__ = ["Found", "Stability", "load_once", "verify"]

_NUM_STABLE = 5  # intervals
_TOLERANCE = 2e-2  # bfloat16 and int8 weights are within; another model is not


class Found(NamedTuple):
    """What one load has found."""

    outcome: Outcome
    results: Sequence[Result]

    @property
    def is_good(self) -> bool:
        """Whether everything that was due was answered as it should."""
        outcome = self.outcome
        return outcome.how == How.DONE and not outcome.errors


class Stability:
    """Tells when nothing changes any more, from p99 and steps/s of one second each."""

    def __init__(self, spread: float | None, tell: Callable[[str], None]) -> None:
        self._spread, self._tell = spread, tell
        self._rates: list[float] = []
        self._p99s_us: list[float] = []
        self.is_stable = False

    def __call__(self, steps_per_s: float, latency: Histogram) -> bool:
        """Take the findings of a second; tell whether they are stable."""
        p50_us, p99_us = (latency.percentile_ns(p) / 1e3 for p in (50, 99))
        self._tell(f"{steps_per_s:12,.0f} steps/s   p50 {p50_us:9,.0f} us   p99 {p99_us:9,.0f} us")
        self._rates.append(steps_per_s)
        self._p99s_us.append(p99_us)
        if self._spread is None or len(self._rates) < _NUM_STABLE:
            return False
        self.is_stable = all(
            0 < max(last) <= (1 + self._spread) * min(last)
            for last in (self._rates[-_NUM_STABLE:], self._p99s_us[-_NUM_STABLE:])
        )
        return self.is_stable


def load_once(
    client: Client, target: Target, options: LoadOptions, tell: Callable[[str], None]
) -> Found:
    """Do one load, and tell what it has found.

    Raises a `BenchError` if streams cannot be opened, a reply is not to what was asked, or outputs
    are not the model's.
    """
    with Generator(target, options, tell) as generator:
        generator.open()
        stability = Stability(options.stable and options.stable / 100, tell)
        outcome = generator.run(stability)
        tell(f"\n{describe(options, outcome)}")
        if options.stable is not None:
            tell(_word_stability(options.stable, stability.is_stable))
        if outcome.how == How.BAD_REPLY:
            raise BenchError(outcome.first_error)
        parts = _parts_of(client, outcome, generator)
        tell(f"\n{parts}")
        if options.verify:
            tell(verify(options, target, generator.senders[0]))
        can_close = outcome.how != How.NOT_SENT and not options.keep_streams
        if can_close and not generator.close_streams():
            tell("NOT all streams could be closed")
    return Found(outcome, results_of(options, outcome, parts))


def _parts_of(client: Client, outcome: Outcome, generator: Generator) -> Breakdown | str:
    """Ask the server where the time of steps went; or return why that is not known."""
    if outcome.how == How.NOT_SENT:
        return "where the time of steps went is not known: the connection is lost"
    try:
        told = client.call("stats", ["step_times"])
    except StreamRNNClientError as error:
        return f"where the time of steps went is not known: {error}"
    return breakdown_of(told, [each.timed for each in generator.senders])


def _word_stability(percent: float, is_stable: bool) -> str:
    if is_stable:
        return f"ended when {_NUM_STABLE} seconds in a row differed by at most {percent:g} %"
    return f"NOT STABLE: the last seconds differed by more than {percent:g} %"


def verify(options: LoadOptions, target: Target, senders: Senders) -> str:
    """Compare the outputs that were kept with those that the model's file gives.

    Raises a `BenchError` if they differ by more than another order of sums may make.
    """
    assert options.verify is not None
    if len(target.models) > 1:
        raise BenchError("--verify computes one model; name it alone with --models")
    model, x = Model.load(options.verify), target.models[0].x
    kept = senders.outputs
    if model.spec.num_inputs != x.shape[1] or model.spec.output_size != kept.shape[2]:
        raise BenchError(f"{options.verify} has other inputs or outputs than the model served")
    answered = senders.table["acked"] // options.chunk * options.chunk
    lives = senders.table["lives"]
    num_streams = min(options.batch * len(answered), kept.shape[1])
    engine = Engine(model, max_streams=max(num_streams, 1))
    worst, num_compared = 0.0, 0
    for stream in range(num_streams):
        sender = stream // options.batch
        num_steps = int(min(answered[sender], len(kept))) if lives[sender] == 1 else 0
        for step in range(num_steps):
            # As `write_steps` draws them: a chunk's steps follow its first one.
            first = step // options.chunk * options.chunk + 1
            row = (stream + 7 * first) % NUM_X + step + 1 - first
            (expected,) = engine.step({stream: x[row % NUM_X]}).values()
            scale = max(1.0, float(np.abs(expected).max()))
            worst = max(worst, float(np.abs(expected - kept[step, stream]).max()) / scale)
            num_compared += 1
    if not num_compared:
        return "nothing could be verified: no stream has lived from the beginning to the end"
    if not worst <= _TOLERANCE:
        raise BenchError(
            f"outputs are not those of {options.verify}: they differ by up to {worst:.3g}"
        )
    how = "to the bit" if worst == 0 else f"to {worst:.2g}, as another order of sums may make"
    return f"verified: {num_compared} outputs of {num_streams} streams are the model's {how}"
