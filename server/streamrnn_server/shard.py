"""The loop: one thread, one socket, one slab, from the socket to the reply without Python."""

from __future__ import annotations

from streamrnn.kernels.cpu import step_rows
from streamrnn.kernels.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64
from streamrnn.kernels.plan import MAX_WAVE
from streamrnn_server import layout as w
from streamrnn_server.admit import admit
from streamrnn_server.receive import receive
from streamrnn_server.reply import reply
from streamrnn_server.saving import can_save_more, save
from streamrnn_server.waiting import listen, read_clock, sweep, wait
from streamrnn_server.wave import choose_model, commit, gather, view

__all__ = ["serve", "turn"]


@jit
def serve(shard: int) -> None:
    """Serve until Python says that it is the end.

    Parameters
    ----------
    shard : int
        Address of the shard; no other thread touches it, its sockets or its memory meanwhile.
    """
    float_mode = enter_float_mode()
    read_clock(shard)
    while load_i64(shard + w.STATE) != w.ENDED:
        if turn(shard):
            wait(shard)
    leave_float_mode(float_mode)


@jit(inline="always")
def turn(shard: int) -> bool:
    """Go once through the loop: take what has arrived, compute one wave, send what is done.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    bool
        Whether there is nothing more to do before something comes, or it is time for something.
    """
    num_messages = receive(shard)
    admit(shard)
    model = choose_model(shard)
    if model != 0:
        plan = view(load_i64(model + w.PLAN), load_i64(model + w.PLAN_LENGTH))
        rows = view(load_i64(shard + w.ROWS), MAX_WAVE)
        xs = view(load_i64(shard + w.XS), MAX_WAVE)
        ys = view(load_i64(shard + w.YS), MAX_WAVE)
        num_rows = gather(shard, plan, model)
        if num_rows > 0:
            step_rows(plan, rows, xs, ys, num_rows)
            commit(shard, model, num_rows)
        read_clock(shard)
    save(shard, num_messages > 0)
    listen(shard)
    reply(shard)
    sweep(shard)
    is_idle = num_messages == 0 and load_i64(shard + w.NUM_READY) == 0
    return is_idle and not can_save_more(shard)
