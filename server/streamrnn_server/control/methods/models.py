"""Models under live streams: load, alias, swap and unload, one operation after the other.

An operation is a generator. It yields what it waits for: a function, which is called in another
thread, or a `Tell`, commands that all shards have to answer; it goes on with what came of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from streamrnn.kernels.cpu.program import Program
from streamrnn.state.catalogue import Content, Loaded, Share, SwapRule
from streamrnn_client.protocol import (
    ErrorCode,
    ProtocolError,
    encode_error,
    encode_response,
    error_reply,
)
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.about.diagnostics import NO_RECORDINGS, Diagnostics
from streamrnn_server.control.about.stats import ShardView
from streamrnn_server.control.messages import Ask, Caller, Order, command
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.files import new_versions, read_model
from streamrnn_server.live.rules import check_size, check_swap, need_served, take_options
from streamrnn_server.live.table import SWAP_POLICIES, ModelTable, family_of
from streamrnn_server.shard.requests.request import Kind
from streamrnn_server.shard.structs import SHARES, AskKind, CommandKind
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["ModelMethods"]

_MAX_WAITING = 64
_FIRST_TOKEN = 2**33  # above all msgids of clients, and what forks wait under
_SYNC = -1  # not a command: all that has changed is to be on disk


class Tell(NamedTuple):
    """A command for all shards, which answer it; the operation goes on with their answers."""

    what: int
    values: Callable[[ShardView], dict[str, int]] = lambda shard: {}


class _Waiting(NamedTuple):
    caller: Caller | None  # nobody where the server does it by itself
    operation: Generator[Any, Any, Any]


class ModelMethods:
    """Does what the method ``model`` asks for. Knows no sockets.

    Parameters
    ----------
    wake : callable or None
        Called in another thread, when `news` has something; None: nothing is done elsewhere.
    """

    def __init__(
        self,
        config: ServerConfig,
        table: ModelTable,
        catalogue: Catalogue,
        device: str,
        shards: list[ShardView],
        disk: StateDir | None,
        log: EventLog,
        wake: Callable[[], None] | None,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self._config, self._table, self._catalogue = config, table, catalogue
        self._device, self._shards, self._disk, self._log = device, shards, disk, log
        self._wake, self._diagnostics = wake, diagnostics
        self._thread = None if wake is None else ThreadPoolExecutor(1, "models")
        self._tokens = itertools.count(_FIRST_TOKEN)
        self._waiting: deque[_Waiting] = deque()
        self._current: _Waiting | None = None
        self._token = 0
        self._answers: dict[int, int] = {}  # of the shards to the command that is under way
        self._done: deque[Future[Any]] = deque()
        self._seen: dict[str, tuple[int, int]] = {}  # files of the watched folder
        self._actions: dict[str, Callable[..., Generator[Any, Any, Any]]] = {
            "load": self._load,
            "alias": self._alias,
            "swap": self._swap,
            "unload": self._unload,
        }

    def call(self, caller: Caller, params: list[Any]) -> list[Order]:
        """Begin what is asked for, or let it wait for its turn.

        Raises
        ------
        ProtocolError
            If it cannot be done.
        """
        action, options = take_options(params)
        if action == "shadow":
            if self._diagnostics is None:
                raise ProtocolError(ErrorCode.NOT_SUPPORTED, NO_RECORDINGS)
            payload = encode_response(caller.msgid, self._diagnostics.shadow.call(**options))
            return [Order(caller.shard, [caller.identity, payload])]
        if len(self._waiting) >= _MAX_WAITING:
            raise ProtocolError(ErrorCode.BUSY, retry_after_ms=self._config.retry_after_ms)
        self._waiting.append(_Waiting(caller, self._actions[action](**options)))
        return self._begin()

    def watch(self) -> list[Order]:
        """Look for models that have appeared in the folder, if it is to be watched."""
        directory = self._config.models_dir
        if not self._config.watch_models or directory is None or self._waiting or self._current:
            return []
        self._waiting.append(_Waiting(None, self._load_new(directory)))
        return self._begin()

    def owns(self, token: int) -> bool:
        """Tell whether an answer of a shard's is for this."""
        return token >= _FIRST_TOKEN

    def note(self, shard: int, ask: Ask) -> list[Order]:
        """Take a shard's answer to a command."""
        if ask.msgid != self._token or self._current is None:
            return []
        is_done = ask.code
        if ask.ask == AskKind.REPLY:
            is_done = int(msgpack.unpackb(ask.body)[3] is True)
        self._answers[shard] = is_done
        if len(self._answers) < len(self._shards):
            return []
        answers = [self._answers[k] for k in range(len(self._shards))]
        self._token, operation = 0, self._current.operation
        return self._go_on(lambda: operation.send(answers))

    def news(self) -> list[Order]:
        """Go on with what has come of a function that was called elsewhere."""
        orders: list[Order] = []
        while self._done and self._current is not None:
            future, operation = self._done.popleft(), self._current.operation
            error = future.exception()
            if error is None:
                result = future.result()
                orders += self._go_on(lambda op=operation, r=result: op.send(r))  # type: ignore[misc]
            else:
                orders += self._go_on(lambda op=operation, e=error: op.throw(e))  # type: ignore[misc]
        return orders

    def stop(self) -> None:
        """Begin nothing more elsewhere."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> list[Order]:
        if self._current is not None or not self._waiting:
            return []
        self._current = self._waiting.popleft()
        operation = self._current.operation
        return self._go_on(lambda: next(operation))

    def _go_on(self, send: Callable[[], Any]) -> list[Order]:
        """Let the current operation go on to what it waits for next, or to its end."""
        assert self._current is not None
        caller = self._current.caller
        msgid = 0 if caller is None else caller.msgid
        try:
            wanted = send()
        except StopIteration as end:
            payload = encode_response(msgid, end.value)
        except ProtocolError as error:
            payload = encode_error(msgid, error.reply())
        except OSError as error:
            reason = error.strerror or str(error)
            payload = encode_error(msgid, error_reply(ErrorCode.READ_ONLY, reason=reason))
        except Exception as error:  # a fault of ours must not end the server
            self._log.write_fault("an operation on models failed", error)
            payload = encode_error(msgid, error_reply(ErrorCode.INTERNAL))
        else:
            if isinstance(wanted, Tell):
                return self._tell(wanted)
            self._call_elsewhere(wanted)
            return self.news()
        self._current = None
        answer = [] if caller is None else [Order(caller.shard, [caller.identity, payload])]
        return [*answer, *self._begin()]

    def _tell(self, tell: Tell) -> list[Order]:
        self._token, self._answers = next(self._tokens), {}
        orders = []
        for k, shard in enumerate(self._shards):
            if tell.what == _SYNC:
                fields = {"kind": Kind.SYNC_ALL, "msgid": self._token, "owner_bytes": 0}
                frames = command(CommandKind.REQUEST, fields)
            else:
                frames = command(tell.what, {"msgid": self._token, **tell.values(shard)})
            orders.append(Order(k, frames))
        return orders

    def _call_elsewhere(self, function: Callable[[], Any]) -> None:
        if self._thread is not None:
            self._thread.submit(function).add_done_callback(self._note_done)
            return
        future: Future[Any] = Future()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        self._done.append(future)

    def _note_done(self, future: Future[Any]) -> None:
        self._done.append(future)
        if self._wake is not None:
            self._wake()

    # ---- operations -----------------------------------------------------------------------------

    def _load(self, name: str, file: str | None = None) -> Generator[Any, Any, Any]:
        table, directory = self._table, self._config.models_dir
        if directory is None:
            raise ProtocolError(
                ErrorCode.NOT_SUPPORTED,
                "the server loads no models while it runs; start it with --models-dir",
            )
        if len(table.models) >= table.capacity:
            text = f"{self._config.max_loads} models were loaded since the start: restart the "
            text += "server, or allow more (--max-loads)"
            raise ProtocolError(ErrorCode.NOT_SUPPORTED, text)
        path = f"{name}.safetensors" if file is None else file
        data, model = yield lambda: read_model(directory, path)
        if name in table.indices:
            if table.models[table.indices[name]].fingerprint == model.fingerprint:
                return {"name": name, "fingerprint": model.fingerprint}
            text = f"{name!r} is served already and is another model: give it another version"
            raise ProtocolError(ErrorCode.EXISTS, text)

        def pack() -> list[Program]:
            program = Program(model, self._config.precision)
            check_size(name, program, table.max_kept_of(name))
            return [program, *(program.for_shard() for _ in self._shards)]

        programs = yield pack
        index, family = len(table.models), family_of(name)
        is_new, number = family not in table.families, table.number_of(family)
        addresses = {
            id(shard): shard.models.prepare(index, name, program, number)
            for shard, program in zip(self._shards, programs[1:], strict=True)
        }

        def keep() -> None:
            sha256, content = self._catalogue.keep_file(data), self._content()
            models = {**content.models, name: Loaded(sha256, model.fingerprint)}
            aliases = {family: name, **content.aliases}
            self._catalogue.commit(content._replace(models=models, aliases=aliases))

        yield keep
        table.add(name, model, programs[0], programs[0].arithmetic)
        if self._disk is not None:
            self._disk.note_models(table.of_journals)
        yield Tell(
            CommandKind.LOAD, lambda shard: {"model": index, "address": addresses[id(shard)]}
        )
        if is_new:
            yield self._tell_aliases()
        self._log.write("info", "a model was loaded", model=name, fingerprint=model.fingerprint)
        return {"name": name, "fingerprint": model.fingerprint}

    def _load_new(self, directory: Path) -> Generator[Any, Any, None]:
        """Load the files that were not there before, or have changed; say once what cannot be."""
        found = yield lambda: new_versions(directory, self._seen)
        for file, name in found:
            if name in self._table.indices:
                continue
            try:
                yield from self._load(name, file)
            except (ProtocolError, OSError) as error:
                text = "a model that has appeared cannot be loaded"
                self._log.write("warning", text, file=file, reason=str(error))

    def _alias(self, name: str, share: float = 1.0) -> Generator[Any, Any, Any]:
        table, family = self._table, family_of(name)
        need_served(table, name)
        aliases, shares = dict(table.aliases), dict(table.shares)
        shares.pop(family, None)
        if share == 1:
            aliases[family] = name
        elif share > 0:
            shares[family] = Share(name, max(1, round(share * SHARES)))
        yield from self._hold(family)
        yield from self._commit(self._content()._replace(aliases=aliases, shares=shares))
        table.aliases, table.shares = aliases, shares
        yield self._tell_aliases()
        self._log.write("info", "an alias was changed", **self._told(family))
        return self._told(family)

    def _hold(self, family: str) -> Generator[Any, Any, Any]:
        """Let no stream of a family begin, and bring all that there are to disk.

        What began before a crash, and is not on disk, would begin anew as another version.
        """
        if self._disk is None:
            return
        yield self._tell_aliases(family)
        yield from self._sync()

    def _sync(self) -> Generator[Any, Any, Any]:
        if not all((yield Tell(_SYNC))):
            yield self._tell_aliases()
            raise ProtocolError(ErrorCode.READ_ONLY, reason="streams cannot be brought to disk")

    def _commit(self, content: Content) -> Generator[Any, Any, Any]:
        try:
            yield lambda: self._catalogue.commit(content)
        except OSError as error:
            yield self._tell_aliases()
            raise ProtocolError(ErrorCode.READ_ONLY, reason=error.strerror or str(error)) from error

    def _swap(self, name: str, to: str, streams: str = "keep") -> Generator[Any, Any, Any]:
        table, family = self._table, family_of(to)
        need_served(table, name)
        need_served(table, to)
        check_swap(table, name, to, streams, self._disk is not None, self._device)
        rule = None if streams == "keep" else SwapRule(to, streams)
        # Where its streams go now they come from no more, or they would be swapped back.
        yield from self._drop_rules([to] if rule is not None else [to, name])
        yield from self._hold(family)
        if rule is not None:
            yield self._tell_swap(name, rule)
        swaps = {**table.swaps, **({} if rule is None else {name: rule})}
        aliases = {**table.aliases, family: to}
        shares = {key: each for key, each in table.shares.items() if key != family}
        content = self._content()._replace(aliases=aliases, swaps=swaps, shares=shares)
        try:
            if rule is not None:  # streams that are still to be swapped have nothing to repeat
                yield from self._sync()
            yield from self._commit(content)
        except ProtocolError:
            if rule is not None:
                yield self._tell_swap(name, table.swaps.get(name))
            raise
        table.aliases, table.shares, table.swaps = aliases, shares, swaps
        yield self._tell_aliases()
        self._log.write("info", "a model was swapped", model=name, to=to, streams=streams)
        return self._told(family)

    def _drop_rules(self, names: list[str]) -> Generator[Any, Any, Any]:
        """Swap the streams of some versions no more."""
        dropped = [name for name in names if name in self._table.swaps]
        if dropped:
            swaps = {key: rule for key, rule in self._table.swaps.items() if key not in dropped}
            yield from self._commit(self._content()._replace(swaps=swaps))
            self._table.swaps = swaps
            for name in dropped:
                yield self._tell_swap(name, None)

    def _unload(self, name: str) -> Generator[Any, Any, Any]:
        table, family = self._table, family_of(name)
        need_served(table, name)
        shares = [each.name for each in table.shares.values()]
        targets = [rule.to for rule in table.swaps.values()]
        if table.aliases[family] == name or name in shares or name in targets:
            text = f"{name!r} is what new or swapped streams get: let another version be it first"
            raise ProtocolError(ErrorCode.EXISTS, text)
        index = table.indices[name]
        served = table.served[index]
        table.served[index] = served._replace(fingerprint="")  # no more streams come from disk
        answers = yield Tell(CommandKind.UNLOAD, lambda shard: {"model": index})
        if not all(answers):
            table.served[index] = served
            gone = {id(shard) for shard, each in zip(self._shards, answers, strict=True) if each}
            yield self._tell_again(index, gone)
            if name in table.swaps:
                yield self._tell_swap(name, table.swaps[name])
            number = sum(shard.num_open().get(name, 0) for shard in self._shards)
            text = f"{name!r} has streams in memory ({number}): swap them, or wait for their end"
            raise ProtocolError(ErrorCode.EXISTS, text)
        for shard in self._shards:
            shard.models.forget(index)
        table.remove(name)
        content = self._content()
        models = {key: each for key, each in content.models.items() if key != name}

        def forget() -> None:
            self._catalogue.commit(content._replace(models=models))
            with contextlib.suppress(OSError):
                self._catalogue.drop_files()

        yield forget
        self._log.write("info", "a model was unloaded", model=name)
        return {"name": name}

    def _tell_again(self, index: int, gone: set[int]) -> Tell:
        """Let the shards that have forgotten a model have it again; the others have it still."""
        rows = self._table.alias_rows()

        def values(shard: ShardView) -> dict[str, int]:
            if id(shard) in gone:
                address = shard.models.address_of(index)
                return {"what": CommandKind.LOAD, "model": index, "address": address}
            return {"address": shard.models.make_aliases(rows), "seq": len(rows)}

        return Tell(CommandKind.ALIAS, values)

    def _content(self) -> Content:
        table = self._table
        return Content(self._catalogue.content.models, table.aliases, table.shares, table.swaps)

    def _tell_aliases(self, held: str | None = None) -> Tell:
        rows = self._table.alias_rows(held)
        return Tell(
            CommandKind.ALIAS,
            lambda shard: {"address": shard.models.make_aliases(rows), "seq": len(rows)},
        )

    def _tell_swap(self, name: str, rule: SwapRule | None) -> Tell:
        table = self._table
        to = -1 if rule is None else table.indices[rule.to]
        policy = 0 if rule is None else SWAP_POLICIES[rule.policy]
        values = {"model": table.indices[name], "slot": to, "digest": int(policy)}
        return Tell(CommandKind.SWAP, lambda shard: values)

    def _told(self, family: str) -> dict[str, Any]:
        table = self._table
        share = table.shares.get(family)
        return {
            "alias": family,
            "model": table.aliases[family],
            **({} if share is None else {"share": share.share / 10_000, "share_of": share.name}),
        }
