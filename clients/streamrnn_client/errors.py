"""Every exception that the client raises, as a tree by whose turn it is to act.

::

    StreamRNNClientError           .code, .detail
    ├── InputError                 x does not fit the model: change the call
    │   ├── WrongLength, BadValue  found by the client before sending, or by the server
    │   └── BadName                an input or a category that the model does not have
    ├── UnknownStream, Gap, ...    one class for each code of the wire
    ├── PartialFailure             some streams of a batch failed; carries what succeeded
    ├── StateLost                  the server no longer has the state of a stream that it had
    ├── RequestTimeout             a server is there but did not answer in time
    ├── ConnectionLost             no server is there
    └── ClientClosed               the client was closed before or during the call
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from streamrnn_client.protocol.codes import ErrorCode, error_message
from streamrnn_client.protocol.identity import StreamId

__all__ = [
    "BadName",
    "BadParams",
    "BadValue",
    "Busy",
    "ClientClosed",
    "Conflict",
    "ConnectionLost",
    "Damaged",
    "Exists",
    "Expired",
    "Forbidden",
    "Gap",
    "InputError",
    "InternalServerError",
    "Late",
    "Malformed",
    "Mismatch",
    "MixedNumbering",
    "Moved",
    "NotSupported",
    "PartialFailure",
    "Quarantined",
    "ReadOnly",
    "RequestTimeout",
    "Stale",
    "StateLost",
    "StreamRNNClientError",
    "TooLarge",
    "UnknownMethod",
    "UnknownModel",
    "UnknownSnapshot",
    "UnknownStream",
    "WindowExceeded",
    "WrongLength",
    "WrongModel",
    "from_wire",
]


class StreamRNNClientError(Exception):
    """Root of every error that the client raises for its user.

    Parameters
    ----------
    message : str
        What came, what was expected, what to do.
    detail : mapping or None
        Names and numbers for programs.

    Attributes
    ----------
    code : str
        The wire's code, or a name of the client's own where the wire has none.
    detail : dict
    completed : Any
        From `Stream.steps`: float32[t, output_size], the outputs of the t steps that were
        applied before the error; else None.
    """

    code = "error"
    is_of_another_call = False  # which interrupted the one that it came out of

    def __init__(self, message: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.detail = dict(detail or {})
        self.completed: Any = None


class InputError(StreamRNNClientError, ValueError):
    """x does not fit the model."""

    code = "bad_input"


class BadName(InputError):
    """An input or a category has a name that the model does not know, or one is absent."""

    code = "bad_name"


class Malformed(StreamRNNClientError):
    """A message could not be read as one of the protocol."""

    code = "malformed"


class TooLarge(StreamRNNClientError):
    """A message is larger than the server takes."""

    code = "too_large"


class UnknownMethod(StreamRNNClientError):
    """The server has no such method: it may be older than the client."""

    code = "unknown_method"


class BadParams(StreamRNNClientError, ValueError):
    """A method's parameters do not have the form that it takes."""

    code = "bad_params"


class UnknownStream(StreamRNNClientError, LookupError):
    """The stream is not open."""

    code = "unknown"


class UnknownModel(StreamRNNClientError, LookupError):
    """The server does not serve such a model."""

    code = "unknown_model"


class WrongModel(StreamRNNClientError):
    """The stream belongs to another model."""

    code = "wrong_model"


class WrongLength(InputError):
    """x does not have a whole number of steps, or none."""

    code = "wrong_length"


class BadValue(InputError):
    """An element of x is Inf, a NaN that the model has no meaning for, or out of its range."""

    code = "bad_value"


class Gap(StreamRNNClientError):
    """A step was left out; ``detail["expected"]`` is the next one."""

    code = "gap"


class Stale(StreamRNNClientError):
    """A step is so old that its output is no longer kept."""

    code = "stale"


class Conflict(StreamRNNClientError):
    """The same step number came before with another input."""

    code = "conflict"


class MixedNumbering(StreamRNNClientError):
    """A numbered step on an unnumbered stream, or the other way round."""

    code = "mixed_numbering"


class WindowExceeded(StreamRNNClientError):
    """A chunk has more steps than the stream's window."""

    code = "window"


class Busy(StreamRNNClientError):
    """The server had no capacity for as long as the client may wait; nothing changed."""

    code = "busy"


class Moved(StreamRNNClientError):
    """The stream was sent from endpoint to endpoint without arriving."""

    code = "moved"


class Expired(StreamRNNClientError):
    """The stream was idle for too long and its state was dropped.

    Attributes
    ----------
    idle_s : float or None
        How many seconds of serving ago it was last used, where the server knows it.
    """

    code = "expired"

    @property
    def idle_s(self) -> float | None:  # noqa: D102 (an attribute, described above)
        return self.detail.get("idle_s")


class NotSupported(StreamRNNClientError):
    """The server or its protocol version does not support the request."""

    code = "not_supported"


class InternalServerError(StreamRNNClientError):
    """The server failed through a fault of its own."""

    code = "internal"


class Mismatch(StreamRNNClientError):
    """The stored state is of another model, or of another arithmetic, than what is served."""

    code = "mismatch"


class Quarantined(StreamRNNClientError):
    """The stream's state turned NaN at step ``detail["seq"]``; roll it back, reset or close it."""

    code = "quarantined"


class Exists(StreamRNNClientError):
    """A stream that was to be made from a record is there already."""

    code = "exists"


class ReadOnly(StreamRNNClientError):
    """The server cannot write its state directory now: the disk is full, or it fails."""

    code = "read_only"


class Damaged(StreamRNNClientError):
    """A record of a stream is torn, changed or foreign, and was refused as a whole."""

    code = "damaged"


class UnknownSnapshot(StreamRNNClientError, LookupError):
    """The stream has no snapshot of that name."""

    code = "unknown_snapshot"


class Forbidden(StreamRNNClientError, PermissionError):
    """The stream, or the record of one, belongs to another user."""

    code = "forbidden"


class Late(StreamRNNClientError):
    """A step would have been computed later than its caller has use for it; nothing changed."""

    code = "late"


class StateLost(StreamRNNClientError):
    """The server no longer has the state of a stream that was stepped before.

    The stream's object stays unusable. ``client.stream(id)`` opens the stream anew, on purpose.

    Attributes
    ----------
    stream : str or int
        The stream's id.
    last_seq : int
        The last step that had been applied, as far as the client knows.
    """

    code = "state_lost"

    def __init__(
        self,
        stream: StreamId,
        last_seq: int,
        cause: str,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            f"the state of stream {stream!r} is lost; its last step was {last_seq}: {cause}. "
            "To begin anew, open it again with client.stream(...) and prime it",
            {"stream": stream, "last_seq": last_seq, **(detail or {})},
        )
        self.stream = stream
        self.last_seq = last_seq


class RequestTimeout(StreamRNNClientError, TimeoutError):
    """A server is there, but no answer came in time; the request may have been applied.

    Calling again with the same input is safe on a numbered stream.
    """

    code = "timeout"


class ConnectionLost(StreamRNNClientError, ConnectionError):
    """No connection to a server; a request sent before it broke may have been applied."""

    code = "connection_lost"


class ClientClosed(StreamRNNClientError):
    """The client was closed."""

    code = "closed"


class PartialFailure(StreamRNNClientError):
    """Some streams of a batch failed; the others went on.

    Attributes
    ----------
    results : dict
        What succeeded: stream id -> float32[output_size], or the stream where streams were opened.
    errors : dict
        What failed: stream id -> its exception.
    """

    code = "partial_failure"

    def __init__(
        self,
        results: Mapping[StreamId, Any],
        errors: Mapping[StreamId, StreamRNNClientError],
    ) -> None:
        kinds = Counter(type(error).__name__ for error in errors.values())
        first = next(iter(errors.values()))
        super().__init__(
            f"{len(errors)} of {len(results) + len(errors)} streams failed "
            f"({', '.join(f'{count} {name}' for name, count in kinds.items())}); the others "
            f"succeeded, see .results and .errors. The first: {first}",
            {"num_failed": len(errors), "num_succeeded": len(results)},
        )
        self.results = dict(results)
        self.errors = dict(errors)


_CLASSES: dict[ErrorCode, type[StreamRNNClientError]] = {
    ErrorCode.MALFORMED: Malformed,
    ErrorCode.TOO_LARGE: TooLarge,
    ErrorCode.UNKNOWN_METHOD: UnknownMethod,
    ErrorCode.BAD_PARAMS: BadParams,
    ErrorCode.UNKNOWN: UnknownStream,
    ErrorCode.UNKNOWN_MODEL: UnknownModel,
    ErrorCode.WRONG_MODEL: WrongModel,
    ErrorCode.WRONG_LENGTH: WrongLength,
    ErrorCode.BAD_VALUE: BadValue,
    ErrorCode.GAP: Gap,
    ErrorCode.STALE: Stale,
    ErrorCode.CONFLICT: Conflict,
    ErrorCode.MIXED_NUMBERING: MixedNumbering,
    ErrorCode.WINDOW: WindowExceeded,
    ErrorCode.BUSY: Busy,
    ErrorCode.MOVED: Moved,
    ErrorCode.EXPIRED: Expired,
    ErrorCode.NOT_SUPPORTED: NotSupported,
    ErrorCode.INTERNAL: InternalServerError,
    ErrorCode.MISMATCH: Mismatch,
    ErrorCode.QUARANTINED: Quarantined,
    ErrorCode.EXISTS: Exists,
    ErrorCode.READ_ONLY: ReadOnly,
    ErrorCode.DAMAGED: Damaged,
    ErrorCode.UNKNOWN_SNAPSHOT: UnknownSnapshot,
    ErrorCode.FORBIDDEN: Forbidden,
    ErrorCode.LATE: Late,
}


def from_wire(error: Sequence[Any], **known: Any) -> StreamRNNClientError:
    """Return the exception of a response's error, ``[code, message, detail]``.

    An empty message (a server under a flood of errors sends none) becomes the code's own text.
    `known` adds to the server's detail and never replaces it. A code that this client is too old to
    know becomes the root class.
    """
    name, message, detail = error
    detail = {**known, **(detail if isinstance(detail, dict) else {})}
    code = ErrorCode.__members__.get(name.upper())
    if code is None:
        return StreamRNNClientError(f"the server answered {name!r}: {message}", detail)
    return _CLASSES[code](message or error_message(code, detail), detail)
