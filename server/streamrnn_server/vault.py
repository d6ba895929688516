"""What Python knows of streams that are not in memory: what is found, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from streamrnn.errors import RecordError, StoreError
from streamrnn.state.durable import SNAPSHOTS, STREAMS, TOMBSTONES, StateStore, snapshot_key
from streamrnn.state.record import StreamRecord, decode_record
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.expiry import Expiry

__all__ = ["ServedModel", "Vault"]

_MAX_REFUSALS = 4096


class ServedModel(NamedTuple):
    """What a record must fit.

    Attributes
    ----------
    name, fingerprint : str
    row_bytes : int
    y_bytes : int
        Bytes of one output.
    """

    name: str
    fingerprint: str
    row_bytes: int
    y_bytes: int


class Vault:
    """Reads records, and judges whether they can go on here.

    Parameters
    ----------
    models : sequence of ServedModel
        In the shards' order.
    arithmetic : str
        What this server computes with.
    store : StateStore or None
        The state directory.
    expiry : Expiry or None
        What decides who has outlived its time.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        arithmetic: str,
        store: StateStore | None,
        expiry: Expiry | None,
    ) -> None:
        self._models = list(models)
        self._arithmetic = arithmetic
        self._store, self._expiry = store, expiry
        self._refusals: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    def look_up(self, stream: bytes) -> tuple[int, int, bytes]:
        """Look for a stream on disk.

        Parameters
        ----------
        stream : bytes
            The canonical id.

        Returns
        -------
        code : int
            0, or the `ErrorCode` that says why there is none.
        model : int
            Index of its model.
        record : bytes
            The stream's; empty with a code.
        """
        assert self._store is not None
        try:
            data = self._store.get(STREAMS, stream)
            if data is None:
                is_buried = self._store.get(TOMBSTONES, stream) is not None
                return int(ErrorCode.EXPIRED if is_buried else ErrorCode.UNKNOWN), 0, b""
            index, record = self.judge(data, stream)
        except ProtocolError as error:
            self._refuse(stream, error.detail)
            return int(error.code), 0, b""
        except StoreError as error:
            self._refuse(stream, {"reason": str(error)})
            return int(ErrorCode.READ_ONLY), 0, b""
        if self._expiry is not None and self._expiry.has_expired(record.clock_s):
            return int(ErrorCode.EXPIRED), 0, b""
        return 0, index, data

    def idle_s(self, stream: bytes) -> int | None:
        """Return how long a stream that has expired had not been used.

        Parameters
        ----------
        stream : bytes
            The canonical id.

        Returns
        -------
        int or None
            Seconds of serving up to now; None if nothing is known of it any more.
        """
        if self._store is None or self._expiry is None:
            return None
        try:
            clock_s = self._store.get(TOMBSTONES, stream)
            if clock_s is not None:
                return self._expiry.idle_s(int(clock_s))
            data = self._store.get(STREAMS, stream)  # expired, and not deleted yet
            return None if data is None else self._expiry.idle_s(decode_record(data).clock_s)
        except (StoreError, RecordError):
            return None

    def judge(self, data: bytes, stream: bytes | None = None) -> tuple[int, StreamRecord]:
        """Read a record and find its model.

        Parameters
        ----------
        data : bytes
            The record.
        stream : bytes or None
            The canonical id that it must be of.

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
        try:
            record = decode_record(data)
            if stream is not None and record.stream != stream:
                raise RecordError(f"it is of stream {record.stream!r}")
        except RecordError as error:
            raise ProtocolError(ErrorCode.DAMAGED, reason=str(error)) from error
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
                served=[f"{each.name} {each.fingerprint}" for each in self._models],
            )
        if record.arithmetic != self._arithmetic:
            raise ProtocolError(
                ErrorCode.MISMATCH,
                stored_arithmetic=record.arithmetic,
                arithmetic=self._arithmetic,
            )
        index = next((k for k in fitting if self._models[k].name == record.model), fitting[0])
        model = self._models[index]
        y_bytes = record.outputs.shape[1]
        if len(record.row) != model.row_bytes or y_bytes not in (0, model.y_bytes):
            raise ProtocolError(
                ErrorCode.DAMAGED,
                reason=f"a row of {len(record.row)} bytes; the model's have {model.row_bytes}",
            )
        return index

    def snapshot(self, stream: bytes, name: str | None) -> tuple[int, bytes]:
        """Read what a stream is to be rolled back to.

        Parameters
        ----------
        stream : bytes
            The canonical id.
        name : str or None
            The snapshot's; None for what is on disk.

        Returns
        -------
        index : int
            The model's.
        record : bytes

        Raises
        ------
        ProtocolError
            ``unknown_snapshot``, ``damaged`` or ``mismatch``.
        """
        assert self._store is not None
        try:
            if name is None:
                data = self._store.get(STREAMS, stream)
            else:
                data = self._store.get(SNAPSHOTS, snapshot_key(stream, name.encode()))
        except StoreError as error:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=str(error)) from error
        if data is None:
            detail: dict[str, Any] = {} if name is None else {"name": name}
            raise ProtocolError(ErrorCode.UNKNOWN_SNAPSHOT, **detail)
        return self.judge(data, stream)[0], data

    def refusal(self, stream: bytes) -> dict[str, Any]:
        """Return what is known about why a stream's record was refused.

        Parameters
        ----------
        stream : bytes
            The canonical id.

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
