"""Part two: one stream is primed with history, then steps through the test part."""

from __future__ import annotations

import time

import numpy as np

from streamrnn.errors import StreamRNNError
from streamrnn_bench.demo.learn import Learned
from streamrnn_bench.demo.output import Output, duration, sparkline
from streamrnn_client import Client

__all__ = ["stream_test_part"]

NUM_DRAWN = 72  # weeks
# The trainer sums in another order than the kernels; its own error is printed to three digits.
SAME_ERROR = 1e-4


def stream_test_part(client: Client, learned: Learned, output: Output) -> None:
    """Send one message a week, and print the error of what comes back.

    Raises a `StreamRNNError` if it is not the trainer's error.
    """
    output.heading("Stream it: one message a week, the state stays in the server")
    history, weeks = learned.x[: learned.first], learned.x[learned.first : -1]
    stream = client.stream("mauna-loa")
    began = time.perf_counter()
    stream.steps(history)
    primed_s = time.perf_counter() - began

    predicted = np.empty(len(weeks))
    round_trips_s = np.empty(len(weeks))
    for t, x in enumerate(weeks):
        began = time.perf_counter()
        predicted[t] = stream.step(x)[0]
        round_trips_s[t] = time.perf_counter() - began

    truth = learned.x[learned.first + 1 :, 0].astype(np.float64)
    error = float(np.sqrt(np.nanmean((predicted - truth) ** 2)))
    own, errors = learned.errors["network"], learned.errors
    if abs(error - own) > SAME_ERROR:
        raise StreamRNNError(
            f"the streamed error is {error:.6f} ppmv, the trainer's {own:.6f}: a defect of "
            "StreamRNN, please report it"
        )
    p50, p99 = np.percentile(round_trips_s, [50, 99])
    output.say(
        f"{len(history):,} weeks of history in chunks of {stream.window // 2} to prime it: "
        f"{duration(primed_s)}. Then {len(weeks)} steps, one message each: round trip p50 "
        f"{duration(p50)}, p99 {duration(p99)}."
    )
    output.say(
        f"Streamed error {error:.4f} ppmv; the trainer said {own:.4f} (autoregression "
        f"{errors['autoregression']:.4f}, persistence {errors['persistence']:.4f})."
    )
    drawn_truth, drawn_predicted = truth[-NUM_DRAWN:], predicted[-NUM_DRAWN:]
    both = np.concatenate([drawn_truth, drawn_predicted])
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    output.line()
    output.line(f"  measured   {sparkline(drawn_truth, low, high)}")
    output.line(f"  predicted  {sparkline(drawn_predicted, low, high)}")
    when = f"{learned.dates[-len(drawn_truth)]} to {learned.dates[-1]}"
    output.line(f"             {when}, {low:.0f} to {high:.0f} ppmv", style="dim")
