"""Load of other processes while measuring, by which rounds are chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["MachineLoad", "quieter_half"]

T = TypeVar("T")

_PROC = Path("/proc")
# Fields of the line "cpu" in /proc/stat: all but idle and iowait, and those counted twice.
_BUSY_FIELDS = (1, 2, 3, 6, 7, 8)
_UTIME, _STIME = 11, 12  # of /proc/PID/stat, counted behind the name's bracket


class MachineLoad:
    """Processor time of all processes but this one and its children."""

    def __init__(self) -> None:
        self._others_s, self._now_s = _others_s(), time.monotonic()

    def share(self) -> float:
        """Return their share of the machine since the last call, 0 to 1.

        In steps of about a hundredth; 0 where the system does not tell. Time that a virtual
        machine's host takes away counts too.
        """
        others_s, now_s = _others_s(), time.monotonic()
        used_s, passed_s = others_s - self._others_s, now_s - self._now_s
        self._others_s, self._now_s = others_s, now_s
        return min(max(used_s / (passed_s * (os.cpu_count() or 1)), 0.0), 1.0)


def quieter_half(rounds: Sequence[tuple[float, T]]) -> tuple[float, list[T]]:
    """Choose the half of the rounds with the least load, given (load, findings) pairs.

    Returns the largest load among the chosen ones, and their findings, at least one.
    """
    chosen = sorted(rounds, key=lambda each: each[0])[: (len(rounds) + 1) // 2]
    return chosen[-1][0], [found for _, found in chosen]


def _others_s() -> float:
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()
        busy = sum(int(fields[k]) for k in _BUSY_FIELDS)
        children = (_PROC / f"self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return 0.0
    return (busy - sum(_used(pid) for pid in ("self", *children))) / os.sysconf("SC_CLK_TCK")


def _used(pid: str) -> int:
    try:
        fields = (_PROC / pid / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[_UTIME]) + int(fields[_STIME])
