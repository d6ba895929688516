"""The shard's loop: one thread, one socket, from the message to the reply without Python."""

from __future__ import annotations

from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.cpu.step import step_rows
from streamrnn.kernels.jit import jit
from streamrnn_server.shard.batch.commit import commit, keep_rows
from streamrnn_server.shard.batch.schedule import batch_of, can_step, choose_model, gather
from streamrnn_server.shard.batch.timing import note_batch
from streamrnn_server.shard.checkpoint.copy import can_checkpoint, checkpoint
from streamrnn_server.shard.checkpoint.groups import exchange_groups
from streamrnn_server.shard.memory.step_times import begin_gather, begin_kernel, end_kernel
from streamrnn_server.shard.models import tell_swapped
from streamrnn_server.shard.poll import listen, read_clock, wait
from streamrnn_server.shard.recorder import begin_recordings
from streamrnn_server.shard.streams.admit import admit
from streamrnn_server.shard.streams.sweep import sweep
from streamrnn_server.shard.structs import Shard, ShardState, shard_at
from streamrnn_server.shard.wire.receive import receive
from streamrnn_server.shard.wire.reply import reply

__all__ = ["serve", "turn"]


@jit
def serve(address: int) -> None:
    """Serve until Python sends `CommandKind.END`.

    ``address`` is the shard's; no other thread uses it, its sockets or its memory meanwhile.
    """
    shard = shard_at(address)
    float_mode = enter_float_mode()
    read_clock(shard)
    while shard.state != ShardState.ENDED:
        if turn(shard):
            wait(shard)
    leave_float_mode(float_mode)


@jit(inline="always")
def turn(shard: Shard) -> bool:
    """Run the loop once: receive, compute one batch, reply; return whether to wait.

    The shard waits if nothing is left to do before the next message or the next deadline.
    """
    num_messages = receive(shard)
    admit(shard)
    model = choose_model(shard)
    if model:
        plan, batch, times = plan_at(model.plan), batch_of(shard), shard.step_times
        begin_gather(times)
        num_rows = gather(shard, plan, model)
        if num_rows > 0:
            keep_rows(shard, model, num_rows)
            begin_recordings(shard, batch.slots, num_rows)
            begin_kernel(times)
            step_rows(plan, batch.rows, batch.xs, batch.ys, num_rows)
            end_kernel(times)
            commit(shard, model, num_rows)
            note_batch(shard, num_rows)
        read_clock(shard)
    checkpoint(shard, num_messages > 0)
    listen(shard)
    tell_swapped(shard)
    is_idle = num_messages == 0 and not can_step(shard)
    exchange_groups(shard, is_idle)
    reply(shard)
    sweep(shard)
    return is_idle and not can_step(shard) and not can_checkpoint(shard)
