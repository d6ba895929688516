"""What a shard does between batches: wait, listen to Python, evict idle streams."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import field_address
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.checkpoint.copy import is_all_checkpointed, ms_until_checkpoint
from streamrnn_server.shard.from_python import handle_command
from streamrnn_server.shard.libzmq import (
    monotonic_ns,
    msg_data,
    msg_size,
    poll_sockets,
    receive_frame,
)
from streamrnn_server.shard.memory.clients import find_client
from streamrnn_server.shard.streams.dirty import ask_for_checkpoint
from streamrnn_server.shard.structs import Shard, ShardState
from streamrnn_server.shard.to_python import tell_drained
from streamrnn_server.shard.wire.reply import send_reply

__all__ = ["listen", "read_clock", "wait"]

_LISTEN_EVERY_NS = 200_000
_QUIET_MS = 50  # after so much silence a shard that stops takes no more messages
_IDLE_POLL_MS = 20


@jit
def read_clock(shard: Shard) -> int:
    """Set ``shard.now_ns`` to the monotonic clock, and return it."""
    now = monotonic_ns(field_address(shard, "clock"))
    shard.now_ns = now
    return now


@jit
def wait(shard: Shard) -> None:
    """Wait for a message or a command; end a stop when nothing more comes."""
    state = shard.state
    if state == ShardState.ENDED:
        return
    timeout_ms = -1
    if state == ShardState.STOPPING:
        timeout_ms = _QUIET_MS
    elif shard.idle_limit_s > 0:
        timeout_ms = _IDLE_POLL_MS
    checkpoint_ms = ms_until_checkpoint(shard)
    if checkpoint_ms >= 0 and (timeout_ms < 0 or checkpoint_ms < timeout_ms):
        timeout_ms = checkpoint_ms
    pair = shard.pair
    # Without the router, once it is no longer listened to, or its messages would end every wait.
    router = shard.router if state < ShardState.DRAINED else pair
    shard.counters.num_polls += 1
    items, disk, journal = field_address(shard, "poll_items"), shard.disk, shard.journal.socket
    has_come = poll_sockets(items, router, pair, disk, journal, timeout_ms)
    now = read_clock(shard)
    shard.step_times.looked_ns = now
    if has_come & 2:
        shard.last_pair_ns = 0
    is_quiet = has_come & 1 == 0 or now > shard.stop_at_ns
    if state == ShardState.STOPPING and is_quiet and has_come & 14 == 0:
        if is_all_checkpointed(shard):
            if tell_drained(shard):
                shard.state = ShardState.DRAINED
        else:
            ask_for_checkpoint(shard)


@jit
def listen(shard: Shard) -> None:
    """Receive what Python has sent, if it is time to look: replies to forward, and commands."""
    now = shard.now_ns
    if now - shard.last_pair_ns < _LISTEN_EVERY_NS:
        return
    shard.last_pair_ns = now
    pair = shard.pair
    identity = field_address(shard, "identity_message")
    payload = field_address(shard, "payload_message")
    while True:
        size = receive_frame(pair, identity)
        if size < 0:
            return
        receive_frame(pair, payload)
        if size == 0:
            num_bytes = msg_size(payload)
            if num_bytes >= w.COMMAND_BYTES:
                handle_command(shard, w.command_at(msg_data(payload)), num_bytes)
        else:
            _forward(shard, identity, payload)


@jit
def _forward(shard: Shard, identity: int, payload: int) -> None:
    """Send on a reply of Python's."""
    at, num_bytes = msg_data(identity), msg_size(identity)
    client = find_client(shard.clients, at, num_bytes)
    send_reply(shard, client, at, num_bytes, msg_data(payload), msg_size(payload))
