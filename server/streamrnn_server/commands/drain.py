"""``streamrnn drain``: hand a server's streams to another one, while both serve."""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from streamrnn.commands.printable import printable
from streamrnn.errors import StateError
from streamrnn_client import Client
from streamrnn_client.protocol import hash_slot, shard_of
from streamrnn_server.commands.status import add_server

__all__ = ["configure", "run"]

_TIMEOUT_S = 60.0
_NUM_TOGETHER = 256
_MAX_MESSAGE_BYTES = 2**21
_FIRST_WAIT_S, _MAX_WAIT_S = 0.001, 0.25
_TELL_EVERY_S = 1.0
_PATIENCE_S = 30.0  # with a server that has no room for streams that are on its disk
_MAX_TOLD = 10
_COMES_AGAIN = ("busy", "unknown")  # it went on there meanwhile, or was closed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_server(parser)
    parser.add_argument(
        "--to", required=True, metavar="OTHER", help="address of the server that goes on with them"
    )
    parser.add_argument(
        "--to-server-key", type=Path, metavar="FILE", help="its NAME.key, if it is another one"
    )


def run(args: argparse.Namespace) -> int:
    """Move all streams; safe to run again, whatever ended it.

    Returns
    -------
    int
        0; 1 if some stay where they are.

    Raises
    ------
    StateError
        If one of the servers keeps nothing on disk.
    """
    keys = {"curve_key": args.curve_key, "server_key": args.server_key}
    their_keys = {**keys, "server_key": args.to_server_key or args.server_key}
    with (
        Client(args.address, timeout_s=_TIMEOUT_S, **keys) as source,
        Client(args.to, timeout_s=_TIMEOUT_S, **their_keys) as target,
    ):
        return _Mover(source, args.address, target, args.to, keys).run()


class _Mover:
    """Moves streams, some at a time, until a pass over all of them finds none that can be moved."""

    def __init__(
        self, source: Client, source_at: str, target: Client, target_at: str, keys: dict[str, Any]
    ) -> None:
        self._source, self._target, self._keys = source, target, keys
        (self._shards, name), (endpoints, other) = (
            self._look(client, address)
            for client, address in ((source, source_at), (target, target_at))
        )
        if name == other:
            raise StateError(f"{source_at} and {target_at} are the same server")
        self._endpoints = endpoints
        self._num_moved, self._told_at_s = 0, time.monotonic()
        self._staying: dict[str | int, str] = {}
        self._waiting: dict[str | int, str] = {}  # those that are there, and cannot be served yet

    @staticmethod
    def _look(client: Client, address: str) -> tuple[Sequence[str], str]:
        info = client.hello()
        if info.durability == "none":
            raise StateError(f"{address} keeps nothing on disk: streams move between state dirs")
        return ([address] if info.num_shards == 1 else info.endpoints), info.instance

    def run(self) -> int:
        self._finish_before()
        while True:
            num_before = self._num_moved
            self._staying.clear()
            is_all = True
            self._have_written()
            for ids in self._ids(self._source, "streams"):
                is_all &= self._move(ids)
            if is_all and self._num_moved == num_before:
                break
            self._wait(0.0 if self._num_moved > num_before else _MAX_WAIT_S)
        print(f"{self._num_moved} streams have moved to {self._endpoints[0]}")
        _tell_reasons("stay", self._staying)
        _tell_reasons("are there and not served (run it again)", self._waiting)
        return 1 if self._staying or self._waiting else 0

    def _finish_before(self) -> None:
        """Let those be streams there that were on their way when a drain before this one ended."""
        for ids in self._ids(self._target, "arrivals"):
            gone = [
                name
                for name, (_, endpoint) in zip(
                    ids, self._source.call("drain", ["where", ids]), strict=True
                )
                if endpoint is not None
            ]
            self._activate(gone)

    def _activate(self, gone: Sequence[str | int]) -> None:
        """Have streams served that are gone here; where there is no room, ask again for a while."""
        give_up_at_s, left = time.monotonic() + _PATIENCE_S, gone
        while left:
            answers = self._until_done(self._target, "activate", left)
            is_over = time.monotonic() > give_up_at_s
            again = []
            for name, (error, _) in zip(left, answers, strict=True):
                if error is not None and error[0] == "busy" and not is_over:
                    again.append(name)
                elif error is not None:
                    self._waiting[name] = f"{error[0]}: {error[1]}"
            left = again
            if left:
                self._wait(_MAX_WAIT_S)

    def _have_written(self) -> None:
        for endpoint in self._shards:
            with Client(endpoint, timeout_s=_TIMEOUT_S, **self._keys) as shard:
                if not shard.call("sync", [None]):
                    raise StateError(f"{endpoint} cannot write its state directory")

    def _ids(self, client: Client, what: str) -> Iterator[list[str | int]]:
        after = None
        while True:
            ids, after = client.call("drain", [what, after, _NUM_TOGETHER])
            if ids:
                yield ids
            if after is None:
                return

    def _move(self, ids: list[str | int]) -> bool:
        """Move some streams; false if one of them must be tried again."""
        left = self._until_done(self._source, "leave", ids)
        is_all = self._note_errors(ids, left)
        going = [(name, found) for name, (_, found) in zip(ids, left, strict=True) if found]
        try:
            for part in _parts(going):
                is_all &= self._hand_over(part)
        finally:  # who has gone is not held, and cannot stay
            self._source.call("drain", ["stay", [name for name, _ in going]])
        return is_all

    def _hand_over(self, part: Sequence[tuple[str | int, list[Any]]]) -> bool:
        """Move streams that are held; false if one of them must be tried again."""
        names = [name for name, _ in part]
        arrived = self._until_done(self._target, "arrive", [found for _, found in part])
        is_all = self._note_errors(names, arrived)
        marks = [
            [name, zlib.crc32(found[0]), self._endpoint(name)]
            for (name, found), (_, is_there) in zip(part, arrived, strict=True)
            if is_there
        ]
        names = [mark[0] for mark in marks]
        marked = self._until_done(self._source, "moved", marks)
        is_all &= self._note_errors(names, marked)
        gone = [name for name, (_, is_gone) in zip(names, marked, strict=True) if is_gone]
        self._activate(gone)
        self._num_moved += len(gone)
        self._tell()
        return is_all

    def _endpoint(self, name: str | int) -> str:
        return self._endpoints[shard_of(hash_slot(name), len(self._endpoints))]

    def _until_done(
        self, client: Client, what: str, items: Sequence[Any]
    ) -> list[tuple[list[Any] | None, Any]]:
        """Ask until each item has its value, or its error."""
        answers: list[tuple[list[Any] | None, Any]] = [(None, None)] * len(items)
        left, wait_s = list(range(len(items))), _FIRST_WAIT_S
        while left:
            found = client.call("drain", [what, [items[i] for i in left]])
            for i, (error, value) in zip(left, found, strict=True):
                answers[i] = error, value
            num_before = len(left)
            left = [i for i in left if answers[i][0] is None and not answers[i][1]]
            if left:
                wait_s = _FIRST_WAIT_S if len(left) < num_before else min(2 * wait_s, _MAX_WAIT_S)
                self._wait(wait_s)
        return answers

    def _note_errors(self, names: Sequence[str | int], answers: Sequence[Any]) -> bool:
        """Note why streams stay; false if one may yet be moved."""
        is_all = True
        for name, (error, _) in zip(names, answers, strict=True):
            if error is not None and error[0] in _COMES_AGAIN:
                is_all = False
            elif error is not None:
                self._staying[name] = f"{error[0]}: {error[1]}"
        return is_all

    def _wait(self, wait_s: float) -> None:
        self._tell()
        time.sleep(wait_s)

    def _tell(self) -> None:
        if time.monotonic() > self._told_at_s + _TELL_EVERY_S:
            self._told_at_s = time.monotonic()
            print(f"{self._num_moved} streams have moved ...", file=sys.stderr)


def _tell_reasons(what: str, streams: dict[str | int, str]) -> None:
    for reason, number in Counter(streams.values()).most_common(_MAX_TOLD):
        example = next(name for name, why in streams.items() if why == reason)
        print(f"{number} {what}, {printable(repr(example))} among them: {printable(reason)}")


def _parts(going: Sequence[tuple[Any, list[Any]]]) -> Iterator[list[tuple[Any, list[Any]]]]:
    """Yield what fits into one message."""
    part: list[tuple[Any, list[Any]]] = []
    num_bytes = 0
    for name, (record, snapshots) in going:
        size = len(record) + sum(len(data) for _, data in snapshots)
        if part and num_bytes + size > _MAX_MESSAGE_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append((name, [record, snapshots]))
        num_bytes += size
    if part:
        yield part
