"""The control thread's loop: what shards ask goes to the dispatcher, its orders go to shards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import zmq

from streamrnn_server.control.dispatcher import Control
from streamrnn_server.control.messages import Order, command, parse_ask
from streamrnn_server.control.turns import Turns
from streamrnn_server.control.wakes import Wakes
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.structs import AskKind, CommandKind

__all__ = ["ControlLoop"]

_TELL_EVERY_S = 10.0
_WATCH_EVERY_S = 1.0  # a folder of models
_LOOK_EVERY_S = 0.005  # for what else has come, while much is asked
_ANSWER_WITHIN_S = 2.0  # after a stop, whatever waits
_TOLD_COUNTERS = (
    "num_errors_without_words",
    "num_calls_refused",
    "num_too_broken_to_answer",
    "num_extra_frames",
    "num_without_payload",
    "num_dropped_slow_reader",
    "num_dropped_peer_gone",
    "num_dropped_other",
    "num_evicted_idle",
)


class ControlLoop:
    """Takes what shards ask, each user's in turn, and sends them what `Control` answers.

    Parameters
    ----------
    pairs : sequence of zmq.Socket
        Python's end of each shard's PAIR.
    watches : bool
        Whether a folder is looked at for models now and then.

    Attributes
    ----------
    is_stopping : bool
        Whether the end has begun.
    """

    def __init__(
        self,
        control: Control,
        pairs: Sequence[zmq.Socket[bytes]],
        wakes: Wakes,
        log: EventLog,
        watches: bool,
    ) -> None:
        self._control, self._pairs, self._wakes = control, pairs, wakes
        self._log, self._watches = log, watches
        self._turns = Turns()
        self._told: dict[str, int] = {}
        self.is_stopping = False

    def run(self) -> None:
        """Answer until `Wakes.stop`; then what has arrived, until no shard asks any more.

        Raises
        ------
        StreamRNNError
            The failure of a thread, from `Wakes.failure`.
        """
        poller = zmq.Poller()
        poller.register(self._wakes.woken, zmq.POLLIN)
        for pair in self._pairs:
            poller.register(pair, zmq.POLLIN)
        turns, running, stop_at_s = self._turns, set(self._pairs), math.inf
        drained: list[zmq.Socket[bytes]] = []
        tell_at_s = time.monotonic() + _TELL_EVERY_S
        watch_at_s = 0.0 if self._watches else math.inf
        while running:
            next_s = min(tell_at_s, watch_at_s)
            timeout_s = 0.0 if turns else max(0.0, next_s - time.monotonic())
            ready = dict(poller.poll(math.ceil(timeout_s * 1e3)))
            if self._wakes.failure is not None:
                raise self._wakes.failure
            # Listened to after a stop too: a thread may fail yet.
            is_woken = self._wakes.woken.fileno() in ready
            if is_woken and self._take_wakes() and stop_at_s == math.inf:
                stop_at_s = time.monotonic() + _ANSWER_WITHIN_S
                self._begin_to_stop()
            for shard, pair in enumerate(self._pairs):
                if pair in ready and not self._take_asks(shard, pair):
                    drained.append(pair)
            self._answer_some(stop_at_s)
            if not turns:
                for pair in drained:
                    pair.send_multipart(command(CommandKind.END))
                running.difference_update(drained)
                drained.clear()
            if time.monotonic() >= tell_at_s:
                tell_at_s += _TELL_EVERY_S
                self._tell()
            if time.monotonic() >= watch_at_s:
                watch_at_s = time.monotonic() + _WATCH_EVERY_S
                self._send(self._control.watch())

    def _take_wakes(self) -> bool:
        """Pass pings on to the shards, go on with news; return whether all is to stop."""
        is_pinged, has_news, is_to_stop = self._wakes.take()
        if is_pinged and not self.is_stopping:
            self._wakes.heard = number = self._wakes.pinged
            for pair in self._pairs:
                pair.send_multipart(command(CommandKind.PING, {"seq": number}))
        if has_news:
            self._send(self._control.news())
        return is_to_stop

    def _begin_to_stop(self) -> None:
        self.is_stopping = True
        self._log.write("info", "stopping: answering what has arrived")
        for pair in self._pairs:
            pair.send_multipart(command(CommandKind.STOP))

    def _send(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self._pairs[order.shard].send_multipart(order.frames)

    def _take_asks(self, shard: int, pair: zmq.Socket[bytes]) -> bool:
        """Take what one shard asks; False once it has no more."""
        try:
            while True:
                ask = parse_ask(*pair.recv_multipart(zmq.DONTWAIT))
                if ask.ask == AskKind.DRAINED:
                    return False
                if ask.ask == AskKind.LEFT:  # before any look-up that was asked for after it
                    self._control.answer(shard, ask)
                    continue
                user = self._control.shards[shard].user(ask.owner)
                self._turns.add(user or (shard, ask.client), shard, ask)
        except zmq.Again:
            return True

    def _answer_some(self, stop_at_s: float) -> None:
        """Answer some of what was asked, before it is looked whether more has come.

        After a stop, what waits is dropped when its time is over.
        """
        look_again_at_s = time.monotonic() + _LOOK_EVERY_S
        now_s = 0.0
        while self._turns and now_s < look_again_at_s:
            shard, ask = self._turns.take()
            now_s = time.monotonic()
            if now_s >= stop_at_s:
                self._control.drop(shard, ask)
                continue
            self._send(self._control.answer(shard, ask))

    def _tell(self) -> None:
        """Log what was dropped or refused since the last time."""
        self._log.say_dropped()
        try:
            stats = self._control.stats()
        except Exception as error:
            self._log.write_fault("the counters cannot be told", error)
            return
        new = {
            name: stats[name] - self._told.get(name, 0)
            for name in _TOLD_COUNTERS
            if stats[name] != self._told.get(name, 0)
        }
        if new:
            self._told.update({name: stats[name] for name in new})
            self._log.write("warning", "dropped or refused", **new)
