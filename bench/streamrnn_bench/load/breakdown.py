"""Where the time of single steps went: the generator's own times beside the server's.

Both time the same steps, one in about a thousand, by the same sum of a stream's id and a step's
number (`streamrnn_server.shard.memory.step_times`). A step's time on the wire is what the generator
saw less what the server did, each by its own clock: no clocks are compared, unless they are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn_bench.load.senders import Timed
from streamrnn_bench.report.results import aligned

__all__ = ["Breakdown", "breakdown_of"]

_LEAST = 10  # steps, of which parts are told
_SLOWEST = 0.01
_LOW_32 = 0xFFFF_FFFF
_NEEDED = (
    *("hash", "seq", "received_ns", "decoded_ns", "gather_ns", "kernel_ns", "commit_ns"),
    *("committed_ns", "reply_ns", "encoded_ns", "sent_ns", "unread_ns"),
    *("num_batches", "num_rows", "code"),
)


@dataclass(frozen=True)
class Breakdown:
    """Parts of the times of some steps.

    Attributes
    ----------
    parts_us : dict of str to ndarray, shape (num_steps,), float64
        In the order of a step's way. Of each step they are together its `total_us`.
    total_us : ndarray, shape (num_steps,), float64
        From when a step was due to its answer.
    unread_us : ndarray, shape (num_steps,), float64
        What of the wire's part it may have lain in the server's socket, at most.
    rows_of_a_batch : float
        On average.
    """

    parts_us: Mapping[str, NDArray[np.float64]]
    total_us: NDArray[np.float64]
    unread_us: NDArray[np.float64]
    rows_of_a_batch: float

    @property
    def details(self) -> dict[str, Any]:
        """What a `Result` tells; ``breakdown_us`` are the means, which add up."""
        slowest = self._slowest()
        return {
            "breakdown_us": {name: float(us.mean()) for name, us in self.parts_us.items()},
            "breakdown": {
                "num_timed": len(self.total_us),
                "p50_us": {name: _percentile(us, 50) for name, us in self.parts_us.items()},
                "p99_us": {name: _percentile(us, 99) for name, us in self.parts_us.items()},
                "num_slowest": len(slowest),
                "slowest_us": {n: float(us[slowest].mean()) for n, us in self.parts_us.items()},
                "unread_p99_us": _percentile(self.unread_us, 99),
                "rows_of_a_batch": self.rows_of_a_batch,
            },
        }

    def _slowest(self) -> NDArray[np.int64]:
        """Return the indices of the slowest steps, of one in a hundred."""
        number = max(1, round(_SLOWEST * len(self.total_us)))
        return np.argsort(self.total_us)[-number:]

    def __str__(self) -> str:
        slowest = self._slowest()
        of_slowest = f"slowest {len(slowest)}" if len(slowest) > 1 else "slowest"
        rows: list[Sequence[str]] = [("us of a step", "mean", "p50", "p99", of_slowest)]
        for name, us in (*self.parts_us.items(), ("from due to answer", self.total_us)):
            values = us.mean(), _percentile(us, 50), _percentile(us, 99), us[slowest].mean()
            rows.append((name, *(f"{value:,.1f}" for value in values)))
        error = self.total_us.std() / max(self.total_us.mean(), 1e-9) / len(self.total_us) ** 0.5
        unread = _percentile(self.unread_us, 99), self.unread_us[slowest].mean()
        return (
            f"{aligned(rows, left=(0,))}\n\n"
            f"of {len(self.total_us):,} steps, one in about a thousand (the mean of all is within "
            f"{2 * error:.0%} of theirs); means add up, percentiles do not. Wire is what this "
            "process saw less what the server did: the network, both ends' sockets, and waiting "
            f"there to be read (in the server's at most {unread[0]:,.0f} us for 99 %, "
            f"{unread[1]:,.0f} us for the slowest). Batches had {self.rows_of_a_batch:,.1f} rows."
        )


def breakdown_of(told: Any, timed: Sequence[NDArray[Any]]) -> Breakdown | str:
    """Match what a server tells of steps with a generator's times; or say why that is not possible.

    ``told`` is what ``stats ["step_times"]`` has answered; ``timed`` are records of `Timed`.
    """
    columns = told.get("step_times") if isinstance(told, Mapping) else None
    if not isinstance(columns, Mapping) or any(name not in columns for name in _NEEDED):
        return "the server does not tell where the time of steps goes"
    server = {name: np.array(columns[name], np.int64) for name in _NEEDED}
    keys = zip(server["hash"].tolist(), server["seq"].tolist(), strict=True)
    known = {key: k for k, key in enumerate(keys)}
    own, theirs = [], []
    for records in timed:
        for each in records:
            k = known.get((int(each["hash"]) & _LOW_32, int(each["seq"])), -1)
            if k >= 0 and _is_same(server, k, each):
                own.append(each)
                theirs.append(k)
    if len(own) < _LEAST:
        return f"{len(own)} steps were timed, one in about a thousand: too few to tell parts"
    return _split(
        np.array(own, Timed.dtype),
        {name: values[theirs] for name, values in server.items()},
        told.get("durability") == "always",
    )


def _is_same(server: Mapping[str, NDArray[np.int64]], k: int, own: Any) -> bool:
    """Tell whether a server's record can be of a message of ours, which it has computed.

    It may be of somebody else's, or of one that was answered without being computed.
    """
    took_ns = server["encoded_ns"][k] - server["decoded_ns"][k]
    is_computed = server["num_batches"][k] > 0 and server["code"][k] == 0
    return bool(is_computed and took_ns <= own["answered_ns"] - own["sent_ns"])


def _split(
    own: NDArray[Any], server: Mapping[str, NDArray[np.int64]], is_always: bool
) -> Breakdown:
    sent_ns, answered_ns = own["sent_ns"], own["answered_ns"]
    received_ns, decoded_ns = server["received_ns"], server["decoded_ns"]
    handed_ns, encoded_ns = server["sent_ns"], server["encoded_ns"]
    if ((sent_ns <= decoded_ns) & (encoded_ns <= answered_ns)).all():  # one clock, of one machine
        # The server may have begun to take messages before this one came, and this reply may have
        # been read before the shard had its turn again.
        received_ns = np.maximum(received_ns, sent_ns)
        handed_ns = np.minimum(handed_ns, answered_ns)
        wire = {"wire: request": received_ns - sent_ns, "wire: reply": answered_ns - handed_ns}
    else:
        wire = {"wire": answered_ns - sent_ns - (handed_ns - received_ns)}
    batch_ns = server["gather_ns"] + server["commit_ns"]
    waited_ns = server["committed_ns"] - decoded_ns - batch_ns - server["kernel_ns"]
    parts = {
        "due, not sent": sent_ns - own["due_ns"],
        **wire,
        "receive": decoded_ns - received_ns,
        "queue": waited_ns,
        "batch": batch_ns,
        "kernel": server["kernel_ns"],
        "disk" if is_always else "other work": server["reply_ns"] - server["committed_ns"],
        "encode": encoded_ns - server["reply_ns"],
        "send": handed_ns - encoded_ns,
    }
    return Breakdown(
        {name: ns / 1e3 for name, ns in parts.items()},
        (answered_ns - own["due_ns"]) / 1e3,
        server["unread_ns"] / 1e3,
        float(server["num_rows"].sum() / server["num_batches"].sum()),
    )


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(values, percent, method="higher"))
