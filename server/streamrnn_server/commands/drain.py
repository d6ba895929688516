"""``streamrnn drain``: hand a server's streams to another one, while both serve."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamrnn.commands.printable import printable
from streamrnn.errors import ServerError, StateError
from streamrnn_client import Client
from streamrnn_client.protocol import hash_slot, shard_of
from streamrnn_client.words import counted
from streamrnn_server.commands.answers import (
    Shape,
    check,
    is_bytes,
    is_error,
    is_flag_or_nil,
    is_list,
    is_number,
    is_text,
    of_columns,
    or_nil,
)
from streamrnn_server.commands.connection import add_server, connected, keys_of

__all__ = ["Mover", "Side", "configure", "run"]

_TIMEOUT_S = 60.0
_NUM_TOGETHER = 256
_MAX_MESSAGE_BYTES = 2**21
_FIRST_WAIT_S, _MAX_WAIT_S = 0.001, 0.25
_TELL_EVERY_S = 1.0
PATIENCE_S = 30.0  # with a server that has no room for streams that are on its disk
GIVE_UP_S = 180.0  # where nothing goes on: longer than a server waits before it begins anew
_MAX_TOLD = 10
_COMES_AGAIN = ("busy", "unknown")  # it went on there meanwhile, or was closed
_RECORD = of_columns(is_bytes, is_list(of_columns(is_bytes, is_bytes)))
_VALUES: dict[str, Shape] = {
    "leave": or_nil(_RECORD),
    "where": or_nil(of_columns(is_text, is_number, is_number)),
    **dict.fromkeys(("arrive", "moved", "stay", "activate", "here", "drop"), is_flag_or_nil),
}
_PAGE = of_columns(
    is_list(lambda name: isinstance(name, str) or type(name) is int), or_nil(is_bytes)
)

Name = str | int


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_server(parser)
    parser.add_argument(
        "--to", required=True, metavar="OTHER", help="address of the server that goes on with them"
    )
    parser.add_argument(
        "--to-server-key", type=Path, metavar="FILE", help="its NAME.key, if it is another one"
    )
    parser.add_argument(
        "--drop",
        action="store_true",
        help="move nothing: let OTHER forget what a drain that was cut short has left there of "
        "streams that ADDRESS has",
    )


def run(args: argparse.Namespace) -> int:
    """Move all streams, or drop what is left of a drain; safe to run again, whatever ended it.

    Returns
    -------
    int
        0; 1 if some stay where they are.

    Raises
    ------
    ServerError
        If one of the servers cannot be asked, or answers what is no answer.
    StateError
        If one of the servers keeps nothing on disk, or nothing goes on any more.
    """
    keys = keys_of(args)
    their_keys = {**keys, "server_key": args.to_server_key or args.server_key}
    with (
        connected(args.address, keys, _TIMEOUT_S) as source,
        connected(args.to, their_keys, _TIMEOUT_S) as target,
    ):
        mover = Mover(Side(source, args.address, keys), Side(target, args.to, their_keys))
        return mover.drop() if args.drop else mover.run()


class Side(NamedTuple):
    """A server, its address, and the keys that it asks for."""

    client: Client
    address: str
    keys: dict[str, Any]

    def ask(self, what: str, items: Sequence[Any]) -> list[tuple[list[Any] | None, Any]]:
        """Ask for a part of a drain; return each item's error and value, checked."""
        is_right = is_list(of_columns(is_error, _VALUES[what]))
        told = f"the answer of {self.address} to drain {what}"
        answer = check(self.client.call("drain", [what, list(items)]), is_right, told)
        check(len(answer), lambda number: number == len(items), told)
        return [(error, value) for error, value in answer]

    def ids(self, what: str) -> Iterator[list[Name]]:
        """Yield the ids of all streams, or all arrivals, some at a time."""
        after: bytes | None = None
        told = f"the answer of {self.address} to drain {what}"
        while True:
            ids, last = check(self.client.call("drain", [what, after, _NUM_TOGETHER]), _PAGE, told)
            # Each list begins where the one before has ended: who goes back never comes to an end.
            check(last, _follows(after), told)
            if ids:
                yield ids
            after = last
            if after is None:
                return


def _follows(after: bytes | None) -> Callable[[Any], bool]:
    return lambda last: last is None or after is None or last > after


class Mover:
    """Moves streams, some at a time, until a pass over all of them finds none that can be moved."""

    def __init__(self, source: Side, target: Side) -> None:
        self._source, self._target = source, target
        (self._shards, name), (self._endpoints, self._target_name) = _look(source), _look(target)
        self._of_target = dict.fromkeys(self._endpoints, True)  # by endpoint
        if name == self._target_name:
            raise StateError(f"{source.address} and {target.address} are the same server")
        self._num_moved = 0
        self._told_at_s = time.monotonic()
        self._staying: dict[Name, str] = {}
        self._waiting: dict[Name, str] = {}  # those that are there, and cannot be served yet

    def run(self) -> int:
        """Move all that can be moved; return 1 if some stay, or are not served yet."""
        self._finish_before()
        went_on_at_s = time.monotonic()
        while True:
            num_before = self._num_moved
            self._staying.clear()
            is_all = True
            self._have_written()
            for ids in self._source.ids("streams"):
                is_all &= self._move(ids)
            has_moved = self._num_moved > num_before
            if has_moved:
                went_on_at_s = time.monotonic()
            elif is_all or self._is_over(went_on_at_s):
                break
            self._wait(0.0 if has_moved else _MAX_WAIT_S)
        print(f"{counted(self._num_moved, 'stream')} moved to {self._endpoints[0]}")
        _tell_reasons("staying", self._staying)
        _tell_reasons("there and not served yet (run it again)", self._waiting)
        return 1 if self._staying or self._waiting else 0

    def drop(self) -> int:
        """Let the target forget what it keeps aside of streams that are at the source."""
        num_dropped, left_there = 0, dict[Name, str]()
        went_on_at_s = time.monotonic()
        self._finish_before()
        for ids in self._target.ids("arrivals"):
            left: Sequence[Name] = ids
            while left:
                # Looked at before each time: a drain that goes on meanwhile keeps what it needs.
                left, others = self._of_source(left)
                left_there |= others
                again: list[Name] = []
                for name, (error, is_dropped) in zip(
                    left, self._target.ask("drop", left), strict=True
                ):
                    if error is not None:
                        left_there[name] = f"{error[0]}: {error[1]}"
                    elif is_dropped:
                        num_dropped += 1
                    else:
                        again.append(name)
                if len(again) < len(left):
                    went_on_at_s = time.monotonic()
                self._give_up_after(went_on_at_s, self._target, "drop", len(again))
                left = again
                if left:
                    self._wait(_MAX_WAIT_S)
        print(f"{counted(num_dropped, 'arrival')} dropped at {self._target.address}")
        _tell_reasons("left there", left_there)
        return 1 if left_there else 0

    def _of_source(self, ids: Sequence[Name]) -> tuple[list[Name], dict[Name, str]]:
        """Return which streams are at the source, and why the others may not be dropped."""
        here: list[Name] = []
        others: dict[Name, str] = {}
        for name, (error, is_here) in zip(ids, self._source.ask("here", ids), strict=True):
            if error is not None:
                others[name] = f"{error[0]}: {error[1]}"
            elif is_here:
                here.append(name)
            else:
                others[name] = (
                    f"{self._source.address} does not have it: it was closed there, came from "
                    "another server, or has gone from there"
                )
        return here, others

    def _finish_before(self) -> None:
        """Let those be streams there that were on their way when a drain before this one ended."""
        went_on_at_s = time.monotonic()
        for ids in self._target.ids("arrivals"):
            gone = []
            for name, (_, left) in zip(ids, self._source.ask("where", ids), strict=True):
                if left is None:
                    continue
                if self._may_be_target(left[0]):
                    gone.append([name, *left[1:]])
                else:
                    self._waiting[name] = (
                        f"{self._source.address} has handed it to another server, at {left[0]}"
                    )
            self._activate(gone)
            if gone:
                went_on_at_s = time.monotonic()
            self._give_up_after(went_on_at_s, self._target, "arrivals", len(ids))

    def _may_be_target(self, endpoint: str) -> bool:
        """Tell whether no other server than the target answers at an address.

        It may have another one now, or another name of its host is meant.
        """
        if endpoint not in self._of_target:
            self._of_target[endpoint] = True
            with (
                contextlib.suppress(ServerError),
                connected(endpoint, self._target.keys) as client,
            ):
                self._of_target[endpoint] = client.hello().instance == self._target_name
        return self._of_target[endpoint]

    def _activate(self, gone: Sequence[Any]) -> None:
        """Have streams served that are gone here; where there is no room, ask again for a while."""
        give_up_at_s, left = time.monotonic() + PATIENCE_S, gone
        while left:
            answers = self._until_done(self._target, "activate", left)
            is_over = time.monotonic() > give_up_at_s
            again = []
            for name, (error, _) in zip(left, answers, strict=True):
                if error is not None and error[0] == "busy" and not is_over:
                    again.append(name)
                elif error is not None:
                    self._waiting[name[0] if isinstance(name, list) else name] = (
                        f"{error[0]}: {error[1]}"
                    )
            left = again
            if left:
                self._wait(_MAX_WAIT_S)

    def _have_written(self) -> None:
        for endpoint in self._shards:
            with connected(endpoint, self._source.keys, _TIMEOUT_S) as shard:
                if not shard.call("sync", [None]):
                    raise StateError(f"{endpoint} cannot write its state directory")

    def _move(self, ids: list[Name]) -> bool:
        """Move some streams; false if one of them must be tried again."""
        left = self._until_done(self._source, "leave", ids)
        is_all = self._note_errors(ids, left)
        going = [(name, found) for name, (_, found) in zip(ids, left, strict=True) if found]
        try:
            for part in _parts(going):
                is_all &= self._hand_over(part)
        finally:  # who has gone is not held, and cannot stay
            self._source.ask("stay", [name for name, _ in going])
        return is_all

    def _hand_over(self, part: Sequence[tuple[Name, list[Any]]]) -> bool:
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

    def _endpoint(self, name: Name) -> str:
        return self._endpoints[shard_of(hash_slot(name), len(self._endpoints))]

    def _until_done(
        self, side: Side, what: str, items: Sequence[Any]
    ) -> list[tuple[list[Any] | None, Any]]:
        """Ask until each item has its value, or its error.

        Raises `StateError` if nothing goes on for too long.
        """
        answers: list[tuple[list[Any] | None, Any]] = [(None, None)] * len(items)
        left, wait_s = list(range(len(items))), _FIRST_WAIT_S
        went_on_at_s = time.monotonic()
        while left:
            for i, answer in zip(left, side.ask(what, [items[i] for i in left]), strict=True):
                answers[i] = answer
            num_before = len(left)
            left = [i for i in left if answers[i][0] is None and not answers[i][1]]
            if len(left) < num_before:
                went_on_at_s = time.monotonic()
            self._give_up_after(went_on_at_s, side, what, len(left))
            if left:
                wait_s = _FIRST_WAIT_S if len(left) < num_before else min(2 * wait_s, _MAX_WAIT_S)
                self._wait(wait_s)
        return answers

    def _note_errors(self, names: Sequence[Name], answers: Sequence[Any]) -> bool:
        """Note why streams stay; false if one may yet be moved."""
        is_all = True
        for name, (error, _) in zip(names, answers, strict=True):
            if error is not None:
                is_all &= error[0] not in _COMES_AGAIN
                self._staying[name] = f"{error[0]}: {error[1]}"
        return is_all

    @staticmethod
    def _is_over(went_on_at_s: float) -> bool:
        return time.monotonic() > went_on_at_s + GIVE_UP_S

    def _give_up_after(self, went_on_at_s: float, side: Side, what: str, num_left: int) -> None:
        """Raise `StateError` if nothing has gone on for too long."""
        if num_left and self._is_over(went_on_at_s):
            raise StateError(
                f"{side.address} has not come to an end with drain {what} of "
                f"{counted(num_left, 'stream')} for {GIVE_UP_S:.0f} s: {self._num_moved:,} moved, "
                "the others stay where they are; look at that server, and run it again"
            )

    def _wait(self, wait_s: float) -> None:
        self._tell()
        time.sleep(wait_s)

    def _tell(self) -> None:
        if time.monotonic() > self._told_at_s + _TELL_EVERY_S:
            self._told_at_s = time.monotonic()
            print(f"{counted(self._num_moved, 'stream')} moved ...", file=sys.stderr)


def _look(side: Side) -> tuple[Sequence[str], str]:
    info = side.client.hello()
    if info.durability == "none":
        raise StateError(f"{side.address} keeps nothing on disk: streams move between state dirs")
    return ([side.address] if info.num_shards == 1 else info.endpoints), info.instance


def _tell_reasons(what: str, streams: dict[Name, str]) -> None:
    for reason, number in Counter(streams.values()).most_common(_MAX_TOLD):
        example = next(name for name, why in streams.items() if why == reason)
        shown = f", {example!r} among them" if number > 1 else f", {example!r}"
        print(f"{what}: {counted(number, 'stream')}{printable(shown)}: {printable(reason)}")


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
