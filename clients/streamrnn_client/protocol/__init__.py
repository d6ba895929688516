"""The wire protocol, in pure Python and without sockets: every name of it in one place.

The server imports it from here; `docs/protocol.md` states it for other languages. A message is one
MessagePack array::

    request   [0, msgid, method, params]      client (DEALER) -> server (ROUTER)
    response  [1, msgid, error, result]       error is nil or [code, message, detail]

A sender's mistake is raised as `ProtocolError`, with the error code, the message and, where it
could be read, the msgid to answer.
"""

from __future__ import annotations

from streamrnn_client.protocol.codes import ErrorCode, ProtocolError, error_message, error_reply
from streamrnn_client.protocol.columns import Columns, decode_batch_result, encode_columns
from streamrnn_client.protocol.decoding import Response, decode_request, decode_response
from streamrnn_client.protocol.encoding import (
    REQUEST,
    RESPONSE,
    encode_bin_header,
    encode_error,
    encode_request,
    encode_response,
    encode_uint,
)
from streamrnn_client.protocol.identity import (
    MAX_ID_BYTES,
    MAX_UINT_ID,
    NUM_HASH_SLOTS,
    StreamId,
    canonical_id,
    hash64,
    hash_slot,
    shard_of,
)
from streamrnn_client.protocol.limits import (
    COLD_METHODS,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_PORT,
    DEFAULT_WINDOW,
    DURABILITIES,
    FEATURES,
    HOT_METHODS,
    MAX_BATCH,
    MAX_MSGID,
    MAX_SEQ,
    MAX_SNAPSHOT_NAME_BYTES,
    MAX_UINT,
    MAX_WINDOW,
    ORIGINS,
    PROTOCOL_VERSION,
    grant_window,
)
from streamrnn_client.protocol.requests import (
    BatchRequest,
    CloseRequest,
    ColdRequest,
    OpenRequest,
    OpenWithStateRequest,
    Request,
    ResetRequest,
    StepRequest,
)

__all__ = [
    "COLD_METHODS",
    "DEFAULT_MAX_MESSAGE_BYTES",
    "DEFAULT_PORT",
    "DEFAULT_WINDOW",
    "DURABILITIES",
    "FEATURES",
    "HOT_METHODS",
    "MAX_BATCH",
    "MAX_ID_BYTES",
    "MAX_MSGID",
    "MAX_SEQ",
    "MAX_SNAPSHOT_NAME_BYTES",
    "MAX_UINT",
    "MAX_UINT_ID",
    "MAX_WINDOW",
    "NUM_HASH_SLOTS",
    "ORIGINS",
    "PROTOCOL_VERSION",
    "REQUEST",
    "RESPONSE",
    "BatchRequest",
    "CloseRequest",
    "ColdRequest",
    "Columns",
    "ErrorCode",
    "OpenRequest",
    "OpenWithStateRequest",
    "ProtocolError",
    "Request",
    "ResetRequest",
    "Response",
    "StepRequest",
    "StreamId",
    "canonical_id",
    "decode_batch_result",
    "decode_request",
    "decode_response",
    "encode_bin_header",
    "encode_columns",
    "encode_error",
    "encode_request",
    "encode_response",
    "encode_uint",
    "error_message",
    "error_reply",
    "grant_window",
    "hash64",
    "hash_slot",
    "shard_of",
]
