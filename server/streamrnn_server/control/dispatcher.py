"""Dispatcher: takes what shards ask of Python to what answers it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from streamrnn_client.protocol import (
    MAX_BATCH,
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
from streamrnn_server.connections.connections import Connections
from streamrnn_server.control.about.about import About
from streamrnn_server.control.about.diagnostics import Diagnostics
from streamrnn_server.control.about.stats import OTHER_METHOD, ShardView
from streamrnn_server.control.error_text import word_error, word_items
from streamrnn_server.control.lookups import LookUps
from streamrnn_server.control.messages import Ask, Caller, Order
from streamrnn_server.control.methods.administration import Administration
from streamrnn_server.control.methods.models import ModelMethods
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.structs import AskKind
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["Control"]

_MAX_SHOWN = 128  # characters of a name that came from outside


class Control:
    """Answers what shards ask. Knows no sockets.

    Attributes
    ----------
    about : About
        What the server tells of itself.
    models : ModelTable
    diagnostics : Diagnostics or None
        What measures recorded streams, where a CPU computes.
    shards : list of ShardView
        Whose numbers `stats` tells; filled by the server.
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
        limits_of: Callable[[str], UserLimits] | None = None,
    ) -> None:
        self.models = table
        self.shards: list[ShardView] = []
        self._config, self._endpoints, self._log = config, list(endpoints), log
        self.diagnostics: Diagnostics | None = None
        if config.diagnostics_streams and device == "cpu":
            self.diagnostics = Diagnostics(table, self.shards, log)
        self.about = About(
            *(config, table, device, endpoints, self.shards, log, disk, connections),
            *(self.diagnostics, limits_of or (lambda user: config.user_limits)),
        )
        self._calls = self.about.calls
        store, expiry = (None, None) if disk is None else (disk.store, disk.expiry)
        held = {} if disk is None else disk.held
        records = RecordLookup(table.served, store, expiry, config.has_users, held)
        self._state_methods = StateMethods(
            records,
            table,
            config.num_shards,
            is_durable=disk is not None,
            min_window=1 if device == "cpu" else 2,
            usage=None if disk is None else disk.usage,
            has_journal=disk is not None and disk.has_journal,
            diagnostics=self.diagnostics,
        )
        self._model_methods = ModelMethods(
            *(config, table, catalogue or Catalogue(None), device),
            *(self.shards, disk, log, wake),
            self.diagnostics,
        )
        self._administration = Administration(config, disk, records, self._state_methods)
        self._look_ups = LookUps(records, disk, self._administration)
        self._methods: dict[str, Callable[[Caller, list[Any]], list[Order]]] = {
            "hello": self._at_once(lambda user, params: self.about.hello()),
            "models": self._at_once(
                lambda user, params: table.describe(params, config.precision, device)
            ),
            "stats": self._at_once(self.about.stats_for),
            "model": self._call_model,
            **{name: functools.partial(self._call_state, name) for name in StateMethods.METHODS},
            **{name: functools.partial(self._administer, name) for name in Administration.METHODS},
        }

    @property
    def instance(self) -> str:
        """Tells this start of the server from every other."""
        return self.about.instance

    def stats(self) -> dict[str, Any]:
        """Return what the server tells about itself: see `About.stats`."""
        return self.about.stats()

    def memory_used_bytes(self) -> int:
        """Return how much of the memory budget is used."""
        return sum(int(shard.struct["budget"]["used_bytes"]) for shard in self.shards)

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

    def drop(self, shard: int, ask: Ask) -> None:
        """Note that a question of a shard no longer waits."""
        if ask.charge:
            self.shards[shard].note_answered(ask.client, ask.charge)

    def news(self) -> list[Order]:
        """Return what is to be sent, now that something was done in another thread."""
        return self._model_methods.news()

    def watch(self) -> list[Order]:
        """Look now and then for models to load."""
        return self._model_methods.watch()

    def stop(self) -> None:
        """Begin nothing more in another thread."""
        self._model_methods.stop()

    def _answer(self, shard: int, ask: Ask) -> list[Order]:
        if ask.ask == AskKind.LOOK_UP:
            return [self._look_ups.answer(shard, ask, self._user(shard, ask))]
        if ask.ask == AskKind.LEFT:
            self._administration.note_left(ask.body)
            return []
        if ask.ask == AskKind.DONE or self._model_methods.owns(ask.msgid):
            return self._model_methods.note(shard, ask)
        caller = Caller(shard, ask.identity, ask.msgid)
        if ask.ask == AskKind.ENTRY:
            return self._state_methods.finish_export(caller, ask.body)
        if ask.ask == AskKind.REPLY:
            return self._state_methods.deliver(caller, ask.body)
        caller = caller._replace(user=self._user(shard, ask))
        if ask.ask == AskKind.CALL:
            return self._call(caller, ask)
        known_about = functools.partial(self._look_ups.known_about, caller.user)
        if ask.ask == AskKind.ERROR:
            payload = word_error(ask, self.models.specs, known_about)
        else:
            payload = word_items(
                *(ask, self.models.specs, self._config.retry_after_ms),
                *(self._endpoints, known_about),
            )
        return self._state_methods.deliver(caller, payload)

    def _give_up(self, shard: int, ask: Ask) -> list[Order]:
        """Answer `internal`, so that nobody waits for what has failed."""
        if ask.ask == AskKind.LOOK_UP:
            return [self._look_ups.give_up(shard, ask)]
        if ask.msgid < 0:
            self._calls.num_too_broken += 1
            return []
        self._calls.note_error(OTHER_METHOD, ErrorCode.INTERNAL)
        payload = encode_error(ask.msgid, error_reply(ErrorCode.INTERNAL))
        return self._state_methods.deliver(Caller(shard, ask.identity, ask.msgid), payload)

    def _user(self, shard: int, ask: Ask) -> str:
        return self.shards[shard].user(ask.owner)

    # ---- calls of clients -----------------------------------------------------------------------

    def _call(self, caller: Caller, ask: Ask) -> list[Order]:
        try:
            request = decode_request(ask.body, max_batch=MAX_BATCH)
        except ProtocolError as error:
            if error.msgid is None:
                self._calls.num_too_broken += 1
                return []
            self._calls.note(OTHER_METHOD, ask)
            self._calls.note_error(OTHER_METHOD, error.code)
            return self._state_methods.deliver(caller, encode_error(error.msgid, error.reply()))
        caller = caller._replace(msgid=request.msgid)
        try:
            return self._serve(caller, request)
        except ProtocolError as error:
            self._calls.note_error(request.method, error.code)
            reply = encode_error(request.msgid, error.reply())
            return self._state_methods.deliver(caller, reply)
        finally:
            self._calls.note(request.method, ask)

    def _serve(self, caller: Caller, request: Request) -> list[Order]:
        call = request.call
        if isinstance(call, OpenWithStateRequest):
            return self._state_methods.open_with_state(caller, call)
        if isinstance(call, ColdRequest) and request.method in self._methods:
            return self._methods[request.method](caller, call.params)
        raise self._refusal(request)

    def _at_once(
        self, answer: Callable[[str, list[Any]], Any]
    ) -> Callable[[Caller, list[Any]], list[Order]]:
        """Return a method whose result is there at once: ``answer`` takes user and parameters."""

        def serve(caller: Caller, params: list[Any]) -> list[Order]:
            reply = encode_response(caller.msgid, answer(caller.user, params))
            return self._state_methods.deliver(caller, reply)

        return serve

    def _call_state(self, method: str, caller: Caller, params: list[Any]) -> list[Order]:
        return self._state_methods.call(caller, method, params)

    def _call_model(self, caller: Caller, params: list[Any]) -> list[Order]:
        self._administration.need_admin(caller.user)
        return self._model_methods.call(caller, params)

    def _administer(self, method: str, caller: Caller, params: list[Any]) -> list[Order]:
        answer, orders = self._administration.call(caller, method, params)
        reply = encode_response(caller.msgid, answer)
        return [*orders, *self._state_methods.deliver(caller, reply)]

    def _refusal(self, request: Request) -> ProtocolError:
        """Say why a well-formed request is not served."""
        call, names = request.call, self.models.names
        if isinstance(call, ColdRequest):
            return ProtocolError(ErrorCode.NOT_SUPPORTED)
        if isinstance(call, OpenRequest) and call.model is not None:
            shown = call.model[:_MAX_SHOWN]
            return ProtocolError(ErrorCode.UNKNOWN_MODEL, model=shown, models=names)
        if isinstance(call, OpenRequest):
            return ProtocolError(
                ErrorCode.UNKNOWN_MODEL, model=None, models=names, num_models=len(names)
            )
        self._log.write("error", "the two codecs disagree", method=request.method)
        return ProtocolError(ErrorCode.INTERNAL)
