"""The structs of a shard, as its compiled functions and Python see them.

A shard is one struct: socket handles, addresses of tables and of scratch, limits, and what changes
from batch to batch; pool, arena, index and budget lie inside. `streamrnn_server.shard.setup` makes
it and keeps alive what it points to.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import numpy as np

from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn_server.shard.memory.admission import StepRate, UserBudget
from streamrnn_server.shard.memory.arena import ArenaStruct
from streamrnn_server.shard.memory.budget import BudgetStruct
from streamrnn_server.shard.memory.clients import AskBucket, ClientsStruct
from streamrnn_server.shard.memory.index import IndexStruct
from streamrnn_server.shard.memory.journal import JournalStruct
from streamrnn_server.shard.memory.recording import RecorderStruct
from streamrnn_server.shard.memory.step_times import StepTimes
from streamrnn_server.shard.memory.tally import BatchTally, Samples
from streamrnn_server.shard.requests.queue import Queue
from streamrnn_server.shard.requests.request import Pool

__all__ = [
    "REPLY_SLACK_BYTES",
    "SHARES",
    "Alias",
    "Ask",
    "AskKind",
    "Command",
    "CommandKind",
    "Counters",
    "DiskBuffer",
    "DiskBufferState",
    "History",
    "Item",
    "Model",
    "RowLocation",
    "Shard",
    "ShardState",
    "SwapPolicy",
    "UsersStruct",
    "alias_at",
    "ask_at",
    "command_at",
    "disk_buffer_at",
    "history_at",
    "item_at",
    "model_at",
    "shard_at",
    "users_at",
]

NUM_DISK_BUFFERS = 4
DISK_BUFFER_BYTES = 4 * 2**20
SHARES = 10_000  # what an `Alias` counts its share in
REPLY_SLACK_BYTES = 4096  # of a reply beside its outputs, generously


class RowLocation(IntEnum):
    """Where the newest row of a stream is, in a shard with a GPU."""

    BOTH = 0
    HOST = 1
    GPU = 2


class ShardState(IntEnum):
    """How far a shard is on its way to its end."""

    RUNNING = 0
    STOPPING = 1  # takes what is still on its way
    DRAINED = 2  # takes no messages; Python knows
    ENDED = 3


# Shared with Python threads: they read counters, latencies and states while the shard's thread
# writes them. These are aligned loads and stores of 8 bytes, not atomics: a reader may see a value
# that is late, or two of different moments, but never half of one. Commands go through the PAIR.
class Counters(Struct):
    """What a shard counts."""

    num_messages: I64
    num_steps: I64
    num_waves: I64  # batches computed; `stats` shows it by this name
    num_duplicates: I64
    num_replies: I64
    num_opened: I64
    num_closed: I64
    num_evicted_idle: I64
    num_resets: I64
    num_errors: I64
    num_errors_without_words: I64
    num_calls: I64
    num_calls_refused: I64
    num_too_broken_to_answer: I64
    num_extra_frames: I64
    num_without_payload: I64
    num_dropped_slow_reader: I64
    num_dropped_peer_gone: I64
    num_dropped_other: I64
    num_polls: I64
    num_checkpoints: I64
    num_checkpoints_failed: I64
    num_saved: I64
    num_looked_up: I64
    num_restored: I64
    num_spilled_idle: I64
    num_spilled_for_room: I64
    num_spilled_for_memory: I64
    num_refused_for_room: I64
    num_refused_user_streams: I64
    num_refused_user_bytes: I64
    num_refused_user_steps: I64
    num_refused_steps: I64
    num_late: I64
    num_quarantined: I64
    num_records_refused: I64
    num_swapped: I64
    num_primed: I64  # inputs that swapped streams have begun with


class Shard(Struct):
    """All that one thread works on."""

    router: I64  # socket handles
    pair: I64
    identity_message: Annotated[Any, np.int64, (8,)]  # zmq_msg_t
    payload_message: Annotated[Any, np.int64, (8,)]
    reply_message: Annotated[Any, np.int64, (8,)]
    poll_items: Annotated[Any, np.int64, (8,)]  # scratch of libzmq.poll_sockets
    clock: Annotated[Any, np.int64, (2,)]  # scratch of libzmq.monotonic_ns
    now_ns: I64  # the loop's clock: read when messages were received, and after a batch
    started_ns: I64
    state: I64  # a `ShardState`
    stop_at_ns: I64  # when to stop waiting for messages on their way
    pool: Pool
    arena: ArenaStruct
    index: IndexStruct
    headers: I64  # of all models' slots
    histories: I64  # address of a `History` for each slot; 0 without a state directory
    incarnation: I64  # of the stream that was made last
    models: I64  # address of the models' records
    num_models: I64  # those that there have been: one that was unloaded keeps its index
    lookup_model: I64  # index of what stands for streams being looked up: above all others
    aliases: I64  # address of the `Alias` of each family of versions
    num_aliases: I64
    num_swaps_told: I64  # models whose swap Python is to be told has reached all that had work
    next_model: I64  # index of the model whose turn a batch is first
    num_ready: I64  # number of slots that have work, of all models
    num_streams: I64  # number of slots taken
    max_streams: I64
    number: I64
    num_shards: I64
    max_message_bytes: I64
    max_inputs: I64  # of all models there have been: no step has more values
    is_skipping: I64  # the frames that come belong to a message that was refused
    inline_x_bytes: I64
    out: I64  # address of the reply being written
    out_bytes: I64
    max_rows: I64  # of a batch
    rows: I64  # address of int64[MAX_ROWS]: what `step_rows` takes
    xs: I64
    ys: I64
    batch_slots: I64  # address of int64[MAX_ROWS]
    batch_requests: I64
    batch_y: I64  # address of MAX_ROWS places for one output each
    batch_y_stride: I64
    batch_rows: I64  # how many a batch has that a GPU computes
    arrived: Queue  # requests decoded and not admitted
    finished: Queue  # requests done and not answered
    read_ahead_until_ns: I64  # until when more than a batch's messages are taken at once
    steps: StepRate  # of all users
    last_empty_ns: I64  # when the router last had nothing
    last_pair_ns: I64  # when the pair was last looked at
    idle_limit_s: I64  # 0: none
    sweep_position: I64  # where the search for idle streams goes on, among the slots of SWEEP_MODEL
    sweep_model: I64
    sweep_ns: I64  # when it last looked
    asks: AskBucket  # of all together
    encoded_errors: I64  # address of int64[NUM_CODES, 2]: address and length of each error
    encoded_busy: I64  # the same by `Limit`; the last byte stands for the time to wait
    retry_after_ms: I64  # where nothing says more
    encoded_moved: I64  # address of int64[num_shards, 2]: the error that names a shard's endpoint
    counters: Counters
    tallies: I64  # address of a `Tally` for each model, and for none, and each kind of request
    samples: Samples
    step_times: StepTimes
    heartbeat: I64  # number of Python's last PING that was heard
    disk: I64  # socket handle of the PAIR to the checkpoint writer; 0 without a state directory
    is_always: I64  # replies wait for the disk
    checkpoint_interval_ns: I64
    retry_ns: I64  # how long to wait after the disk has failed
    checkpoint_due_ns: I64  # when the next checkpoint is due, if anything is dirty
    dirty_since_ns: I64  # when the first of what is dirty was changed
    checkpoint_since_ns: I64  # the same of the checkpoint that is being made
    checkpoint_requested: I64  # a request waits for a checkpoint
    is_checkpointing: I64  # a checkpoint is being made
    is_paced: I64  # it may take its time
    has_failed: I64  # a part of it could not be written
    num_failed_in_a_row: I64
    dirty: I64  # address of int32[number of slots]: the slots that the next checkpoint writes
    num_dirty: I64
    checkpoint_slots: I64  # the same of the checkpoint that is being made
    num_checkpoint_slots: I64
    checkpoint_position: I64  # how many of them are copied
    disk_buffers: I64  # address of the disk buffers' structs
    filling_buffer: I64  # number of the one being filled; -1 none
    num_in_flight: I64  # number of disk buffers sent to be written
    acknowledged: I64  # number of the disk buffer whose entries are being gone through; -1 none
    ack_entry: I64  # address of its next entry
    ack_left: I64
    ack_is_good: I64
    awaiting_checkpoint: Queue  # requests that the next checkpoint must cover
    awaiting_commit: Queue  # requests that wait for the one that is being made
    journal: JournalStruct
    awaiting_group: Queue  # requests whose entries in the journal are not durable yet, in order
    can_look_up: I64  # streams that are not in memory may be on disk
    min_window_log2: I64  # what is granted at least
    row_locations: I64  # address of uint8[number of slots]: where each row is; 0 without a GPU
    written: I64  # address of int32[number of slots]: those whose rows must go to the GPU
    num_written: I64
    awaiting_row: I64  # address of int32[number of slots]: those that wait for their rows
    num_awaiting_row: I64
    budget: BudgetStruct  # what rows, slots and the arena's pages count against
    clients: ClientsStruct
    users: I64  # address of the users and of the streams' owners; 0 without keys
    recorder: RecorderStruct


class History(Struct):
    """What tells a stream from others that had its id, and its states from each other."""

    incarnation: I64  # grows with each stream that is made in a state directory
    num_changes: I64


class DiskBufferState(IntEnum):
    """What happens with a disk buffer."""

    FREE = 0
    FILLING = 1
    SENT = 2


class DiskBuffer(Struct):
    """A buffer of checkpoint entries on their way to disk."""

    at: I64  # address of its memory
    used_bytes: I64
    num_entries: I64
    state: I64  # a `DiskBufferState`


class SentBuffer(Struct, packed=True):
    """A disk buffer on its way to the checkpoint writer."""

    number: I64
    at: I64
    num_bytes: I64
    num_entries: I64


class BufferAck(Struct, packed=True):
    """The checkpoint writer's answer, after its commit has returned."""

    number: I64
    is_good: I64  # whether its entries are on disk


class Alias(Struct):
    """The name of a family of versions, and the version that new streams get."""

    name: I64  # address of its UTF-8
    name_bytes: I64
    model: I64  # index
    other: I64  # of the version that a share of new streams gets
    share: I64  # of 10,000, by the hash of the id


class SwapPolicy(IntEnum):
    """What of a stream's state goes on when it is swapped to another version."""

    CARRY = 1
    RESET = 2
    REPLAY = 3  # nothing; the inputs that are kept prime the other one


class Model(Struct):
    """A model in a shard; the last one stands for streams being looked up and has no rows."""

    plan: I64  # address of its plan
    first_row: I64  # where row 0 would lie: row = FIRST_ROW + slot * ROW_BYTES
    row_bytes: I64  # of the state, and of the inputs kept behind it
    state_bytes: I64
    max_kept: I64  # inputs of a stream; 0: none is kept
    initial_row: I64  # of STATE_BYTES
    step_bytes: I64  # of x
    y_bytes: I64
    is_token: I64
    family: I64  # number of those of which it is a version
    successor: I64  # index of the version to which its streams are to be swapped; -1 none
    policy: I64  # how: a `SwapPolicy`
    swap_token: I64  # of Python's command, until all streams that had work are swapped; 0 none
    first_slot: I64
    num_taken: I64  # number of slots in use
    num_fresh: I64  # number of slots ever taken
    free_slot: I64  # slot + 1 of the first one given back
    ready: Queue  # not links: slot + 1 of the first and the last slot that has work
    name: I64  # address of the name's UTF-8
    name_bytes: I64
    num_open: I64
    recorded_steps: I64  # the most steps of a recording; 0: none is made
    batches: BatchTally
    units: I64  # address of uint8[]: which units of 2 MiB of its rows have memory; 0 without rows
    # Where each kind of search for something to evict goes on (`streams.eviction.Search`).
    search_positions: Annotated[Any, np.int64, (5,)]


class AskKind(IntEnum):
    """What a shard asks of Python."""

    CALL = 1  # a message
    ERROR = 2  # the text of an error
    ITEMS = 3  # the reply to a batch with errors
    DRAINED = 4  # nothing more comes
    LOOK_UP = 5  # a stream that is not in memory
    ENTRY = 6  # a record of a stream's entry
    REPLY = 7  # none: the reply to a request of Python's own
    DONE = 8  # none: what became of a command of Python's (`code`: whether it was done)
    LEFT = 9  # none: a stream has left memory, as Python wanted


class Ask(Struct, packed=True):
    """Numbers that go to Python before identity and body, and what they ask for."""

    what: I64  # an `AskKind`
    msgid: I64
    code: I64
    detail: Annotated[Any, np.int64, (4,)]
    model: I64
    kind: I64
    form: I64
    num_items: I64
    identity_bytes: I64
    body_bytes: I64
    owner: I64  # number of the user who asks
    columns: I64  # ITEMS: whether the reply is in columns
    client: I64  # number of the client's account
    charge: I64  # what it is charged for this


class Item(Struct, packed=True):
    """One child of a batch on its way to Python."""

    code: I64
    detail: Annotated[Any, np.int64, (4,)]
    last_seq: I64
    durable_seq: I64
    window: I64
    oldest_output: I64
    id_bytes: I64
    y_bytes: I64


class CommandKind(IntEnum):
    """What Python tells a shard."""

    STOP = 1
    END = 2
    FOUND = 3  # what a lookup found
    REQUEST = 4
    PING = 5  # nothing but to say that it was heard
    # What follows is answered with `AskKind.DONE`, and the command's `msgid`.
    LOAD = 6  # a model, whose struct is at `address`
    ALIAS = 7  # the table of aliases is at `address`, and has `seq` entries
    SWAP = 8  # a model's successor is `slot`, or -1 for none; `digest` is the `SwapPolicy`
    UNLOAD = 9


class Command(Struct, packed=True):
    """A command of Python's: a message whose first frame is empty, and these numbers."""

    what: I64  # a `CommandKind`
    slot: I64  # FOUND: which stream was looked up
    generation: I64
    code: I64  # FOUND: 0, or why there is no record
    model: I64
    kind: I64  # REQUEST: a `Kind`
    msgid: I64
    seq: I64  # PING: its number
    window: I64
    digest: I64  # FOUND: whether the stream's record may not be deleted
    identity_bytes: I64
    stream_bytes: I64
    data_bytes: I64  # a record; a snapshot's name
    owner_bytes: I64  # the user's name, last of all; -1 if it is not known
    asker: I64  # FOUND: number of the user for whom it was looked up
    address: I64  # LOAD, ALIAS


class UsersStruct(Struct):
    """The users of a shard and the owners of its streams (`shard.streams.owners`)."""

    num_users: I64
    names: I64
    table: I64
    owners: I64
    property: I64
    is_valid: I64  # address of uint8[MAX_KEYS]: which keys may be used; Python writes it
    # By the number of a user, what he takes, and the most that one may take:
    budgets: I64  # address of each `UserBudget`
    default: UserBudget  # a new user's
    num_lookups: I64  # address of int32[]: streams that are looked up for him
    asks: I64  # address of the token buckets
    max_lookups: I64
    max_asks: I64
    ns_per_ask: I64


ASK_BYTES, ITEM_BYTES = Ask.dtype.itemsize, Item.dtype.itemsize
COMMAND_BYTES, DISK_BUFFER_STRUCT_BYTES = Command.dtype.itemsize, DiskBuffer.dtype.itemsize
HISTORY_BYTES = History.dtype.itemsize
SENT_BUFFER_BYTES = SentBuffer.dtype.itemsize

shard_at = pointer_to(Shard)
alias_at = pointer_to(Alias)
model_at = pointer_to(Model)
history_at = pointer_to(History)
disk_buffer_at = pointer_to(DiskBuffer)
sent_buffer_at = pointer_to(SentBuffer)
buffer_ack_at = pointer_to(BufferAck)
ask_at = pointer_to(Ask)
item_at = pointer_to(Item)
command_at = pointer_to(Command)
users_at = pointer_to(UsersStruct)
