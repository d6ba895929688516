"""Groups of journal entries on their way to disk, and the requests that wait for them.

One group is on its way at a time; what comes meanwhile is the next one. A shard with nothing else
to do sends it at once; one that is busy lets it grow for a while, for each group costs about as
much, whatever is in it. A request waits for all entries before its answer: that is no more than for
its own, since groups come to disk in turn.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import field_address
from streamrnn_server.shard.libzmq import msg_data, receive_frame, send_bytes
from streamrnn_server.shard.memory.journal import (
    GroupAck,
    JournalOrder,
    group_ack_at,
    is_full,
    journal_order_at,
)
from streamrnn_server.shard.requests.queue import append, pop_first
from streamrnn_server.shard.requests.request import request_of
from streamrnn_server.shard.structs import Shard

__all__ = ["exchange_groups", "tell_covered"]

_ORDER_BYTES = JournalOrder.dtype.itemsize
_ACK_BYTES = GroupAck.dtype.itemsize
_GROUP_EVERY_NS = 2_000_000  # of a shard that is busy


@jit
def exchange_groups(shard: Shard, is_idle: bool) -> None:
    """Take the answer for a group, send the next one, and let go of requests that are durable."""
    journal = shard.journal
    if journal.socket == 0:
        return
    if journal.is_in_flight:
        message = field_address(shard, "identity_message")
        if receive_frame(journal.socket, message) >= _ACK_BYTES:
            ack = group_ack_at(msg_data(message))
            if ack.needs_checkpoint:
                shard.checkpoint_requested = 1
            if ack.is_done:
                journal.is_in_flight = 0
                if journal.overflowed_at <= journal.num_covered:
                    journal.num_synced = max(journal.num_synced, ack.end)
    is_due = is_idle or is_full(journal) or shard.now_ns - journal.sent_ns > _GROUP_EVERY_NS
    if journal.is_in_flight == 0 and journal.num_entries > 0 and is_due:
        journal.sent_ns = shard.now_ns
        order = journal_order_at(shard.out)
        order.num_bytes = journal.used_bytes
        order.at = journal.filling
        order.num_entries = journal.num_entries
        order.end = journal.num_appended
        order.began_at = journal.began_at
        journal.filling, journal.other = journal.other, journal.filling
        journal.used_bytes, journal.num_entries = 0, 0
        journal.is_in_flight = 1
        send_bytes(journal.socket, shard.out, _ORDER_BYTES, False)
    queue, pool = shard.awaiting_group, shard.pool
    while queue.first != 0 and request_of(pool, queue.first).position <= journal.num_synced:
        append(pool, shard.finished, pop_first(pool, queue))


@jit
def tell_covered(shard: Shard) -> None:
    """Note that a checkpoint has ended well: records have all that was changed before it began."""
    journal = shard.journal
    if journal.socket == 0:
        return
    journal.num_covered = journal.began_at
    journal.num_synced = max(journal.num_synced, journal.num_covered)
    order = journal_order_at(shard.out)
    order.num_bytes, order.at, order.num_entries = 0, 0, 0
    order.end, order.began_at = journal.num_covered, journal.began_at
    send_bytes(journal.socket, shard.out, _ORDER_BYTES, False)
