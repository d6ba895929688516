"""What senders do: open, step, close, and what follows from each answer."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, store_i32
from streamrnn_bench.load.arrivals import gap_ns, push, uniform
from streamrnn_bench.load.histogram import note_time
from streamrnn_bench.load.senders import (
    FIRST_MSGID,
    MAX_KEPT_BYTES,
    NUM_TIMED,
    SLOT_BYTES,
    TIMED_BYTES,
    How,
    Load,
    Phase,
    Sender,
    Slot,
    load_at,
    slot_at,
    timed_at,
)
from streamrnn_bench.load.wire import (
    choose_names,
    count_error,
    hash_of,
    model_of,
    name_of,
    out_of,
    read_error,
    read_opened,
    read_reply,
    read_steps,
    sender_of,
    write_close,
    write_open,
    write_steps,
)
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory.step_times import is_timed

__all__ = [
    "begin_steps",
    "handle",
    "keep",
    "note_unfinished",
    "send_close",
    "send_open",
    "take_turn",
]

_LIFE = 2  # what is drawn, beside the arrivals'
_OPEN_AND_NEW, _NAME_TAKEN = -1, -2  # of `read_opened`


@jit
def _post(load: Load, end: int) -> None:
    out = out_of(load)
    if send_bytes(load.socket, out, end - out, False) != 0:
        load.counts.how = How.NOT_SENT
        return
    load.counts.num_sent += 1
    load.counts.in_flight += 1


@jit
def _num_slots(load: Load) -> int:
    return 1 << load.plan.slots_log2


@jit
def _slot_of(load: Load, k: int, slot: int) -> Slot:
    return slot_at(load.slots + ((k << load.plan.slots_log2) + slot) * SLOT_BYTES)


@jit
def _msgid(load: Load, k: int, slot: int) -> int:
    """Return the msgid of a sender's slot; the one behind the last is for `open` and `close`."""
    return FIRST_MSGID + (k << (load.plan.slots_log2 + 1)) + slot


@jit
def send_open(load: Load, k: int, now: int) -> None:
    """Open a sender's streams: those that it has tried to open before, or new ones."""
    sender, plan = sender_of(load, k), load.plan
    if name_of(load, k, 0) < 0:
        choose_names(load, k)
    sender.hash = hash_of(load, k)
    sender.phase = Phase.OPENING
    sender.code = 0
    sender.seq = 0
    sender.acked = 0
    sender.left = -1
    if plan.life > 0:
        share = uniform(load.arrivals.seed, _LIFE, k, sender.lives)
        sender.left = 1 + int(share * (2 * plan.life - 1))
    sender.lives += 1
    sender.awaited = 1
    sender.asked_ns = now
    load.counts.num_asked += 1
    _post(load, write_open(load, k, _msgid(load, k, _num_slots(load))))


@jit
def send_close(load: Load, k: int, now: int) -> None:
    """Close a sender's streams."""
    sender, batch = sender_of(load, k), load.plan.batch
    sender.phase = Phase.CLOSING
    sender.awaited = batch
    sender.asked_ns = now
    load.counts.num_open -= 1
    load.counts.num_asked += batch
    for stream in range(batch):
        name = name_of(load, k, stream)
        _post(load, write_close(load, name, _msgid(load, k, _num_slots(load))))


@jit
def begin_steps(address: int, start_ns: int) -> None:
    """Let all senders of a `Load`, which are open, begin one after the other over the ramp."""
    load = load_at(address)
    for k in range(load.num_senders):
        sender = sender_of(load, k)
        begin_ns = start_ns + load.plan.ramp_ns * k // load.num_senders
        sender.drawn = 0
        if load.plan.is_open_loop:
            begin_ns += gap_ns(load.arrivals, k, 0)
        sender.due_ns = begin_ns
        _queue(load, sender, k, begin_ns)


@jit
def _queue(load: Load, sender: Sender, k: int, time_ns: int) -> None:
    if not sender.is_queued:
        sender.is_queued = 1
        push(load.heap, time_ns, k)


@jit
def take_turn(load: Load, k: int, now: int) -> None:
    """Do what a sender was in the heap for, which it has just left."""
    sender = sender_of(load, k)
    sender.is_queued = 0
    if sender.phase == Phase.STEPPING:
        due = sender.due_ns
        is_free = sender.code == 0 and due > load.counts.full_ns
        if load.plan.is_open_loop and _counts(load, due) and is_free:
            note_time(load.lateness, now - due)
        sender.code = 0
        _send_due(load, k, now)
    elif sender.phase == Phase.CLOSED:
        send_open(load, k, now)


@jit
def _counts(load: Load, due_ns: int) -> bool:
    return load.from_ns <= due_ns < load.until_ns


@jit
def _send_due(load: Load, k: int, now: int) -> None:
    """Send the steps of a sender that are due, as far as it has room; else see when it has."""
    sender, plan, until = sender_of(load, k), load.plan, load.until_ns
    while sender.left != 0 and load.counts.how == How.RUNNING:
        due = sender.due_ns
        if due > now:
            if due < until:
                _queue(load, sender, k, due)
            return
        if not plan.is_open_loop:
            due = now
        number = sender.sent & (_num_slots(load) - 1)
        slot = _slot_of(load, k, number)
        if due >= until or slot.sent_ns != 0:
            return
        slot.due_ns = due
        slot.sent_ns = now
        sender.sent += 1
        sender.in_flight += 1
        if sender.left > 0:
            sender.left -= 1
        first_seq = sender.seq + 1
        sender.seq += plan.chunk
        _post(load, write_steps(load, k, _msgid(load, k, number), first_seq))
        if plan.is_open_loop:
            sender.drawn += 1
            sender.due_ns = due + gap_ns(load.arrivals, k, sender.drawn)


@jit
def handle(load: Load, data: int, num_bytes: int, now: int, is_measuring: bool) -> bool:
    """Take a reply; False if it is none to what was asked."""
    end = data + num_bytes
    msgid, is_error, at = read_reply(data, end)
    shift = load.plan.slots_log2 + 1
    k, number = (msgid - FIRST_MSGID) >> shift, (msgid - FIRST_MSGID) & ((1 << shift) - 1)
    if at == 0 or k >= load.num_senders or number > _num_slots(load):
        return False
    code = 0
    if is_error:
        code, at = read_error(load, at, end)
        if at == 0:
            return False
        count_error(load, code)
    if number == _num_slots(load):
        is_right = _take_control(load, k, is_error, code, at, end, now, is_measuring)
    else:
        is_right = _take_steps(load, k, number, is_error, code, at, end, now)
        if is_right and is_measuring:
            _go_on(load, k, now)
    if sender_of(load, k).code != 0:  # of the reply itself, or of an item in it
        keep(load, data, num_bytes)
    if is_right:
        load.counts.num_replies += 1
        load.counts.in_flight -= 1
    return is_right


@jit
def keep(load: Load, data: int, num_bytes: int) -> None:
    """Keep the beginning of a reply that Python is to put into words: the first one."""
    if load.kept_bytes == 0:
        load.kept_bytes = min(num_bytes, MAX_KEPT_BYTES)
        load.kept_size = num_bytes
        copy_bytes(load.kept, data, load.kept_bytes)


@jit
def _take_control(
    load: Load,
    k: int,
    is_error: bool,
    code: int,
    at: int,
    end: int,
    now: int,
    is_measuring: bool,
) -> bool:
    """Take the answer to an `open` or a `close`; False if it is none that was awaited."""
    sender = sender_of(load, k)
    if sender.awaited == 0:
        return False
    sender.awaited -= 1
    load.counts.num_asked -= 1
    if sender.phase == Phase.CLOSING:
        note_time(load.closing, now - sender.asked_ns)
        if sender.awaited == 0:
            sender.phase = Phase.CLOSED
            load.counts.num_closed += 1
            _forget_names(load, k)
            if is_measuring and now < load.until_ns:
                pause_ns = load.plan.backoff_ns if sender.code != 0 else 0
                _queue(load, sender, k, now + pause_ns)
        return True
    if not is_error:
        code, at = read_opened(load, at, end)
        if at != end:
            return False
    if code == _OPEN_AND_NEW:
        note_time(load.opening, now - sender.asked_ns)
        sender.phase = Phase.STEPPING
        load.counts.num_opened += 1
        load.counts.num_open += 1
        if is_measuring:
            _send_due(load, k, now)
        return True
    sender.phase = Phase.CLOSED
    sender.code = max(code, 0)
    if code == _NAME_TAKEN or code in (ErrorCode.WRONG_MODEL, ErrorCode.FORBIDDEN):
        _forget_names(load, k)
    _queue(load, sender, k, now + load.plan.backoff_ns)
    return True


@jit
def _forget_names(load: Load, k: int) -> None:
    """Let a sender have other streams next, unless all it has belong to the shard."""
    if not load.plan.keeps_names:
        store_i32(load.names + 4 * k * load.plan.batch, -1)


@jit
def _take_steps(
    load: Load, k: int, number: int, is_error: bool, code: int, at: int, end: int, now: int
) -> bool:
    """Take the answer to steps; False if none was awaited, or it has another number or length."""
    sender, slot, plan = sender_of(load, k), _slot_of(load, k, number), load.plan
    due, sent = slot.due_ns, slot.sent_ns
    if sent == 0:
        return False
    behind = (sender.sent - 1 - number) & (_num_slots(load) - 1)  # messages sent after it
    last_seq = sender.seq - behind * plan.chunk
    y = 0
    if not is_error:
        y, code = read_steps(load, k, last_seq, at, end)
        if y == 0:
            return False
    slot.sent_ns = 0
    sender.in_flight -= 1
    if y <= 0:
        if sender.phase == Phase.STEPPING:
            sender.phase = Phase.BROKEN
            sender.code = max(code, 1)
        return True
    if _counts(load, due):
        note_time(load.latency, now - due)
        note_time(load.response, now - sent)
        if is_timed(sender.hash, last_seq - plan.chunk + 1):
            _keep_times(load, sender.hash, last_seq - plan.chunk + 1, due, sent, now)
    if _counts(load, now):
        load.counts.num_done += plan.batch * plan.chunk
    sender.acked = max(sender.acked, last_seq)
    if last_seq - plan.chunk < load.num_kept_steps and sender.lives == 1:
        _keep_outputs(load, k, last_seq - plan.chunk, y)
    return True


@jit
def _keep_times(load: Load, hash_value: int, seq: int, due_ns: int, sent_ns: int, now: int) -> None:
    """Keep the times of a message that the server has timed too."""
    timed = timed_at(load.timed + (load.num_timed & (NUM_TIMED - 1)) * TIMED_BYTES)
    timed.hash, timed.seq = hash_value, seq
    timed.due_ns, timed.sent_ns, timed.answered_ns = due_ns, sent_ns, now
    load.num_timed += 1


@jit
def _keep_outputs(load: Load, k: int, first_step: int, y: int) -> None:
    """Keep those of the first steps of the first streams."""
    y_bytes, plan = model_of(load, k).y_bytes, load.plan
    for stream in range(k * plan.batch, (k + 1) * plan.batch):
        for step in range(first_step, first_step + plan.chunk):
            if stream < load.num_kept_streams and step < load.num_kept_steps:
                place = step * load.num_kept_streams + stream
                copy_bytes(load.outputs + place * y_bytes, y, y_bytes)
            y += y_bytes


@jit
def _go_on(load: Load, k: int, now: int) -> None:
    """Do what follows for a sender that has an answer to a step."""
    sender = sender_of(load, k)
    if sender.phase == Phase.BROKEN:
        if sender.in_flight == 0:
            _mend(load, k, now)
    elif sender.phase == Phase.STEPPING:
        if sender.left == 0:
            if sender.in_flight == 0 and now < load.until_ns:
                send_close(load, k, now)
        elif not sender.is_queued:
            _send_due(load, k, now)


@jit
def _mend(load: Load, k: int, now: int) -> None:
    """Go on after a refusal: with the step that is next, or with new streams."""
    sender = sender_of(load, k)
    # Its state is as it was: the same step may be sent again.
    if sender.code in (ErrorCode.BUSY, ErrorCode.READ_ONLY):
        sender.phase = Phase.STEPPING
        sender.seq = sender.acked
        if sender.left == 0:
            sender.left = 1  # it ends with a step that is answered
        _queue(load, sender, k, max(now + load.plan.backoff_ns, sender.due_ns))
    elif now < load.until_ns:
        send_close(load, k, now)


@jit
def note_unfinished(load: Load, now: int) -> None:
    """Count the steps that were due and have no answer, with the time that they have waited.

    After an early end what would have been due later is not among them.
    """
    num_steps, until = load.plan.batch * load.plan.chunk, min(load.until_ns, now)
    for k in range(load.num_senders):
        for number in range(_num_slots(load)):
            slot = _slot_of(load, k, number)
            if slot.sent_ns != 0 and _counts(load, slot.due_ns):
                note_time(load.latency, now - slot.due_ns)
                load.counts.num_unanswered += num_steps
        if not load.plan.is_open_loop:
            continue
        sender = sender_of(load, k)
        due, drawn = sender.due_ns, 0 + sender.drawn
        while due < until:
            if _counts(load, due):
                note_time(load.latency, now - due)
                load.counts.num_unsent += num_steps
            drawn += 1
            due += gap_ns(load.arrivals, k, drawn)
