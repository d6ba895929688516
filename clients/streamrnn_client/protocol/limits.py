"""Limits and names of the protocol that server and client agree on."""

from __future__ import annotations

__all__ = [
    "COLD_METHODS",
    "DEFAULT_MAX_MESSAGE_BYTES",
    "DEFAULT_PORT",
    "DEFAULT_WINDOW",
    "DURABILITIES",
    "FEATURES",
    "HOT_METHODS",
    "MAX_BATCH",
    "MAX_MSGID",
    "MAX_SEQ",
    "MAX_SNAPSHOT_NAME_BYTES",
    "MAX_UINT",
    "MAX_WINDOW",
    "PROTOCOL_VERSION",
    "grant_window",
]

PROTOCOL_VERSION = 1
DEFAULT_PORT = 7070
MAX_MSGID = 2**32 - 1
MAX_SEQ = 2**62  # of a stream's last step: no sum of numbers wraps
MAX_UINT = 2**63 - 1  # of a number in a request
DEFAULT_WINDOW = 16
MAX_WINDOW = 256
MAX_BATCH = 4096  # default of `max_batch` in `hello`
DEFAULT_MAX_MESSAGE_BYTES = 8 * 2**20  # default of `max_message_bytes` in `hello`

HOT_METHODS = ("step", "batch", "open", "close", "reset")
COLD_METHODS = (
    "hello",
    "models",
    "stats",
    "export",
    "import",
    "fork",
    "snapshot",
    "rollback",
    "sync",
    "backup",
    "diagnostics",
    "model",
    "drain",
)
DURABILITIES = ("none", "checkpoint", "always")  # `durability` in `hello`
# `features` in `hello`: what a server may lack; `ORIGINS` also in `models`: what a client may.
ORIGINS = "origins"
FEATURES = ("batch_columns", "received", ORIGINS, "max_wait")
MAX_SNAPSHOT_NAME_BYTES = 128


def grant_window(asked: int, max_window: int = MAX_WINDOW) -> int:
    """Return the largest power of two not above `asked` (0: the default) nor `max_window`."""
    bound = min(asked or DEFAULT_WINDOW, max_window)
    return 1 << (max(bound, 1).bit_length() - 1)
