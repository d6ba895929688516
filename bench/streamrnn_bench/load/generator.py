"""The generator: threads that drive senders, each over a connection of its own."""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from numba.core import types

from streamrnn_bench.load.arrivals import Pattern
from streamrnn_bench.load.drive import Mode, drive
from streamrnn_bench.load.histogram import Histogram
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.senders import (
    HISTOGRAMS,
    OTHER_ERROR,
    How,
    ModelLoad,
    Phase,
    Senders,
    names_of_shard,
)
from streamrnn_bench.load.turns import begin_steps
from streamrnn_bench.report.results import BenchError
from streamrnn_client._drivers.sockets import Connection
from streamrnn_client.options import Keys
from streamrnn_client.protocol import ErrorCode, decode_response, encode_request

__all__ = ["Generator", "Outcome", "Target"]

_SPARE_IN_FLIGHT = 256  # `open` and `close`, and what follows at once from an answer
_NUM_NAMES = 10**8
_BACKOFF_S = 0.01
_START_IN_S = 0.02
_LOOK_EVERY_S = 0.05
_PR_SET_TIMERSLACK = 29
_FOREVER_NS = 1 << 62
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


@dataclass(frozen=True)
class Target:
    """A server, and what is sent to it."""

    endpoints: Sequence[str]  # of its shards
    models: Sequence[ModelLoad]
    keys: Keys | None = None
    max_in_flight: int = 1000
    tells_received: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a load has found."""

    how: How
    is_interrupted: bool
    measured_s: float
    num_done: int  # steps, answered while it was measured
    num_messages: int  # of the whole run, sent
    num_unanswered: int
    num_unsent: int
    num_opened: int
    num_closed: int
    errors: dict[str, int]  # of the whole run, by code
    first_error: str
    latency: Histogram
    response: Histogram
    lateness: Histogram
    opening: Histogram
    closing: Histogram

    @property
    def steps_per_s(self) -> float:
        """Steps that were answered a second while it was measured."""
        return self.num_done / max(self.measured_s, 1e-9)


class Generator:
    """Streams on a server, opened and closed by it.

    Raises a `BenchError` if the server cannot be reached, or does not answer. ``tell`` takes lines
    about what it is doing.
    """

    def __init__(
        self,
        target: Target,
        options: LoadOptions,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._options, self._tell = options, tell
        for function in (drive, begin_steps):  # before anything is due
            function.compile((types.int64, types.int64))
        self._stack = contextlib.ExitStack()
        self._is_interrupted = False
        num_shards = len(target.endpoints)
        num_senders = options.streams // options.batch
        num_workers = max(options.threads, num_shards)
        if num_senders < num_workers:
            raise BenchError(
                f"{num_senders} senders for {num_workers} connections (threads, and one for each "
                "shard at least): drive more streams"
            )
        prefix = "load" + "".join(secrets.choice(_LETTERS) for _ in range(3))
        self.senders: list[Senders] = []
        with contextlib.ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            for worker in range(num_workers):
                share = num_senders // num_workers + (worker < num_senders % num_workers)
                shard = worker % num_shards
                endpoint = target.endpoints[shard]
                socket = self._connect(stack, context, endpoint, target.keys)
                first = worker * (_NUM_NAMES // num_workers)
                senders = Senders(
                    socket.underlying,
                    int(socket.getsockopt(zmq.FD)),
                    share,
                    _plan(options, target),
                    _arrivals(options, worker),
                    target.models,
                    prefix,
                    first_name=first,
                    num_kept=(8, 64) if options.verify and worker == 0 else (0, 0),
                )
                if num_shards > 1:
                    names = names_of_shard(prefix, first, senders.names.size, shard, num_shards)
                    senders.names[:] = names.reshape(senders.names.shape)
                self.senders.append(senders)
            self._stack = stack.pop_all()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Close the connections; streams that are open stay open."""
        self._stack.close()

    def _connect(
        self,
        stack: contextlib.ExitStack,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: Keys | None,
    ) -> zmq.Socket[bytes]:
        """Return a socket over which the server has answered."""
        socket = stack.enter_context(context.socket(zmq.DEALER))
        Connection(socket, endpoint, keys)
        timeout_ms = int(self._options.timeout_s * 1e3)
        within = f"{endpoint} did not answer within {self._options.timeout_s:g} s"
        if not socket.poll(timeout_ms, zmq.POLLOUT):
            raise BenchError(f"{within}: is a server there?")
        if not self._options.is_echo:
            socket.send(encode_request(0, "hello", [{"client": "streamrnn bench load"}]))
            if not socket.poll(timeout_ms):
                raise BenchError(within)
            _refuse_error(socket.recv())
        return socket

    def open(self) -> None:
        """Open all streams; a `BenchError` if that does not get on."""
        if self._options.is_echo:
            for number, t in enumerate(self.senders):
                t.table["phase"] = Phase.STEPPING
                t.table["left"] = -1
                t.names[:, 0] = number * (_NUM_NAMES // len(self.senders)) + np.arange(len(t.names))
            return
        self._tell(f"opening {self._options.streams:,} streams")
        self._drive(Mode.OPEN)
        for t in self.senders:
            how = t.how
            if how != How.DONE:
                num_open = sum(each.count("num_open") for each in self.senders)
                batch = self._options.batch
                raise BenchError(
                    f"{num_open * batch:,} of {self._options.streams:,} streams could be opened: "
                    + self._why(how, t)
                )
            if t.count("least_window") < self._options.window:
                raise BenchError(
                    f"the server grants a window of {t.count('least_window')} steps, and "
                    f"{self._options.window} are to be in flight: give a smaller --in-flight"
                )

    def close_streams(self) -> bool:
        """Close all streams that are open; tell whether the server has said so of all."""
        if self._options.is_echo:
            return True
        self._drive(Mode.CLOSE)
        return all(t.how == How.DONE for t in self.senders)

    def run(self, at_interval: Callable[[float, Histogram], bool] | None = None) -> Outcome:
        """Drive the streams, which are open, for as long as the options say.

        ``at_interval`` gets the steps and the latencies of each second that is measured, and tells
        whether it is enough. After Ctrl-C nothing more is sent, and what was measured is returned;
        after a second one what is on its way is not awaited.
        """
        options = self._options
        start_ns = time.monotonic_ns() + int(_START_IN_S * 1e9)
        from_ns = start_ns + int((options.ramp_s + options.warm_up_s) * 1e9)
        self._until(from_ns, from_ns + int(options.duration_s * 1e9))
        for t in self.senders:
            begin_steps(t.address, start_ns)
        self._drive(Mode.STEP, lambda: self._look(from_ns, at_interval))
        return self._outcome()

    def _until(self, from_ns: int, until_ns: int) -> None:
        for t in self.senders:
            t.struct["from_ns"], t.struct["until_ns"] = from_ns, until_ns

    def _look(
        self, from_ns: int, at_interval: Callable[[float, Histogram], bool] | None
    ) -> Callable[[], None]:
        """Return what is called every now and then while streams are driven."""
        last_ns, last = from_ns, Histogram()
        last_done = 0

        def look() -> None:
            nonlocal last_ns, last, last_done
            now = time.monotonic_ns()
            if at_interval is None or now - last_ns < 1e9 or now >= self._end_ns():
                return
            whole = Histogram.merged(t.histograms["latency"] for t in self.senders)
            done = self._sum("num_done")
            steps_per_s = (done - last_done) / (now - last_ns) * 1e9
            if at_interval(steps_per_s, whole.since(last)):
                self._until(from_ns, now)
            last_ns, last, last_done = now, whole, done

        return look

    def _end_ns(self) -> int:
        return int(self.senders[0].struct["until_ns"])

    def _drive(self, mode: Mode, prepare: Callable[[], Callable[[], None]] | None = None) -> None:
        """Drive all senders, each in a thread of its own, and wait for them."""
        threads = [
            threading.Thread(target=_drive, args=(t, mode), name=f"load {k}", daemon=True)
            for k, t in enumerate(self.senders)
        ]
        look = prepare() if prepare else None
        for t in self.senders:
            t.struct["stop"] = 0
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_LOOK_EVERY_S)
                if look:
                    look()
        except KeyboardInterrupt:
            if mode != Mode.STEP:
                self._stop(threads)
                raise
            self._is_interrupted = True
            now = time.monotonic_ns()
            self._until(int(self.senders[0].struct["from_ns"]), min(now, self._end_ns()))
            self._tell("interrupted: what is on its way is awaited")
            try:
                for thread in threads:
                    thread.join()
            except KeyboardInterrupt:
                self._stop(threads)

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        for t in self.senders:
            t.struct["stop"] = 1
        for thread in threads:
            thread.join()

    def _sum(self, count: str) -> int:
        return sum(t.count(count) for t in self.senders)

    def _outcome(self) -> Outcome:
        control = self.senders[0].struct
        now = time.monotonic_ns()
        measured_ns = min(now, int(control["until_ns"])) - int(control["from_ns"])
        errors = np.sum([t.errors for t in self.senders], 0)
        named = {code.wire: int(errors[code]) for code in ErrorCode if errors[code]}
        if errors[OTHER_ERROR]:
            named["other"] = int(errors[OTHER_ERROR])
        worst = max(self.senders, key=lambda t: t.how)
        how = worst.how
        first_error = next((self._why(How.DONE, t) for t in self.senders if t.kept), "")
        if how not in (How.DONE, How.STOPPED) and not (how == How.UNFINISHED and first_error):
            first_error = self._why(how, worst)
        return Outcome(
            how=how,
            is_interrupted=self._is_interrupted,
            measured_s=max(measured_ns, 0) / 1e9,
            num_done=self._sum("num_done"),
            num_messages=self._sum("num_sent"),
            num_unanswered=self._sum("num_unanswered"),
            num_unsent=self._sum("num_unsent"),
            num_opened=self._sum("num_opened") * self._options.batch,
            num_closed=self._sum("num_closed") * self._options.batch,
            errors=named,
            first_error=first_error,
            **{
                name: Histogram.merged(t.histograms[name] for t in self.senders)
                for name in HISTOGRAMS
            },
        )

    def _why(self, how: How, t: Senders) -> str:
        """Put into words why a drive has ended, or what the first refusal was."""
        said = _words(t.kept, t.kept_size)
        if how == How.BAD_REPLY:
            return f"a reply is not to what was asked: {said}"
        if how == How.NOT_SENT:
            return "the connection to the server is lost"
        if how in (How.NO_REPLY, How.UNFINISHED):
            seconds = f"{self._options.timeout_s:g} s"
            return f"no reply for {seconds}" + f"; the first refusal was {said}" * bool(t.kept)
        return said


def _plan(options: LoadOptions, target: Target) -> dict[str, int]:
    """Return the values of a `Plan`."""
    return {
        "is_open_loop": options.rate is not None,
        "batch": options.batch,
        "chunk": options.chunk,
        "slots_log2": options.slots.bit_length() - 1,
        "window": options.window,
        "keeps_names": len(target.endpoints) > 1,
        "tells_received": target.tells_received,
        "is_echo": options.is_echo,
        "life": options.life,
        "max_in_flight": max(target.max_in_flight - _SPARE_IN_FLIGHT, 1),
        "timeout_ns": int(options.timeout_s * 1e9),
        "backoff_ns": int(_BACKOFF_S * 1e9),
        "ramp_ns": int(options.ramp_s * 1e9),
    }


def _arrivals(options: LoadOptions, worker: int) -> dict[str, float]:
    """Return the values of an `Arrivals`."""
    low, high = options.rate or (1.0, 1.0)
    return {
        "pattern": Pattern[options.arrivals.upper()],
        "min_period_ns": options.chunk / high * 1e9,
        "max_period_ns": options.chunk / low * 1e9,
        "burst": options.burst,
        "seed": options.seed * 64 + worker,
    }


def _drive(t: Senders, mode: Mode) -> None:
    if sys.platform == "linux":  # else every wait is 50 µs longer than asked for
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000)
    drive(t.address, int(mode))


def _refuse_error(reply: bytes) -> None:
    try:
        response = decode_response(reply)
    except ValueError as error:
        raise BenchError(f"the server's answer to hello is no reply: {error}") from error
    if response.error:
        raise BenchError(f"the server refuses: {_words(reply, len(reply))}")


def _words(reply: bytes, num_bytes: int) -> str:
    """Say what a reply of so many bytes says, as far as its beginning can be read."""
    try:
        response = decode_response(reply)
    except ValueError:
        return f"{num_bytes:,} bytes that begin with {reply[:16].hex(' ') or 'nothing'}"
    error = response.error or next(_errors_of_items(response.result), None)
    return f"{error[0]}: {error[1]}" if error else "another step, stream or length"


def _errors_of_items(result: Any) -> Iterator[Sequence[Any]]:
    """Yield the errors in the answer to an `open` of many, or to a batch in columns."""
    items = result if isinstance(result, list) else []
    if items and isinstance(items[0], dict):
        items = [[error, None] for error in items[0].values()]
    for item in items:
        if isinstance(item, list) and item and isinstance(item[0], list) and len(item[0]) > 1:
            yield item[0]
