"""What a client knows of its server and streams, and the requests that tell it more."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgpack

from streamrnn_client import errors
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.replay_log import MAX_KEPT_BYTES, MAX_KEPT_STEPS, ReplayLog
from streamrnn_client._session.stream_state import Departures, StreamState, as_id
from streamrnn_client._session.turns import Claim
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.protocol import (
    DEFAULT_MAX_MESSAGE_BYTES,
    ORIGINS,
    StreamId,
    hash_slot,
    shard_of,
)
from streamrnn_client.protocol.codes import kind_of
from streamrnn_client.server_info import ServerInfo

__all__ = ["MAX_MOVES", "OVERHEAD_BYTES", "Operation", "ServerView", "packed_request"]

MAX_MOVES = 4
OVERHEAD_BYTES = 1024  # what a message holds besides its streams and their x, generously

_SMALL_BYTES = 32_768  # every server takes so much

T = TypeVar("T")
Operation = Generator[Call | Claim, None, T]


def packed_request(method: str, params: Sequence[Any]) -> tuple[bytes, bytes]:
    """Return a request's method and parameters in MessagePack.

    Raises `BadParams` if they cannot be written in it.
    """
    if not isinstance(method, str) or not isinstance(params, list | tuple):
        raise errors.BadParams(
            f"method and params are {type(method).__name__} and {type(params).__name__}; expected "
            "are a str and a list"
        )
    try:
        return msgpack.packb(method), msgpack.packb(params)
    except (OverflowError, TypeError, ValueError, RecursionError) as error:
        raise errors.BadParams(
            f"the parameters of {method!r} cannot be sent: {error}. They may be None, bool, float, "
            "str of valid Unicode, bytes, int from -2**63 to 2**64 - 1, and lists and dicts of "
            "these, some hundred in each other at most"
        ) from None


class ServerView:
    """What all threads or tasks of a client share: the server, its models and streams.

    `release` gives back claimed streams before the end of an operation. `info` is the last `hello`;
    `is_stale` says that it should be asked again first. `map_version` changes whenever a stream may
    have got another endpoint.
    """

    def __init__(
        self,
        address: str,
        release: Callable[[Claim], None],
        max_kept_steps: int = MAX_KEPT_STEPS,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self.address = address
        self.max_kept_steps = max_kept_steps
        self.max_kept_bytes = max_kept_bytes
        self.release = release
        self.info: ServerInfo | None = None
        self.is_stale = False
        self.models: dict[str, ModelInfo] = {}
        self.streams: dict[Any, StreamState] = {}
        self.map_version = 0
        self._moved: dict[int, str] = {}
        self._departures = Departures()

    # ---- the server ---------------------------------------------------------------------------

    def request(
        self,
        ex: Exchange,
        method: str,
        params: Sequence[Any],
        deadline: float | None = None,
        address: str = "",
    ) -> Operation[Any]:
        """Send a shard, by default the first, what changes no stream; may be sent again."""
        parts = packed_request(method, params)
        if len(parts[1]) > _SMALL_BYTES:
            yield from self.server_info(ex)
        self.check_size(method, parts)
        call = ex.submit(address or self.address, method, parts, deadline=deadline)
        try:
            yield call
        finally:
            ex.abandon(call)
        if call.error is not None:
            self.is_stale |= isinstance(call.error, TimeoutError | ConnectionError)
            raise call.error
        return call.result

    def check_size(self, method: str, parts: Sequence[bytes]) -> None:
        """Raise `TooLarge` for what a server would cut the connection of."""
        most = DEFAULT_MAX_MESSAGE_BYTES if self.info is None else self.info.max_message_bytes
        num_bytes = sum(map(len, parts)) + OVERHEAD_BYTES
        if num_bytes > most:
            raise errors.TooLarge(
                f"{method} would be a message of about {num_bytes:,} bytes; the server takes "
                f"{most:,} at most: send less at once",
                {"num_bytes": num_bytes, "max": most},
            )

    def hello(self, ex: Exchange, deadline: float | None = None) -> Operation[ServerInfo]:
        """Ask which server it is and where its shards are."""
        params = [{"client": "streamrnn-client"}]
        reply = yield from self.request(ex, "hello", params, deadline)
        info = ServerInfo.from_map(reply, self.address)
        if self.info is None or info.instance != self.info.instance:
            self.models = {}
        self.info = info
        self.is_stale = False
        self._departures.end(self.streams.values())
        self._moved = {}
        self.map_version += 1
        ex.max_in_flight = info.max_in_flight
        return info

    def server_info(self, ex: Exchange) -> Operation[ServerInfo]:
        """Return what is known of the server; ask if nothing is, or it is stale."""
        if self.info is None or self.is_stale:
            return (yield from self.hello(ex))
        ex.max_in_flight = self.info.max_in_flight
        return self.info

    def list_models(self, ex: Exchange) -> Operation[dict[str, ModelInfo]]:
        """Ask for all models and their descriptions."""
        info = yield from self.server_info(ex)
        known = [[ORIGINS]] if ORIGINS in info.features else []
        reply = yield from self.request(ex, "models", known)
        if not isinstance(reply, list):
            raise errors.NotSupported(f"models answered {kind_of(reply)}; expected was a list")
        self.models = {model.name: model for model in map(ModelInfo, reply)}
        return dict(self.models)

    def stats(self, ex: Exchange) -> Operation[dict[str, Any]]:
        """Ask for the server's counters."""
        reply = yield from self.request(ex, "stats", [])
        if not isinstance(reply, dict):
            raise errors.NotSupported(f"stats answered {kind_of(reply)}; expected was a map")
        return reply

    def diagnostics(self, ex: Exchange, stream: StreamId) -> Operation[dict[str, Any]]:
        """Ask a stream's shard what is measured of it; it need not be open here."""
        stream = as_id(stream)
        info = yield from self.server_info(ex)
        address, num_moves = self.address, 0
        if self.is_spread:
            address = info.endpoints[shard_of(hash_slot(stream), info.num_shards)]
        while True:
            try:
                found: dict[str, Any] = yield from self.request(
                    ex, "diagnostics", [stream], address=address
                )
                return found
            except errors.Moved as error:
                endpoint, num_moves = error.detail.get("endpoint"), num_moves + 1
                if not isinstance(endpoint, str) or num_moves > MAX_MOVES:
                    raise
                address = endpoint

    def model_info(self, ex: Exchange, name: str | None) -> Operation[ModelInfo]:
        """Return a model's description; None is the only model."""
        if name is not None and not isinstance(name, str):
            raise errors.BadParams(
                f"model is {name!r}; it must be a name, or None for the only one"
            )
        if name not in self.models and not (name is None and len(self.models) == 1):
            yield from self.list_models(ex)
        if name is None:
            aliases = {model.about.get("alias", model.name) for model in self.models.values()}
            if len(aliases) == 1:
                (alias,) = aliases
                return self.models.get(alias) or next(iter(self.models.values()))
        if name in self.models:
            return self.models[name]
        served = sorted(self.models)
        nearest = difflib.get_close_matches(str(name), served, 1)
        raise errors.UnknownModel(
            (
                f"no model is named, and {len(served)} are served: name one of {served}"
                if name is None
                else f"there is no model {name!r}; served are {served}"
            )
            + (f"; did you mean {nearest[0]!r}?" if nearest else ""),
            {"model": name, "models": served},
        )

    def endpoint(self, state: StreamState) -> str:
        """Return where a stream's requests go."""
        if state.server or not self.is_spread:
            return state.server or self.address
        moved = self._moved.get(state.slot)
        if moved is not None:
            return moved
        info = self.info
        # With one shard the user's own address is right even behind a tunnel or a NAT.
        if info is None or info.num_shards == 1:
            return self.address
        return info.endpoints[shard_of(state.slot, info.num_shards)]

    @property
    def is_spread(self) -> bool:
        """Whether streams live at more than one endpoint."""
        return bool(self._moved) or (self.info is not None and self.info.num_shards > 1)

    @property
    def has_columns(self) -> bool:
        """Whether the server can answer a batch in columns, as far as it said."""
        return self.info is not None and "batch_columns" in self.info.features

    @property
    def has_received(self) -> bool:
        """Whether the server can be told which outputs were received, as far as it said."""
        return self.info is not None and "received" in self.info.features

    def late_at(self, ex: Exchange, within_s: float | None) -> float:
        """Return when steps that are of use within some seconds are late.

        Raises `BadParams` if that is no time, `NotSupported` if the server cannot be told.
        """
        if within_s is None:
            return math.inf
        is_number = isinstance(within_s, int | float) and not isinstance(within_s, bool)
        if not is_number or not 0 < within_s < 1e6:
            raise errors.BadParams(
                f"within_s is {within_s!r}; it must be a number of seconds above 0"
            )
        if self.info is None or "max_wait" not in self.info.features:
            raise errors.NotSupported(
                "this server is too old to be told how long steps may wait: leave within_s out"
            )
        return ex.late_at(within_s)

    def received(self, state: StreamState) -> int:
        """Return what a stream's server is told that its caller has; 0 for nothing."""
        return state.received if self.has_received and state.window > 1 else 0

    @property
    def is_durable(self) -> bool:
        """Whether the server keeps streams on disk, as far as it said."""
        return self.info is not None and self.info.durability != "none"

    def max_chunk(self, state: StreamState) -> int:
        """Return the most steps of one message: by the window, and by its size."""
        if self.info is None:
            return state.window
        x_bytes = self.info.max_message_bytes - OVERHEAD_BYTES
        most = x_bytes // (4 * max(state.model.num_inputs, state.model.output_size))
        return max(1, min(state.window, most))

    def apply_opened(self, state: StreamState, result: Sequence[int], instance: str) -> bool:
        """Apply the result of `open`; False if the server is behind and replay can help.

        Without a replay log, a step that the server no longer knows of is a loss.
        """
        last_seq, durable_seq, window, *_ = result
        state.forget_refused(last_seq)
        if last_seq < state.last_seq:
            if state.replay_log is not None:
                return False
            state.lost = f"the server knows of {last_seq} steps only"
            if self.info is not None and self.info.instance != state.instance:
                state.lost += f"; it was started again (instance {self.info.instance})"
            return True
        if last_seq > state.last_seq:  # of steps that were not answered, or not asked for here
            state.unread_seq = last_seq
        state.last_seq, state.window = last_seq, window
        # Of the time before the request was sent: should the server have been started again since,
        # then a loss looks like one by a crash, which is the side to err on.
        state.instance = instance
        state.is_open = True
        state.in_doubt = False
        if not self.is_durable or not state.numbered:
            state.replay_log = None
        elif state.replay_log is None:
            row_bytes = 4 * state.model.num_inputs
            state.replay_log = ReplayLog(row_bytes, self.max_kept_steps, self.max_kept_bytes)
        state.note_durable(durable_seq)
        return True

    def note_moved(self, state: StreamState, detail: dict[str, Any]) -> None:
        """Set the endpoint of a stream, or of its hash slot, to that of a `moved`."""
        if isinstance(endpoint := detail.get("endpoint"), str):
            if self._departures.note(state, detail, self.streams.values()):
                self.address, self.is_stale = endpoint, True
            self._moved = {**self._moved, -1 if state.server else state.slot: endpoint}
            self.map_version += 1

    def has_moved(
        self, ex: Exchange, state: StreamState, call: Call, deadline: float
    ) -> Operation[bool]:
        """Return whether a silent endpoint is not the stream's any more."""
        if not isinstance(call.error, TimeoutError | ConnectionError):
            return False
        if not call.may_resend or call.endpoint == self.address:
            return False
        silence = yield from self.refresh(ex, deadline)
        return not silence and self.endpoint(state) != call.endpoint

    # ---- what went wrong ----------------------------------------------------------------------

    def interpret(
        self, ex: Exchange, state: StreamState, error: errors.StreamRNNClientError
    ) -> Operation[errors.StreamRNNClientError]:
        """Return what an error means for a stream: a loss, a doubt, or just itself."""
        what = self.loss_reason(state, error)
        if not what:
            return self.note_failure(state, error)
        silence = yield from self.refresh(ex)
        return self.mark_lost(state, what, silence, error)

    def loss_reason(self, state: StreamState, error: errors.StreamRNNClientError) -> str:
        """Return what a stream lost according to an error; empty if nothing."""
        expected = error.detail.get("expected")
        if isinstance(error, errors.Gap) and isinstance(expected, int):
            state.forget_refused(expected - 1)
        elif isinstance(error, errors.UnknownStream):
            state.forget_refused(0)
        if isinstance(error, errors.Gap) and isinstance(expected, int):
            if expected <= state.last_seq:
                return f"the server expects step {expected} next"
        elif isinstance(error, errors.Expired):
            idle = "for too long" if error.idle_s is None else f"for {error.idle_s} s"
            return f"it was idle {idle}, and has expired"
        elif isinstance(error, errors.UnknownStream):
            return "the server does not know the stream"
        return ""

    def refresh(self, ex: Exchange, deadline: float | None = None) -> Operation[str]:
        """Ask `hello` again; return the code of its error, empty if it answered."""
        try:
            yield from self.hello(ex, deadline)
        except errors.StreamRNNClientError as error:
            return error.code
        return ""

    def mark_lost(
        self,
        state: StreamState,
        what: str,
        silence: str,
        error: errors.StreamRNNClientError | None = None,
    ) -> errors.StateLost:
        """Mark a stream as lost, for good, with the reason that `refresh` found."""
        if isinstance(error, errors.Expired):  # which says why
            state.lost = what
            return errors.StateLost(state.id, state.last_seq, what, error.detail)
        instance = self.info.instance if self.info is not None else ""
        if silence:
            why = f"and it does not answer hello ({silence})"
        elif instance != state.instance:
            why = f"it was started again (instance {state.instance} before, {instance} now)"
        else:
            why = "it was not started again, so somebody closed the stream, or it was idle too long"
        state.lost = f"{what}; {why}"
        return errors.StateLost(state.id, state.last_seq, state.lost)

    def note_failure(
        self, state: StreamState, error: errors.StreamRNNClientError
    ) -> errors.StreamRNNClientError:
        """Record what an error leaves in doubt; return it with the stream's id."""
        if isinstance(error, errors.RequestTimeout | errors.ConnectionLost):
            state.in_doubt |= error.detail.get("num_sends") != 0
            self.is_stale = True
        elif isinstance(error, errors.Conflict) and state.in_doubt:
            return errors.Conflict(
                f"{error}. The call before this one on stream {state.id!r} got no answer, but its "
                "step was applied: repeat it with its own input, or go on after it with resync()",
                error.detail,
            )
        elif isinstance(error, errors.Quarantined):
            # Of a chunk, the steps before the one that was refused were applied.
            expected = error.detail.get("expected")
            if isinstance(expected, int) and state.numbered:
                state.last_seq = state.unread_seq = max(state.last_seq, expected - 1)
                state.refused_seq = expected - 1
        error.detail.setdefault("stream", state.id)
        return error
