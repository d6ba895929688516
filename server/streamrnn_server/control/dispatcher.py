"""Dispatcher: answers what shards ask of Python, from `hello` to the text of errors."""

from __future__ import annotations

import functools
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from streamrnn import __version__
from streamrnn_client.protocol import (
    DEFAULT_WINDOW,
    FEATURES,
    MAX_BATCH,
    MAX_WINDOW,
    PROTOCOL_VERSION,
    ColdRequest,
    ErrorCode,
    OpenRequest,
    OpenWithStateRequest,
    ProtocolError,
    Request,
    decode_request,
    encode_error,
    encode_response,
    error_reply,
)
from streamrnn_server.config import ServerConfig, UserLimits
from streamrnn_server.control.busiest import busiest_streams
from streamrnn_server.control.connections import Connections
from streamrnn_server.control.diagnostics import Diagnostics
from streamrnn_server.control.drain import Administration
from streamrnn_server.control.error_text import word_error, word_items
from streamrnn_server.control.messages import Ask, Caller, Order, command
from streamrnn_server.control.model_methods import ModelMethods
from streamrnn_server.control.state_methods import StateMethods
from streamrnn_server.control.stats import (
    OTHER_METHOD,
    ShardView,
    all_times,
    batch_totals,
    disk_stats,
    errors_by_code,
    latency_us,
    memory_parts,
    num_quarantined_now,
    shard_stats,
    times_us,
    total_counters,
)
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.structs import AskKind, CommandKind
from streamrnn_server.storage.durations import Durations
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.replay import all_arithmetics
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["Control"]

# What `stats` adds up of all shards beside their counters.
_GAUGES = (
    "num_streams",
    "num_ready",
    "num_requests_in_flight",
    "memory_used_bytes",
    "unread_bytes",
    "asked_bytes",
)
_CALL_BOUNDS_S = tuple(2.0**k / 2**16 for k in range(20))  # 15 µs to 8 s
_MAX_SHOWN = 128  # characters of a name that came from outside


class Control:
    """Answers what shards ask. Knows no sockets.

    Attributes
    ----------
    instance : str
        Tells this start of the server from every other.
    build_info : dict of str to str
        What serves, and how.
    models : ModelTable
    num_too_broken : int
        Number of messages that could not even be answered.
    num_calls : Counter of str
        How many calls came here, by method.
    call_times : dict of str to Durations
        From their coming here to their answer, or to what is asked of a shard for it, by method.
    num_errors : Counter of (str, str)
        How many of them ended with an error here, by method and code.
    diagnostics : Diagnostics or None
        What measures recorded streams, where a CPU computes.
    shards : list of ShardView
        Whose numbers `stats` tells; filled by the server.
    limits_of : callable
        Returns what a user may take; set by the server where single users' are known.
    """

    def __init__(
        self,
        config: ServerConfig,
        table: ModelTable,
        device: str,
        endpoints: Sequence[str],
        log: EventLog,
        disk: StateDir | None = None,
        connections: Connections | None = None,
        catalogue: Catalogue | None = None,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self.instance = secrets.token_hex(8)
        self.num_too_broken = 0
        self.num_calls: Counter[str] = Counter()
        self.call_times = defaultdict[str, Durations](lambda: Durations(_CALL_BOUNDS_S))
        self.num_errors: Counter[tuple[str, str]] = Counter()
        self.shards: list[ShardView] = []
        self._config = config
        self.models = table
        self._arithmetic = all_arithmetics(each.arithmetic for each in table.served)
        self._device = device
        self.limits_of: Callable[[str], UserLimits] = lambda user: config.user_limits
        self._endpoints = list(endpoints)
        self._log = log
        self._disk = disk
        self._connections = connections
        self._usage = None if disk is None else disk.usage
        self._model_methods = ModelMethods(
            *(config, table, catalogue or Catalogue(None), device),
            *(self.shards, disk, log, wake),
        )
        self.build_info = {
            "version": __version__,
            "arithmetic": self._arithmetic,
            "precision": config.precision,
            "device": device,
            "durability": config.durability,
        }
        self._started_s = time.monotonic()
        self._methods: dict[str, Callable[[Caller, list[Any]], Any]] = {
            "hello": lambda caller, params: self._hello(),
            "models": lambda caller, params: table.describe(params, config.precision, device),
            "stats": lambda caller, params: self._stats_for(caller.user),
        }
        store, expiry = (None, None) if disk is None else (disk.store, disk.expiry)
        held = {} if disk is None else disk.held
        self._record_lookup = RecordLookup(table.served, store, expiry, config.has_users, held)
        self.diagnostics: Diagnostics | None = None
        if config.diagnostics_streams and device == "cpu":
            self.diagnostics = Diagnostics(table.named, self.shards, log)
        self._state_methods = StateMethods(
            self._record_lookup,
            table,
            config.num_shards,
            is_durable=disk is not None,
            min_window=1 if device == "cpu" else 2,
            usage=self._usage,
            has_journal=disk is not None and disk.has_journal,
            diagnostics=self.diagnostics,
        )
        args = config, disk, self._record_lookup, self._state_methods
        self._administration = Administration(*args)

    def answer(self, shard: int, ask: Ask) -> list[Order]:
        """Answer what a shard asks.

        Returns
        -------
        list of Order
            What to send to which shard; nothing if nobody can be answered.
        """
        self.drop(shard, ask)
        try:
            return self._answer(shard, ask)
        except Exception as error:  # a fault of ours must not end the server
            self._log.write_fault("a request failed", error)
            return self._give_up(shard, ask)

    def news(self) -> list[Order]:
        """Return what is to be sent, now that something was done in another thread."""
        return self._model_methods.news()

    def watch(self) -> list[Order]:
        """Look now and then for models to load."""
        return self._model_methods.watch()

    def stop(self) -> None:
        """Begin nothing more in another thread."""
        self._model_methods.stop()

    def drop(self, shard: int, ask: Ask) -> None:
        """Note that a question of a shard no longer waits."""
        if ask.charge:
            self.shards[shard].note_answered(ask.client, ask.charge)

    def _answer(self, shard: int, ask: Ask) -> list[Order]:
        caller = Caller(shard, ask.identity, ask.msgid)
        if ask.ask == AskKind.LOOK_UP:
            return [Order(shard, self._look_up(shard, ask))]
        if ask.ask == AskKind.LEFT:
            self._administration.note_left(ask.body)
            return []
        if ask.ask in (AskKind.CALL, AskKind.ERROR, AskKind.ITEMS):
            caller = caller._replace(user=self._user(shard, ask))
        known_about = functools.partial(self._known_about, caller.user)
        if ask.ask == AskKind.DONE or self._model_methods.owns(ask.msgid):
            return self._model_methods.note(shard, ask)
        if ask.ask == AskKind.ENTRY:
            return self._state_methods.finish_export(caller, ask.body)
        if ask.ask == AskKind.REPLY:
            return self._state_methods.deliver(caller, ask.body)
        if ask.ask == AskKind.ERROR:
            payload = word_error(ask, self.models.specs, known_about)
            return self._state_methods.deliver(caller, payload)
        if ask.ask == AskKind.ITEMS:
            retry_after_ms = self._config.retry_after_ms
            payload = word_items(
                ask, self.models.specs, retry_after_ms, self._endpoints, known_about
            )
            return self._state_methods.deliver(caller, payload)
        return self._call(caller, ask)

    def _give_up(self, shard: int, ask: Ask) -> list[Order]:
        """Answer `internal`, so that nobody waits for what has failed."""
        if ask.ask == AskKind.LOOK_UP:
            return [Order(shard, self._found(ask, ErrorCode.INTERNAL))]
        if ask.msgid < 0:
            self.num_too_broken += 1
            return []
        self._count_error(OTHER_METHOD, ErrorCode.INTERNAL)
        payload = encode_error(ask.msgid, error_reply(ErrorCode.INTERNAL))
        return self._state_methods.deliver(Caller(shard, ask.identity, ask.msgid), payload)

    def _count_error(self, method: str, code: ErrorCode | str) -> None:
        name = code.wire if isinstance(code, ErrorCode) else code
        self.num_errors[method, name] += 1

    def _user(self, shard: int, ask: Ask) -> str:
        return self.shards[shard].user(ask.owner)

    def _look_up(self, shard: int, ask: Ask) -> list[bytes]:
        code_of_drain = self._administration.code_of(ask.body, ask.msgid)
        if code_of_drain is not None:
            return self._found(ask, code_of_drain, owner="", is_held=True)
        code, model, record, owner = self._record_lookup.look_up(ask.body)
        is_new = code in (ErrorCode.UNKNOWN, ErrorCode.EXPIRED)
        if is_new and self._usage is not None and self._usage.is_full(self._user(shard, ask)):
            return self._found(ask, ErrorCode.READ_ONLY)
        is_held = self._record_lookup.is_held(ask.body) or code in (ErrorCode.BUSY, ErrorCode.MOVED)
        return self._found(ask, code, model, record, owner, is_held)

    @staticmethod
    def _found(
        ask: Ask,
        code: int,
        model: int = 0,
        record: bytes = b"",
        owner: str | None = None,
        is_held: bool = False,
    ) -> list[bytes]:
        slot, generation, *_ = ask.details
        values = {
            "slot": slot,
            "generation": generation,
            "code": code,
            "model": model,
            "data_bytes": len(record),
            "owner_bytes": -1 if owner is None else len(owner.encode()),
            "asker": ask.owner,
            "digest": is_held,
        }
        return command(CommandKind.FOUND, values, record, (owner or "").encode())

    def _known_about(self, user: str, code: ErrorCode, stream: bytes) -> dict[str, Any]:
        """Return what a shard could not say about an error."""
        if code in (ErrorCode.MISMATCH, ErrorCode.DAMAGED):
            return self._record_lookup.refusal(stream)
        if code is ErrorCode.MOVED:
            return self._record_lookup.departure(stream)
        if code is ErrorCode.EXPIRED:
            idle_s = self._record_lookup.idle_s(stream, user)
            return {} if idle_s is None else {"idle_s": idle_s}
        if code is ErrorCode.READ_ONLY and self._usage is not None and self._usage.is_full(user):
            return {"reason": self._usage.reason(user)}
        if code is ErrorCode.READ_ONLY and self._disk is not None:
            return {"reason": self._disk.read_only or "it failed a moment ago"}
        return {}

    def _call(self, caller: Caller, ask: Ask) -> list[Order]:
        try:
            request = decode_request(ask.body, max_batch=MAX_BATCH)
        except ProtocolError as error:
            if error.msgid is None:
                self.num_too_broken += 1
                return []
            self._note_call(OTHER_METHOD, ask)
            self._count_error(OTHER_METHOD, error.code)
            return self._state_methods.deliver(caller, encode_error(error.msgid, error.reply()))
        try:
            return self._serve(caller._replace(msgid=request.msgid), request)
        finally:
            self._note_call(request.method, ask)

    def _note_call(self, method: str, ask: Ask) -> None:
        self.num_calls[method] += 1
        self.call_times[method].note(time.monotonic() - ask.came_at_s)

    def _serve(self, caller: Caller, request: Request) -> list[Order]:
        try:
            if isinstance(request.call, OpenWithStateRequest):
                return self._state_methods.open_with_state(caller, request.call)
            if request.method in StateMethods.METHODS and isinstance(request.call, ColdRequest):
                return self._state_methods.call(caller, request.method, request.call.params)
            if request.method == "model" and isinstance(request.call, ColdRequest):
                self._administration.need_admin(caller.user)
                return self._model_methods.call(caller, request.call.params)
            if request.method in Administration.METHODS and isinstance(request.call, ColdRequest):
                args = caller, request.method, request.call.params
                answer, orders = self._administration.call(*args)
                reply = encode_response(request.msgid, answer)
                return [*orders, *self._state_methods.deliver(caller, reply)]
            if request.method in self._methods and isinstance(request.call, ColdRequest):
                answer = self._methods[request.method](caller, request.call.params)
                reply = encode_response(request.msgid, answer)
            else:
                refusal = self._refusal(request)
                self._count_error(request.method, refusal[0])
                reply = encode_error(request.msgid, refusal)
        except ProtocolError as error:
            self._count_error(request.method, error.code)
            reply = encode_error(request.msgid, error.reply())
        return self._state_methods.deliver(caller, reply)

    def _refusal(self, request: Request) -> list[Any]:
        """Say why a well-formed request is not served."""
        call, names = request.call, self.models.names
        if isinstance(call, ColdRequest):
            return error_reply(ErrorCode.NOT_SUPPORTED)
        if isinstance(call, OpenRequest) and call.model is not None:
            shown = call.model[:_MAX_SHOWN]
            return error_reply(ErrorCode.UNKNOWN_MODEL, model=shown, models=names)
        if isinstance(call, OpenRequest):
            return error_reply(
                ErrorCode.UNKNOWN_MODEL, model=None, models=names, num_models=len(names)
            )
        self._log.write("error", "the two codecs disagree", method=request.method)
        return error_reply(ErrorCode.INTERNAL)

    def _hello(self) -> dict[str, Any]:
        config = self._config
        return {
            "protocol": PROTOCOL_VERSION,
            "server": __version__,
            "instance": self.instance,
            "durability": config.durability,
            "read_only": self._disk and self._disk.read_only,
            "arithmetic": self._arithmetic,
            "precision": config.precision,
            "device": self._device,
            "endpoints": self._endpoints,
            "num_shards": config.num_shards,
            "default_window": DEFAULT_WINDOW,
            "max_window": MAX_WINDOW,
            "max_message_bytes": config.max_message_bytes,
            "max_in_flight": config.max_in_flight,
            "max_batch": MAX_BATCH,
            "features": list(FEATURES),
            "models": self.models.names,
            "aliases": dict(self.models.aliases),
        }

    def _stats_for(self, user: str) -> dict[str, Any]:
        """Return the totals to who may see them, and to a user what is his own."""
        config = self._config
        if not config.has_users or user in config.admins:
            told = {"busiest": busiest_streams(self.shards, self.models.specs)}
            if self.diagnostics is not None:
                told["recorded"] = self.diagnostics.streams()
            return self.stats() | told
        usage = {}
        if self._usage is not None:
            usage["num_bytes_on_disk"] = self._usage.num_bytes(user)
            usage["max_bytes_on_disk"] = self._usage.max_bytes
        return {
            "server": __version__,
            "instance": self.instance,
            "uptime_s": time.monotonic() - self._started_s,
            "durability": config.durability,
            **({} if self._disk is None else {"read_only": self._disk.read_only}),
            "user": user,
            **self._budget_of(user),
            **usage,
        }

    def _budget_of(self, user: str) -> dict[str, int]:
        """Return what a user takes of the memory, and what he may take."""
        used = [shard.budget_of(user) for shard in self.shards]
        limits = self.limits_of(user)
        return {
            "num_streams": sum(each["num_streams"] for each in used),
            "max_streams": limits.max_streams,
            "num_bytes": sum(each["num_bytes"] for each in used),
            "max_bytes": limits.max_bytes,
            "max_steps_per_s": limits.max_steps_per_s,
        }

    def memory_used_bytes(self) -> int:
        """Return how much of the memory budget is used."""
        return sum(int(shard.struct["budget"]["used_bytes"]) for shard in self.shards)

    def stats(self) -> dict[str, Any]:
        """Return what the server tells about itself.

        Returns
        -------
        dict
            Plain types; counters are named ``num_*``, units stand in names.
        """
        counters = total_counters(self.shards)
        counters["num_too_broken_to_answer"] += self.num_too_broken
        counters["num_dropped_log_lines"] = self._log.num_dropped
        times = all_times(self.shards)
        num_steps = batch_totals(self.shards).num_steps.tolist()
        errors = Counter(errors_by_code(self.shards))
        for (_, code), number in self.num_errors.copy().items():
            errors[code] += number
        shards = [
            shard_stats(shard, endpoint)
            for shard, endpoint in zip(self.shards, self._endpoints, strict=True)
        ]
        return {
            "server": __version__,
            "instance": self.instance,
            "uptime_s": time.monotonic() - self._started_s,
            "num_restarts": self._config.num_restarts,
            "durability": self._config.durability,
            **disk_stats(self._disk, self.shards),
            "max_streams": self._config.max_streams,
            **{name: sum(each[name] for each in shards) for name in _GAUGES},
            **({} if self._connections is None else self._connections.stats()),
            "memory_budget_bytes": self._config.memory_budget_bytes,
            "memory_parts_bytes": memory_parts(self.shards),
            **counters,
            "num_quarantined_now": num_quarantined_now(self.shards),
            "num_errors_internal": self._log.num_faults,
            "errors": dict(errors),
            "calls": dict(self.num_calls),
            "latency_us": latency_us(times),
            "times_us": times_us(times),
            "models": {
                name: sum(each["num_open"].get(name, 0) for each in shards)
                for name in self.models.names
            },
            "aliases": dict(self.models.aliases),
            "steps": {name: num_steps[k] for name, k in dict(self.models.indices).items()},
            **({} if self.diagnostics is None else {"diagnostics": self.diagnostics.by_model()}),
            "shards": shards,
        }
