"""What a load has found, in words and as results."""

from __future__ import annotations

from streamrnn_bench.load.breakdown import Breakdown
from streamrnn_bench.load.generator import Outcome
from streamrnn_bench.load.histogram import PERCENTILES, RELATIVE_ERROR, Histogram
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.senders import How
from streamrnn_bench.report.results import Result, aligned

__all__ = ["describe", "results_of"]

_LATE_SHARE = 0.2  # of a latency, from which on the generator's own part is told


def results_of(options: LoadOptions, outcome: Outcome, parts: Breakdown | str = "") -> list[Result]:
    """Return the latency and the throughput of a load, with the parts of it that are known.

    The references are its own: the median, and the steps that were to be sent (in a closed loop
    the messages that carried them).
    """
    if outcome.latency.number == 0 or outcome.num_done == 0:
        return []
    details = {
        "series": options.series,
        "streams": options.streams,
        "latency_us": outcome.latency.percentiles_us(),
        "response_us": outcome.response.percentiles_us(),
        "mean_us": outcome.latency.mean_ns / 1e3,
        "histogram": outcome.latency.to_dict(),
        "relative_error": RELATIVE_ERROR,
        "measured_s": outcome.measured_s,
        "num_steps": outcome.num_done,
        "num_messages": outcome.num_messages,
        "num_unanswered": outcome.num_unanswered,
        "num_unsent": outcome.num_unsent,
        "errors": outcome.errors,
    }
    if options.rate is not None:
        details["lateness_us"] = outcome.lateness.percentiles_us()
    if outcome.opening.number > 0:
        details["open_us"] = outcome.opening.percentiles_us()
    if isinstance(parts, Breakdown):
        details |= parts.details
    latency_us = outcome.latency.percentiles_us()
    rate = outcome.steps_per_s
    offered = options.offered
    reference = ("offered", offered) if offered else ("messages", rate / options.steps_a_message)
    return [
        Result(
            benchmark="load",
            case=f"{options.case} p99",
            value=latency_us["99"],
            unit="us",
            reference="p50",
            reference_value=max(latency_us["50"], 1e-3),
            details=details,
        ),
        Result(
            benchmark="load",
            case=options.case,
            value=rate,
            unit="steps/s",
            reference=reference[0],
            reference_value=reference[1],
            details={name: details[name] for name in ("series", "streams")},
        ),
    ]


def describe(options: LoadOptions, outcome: Outcome) -> str:
    """Say what was found, for a terminal."""
    lines = [f"load: {options.case}", _throughput(options, outcome)]
    rows = [("us", *(f"p{p:g}" for p in PERCENTILES), "max", "mean", "number")]
    told = {"from due to answer": outcome.latency}
    if options.rate is not None:
        told["from sent to answer"] = outcome.response
        told["generator late by"] = outcome.lateness
    told |= {"open": outcome.opening, "close": outcome.closing}
    rows += [_row(name, each) for name, each in told.items() if each.number > 0]
    lines += ["", aligned(rows, left=(0,)), ""]
    lines.append(
        f"percentiles are at most {100 * RELATIVE_ERROR:.1g} % too high, never too low; "
        "maximum and mean are exact"
    )
    return "\n".join(lines + _trouble(options, outcome))


def _throughput(options: LoadOptions, outcome: Outcome) -> str:
    offered = options.offered
    words = f"{outcome.steps_per_s:,.0f} steps/s for {outcome.measured_s:.1f} s"
    if offered:
        words += f", of {offered:,.0f} that were to be sent"
    if options.steps_a_message > 1:
        words += f"; {outcome.steps_per_s / options.steps_a_message:,.0f} messages/s"
    return words


def _row(name: str, histogram: Histogram) -> tuple[str, ...]:
    times = [*histogram.percentiles_us().values(), histogram.mean_ns / 1e3]
    return (name, *(f"{value:,.0f}" for value in times), f"{histogram.number:,}")


def _trouble(options: LoadOptions, outcome: Outcome) -> list[str]:
    """Say what was not as it should be, a line each."""
    lines = []
    if outcome.num_unanswered or outcome.num_unsent:
        within = f"within {options.timeout_s:g} s of the end"
        when = within if outcome.how == How.UNFINISHED else "when it ended early"
        lines.append(
            f"NOT ANSWERED {when}: {outcome.num_unanswered:,} steps that were sent, "
            f"{outcome.num_unsent:,} that were due; they count with the time that they have waited"
        )
    is_early = outcome.how not in (How.DONE, How.STOPPED, How.UNFINISHED)
    if outcome.errors:
        told = ", ".join(f"{code} {number:,}" for code, number in outcome.errors.items())
        first = "" if is_early else f"; the first: {outcome.first_error}"
        lines.append(f"REFUSED (they have no latency): {told}{first}")
    if is_early:
        lines.append(f"ENDED EARLY: {outcome.first_error}")
    if outcome.how == How.STOPPED:
        lines.append("STOPPED: what was on its way was not awaited")
    late, all_of_it = (each.percentile_ns(99) for each in (outcome.lateness, outcome.latency))
    if options.rate is not None and late > _LATE_SHARE * all_of_it > 0:
        lines.append(
            f"the generator sent 1 % of the steps {late / 1e3:,.0f} us late or more, which is part "
            "of the latencies: give it a core of its own, or another machine"
        )
    return lines
