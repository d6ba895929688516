"""``streamrnn bench durability``: the cost of keeping streams on disk.

Servers of each durability take turns under the same load: many streams, all stepping all the time,
so that each has changed at every checkpoint. A server's shard, I/O and writer threads and the load
generator's two threads share the machine. A turn begins with a time to settle, lasts for a whole
number of checkpoints, and ends when the rest has been written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.processes import Load, load, serving, stopping_cleanly, temporary_model
from streamrnn_bench.server.throughput import verify_server
from streamrnn_bench.step.cases import Case
from streamrnn_client import Client

__all__ = ["DURABILITY_CASES", "fsync_us", "measure_durability"]

DURABILITY_CASES = (Case("lstm", 64, 128),)
_CHECKPOINT, _ALWAYS = "checkpoint", "always"
_DURABILITIES = ("none", _CHECKPOINT, _ALWAYS)
_MAX_UNDER_WAY = 8_000  # of one connection; the server's limit is 8,192
_INTERVAL_S = 1.0  # of checkpoints, the server's default
_SETTLE_S = 0.9
_MAX_ROUND_TRIPS = 1 << 22
_NUM_FSYNCS = 50
_THROUGHPUT_TARGET, _LATENCY_TARGET = 0.95, 1 / 1.5

Found = dict[str, Any]


class _Server(NamedTuple):
    """Server of one durability under load."""

    durability: str
    endpoint: str
    load: Load

    def turn(self, duration_s: float) -> Found:
        """Load it for a turn, and wait until all of it is on disk."""
        with Client(self.endpoint) as client:
            before = client.stats()
            self.load.ask(drive_s=_SETTLE_S)
            found = self.load.ask(drive_s=duration_s, num_round_trips=_MAX_ROUND_TRIPS)
            if self.durability != "none" and not client.sync():
                raise BenchError(f"the state cannot be written: {client.stats()['read_only']}")
            after = client.stats()
        changes = {
            name: after[name] - before[name]
            for name in ("num_saved", "num_checkpoints", "num_commits", "num_bytes_written")
            if name in after
        }
        return found | changes


@contextlib.contextmanager
def _servers(
    case: Case, num_streams: int, window: int, directory: Path
) -> Iterator[dict[str, _Server]]:
    """Start a server of each durability with its load, and verify what they compute."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping_cleanly())
        model = stack.enter_context(temporary_model(case))
        states = Path(stack.enter_context(_directory_in(directory)))
        servers = {}
        for durability in _DURABILITIES:
            arguments = ["--durability", durability, "--max-streams", str(num_streams)]
            if durability != "none":
                arguments += ["--state-dir", str(states / durability)]
                arguments += ["--checkpoint-interval", str(_INTERVAL_S)]
            endpoint = stack.enter_context(serving(model, *arguments))
            under_way = _under_way(num_streams)
            options = ("--window", str(window), "--under-way", str(under_way))
            generator = stack.enter_context(load(endpoint, case, num_streams, False, *options))
            verify_server(generator, case, model.parent)
            servers[durability] = _Server(durability, endpoint, generator)
        yield servers


def _under_way(num_streams: int) -> int:
    """Return the most streams with a step in flight: as many turns of equal size."""
    num_turns = -(-num_streams // _MAX_UNDER_WAY)
    while num_streams % num_turns:
        num_turns += 1
    return num_streams // num_turns


def _directory_in(directory: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="streamrnn-bench-", dir=directory)
    except OSError as error:
        raise BenchError(f"cannot keep state in {directory}: {error.strerror}") from error


def measure_durability(
    cases: Iterable[Case],
    num_rounds: int = 4,
    round_s: float = 3.0,
    num_streams: int = 10_000,
    windows: Sequence[int] = (1, 16),
    directory: Path = Path(),
) -> Iterator[Result]:
    """Measure servers that keep their streams on disk against one that does not.

    Each server has ``num_rounds`` turns of ``round_s``, rounded up to whole seconds (a checkpoint
    is made every second). At most 8,000 streams have a step in flight, of 10,000 a half.
    ``windows`` are the steps that the server remembers of each stream. The state is in a temporary
    directory below ``directory``.

    Yields with `checkpoint` steps a second and the p99.9 of the round trip against those with
    `none`; with `always` steps a second against those with `none`, and p50 and p99 of the round
    trip against fdatasync after writes of the same size. Medians of the quieter half of the rounds.
    Raises a `BenchError` if a reply is wrong or missing, or streams are not written every second.
    """
    round_s = -(-round_s // _INTERVAL_S) * _INTERVAL_S
    for case in cases:
        for window in windows:
            name = f"{case} {num_streams} streams window {window}"
            with _servers(case, num_streams, window, directory) as servers:
                rounds = []
                machine_load = MachineLoad()
                for _ in range(num_rounds):
                    found = {key: server.turn(round_s) for key, server in servers.items()}
                    _check_writing(found[_CHECKPOINT], num_streams, round_s)
                    rounds.append((machine_load.share(), found))
            share, chosen = quieter_half(rounds)
            yield from _checkpoint_results(name, chosen, share)
            yield from _always_results(name, chosen, directory)


def _check_writing(found: Found, num_streams: int, round_s: float) -> None:
    """Raise a `BenchError` unless all streams were written at every checkpoint."""
    wanted = round(round_s / _INTERVAL_S) * num_streams
    if found["num_saved"] < wanted:
        raise BenchError(
            f"in {round_s:.0f} s {found['num_saved']} records were written, not {wanted}: "
            "the disk does not keep up, and what checkpoints cost cannot be told"
        )


def _rate(found: Found) -> float:
    return float(found["num_replies"] / found["elapsed_s"])


def _checkpoint_results(
    name: str, rounds: Sequence[dict[str, Found]], share: float
) -> list[Result]:
    def both(measure: Any) -> tuple[list[float], list[float]]:
        none = [float(measure(found["none"])) for found in rounds]
        return [float(measure(found[_CHECKPOINT])) for found in rounds], none

    rates, rates_none = both(_rate)
    tails, tails_none = both(lambda found: found["p99.9_us"])
    ratios = [a / b for a, b in zip(rates, rates_none, strict=True)]
    ratios_of_tails = [b / a for a, b in zip(tails, tails_none, strict=True)]
    written = [each[_CHECKPOINT] for each in rounds]
    num_bytes = median(each["num_bytes_written"] / each["num_saved"] for each in written)
    return [
        Result(
            benchmark="durability",
            case=f"{name} checkpoint float32 cpu",
            value=median(rates),
            unit="messages/s",
            reference="none",
            reference_value=median(rates_none),
            target=_THROUGHPUT_TARGET,
            note=f"{_range(ratios)}; {num_bytes:,.0f} bytes a stream; "
            f"others took up to {share:.0%} of the machine",
        ),
        Result(
            benchmark="durability",
            case=f"{name} checkpoint p99.9 float32 cpu",
            value=median(tails),
            unit="us",
            reference="none",
            reference_value=median(tails_none),
            target=_LATENCY_TARGET,
            note=_range(ratios_of_tails),
        ),
    ]


def _range(ratios: Sequence[float]) -> str:
    return f"{len(ratios)} rounds, {min(ratios):.2f} to {max(ratios):.2f}"


def _always_results(
    name: str, rounds: Sequence[dict[str, Found]], directory: Path
) -> Iterator[Result]:
    found = [each[_ALWAYS] for each in rounds]
    commits = sum(each["num_commits"] for each in found)
    num_bytes = round(sum(each["num_bytes_written"] for each in found) / commits)
    yield Result(
        benchmark="durability",
        case=f"{name} always float32 cpu",
        value=median(map(_rate, found)),
        unit="messages/s",
        reference="none",
        reference_value=median(_rate(each["none"]) for each in rounds),
        note=f"{sum(each['num_saved'] for each in found) / commits:,.0f} streams a commit",
    )
    synced_us = fsync_us(directory, num_bytes)
    for quantile, reference_us in zip((50, 99), np.percentile(synced_us, (50, 99)), strict=True):
        yield Result(
            benchmark="durability",
            case=f"{name} always p{quantile} float32 cpu",
            value=median(each[f"p{quantile}_us"] for each in found),
            unit="us",
            reference="fdatasync",
            reference_value=float(reference_us),
            note=f"of {num_bytes / 1e3:,.0f} kB, as much as a commit writes",
        )


def fsync_us(directory: Path, num_bytes: int) -> list[float]:
    """Return times of a write with its fdatasync, in microseconds.

    Each write overwrites what the file holds already, as LMDB does.
    """
    data = os.urandom(max(1, num_bytes))
    times_us = []
    with tempfile.TemporaryFile(dir=directory) as file:
        number = file.fileno()
        for _ in range(1 + _NUM_FSYNCS):
            began_s = time.perf_counter()
            os.pwrite(number, data, 0)
            os.fdatasync(number)
            times_us.append((time.perf_counter() - began_s) * 1e6)
    return times_us[1:]  # the first one had to allocate the file's blocks
