"""Parameters of the methods on a stream's state: all are checked before any is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamrnn.state.catalogue import MAX_NAME_BYTES
from streamrnn_client.protocol import (
    MAX_SEQ,
    MAX_SNAPSHOT_NAME_BYTES,
    ErrorCode,
    ProtocolError,
    canonical_id,
)

__all__ = ["take_params"]


def _bad(what: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_PARAMS, what)


def _num_bytes(value: object) -> int:
    """Return the length of a str's UTF-8; -1 if there is none, or it is no str."""
    try:
        return len(value.encode()) if isinstance(value, str) else -1
    except UnicodeEncodeError:
        return -1


def _check_stream_or_nil(value: Any) -> None:
    if value is not None:
        canonical_id(value)


def _check_record(value: Any) -> None:
    if type(value) is not bytes:
        raise _bad("the record must be the bin that export returned")


def _check_seq(value: Any) -> None:
    if type(value) is not int or not 0 <= value <= MAX_SEQ:
        raise _bad(f"seq must be an integer from 0 to {MAX_SEQ}")


def _check_model(value: Any) -> None:
    if value is not None and not 1 <= _num_bytes(value) <= MAX_NAME_BYTES:
        raise _bad(f"a model's name must be nil, or a str of 1 to {MAX_NAME_BYTES} bytes of UTF-8")


def _check_name(value: Any) -> None:
    if not 1 <= _num_bytes(value) <= MAX_SNAPSHOT_NAME_BYTES:
        raise _bad(
            f"a snapshot's name must be a str of 1 to {MAX_SNAPSHOT_NAME_BYTES} bytes of UTF-8"
        )


def _check_name_or_nil(value: Any) -> None:
    if value is not None:
        _check_name(value)


_PARAMS: dict[str, dict[str, Callable[[Any], object]]] = {
    "export": {"stream": canonical_id},
    "import": {"stream": canonical_id, "record": _check_record, "model or nil": _check_model},
    "fork": {"source": canonical_id, "target": canonical_id},
    "snapshot": {"stream": canonical_id, "name": _check_name},
    "rollback": {"stream": canonical_id, "seq": _check_seq, "name or nil": _check_name_or_nil},
    "sync": {"stream or nil": _check_stream_or_nil},
    "diagnostics": {"stream": canonical_id},
}


def take_params(method: str, params: list[Any]) -> list[Any]:
    """Return a method's parameters, or raise `ProtocolError` (``bad_params``)."""
    checks = _PARAMS[method]
    if len(params) != len(checks):
        schema = ", ".join(checks)
        raise _bad(f"{len(params)} parameters; {method} takes {len(checks)}: [{schema}]")
    for value, check in zip(params, checks.values(), strict=True):
        check(value)
    return params
