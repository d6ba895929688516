"""Metrics for Prometheus: what `stats` tells and shards count, read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from streamrnn_client.protocol import HOT_METHODS, ErrorCode
from streamrnn_server.control.about.stats import batch_totals, method_totals
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.monitor.recorded import diagnostic_metrics
from streamrnn_server.shard.memory.tally import BUCKETS_LOG2
from streamrnn_server.storage.durations import Durations
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["Metrics"]

_FIRST_LOG2, _LAST_LOG2 = 10, 34  # of buckets: from 1.024 µs to 17 s, doubling
_MAX_BATCH_LOG2 = 12


class _From(NamedTuple):
    """A metric of numbers that `stats` tells; with a label, one for each of its values."""

    help: str
    keys: str | Mapping[str, str]
    label: str = ""
    scale: float = 1.0


_COUNTERS = {
    "restarts": _From("Starts by the supervisor after a crash.", "num_restarts"),
    "replies": _From("Replies handed to ZeroMQ.", "num_replies"),
    "replies_dropped": _From(
        "Replies that could not be sent.",
        {
            "slow_reader": "num_dropped_slow_reader",
            "peer_gone": "num_dropped_peer_gone",
            "other": "num_dropped_other",
        },
        "reason",
    ),
    "messages_refused": _From(
        "Messages whose frames were wrong, or that could not even be answered.",
        {
            "extra_frames": "num_extra_frames",
            "without_payload": "num_without_payload",
            "unanswerable": "num_too_broken_to_answer",
        },
        "reason",
    ),
    "calls_refused": _From("Calls beyond what Python may be asked.", "num_calls_refused"),
    "errors_without_text": _From(
        "Errors answered without a text, for Python was asked too much.",
        "num_errors_without_words",
    ),
    "internal_errors": _From("Faults of the server's own.", "num_errors_internal"),
    "log_lines_dropped": _From("Lines of the log that were not written.", "num_dropped_log_lines"),
    "duplicate_steps": _From("Steps that came again and were not applied.", "num_duplicates"),
    "resets": _From("States set back.", "num_resets"),
    "streams_opened": _From("Streams made.", "num_opened"),
    "streams_closed": _From(
        "Streams that have ended.",
        {"client": "num_closed", "idle": "num_evicted_idle", "expired": "num_expired"},
        "reason",
    ),
    "streams_evicted": _From(
        "Streams that left memory and stay on disk.",
        {
            "idle": "num_spilled_idle",
            "max_streams": "num_spilled_for_room",
            "memory": "num_spilled_for_memory",
        },
        "reason",
    ),
    "streams_looked_up": _From("Streams looked for on disk.", "num_looked_up"),
    "streams_restored": _From("Streams brought back from disk.", "num_restored"),
    "streams_swapped": _From(
        "Streams that went on as another version of their model.", "num_swapped"
    ),
    "inputs_replayed": _From("Inputs that swapped streams have been primed with.", "num_primed"),
    "streams_quarantined": _From("Streams whose state turned NaN.", "num_quarantined"),
    "requests_refused_for_room": _From(
        "Requests for which there was no memory.", "num_refused_for_room"
    ),
    "requests_refused": _From(
        "Requests refused for a budget or a deadline.",
        {
            "user_streams": "num_refused_user_streams",
            "user_bytes": "num_refused_user_bytes",
            "user_steps": "num_refused_user_steps",
            "steps": "num_refused_steps",
            "late": "num_late",
        },
        "reason",
    ),
    "records_refused": _From("Records that could not be used.", "num_records_refused"),
    "connections_cut": _From("Connections cut by the server.", "num_connections_cut"),
    "checkpoints": _From(
        "Checkpoints of shards.",
        {"ok": "num_checkpoints", "failed": "num_checkpoints_failed"},
        "result",
    ),
    "streams_saved": _From("Records of streams brought to disk.", "num_saved"),
    "state_written_bytes": _From("Bytes of records written.", "num_bytes_written"),
    "journal_groups": _From("Groups of inputs made durable.", "num_groups"),
    "journal_written_bytes": _From("Bytes of inputs written.", "num_journal_bytes_written"),
}
_GAUGES = {
    "connections": _From("Connections of clients.", "num_connections"),
    "connections_max": _From("Connections beyond which new ones are cut.", "max_connections"),
    "streams_max": _From("Streams that may be open at once.", "max_streams"),
    "stored_streams": _From("Records of streams on disk.", "num_streams_on_disk"),
    "changed_streams": _From(
        "Streams with changes that no checkpoint has brought to disk.", "num_not_on_disk"
    ),
    "checkpoint_lag_seconds": _From(
        "Age of the oldest change that no checkpoint has brought to disk.", "checkpoint_lag_s"
    ),
    "checkpoint_age_seconds": _From("Time since the last commit.", "since_last_commit_s"),
    "memory_budget_bytes": _From("The memory budget.", "memory_budget_bytes"),
    "waiting_bytes": _From(
        "What waits for clients to read it, and for Python.",
        {"clients": "unread_bytes", "python": "asked_bytes"},
        "reader",
    ),
    "state_size_bytes": _From(
        "Disk that the state takes.",
        {"records": "records_bytes", "journal": "journal_bytes"},
        "part",
    ),
    "state_free_bytes": _From("Disk that is free where the state is.", "free_bytes"),
}


class Metrics(Collector):
    """All metrics of a server.

    Parameters
    ----------
    control : Control
    disk : StateDir or None
    """

    def __init__(self, control: Control, disk: StateDir | None) -> None:
        self._control, self._disk = control, disk
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, accepts: str = "") -> tuple[bytes, str]:
        """Return all metrics as one of the formats that a client accepts, and its type."""
        try:
            encode, content_type = choose_encoder(accepts)
        except Exception:  # it is the client's
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that there is now."""
        stats = self._control.stats()
        if self._disk is not None:
            stats |= self._disk.sizes()
        yield InfoMetricFamily(
            "streamrnn_build", "What serves, and how.", self._control.about.build_info
        )
        for kind, table in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, source in table.items():
                yield from _scalars(kind, name, source, stats)
        yield from self._by_shard(stats["shards"])
        yield from self._streams_and_memory(stats)
        yield from self._requests()
        yield from self._batches()
        yield from self._of_disk(stats)
        yield from diagnostic_metrics(stats.get("diagnostics"))

    def _by_shard(self, shards: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
        messages = CounterMetricFamily("streamrnn_messages", "Messages received.", labels=["shard"])
        waiting = GaugeMetricFamily(
            "streamrnn_requests_in_flight", "Requests that wait or are served.", labels=["shard"]
        )
        for number, shard in enumerate(shards):
            messages.add_metric([str(number)], shard["num_messages"])
            waiting.add_metric([str(number)], shard["num_requests_in_flight"])
        yield messages
        yield waiting

    def _streams_and_memory(self, stats: Mapping[str, Any]) -> Iterator[Metric]:
        num_working = min(stats["num_ready"], stats["num_streams"])
        num_frozen = min(stats["num_quarantined_now"], stats["num_streams"] - num_working)
        num_resting = stats["num_streams"] - num_working - num_frozen
        states = {"working": num_working, "resting": num_resting, "quarantined": num_frozen}
        yield _labelled("streams", "Streams in memory.", "state", states)
        yield _labelled("open_streams", "Streams open in memory.", "model", stats["models"])
        parts = stats["memory_parts_bytes"]
        yield _labelled("memory_used_bytes", "Of the memory budget, what is used.", "part", parts)

    def _requests(self) -> Iterator[Metric]:
        labels = ["method", "model"]
        times = HistogramMetricFamily(
            "streamrnn_request_duration_seconds",
            "Time from receiving a request to sending its reply.",
            labels=labels,
        )
        errors = CounterMetricFamily(
            "streamrnn_errors",
            "Errors answered, those of single items of a batch among them.",
            labels=[*labels, "code"],
        )
        for method, totals in method_totals(self._control.shards).items():
            for name, model in {**self._control.models.indices, "": -1}.items():
                num_requests = int(totals.times[model].sum())
                if num_requests or (name and method in HOT_METHODS):
                    buckets = _time_buckets(totals.times[model])
                    times.add_metric([method, name], buckets, totals.sum_ns[model] / 1e9)
                for code in ErrorCode:
                    if number := int(totals.errors[model, code]):
                        errors.add_metric([method, name, code.wire], number)
        calls = self._control.about.calls
        for (method, wire), number in calls.num_errors.copy().items():
            errors.add_metric([method, "", wire], number)
        yield times
        yield errors
        counter = CounterMetricFamily(
            "streamrnn_calls", "Calls that Python has answered.", labels=["method"]
        )
        for method, number in dict(calls.num_calls).items():
            counter.add_metric([method], number)
        yield counter
        durations = HistogramMetricFamily(
            "streamrnn_call_duration_seconds",
            "Time that Python took for calls, from their coming to it.",
            labels=["method"],
        )
        for method, taken in calls.times.copy().items():
            durations.add_metric([method], _duration_buckets(taken), taken.sum_s)
        yield durations

    def _batches(self) -> Iterator[Metric]:
        totals = batch_totals(self._control.shards)
        steps = CounterMetricFamily("streamrnn_steps", "Steps computed.", labels=["model"])
        sizes = HistogramMetricFamily(
            "streamrnn_batch_size", "Streams stepped together.", labels=["model"]
        )
        for name, model in self._control.models.indices.copy().items():
            steps.add_metric([name], int(totals.num_steps[model]))
            bounds = [2.0**k for k in range(_MAX_BATCH_LOG2 + 1)]
            counts = totals.sizes[model]
            sums = np.cumsum(counts)[: len(bounds)]
            buckets = _buckets(bounds, sums.tolist(), int(counts.sum()))
            sizes.add_metric([name], buckets, int(totals.num_rows[model]))
        yield steps
        yield sizes

    def _of_disk(self, stats: Mapping[str, Any]) -> Iterator[Metric]:
        if self._disk is None:
            return
        yield GaugeMetricFamily(
            "streamrnn_state_writable",
            "1 if the state directory can be written.",
            float(stats["read_only"] is None),
        )
        times = self._disk.saver.commit_times
        yield HistogramMetricFamily(
            "streamrnn_commit_duration_seconds",
            "Time that a commit took, from its first record to the disk.",
            _duration_buckets(times),
            times.sum_s,
        )


def _scalars(
    kind: Callable[..., Any], name: str, source: _From, stats: Mapping[str, Any]
) -> Iterator[Metric]:
    """Yield a metric, if `stats` tells it."""
    keys = {"": source.keys} if isinstance(source.keys, str) else source.keys
    known = {value: stats[key] for value, key in keys.items() if stats.get(key) is not None}
    if not known:
        return
    metric = kind(f"streamrnn_{name}", source.help, labels=[source.label] if source.label else [])
    for value, number in known.items():
        metric.add_metric([value] if source.label else [], number)
    yield metric


def _labelled(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = GaugeMetricFamily(f"streamrnn_{name}", help, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _time_buckets(times: NDArray[np.int64]) -> list[tuple[str, float]]:
    """Return the numbers of times up to powers of two of nanoseconds."""
    logs = range(_FIRST_LOG2, _LAST_LOG2 + 1)
    sums = np.cumsum(times)
    ends = [(k - BUCKETS_LOG2 + 1 << BUCKETS_LOG2) - 1 for k in logs]
    return _buckets([2.0**k / 1e9 for k in logs], sums[ends].tolist(), int(sums[-1]))


def _duration_buckets(times: Durations) -> list[tuple[str, float]]:
    sums = np.cumsum(list(times.counts)).tolist()
    return _buckets(times.bounds_s, sums[:-1], sums[-1])


def _buckets(bounds: Sequence[float], sums: Sequence[int], number: int) -> list[tuple[str, float]]:
    pairs = zip(map(floatToGoString, bounds), sums, strict=True)
    return [*((bound, float(count)) for bound, count in pairs), ("+Inf", float(number))]
