"""Record lookup: streams that are on disk, and why a record is refused."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streamrnn.errors import RecordError, StoreError
from streamrnn.state.record import StreamRecord, decode_record, fits_model, unfit
from streamrnn.state.store import (
    ARRIVALS,
    SNAPSHOTS,
    STREAMS,
    TOMBSTONES,
    StateStore,
    snapshot_key,
)
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.storage.departures import departure_of
from streamrnn_server.storage.expiry import Expiry, read_tombstone

__all__ = ["RecordLookup", "ServedModel", "may_use"]

_MAX_REFUSALS = 4096


def may_use(owner: str, user: str) -> bool:
    """Tell whether a user may use a record of an owner; empty: of none, or without users."""
    return owner in ("", user)


class ServedModel(NamedTuple):
    """What a record must fit.

    Attributes
    ----------
    name, fingerprint : str
        An empty fingerprint is that of a model which is served no more.
    row_bytes : int
    y_bytes : int
        Bytes of one output.
    arithmetic : str
        What computes it.
    x_bytes : int
        Bytes of one input.
    max_kept : int
        How many inputs are kept of a stream.
    """

    name: str
    fingerprint: str
    row_bytes: int
    y_bytes: int
    arithmetic: str
    x_bytes: int
    max_kept: int = 0

    def fault_of(self, record: StreamRecord) -> str | None:
        """Return why a record of this model has not its sizes; None if it has."""
        sizes = len(record.row), record.outputs.shape[1], len(record.inputs)
        own = self.row_bytes, self.y_bytes, self.x_bytes
        return None if fits_model(*sizes, *own) else unfit(sizes, own)


class RecordLookup:
    """Reads records, and judges whether they can go on here."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        store: StateStore | None,
        expiry: Expiry | None,
        has_users: bool = False,
        held: Mapping[bytes, ProtocolError] | None = None,
    ) -> None:
        self._models = models  # it grows
        self._held = held or {}
        self._store, self._expiry, self._has_users = store, expiry, has_users
        self._refusals: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    def look_up(self, stream: bytes) -> tuple[int, int, bytes, str | None]:
        """Look for a stream on disk.

        Returns
        -------
        code : int
            0, or the `ErrorCode` that says why there is none.
        model : int
            Index of its model.
        record : bytes
            The stream's; empty with a code.
        owner : str or None
            Whose it is; empty if nobody's, None if it cannot be known.
        """
        assert self._store is not None
        owner: str | None = None
        try:
            if stream in self._held:
                why = self._held[stream]
                raise ProtocolError(why.code, **why.detail)
            data = self._store.get(STREAMS, stream)
            if data is None:
                if self._store.get(ARRIVALS, stream) is not None:
                    return int(ErrorCode.BUSY), 0, b"", ""
                departure = departure_of(self._store, stream)
                if departure is not None:
                    return int(ErrorCode.MOVED), 0, b"", departure.owner
                is_buried = self._store.get(TOMBSTONES, stream) is not None
                return int(ErrorCode.EXPIRED if is_buried else ErrorCode.UNKNOWN), 0, b"", ""
            record = _read(data, stream)
            owner = record.owner
            if owner and not self._has_users:
                raise ProtocolError(ErrorCode.FORBIDDEN)
            index = self._model_of(record)
        except ProtocolError as error:
            self._refuse(stream, error.detail)
            return int(error.code), 0, b"", owner
        except RecordError as error:
            self._refuse(stream, {"reason": str(error)})
            return int(ErrorCode.DAMAGED), 0, b"", owner
        except StoreError as error:
            self._refuse(stream, {"reason": str(error)})
            return int(ErrorCode.READ_ONLY), 0, b"", owner
        if self._expiry is not None and self._expiry.has_expired(record.clock_s):
            return int(ErrorCode.EXPIRED), 0, b"", owner
        return 0, index, data, owner

    def departure(self, stream: bytes) -> dict[str, Any]:
        """Return what a client is told of a stream that has moved to another server."""
        departure = None
        if self._store is not None:
            with contextlib.suppress(StoreError, RecordError):
                departure = departure_of(self._store, stream)
        return {} if departure is None else {"endpoint": departure.endpoint, "server": True}

    def is_held(self, stream: bytes) -> bool:
        """Tell whether the journal has more of a stream than could be brought into its record."""
        return stream in self._held

    def idle_s(self, stream: bytes, user: str) -> int | None:
        """Return how long a stream that has expired had not been used.

        Returns
        -------
        int or None
            Seconds of serving up to now; None if nothing is known of it any more, or it is none of
            the user's business.
        """
        if self._store is None or self._expiry is None:
            return None
        try:
            tombstone, data = (self._store.get(k, stream) for k in (TOMBSTONES, STREAMS))
            if tombstone is not None:
                clock_s, owner = read_tombstone(tombstone)
            elif data is not None:  # expired, and not deleted yet
                record = decode_record(data)
                clock_s, owner = record.clock_s, record.owner
            else:
                return None
            return self._expiry.idle_s(clock_s) if may_use(owner, user) else None
        except (StoreError, RecordError):
            return None

    def judge(self, data: bytes, stream: bytes | None = None) -> tuple[int, StreamRecord]:
        """Read a record and find its model.

        Returns
        -------
        index : int
            The model's.
        record : StreamRecord

        Raises
        ------
        ProtocolError
            ``damaged`` or ``mismatch``.
        """
        record = _read(data, stream)
        return self._model_of(record), record

    def _model_of(self, record: StreamRecord) -> int:
        fitting = [
            k for k, each in enumerate(self._models) if each.fingerprint == record.fingerprint
        ]
        if not fitting:
            raise ProtocolError(
                ErrorCode.MISMATCH,
                stored_model=record.model,
                stored=record.fingerprint,
                served=[
                    f"{each.name} {each.fingerprint}" for each in self._models if each.fingerprint
                ],
            )
        index = next((k for k in fitting if self._models[k].name == record.model), fitting[0])
        model = self._models[index]
        if record.arithmetic != model.arithmetic:
            raise ProtocolError(
                ErrorCode.MISMATCH,
                stored_arithmetic=record.arithmetic,
                arithmetic=model.arithmetic,
            )
        fault = model.fault_of(record)
        if fault is not None:
            raise ProtocolError(ErrorCode.DAMAGED, reason=fault)
        return index

    def snapshot(self, stream: bytes, name: str | None, user: str) -> tuple[int, bytes]:
        """Read what a stream is to be rolled back to.

        Returns
        -------
        index : int
            The model's.
        record : bytes

        Raises
        ------
        ProtocolError
            ``forbidden``, ``unknown_snapshot``, ``damaged`` or ``mismatch``.
        """
        assert self._store is not None
        try:
            newest = data = self._store.get(STREAMS, stream)
            if name is not None:
                data = self._store.get(SNAPSHOTS, snapshot_key(stream, name.encode()))
        except StoreError as error:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=str(error)) from error
        for each in (newest, data):  # of another user's, not even a name is told
            if each is not None and not may_use(_read(each, stream).owner, user):
                raise ProtocolError(ErrorCode.FORBIDDEN)
        if data is None:
            detail: dict[str, Any] = {} if name is None else {"name": name}
            raise ProtocolError(ErrorCode.UNKNOWN_SNAPSHOT, **detail)
        return self.judge(data, stream)[0], data

    def refusal(self, stream: bytes) -> dict[str, Any]:
        """Return what is known about why a stream's record was refused.

        Returns
        -------
        dict
            The error's detail; empty if it was too long ago.
        """
        return self._refusals.get(stream, {})

    def _refuse(self, stream: bytes, detail: dict[str, Any]) -> None:
        self._refusals[stream] = detail
        self._refusals.move_to_end(stream)
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.popitem(last=False)


def _read(data: bytes, stream: bytes | None) -> StreamRecord:
    try:
        record = decode_record(data)
        if stream is not None and record.stream != stream:
            raise RecordError(f"it is of stream {record.stream!r}")
    except RecordError as error:
        raise ProtocolError(ErrorCode.DAMAGED, reason=str(error)) from error
    return record
