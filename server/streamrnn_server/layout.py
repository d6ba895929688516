"""The memory of a shard as its compiled functions know it: words at fixed places.

A shard is one address. At it lie int64 words: handles of sockets, addresses of tables and of
scratch, limits, and what changes from wave to wave. Everything is a plain number, so that the loop
counts no references and asks nobody. `streamrnn_server.memory` fills the words in.
"""

from __future__ import annotations

__all__ = ["COUNTERS", "MODEL_RECORD_BYTES", "NUM_BUCKETS", "SHARD_WORDS"]

# Words of a shard, in bytes from its address.
(
    ROUTER,  # socket handles
    PAIR,
    IDENTITY_MESSAGE,  # zmq_msg_t
    PAYLOAD_MESSAGE,
    POLL_ITEMS,  # scratch of libzmq.poll_sockets
    CLOCK,  # scratch of libzmq.monotonic_ns
    NOW_NS,  # the loop's clock: read when messages were received, and after a wave
    STARTED_NS,
    STATE,  # one of the states below
    STOP_AT_NS,  # when to stop waiting for messages on their way
    POOL,
    ARENA,
    INDEX,
    HEADERS,  # of all models' slots
    MODELS,  # address of the models' records
    NUM_MODELS,
    NEXT_MODEL,  # index of the model whose turn a wave is first
    NUM_READY,  # number of slots that have work, of all models
    NUM_STREAMS,  # number of slots taken
    MAX_STREAMS,
    SHARD,
    NUM_SHARDS,
    MAX_MESSAGE_BYTES,
    INLINE_X_BYTES,
    OUT,  # address of the reply being written
    OUT_BYTES,
    MAX_ROWS,  # of a wave
    ROWS,  # address of int64[MAX_ROWS]: what `step_rows` takes
    XS,
    YS,
    WAVE_SLOTS,  # address of int64[MAX_ROWS]
    WAVE_REQUESTS,
    WAVE_Y,  # address of MAX_ROWS places for one output each
    WAVE_Y_STRIDE,
    ARRIVED,  # two words: a list of requests decoded and not admitted
    _ARRIVED_LAST,
    FINISHED,  # two words: a list of requests done and not answered
    _FINISHED_LAST,
    LAST_EMPTY_NS,  # when the router last had nothing
    LAST_PAIR_NS,  # when the pair was last looked at
    IDLE_LIMIT_S,  # 0: none
    SWEEP_PLACE,  # where the search for idle streams goes on, among the slots of SWEEP_MODEL
    SWEEP_MODEL,
    SWEEP_NS,  # when it last looked
    WORDS_LEFT,  # requests that may still go to Python, a token bucket
    WORDS_NS,  # when the bucket was last filled
    CANNED,  # address of int64[NUM_CODES, 2]: address and length of errors without words
    MOVED,  # address of int64[num_shards, 2]: the error that names a shard's endpoint
    COUNTERS_AT,  # address of int64[len(COUNTERS)]
    LATENCIES,  # address of int64[NUM_BUCKETS]
    DISK,  # socket handle of the PAIR to the thread that writes; 0 without a state directory
    IS_ALWAYS,  # replies wait for the disk
    SAVE_EVERY_NS,
    RETRY_NS,  # how long to wait after the disk has failed
    SAVE_AT_NS,  # when the next checkpoint is due, if anything is dirty
    SAVE_NOW,  # somebody waits for a checkpoint
    IS_SAVING,  # a checkpoint is being made
    IS_PACED,  # it may take its time
    HAS_FAILED,  # a part of it could not be written
    NUM_FAILED_IN_A_ROW,
    DIRTY,  # address of int32[number of slots]: the slots that the next checkpoint writes
    NUM_DIRTY,
    SAVED,  # the same of the checkpoint that is being made
    NUM_SAVED,
    SAVED_PLACE,  # how many of them are copied
    STAGES,  # address of the stages' records
    STAGE,  # number of the one being filled; -1 none
    NUM_IN_FLIGHT,  # number of stages sent to be written
    ACKNOWLEDGED,  # number of the stage whose entries are being gone through; -1 none
    ACK_ENTRY,  # address of its next entry
    ACK_LEFT,
    ACK_IS_GOOD,
    UNCOVERED,  # two words: a list of requests that the next checkpoint must cover
    _UNCOVERED_LAST,
    COVERED,  # two words: a list of requests that wait for the one that is being made
    _COVERED_LAST,
    CAN_LOOK_UP,  # streams that are not in memory may be on disk
    SPILL_PLACE,  # where the search for a stream that can be spilled goes on
    MIN_WINDOW_LOG2,  # what is granted at least
    PLACES,  # address of uint8[number of slots]: where each row is; 0 without a GPU
    WRITTEN,  # address of int32[number of slots]: those whose rows must go to the GPU
    NUM_WRITTEN,
    ASKED_FOR,  # address of int32[number of slots]: those that wait for their rows
    NUM_ASKED_FOR,
    BUDGET,  # address of what rows, slots and the arena's pages count against
    USERS,  # address of the users and of the streams' owners; 0 without keys
) = range(0, 688, 8)
SHARD_WORDS = 86

ROW_SAME, ROW_HERE, ROW_AWAY = range(3)  # on the host and the GPU, or newer on one of them

RUNNING, STOPPING, DRAINED, ENDED = range(4)

# Words of a stage: memory in which entries are on their way to disk.
(
    STAGE_AT,  # address of its memory
    STAGE_USED,  # bytes
    STAGE_ENTRIES,
    STAGE_STATE,  # one of the states below
) = range(0, 32, 8)
STAGE_RECORD_BYTES = 32
STAGE_FREE, STAGE_FILLING, STAGE_SENT = range(3)
NUM_STAGES = 4
STAGE_BYTES = 4 * 2**20

# Words of a model's record.
(
    PLAN,  # address of its plan
    PLAN_LENGTH,
    FIRST_ROW,  # where row 0 would lie: row = FIRST_ROW + slot * ROW_BYTES
    ROW_BYTES,
    INITIAL_ROW,
    STEP_BYTES,  # of x
    Y_BYTES,
    IS_TOKEN,
    FIRST_SLOT,
    NUM_FRESH,  # number of slots ever taken
    FREE_SLOT,  # slot + 1 of the first one given back
    READY,  # two words: slot + 1 of the first and the last slot that has work
    READY_LAST,
    NAME,  # address of the name's UTF-8
    NAME_BYTES,
    NUM_OPEN,
    UNITS,  # address of uint8[]: which units of 2 MiB of its rows have memory; 0 of the room
) = range(0, 136, 8)  # after the models' records comes that of the room, which has no rows
MODEL_RECORD_BYTES = 136

# What a shard counts, in bytes from COUNTERS_AT.
COUNTERS = (
    "num_messages",
    "num_steps",
    "num_waves",
    "num_duplicates",
    "num_replies",
    "num_opened",
    "num_closed",
    "num_evicted_idle",
    "num_resets",
    "num_errors",
    "num_errors_without_words",
    "num_calls",
    "num_calls_refused",
    "num_too_broken_to_answer",
    "num_extra_frames",
    "num_without_payload",
    "num_dropped_slow_reader",
    "num_dropped_peer_gone",
    "num_dropped_other",
    "num_polls",
    "num_checkpoints",
    "num_checkpoints_failed",
    "num_saved",
    "num_looked_up",
    "num_restored",
    "num_spilled_idle",
    "num_spilled_for_room",
    "num_spilled_for_memory",
    "num_refused_for_room",
    "num_quarantined",
    "num_records_refused",
)
(
    NUM_MESSAGES,
    NUM_STEPS_DONE,
    NUM_WAVES,
    NUM_DUPLICATES,
    NUM_REPLIES,
    NUM_OPENED,
    NUM_CLOSED,
    NUM_EVICTED_IDLE,
    NUM_RESETS,
    NUM_ERRORS,
    NUM_ERRORS_WITHOUT_WORDS,
    NUM_CALLS,
    NUM_CALLS_REFUSED,
    NUM_TOO_BROKEN,
    NUM_EXTRA_FRAMES,
    NUM_WITHOUT_PAYLOAD,
    NUM_DROPPED_SLOW,
    NUM_DROPPED_GONE,
    NUM_DROPPED_OTHER,
    NUM_POLLS,
    NUM_CHECKPOINTS,
    NUM_CHECKPOINTS_FAILED,
    NUM_SAVED_STREAMS,
    NUM_LOOKED_UP,
    NUM_RESTORED,
    NUM_SPILLED_IDLE,
    NUM_SPILLED_FOR_ROOM,
    NUM_SPILLED_FOR_MEMORY,
    NUM_REFUSED_FOR_ROOM,
    NUM_QUARANTINED,
    NUM_RECORDS_REFUSED,
) = range(0, 8 * len(COUNTERS), 8)

# Latencies: eight buckets for each doubling of nanoseconds.
BUCKETS_LOG2 = 3
NUM_BUCKETS = 64 << BUCKETS_LOG2

# Numbers that go to Python before identity and body, and what they ask for.
(
    ASK,
    ASK_MSGID,
    ASK_CODE,
    ASK_DETAIL,
    _ASK_DETAIL_1,
    _ASK_DETAIL_2,
    _ASK_DETAIL_3,
    ASK_MODEL,
    ASK_KIND,
    ASK_FORM,
    ASK_NUM_ITEMS,
    ASK_IDENTITY_BYTES,
    ASK_BODY_BYTES,
    ASK_OWNER,  # number of the user who asks
) = range(0, 112, 8)
ASK_HEAD_BYTES = 112
# A call; an error; a batch's items; that nothing more comes; a stream that is not in memory; a
# stream's entry that was asked for; the reply to a request of Python's own.
ASK_CALL, ASK_ERROR, ASK_ITEMS, ASK_DRAINED, ASK_LOOK_UP, ASK_ENTRY, ASK_REPLY = range(1, 8)
# One child of a batch on its way to Python.
(
    ITEM_CODE,
    ITEM_DETAIL,
    _ITEM_DETAIL_1,
    _ITEM_DETAIL_2,
    _ITEM_DETAIL_3,
    ITEM_LAST_SEQ,
    ITEM_DURABLE_SEQ,
    ITEM_WINDOW,
    ITEM_ID_BYTES,
    ITEM_Y_BYTES,
) = range(0, 80, 8)
ITEM_RECORD_BYTES = 80

# Commands of Python's: a message whose first frame is empty, and these words.
(
    COMMAND,
    COMMAND_SLOT,  # COMMAND_FOUND: which stream was looked up
    COMMAND_GENERATION,
    COMMAND_CODE,  # COMMAND_FOUND: 0, or why there is no record
    COMMAND_MODEL,
    COMMAND_KIND,  # COMMAND_REQUEST: what is asked for
    COMMAND_MSGID,
    COMMAND_SEQ,
    COMMAND_WINDOW,
    COMMAND_DIGEST,
    COMMAND_IDENTITY_BYTES,
    COMMAND_STREAM_BYTES,
    COMMAND_DATA_BYTES,  # a record; a snapshot's name
    COMMAND_OWNER_BYTES,  # the user's name, last of all; -1 if it is not known
) = range(0, 112, 8)
COMMAND_HEAD_BYTES = 112
COMMAND_STOP, COMMAND_END, COMMAND_FOUND, COMMAND_REQUEST, COMMAND_SYNC = range(1, 6)
