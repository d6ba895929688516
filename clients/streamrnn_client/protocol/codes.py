"""The error codes of the wire and their messages."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from string import Formatter
from typing import Any

__all__ = [
    "ErrorCode",
    "ProtocolError",
    "bad_params",
    "error_message",
    "error_reply",
    "kind_of",
]


class ErrorCode(IntEnum):
    """Every error a server answers with; the number is for compiled code, 0 means no error.

    The wire carries the name in lower case (`wire`), never the number.
    """

    MALFORMED = 1
    TOO_LARGE = 2
    UNKNOWN_METHOD = 3
    BAD_PARAMS = 4
    UNKNOWN = 5
    UNKNOWN_MODEL = 6
    WRONG_MODEL = 7
    WRONG_LENGTH = 8
    BAD_VALUE = 9
    GAP = 10
    STALE = 11
    CONFLICT = 12
    MIXED_NUMBERING = 13
    WINDOW = 14
    BUSY = 15
    MOVED = 16
    EXPIRED = 17
    NOT_SUPPORTED = 18
    INTERNAL = 19
    MISMATCH = 20
    QUARANTINED = 21
    EXISTS = 22
    READ_ONLY = 23
    DAMAGED = 24
    UNKNOWN_SNAPSHOT = 25
    FORBIDDEN = 26
    LATE = 27

    @property
    def wire(self) -> str:
        """The code as it stands on the wire."""
        return self.name.lower()


# What came, what was expected, what to do. The first text whose fields are all there is taken;
# the last one of each code needs none, for a shard under a flood of errors sends no detail.
_TEXTS: Mapping[ErrorCode, tuple[str, ...]] = {
    ErrorCode.MALFORMED: (
        "the message has {num_frames} payload frames; send exactly one, "
        "[0, msgid, method, params] in MessagePack",
        "the message is not a MessagePack request [0, msgid, method, params] in one frame",
    ),
    ErrorCode.TOO_LARGE: (
        "the message has {num_bytes} bytes; at most {max} are taken: send it in parts",
        "the message names {num_items} streams; at most {max} are taken: send it in parts",
        "the message is too large; send it in parts (hello tells the limits)",
    ),
    ErrorCode.UNKNOWN_METHOD: (
        "there is no method {method!r}; did you mean {nearest!r}? Known are {methods}",
        "there is no method {method!r}; known are {methods}",
        "there is no such method; docs/protocol.md lists them",
    ),
    ErrorCode.BAD_PARAMS: (
        "{num_steps} steps from number {first_seq} on end beyond {max}, the largest number there "
        "is: open a stream with this one's record, which numbers from 1 anew",
        "the parameters do not have the form that the method takes; see docs/protocol.md",
    ),
    ErrorCode.UNKNOWN: (
        "stream {stream!r} is not open: open it first; if it was open before, its state is gone "
        "(the server was restarted, or the stream was closed or idle for too long)",
        "the stream is not open: open it first; if it was open before, its state is gone "
        "(the server was restarted, or the stream was closed or idle for too long)",
    ),
    ErrorCode.UNKNOWN_MODEL: (
        "there is no model {model!r}; served are {models}",
        "no model is named, and {num_models} are served: name one",
        "there is no such model; the method models lists them",
    ),
    ErrorCode.WRONG_MODEL: (
        "stream {stream!r} belongs to model {has!r}, not to {model!r}; close it first, or use "
        "another stream id",
        "stream {stream!r} belongs to another model; a stream keeps its model until it is closed, "
        "and all streams of a batch have one model",
        "the stream belongs to another model; a stream keeps its model until it is closed, "
        "and all streams of a batch have one model",
    ),
    ErrorCode.WRONG_LENGTH: (
        "x has {num_bytes} bytes; expected were {expected}, one step for each stream of the batch",
        "x has {num_bytes} bytes; it must be a multiple of {expected_multiple}, the model's inputs "
        "times 4 bytes, and hold at least one step",
        "x has {num_values} values; it must be a multiple of {expected_multiple}, the model's "
        "number of inputs, and hold at least one step",
        "x does not have the length that the model's inputs need; the method models tells them",
    ),
    ErrorCode.BAD_VALUE: (
        "input {name!r} (number {input}) of step {step} is {value}; {expected}",
        "input {name!r} (number {input}) of step {step} is not allowed: Inf never is, NaN only "
        "where the model knows what a missing value means, a category or token only in its range",
        "input number {input} of step {step} is not allowed: Inf never is, NaN only where the "
        "model knows what a missing value means, a category or token only in its range",
        "an input is not allowed: Inf never is, NaN only where the model knows what a missing "
        "value means, a category or token only in its range",
    ),
    ErrorCode.GAP: (
        "step {got} came, but step {expected} is next: send the steps in order and leave none out",
        "a step was left out: send the steps in order; open tells the last one applied",
    ),
    ErrorCode.STALE: (
        "step {got} is too old: outputs are kept from step {oldest} on, the client has received or "
        "left behind those before; go on after the last_seq that open tells",
        "the step is too old, its output is no longer kept; go on after the last_seq that open "
        "tells",
    ),
    ErrorCode.CONFLICT: (
        "step {seq} was applied already, with another input: do two clients step this stream? "
        "Nothing was changed; open tells the last step applied",
        "this step was applied already, with another input: do two clients step this stream? "
        "Nothing was changed; open tells the last step applied",
    ),
    ErrorCode.MIXED_NUMBERING: (
        "a stream is numbered or unnumbered (seq 0) from its first step on; this request is the "
        "other kind: close the stream to begin anew",
    ),
    ErrorCode.WINDOW: (
        "the chunk has {num_steps} steps, the stream's window is {window}: send at most that many "
        "at once",
        "the chunk has more steps than the stream's window: send fewer at once",
    ),
    ErrorCode.BUSY: (
        "there is no room now; nothing was changed: try again in {retry_after_ms} ms",
        "there is no room now; nothing was changed: try again a little later",
    ),
    ErrorCode.MOVED: (
        "the stream lives at {endpoint}: send its requests there (hello tells the map)",
        "the stream lives at another endpoint: ask hello for the map",
    ),
    ErrorCode.EXPIRED: (
        "stream {stream!r} was idle for {idle_s} s and its state was dropped: open it anew",
        "the stream was idle for too long and its state was dropped: open it anew",
    ),
    ErrorCode.NOT_SUPPORTED: ("the server does not support this as it was started",),
    ErrorCode.INTERNAL: (
        "the server failed on this request through a fault of its own; its log says more. "
        "Please report it",
    ),
    ErrorCode.MISMATCH: (
        "the stored state is of model {stored_model!r} with fingerprint {stored}; served is "
        "{served}: serve that model again, or close the stream to begin anew",
        "the stored state was computed with arithmetic {stored_arithmetic!r}, this server computes "
        "with {arithmetic!r}: its steps would not be repeated to the bit; serve it where it came "
        "from, or close the stream to begin anew",
        "the stored state is of another model or another arithmetic than this server's; close the "
        "stream to begin anew",
    ),
    ErrorCode.QUARANTINED: (
        "the state of stream {stream!r} turned NaN at step {seq}, and the stream is frozen: roll "
        "it back or reset it (with step number {expected}), or close it",
        "the stream's state turned NaN and it is frozen: roll it back, reset it, or close it",
    ),
    ErrorCode.EXISTS: (
        "stream {stream!r} exists already: close it first, or take another stream id",
        "the stream exists already: close it first, or take another stream id",
    ),
    ErrorCode.READ_ONLY: (
        "the state directory cannot be written ({reason}); nothing was changed: try again when it "
        "can, stats and hello tell",
        "the state directory cannot be written; nothing was changed: try again when it can, stats "
        "and hello tell",
    ),
    ErrorCode.DAMAGED: (
        "the stored state cannot be used: {reason}",
        "the stored state is damaged and cannot be used; close the stream to begin anew, or import "
        "a copy of its state",
    ),
    ErrorCode.UNKNOWN_SNAPSHOT: (
        "stream {stream!r} has no snapshot named {name!r}",
        "stream {stream!r} has no state on disk yet to be rolled back to",
        "the stream has no such snapshot",
    ),
    ErrorCode.LATE: (
        "the step has waited for longer than it may: it was not computed, and its number is still "
        "free; send it again under the same number, or another step in its place",
    ),
    ErrorCode.FORBIDDEN: (
        "stream {stream!r} belongs to another user: take another stream id",
        "the stream belongs to another user: take another stream id",
    ),
}


def _fields(text: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in Formatter().parse(text) if name is not None)


_CHOICES = {code: tuple((_fields(text), text) for text in texts) for code, texts in _TEXTS.items()}


def error_message(code: ErrorCode, detail: Mapping[str, Any] | None = None) -> str:
    """Return an error's text: what came, what was expected, what to do.

    The more of the text's names and numbers `detail` holds, the more it says; none is needed.
    """
    known = {
        key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in (detail or {}).items()
    }
    for fields, text in _CHOICES[code]:
        if fields <= known.keys():
            return text.format_map(known)
    raise AssertionError(f"{code.name} has no text that needs no detail")


def error_reply(code: ErrorCode, what: str = "", **detail: Any) -> list[Any]:
    """Return a response's error, ``[code, message, detail]``; `what` replaces the code's text."""
    return [code.wire, what or error_message(code, detail), detail]


class ProtocolError(ValueError):
    """A mistake of a message's sender.

    `what` replaces the code's own text. `msgid` is None where it could not be read: then there is
    no request to answer. `detail` holds plain MessagePack types, for programs.
    """

    def __init__(
        self, code: ErrorCode, what: str = "", *, msgid: int | None = None, **detail: Any
    ) -> None:
        super().__init__(what or error_message(code, detail))
        self.code = code
        self.detail = detail
        self.msgid = msgid

    def reply(self) -> list[Any]:
        """Return ``[code, message, detail]``, the error element of a response."""
        return [self.code.wire, str(self), self.detail]


def bad_params(what: str) -> ProtocolError:
    """Return the error of parameters that do not have a method's form."""
    return ProtocolError(ErrorCode.BAD_PARAMS, what)


def kind_of(value: object) -> str:
    """Describe a decoded value by its MessagePack type, for instance ``a str of 5``."""
    if value is None:
        return "nil"
    numbers = {bool: "a bool", int: "an integer", float: "a float"}
    for kind, name in numbers.items():
        if isinstance(value, kind):
            return f"{name} ({value})"
    names = {str: "a str", bytes: "a bin", list: "an array", dict: "a map"}
    for kind, name in names.items():
        if isinstance(value, kind):
            return f"{name} of {len(value)}"
    is_extension = type(value).__name__ in ("ExtType", "Timestamp")
    return "an extension type" if is_extension else f"a {type(value).__name__}"
