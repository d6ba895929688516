"""Histograms of times, to 0.4 % over all magnitudes, in 68 KiB whatever their number.

Every doubling of nanoseconds has 256 buckets of one width; times below 256 ns are exact. A
percentile is the upper end of the bucket in which it lies, but never above the largest time: it is
never too low, and at most 1/256 too high.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64
from streamrnn_bench.report.results import BenchError

__all__ = [
    "HISTOGRAM_SIZE",
    "MAX_NS",
    "NUM_BUCKETS",
    "PERCENTILES",
    "RELATIVE_ERROR",
    "Histogram",
    "note_time",
]

_STEPS_LOG2 = 8
_MAX_LOG2 = 42
MAX_NS = (1 << _MAX_LOG2) - 1
"""73 minutes: a longer time counts as this one, in percentiles; the mean has it as it was."""
NUM_BUCKETS = (_MAX_LOG2 - _STEPS_LOG2 + 1) << _STEPS_LOG2
RELATIVE_ERROR = 1 / (1 << _STEPS_LOG2)
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
# Behind the buckets: their sum, and the largest time.
_SUM, _MAX = NUM_BUCKETS, NUM_BUCKETS + 1
HISTOGRAM_SIZE = NUM_BUCKETS + 2
"""Numbers of `Histogram.counts`."""


@jit
def note_time(counts: int, time_ns: int) -> None:
    """Count a time, a negative one as 0; the address is of a `Histogram`'s counts."""
    time_ns = max(time_ns, 0)
    kept = min(time_ns, MAX_NS)
    doublings = 0
    while kept >> doublings >= 2 << _STEPS_LOG2:
        doublings += 1
    bucket = counts + 8 * ((doublings << _STEPS_LOG2) + (kept >> doublings))
    store_i64(bucket, load_i64(bucket) + 1)
    store_i64(counts + 8 * _SUM, load_i64(counts + 8 * _SUM) + time_ns)
    store_i64(counts + 8 * _MAX, max(load_i64(counts + 8 * _MAX), time_ns))


@jit
def _note_times(counts: int, times_ns: NDArray[np.int64]) -> None:
    for time_ns in times_ns:
        note_time(counts, time_ns)


def _ends_ns() -> NDArray[np.int64]:
    """Return the largest time of each bucket."""
    bucket = np.arange(NUM_BUCKETS)
    doublings = np.maximum((bucket >> _STEPS_LOG2) - 1, 0)
    ends: NDArray[np.int64] = ((bucket - (doublings << _STEPS_LOG2) + 1) << doublings) - 1
    return ends


_ENDS_NS = _ends_ns()


class Histogram:
    """How many times were how long.

    Attributes
    ----------
    counts : ndarray, shape (NUM_BUCKETS + 2,), int64
        One thread of compiled code may write it (`note_time`) while another reads it: single words,
        which may be of different moments.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self.counts: NDArray[np.int64] = (
            np.zeros(HISTOGRAM_SIZE, np.int64) if counts is None else counts
        )

    def note(self, times_ns: Iterable[int] | NDArray[np.int64]) -> None:
        """Count times in nanoseconds."""
        if not isinstance(times_ns, np.ndarray):
            times_ns = np.fromiter(times_ns, np.int64)
        _note_times(self.counts.ctypes.data, times_ns.astype(np.int64))

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return one histogram of the times of several."""
        whole = cls()
        for part in parts:
            whole.counts[:_MAX] += part.counts[:_MAX]
            whole.counts[_MAX] = max(whole.counts[_MAX], part.counts[_MAX])
        return whole

    def since(self, earlier: Histogram) -> Histogram:
        """Return the times that came after an earlier copy; their largest to its bucket's end."""
        later = Histogram(self.counts - earlier.counts)
        filled = np.flatnonzero(later.counts[:NUM_BUCKETS])
        later.counts[_MAX] = min(_ENDS_NS[filled[-1]], self.counts[_MAX]) if len(filled) else 0
        return later

    def copy(self) -> Histogram:
        """Return a copy, to which nothing is added meanwhile."""
        return Histogram(self.counts.copy())

    @property
    def number(self) -> int:
        """How many times were counted."""
        return int(self.counts[:NUM_BUCKETS].sum())

    @property
    def mean_ns(self) -> float:
        """Exact, of all times; 0 without any."""
        return float(self.counts[_SUM]) / max(self.number, 1)

    @property
    def max_ns(self) -> int:
        """The largest time, exact; 0 without any."""
        return int(self.counts[_MAX])

    def percentile_ns(self, percent: float) -> int:
        """Return a time that so many percent do not exceed; 0 without any.

        It is the one at place ceil(percent / 100 * n) of all n, at most `RELATIVE_ERROR` too high.
        """
        sums = np.cumsum(self.counts[:NUM_BUCKETS])
        if sums[-1] == 0:
            return 0
        place = max(1, int(np.ceil(percent / 100 * sums[-1] * (1 - 1e-15))))
        end = int(_ENDS_NS[np.searchsorted(sums, min(place, int(sums[-1])))])
        return min(end, self.max_ns)

    def percentiles_us(self) -> dict[str, float]:
        """Return percentiles by their name, such as ``"99.9"``, and ``"max"``, in µs."""
        named = {f"{percent:g}": self.percentile_ns(percent) / 1e3 for percent in PERCENTILES}
        return named | {"max": self.max_ns / 1e3}

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: each bucket that is not empty, by its number."""
        filled = np.flatnonzero(self.counts[:NUM_BUCKETS])
        return {
            "steps_log2": _STEPS_LOG2,
            "buckets": [[int(k), int(self.counts[k])] for k in filled],
            "sum_ns": int(self.counts[_SUM]),
            "max_ns": self.max_ns,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Histogram:
        """Read what `to_dict` returned; a `BenchError` if it is anything else."""
        if not isinstance(found, Mapping) or found.get("steps_log2") != _STEPS_LOG2:
            raise BenchError("no histogram of this version")
        pairs, whole = found.get("buckets"), cls()
        if not isinstance(pairs, list):
            raise BenchError("a histogram without buckets")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_count, pair)):
                raise BenchError(f"a bucket is {pair!r}; expected are its number and its count")
            if pair[0] >= NUM_BUCKETS:
                raise BenchError(f"there is no bucket {pair[0]}; there are {NUM_BUCKETS}")
            whole.counts[pair[0]] = pair[1]
        for place, name in ((_SUM, "sum_ns"), (_MAX, "max_ns")):
            if not _is_count(found.get(name)):
                raise BenchError(f"{name} of a histogram is {found.get(name)!r}")
            whole.counts[place] = found[name]
        return whole


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
