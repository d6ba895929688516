"""A start with a journal to replay, as a crash before the next checkpoint leaves it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn.state.journal import (
    JOURNAL_DIRECTORY,
    ChangeKind,
    Entry,
    SegmentHead,
    SegmentWriter,
    encode_entry,
)
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.processes import server, stopping_cleanly, temporary_model
from streamrnn_bench.step.cases import Case
from streamrnn_client import Client
from streamrnn_client.protocol import canonical_id

__all__ = ["measure_replay"]

_NUM_STEPS = 25  # of each stream
_WINDOW_LOG2 = 4
_SEGMENT_BYTES = 64 * 2**20  # as the server makes them
_MAX_READY_S = 3.0
_NUM_LOOKED_AT = 50


def measure_replay(case: Case, num_streams: int, directory: Path) -> Result:
    """Measure the start of a server that has 25 steps of each stream to replay.

    Returns it against the start with an empty directory. Raises a `BenchError` if a step is missing
    afterwards, or the next one differs from the Engine's by a bit.
    """
    model = case.model()
    shape = _NUM_STEPS + 1, num_streams, case.input_size
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with (
        stopping_cleanly(),
        temporary_model(case) as path,
        tempfile.TemporaryDirectory(prefix="streamrnn-bench-", dir=directory) as made,
    ):
        empty, full = Path(made) / "empty", Path(made) / "full"
        arguments = ("--durability", "always", f"--max-streams={num_streams}", "--state-dir")
        with server(path, *arguments, str(empty)) as running:
            empty_s = running.ready_s
        _write_journal(full / JOURNAL_DIRECTORY, model, x[:-1])
        with server(path, *arguments, str(full)) as running:
            _check_streams(running.endpoint, model, x)
    return Result(
        benchmark="durability",
        case=f"{case} {num_streams * _NUM_STEPS} steps to replay: start until ready float32 cpu",
        value=running.ready_s,
        unit="s",
        reference="nothing_to_replay",
        reference_value=empty_s,
        note=f"wanted: 250,000 within {_MAX_READY_S:.0f} s",
    )


def _write_journal(directory: Path, model: Model, x: NDArray[np.float32]) -> None:
    """Write inputs [T, N, I], a step of each stream a group."""
    directory.mkdir(parents=True)
    ids = [canonical_id(k) for k in range(x.shape[1])]
    opened = [Entry(ChangeKind.OPEN, 0, stream, 1, 1, _WINDOW_LOG2, b"") for stream in ids]
    groups = [opened]
    head = SegmentHead(1, 0, 0, Program(model).arithmetic, (("model", model.fingerprint),))
    segment = SegmentWriter(directory, head)
    for seq in range(len(x) + 1):
        step = [
            Entry(ChangeKind.STEP, 0, stream, 1, seq + 1, seq, row.tobytes())
            for stream, row in zip(ids, x[seq - 1], strict=True)
        ]
        if segment.num_bytes > _SEGMENT_BYTES:
            segment.close()
            head = head._replace(number=head.number + 1)
            segment = SegmentWriter(directory, head)
        segment.append(seq, len(ids), b"".join(map(encode_entry, step if seq else groups[0])))
    segment.close()


def _check_streams(endpoint: str, model: Model, x: NDArray[np.float32]) -> None:
    engine = Engine(model)
    with Client(endpoint) as client:
        for k in np.linspace(0, x.shape[1] - 1, min(_NUM_LOOKED_AT, x.shape[1])).astype(int):
            stream = client.stream(int(k), window=1 << _WINDOW_LOG2)
            if stream.last_seq != len(x) - 1:
                raise BenchError(f"stream {k} came back with step {stream.last_seq}")
            expected = engine.steps(int(k), x[:, k])
            if stream.step(x[-1, k]).tobytes() != expected[-1].tobytes():
                raise BenchError(f"stream {k} goes on with other outputs than before")
