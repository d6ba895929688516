"""``streamrnn bench durability``: the cost of keeping streams on disk.

Servers of each durability take turns under the same load: many streams, all stepping all the time,
so that each has changed at every checkpoint. A server's shard, I/O and writing threads and the load
generator's two threads share the machine. A turn begins with a time to settle, lasts for a whole
number of checkpoints, and ends when the rest has been written. The disk has its turn too.
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

from streamrnn.state.journal import GROUP_HEAD_BYTES
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.processes import Load, load, serving, stopping_cleanly, temporary_model
from streamrnn_bench.server.replay import measure_replay
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
_MAX_FDATASYNCS = 3  # of a group, that `always` may take beside what `none` takes
_RATE_TARGETS = {_CHECKPOINT: 0.95, _ALWAYS: 0.5}
_TAIL_TARGETS = {_CHECKPOINT: 1 / 1.5, _ALWAYS: None}
_COUNTS = ("num_saved", "num_steps", "num_groups", "num_bytes_written", "num_journal_bytes_written")

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
        return found | {name: after[name] - before[name] for name in _COUNTS if name in after}


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

    Yields for `checkpoint` and `always` steps a second, and p50 and p99.9 of the round trip,
    against those with `none`; p50 of `always` against that with `none` and three fdatasyncs of as
    much as one group. Medians of the quieter half of the rounds. Then `measure_replay`. Raises a
    `BenchError` if a reply is wrong or missing, or streams are not written every second.
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
                    found[_ALWAYS]["fdatasync_us"] = _fdatasync_us(directory, found[_ALWAYS])
                    rounds.append((machine_load.share(), found))
            share, chosen = quieter_half(rounds)
            note = f"others took up to {share:.0%} of the machine"
            for durability in (_CHECKPOINT, _ALWAYS):
                yield from _results(f"{name} {durability}", chosen, durability, note)
        yield measure_replay(case, num_streams, directory)


def _check_writing(found: Found, num_streams: int, round_s: float) -> None:
    """Raise a `BenchError` unless all streams were written at every checkpoint."""
    wanted = round(round_s / _INTERVAL_S) * num_streams
    if found["num_saved"] < wanted:
        raise BenchError(
            f"in {round_s:.0f} s {found['num_saved']} records were written, not {wanted}: "
            "the disk does not keep up, and what checkpoints cost cannot be told"
        )


def _fdatasync_us(directory: Path, found: Found) -> float:
    """Return what the disk takes for as much as one group, at p50."""
    return median(fsync_us(directory, _group_bytes(found)))


def _group_bytes(found: Found) -> int:
    return GROUP_HEAD_BYTES + round(found["num_journal_bytes_written"] / found["num_groups"])


def _rate(found: Found) -> float:
    return float(found["num_replies"] / found["elapsed_s"])


def _bytes_a_step(found: Found) -> float:
    """Return how much is written for a step, in records and in the journal."""
    written = found["num_bytes_written"] + found["num_journal_bytes_written"]
    return float(written / found["num_steps"])


def _results(
    name: str, rounds: Sequence[dict[str, Found]], durability: str, note: str
) -> Iterator[Result]:
    """Yield what a durability costs."""
    found, none = ([each[key] for each in rounds] for key in (durability, "none"))
    ratios = [_rate(a) / _rate(b) for a, b in zip(found, none, strict=True)]
    num_bytes = median(map(_bytes_a_step, found))
    yield Result(
        benchmark="durability",
        case=f"{name} float32 cpu",
        value=median(map(_rate, found)),
        unit="messages/s",
        reference="none",
        reference_value=median(map(_rate, none)),
        target=_RATE_TARGETS[durability],
        note=f"{num_bytes:,.0f} bytes a step; {_range(ratios)}; {note}",
        samples=tuple(map(_rate, found)),
        reference_samples=tuple(map(_rate, none)),
    )
    for quantile in ("p50", "p99.9"):
        times, times_none = ([each[f"{quantile}_us"] for each in of] for of in (found, none))
        ratios = [b / a for a, b in zip(times, times_none, strict=True)]
        yield Result(
            benchmark="durability",
            case=f"{name} {quantile} float32 cpu",
            value=median(times),
            unit="us",
            reference="none",
            reference_value=median(times_none),
            target=None if quantile == "p50" else _TAIL_TARGETS[durability],
            note=_range(ratios),
            samples=tuple(times),
            reference_samples=tuple(times_none),
        )
    if durability == _ALWAYS:
        yield _against_disk(name, found, none)


def _against_disk(name: str, found: Sequence[Found], none: Sequence[Found]) -> Result:
    """Compare p50 with what the disk and a server without one would need."""
    synced_us = [each["fdatasync_us"] for each in found]
    steps = [each["num_steps"] / each["num_groups"] for each in found]
    limits = [
        _MAX_FDATASYNCS * us + each["p50_us"] for us, each in zip(synced_us, none, strict=True)
    ]
    return Result(
        benchmark="durability",
        case=f"{name} p50 and disk float32 cpu",
        value=median(each["p50_us"] for each in found),
        unit="us",
        reference=f"{_MAX_FDATASYNCS}_fdatasync_and_none",
        reference_value=median(limits),
        target=1.0,
        note=f"an fdatasync of {median(map(_group_bytes, found)) / 1e3:,.0f} kB, a group of "
        f"{median(steps):,.0f} steps: {median(synced_us):,.0f} us",
    )


def _range(ratios: Sequence[float]) -> str:
    return f"{len(ratios)} rounds, {min(ratios):.2f} to {max(ratios):.2f}"


def fsync_us(directory: Path, num_bytes: int) -> list[float]:
    """Return times of a write with its fdatasync, in microseconds.

    Each write overwrites what the file holds already: the disk alone is asked.
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
