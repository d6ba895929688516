"""Commit the rows of a batch that was computed."""

from __future__ import annotations

from streamrnn.kernels.cpu.nan_scan import has_nan
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.state.journal import ChangeKind
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.batch.schedule import batch_of, mark_idle
from streamrnn_server.shard.batch.swap import note_primed
from streamrnn_server.shard.checkpoint.history import note_change
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.digest import digest_of
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.kept_inputs import keep_input
from streamrnn_server.shard.memory.recording import RecordingEnd
from streamrnn_server.shard.memory.slab import header_of, kept_inputs_of
from streamrnn_server.shard.memory.tally import count_batch, sample_rows
from streamrnn_server.shard.recorder import end_recording, record_step
from streamrnn_server.shard.requests.finish import finish, set_error
from streamrnn_server.shard.requests.queue import first_waiting, pop_waiting
from streamrnn_server.shard.requests.request import Kind, Request, request_at
from streamrnn_server.shard.streams.dirty import mark_dirty
from streamrnn_server.shard.streams.operations import note_durable
from streamrnn_server.shard.streams.replay_ring import remember
from streamrnn_server.shard.streams.slots import make_ready
from streamrnn_server.shard.structs import Model, Shard

__all__ = ["commit", "keep_rows", "note_all_but_last", "note_step"]


@jit
def keep_rows(shard: Shard, model: Model, num_rows: int) -> None:
    """Keep the rows of a batch, where there is a journal.

    There the record on disk may be some steps behind; so a stream whose state turns NaN is put back
    to its last good one, and that is written.
    """
    journal = shard.journal
    if journal.socket == 0:
        return
    rows = batch_of(shard).rows
    for row in range(num_rows):
        copy_bytes(journal.rows + row * journal.row_stride, rows[row], model.state_bytes)


@jit
def commit(shard: Shard, model: Model, num_rows: int) -> None:
    """Commit the steps of a computed batch, and finish the requests that are done."""
    pool, batch = shard.pool, batch_of(shard)
    num_primed = 0
    for row in range(num_rows):
        header = header_of(shard, batch.slots[row])
        request = request_at(batch.requests[row])
        if request.kind == Kind.SWAP:
            note_primed(shard, model, header, request, batch.ys[row])
            num_primed += 1
            continue
        note_step(shard, model, row)
        is_done = request.progress == request.num_steps
        if is_done or request.code != 0:
            note_durable(header, request)
            pop_waiting(pool, header)
            finish(shard, request)
        if first_waiting(pool, header):
            make_ready(shard, header)
        else:
            mark_idle(shard, header)
    shard.counters.num_steps += num_rows - num_primed
    shard.counters.num_primed += num_primed
    shard.counters.num_waves += 1
    model.batches.num_steps += num_rows - num_primed
    count_batch(model.batches, num_rows)
    sample_rows(shard.samples, batch.slots, num_rows)


@jit
def note_step(shard: Shard, model: Model, row: int) -> None:
    """Give a row's step its number and remember it, unless its request has an error."""
    batch = batch_of(shard)
    request = request_at(batch.requests[row])
    if request.code != 0:
        return
    header, x, y = header_of(shard, batch.slots[row]), batch.xs[row], batch.ys[row]
    # Each output sees all of the state: if it has no NaN, then neither has the state.
    is_broken = has_nan(y, model.y_bytes)
    is_put_back = is_broken and shard.journal.socket != 0
    if request.first_seq > 0:
        header.last_seq += 1
        if not is_put_back:
            digest = digest_of(x, model.step_bytes)
            remember(header, header.last_seq, digest, y, model.y_bytes)
    if header.recording != 0:
        record_step(shard, header, x)
    mark_dirty(shard, header)
    if is_put_back:
        kept = shard.journal.rows + row * shard.journal.row_stride
        copy_bytes(batch.rows[row], kept, model.state_bytes)
    if is_broken:
        _quarantine(shard, header, request)
    else:
        seq = header.last_seq if request.first_seq > 0 else 0
        note_change(shard, header, ChangeKind.STEP, seq, x, model.step_bytes)
        if model.max_kept > 0:
            keep_input(kept_inputs_of(model, batch.slots[row]), x)
    request.progress += 1


@jit
def note_all_but_last(shard: Shard, model: Model, num_rows: int, num_steps: int) -> None:
    """Note the steps of a batch that took several of each stream, all but the last.

    XS and YS point to each row's first step, and to its last afterwards; `commit` notes the last.
    """
    batch = batch_of(shard)
    for row in range(num_rows):
        for _ in range(num_steps - 1):
            note_step(shard, model, row)
            batch.xs[row] += model.step_bytes
            batch.ys[row] += model.y_bytes
    shard.counters.num_steps += num_rows * (num_steps - 1)
    model.batches.num_steps += num_rows * (num_steps - 1)


@jit
def _quarantine(shard: Shard, header: Header, request: Request) -> None:
    """Quarantine a stream whose state has turned NaN; what is on disk is not that."""
    end_recording(shard, header, RecordingEnd.QUARANTINED)
    header.flags |= h.IS_QUARANTINED
    seq = header.last_seq
    set_error(request, ErrorCode.QUARANTINED, seq, seq + 1 if seq > 0 else 0)
    shard.counters.num_quarantined += 1
    shard.counters.num_errors += 1
