"""What a shard admits: why it says `busy`, rates of steps, and what one user may take.

A rate is kept by one number: until when the steps of before have been paid for. A step is admitted
while that is less than `BURST_NS` ahead; so a second's steps may come at once, and what is more
than that in one request has its turn too, when nothing is owed. No clock is divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn_client.protocol import ErrorCode, error_reply

__all__ = [
    "BURST_NS",
    "USER_BUDGET_BYTES",
    "Limit",
    "StepRate",
    "UserBudget",
    "busy_reply",
    "charge_steps",
    "ns_per_step",
    "user_budget_at",
    "wait_of_steps",
]

_NS_PER_S = 1_000_000_000
BURST_NS = _NS_PER_S


class Limit(IntEnum):
    """What a request met that is told `busy`; `detail` has the name in lower case as ``limit``."""

    ROOM = 0  # memory, streams of all users, or what may wait
    USER_STREAMS = 1
    USER_BYTES = 2
    USER_STEPS = 3
    STEPS = 4
    MOVING = 5  # none: a drain holds the stream


_TEXTS: Mapping[Limit, str] = {
    Limit.ROOM: "there is no room now; nothing was changed: try again a little later",
    Limit.USER_STREAMS: "this user has as many streams as one may have; nothing was changed: close "
    "some, or try again later",
    Limit.USER_BYTES: "this user's streams take as many bytes as they may; nothing was changed: "
    "close some, or try again later",
    Limit.USER_STEPS: "this user has made as many steps as he may for now; nothing was changed: "
    "try again later",
    Limit.STEPS: "the server has made as many steps as it may for now; nothing was changed: try "
    "again later",
    Limit.MOVING: "the stream is on its way from one server to another; nothing was changed: try "
    "again a little later",
}


class StepRate(Struct):
    """How many steps a second are admitted."""

    ns_per_step: I64  # 0: any number
    paid_until_ns: I64


class UserBudget(Struct):
    """What one user may take of a shard, and takes."""

    num_streams: I64  # in memory
    max_streams: I64
    num_bytes: I64  # of their rows and of the replies kept for them
    max_bytes: I64  # 0: any number
    steps: StepRate


USER_BUDGET_BYTES = UserBudget.dtype.itemsize
user_budget_at = pointer_to(UserBudget)


def ns_per_step(steps_per_s: int, num_shards: int) -> int:
    """Return what a shard, which has its part of a rate, keeps of it; 0 for no bound."""
    return -(-num_shards * _NS_PER_S // steps_per_s) if steps_per_s else 0


def busy_reply(limit: int, retry_after_ms: int) -> list[Any]:
    """Return the error `busy`; its last value is ``retry_after_ms``, on the wire too."""
    kind = Limit(limit)
    detail = {"limit": kind.name.lower(), "retry_after_ms": retry_after_ms}
    return error_reply(ErrorCode.BUSY, _TEXTS[kind], **detail)


@jit
def wait_of_steps(rate: StepRate, now: int, num_steps: int) -> int:
    """Return for how many ns steps must wait; 0 or less: they may be computed now."""
    price = rate.ns_per_step
    if price == 0:
        return 0
    return rate.paid_until_ns - now + min(num_steps * price - BURST_NS, 0)


@jit
def charge_steps(rate: StepRate, now: int, num_steps: int) -> None:
    """Note that steps are computed."""
    rate.paid_until_ns = max(rate.paid_until_ns, now) + num_steps * rate.ns_per_step
