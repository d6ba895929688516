"""A server in pure Python for the client's tests: the protocol, a trivial model, no speed.

`FakeServer` takes a request's bytes and returns the reply's; it touches no socket. `SocketServer`
puts it behind a ROUTER in a thread and misbehaves on demand. The model adds up its inputs, so that
any lost, repeated or reordered step shows in every later output.

With a `durability` other than none it has a disk: `begin_checkpoint` and `end_checkpoint` bring
streams there, a `crash` loses everything else, and what a message names comes back from there.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy as np
import zmq

from streamrnn_client import protocol
from streamrnn_client.protocol import ErrorCode, ProtocolError

_numbers = itertools.count()


def spec(input_names=("a", "b")) -> dict[str, Any]:
    inputs = [{"name": name, "kind": "numeric", "categories": ()} for name in input_names]
    return {"inputs": inputs, "outputs": [{"name": f"sum_{name}"} for name in input_names]}


MODELS = {"sum": spec(), "sum3": spec(("a", "b", "c"))}


_NOTHING = np.zeros(())
_NUM_PARAMS = {"step": 3, "batch": 3, "reset": 2, "open": 3}  # of an old server


@dataclass
class FakeStream:
    model: str
    window: int
    total: np.ndarray
    last_seq: int = 0
    durable_seq: int = 0
    numbered: bool | None = None
    ring: deque[tuple[int, bytes, bytes]] = field(default_factory=deque)
    received: int = 0

    @property
    def oldest(self) -> int:
        return max(self.last_seq + 1 - len(self.ring), self.received + 1)

    def is_as(self, other: FakeStream) -> bool:
        """Tell whether both have the same state, numbers and last steps."""
        mine, theirs = (replace(each, durable_seq=0, total=_NOTHING) for each in (self, other))
        return mine == theirs and np.array_equal(self.total, other.total)


Checkpoint = list[tuple[bytes, FakeStream, FakeStream]]


def _fail(code: ErrorCode, **detail: Any) -> ProtocolError:
    return ProtocolError(code, **detail)


class FakeServer:
    """The protocol without sockets; `num_applied` counts what really changed a state."""

    def __init__(
        self,
        models=None,
        endpoints=("tcp://nowhere",),
        instance="first",
        durability="none",
        **limits,
    ):
        self.durability = durability
        self.is_read_only = False
        self.features = ["batch_columns", "received", "max_wait", "of_the_future"]
        self.is_old = False  # knows no features, and so refuses them
        self.has_details = True  # a shard under a flood of errors sends none
        self.num_refused = 0
        self.disk: dict[bytes, FakeStream] = {}
        self.snapshots: dict[tuple[bytes, str], FakeStream] = {}
        self.models = MODELS if models is None else models
        self.endpoints = list(endpoints)
        self.instance = instance
        self.limits = {"max_window": 256, "max_batch": 4096, "max_message_bytes": 1 << 20}
        self.limits.update(limits)
        self.streams: dict[bytes, FakeStream] = {}
        self.busy_detail = {"retry_after_ms": 3}
        self.busy_for = 0  # so many steps, opens and items of a batch are answered `busy`
        self.num_applied = 0
        self.requests: list[str] = []
        self.handle: Callable[[bytes, int], bytes | None] = self.answer  # for tests to wrap

    # ---- the disk -----------------------------------------------------------------------------

    def begin_checkpoint(self) -> Checkpoint:
        """Copy what is not on disk; it is there when `end_checkpoint` has taken the copies."""
        return [
            (key, known, copy.deepcopy(known))
            for key, known in self.streams.items()
            if key not in self.disk or self.disk[key].last_seq != known.last_seq
        ]

    def end_checkpoint(self, copies: Checkpoint) -> None:
        for key, known, copied in copies:
            # Whoever was closed or written by a later checkpoint meanwhile is left alone.
            if self.is_read_only or self.streams.get(key) is not known:
                continue
            if copied.last_seq >= known.durable_seq:
                self._write(key, copied)
                known.durable_seq = copied.last_seq

    def crash(self, instance: str) -> None:
        """Lose what is not on disk, and be another one from now on."""
        self.restart(instance)

    def _write(self, key: bytes, known: FakeStream) -> None:
        self.disk[key] = copy.deepcopy(known)
        self.disk[key].durable_seq = known.last_seq

    def _make_durable(self, key: bytes) -> int:
        known = self.streams[key]
        if self.durability != "none" and not self.is_read_only:
            self._write(key, known)
            known.durable_seq = known.last_seq
        return known.durable_seq

    def _find(self, stream) -> FakeStream | None:
        key = protocol.canonical_id(stream)
        if key not in self.streams and key in self.disk:
            self.streams[key] = copy.deepcopy(self.disk[key])
        return self.streams.get(key)

    def _need_disk(self, must_write=True):
        if self.durability == "none":
            raise _fail(ErrorCode.NOT_SUPPORTED)
        if must_write and self.is_read_only:
            raise _fail(ErrorCode.READ_ONLY, reason="no space left")

    def restart(self, instance: str) -> None:
        self.streams.clear()
        self.instance = instance

    def answer(self, payload: bytes, shard: int = 0) -> bytes | None:
        """Answer a request."""
        asked = None
        try:
            asked, method, call = protocol.decode_request(
                payload,
                max_message_bytes=self.limits["max_message_bytes"],
                max_batch=self.limits["max_batch"],
            )
            params = msgpack.unpackb(payload)[3]
            if self.is_old and len(params) > _NUM_PARAMS.get(method, len(params)):
                self.num_refused += 1
                raise _fail(ErrorCode.BAD_PARAMS)
            self.requests.append(method)
            result = getattr(self, "_" + method)(call, shard)
            return protocol.encode_response(asked, result)
        except ProtocolError as error:
            to = asked if error.msgid is None else error.msgid
            return None if to is None else protocol.encode_error(to, self._reply(error))

    def _reply(self, error: ProtocolError) -> list[Any]:
        code, message, detail = error.reply()
        return [code, message, detail if self.has_details else None]

    # ---- methods ------------------------------------------------------------------------------

    def _hello(self, call, shard):
        return {
            "protocol": 1,
            "server": "fake",
            "instance": self.instance,
            "durability": self.durability,
            "read_only": "no space left" if self.is_read_only else None,
            "arithmetic": "fake",
            "endpoints": self.endpoints,
            "num_shards": len(self.endpoints),
            "default_window": 16,
            "max_in_flight": 1000,
            "models": list(self.models),
            "from_the_future": 7,
            **({} if self.is_old else {"features": self.features}),
            **self.limits,
        }

    def _models(self, call, shard):
        return [
            {"name": name, "fingerprint": "f" * 64, "spec": told, "row_bytes": 64}
            for name, told in self.models.items()
        ]

    def _stats(self, call, shard):
        return {"num_steps": self.num_applied}

    def _diagnostics(self, call, shard):
        self._known(call.params[0], shard)
        return {"is_recorded": True, "num_recorded": 0, "measured": None}

    def _open(self, call, shard):
        model = call.model
        if model is None and len(self.models) == 1:
            model = next(iter(self.models))
        if model not in self.models:
            raise _fail(ErrorCode.UNKNOWN_MODEL, model=model, models=list(self.models))
        window = protocol.grant_window(call.window, self.limits["max_window"])
        if isinstance(call, protocol.OpenWithStateRequest):
            return self._make(call.stream, call.record, model, shard, window)
        args = model, window, shard, call.tells_oldest
        if not call.many:
            return self._open_one(call.streams[0], *args)
        return [self._item(self._open_one, s, *args) for s in call.streams]

    def _open_one(self, stream, model, window, shard, tells_oldest=False):
        self._admit(stream, shard)
        key = protocol.canonical_id(stream)
        known = self._find(stream)
        if known is None:
            size = len(self.models[model]["inputs"])
            known = self.streams[key] = FakeStream(model, window, np.zeros(size, np.float32))
        if known.model != model:
            raise _fail(ErrorCode.WRONG_MODEL, stream=stream, has=known.model, model=model)
        oldest = [known.oldest] if tells_oldest else []
        return [known.last_seq, known.durable_seq, known.window, *oldest]

    def _close(self, call, shard):
        self._admit(call.stream, shard, may_be_busy=False)
        key = protocol.canonical_id(call.stream)
        on_disk = self.disk.pop(key, None)
        for name in [name for name in self.snapshots if name[0] == key]:
            del self.snapshots[name]
        return self.streams.pop(key, on_disk) is not None

    def _reset(self, call, shard):
        known = self._known(call.stream, shard)
        self._check_numbering(known, call.seq)
        if call.seq and self._from_ring(known, call.seq, b"reset") is not None:
            return [call.seq, known.durable_seq]
        known.total = np.zeros_like(known.total)
        known.received = max(known.received, min(call.received, known.last_seq))
        self._commit(known, call.seq, b"reset", b"")
        return [known.last_seq, known.durable_seq]

    def _sync(self, call, shard):
        self._need_disk(must_write=False)
        (stream,) = call.params
        if stream is not None:
            self._known(stream, shard)
            return self._make_durable(protocol.canonical_id(stream))
        for key in self.streams:
            self._make_durable(key)
        return not self.is_read_only

    def _export(self, call, shard):
        return pickle.dumps(self._known(call.params[0], shard))

    def _import(self, call, shard):
        stream, record, model = call.params
        return self._make(stream, record, model, shard)

    def _make(self, stream, record, model, shard, window=None):
        self._admit(stream, shard)
        if self.is_read_only:
            self._need_disk()
        there = self._find(stream)
        try:
            made = pickle.loads(record)
        except Exception:
            raise _fail(ErrorCode.DAMAGED, stream=stream, reason="it is torn") from None
        if made.model != model:
            raise _fail(ErrorCode.MISMATCH, stream=stream, stored="g" * 64, served="f" * 64)
        if window is not None:
            made = FakeStream(model, window, made.total)
        made.durable_seq = 0
        key = protocol.canonical_id(stream)
        if there is not None and not there.is_as(made):
            raise _fail(ErrorCode.EXISTS, stream=stream)
        self.streams[key] = there or made
        return [made.last_seq, self._make_durable(key), made.window]

    def _fork(self, call, shard):
        source, target = call.params
        if source == target:
            raise _fail(ErrorCode.EXISTS, stream=target)
        record = pickle.dumps(known := self._known(source, shard))
        to = protocol.shard_of(protocol.hash_slot(target), len(self.endpoints))
        return self._make(target, record, known.model, to)

    def _snapshot(self, call, shard):
        self._need_disk()
        stream, name = call.params
        known = self._known(stream, shard)
        key = protocol.canonical_id(stream)
        self.snapshots[key, name] = copy.deepcopy(known)
        return [known.last_seq, self._make_durable(key)]

    def _rollback(self, call, shard):
        self._need_disk()
        stream, seq, name = call.params
        known = self._known(stream, shard)
        key = protocol.canonical_id(stream)
        self._check_numbering(known, seq)
        if seq and self._from_ring(known, seq, b"rollback") is not None:
            return [seq, known.durable_seq]
        kept = self.disk.get(key) if name is None else self.snapshots.get((key, name))
        if kept is None:
            raise _fail(ErrorCode.UNKNOWN_SNAPSHOT, stream=stream, name=name)
        known.total = kept.total.copy()
        self._commit(known, seq, b"rollback", b"")
        return [known.last_seq, self._make_durable(key)]

    def _step(self, call, shard):
        known = self._known(call.stream, shard)
        rows = self._values(call.x, known)
        y = self._apply(known, call.first_seq, rows, call.received, call.max_wait_ms)
        last = call.first_seq + len(y) - 1 if call.first_seq else 0
        return [last, known.durable_seq, self._answer(call.x, y)]

    def _batch(self, call, shard):
        seqs = call.seqs if call.seqs is not None else [0] * len(call.streams)
        values = np.frombuffer(call.x, "<f4") if isinstance(call.x, bytes) else np.array(call.x)
        if len(values) % max(len(call.streams), 1):
            raise _fail(ErrorCode.WRONG_LENGTH, num_bytes=4 * len(values), expected_multiple=8)
        rows = values.reshape(len(call.streams), -1).astype("<f4")
        received = call.received if call.received is not None else [0] * len(call.streams)
        form = b"" if call.columns else call.x
        items = [
            self._item(self._batch_one, *each, call.max_wait_ms, form, shard)
            for each in zip(call.streams, seqs, rows, received, strict=True)
        ]
        return protocol.encode_columns(items) if call.columns else items

    def _batch_one(self, stream, seq, row, received, max_wait_ms, x, shard):
        known = self._known(stream, shard)
        rows = self._values(row.tobytes(), known)
        y = self._apply(known, seq, rows, received, max_wait_ms)
        return [seq, known.durable_seq, self._answer(x, y)]

    # ---- rules --------------------------------------------------------------------------------

    def _item(self, function, *arguments):
        try:
            return [None, function(*arguments)]
        except ProtocolError as error:
            return [self._reply(error), None]

    def _admit(self, stream, shard, may_be_busy=True):
        right = protocol.shard_of(protocol.hash_slot(stream), len(self.endpoints))
        if right != shard:
            raise _fail(ErrorCode.MOVED, endpoint=self.endpoints[right])
        if may_be_busy and self.busy_for:
            self.busy_for -= 1
            raise _fail(ErrorCode.BUSY, **self.busy_detail)

    def _known(self, stream, shard):
        self._admit(stream, shard)
        known = self._find(stream)
        if known is None:
            raise _fail(ErrorCode.UNKNOWN, stream=stream)
        return known

    def _values(self, x, known):
        size = len(known.total)
        values = np.frombuffer(x, "<f4") if isinstance(x, bytes) else np.array(x, "<f4")
        if len(values) == 0 or len(values) % size:
            raise _fail(
                ErrorCode.WRONG_LENGTH, num_bytes=4 * len(values), expected_multiple=4 * size
            )
        rows = values.reshape(-1, size)
        if not np.isfinite(rows).all():
            step, number = np.argwhere(~np.isfinite(rows))[0].tolist()
            name = self.models[known.model]["inputs"][number]["name"]
            raise _fail(ErrorCode.BAD_VALUE, step=step, input=number, name=name)
        return rows

    def _apply(self, known, first_seq, rows, received, max_wait_ms):
        if len(rows) > known.window:
            raise _fail(ErrorCode.WINDOW, num_steps=len(rows), window=known.window)
        if max_wait_ms == 0 and not 0 < first_seq <= known.last_seq:
            raise _fail(ErrorCode.LATE)
        self._check_numbering(known, first_seq)
        numbers = [first_seq + k if first_seq else 0 for k in range(len(rows))]
        outputs: list[bytes | None] = [
            self._from_ring(known, number, row.tobytes()) if number else None
            for number, row in zip(numbers, rows, strict=True)
        ]
        if outputs[0] is not None and first_seq < known.oldest:
            raise _fail(ErrorCode.STALE, got=first_seq, oldest=known.oldest)
        known.received = max(known.received, min(received, known.last_seq))
        for k, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            if outputs[k] is None:
                known.total = known.total + row
                outputs[k] = known.total.astype("<f4").tobytes()
                self._commit(known, number, row.tobytes(), outputs[k])
        return np.frombuffer(b"".join(y for y in outputs if y is not None), "<f4").reshape(
            len(rows), -1
        )

    def _check_numbering(self, known, seq):
        if known.numbered is not None and known.numbered != (seq > 0):
            raise _fail(ErrorCode.MIXED_NUMBERING)
        if seq > known.last_seq + 1:
            raise _fail(ErrorCode.GAP, expected=known.last_seq + 1, got=seq)

    def _from_ring(self, known, seq, digest):
        if seq > known.last_seq:
            return None
        for number, kept, y in known.ring:
            if number == seq:
                if kept != digest:
                    raise _fail(ErrorCode.CONFLICT, seq=seq)
                return y
        raise _fail(ErrorCode.STALE, got=seq, oldest=known.oldest)

    def _commit(self, known, seq, digest, y):
        known.numbered = seq > 0
        known.last_seq = seq
        self.num_applied += 1
        known.ring.append((seq, digest, y))
        while len(known.ring) > known.window:
            known.ring.popleft()
        if self.durability == "always":
            key = next(key for key, stream in self.streams.items() if stream is known)
            self._make_durable(key)

    def _answer(self, x, y):
        return y.tobytes() if isinstance(x, bytes) else y.ravel().tolist()


class SocketServer:
    """`FakeServer` behind one ROUTER a shard, in a thread; misbehaves as it is told to.

    `lose_requests` and `lose_replies` count down; `send_twice` answers everything twice; `is_mute`
    takes requests and says nothing; `garble` puts junk before every reply.
    """

    def __init__(self, num_shards=1, **options):
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.routers = [self._router("tcp://127.0.0.1:*") for _ in range(num_shards)]
        self.endpoints = [router.last_endpoint.decode() for router in self.routers]
        self.server = FakeServer(endpoints=self.endpoints, **options)
        self.lose_requests = self.lose_replies = 0
        self.send_twice = self.is_mute = self.garble = False
        self.num_received = 0
        self._start()

    @property
    def address(self) -> str:
        return self.endpoints[0]

    def _router(self, endpoint):
        router = self.context.socket(zmq.ROUTER)
        router.linger = 0
        for _ in range(5000):  # libzmq frees a port some time after its socket was closed
            try:
                router.bind(endpoint)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise
                threading.Event().wait(0.001)
            else:
                return router
        raise TimeoutError(f"{endpoint} is still in use")

    def _start(self):
        self._stop, waker = (self.context.socket(zmq.PAIR) for _ in range(2))
        address = f"inproc://fake-server-{next(_numbers)}"
        waker.bind(address)
        self._stop.connect(address)
        self._thread = threading.Thread(target=self._serve, args=(waker,), daemon=True)
        self._thread.start()

    def _serve(self, waker):
        poller = zmq.Poller()
        for socket in [waker, *self.routers]:
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if waker in ready:
                break
            for shard, router in enumerate(self.routers):
                if router in ready:
                    self._answer(shard, router)
        waker.close(0)
        for router in self.routers:
            router.close(0)

    def _answer(self, shard, router):
        identity, payload = router.recv_multipart()
        self.num_received += 1
        if self.lose_requests:
            self.lose_requests -= 1
            return
        reply = self.server.handle(payload, shard)
        if self.lose_replies:
            self.lose_replies -= 1
            return
        if reply is None or self.is_mute:
            return
        if self.garble:
            router.send_multipart([identity, b"\xc1 no reply"])
        for _ in range(1 + self.send_twice):
            router.send_multipart([identity, reply])

    def stop(self):
        """Stop like a crash: nothing more is answered, the sockets are gone."""
        if self._thread.is_alive():
            self._stop.send(b"")
            self._thread.join()
        self._stop.close(0)

    def start_again(self, instance="second", keep_state=False):
        """Start where it stood before, with nothing remembered unless told to."""
        if not keep_state:
            self.server.restart(instance)
        self.server.instance = instance
        self.routers = [self._router(endpoint) for endpoint in self.endpoints]
        self._start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
