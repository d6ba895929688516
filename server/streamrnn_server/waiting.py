"""What a shard does between waves: wait, listen to Python, let go of idle streams."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32, load_i64, store_i64
from streamrnn.state import slab as h
from streamrnn_server import layout as w
from streamrnn_server.finish import count
from streamrnn_server.libzmq import (
    monotonic_ns,
    msg_close,
    msg_data,
    msg_init,
    msg_send,
    msg_size,
    poll_sockets,
    receive_frame,
    send_bytes,
)
from streamrnn_server.orders import obey
from streamrnn_server.reply import count_unsent
from streamrnn_server.saving import ask_for_checkpoint, is_all_saved, ms_until_checkpoint
from streamrnn_server.slots import header_of, is_clean, let_go, model_of

__all__ = ["listen", "read_clock", "sweep", "wait"]

_LISTEN_EVERY_NS = 200_000
_QUIET_MS = 50  # after which a shard that stops takes it that nothing is on its way
_SWEEP_EVERY_NS = 20_000_000
_MAX_SWEPT = 512
_IDLE_POLL_MS = 20


@jit
def read_clock(shard: int) -> int:
    """Read the clock and set NOW_NS.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    int
        Nanoseconds, monotonic.
    """
    now = monotonic_ns(load_i64(shard + w.CLOCK))
    store_i64(shard + w.NOW_NS, now)
    return now


@jit
def wait(shard: int) -> None:
    """Wait until a message or Python's word has come; end a stop when all is quiet.

    Parameters
    ----------
    shard : int
        Address of the shard, which has nothing to do.
    """
    state = load_i64(shard + w.STATE)
    if state == w.ENDED:
        return
    timeout_ms = -1
    if state == w.STOPPING:
        timeout_ms = _QUIET_MS
    elif load_i64(shard + w.IDLE_LIMIT_S) > 0:
        timeout_ms = _IDLE_POLL_MS
    checkpoint_ms = ms_until_checkpoint(shard)
    if checkpoint_ms >= 0 and (timeout_ms < 0 or checkpoint_ms < timeout_ms):
        timeout_ms = checkpoint_ms
    pair = load_i64(shard + w.PAIR)
    # Without the router, once it is no longer listened to, or its messages would end every wait.
    router = load_i64(shard + w.ROUTER) if state < w.DRAINED else pair
    count(shard, w.NUM_POLLS, 1)
    disk = load_i64(shard + w.DISK)
    has_come = poll_sockets(load_i64(shard + w.POLL_ITEMS), router, pair, disk, timeout_ms)
    now = read_clock(shard)
    if has_come & 2:
        store_i64(shard + w.LAST_PAIR_NS, 0)
    is_quiet = has_come & 1 == 0 or now > load_i64(shard + w.STOP_AT_NS)
    if state == w.STOPPING and is_quiet and has_come & 6 == 0:
        if is_all_saved(shard):
            _say_drained(shard, pair)
        else:
            ask_for_checkpoint(shard)


@jit
def _say_drained(shard: int, pair: int) -> None:
    """Tell Python that no more will come; it answers with the end when it has no more either."""
    out = load_i64(shard + w.OUT)
    store_i64(out + w.ASK, w.ASK_DRAINED)
    store_i64(out + w.ASK_IDENTITY_BYTES, 0)
    store_i64(out + w.ASK_BODY_BYTES, 0)
    if send_bytes(pair, out, w.ASK_HEAD_BYTES, False) == 0:
        store_i64(shard + w.STATE, w.DRAINED)


@jit
def listen(shard: int) -> None:
    """Take what Python has sent, if it is time to look: replies to send on, and commands.

    Parameters
    ----------
    shard : int
        Address of the shard.
    """
    now = load_i64(shard + w.NOW_NS)
    if now - load_i64(shard + w.LAST_PAIR_NS) < _LISTEN_EVERY_NS:
        return
    store_i64(shard + w.LAST_PAIR_NS, now)
    pair = load_i64(shard + w.PAIR)
    identity = load_i64(shard + w.IDENTITY_MESSAGE)
    payload = load_i64(shard + w.PAYLOAD_MESSAGE)
    while True:
        size = receive_frame(pair, identity)
        if size < 0:
            return
        receive_frame(pair, payload)
        if size == 0:
            obey(shard, msg_data(payload), msg_size(payload))
        else:
            _send_on(shard, identity, payload)


@jit
def _send_on(shard: int, identity: int, payload: int) -> None:
    """Send a reply of Python's; if it cannot be sent, let go of both frames."""
    router = load_i64(shard + w.ROUTER)
    error = msg_send(router, identity, True)
    if error == 0:
        error = msg_send(router, payload, False)
    if error == 0:
        count(shard, w.NUM_REPLIES, 1)
        return
    count_unsent(shard, error)
    msg_close(identity)
    msg_close(payload)
    msg_init(identity)
    msg_init(payload)


@jit
def sweep(shard: int) -> None:
    """Let go of streams that have been idle for too long, a few at a time.

    With a state directory they are on disk, and come back at the next message.

    Parameters
    ----------
    shard : int
        Address of the shard. Nothing is done without an idle limit.
    """
    limit_s = load_i64(shard + w.IDLE_LIMIT_S)
    now = load_i64(shard + w.NOW_NS)
    if limit_s == 0 or now - load_i64(shard + w.SWEEP_NS) < _SWEEP_EVERY_NS:
        return
    store_i64(shard + w.SWEEP_NS, now)
    now_s = (now - load_i64(shard + w.STARTED_NS)) // 1_000_000_000
    model = model_of(shard, load_i64(shard + w.SWEEP_MODEL))
    place = load_i64(shard + w.SWEEP_PLACE)
    last = min(place + _MAX_SWEPT, load_i64(model + w.NUM_FRESH))
    while place < last:
        slot = load_i64(model + w.FIRST_SLOT) + place
        header = header_of(shard, slot)
        if is_clean(header) and now_s - load_i32(header + h.LAST_USED_S) > limit_s:
            let_go(shard, slot)
            is_kept = load_i64(shard + w.CAN_LOOK_UP)
            count(shard, w.NUM_SPILLED_IDLE if is_kept else w.NUM_EVICTED_IDLE, 1)
        place += 1
    if place >= load_i64(model + w.NUM_FRESH):
        place = 0
        following = load_i64(shard + w.SWEEP_MODEL) + 1
        if following == load_i64(shard + w.NUM_MODELS):
            following = 0
        store_i64(shard + w.SWEEP_MODEL, following)
    store_i64(shard + w.SWEEP_PLACE, place)
